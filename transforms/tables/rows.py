"""Reads files whose positions are rows: how many there are, in which ranges, and each as a line of JSON.

pyarrow is imported by the first file that needs it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from llmdo.transforms.elements import FileVersion, Line, OpenFile, Tile, TooLong

# Rows that leave together have about this many bytes.
_BLOCK = 256 << 10


def with_rows(file: FileVersion, content: bytes | None = None) -> FileVersion:
    """The file with the number of its rows, and the size of their content. Raises CorruptData and StorageError."""
    from llmdo.transforms.tables.parquet import table_of  # noqa: PLC0415

    table = table_of(file, content)
    return replace(file, end=table.rows, unpacked=sum(table.sizes))


def read_rows(element: OpenFile, start: int, stop: int, limit: int) -> Iterator[list[Tile]]:
    """The rows [start, stop) of a file; one whose JSON form has more than ``limit`` bytes is TooLong.

    Raises CorruptData and StorageError.
    """
    from llmdo.transforms.tables.parquet import batches  # noqa: PLC0415
    from llmdo.transforms.tables.parquet_json import json_rows  # noqa: PLC0415

    file = element.file
    for first, batch in batches(element, start, stop):
        tiles: list[Tile] = []
        size = 0
        for row, data in enumerate(json_rows(batch), first):
            if len(data) > limit:
                tiles.append(TooLong(file, row, row + 1, len(data)))
                continue
            tiles.append(Line(file, row, row + 1, data))
            size += len(data)
            if size > _BLOCK:
                yield tiles
                tiles, size = [], 0
        if tiles:
            yield tiles


def row_ranges(element: OpenFile, start: int, stop: int, size: int) -> Iterator[tuple[int, int]]:
    """Ranges of about ``size`` rows that can be read by themselves. Raises CorruptData and StorageError."""
    from llmdo.transforms.tables.parquet import group_ranges, table_of  # noqa: PLC0415

    yield from group_ranges(table_of(element.file, element.content), start, stop, size)
