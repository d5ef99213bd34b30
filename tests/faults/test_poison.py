"""Hostile lines and names: each line is accounted for once, and none stops the others."""

from __future__ import annotations

import json

import pytest

HOSTILE = {
    "deep nesting": b'{"prompt": "x", "deep": ' + b"[" * 5000 + b"]" * 5000 + b"}",
    "deep nesting that ends nowhere": b"[" * 100_000,
    "huge number": b'{"prompt": "x", "n": 1' + b"0" * 400 + b"}",
    "huge exponent": b'{"prompt": "x", "n": 1e999}',
    "lone surrogate": b'{"prompt": "\\ud800 alone"}',
    "NUL": b'{"prompt": "a\\u0000b"}',
    "raw NUL": b'{"prompt": "a\x00b"}',
    "long line": json.dumps({"prompt": "long " + "x" * 900_000}).encode(),
    "too long line": json.dumps({"prompt": "too long " + "x" * 1_100_000}).encode(),
    "duplicate keys": b'{"prompt": "first", "prompt": "second"}',
    "duplicate ids": b'{"custom_id": "same", "prompt": "a"}\n{"custom_id": "same", "prompt": "b"}',
    "BOM in the middle": b'\xef\xbb\xbf{"prompt": "after a BOM"}',
    "invalid UTF-8": b'{"prompt": "\xff\xfe"}',
    "empty object": b"{}",
    "array": b"[]",
    "number": b"7",
    "string": b'"text"',
    "null": b"null",
    "CR only": b'{"prompt": "a"}\r{"prompt": "b"}',
    "spaces around": b'   {"prompt": "spaced"}   ',
    "object as id": b'{"id": {"a": 1}, "prompt": "x"}',
    "object as model": b'{"model": {"a": 1}, "prompt": "x"}',
    "path as model": b'{"model": "@cf/../../queues", "prompt": "x"}',
    "query as model": b'{"model": "@cf/a?queueRequest=true", "prompt": "x"}',
    "error that is no object": b'{"error": "mine", "prompt": "x"}',
    "source of the user's": b'{"source": {"offset": 0, "length": 5}, "prompt": "x"}',
    "wrong parameters": b'{"prompt": "x", "max_tokens": "many", "temperature": {}}',
    "null prompt": b'{"prompt": null}',
    "line separator": '{"prompt": "a\u2028b\u0085c"}'.encode(),
}
NAMES = ["a b.jsonl", "plus+%25.jsonl", "u\u0308nicode.jsonl", "quote'\"<>&.jsonl", "deep/er/../x.jsonl", ".jsonl"]


@pytest.mark.parametrize("runner", ["direct", pytest.param("prism", marks=pytest.mark.prism)])
def test_every_hostile_line_is_accounted_for_once(cloud, runner):
    good = b'{"prompt": "good"}\n'
    body = good + b"\n".join(HOSTILE.values()) + b"\n" + good
    cloud.upload("hostile.jsonl", body)
    summary = cloud.run(runner=runner)
    assert (summary.problem, summary.in_work, summary.exit_code) == (None, (), 3)
    cloud.check()
    (settled,) = summary.settled
    assert settled.answered + settled.failed == body.count(b"\n")
    rows = cloud.rows("hostile.jsonl")
    assert rows[0]["error"] is None and rows[-1]["error"] is None
    assert all(row["error"] is None or row["error"]["message"] for row in rows)


def test_hostile_names_are_data_and_never_paths(cloud):
    for name in NAMES:
        cloud.upload(name, b'{"prompt": "x"}\n')
    summary = cloud.run(input="r2://llmdo/input/")
    assert summary.exit_code == 0
    assert len(summary.settled) == len(NAMES)
    cloud.check()


def test_hostile_names_stay_inside_a_local_output(cloud, tmp_path):
    for name in NAMES:
        cloud.upload(name, b'{"prompt": "x"}\n')
    output = tmp_path / "deep" / "out"
    summary = cloud.run(input="r2://llmdo/input/", output=str(output))
    assert (summary.exit_code, len(summary.settled)) == (0, len(NAMES))
    outside = [p for p in (tmp_path / "deep").rglob("*") if p.is_file() and not p.is_relative_to(output)]
    assert outside == []
