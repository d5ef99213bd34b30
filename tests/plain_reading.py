"""What reading must give, said as simply as possible: over the whole content at once, with no splits."""

from __future__ import annotations

import re
from collections.abc import Iterable

from hypothesis import strategies as st

from llmdo.storage.output.intervals import Intervals
from llmdo.transforms.elements import Blank, FileVersion, Line, TooLong

BOM = b"\xef\xbb\xbf"
PIECES = [
    *(b"\n", b"\n", b"\r\n", b"\r", b" ", b"\t", BOM, b"\0", b"!", b"\xff\xfe", b"\x0b"),
    *("é".encode(), "日本".encode(), "🙂".encode(), b"a", b'{"prompt": "Hi"}', b"x" * 40),
]

contents = st.lists(st.sampled_from(PIECES), max_size=60).map(b"".join)
limits = st.sampled_from([0, 1, 2, 5, 16, 41, 1000])


def plain_reading(file: FileVersion, content: bytes, limit: int) -> list[Line | TooLong | Blank]:
    """The tiles of a content, in order, without an end mark."""
    tiles: list[Line | TooLong | Blank] = []
    for match in re.finditer(rb"[^\n]*\n|[^\n]+", content):
        start, stop, data = match.start(), match.end(), match.group()
        data = re.sub(rb"\r?\n\Z", b"", data)
        if start == 0 and data.startswith(BOM):
            data = data[3:]
        if len(data) > limit:
            tiles.append(TooLong(file, start, stop))
        elif re.fullmatch(rb"[ \t\r]*", data):
            tiles.append(Blank(file, start, stop))
        else:
            tiles.append(Line(file, start, stop, data))
    return tiles


def gaps_without(
    done: Iterable[Line | TooLong | Blank], length: int, *, open_end: bool
) -> tuple[tuple[int, int | None], ...]:
    """The gaps that an earlier run left, which answered these tiles; ``open_end`` as for a compressed file."""
    gaps: list[tuple[int, int | None]] = list(Intervals((tile.start, tile.stop) for tile in done).gaps(length))
    if open_end:
        last = gaps.pop()[0] if gaps and gaps[-1][1] == length else length
        gaps.append((last, None))
    return tuple(gaps)
