"""``r2://bucket/key`` for every Beam IO: ``ReadFromText("r2://bucket/input/*.jsonl")``, ``WriteToText`` and the others.

Beam finds the class among FileSystem's subclasses, once this module is imported; ``import llmdo`` after ``import
apache_beam`` does that, in this process and in each worker that has a step of llmdo. For other workers pass
``--beam_plugins=llmdo.storage.objects.r2_filesystem`` (Dataflow adds it by itself). Endpoint and keys come from each
worker's environment (``llmdo.settings.environment``), never from pipeline options, which end up in job descriptions.
"""

# Beam's file classes have no annotations.
# mypy: allow-untyped-calls

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import BinaryIO, TypeVar, cast

from apache_beam.io.filesystem import BeamIOError, CompressedFile, CompressionTypes, FileMetadata, FileSystem
from apache_beam.io.filesystemio import Downloader, DownloaderStream, Uploader, UploaderStream

from llmdo.storage.errors import BucketNotFound, InvalidLocation, ObjectNotFound, StorageError
from llmdo.storage.objects.r2 import R2Store
from llmdo.storage.objects.r2_parts import R2Upload
from llmdo.storage.objects.store import R2_SCHEME, ObjectInfo, locate

_READ_BUFFER = 8 << 20  # bytes; each refill is one GET, billed alike whatever its size
_WRITE_BUFFER = 1 << 20

K = TypeVar("K", str, tuple[str, str])


class R2FileSystem(FileSystem):
    """R2 as a Beam FileSystem. Paths are ``r2://BUCKET/KEY``; there are no folders, and "/" in a key is a letter.

    Reads are of the version that was there at ``open``, and fail if the object changes. A write appears whole at
    ``close``, even if it ends with an exception: write under a temporary name, as Beam's sinks do. Every failure is a
    BeamIOError whose ``exception_details`` map the path to an exception of llmdo.storage.errors, except for
    MissingSettings.
    """

    @classmethod
    def scheme(cls) -> str:
        """``r2``."""
        return "r2"

    def join(self, basepath: str, *paths: str) -> str:
        """Joins with one slash between."""
        for path in paths:
            basepath = f"{basepath.rstrip('/')}/{path.lstrip('/')}"
        return basepath

    def split(self, path: str) -> tuple[str, str]:
        """Everything before the last slash, and what follows it; ``("r2://bucket", "")`` for a bucket."""
        head, _, tail = path.removeprefix(R2_SCHEME).rpartition("/")
        return (R2_SCHEME + head, tail) if head else (R2_SCHEME + tail, "")

    def mkdirs(self, path: str) -> None:
        """Does nothing: R2 has no folders."""

    def has_dirs(self) -> bool:
        """False."""
        return False

    def _list(self, dir_or_prefix: str) -> Iterator[FileMetadata]:
        with _beam_errors("List", dir_or_prefix):
            store, prefix = _place(dir_or_prefix)
            for info in store.list(prefix):
                yield FileMetadata(f"{store.url}/{info.key}", info.size, info.modified.timestamp())

    def create(
        self,
        path: str,
        mime_type: str = "application/octet-stream",
        compression_type: str = CompressionTypes.AUTO,
    ) -> BinaryIO:
        """A writable file; the object appears when it is closed. Multipart above 8 MiB, at most 80 GiB."""
        compression = self._get_compression_type(path, compression_type)
        with _beam_errors("Create", path):
            store, key = _object(path)
        upload = store.upload(key, CompressionTypes.mime_type(compression, mime_type))
        return _compressed(io.BufferedWriter(UploaderStream(_Writer(path, upload)), _WRITE_BUFFER), compression)

    def open(
        self,
        path: str,
        mime_type: str = "application/octet-stream",  # noqa: ARG002  FileSystem's signature
        compression_type: str = CompressionTypes.AUTO,
    ) -> BinaryIO:
        """A readable, seekable file. Raises BeamIOError if there is no object."""
        compression = self._get_compression_type(path, compression_type)
        with _beam_errors("Open", path):
            store, key = _object(path)
            reader = _Reader(path, store, store.stat(key))
        return _compressed(io.BufferedReader(DownloaderStream(reader, _READ_BUFFER), _READ_BUFFER), compression)

    def copy(self, source_file_names: list[str], destination_file_names: list[str]) -> None:
        """Copies objects inside R2, each with its metadata."""
        _each("Copy", _pairs(source_file_names, destination_file_names), _copy)

    def rename(self, source_file_names: list[str], destination_file_names: list[str]) -> None:
        """Copies, then deletes: not atomic, but safe to repeat after a failure."""
        _each("Rename", _pairs(source_file_names, destination_file_names), _move)

    def exists(self, path: str) -> bool:
        """Whether there is an object of exactly this key."""
        with _beam_errors("Exists", path):
            store, key = _place(path)
            try:
                return bool(key and store.stat(key))
            except (ObjectNotFound, BucketNotFound):
                return False

    def size(self, path: str) -> int:
        """Bytes. Raises BeamIOError if there is no object."""
        return _stat(path).size

    def last_updated(self, path: str) -> float:
        """Seconds since 1970. Raises BeamIOError if there is no object."""
        return _stat(path).modified.timestamp()

    def checksum(self, path: str) -> str:
        """The etag, which is not a hash of the content if it was written in parts. Raises BeamIOError."""
        return _stat(path).etag

    def metadata(self, path: str) -> FileMetadata:
        """Path, size and time of change. Raises BeamIOError if there is no object."""
        info = _stat(path)
        return FileMetadata(path, info.size, info.modified.timestamp())

    def delete(self, paths: list[str]) -> None:
        """Deletes objects, and everything below a path that ends in "/"; a missing object is not an error."""
        _each("Delete", paths, _delete)


class _Reader(Downloader):
    def __init__(self, path: str, store: R2Store, info: ObjectInfo) -> None:
        self._path, self._store, self._info = path, store, info

    @property
    def size(self) -> int:
        return self._info.size

    def get_range(self, start: int, end: int) -> bytes:
        with _beam_errors("Read", self._path):
            return b"".join(self._store.stream(self._info.key, self._info.etag, start, end))


class _Writer(Uploader):
    def __init__(self, path: str, upload: R2Upload) -> None:
        self._path, self._upload = path, upload

    def put(self, data: memoryview) -> None:
        with _beam_errors("Write", self._path):
            self._upload.write(data)

    def finish(self) -> None:
        with _beam_errors("Write", self._path):
            self._upload.finish()


def _compressed(file: io.BufferedReader | io.BufferedWriter, compression: str) -> BinaryIO:
    plain = compression == CompressionTypes.UNCOMPRESSED
    return cast(BinaryIO, file if plain else CompressedFile(file, compression_type=compression))


def _place(path: str) -> tuple[R2Store, str]:
    location = locate(path)
    return R2Store.open(location.bucket), location.key


def _object(path: str) -> tuple[R2Store, str]:
    store, key = _place(path)
    if not key:
        raise InvalidLocation(f"{path} names a bucket, not an object; write r2://BUCKET/KEY")
    return store, key


def _stat(path: str) -> ObjectInfo:
    with _beam_errors("Metadata", path):
        store, key = _object(path)
        return store.stat(key)


def _pairs(sources: list[str], targets: list[str]) -> list[tuple[str, str]]:
    if len(sources) != len(targets):
        raise BeamIOError(f"{len(sources)} sources for {len(targets)} destinations: give as many of each")
    return list(zip(sources, targets, strict=True))


def _copy(pair: tuple[str, str]) -> None:
    (store, key), (target, target_key) = map(_object, pair)
    store.copy(key, target, target_key)


def _move(pair: tuple[str, str]) -> None:
    if pair[0] != pair[1]:
        _copy(pair)
        _delete(pair[0])


def _delete(path: str) -> None:
    store, key = _object(path)
    if not key.endswith("/"):
        store.delete(key)
        return
    for info in store.list(key):
        store.delete(info.key)


@contextmanager
def _beam_errors(operation: str, path: str) -> Iterator[None]:
    try:
        yield
    except StorageError as error:
        raise BeamIOError(f"{operation} operation failed", {path: error}) from error


def _each(operation: str, names: list[K], action: Callable[[K], None]) -> None:
    failed: dict[K, StorageError] = {}
    for name in names:
        try:
            action(name)
        except StorageError as error:
            failed[name] = error
    if failed:
        raise BeamIOError(f"{operation} operation failed", failed)
