from __future__ import annotations

import gzip
from collections.abc import Callable

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from llmdo.runners.inspecting import oracle
from llmdo.runners.inspecting.oracle import DAMAGED, UnreadableRow, parse_row, source_lines


@given(content=st.binary(max_size=200).map(lambda b: b.replace(b"\x00", b"\n")), size=st.integers(1, 50))
@pytest.mark.parametrize("key", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst"])
def test_the_lines_are_those_of_a_plain_split_however_the_bytes_come(key: str, content: bytes, size: int) -> None:
    packers: dict[str, Callable[[bytes], bytes]] = {"gz": gzip.compress, "zst": zstandard.compress}
    stored = packers.get(key.rpartition(".")[2], bytes)(content)
    chunks = [stored[i : i + size] for i in range(0, len(stored), size)]
    lines = list(source_lines(chunks, key))
    assert b"".join(content[line.start : line.stop] for line in lines) == content
    expected = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    if not content.split(b"\n")[-1]:
        del expected[-1]
    assert [line.data for line in lines] == [line.removesuffix(b"\r") for line in expected]


def test_a_line_that_is_too_long_to_compare_keeps_its_place_and_not_its_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oracle, "LONGEST_COMPARED", 50)
    monkeypatch.setattr(oracle, "_PIECE", 10)
    lines = list(source_lines([b"a\n" + b"x" * 100 + b"\nb\n" + b"y" * 99], "a.jsonl"))
    assert [(line.start, line.stop, line.data) for line in lines] == [
        (0, 2, b"a"),
        (2, 103, None),
        (103, 105, b"b"),
        (105, 204, None),
    ]


@pytest.mark.parametrize(
    ("key", "stored"),
    [
        ("a.gz", gzip.compress(b"line\n" * 99, mtime=0)[:-9]),
        ("a.gz", b"no gzip"),
        ("a.gz", gzip.compress(b"line\n", mtime=0)[:12] + b"\xff" * 20),
        ("a.zst", b"no zstd"),
    ],
)
def test_damaged_data_raises_what_is_caught(key: str, stored: bytes) -> None:
    with pytest.raises(DAMAGED):
        list(source_lines([stored], key))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (b"[]", "is not a JSON object"),
        (b'{"a": NaN}', "is not a JSON object"),
        (b"{}", "does not say which bytes"),
        (b'{"source": 3}', "does not say which bytes"),
        (b'{"source": {"offset": -1, "length": 2}}', "which cannot be"),
        (b'{"source": {"offset": 0, "length": 0}}', "which cannot be"),
        (b'{"source": {"offset": 0, "length": 2}, "error": {}}', "is not an answer"),
    ],
)
def test_a_row_that_is_no_answer_says_why(row: bytes, said: str) -> None:
    with pytest.raises(UnreadableRow, match=said):
        parse_row(row, "answers", "shard")
