"""Two file systems as Beam knows them; importing this makes them known."""

from __future__ import annotations

import io
import time
from pathlib import Path

from apache_beam.io.filesystem import BeamIOError, CompressionTypes, FileMetadata, FileSystem
from apache_beam.io.localfilesystem import LocalFileSystem


class DiskFileSystem(LocalFileSystem):
    """Beam's local files as ``disk:///path``, with HDFS's ways: folders are real, and an object shows while it is
    written, is never written over, and stays as a part if its writer is killed.
    """

    @classmethod
    def scheme(cls):
        return "disk"

    def create(self, path, mime_type="application/octet-stream", compression_type=CompressionTypes.AUTO):
        file = Path(_plain(path))
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            return file.open("xb")
        except FileExistsError:
            raise BeamIOError(f"Path already exists: {path}") from None

    def open(self, path, mime_type="application/octet-stream", compression_type=CompressionTypes.AUTO):
        return super().open(_plain(path), mime_type, compression_type)

    def exists(self, path):
        return super().exists(_plain(path))

    def _list(self, dir_or_prefix):
        if not self.exists(dir_or_prefix):
            raise BeamIOError("List operation failed", {dir_or_prefix: "File does not exist"})
        for found in super()._list(_plain(dir_or_prefix)):
            yield FileMetadata("disk://" + found.path, found.size_in_bytes, found.last_updated_in_seconds)

    def delete(self, paths):
        for path in paths:
            Path(_plain(path)).unlink()


def _plain(path):
    return path.removeprefix("disk://")


class MemoryFileSystem(FileSystem):
    """``mem://``, with the ways of GCS and S3: no folders, and an object shows once it is written, over what was there.

    ``objects`` has bytes and time of change by path; ``trouble(operation, path)`` may raise.
    """

    objects: dict[str, tuple[bytes, float]] = {}  # noqa: RUF012  all instances are one file system
    trouble = staticmethod(lambda operation, path: None)

    @classmethod
    def scheme(cls):
        return "mem"

    def has_dirs(self):
        return False

    def _list(self, dir_or_prefix):
        self.trouble("list", dir_or_prefix)
        for path, (body, changed) in sorted(self.objects.items()):
            if path.startswith(dir_or_prefix):
                yield FileMetadata(path, len(body), changed)

    def create(self, path, mime_type="", compression_type=CompressionTypes.AUTO):
        self.trouble("create", path)
        return _Writer(path)

    def open(self, path, mime_type="", compression_type=CompressionTypes.AUTO):
        self.trouble("open", path)
        if path not in self.objects:
            raise OSError(f"Not found: {path}")
        return io.BytesIO(self.objects[path][0])

    def exists(self, path):
        self.trouble("exists", path)
        return path in self.objects

    def last_updated(self, path):
        return self.objects[path][1]

    def delete(self, paths):
        for path in paths:
            self.trouble("delete", path)
            del self.objects[path]

    def _unused(self, *_):  # abstract in Beam's FileSystem: the ledger must not come to need these
        raise NotImplementedError

    join = split = mkdirs = copy = rename = size = checksum = metadata = _unused


class _Writer(io.BytesIO):
    def __init__(self, path):
        super().__init__()
        self.path = path
        self.objects = MemoryFileSystem.objects  # a writer that nobody closes is closed some time later

    def close(self):
        if not self.closed:
            MemoryFileSystem.trouble("close", self.path)
            self.objects[self.path] = (self.getvalue(), time.time())
        super().close()
