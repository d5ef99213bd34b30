"""Elements of a JSON array, with the bytes that each stands in, however the stream is cut."""

import json
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmdo.transforms.elements import Blank, FileVersion, Line, TooLong
from llmdo.transforms.tables import json_elements
from llmdo.transforms.tables.json_elements import cut_elements
from llmdo.transforms.unreadable import CorruptData

FILE = FileVersion("/in", "a.json", "e", 1)
BIG = 1 << 20


def tiles_of(content, limit=BIG, size=BIG, spans=((0, None),)):
    chunks = (content[i : i + size] for i in range(0, len(content), size))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_elements, "BLOCK", size + 2)  # a block is read at once, and has room for a BOM
        return [tile for block in cut_elements(FILE, chunks, spans, limit) for tile in block]


def covered(tiles):
    """Where tiles end that follow each other from 0 on."""
    at = 0
    for tile in tiles:
        assert tile.start == at
        at = tile.stop
    return at


spaces = st.text(" \t\r\n", max_size=4)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.sampled_from('ab"\\[]{},:é🙂\n')),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('a"]}\\', max_size=3), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def arrays(draw):
    """The text of an array with spaces anywhere, and each element's value and text."""
    written = draw(st.lists(st.tuples(values, st.sampled_from([None, 1, "\t"]), st.booleans()), max_size=6))
    texts = [json.dumps(value, indent=indent, ensure_ascii=ascii) for value, indent, ascii in written]
    text = draw(spaces) + "[" + draw(spaces)
    for number, one in enumerate(texts):
        text += (draw(spaces) + "," + draw(spaces) if number else "") + one
    bom = draw(st.sampled_from([b"", b"\xef\xbb\xbf"]))
    return bom + (text + draw(spaces) + "]" + draw(spaces)).encode(), [one.encode() for one in texts]


@given(arrays(), st.integers(1, 30), st.data())
def test_elements_come_as_they_stand_however_the_stream_is_cut_and_resumed(array, size, data):
    content, texts = array
    tiles = tiles_of(content, size=size)
    assert [tile.data for tile in tiles if isinstance(tile, Line)] == texts
    assert all(content[tile.start : tile.stop] == tile.data for tile in tiles if isinstance(tile, Line))
    assert covered(tiles) == len(content) == tiles[-1].total
    assert all(tile.between for tile in tiles[:-1] if isinstance(tile, Blank))
    lines = [tile for tile in tiles if isinstance(tile, Line)]
    done = data.draw(st.sets(st.sampled_from(range(len(lines))))) if lines else set()
    left = [tile for tile in tiles[:-1] if tile not in [lines[i] for i in done]]
    spans = []
    for tile in left:
        if spans and spans[-1][1] == tile.start:
            spans[-1] = (spans[-1][0], tile.stop)
        else:
            spans.append((tile.start, tile.stop))
    last = spans.pop()[0]  # the closing bracket is in no shard
    assert tiles_of(content, size=size, spans=(*spans, (last, None))) == [*left, tiles[-1]]


soups = st.lists(st.sampled_from(['"', "\\", "[", "]", "{", "}", ",", ":", "1", " ", "a", '{"a":1}', "é"]))


@given(st.sampled_from(["[", "{", " [", ""]), soups.map("".join), st.integers(1, 9), st.sampled_from([3, 1000]))
def test_any_bytes_have_one_outcome_however_they_are_cut(begin, soup, size, limit):
    content = (begin + soup).encode()

    def outcome(size):
        try:
            return tiles_of(content, limit, size)
        except CorruptData as error:
            return str(error)

    whole = outcome(BIG)
    assert outcome(size) == whole
    if not isinstance(whole, str):
        assert covered(whole) == len(content)
    try:
        value = json.loads(content)
    except ValueError:
        return
    if isinstance(value, list | dict):  # what is JSON is cut as it is read
        assert not isinstance(whole, str)
        one_by_one = [json.loads(content[one.start : one.stop]) for one in whole if not isinstance(one, Blank)]
        assert one_by_one == (value if isinstance(value, list) else [value])


@pytest.mark.parametrize("size", [1, 2, 5, BIG])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'[{"a": 1}, {"b": ', "ends in the middle of its array"),
        (b'[{"a": 1}', "ends in the middle of its array"),
        (b'[{"a": "\\', "ends in the middle of its array"),
        (b"[", "ends in the middle of its array"),
        (b'{"a": [1, 2}', "ends in the middle of its object"),
        (b'[{"a": 1}] x', "behind the ] of its array, at byte 11"),
        (b'[{"a": 1}]\n[{"a": 2}]', "behind the ] of its array, at byte 11"),
        (b'{"a": 1}\n{"a": 2}', "has something behind its object, at byte 9"),
        (b'[{"a": 1} {"b": 2}]', "a comma or ] is missing in its array at byte 10"),
        (b'[{"a": 1},, {"b": 2}]', "an element is missing at byte 10"),
        (b'[{"a": 1}}]', "a comma or ] is missing in its array at byte 9"),
        (b"hello", "is not a JSON array"),
    ],
)
def test_an_array_that_is_wrong_is_one_error_that_says_where(content, said, size):
    with pytest.raises(CorruptData) as raised:
        tiles_of(content, size=size)
    assert said in str(raised.value) and raised.value.remedy


@pytest.mark.parametrize("content", [b"[]", b" [ ] \n", b"", b"\n", b"\xef\xbb\xbf[]"])
def test_an_array_without_elements_has_no_line(content):
    tiles = tiles_of(content, size=1)
    assert all(isinstance(tile, Blank) for tile in tiles) and covered(tiles) == len(content)


def test_a_comma_behind_the_last_element_does_no_harm():
    tiles = tiles_of(b'[{"a": 1},\n]\n', size=1)
    assert [tile.data for tile in tiles if isinstance(tile, Line)] == [b'{"a": 1}']


def test_an_object_alone_is_one_line():
    content = b' {\n "prompt": "a"\n}\n'
    for size in (1, BIG):
        first, line, last, end = tiles_of(content, size=size)
        assert json.loads(line.data) == {"prompt": "a"} and (line.start, line.stop) == (1, len(content) - 1)
        assert tiles_of(content, spans=((0, 1), (line.stop, None))) == [first, last, end]


@pytest.mark.parametrize("size", [1, 7, BIG])
def test_an_element_over_the_limit_is_too_long_and_its_neighbours_are_not(size):
    for long in (b'{"a": "' + b'\\"' * 40 + b'"}', b"[" * 40 + b"]" * 40, b"1" * 70, b'"' + b"x" * 70 + b'"'):
        content = b'[{"a": 1}, ' + long + b', {"a": 2}]'
        tiles = tiles_of(content, 64, size)
        assert [tile.data for tile in tiles if isinstance(tile, Line)] == [b'{"a": 1}', b'{"a": 2}']
        (tile,) = [tile for tile in tiles if isinstance(tile, TooLong)]
        assert content[tile.start : tile.stop] == long


def test_brackets_as_deep_as_a_line_is_long_are_cut():
    deep = b"[" * 400_000 + b"]" * 400_000
    tiles = tiles_of(b"[" + deep + b', {"a": 1}]', size=999)
    assert [tile.data for tile in tiles if isinstance(tile, Line)] == [deep, b'{"a": 1}']


@pytest.mark.parametrize("part", [b'"', b"\\", b'\\"', b'"\\', b"{", b"a", b" ", b'"a'])
def test_no_bytes_are_looked_at_again_and_again(part, monkeypatch):
    looked, end_of = [], json_elements._end_of

    def counted(pattern, data, i):
        looked.append(end_of(pattern, data, i) - i)
        return i + looked[-1]

    monkeypatch.setattr(json_elements, "_end_of", counted)
    content = b'[{"' + part * (2 * BIG // len(part))
    with pytest.raises(CorruptData):
        tiles_of(content, len(content), size=999)
    assert sum(looked) <= len(content)


def test_memory_does_not_grow_with_the_file():
    def content(count):
        yield b"["
        for number in range(count):
            yield (b"," if number else b"") + b'\n {"prompt": "' + b"word " * 2000 + b'"}'
        yield b"]"

    def peak(count):
        tracemalloc.start()
        for _ in cut_elements(FILE, content(count), ((0, None),), BIG):
            pass
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak(10)
    assert peak(4000) < 2 * peak(400) + BIG
