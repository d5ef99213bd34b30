"""Reads Parquet files: the footer once, then rows from anywhere, a few at a time."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from llmdo.transforms.elements import FileVersion, OpenFile
from llmdo.transforms.tables.parquet_json import check_columns
from llmdo.transforms.tables.ranged_file import RangedFile
from llmdo.transforms.unreadable import CorruptData

# Rows that are taken from the decoder together: as many as have about this many bytes, but few, since a value that a
# dictionary has once may be in each of them.
_BATCH_BYTES, _BATCH_ROWS = 4 << 20, 256
# How much the decoder buffers of each column, in front of RangedFile's blocks. Bytes.
_BUFFER = 64 << 10
# A row group is cut into at most this many ranges: each decodes it from its begin.
_PARTS = 16
# What a range may hold: where ranges are planned, it is in memory. Bytes.
_RANGE_BYTES = 64 << 20
# Footers that are kept, and readers that stopped within a row group and may go on there.
_FOOTERS, _PARKED = 32, 4


@dataclass(frozen=True, slots=True)
class ParquetTable:
    """What the footer of a file says.

    Attributes:
        starts: the first row of each row group, then the number of rows.
        sizes: of each row group, in uncompressed bytes.
    """

    metadata: pq.FileMetaData
    names: tuple[str, ...]
    starts: tuple[int, ...]
    sizes: tuple[int, ...]

    @property
    def rows(self) -> int:
        """How many there are."""
        return self.starts[-1]

    def group_of(self, row: int) -> int:
        """The row group that a row is in."""
        return bisect_right(self.starts, row) - 1

    def row_bytes(self, group: int) -> int:
        """About how many bytes a row of a group has, as far as the footer says."""
        return max(1, self.sizes[group] // max(1, self.starts[group + 1] - self.starts[group]))


def table_of(file: FileVersion, content: bytes | None = None) -> ParquetTable:
    """Reads a file's footer, unless that was done before. Raises CorruptData and StorageError."""
    with _lock:
        known = _footers.pop(file.id, None)
        if known is not None:
            _footers[file.id] = known
            return known
    with as_corrupt():
        opened = _open(file, content)
        metadata = opened.metadata
        check_columns(opened.schema_arrow)
        groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
        table = ParquetTable(
            metadata,
            tuple(opened.schema_arrow.names),
            tuple(accumulate((group.num_rows for group in groups), initial=0)),
            tuple(group.total_byte_size for group in groups),
        )
    if table.rows != metadata.num_rows and table.names:
        raise CorruptData(f"has {table.rows:,} rows in its row groups and {metadata.num_rows:,} in its footer")
    with _lock:
        _footers[file.id] = table
        while len(_footers) > _FOOTERS:
            _footers.popitem(last=False)
    return table


def group_ranges(table: ParquetTable, start: int, stop: int, size: int) -> Iterator[tuple[int, int]]:
    """Ranges of about ``size`` rows: several small row groups, or a part of a large one."""
    begin = start
    for group, (first, last) in enumerate(pairwise(table.starts)):
        part = max(size, -(-(last - first) // _PARTS))
        part = max(1, min(part, _RANGE_BYTES // table.row_bytes(group)))
        at = max(first, start)
        while at < min(last, stop):
            end = at + part if min(last, stop) - at > part + part // 4 else min(last, stop)
            if end - begin >= min(size, part):
                yield begin, end
                begin = end
            at = end
    if begin < stop:
        yield begin, stop


def batches(element: OpenFile, start: int, stop: int) -> Iterator[tuple[int, pa.RecordBatch]]:
    """The rows [start, stop) of a file, a few at a time, each with the number of its first. See ``table_of``."""
    file, table = element.file, table_of(element.file, element.content)
    if not table.names:
        yield start, pa.RecordBatch.from_struct_array(pa.array([{}] * (stop - start), pa.struct([])))
        return
    while start < stop:
        reader = _taken(file, table, start) or _Reader.of(file, table, element.content, start, stop)
        ended = False
        try:
            while start < min(stop, reader.last):
                with as_corrupt():
                    batch = reader.at(start)
                batch = batch.slice(0, stop - start)
                yield start, batch
                start += batch.num_rows
            ended = start >= reader.last
        finally:
            if not ended:
                _park(file, reader)


@dataclass(slots=True)
class _Reader:
    """Decodes row groups one after the other. ``batch`` begins at row ``first``; ``last`` is where the groups end."""

    table: ParquetTable
    first: int
    last: int
    source: Iterator[pa.RecordBatch]
    batch: pa.RecordBatch | None = None

    @classmethod
    def of(cls, file: FileVersion, table: ParquetTable, content: bytes | None, start: int, stop: int) -> _Reader:
        """One for the groups that hold [start, stop)."""
        first, last = table.group_of(start), table.group_of(stop - 1) + 1
        rows = max(1, min(_BATCH_ROWS, _BATCH_BYTES // max(map(table.row_bytes, range(first, last)))))
        with as_corrupt():
            opened = _open(file, content, table)
            source = opened.iter_batches(rows, row_groups=list(range(first, last)), use_threads=False)
        return cls(table, table.starts[first], table.starts[last], source)

    def reaches(self, row: int) -> bool:
        """Whether the row is in the last batch, or in what is left of its row group."""
        behind = self.first + (self.batch.num_rows if self.batch is not None else 0)
        return self.first <= row < self.last and (
            row < behind or self.table.group_of(behind) == self.table.group_of(row)
        )

    def at(self, row: int) -> pa.RecordBatch:
        """The rows of a batch from ``row`` on, which is not before the last batch."""
        while self.batch is None or row >= self.first + self.batch.num_rows:
            if self.batch is not None:
                self.first += self.batch.num_rows
            self.batch = next(self.source, None)
            if self.batch is None:
                raise CorruptData(f"ends at row {self.first:,}, and its footer says that there are more")
        return self.batch.slice(row - self.first)


@dataclass(slots=True)
class _Parked:
    """Readers that stopped within a row group, by the ids of their files, the latest last."""

    readers: list[tuple[str, _Reader]] = field(default_factory=list)


# Of this process: a lane that resumes, and a stretch behind another one, need not decode a row group from its begin.
_parked = _Parked()
_footers: OrderedDict[str, ParquetTable] = OrderedDict()
_lock = threading.Lock()


def _taken(file: FileVersion, table: ParquetTable, row: int) -> _Reader | None:
    """The parked reader that is nearest to a row."""
    with _lock:
        fits = [one for one in _parked.readers if one[0] == file.id and one[1].table is table and one[1].reaches(row)]
        if not fits:
            return None
        found = max(fits, key=lambda one: one[1].first)
        _parked.readers.remove(found)
        return found[1]


def _park(file: FileVersion, reader: _Reader) -> None:
    with _lock:
        _parked.readers.append((file.id, reader))
        del _parked.readers[:-_PARKED]


def _open(file: FileVersion, content: bytes | None, table: ParquetTable | None = None) -> pq.ParquetFile:
    parts = 1 if table is None else max(1, table.metadata.num_columns)
    source: Any = pa.PythonFile(RangedFile(file, parts), mode="r") if content is None else pa.BufferReader(content)
    return pq.ParquetFile(
        source,
        metadata=None if table is None else table.metadata,
        buffer_size=_BUFFER,
        pre_buffer=False,
        page_checksum_verification=True,
    )


@contextmanager
def as_corrupt() -> Iterator[None]:
    """What pyarrow raises of a file is raised as CorruptData; what reading the store raises stays as it is."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        said = " ".join(str(error).split())
        if "crypt" in said:
            raise CorruptData("is encrypted Parquet, for which llmdo takes no keys", "decrypt it") from error
        if "Expected all lists to be of size" in said:
            what = "has a null in a column of lists of a fixed size, which Arrow cannot read"
            raise CorruptData(what, "write it as lists of any size") from error
        raise CorruptData(f"cannot be read as Parquet ({said[:300].rstrip('.')})") from error
