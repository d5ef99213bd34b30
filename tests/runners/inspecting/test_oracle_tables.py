"""The plain reading of tables and arrays, against the cutters that runs use."""

import io
import json

from hypothesis import example, given
from hypothesis import strategies as st

from llmdo.runners.inspecting.oracle_tables import element_lines, table_lines
from llmdo.transforms.elements import Blank, FileVersion, Line
from llmdo.transforms.tables.csv_rows import cut_rows
from llmdo.transforms.tables.json_elements import cut_elements
from llmdo.transforms.unreadable import CorruptData

TABLE = st.lists(st.sampled_from([b'"', b'"', b",", b"\n", b"\r\n", b"\r", b"a", b" ", b"\xff", b"1;2", "é".encode()]))
BEGINS = st.sampled_from(
    [b"a,b\n", b"messages,b\n", b'"a","b"\r\n', b"\xef\xbb\xbfa\n", b"sep=;\na;b\r", b" \n\na\tb\n", b"", b'"a\n,",b\n']
)
ARRAY = st.lists(st.sampled_from(['"', "\\", "[", "]", "{", "}", ",", ":", "1", " ", "a", '{"a":1}', "é", "\n"]))


def comparable(data):
    """A line's object, or its bytes where it is none."""
    try:
        found = json.loads(data)
    except ValueError:
        return data
    return found


def compare(tiles, lines):
    assert [(tile.start, tile.stop) for tile in tiles] == [(line.start, line.stop) for line in lines]
    for tile, line in zip(tiles, lines, strict=True):
        assert line.between == (isinstance(tile, Blank) and tile.between)
        if isinstance(tile, Line):
            assert comparable(line.data) == comparable(tile.data)
        else:
            assert line.data.strip() == b""


@given(BEGINS, TABLE.map(b"".join), st.sampled_from(["csv", "tsv"]))
@example(b"a,b\n", b'"\n"a\n', "csv")
@example(b"a,b\n", b'1,"\n2,3', "csv")
def test_rows_of_tables_are_those_that_runs_read(begin, rest, form):
    content = begin + rest
    try:
        cut = cut_rows(FileVersion("/in", f"a.{form}", "e", 1), [content], [(0, None)], 1 << 20)
        tiles = [tile for block in cut for tile in block]
    except CorruptData:
        return  # no manifest is ever written then
    compare(tiles[:-1], list(table_lines(io.BytesIO(content), form)))


@given(st.sampled_from(["[", "{", " [", "\ufeff[", ""]), ARRAY.map("".join))
@example("[", '"\\""]')
@example("[", "1\\]")
def test_elements_of_arrays_are_those_that_runs_read(begin, rest):
    content = (begin + rest).encode()
    try:
        cut = cut_elements(FileVersion("/in", "a.json", "e", 1), [content], [(0, None)], 1 << 20)
        tiles = [tile for block in cut for tile in block]
    except CorruptData:
        return
    compare(tiles[:-1], list(element_lines(io.BytesIO(content))))


def test_an_array_of_several_pieces_is_read_to_its_end(monkeypatch):
    monkeypatch.setattr("llmdo.runners.inspecting.oracle_tables._PIECE", 7)
    content = json.dumps([{"prompt": "x" * n, "more": [n, {"a": "]"}]} for n in range(50)], indent=1).encode()
    lines = [line for line in element_lines(io.BytesIO(content)) if not line.between]
    assert [json.loads(line.data) for line in lines] == json.loads(content)
    assert all(content[line.start : line.stop] == line.data for line in lines)
