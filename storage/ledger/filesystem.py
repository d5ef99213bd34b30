"""Any file system that Beam knows as a place for a ledger of objects: ``gs://``, ``s3://``, ``hdfs://``, ``azfs://`` …

Beam's FileSystem has no conditional write: a put looks first, then writes. Two processes that put one key at the same
moment may both write; the last one stays. Both are whole answers to the same request, so nothing wrong is kept, and
nothing is lost but a call, which two processes would only make for one line if they worked on one file.

Some file systems (HDFS, local ones) show an object while it is written, and keep a part of it if its writer is killed.
The checksum in an entry's header tells: a torn one is a miss, and is replaced once it is paid again.

Beam's ``s3://`` makes a new client for each of its operations, which takes some 100 ms of CPU: write ``r2://`` for R2.
"""

# Beam's file classes have no annotations.
# mypy: allow-untyped-calls

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import apache_beam.io.filesystems  # noqa: F401  makes the file systems known whose packages are installed
from apache_beam.io.filesystem import CompressionTypes, FileSystem
from apache_beam.options.pipeline_options import PipelineOptions

from llmdo.settings.environment import filesystem_options
from llmdo.storage.errors import AlreadyExists, LedgerError, ObjectChanged, ObjectNotFound, StorageUnavailable
from llmdo.storage.objects.store import ObjectInfo

# What to install for a scheme: beam.apache.org/documentation/sdks/python-dependencies, "extras".
_EXTRAS = {"gs": "gcp", "s3": "aws", "hdfs": "hadoop", "azfs": "azure"}
_GLOB = "*?["  # what Beam takes for a pattern
_FOLDERS = [f"{first:02x}/" for first in range(256)]  # where the entries are, by their keys' first digits
_PLAIN = CompressionTypes.UNCOMPRESSED


class BeamStore:
    """The part of an ObjectStore that a ledger needs, below one URL. See the module for what a put promises.

    Raises StorageUnavailable for whatever goes wrong: each file system has its own errors. Credentials come from the
    environment, as the libraries of the services read it; other settings from LLMDO_FILESYSTEM_OPTIONS.
    """

    def __init__(self, url: str) -> None:
        """``url`` has a scheme, and no '/' at its end. Raises LedgerError where Beam cannot use it."""
        self.url = url
        scheme = url.partition("://")[0]
        kinds = [kind for kind in FileSystem.get_all_subclasses() if kind.scheme() == scheme]
        extra = _EXTRAS.get(scheme)
        install = f"pip install 'apache-beam[{extra}]'" if extra else "correct the URL"
        if not kinds:
            raise LedgerError(f"{url}: {scheme}:// is not known to Beam here; {install}, or name another --ledger")
        if any(letter in url for letter in _GLOB):
            raise LedgerError(f"{url}: a ledger's URL has none of {_GLOB}; name another --ledger")
        try:
            self._files: FileSystem = kinds[0](PipelineOptions(filesystem_options()))
        except (ImportError, ValueError) as error:
            raise LedgerError(
                f"{url}: Beam cannot use {scheme}:// ({error}); {install}, and give its options in "
                "LLMDO_FILESYSTEM_OPTIONS, or name another --ledger"
            ) from error

    def read(self, name: str) -> tuple[bytes, str]:
        """A whole object, and a checksum in place of an etag. Raises ObjectNotFound."""
        path = self._path(name)
        with self._translated(path):
            try:
                body = self._read(path)
            except Exception as error:  # whatever it says for an object that is not there
                if not self._files.exists(path):
                    raise ObjectNotFound(f"{path}: there is no such object") from error
                body = self._read(path)  # another process may have written it just now
        return body, f"{zlib.crc32(body):08x}"

    def _read(self, path: str) -> bytes:
        with self._files.open(path, compression_type=_PLAIN) as file:
            body: bytes = file.read()
        return body

    def put_if_absent(self, name: str, body: bytes) -> str:
        """Writes where nothing was a moment ago. Raises AlreadyExists."""
        path = self._path(name)
        with self._translated(path):
            if self._files.exists(path):
                raise AlreadyExists(f"{path}: there is an object already")
            try:
                file = self._files.create(path, compression_type=_PLAIN)
            except Exception as error:
                if self._files.exists(path):  # HDFS refuses where another process was quicker
                    raise AlreadyExists(f"{path}: there is an object already") from error
                raise
            with file:
                file.write(body)
        return f"{zlib.crc32(body):08x}"

    def put_if_match(self, name: str, body: bytes, etag: str) -> str:
        """Replaces what had this checksum a moment ago. Raises ObjectChanged."""
        try:
            if self.read(name)[1] != etag:
                raise ObjectChanged(f"{self._path(name)}: changed since it was read")
            self.delete(name)
            return self.put_if_absent(name, body)
        except (AlreadyExists, ObjectNotFound) as error:
            raise ObjectChanged(f"{self._path(name)}: changed since it was read") from error

    def delete(self, name: str) -> None:
        """Removes an object; nothing happens where none is."""
        path = self._path(name)
        with self._translated(path):
            try:
                self._files.delete([path])
            except Exception:
                if self._files.exists(path):
                    raise

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """The entries, folder by folder: Beam gives the whole of a listing at once."""
        for folder in _FOLDERS:
            path = self._path(prefix + folder)
            with self._translated(path):
                # Where folders are real, a listing of one that is not there is an error.
                if self._files.has_dirs() and not self._files.exists(path.rstrip("/")):
                    continue
                (found,) = self._files.match([path + "*"])
                for file in found.metadata_list:
                    name = prefix + folder + file.path.rpartition("/")[2]
                    seconds = file.last_updated_in_seconds or self._files.last_updated(file.path)
                    yield ObjectInfo(name, "", file.size_in_bytes, datetime.fromtimestamp(seconds, UTC))

    def _path(self, name: str) -> str:
        return f"{self.url}/{name}"

    @contextmanager
    def _translated(self, path: str) -> Iterator[None]:
        try:
            yield
        except (AlreadyExists, ObjectNotFound):
            raise
        except Exception as error:
            said = " ".join(str(error).split())
            raise StorageUnavailable(f"{path}: {said}; check the URL and the credentials, and run again") from error
