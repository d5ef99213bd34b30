import json

import pytest

from llmdo.backends.errors import BadReply
from llmdo.backends.http.reply_json import REPLACED, read_json

MARK = "\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize(
    ("content", "value", "warned"),
    [
        (b'{"a": "party \\ud83c"}', {"a": f"party {MARK}"}, True),
        (b'{"a\\udf89": ["\\ud83c\\ud83c\\udf89"]}', {f"a{MARK}": [f"{MARK}\N{PARTY POPPER}"]}, True),
        ('{"a": "caf\xe9"}'.encode("latin-1"), {"a": f"caf{MARK}"}, True),
        (b'{"a": "cut \xf0\x9f\x8e"}', {"a": f"cut {MARK}"}, True),
        (b'{"a": "one\ntwo\x07"}', {"a": "one\ntwo\x07"}, False),
        (b'\xef\xbb\xbf{"a": "\xc3\xa9"}', {"a": "\xe9"}, False),
        ('{"a": "\xe9"}'.encode("utf-16"), {"a": "\xe9"}, False),
        (b'{"a": 1, "a": 2}', {"a": 2}, False),
        (b'{"a": -Infinity, "b": 1e999}', {"a": float("-inf"), "b": float("inf")}, False),
        (b'{"a": ' + b"9" * 5000 + b"}", {"a": float("inf")}, False),
    ],
)
def test_what_a_writer_got_wrong_is_read_and_what_was_replaced_is_said(content, value, warned):
    warnings = []
    assert read_json(content, warnings.append) == value
    assert warnings == ([REPLACED] if warned else [])


@pytest.mark.parametrize("content", [b"", b"{", b'{"a": "b', b'{"a": "\\ud83c', b"<html>", b"\xff\xfe", b"[" * 100_000])
def test_a_part_of_a_reply_is_not_json(content):
    with pytest.raises(ValueError, match=r"line|column|char|deep"):
        read_json(content)


@pytest.mark.parametrize("part", [b"1,", b"[],", b"{},", b'{"a":1},'])
def test_json_that_would_be_parsed_for_long_is_refused(part):
    assert len(read_json(b"[" + part * 1000 + b"1]")) == 1001
    with pytest.raises(BadReply, match="too many parts to be read"):
        read_json(b"[" + part * 4_000_000 + b"1]")


def test_the_largest_reply_of_vectors_is_read():
    row = b"[" + b",".join([b"-0.0123456789"] * 3072) + b"]"
    reply = read_json(b'{"data":[' + b",".join([b'{"embedding":' + row + b"}"] * 256) + b"]}")
    assert [len(one["embedding"]) for one in reply["data"]] == [3072] * 256


def test_a_replaced_text_can_be_written_again():
    assert json.dumps(read_json(b'"\\udfff"')).encode().isascii()
