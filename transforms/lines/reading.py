"""Reads ranges of files as tiles, for a splittable DoFn or for planned ranges. No Beam."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from llmdo.storage.errors import ObjectChanged, ObjectNotFound
from llmdo.storage.objects.opening import open_store
from llmdo.storage.objects.store import ObjectStore
from llmdo.storage.output.manifests import FormatName
from llmdo.transforms.elements import Blank, FileVersion, KnownShard, Leftovers, Opened, OpenFile, Stale, Tile
from llmdo.transforms.lines.cutting import DECOMPRESSORS, bounded, cut, cut_spans, skip_to_line
from llmdo.transforms.tables.csv_rows import cut_rows
from llmdo.transforms.tables.json_elements import cut_elements
from llmdo.transforms.tables.rows import read_rows, row_ranges
from llmdo.transforms.unreadable import CorruptData, TooLarge

# Cuts the content of a file that is read from its begin, of one format: what ``cut_spans`` says holds for each.
# Bytes that are in no row (a header, brackets, commas) are Blanks ``between`` rows.
Cutter = Callable[[FileVersion, Iterable[bytes], Iterable[tuple[int, int | None]], int], Iterator[list[Tile]]]
CUTTERS: dict[FormatName, Cutter] = {"jsonl": cut_spans, "csv": cut_rows, "tsv": cut_rows, "json": cut_elements}

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
            for compressed files, PLANNED_CONTENT for all that are one planned range, no limit for others.
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
        if self.max_file_bytes:
            return self.max_file_bytes
        if self.planned and not file.divisible:
            return PLANNED_CONTENT
        return COMPRESSED_CONTENT if file.compression else NO_END

    def refuses(self, file: FileVersion) -> bool:
        """Whether a file is too large by its size alone."""
        return not file.compression and max(file.size, file.unpacked) > self.content_limit(file)


def one_gap_each(element: Opened) -> Iterator[Opened]:
    """One element for each gap of a file; one that is empty or not ``divisible`` is one element."""
    if isinstance(element, KnownShard | Leftovers) or not element.file.divisible or not element.file.length:
        yield element
    else:
        for gap in element.gaps:
            yield replace(element, gaps=(gap,))


def gap_of(element: OpenFile) -> tuple[int, int]:
    """The only gap of an element of ``one_gap_each`` whose file is ``divisible``."""
    ((start, stop),) = element.gaps
    return start, (element.file.length or 0) if stop is None else stop


def ranges_of(element: OpenFile, start: int, stop: int, size: int) -> Iterator[tuple[int, int]]:
    """Cuts a range of a ``divisible`` file into ranges of about ``size`` positions, the last of them not tiny.

    Raises UNREADABLE for a table.
    """
    if element.file.has_rows:
        yield from row_ranges(element, start, stop, size)
        return
    while start < stop:
        end = start + size if stop - start - size >= size // 4 else stop
        yield start, min(end, stop)
        start = end


def unread(element: OpenFile, reading: Reading) -> Blank | Stale | None:
    """The outcome of a file that is empty or too large; None if there is something to read."""
    if not element.file.size or element.file.length == 0:
        return Blank(element.file, 0, 0, total=0)
    if reading.refuses(element.file):
        return Stale(element.file, _too_large(element.file, reading), gone=False)
    return None


def stale_by(file: FileVersion, error: Exception) -> Stale:
    """The outcome of a file whose reading raised one of UNREADABLE."""
    return Stale(file, str(error), isinstance(error, ObjectNotFound | ObjectChanged))


def read_range(element: OpenFile, start: int, stop: int, reading: Reading) -> Iterator[list[Tile]]:
    """The tiles that begin in [start, stop) of the only gap of a file, or of the gaps of one that is not ``divisible``.

    Raises UNREADABLE, TooLarge only for the latter, and other StorageErrors.
    """
    file, limit = element.file, reading.max_line_bytes
    try:
        if not file.divisible:
            yield from _read_whole(element, start, reading)
        elif file.has_rows:
            yield from read_rows(element, start, min(stop, gap_of(element)[1]), limit)
        else:
            yield from _read_bytes(element, start, stop, limit)
    except CorruptData as error:
        raise error.about(file.place) from error
    except TooLarge as error:
        raise TooLarge(_too_large(file, reading)) from error


def _read_whole(element: OpenFile, start: int, reading: Reading) -> Iterator[list[Tile]]:
    file = element.file
    spans = [(max(first, start), last) for first, last in element.gaps]
    content: Iterator[bytes] = iter([element.content or b""])
    if element.content is None:
        content = open_store(file.store_url).stream(file.key, file.etag)
    if file.compression:
        content = DECOMPRESSORS[file.compression](content)
    yield from CUTTERS[file.kind.name](
        file, bounded(content, reading.content_limit(file)), spans, reading.max_line_bytes
    )


def _read_bytes(element: OpenFile, start: int, stop: int, limit: int) -> Iterator[list[Tile]]:
    file, store = element.file, open_store(element.file.store_url)
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
