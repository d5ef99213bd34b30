"""Cuts a stream of bytes into lines, and unpacks gzip and zstd. In memory: a chunk and the longest line, no more."""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from itertools import chain

import zstandard

from llmdo.transforms.elements import Blank, FileVersion, Line, Tile, TooLong
from llmdo.transforms.tables.look_ahead import BLOCK, BOM
from llmdo.transforms.unreadable import CorruptData, TooLarge

GZIP_MAGIC = b"\x1f\x8b"
# The most that one step of gzip decompression returns. Bytes.
GZIP_OUTPUT = 1 << 20
# zstandard cannot limit a step's output; a 4-byte block may hold 128 KiB, so this much input makes 16 MiB. Bytes.
ZSTD_INPUT = 512
# What a line within its limit may have in front of and behind its data before its end is seen: a BOM and "\r". Bytes.
_SLACK = len(BOM) + 1
_CR = ord("\r")


def cut(file: FileVersion, chunks: Iterable[bytes], start: int, stop: int, limit: int) -> Iterator[list[Tile]]:
    """Yields the tiles that begin in [start, stop) of a byte stream that begins, with a line, at ``start``.

    Takes no more chunks than the last of these lines needs. Each list is one block's tiles, in order, never empty.
    A tile has its line ending, "\\n" or "\\r\\n", which is not part of the data; nor is a BOM at offset 0. Data longer
    than ``limit`` bytes comes as TooLong, never in memory whole; only spaces, tabs and CR come as Blank.
    """
    at, pending, dropped = start, b"", 0  # where the unfinished line begins, its bytes, or how many were thrown away
    for chunk in chunks:
        for i in range(0, len(chunk), BLOCK):
            block = chunk[i : i + BLOCK]
            tiles: list[Tile] = []
            if dropped:
                end = block.find(b"\n") + 1
                dropped += end or len(block)
                if not end:
                    continue
                tiles.append(TooLong(file, at, at + dropped))
                at, dropped, block = at + dropped, 0, block[end:]
            lines = (pending + block).split(b"\n")
            pending = lines.pop()
            tiles += _tiles(file, at, lines, limit)
            if tiles:
                at = tiles[-1].stop
                if at > stop:
                    tiles = [tile for tile in tiles if tile.start < stop]
                if tiles:
                    yield tiles
            if at >= stop:
                return
            if len(pending) > limit + _SLACK:
                pending, dropped = b"", len(pending)
    if dropped:
        yield [TooLong(file, at, at + dropped)]
    elif pending:
        yield [_tile(file, at, at + len(pending), pending, limit)]


def _tiles(file: FileVersion, at: int, lines: list[bytes], limit: int) -> Iterator[Tile]:
    for line in lines:
        stop = at + len(line) + 1
        # The usual line is told by its first and last byte: it is not blank, and there is nothing to take off.
        if line > b"!" and line[-1] != _CR and len(line) <= limit and at:
            yield Line(file, at, stop, line)
        else:
            yield _tile(file, at, stop, line.removesuffix(b"\r"), limit)
        at = stop


def _tile(file: FileVersion, start: int, stop: int, data: bytes, limit: int) -> Tile:
    if start == 0:
        data = data.removeprefix(BOM)
    if len(data) > limit:
        return TooLong(file, start, stop)
    return Line(file, start, stop, data) if data.strip(b" \t\r") else Blank(file, start, stop)


def skip_to_line(chunks: Iterator[bytes], start: int, stop: int) -> tuple[int, Iterator[bytes]]:
    """Finds the first line that begins in [start, stop) of a stream that begins at ``start - 1``.

    The byte before ``start`` says whether a line begins there. Gives that line's offset and the stream from there on;
    ``stop`` and an empty stream where none begins.
    """
    at = start - 1
    for chunk in chunks:
        begin = chunk.find(b"\n", 0, stop - 1 - at) + 1
        if begin:
            return at + begin, chain((chunk[begin:],), chunks)
        at += len(chunk)
        if at >= stop - 1:
            break
    return stop, iter(())


def cut_spans(
    file: FileVersion, chunks: Iterable[bytes], spans: Iterable[tuple[int, int | None]], limit: int
) -> Iterator[list[Tile]]:
    """Yields the tiles of some spans of a stream that begins at offset 0, then the end mark with the stream's length.

    Spans are sorted, do not overlap, and begin and end between lines; those with start >= stop are skipped; a stop of
    None is the stream's end. See ``cut``.
    """
    source, at = iter(chunks), 0

    def take(until: int) -> Iterator[bytes]:
        nonlocal source, at
        while at < until and (chunk := next(source, b"")):
            head, tail = chunk[: until - at], chunk[until - at :]
            if tail:
                source = chain((tail,), source)
            at += len(head)
            yield head

    def pass_over(until: int) -> None:
        for _ in take(until):
            pass

    for start, stop in spans:
        pass_over(start)
        end = sys.maxsize if stop is None else stop
        yield from cut(file, take(end), start, end, limit)
    pass_over(sys.maxsize)
    yield [Blank(file, at, at, total=at)]


def bounded(chunks: Iterable[bytes], limit: int) -> Iterator[bytes]:
    """The chunks, unchanged. Raises TooLarge in place of the one that would exceed ``limit`` bytes in all."""
    size = 0
    for chunk in chunks:
        size += len(chunk)
        if size > limit:
            raise TooLarge(f"holds more than {limit:,} bytes")
        yield chunk


def gunzip(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Unpacks gzip, from chunks to chunks. Any number of members; zeros behind a member are padding (RFC 1952).

    Raises CorruptData, perhaps after some chunks.
    """
    member, inside, members = zlib.decompressobj(wbits=31), False, 0
    for chunk in chunks:
        rest = chunk
        while rest := rest if inside or not members else rest.lstrip(b"\0"):
            if members and not inside and not GZIP_MAGIC.startswith(rest[: len(GZIP_MAGIC)]):
                raise CorruptData("has something else behind its gzip data")
            inside = True
            try:
                content = member.decompress(rest, GZIP_OUTPUT)
            except zlib.error as error:
                raise CorruptData(f"is not valid gzip data ({error})") from error
            if content:
                yield content
            rest = member.unconsumed_tail
            if member.eof:
                rest = member.unused_data
                member, inside, members = zlib.decompressobj(wbits=31), False, members + 1
    if inside:
        raise CorruptData("ends in the middle of its gzip data")


def unzstd(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Unpacks zstd, like ``gunzip``: any number of frames, skippable ones too (RFC 8878). Raises CorruptData.

    In memory is also the frame's window, which may be of 128 MiB: zstd refuses more by itself.
    """
    codec = zstandard.ZstdDecompressor()
    frame, inside = codec.decompressobj(), False
    gathered, size = [], 0
    for chunk in chunks:
        for i in range(0, len(chunk), ZSTD_INPUT):
            rest = chunk[i : i + ZSTD_INPUT]
            while rest:
                inside = True
                try:
                    content = frame.decompress(rest)
                except zstandard.ZstdError as error:
                    raise CorruptData(f"is not valid zstd data ({error})") from error
                gathered.append(content)
                size += len(content)
                rest = b""
                if frame.eof:
                    rest = frame.unused_data
                    frame, inside = codec.decompressobj(), False
            if size >= BLOCK:
                yield b"".join(gathered)
                gathered, size = [], 0
    if size:
        yield b"".join(gathered)
    if inside:
        raise CorruptData("ends in the middle of its zstd data")


# By FileVersion.compression.
DECOMPRESSORS: dict[str, Callable[[Iterable[bytes]], Iterator[bytes]]] = {"gzip": gunzip, "zstd": unzstd}
