"""The lines of a source, beside the rows that are about them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain

from llmdo.settings.environment import MissingSettings
from llmdo.storage.errors import AccessDenied, BucketNotFound, ObjectChanged, ObjectNotFound
from llmdo.storage.objects.local import is_by_time
from llmdo.storage.objects.opening import open_store
from llmdo.storage.objects.store import R2_SCHEME
from llmdo.storage.output.manifests import Manifest
from llmdo.transforms.elements import FileVersion, Line, OpenFile, Tile
from llmdo.transforms.lines.cutting import DECOMPRESSORS
from llmdo.transforms.lines.reading import NO_END, Reading, read_range
from llmdo.transforms.unreadable import CorruptData, TooLarge

# These mean that the version that was answered is not there for this user, and not that storage is away for now.
_GONE = (ObjectNotFound, ObjectChanged, AccessDenied, BucketNotFound, MissingSettings, CorruptData)


class NotJoined(Exception):
    """A source cannot be read; the message says why."""


class SourceLines:
    """A source's bytes by offset, from its begin to its end. In memory are a chunk and a line."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._start, self._held = 0, b""

    def line(self, start: int, stop: int) -> bytes:
        """The bytes [start, stop), which begin where those of the last call ended, or later.

        Raises NotJoined where they cannot be had any more, and StorageError where storage is away.
        """
        while stop - self._start > len(self._held):
            kept = self._held[start - self._start :]  # nothing, if the line begins further on
            self._start += len(self._held) - len(kept)
            self._held = kept + self._next()
        return self._held[start - self._start : stop - self._start]

    def _next(self) -> bytes:
        try:
            chunk = next(self._chunks, None)
        except _GONE as error:
            raise NotJoined(str(error)) from None
        if chunk is None:
            raise NotJoined("it ends before the last line that was answered")
        return chunk


class SourceRows:
    """The same for a file of another format: each of its rows as a line of JSON."""

    def __init__(self, tiles: Iterable[Sequence[Tile]]) -> None:
        self._tiles = chain.from_iterable(tiles)

    def line(self, start: int, stop: int) -> bytes:  # noqa: ARG002  a row ends where it ends
        """See SourceLines."""
        try:
            for tile in self._tiles:
                if tile.start == start and isinstance(tile, Line):
                    return tile.data
                if tile.start > start:
                    break
        except (*_GONE, TooLarge) as error:
            raise NotJoined(str(error)) from None
        raise NotJoined("it has no row where one was answered")


def source_of(manifest: Manifest) -> SourceLines | SourceRows:
    """The source of a file that is done, in the version that was answered. Raises NotJoined."""
    if manifest.bucket:
        url = R2_SCHEME + manifest.bucket
    elif not manifest.folder or is_by_time(manifest.etag):
        raise NotJoined("the output was written by a version that did not record where its sources were")
    else:
        url = manifest.folder
    name = "" if manifest.format == "jsonl" else manifest.format
    end = manifest.length if manifest.unit == "row" else None
    file = FileVersion(url, manifest.key, manifest.etag, manifest.size, format=name, end=end)
    try:
        store = open_store(url)
    except _GONE as error:
        raise NotJoined(str(error)) from None
    if manifest.format != "jsonl":
        whole = OpenFile(file, ((0, end),))
        return SourceRows(read_range(whole, 0, NO_END, Reading(max_line_bytes=NO_END, max_file_bytes=NO_END)))
    chunks = store.stream(manifest.key, manifest.etag)
    return SourceLines(DECOMPRESSORS[file.compression](chunks) if file.compression else chunks)
