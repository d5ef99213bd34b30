"""Cutting a stream of bytes, against a plain reading of the whole; and what decompression does with odd data."""

from __future__ import annotations

import gzip
import tracemalloc
import zlib
from collections.abc import Callable, Iterable, Iterator
from unittest.mock import patch

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from llmdo.transforms.elements import Blank, FileVersion, Line, Tile, TooLong
from llmdo.transforms.lines import cutting
from llmdo.transforms.lines.cutting import cut, cut_spans, gunzip, skip_to_line, unzstd
from llmdo.transforms.unreadable import CorruptData
from tests.plain_reading import contents, gaps_without, limits, plain_reading

FILE = FileVersion("/data", "prompts.jsonl", "1-1", 1)
blocks = st.sampled_from([1, 2, 7, 64 << 10])


def in_chunks(data: bytes, size: int) -> Iterator[bytes]:
    return (data[i : i + size] for i in range(0, len(data), size))


def tiles_of(data: bytes, limit: int = 1000) -> list[Tile]:
    return [tile for tiles in cut(FILE, [data], 0, len(data), limit) for tile in tiles]


@given(contents, limits, st.integers(1, 100), blocks)
def test_any_chunks_give_the_lines_of_a_plain_reading(content: bytes, limit: int, chunk: int, block: int) -> None:
    with patch.object(cutting, "BLOCK", block):
        batches = list(cut(FILE, in_chunks(content, chunk), 0, len(content), limit))
    assert all(batches)
    assert [tile for batch in batches for tile in batch] == plain_reading(FILE, content, limit)


@given(contents, limits, st.integers(1, 100), blocks, st.data())
def test_a_part_gives_the_lines_that_begin_in_it(
    content: bytes, limit: int, chunk: int, block: int, data: st.DataObject
) -> None:
    start = data.draw(st.integers(1, len(content) + 1))
    stop = data.draw(st.integers(start, len(content) + 1))
    with patch.object(cutting, "BLOCK", block):
        first, rest = skip_to_line(in_chunks(content[start - 1 :], chunk), start, stop)
        tiles = [tile for batch in cut(FILE, rest, first, stop, limit) for tile in batch]
    assert tiles == [tile for tile in plain_reading(FILE, content, limit) if start <= tile.start < stop]


@given(contents, st.integers(1, 100), st.data())
def test_the_first_line_of_a_part_is_found_without_reading_past_it(
    content: bytes, chunk: int, data: st.DataObject
) -> None:
    start = data.draw(st.integers(1, max(1, len(content))))
    stop = data.draw(st.integers(start, max(1, len(content))))
    taken = 0

    def chunks() -> Iterator[bytes]:
        nonlocal taken
        for piece in in_chunks(content[start - 1 :], chunk):
            taken += len(piece)
            yield piece

    first, rest = skip_to_line(chunks(), start, stop)
    begins = (tile.start for tile in plain_reading(FILE, content, 1000) if start <= tile.start < stop)
    assert first == next(begins, stop)
    assert taken < stop - start + 1 + chunk
    assert first == stop or b"".join(rest) == content[first:]


@given(contents, st.integers(1, 20), st.data())
def test_no_more_is_taken_than_the_last_line_needs(content: bytes, chunk: int, data: st.DataObject) -> None:
    stop = data.draw(st.integers(1, len(content) + 1))
    taken = 0

    def chunks() -> Iterator[bytes]:
        nonlocal taken
        for piece in in_chunks(content, chunk):
            taken += len(piece)
            yield piece

    tiles = [tile for batch in cut(FILE, chunks(), 0, stop, 1000) for tile in batch]
    needed = tiles[-1].stop if tiles else 0
    assert taken < max(needed, stop) + chunk


@given(contents, limits, st.integers(1, 100), blocks, st.data())
def test_gaps_of_a_stream_and_its_end_mark(
    content: bytes, limit: int, chunk: int, block: int, data: st.DataObject
) -> None:
    tiles = plain_reading(FILE, content, limit)
    done = [tile for tile in tiles if data.draw(st.booleans())]
    gaps = gaps_without(done, len(content), open_end=True)
    with patch.object(cutting, "BLOCK", block):
        batches = list(cut_spans(FILE, in_chunks(content, chunk), gaps, limit))
    end = len(content)
    left = [tile for tile in tiles if tile not in done]
    assert [tile for batch in batches for tile in batch] == [*left, Blank(FILE, end, end, total=end)]


@pytest.mark.parametrize(
    ("content", "tiles"),
    [
        (b"", []),
        (b"a\n", [Line(FILE, 0, 2, b"a")]),
        (b"a", [Line(FILE, 0, 1, b"a")]),
        (b"a\r\nb\r\n", [Line(FILE, 0, 3, b"a"), Line(FILE, 3, 6, b"b")]),
        (b"a\rb\n", [Line(FILE, 0, 4, b"a\rb")]),
        (b"a\r\r\n", [Line(FILE, 0, 4, b"a\r")]),
        (b"a\r", [Line(FILE, 0, 2, b"a\r")]),
        (b"\n \t\r\n\r\n\t", [Blank(FILE, 0, 1), Blank(FILE, 1, 5), Blank(FILE, 5, 7), Blank(FILE, 7, 8)]),
        (b"\xef\xbb\xbfa\n\xef\xbb\xbfb\n", [Line(FILE, 0, 5, b"a"), Line(FILE, 5, 10, b"\xef\xbb\xbfb")]),
        (b"\xef\xbb\xbf\r\na", [Blank(FILE, 0, 5), Line(FILE, 5, 6, b"a")]),
        (b"\xef\xbb\xbf", [Blank(FILE, 0, 3)]),
        (b"\xff\xfe{\n", [Line(FILE, 0, 4, b"\xff\xfe{")]),
        (b"\x0b\x0c\n", [Line(FILE, 0, 3, b"\x0b\x0c")]),
    ],
)
def test_line_endings_blank_lines_and_byte_order_marks(content: bytes, tiles: list[Tile]) -> None:
    assert tiles_of(content) == tiles


def test_a_blank_line_at_the_stop_belongs_to_the_next_part() -> None:
    assert list(cut(FILE, [b"a\n\n"], 0, 2, 10)) == [[Line(FILE, 0, 2, b"a")]]


def test_a_line_within_its_limit_stays_one_when_its_end_comes_last() -> None:
    chunks = [b"\xef\xbb\xbfabc\r", b"\n"]
    assert list(cut(FILE, chunks, 0, 8, 3)) == [[Line(FILE, 0, 8, b"abc")]]


def test_a_limit_counts_neither_line_ending_nor_byte_order_mark() -> None:
    assert tiles_of(b"\xef\xbb\xbfabc\r\nabcd\r\nabc\nabcd", 3) == [
        Line(FILE, 0, 8, b"abc"),
        TooLong(FILE, 8, 14),
        Line(FILE, 14, 18, b"abc"),
        TooLong(FILE, 18, 22),
    ]


def test_a_line_that_is_too_long_is_never_in_memory_whole() -> None:
    def chunks() -> Iterator[bytes]:
        yield b"short\n"
        for _ in range(64):
            yield b"x" * (1 << 20)
        yield b"\nlast"

    tracemalloc.start()
    tiles = [tile for batch in cut(FILE, chunks(), 0, 1 << 40, 1 << 20) for tile in batch]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    end = 6 + (64 << 20) + 1
    assert tiles == [Line(FILE, 0, 6, b"short"), TooLong(FILE, 6, end), Line(FILE, end, end + 4, b"last")]
    assert peak < 10 << 20


def test_a_chunk_of_nothing_but_short_lines_is_cut_piece_by_piece() -> None:
    batches = cut(FILE, [b"a\n" * (1 << 19)], 0, 1 << 20, 1000)
    sizes = [len(batch) for batch in batches]
    assert sum(sizes) == 1 << 19
    assert max(sizes) <= cutting.BLOCK


def gzip_parts(parts: list[bytes]) -> bytes:
    return b"".join(gzip.compress(part, mtime=0) for part in parts)


def zstd_parts(parts: list[bytes]) -> bytes:
    return b"".join(zstandard.ZstdCompressor().compress(part) for part in parts)


Pack = Callable[[list[bytes]], bytes]
Unpack = Callable[[Iterable[bytes]], Iterator[bytes]]
CODECS = [pytest.param(gzip_parts, gunzip, id="gzip"), pytest.param(zstd_parts, unzstd, id="zstd")]


@pytest.mark.parametrize(("pack", "unpack"), CODECS)
@given(parts=st.lists(contents, min_size=1, max_size=5), chunk=st.integers(1, 80))
def test_members_and_frames_cut_anywhere_come_out_whole(
    pack: Pack, unpack: Unpack, parts: list[bytes], chunk: int
) -> None:
    assert b"".join(unpack(in_chunks(pack(parts), chunk))) == b"".join(parts)


@pytest.mark.parametrize(("pack", "unpack"), CODECS)
def test_no_bytes_at_all_are_an_empty_file(pack: Pack, unpack: Unpack) -> None:
    assert list(unpack(iter(()))) == []


@pytest.mark.parametrize(("pack", "unpack"), CODECS)
@given(parts=st.lists(contents, min_size=1, max_size=3), data=st.data())
def test_compressed_data_that_ends_early_is_corrupt(
    pack: Pack, unpack: Unpack, parts: list[bytes], data: st.DataObject
) -> None:
    whole = pack(parts)
    ends = {len(pack(parts[:i])) for i in range(len(parts) + 1)}
    length = data.draw(st.integers(1, len(whole) - 1).filter(lambda n: n not in ends))
    with pytest.raises(CorruptData, match="ends in the middle"):
        list(unpack([whole[:length]]))


@pytest.mark.parametrize(("pack", "unpack"), CODECS)
@given(junk=st.binary(min_size=20).filter(lambda data: data[:2] != b"\x1f\x8b" and data[:1] != b"\0"))
def test_other_data_is_corrupt_and_nothing_worse(pack: Pack, unpack: Unpack, junk: bytes) -> None:
    with pytest.raises(CorruptData, match="is not valid"):
        list(unpack([junk]))
    with pytest.raises(CorruptData, match=r"is not valid|has something else behind"):
        list(unpack([pack([b"first\n"]), junk]))


def test_a_wrong_checksum_is_corrupt() -> None:
    data = bytearray(gzip.compress(b"some text\n"))
    data[-8] ^= 1
    with pytest.raises(CorruptData, match="incorrect data check"):
        list(gunzip([bytes(data)]))


def test_zeros_behind_a_gzip_member_are_padding() -> None:
    assert b"".join(gunzip([gzip.compress(b"a\n"), b"\0" * 600, b"\0" + gzip.compress(b"b\n")])) == b"a\nb\n"


def test_a_skippable_zstd_frame_is_passed_over() -> None:
    skippable = b"\x50\x2a\x4d\x18\x03\x00\x00\x00abc"
    assert b"".join(unzstd([skippable, zstd_parts([b"a\n"]) + skippable])) == b"a\n"


@pytest.mark.parametrize(
    ("packed", "unpack"),
    [
        pytest.param(zlib.compress(bytes(200 << 20), 9, 31), gunzip, id="gzip"),
        pytest.param(zstandard.ZstdCompressor(19).compress(bytes(200 << 20)), unzstd, id="zstd"),
    ],
)
def test_what_packs_extremely_well_comes_out_in_small_pieces(packed: bytes, unpack: Unpack) -> None:
    sizes = [len(chunk) for chunk in unpack([packed])]
    assert sum(sizes) == 200 << 20
    assert max(sizes) <= 16 << 20
