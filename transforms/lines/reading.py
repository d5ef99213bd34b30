"""Reads ranges of files as tiles, for a splittable DoFn or for planned ranges. No Beam."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from llmdo.storage.errors import ObjectChanged, ObjectNotFound
from llmdo.storage.objects.opening import open_store
from llmdo.storage.objects.store import ObjectStore
from llmdo.transforms.elements import Blank, FileVersion, KnownShard, Leftovers, Opened, OpenFile, Stale
from llmdo.transforms.lines.cutting import (
    DECOMPRESSORS,
    CorruptData,
    Tile,
    TooLarge,
    bounded,
    cut,
    cut_spans,
    skip_to_line,
)

# Past the end of every file: R2's largest object is 5 TiB, and gzip packs 1,000 to 1 at most. Bytes.
NO_END = 1 << 62
# What ``read_range`` raises of a file that cannot be read as it is; see ``stale_by``.
UNREADABLE = (ObjectNotFound, ObjectChanged, CorruptData, TooLarge)
# How much is requested at first, behind a range, to complete its last line; doubles with each request. Bytes.
OVERHANG = 64 << 10
# What a compressed file may hold by default: 1 MB of zstd can be 32 GB of lines, each of them a call that is
# paid. As much as this, in lines of 1 KB, keeps 64 calls of a second in flight for three days. Bytes.
COMPRESSED_CONTENT = 16 << 30
# The same where ranges are planned: it is all in memory, of Python and of the runner. Bytes.
PLANNED_CONTENT = 256 << 20


@dataclass(frozen=True, slots=True)
class Reading:
    """How files are read.

    Attributes:
        range_bytes: the size of the ranges that may be read at the same time; where they are planned, at most.
        max_line_bytes: a line longer than this, without its ending, is TooLong.
        max_file_bytes: a file with more content than this, uncompressed, ends as stale; None: COMPRESSED_CONTENT
            or PLANNED_CONTENT for compressed files, no limit for others.
        checkpoint_seconds: for how long a bundle reads before it defers the rest; None, never: a runner that lets
            elements through a bundle as they come needs no self-checkpoint, and is slower with one.
        lanes: how many bundles read at the same time in this process, where there is a self-checkpoint.
        planned: ranges are planned beforehand and read by plain DoFns, for a runner that runs no splittable ones.
        at_once: a file is read as soon as it is open, by a plain DoFn in the bundle that found it: a runner with one
            worker then holds few open files that it does not read yet.
    """

    range_bytes: int = 4 << 20
    max_line_bytes: int = 1 << 20
    checkpoint_seconds: float | None = None
    lanes: int = 4
    max_file_bytes: int | None = None
    planned: bool = False
    at_once: bool = False

    def content_limit(self, file: FileVersion) -> int:
        """How many bytes a file's content may have."""
        compressed = PLANNED_CONTENT if self.planned else COMPRESSED_CONTENT
        return self.max_file_bytes or (compressed if file.compression else NO_END)

    def refuses(self, file: FileVersion) -> bool:
        """Whether a file is too large by its size alone."""
        return not file.compression and file.size > self.content_limit(file)


def one_gap_each(element: Opened) -> Iterator[Opened]:
    """One element for each gap of a file. Compressed and empty files cannot be divided."""
    if isinstance(element, KnownShard | Leftovers) or not element.file.size or element.file.compression:
        yield element
    else:
        for gap in element.gaps:
            yield replace(element, gaps=(gap,))


def gap_of(element: OpenFile) -> tuple[int, int]:
    """The only gap of an element of ``one_gap_each`` that is not compressed."""
    ((start, stop),) = element.gaps
    return start, element.file.size if stop is None else stop


def unread(element: OpenFile, reading: Reading) -> Blank | Stale | None:
    """The outcome of a file that is empty or too large; None if there is something to read."""
    if not element.file.size:
        return Blank(element.file, 0, 0, total=0)
    if reading.refuses(element.file):
        return Stale(element.file, _too_large(element.file, reading), gone=False)
    return None


def stale_by(file: FileVersion, error: Exception) -> Stale:
    """The outcome of a file whose reading raised one of UNREADABLE."""
    return Stale(file, str(error), isinstance(error, ObjectNotFound | ObjectChanged))


def read_range(element: OpenFile, start: int, stop: int, reading: Reading) -> Iterator[list[Tile]]:
    """The tiles that begin in [start, stop) of the only gap of a file, or of the gaps of a compressed one.

    Raises UNREADABLE, TooLarge only for compressed files, and other StorageErrors.
    """
    file, limit = element.file, reading.max_line_bytes
    store = open_store(file.store_url)
    if file.compression:
        spans = [(max(first, start), last) for first, last in element.gaps]
        content = bounded(
            DECOMPRESSORS[file.compression](
                store.stream(file.key, file.etag) if element.content is None else iter([element.content])
            ),
            reading.content_limit(file),
        )
        try:
            yield from cut_spans(file, content, spans, limit)
        except CorruptData as error:
            raise CorruptData(f"{file.store_url}/{file.key} {error}: upload it again") from error
        except TooLarge as error:
            raise TooLarge(_too_large(file, reading)) from error
        return
    first, last = gap_of(element)
    stop = min(stop, last)
    if start == first:  # a gap begins with a line
        chunks = _stream(store, element, start, stop, last)
    else:
        start, chunks = skip_to_line(_stream(store, element, start - 1, stop, last), start, stop)
    yield from cut(file, chunks, start, stop, limit)


def _too_large(file: FileVersion, reading: Reading) -> str:
    limit = reading.content_limit(file)
    return f"{file.store_url}/{file.key} holds more than {limit:,} bytes: raise --max-file-bytes, or split the file"


def _stream(store: ObjectStore, element: OpenFile, start: int, stop: int, last: int) -> Iterator[bytes]:
    """The bytes [start, stop), and then, as far as they are taken, those up to ``last``, by requests that grow."""
    file, size = element.file, OVERHANG
    if element.content is not None:
        yield element.content[start:last]
        return
    while start < last:
        for chunk in store.stream(file.key, file.etag, start, stop):
            start += len(chunk)
            yield chunk
        if start < stop:
            raise ObjectChanged(f"{file.store_url}/{file.key} ends at byte {start}, not {file.size}: upload it again")
        stop, size = min(stop + size, last), size * 2
