"""A local folder as an object store: whole puts, conditional puts, versions by size and modification time."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from io import BufferedWriter
from operator import itemgetter
from pathlib import Path

from storage.errors import (
    AccessDenied,
    AlreadyExists,
    InvalidLocation,
    ObjectChanged,
    ObjectNotFound,
    StorageError,
    StorageUnavailable,
)
from storage.objects import READ_CHUNK, ObjectInfo

_TEMP_PREFIX, _TEMP_SUFFIX = ".llmdo-", ".tmp"

# What an errno means here, and what to do. Any other is a disk that does not work.
_ERRORS: dict[int, tuple[type[StorageError], str]] = {
    errno.ENOENT: (ObjectNotFound, "there is no such file; check the path"),
    errno.ENOTDIR: (ObjectNotFound, "a part of this path is a file, not a folder; choose another folder"),
    errno.EISDIR: (ObjectNotFound, "this is a folder, not a file; check the path"),
    errno.ENAMETOOLONG: (InvalidLocation, "a part of this path is too long for the file system; shorten it"),
    errno.EACCES: (AccessDenied, "this user may not do that; change the permissions, or choose another folder"),
    errno.EPERM: (AccessDenied, "the file system does not permit that; choose a folder on a disk with hard links"),
    errno.EROFS: (AccessDenied, "the disk is read-only; choose another folder"),
    errno.ENOSPC: (StorageUnavailable, "the disk is full; make room and run again"),
    errno.EDQUOT: (StorageUnavailable, "the disk quota is used up; make room and run again"),
}


class LocalStore:
    """An ObjectStore over a folder, which need not exist before the first put.

    The etag is ``<size>-<mtime in ns>``. A put appears whole, after an fsync; metadata is dropped.
    ``put_if_absent`` is atomic. ``put_if_match`` is best effort: calls of it exclude each other, in all processes of
    this machine, but a plain put or delete, or another program, may come between its check and its write. ``list``
    does not follow links to folders, and passes over names that are not UTF-8, which are no keys. Every method raises
    InvalidLocation for a key that names no file below the folder.
    """

    keeps_metadata = False

    def __init__(self, root: Path) -> None:
        self._root = root.expanduser().absolute()
        self.url = str(self._root)

    def stat(self, key: str) -> ObjectInfo:
        """See ObjectStore."""
        with self._translated(key):
            status = self._path(key).stat()
            if not stat.S_ISREG(status.st_mode):
                raise IsADirectoryError(errno.EISDIR, "not a regular file")
            return _info(key, status)

    def read(self, key: str) -> tuple[bytes, str]:
        """See ObjectStore."""
        with self._translated(key), self._path(key).open("rb") as file:
            # The etag from before: a file that another program changes meanwhile then shows as changed later.
            etag = _etag(os.fstat(file.fileno()))
            return file.read(), etag

    def stream(self, key: str, etag: str, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """See ObjectStore; a file that another program changes in place is noticed with the next chunk."""
        path = self._path(key)
        with self._translated(key), path.open("rb", buffering=0) as file:
            at = file.seek(start)
            while True:
                chunk = file.read(READ_CHUNK if stop is None else max(0, min(READ_CHUNK, stop - at)))
                if _etag(os.fstat(file.fileno())) != etag:
                    raise ObjectChanged(f"{path}: changed since it was listed; run again to take the new version")
                if not chunk:
                    return
                at += len(chunk)
                yield chunk

    def put(self, key: str, body: bytes, metadata: Mapping[str, str] | None = None) -> str:  # noqa: ARG002  protocol
        """See ObjectStore."""
        path = self._path(key)
        with self._translated(key, missing=InvalidLocation), _temporary(path.parent, body) as (temp, etag):
            temp.replace(path)
            return etag

    def put_if_absent(self, key: str, body: bytes) -> str:
        """See ObjectStore."""
        path = self._path(key)
        with self._translated(key, missing=InvalidLocation), _temporary(path.parent, body) as (temp, etag):
            try:
                path.hardlink_to(temp)
            except FileExistsError as error:
                raise AlreadyExists(f"{path}: there is a file already") from error
            return etag

    def put_if_match(self, key: str, body: bytes, etag: str) -> str:
        """See ObjectStore; best effort, as the class says."""
        path = self._path(key)
        with self._translated(key, missing=ObjectChanged), _locked(path.parent):
            if _etag(path.stat()) != etag:
                raise ObjectChanged(f"{path}: changed since it was read; read it again")
            with _temporary(path.parent, body) as (temp, new):
                temp.replace(path)
                return new

    def delete(self, key: str) -> None:
        """See ObjectStore."""
        with suppress(ObjectNotFound), self._translated(key):
            self._path(key).unlink()

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """See ObjectStore."""
        folder, slash, start = prefix.rpartition("/")
        if folder:
            self._path(folder)
        with self._translated(prefix):
            yield from self._walk(folder + slash, start)

    def _walk(self, folder: str, start: str) -> Iterator[ObjectInfo]:
        try:
            with os.scandir(self._root / folder) as entries:
                # With "/" at a folder's end, the order of names is the order of whole keys.
                found = sorted(
                    ((e.name + "/" * e.is_dir(follow_symlinks=False), e) for e in entries), key=itemgetter(0)
                )
        except (FileNotFoundError, NotADirectoryError):
            return
        for name, entry in found:
            if not name.startswith(start) or (name.startswith(_TEMP_PREFIX) and name.endswith(_TEMP_SUFFIX)):
                continue
            if not is_utf8(name):
                continue
            if name.endswith("/"):
                yield from self._walk(folder + name, "")
                continue
            with suppress(FileNotFoundError):  # removed since the folder was read
                status = entry.stat()
                if stat.S_ISREG(status.st_mode):  # no pipe, no link to a folder
                    yield _info(folder + name, status)

    def _path(self, key: str) -> Path:
        parts = key.split("/")
        if any(part in {"", ".", ".."} or "\0" in part for part in parts):
            raise InvalidLocation(f"{self.url}: {key!r} names no file below this folder; use a plain relative path")
        if not is_utf8(key):
            raise InvalidLocation(f"{self.url}: {key!r} is not UTF-8; rename the file")
        return self._root.joinpath(*parts)

    @contextmanager
    def _translated(self, key: str, *, missing: type[StorageError] = ObjectNotFound) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            fallback = (StorageUnavailable, f"{error.strerror or error}; check the disk and run again")
            kind, remedy = _ERRORS.get(error.errno or 0, fallback)
            raise (missing if kind is ObjectNotFound else kind)(f"{self._root / key}: {remedy}") from error


def is_utf8(name: str) -> bool:
    """Whether a name can be written down: bytes that are not UTF-8 are halves of surrogate pairs in Python's text."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _etag(status: os.stat_result) -> str:
    return f"{status.st_size}-{status.st_mtime_ns}"


def _info(key: str, status: os.stat_result) -> ObjectInfo:
    return ObjectInfo(key, _etag(status), status.st_size, datetime.fromtimestamp(status.st_mtime, UTC))


@contextmanager
def _temporary(folder: Path, body: bytes) -> Iterator[tuple[Path, str]]:
    """A synced file in the same folder, and its etag; gone afterwards, unless it was renamed."""
    temp = folder / f"{_TEMP_PREFIX}{secrets.token_hex(8)}{_TEMP_SUFFIX}"
    try:
        with _created(temp) as file:
            file.write(body)
            file.flush()
            # The kernel's clock ticks every few ms: two versions of one size within a tick would have one etag.
            now = time.time_ns()
            os.utime(file.fileno(), ns=(now, now))
            os.fsync(file.fileno())
            etag = _etag(os.fstat(file.fileno()))
        yield temp, etag
    finally:
        temp.unlink(missing_ok=True)


def _created(path: Path) -> BufferedWriter:
    """A new file, in a folder that is made where it is missing."""
    with suppress(FileNotFoundError):
        return path.open("xb")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise NotADirectoryError(errno.ENOTDIR, "not a folder") from error
    return path.open("xb")


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
