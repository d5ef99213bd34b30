"""An object of a store as a file to seek in: read in blocks, each by a range request for one version."""

from __future__ import annotations

import io
from collections import OrderedDict

from llmdo.storage.errors import ObjectChanged
from llmdo.storage.objects.opening import open_store
from llmdo.transforms.elements import FileVersion

# What is kept of a file, and how large its blocks may be. A reader takes each column in turn, so each has a block.
_KEPT_BYTES = 16 << 20
_SMALLEST_BLOCK, _LARGEST_BLOCK = 64 << 10, 1 << 20


class RangedFile(io.RawIOBase):
    """One version of a file; only one thread may use it at a time.

    A read raises ObjectNotFound or ObjectChanged if the version is gone, and other StorageErrors.

    Args:
        parts: how many places of the file are read side by side.
    """

    def __init__(self, file: FileVersion, parts: int = 1) -> None:
        super().__init__()
        self._file = file
        self._store = open_store(file.store_url)
        self._block = max(_SMALLEST_BLOCK, min(_LARGEST_BLOCK, _KEPT_BYTES // max(parts, 1)))
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self._at = 0

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """As of any file."""
        begin = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._file.size}[whence]
        self._at = begin + offset
        return self._at

    def tell(self) -> int:
        """As of any file."""
        return self._at

    def read(self, size: int = -1) -> bytes:
        """As of any file."""
        stop = self._file.size if size is None or size < 0 else min(self._at + size, self._file.size)
        start, self._at = self._at, max(self._at, stop)
        if stop <= start:
            return b""
        first, last = start // self._block, (stop - 1) // self._block
        if last - first > 1:  # more than it is worth to keep
            return self._fetched(start, stop)
        content = b"".join(map(self._kept, range(first, last + 1)))
        return content[start - first * self._block : stop - first * self._block]

    def _kept(self, number: int) -> bytes:
        block = self._blocks.pop(number, None)
        if block is None:
            start = number * self._block
            block = self._fetched(start, min(start + self._block, self._file.size))
        self._blocks[number] = block
        while len(self._blocks) * self._block > _KEPT_BYTES:
            self._blocks.popitem(last=False)
        return block

    def _fetched(self, start: int, stop: int) -> bytes:
        file = self._file
        content = b"".join(self._store.stream(file.key, file.etag, start, stop))
        if len(content) < stop - start:
            ends = start + len(content)
            raise ObjectChanged(f"{file.place} ends at byte {ends}, not {file.size}: upload it again")
        return content
