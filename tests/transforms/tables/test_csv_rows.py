"""Rows of CSV and TSV: the same as csv.reader's, with the bytes that each stands in, however the stream is cut."""

import csv
import io
import json
import tracemalloc

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llmdo.transforms.elements import Blank, FileVersion, Line, TooLong
from llmdo.transforms.tables import csv_rows
from llmdo.transforms.tables.csv_header import UNFINISHED
from llmdo.transforms.tables.csv_rows import cut_rows
from llmdo.transforms.unreadable import CorruptData

FILE = FileVersion("/in", "a.csv", "e", 1)
TSV = FileVersion("/in", "a.tsv", "e", 1)
BIG = 1 << 20


def pieces(content, size):
    return (content[i : i + size] for i in range(0, len(content), size))


def tiles_of(content, limit=BIG, size=BIG, spans=((0, None),), file=FILE):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(csv_rows, "BLOCK", size + 2)  # a block is read at once, and has room for a BOM
        return [tile for block in cut_rows(file, pieces(content, size), spans, limit) for tile in block]


def objects(tiles):
    return [json.loads(tile.data) for tile in tiles if isinstance(tile, Line) and not tile.problem]


def problems(tiles):
    return [tile.problem for tile in tiles if isinstance(tile, Line) and tile.problem]


def covered(tiles):
    """Where tiles end that follow each other from 0 on."""
    at = 0
    for tile in tiles:
        assert tile.start == at
        at = tile.stop
    return at


cells = st.text(st.sampled_from([*"ab,;\t\"\n\r '7é🙂\x0b\x85\u2028\0"])) | st.just("007")
dialects = st.fixed_dictionaries(
    {
        "delimiter": st.sampled_from(",;\t"),
        "lineterminator": st.sampled_from(["\n", "\r\n", "\r"]),
        "quoting": st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]),
    }
)


@st.composite
def tables(draw):
    """A table's text, its columns and rows."""
    width = draw(st.integers(2, 4))
    rows = draw(st.lists(st.lists(cells, min_size=width, max_size=width), max_size=8))
    columns = [f"c{i}" for i in range(width)]
    text, dialect = io.StringIO(newline=""), draw(dialects)
    if any("\r" in cell or "\n" in cell for row in rows for cell in row):  # csv quotes only what ends its lines
        dialect["quoting"] = csv.QUOTE_ALL
    writer = csv.writer(text, **dialect)
    writer.writerow(columns)
    writer.writerows(rows)
    content = draw(st.sampled_from([b"", b"\xef\xbb\xbf"])) + text.getvalue().encode()
    return content, columns, rows


def read_by_csv(content, delimiter):
    return list(csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""), delimiter=delimiter, strict=True))


@given(tables(), st.integers(1, 40), st.data())
def test_rows_are_those_of_the_csv_module_however_the_stream_is_cut_and_resumed(table, size, data):
    content, columns, rows = table
    tiles = tiles_of(content, size=size)
    assert [list(one.values()) for one in objects(tiles)] == rows
    assert all(list(one) == columns for one in objects(tiles))
    assert covered(tiles) == len(content) == tiles[-1].total
    assert tiles[0].between and not any(isinstance(tile, Blank) and tile.between for tile in tiles[1:-1])
    for tile in tiles[1:-1]:
        own = content[tile.start : tile.stop]
        delimiter = next(one for one in ",;\t" if f"c0{one}" in content.decode().replace('"', ""))
        assert read_by_csv(own, delimiter) == [list(json.loads(tile.data).values())]
    done = data.draw(st.sets(st.integers(1, max(1, len(tiles) - 2))))
    left = [tile for i, tile in enumerate(tiles[:-1]) if i not in done]
    spans = []
    for tile in left:
        if spans and spans[-1][1] == tile.start:
            spans[-1] = (spans[-1][0], tile.stop)
        else:
            spans.append((tile.start, tile.stop))
    end = spans.pop()[0] if spans and spans[-1][1] == len(content) else len(content)
    again = tiles_of(content, size=size, spans=(*spans, (end, None)))
    assert again == [*left, tiles[-1]]


soups = st.lists(st.sampled_from([b'"', b'"', b",", b"\n", b"\r\n", b"\r", b"a", b" ", b"\xff", b"\0", "é".encode()]))


@given(soups.map(b"".join), st.integers(1, 9), st.sampled_from([3, 10, 1000]))
@example(b'"\n"b\n', 1, 3)
@example(b'a,"b\r\nc\n,"\r', 2, 10)
def test_any_bytes_are_covered_by_the_same_rows_however_they_are_cut(soup, size, limit):
    content = b"a,b\n" + soup

    def outcome(size):
        try:
            return tiles_of(content, limit, size)
        except CorruptData as error:
            return str(error)

    whole = outcome(BIG)
    assert outcome(size) == whole
    if not isinstance(whole, str):
        assert covered(whole) == len(content)


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        (b"id;prompt\r\n1;a,b\r\n", [{"id": "1", "prompt": "a,b"}]),
        (b"id\tprompt\n1\ta,b\n", [{"id": "1", "prompt": "a,b"}]),
        (b"id,prompt\r1,a\r2,b", [{"id": "1", "prompt": "a"}, {"id": "2", "prompt": "b"}]),
        (b'"id","prompt, or so"\n"007","1e3"\n', [{"id": "007", "prompt, or so": "1e3"}]),
        (b"sep=;\r\nid;prompt\r\n1;a\r\n", [{"id": "1", "prompt": "a"}]),
        (b"\n\r\n \nid, prompt \n1,a\n", [{"id": "1", "prompt": "a"}]),
        (b"prompt\nhello\n", [{"prompt": "hello"}]),
        (b"id,prompt\n1,\n,\n", [{"id": "1", "prompt": ""}, {"id": "", "prompt": ""}]),
        (b"id,prompt", []),
        (b"id,prompt\n", []),
        (b"", []),
        (b"\xef\xbb\xbf", []),
        (b"\r\n\n", []),
    ],
)
def test_headers_of_several_kinds(content, rows):
    tiles = tiles_of(content, size=3)
    assert objects(tiles) == rows
    assert covered(tiles) == len(content) and not problems(tiles)


def test_a_column_of_messages_or_a_body_may_hold_json_and_no_other_column():
    content = io.StringIO(newline="")
    cells = ['[{"role": "user", "content": "Hi"}]', '{"a": 1.50}', "[1]", "[broken"]
    csv.writer(content).writerows([["messages", "body", "note", "more"], cells, [cells[3], "7", "", ""]])
    first, second = objects(tiles_of(content.getvalue().encode()))
    assert first["messages"] == [{"role": "user", "content": "Hi"}] and isinstance(first["body"], dict)
    assert (first["note"], first["more"]) == ("[1]", "[broken")
    assert (second["messages"], second["body"]) == ("[broken", "7")
    assert objects(tiles_of(b"prompt,messages,body\na,, \n")) == [{"prompt": "a"}]


def test_in_a_tsv_a_tab_wins_over_as_many_commas():
    assert objects(tiles_of(b"a,b\tc\n1\t2\n", file=TSV)) == [{"a,b": "1", "c": "2"}]


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (b"id,,prompt\n1,2,3\n", "column 2 has no name"),
        (b"id,prompt,\n1,2,\n", "column 3 has no name"),
        (b"id,prompt,id\n1,2,3\n", "'id' is in it twice"),
        (b"1,Why is the sky blue?\n2,And the sea?\n", "'1' is a value, not a name"),
        (b"Why is the sky blue?\nAnd the sea?\n", "'Why is the sky blue\\?' is a value, not a name"),
        (b'id,"prompt\n1,a\n', "quote in its first row"),
        (b'id,"prompt"x\n1,a\n', "quote in its first row"),
        (b"id,pr\xe9nom\n1,a\n", "not UTF-8"),
    ],
)
def test_a_header_that_cannot_be_one_is_one_error_with_a_remedy(header, said):
    for size in (1, BIG):
        with pytest.raises(CorruptData, match=said):
            tiles_of(header, size=size)


def test_a_row_with_too_few_or_too_many_fields_is_an_error_of_that_row_alone():
    tiles = tiles_of(b"id,prompt\n1,a\n2\n3,b,c\n4,d\n")
    assert objects(tiles) == [{"id": "1", "prompt": "a"}, {"id": "4", "prompt": "d"}]
    few, many = problems(tiles)
    assert "has 1 field, and the header names 2" in few
    assert "has 3 fields, and the header names 2" in many and "double quotes" in many
    assert [tile.data for tile in tiles if isinstance(tile, Line) and tile.problem] == [b"2", b"3,b,c"]


def test_blank_lines_are_skipped_and_empty_fields_are_not():
    tiles = tiles_of(b'prompt\n\n  \n\t\r\n""\n')
    assert [(tile.start, tile.stop) for tile in tiles if isinstance(tile, Blank) and not tile.between] == [
        (7, 8),
        (8, 11),
        (11, 14),
        (17, 17),
    ]
    assert objects(tiles) == [{"prompt": ""}]


@pytest.mark.parametrize("size", [1, 7, BIG])
def test_a_quote_that_is_not_closed_costs_its_own_line_and_is_named(size):
    content = b'id,prompt\n1,a\n2,"open\n3,b\n4,"c"\n5,d\n'
    tiles = tiles_of(content, size=size)
    assert [one["id"] for one in objects(tiles)] == ["1", "3", "4", "5"]
    (problem,) = problems(tiles)
    at = content.index(b'"open')
    assert f"the quote that opens at byte {at} is not closed" in problem
    tiles = tiles_of(b'id,prompt\n1,"open\n2,b\n3,c', size=size)
    assert [one["id"] for one in objects(tiles)] == ["2", "3"] and "byte 12 is not closed" in problems(tiles)[0]


@pytest.mark.parametrize("size", [3, BIG])
def test_one_that_could_swallow_the_rest_of_the_file_ends_it(size):
    content = b'id,prompt\n1,a\n2,"open\n' + b"3,b\n" * 100
    with pytest.raises(CorruptData, match="quote at byte 16 that is not closed within 64 bytes"):
        tiles_of(content, 64, size)


@pytest.mark.parametrize("size", [3, BIG])
def test_a_row_over_the_limit_is_too_long_whatever_is_in_it(size):
    long = b'2,"' + b'x""y\n,' * 30 + b'"\r\n'
    content = b"id,prompt\n1,a\n" + long + b"3,b\n4," + b"x" * 70 + b"\n5,c\n"
    tiles = tiles_of(content, 64, size)
    assert [one["id"] for one in objects(tiles)] == ["1", "3", "5"]
    assert [content[tile.start : tile.stop] for tile in tiles if isinstance(tile, TooLong)] == [
        long,
        b"4," + b"x" * 70 + b"\n",
    ]


def test_the_limit_is_that_of_the_data_without_its_line_ending():
    for ending in (b"\n", b"\r\n", b"\r", b""):
        kinds = [type(tile) for tile in tiles_of(b"a,b" + (ending or b"\n") + b"1,23456" + ending, 7, 1)]
        assert kinds[1] is Line
        kinds = [type(tile) for tile in tiles_of(b"a,b" + (ending or b"\n") + b"1,234567" + ending, 7, 1)]
        assert kinds[1] is TooLong


def test_a_row_that_is_not_utf8_is_an_error_with_its_bytes():
    for bad in (b"2,\xff", b'2,"\xff\nx"'):
        tiles = tiles_of(b"id,prompt\n1,a\n" + bad + b"\n3,b\n")
        assert [one["id"] for one in objects(tiles)] == ["1", "3"]
        assert [tile.data for tile in tiles if isinstance(tile, Line) and tile.problem] == [bad]
        assert "not UTF-8" in problems(tiles)[0]


def test_a_header_over_the_limit_ends_the_file():
    with pytest.raises(CorruptData, match="first row of more than 64 bytes"):
        tiles_of(b'id,"' + b"x\n" * 100_000, 64, 999)
    with pytest.raises(CorruptData, match="64 bytes of blank lines"):
        tiles_of(b"\n" * 100_000 + b"id,prompt", 64, 999)


def test_the_words_of_the_csv_module_are_known():
    with pytest.raises(csv.Error, match=f"^{UNFINISHED}$"):
        list(csv.reader(['a,"b\n'], strict=True))


def test_memory_does_not_grow_with_the_file():
    def content(rows):
        yield b"id,prompt\n"
        for _ in range(rows):
            yield b'1,"' + b"word " * 2000 + b'"\r\n'

    def peak(rows):
        tracemalloc.start()
        for _ in cut_rows(FILE, content(rows), ((0, None),), BIG):
            pass
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak(10)
    assert peak(4000) < 2 * peak(400) + BIG
