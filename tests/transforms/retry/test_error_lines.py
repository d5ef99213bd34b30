import base64
import json

import pytest

from llmdo.backends.errors import InvalidRequest, Overloaded
from llmdo.storage.output.manifests import ManifestShard, put_shard
from llmdo.transforms.answers.infer import LineTooLong
from llmdo.transforms.answers.rows import failure_row
from llmdo.transforms.elements import FileVersion, Line, TooLong
from llmdo.transforms.prompts.line_json import BadLine, unwrapped
from llmdo.transforms.prompts.parse import Defaults, parse_prompt
from llmdo.transforms.retry.error_lines import take_back
from tests.memory_store import MemoryStore

FILE = FileVersion("r2://bucket", "input/a.jsonl", "e1", 1000)
DEFAULTS = Defaults("workers-ai/@cf/x/y", {"max_tokens": 5}, "Be brief.")
BUSY = Overloaded("out of capacity")
FORMER = (
    b'"error": {"class": "CallTimeout", "code": null, "status": 504, "message": "late", "retryable": true, '
    b'"attempts": 3, "offset": 3, "length": 9}'
)


def taken(*failures, everything=False):
    """What is taken back of a shard with a row for each (line's bytes or None, error)."""
    rows, at = [], 0
    for data, error in failures:
        stop = at + 10
        line = TooLong(FILE, at, stop) if data is None else Line(FILE, at, stop, data)
        rows.append((at, stop, failure_row(line, error, 3)))
        at = stop + 1
    store = MemoryStore()
    shard = put_shard(store, "f/", "errors", rows, configuration="c")
    body = store.read("f/" + shard.name)[0]
    found = take_back(FILE, ManifestShard(name=shard.name, kind="errors", lines=1, tiles=shard.tiles), body, everything)
    return found, rows


def meaning(data):
    """What is asked for a line, or why nothing is."""
    try:
        return parse_prompt(data, "id", DEFAULTS, lambda *_: 1)
    except BadLine as error:
        return str(error)


def test_only_retryable_rows_come_again_at_their_place_and_the_others_keep_their_bytes():
    found, rows = taken(
        (b'{"id": 1, "prompt": "one"}', BUSY),
        (b'{"id": 2, "prompt": "two"}', InvalidRequest("no")),
        (b"{broken", BadLine("no JSON")),
        (None, LineTooLong("long")),
        (b'{"id": 5, "prompt": "five"}', BUSY),
    )
    assert [(line.file, line.start, line.stop) for line in found.again] == [(FILE, 0, 10), (FILE, 44, 54)]
    assert found.kept == tuple(rows[1:4])


def test_with_everything_only_a_line_whose_content_was_not_kept_stays():
    found, rows = taken(
        (b'{"prompt": "two"}', InvalidRequest("no")),
        (b"{broken", BadLine("no JSON")),
        (b"\xff\xfe", BadLine("no UTF-8")),
        (None, LineTooLong("long")),
        everything=True,
    )
    assert [line.start for line in found.again] == [0, 11, 22]
    assert found.kept == (rows[3],)


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b'{"id": 7, "prompt": "x", "max_tokens": 9, "topic": "t", "n": 1.0, "big": 12345678901234567890123}', BUSY),
        (b'{"custom_id": "c", "method": "POST", "url": "/v1/chat/completions", '
         b'"body": {"model": "@cf/a/b", "messages": [{"role": "user", "content": "\xc3\xa9"}]}}', BUSY),
        (b'{"prompt": "x", "raw": "a field of its own"}', BUSY),
        (b'{"raw": "the only field"}', BUSY),
        (b'{"raw_base64": "a2s="}', BUSY),
        (b'{"raw_base64": "=="}', BUSY),
        (b'{"prompt": "x", "error": {"class": "BadLine", "offset": 3}}', BUSY),
        (b'{"prompt": "x", "error": "NullPointerException at Foo.java:7"}', BUSY),
        (b'{"prompt": "x", "error": null, "raw": "r", "raw_base64": 5, "line": "l"}', BUSY),
        (b'{"error": {"line": "{\\"prompt\\": \\"not this\\"}"}, "prompt": "this"}', BUSY),
        (b'{"raw": null}', BUSY),
        (b'{"raw": {"a": 1}}', BUSY),
        (b'{"raw": "{\\"prompt\\": \\"fed back\\"}", %s}' % FORMER, BUSY),
        (b'{"raw_base64": "%s", %s}' % (base64.b64encode(b'{"prompt": "b"}'), FORMER), BUSY),
        (b'{"raw": "{broken", %s}' % FORMER, BadLine("no JSON")),
        (b'{"raw_base64": "==", %s}' % FORMER, BadLine("damaged")),
        (b'{"prompt": "x", "topic": "t", %s}' % FORMER, BUSY),
        (b"{broken", BadLine("no JSON")),
        (b"[1]", BadLine("an array")),
        (b"\xff\xfe", BadLine("no UTF-8")),
        (b'"\\ud800"', BadLine("a string")),
    ],
)  # fmt: skip
def test_a_line_that_comes_again_means_what_it_meant_and_fails_with_the_same_row(data, error):
    found, rows = taken((data, error), everything=True)
    (line,) = found.again
    assert meaning(line.data) == meaning(data)
    assert failure_row(line, error, 3) == rows[0][2]


@pytest.mark.parametrize(
    "line",
    [
        b'{"custom_id": "a", "prompt": "p", "error": "boom \\u00e9", "n": 1.10, "n": 1e2}',
        b'{"raw": "only"}',
        b'{"raw_base64": "a2s="}',
        b'{"prompt": "p", "error": {"class": "E", "offset": 0, "retryable": true}}',
    ],
)
def test_a_line_with_fields_by_our_names_comes_again_byte_for_byte_and_is_found_by_its_own_id(line):
    found, rows = taken((line, BUSY))
    assert [one.data for one in found.again] == [line]
    row = json.loads(rows[0][2])
    assert row["error"]["line"] == line.decode()
    assert row.get("custom_id") == json.loads(line).get("custom_id")
    # Fed to a run as it is, once and again, the row still stands for the line.
    once = failure_row(Line(FILE, 0, 9, rows[0][2]), BUSY, 1)
    twice = failure_row(Line(FILE, 0, 9, once), BUSY, 1)
    assert json.loads(twice)["error"]["line"] == line.decode()
    assert meaning(twice) == meaning(line)


@pytest.mark.parametrize(
    ("row", "line"),
    [
        (b'{"prompt": "x", "topic": "t", %s}' % FORMER, {"prompt": "x", "topic": "t"}),
        (b'{"raw": "the only field", %s}' % FORMER, {"raw": "the only field"}),  # an object, as its class says
        (b'{"raw": "{\\"prompt\\": \\"t\\"}", %s}' % FORMER.replace(b"CallTimeout", b"BadLine"), {"prompt": "t"}),
    ],
)
def test_rows_of_earlier_versions_which_kept_no_line_are_read_as_they_were(row, line):
    """Their error has no ``line``: of a line with an error of its own they have lost that, and nothing else."""
    row = row.replace(b'"offset": 3, "length": 9', b'"offset": 0, "length": 10')
    store = MemoryStore()
    shard = put_shard(store, "f/", "errors", [(0, 10, row)], configuration="c")
    manifest = ManifestShard(name=shard.name, kind="errors", lines=1, tiles=shard.tiles)
    (again,) = take_back(FILE, manifest, store.read("f/" + shard.name)[0], True).again
    assert json.loads(unwrapped(again.data)) == line


@pytest.mark.parametrize(
    "spoil",
    [
        lambda name, tiles, body: (name, tiles, body[:-9]),
        lambda name, tiles, body: (name, tiles, body + b"\n"),
        lambda name, tiles, body: (name, "0+9", body),
    ],
)
def test_a_shard_that_is_not_what_its_manifest_says_is_not_taken_apart(spoil):
    store = MemoryStore()
    row = failure_row(Line(FILE, 0, 10, b'{"prompt": "x"}'), BUSY, 3)
    shard = put_shard(store, "f/", "errors", [(0, 10, row)], configuration="c")
    name, tiles, body = spoil(shard.name, shard.tiles, store.read("f/" + shard.name)[0])
    with pytest.raises(ValueError, match=r"it does not hold|other bytes"):
        take_back(FILE, ManifestShard(name=name, kind="errors", lines=1, tiles=tiles), body, False)
