import base64

import pytest

from backends.errors import InvalidRequest, Overloaded
from storage.manifests import ManifestShard, put_shard
from tests.memory_store import MemoryStore
from transforms.elements import FileVersion, Line, TooLong
from transforms.error_lines import take_back
from transforms.infer import LineTooLong
from transforms.prompts import BadLine, Defaults, parse_prompt
from transforms.rows import failure_row

FILE = FileVersion("r2://bucket", "input/a.jsonl", "e1", 1000)
DEFAULTS = Defaults("workers-ai/@cf/x/y", {"max_tokens": 5}, "Be brief.")
BUSY = Overloaded("out of capacity")


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
        (b'{"raw": "{\\"prompt\\": \\"fed back\\"}", "error": {"class": "CallTimeout", "offset": 3}}', BUSY),
        (b'{"raw_base64": "%s", "error": {"class": "X", "offset": 3}}' % base64.b64encode(b'{"prompt": "b"}'), BUSY),
        (b'{"raw": "{broken", "error": {"class": "BadLine", "offset": 3}}', BadLine("no JSON")),
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
