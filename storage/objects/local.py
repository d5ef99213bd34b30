"""A local folder as an object store: whole puts, conditional puts, versions by time or by content."""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import UTC, datetime
from operator import itemgetter
from pathlib import Path

from llmdo.settings.private import make_folder
from llmdo.storage.errors import (
    AccessDenied,
    AlreadyExists,
    InvalidLocation,
    ObjectChanged,
    ObjectNotFound,
    StorageError,
    StorageUnavailable,
)
from llmdo.storage.objects.content import content_hash
from llmdo.storage.objects.store import READ_CHUNK, ObjectInfo

_TEMP_PREFIX, _TEMP_SUFFIX = ".llmdo-", ".tmp"
# In the names of temporary files, with the process id: unique among processes and over time.
_nonce, _numbers = secrets.token_hex(8), itertools.count()
_BY_TIME = re.compile(r"\d{1,20}-\d{1,20}")

# What an errno means here and what to do. Any other one means that the disk does not work.
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

    Small objects are read and written with as few system calls as possible: each call lets another thread run, which
    costs more than the call itself in a process with many threads.

    A ``private`` store makes files and folders for this user alone; otherwise they follow the umask.
    The etag is ``<size>-<mtime in ns>``; ``stream`` also takes a ``content_etag``, whatever the file's time is.
    A put appears whole, after an fsync; metadata is dropped. ``put_if_absent`` is atomic. ``put_if_match`` is best
    effort: its calls exclude each other in all processes of this machine, but a plain put or delete, or another
    program, may come between its check and its write. ``list`` does not follow links to folders, and skips names
    that are not UTF-8, which cannot be keys. Every method raises InvalidLocation for a key that does not name a file
    below the folder.
    """

    keeps_metadata = False

    def __init__(self, root: Path, *, private: bool = False) -> None:
        self.url = str(root.absolute())
        self._private = private

    def now(self) -> float:
        """See ObjectStore."""
        return time.time()

    def stat(self, key: str) -> ObjectInfo:
        """See ObjectStore."""
        with self._os_errors(key):
            status = os.stat(self._path(key))
            if not stat.S_ISREG(status.st_mode):
                raise IsADirectoryError(errno.EISDIR, "not a regular file")
            return _info(key, status)

    def read(self, key: str) -> tuple[bytes, str]:
        """See ObjectStore."""
        with self._os_errors(key):
            handle = os.open(self._path(key), os.O_RDONLY)
            try:
                # Before reading: if another program changes the file meanwhile, a later check notices it.
                status = os.fstat(handle)
                body = os.read(handle, status.st_size + 1)
                if len(body) != status.st_size:  # it is being changed, is not a regular file, or is very large
                    with os.fdopen(handle, "rb", closefd=False) as file:
                        body += file.read()
                return body, _etag(status)
            finally:
                os.close(handle)

    def stream(self, key: str, etag: str, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """See ObjectStore; a file that another program changes in place is noticed with the next chunk."""
        path = self._path(key)
        with self._os_errors(key), open(path, "rb", buffering=0) as file:
            at, checked, matches = file.seek(start), None, False
            while True:
                chunk = file.read(READ_CHUNK if stop is None else max(0, min(READ_CHUNK, stop - at)))
                status = os.fstat(file.fileno())
                if (state := (status.st_size, status.st_mtime_ns, status.st_ctime_ns)) != checked:
                    checked, matches = state, _is_version(path, status, etag)
                if not matches:
                    raise ObjectChanged(f"{path}: changed since it was listed; run again to take the new version")
                if not chunk:
                    return
                at += len(chunk)
                yield chunk

    def content_etag(self, key: str) -> str:
        """Names a file's content, wherever the file is and whatever its time is. Raises ObjectNotFound."""
        with self._os_errors(key):
            return content_hash(self._path(key))

    def put(self, key: str, body: bytes, metadata: Mapping[str, str] | None = None) -> str:  # noqa: ARG002  protocol
        """See ObjectStore."""
        with self._os_errors(key, missing=InvalidLocation):
            return _replace(self._path(key), body, self._private)

    def put_if_absent(self, key: str, body: bytes) -> str:
        """See ObjectStore."""
        path = self._path(key)
        with self._os_errors(key, missing=InvalidLocation):
            temp, etag = _write_beside(path, body, self._private)
            try:
                os.link(temp, path)
            except FileExistsError as error:
                raise AlreadyExists(f"{path}: there is a file already") from error
            finally:
                _remove(temp)
            return etag

    def put_if_match(self, key: str, body: bytes, etag: str) -> str:
        """See ObjectStore; best effort, as the class says."""
        path = self._path(key)
        with self._os_errors(key, missing=ObjectChanged), _locked(os.path.dirname(path)):
            if _etag(os.stat(path)) != etag:
                raise ObjectChanged(f"{path}: changed since it was read; read it again")
            return _replace(path, body, self._private)

    def delete(self, key: str) -> None:
        """See ObjectStore."""
        with suppress(ObjectNotFound), self._os_errors(key):
            os.unlink(self._path(key))

    def delete_many(self, keys: Sequence[str]) -> None:
        """See ObjectStore."""
        for key in keys:
            self.delete(key)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """See ObjectStore."""
        for key, entry in self._entries(prefix):
            with self._os_errors(prefix), suppress(FileNotFoundError):  # removed since the folder was read
                status = entry.stat()
                if stat.S_ISREG(status.st_mode):  # no pipe, no link to a folder
                    yield _info(key, status)

    def list_near(self, prefixes: Sequence[str]) -> Sequence[Sequence[ObjectInfo] | None]:
        """See ObjectStore; a folder costs the same by itself."""
        return [None] * len(prefixes)

    def versions(self, prefix: str) -> Iterator[tuple[str, str]]:
        """See ObjectStore; a link to a folder may be among them. All etags are ""."""
        return ((key, "") for key, _ in self._entries(prefix))

    def _entries(self, prefix: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
        folder, slash, start = prefix.rpartition("/")
        if folder:
            self._path(folder)
        with self._os_errors(prefix):
            yield from self._walk(folder + slash, start)

    def _walk(self, folder: str, start: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
        try:
            with os.scandir(f"{self.url}/{folder}") as entries:
                # With "/" at a folder's end, the order of names is the order of whole keys.
                found = [(e.name + "/" * e.is_dir(follow_symlinks=False), e) for e in entries]
        except (FileNotFoundError, NotADirectoryError):
            return
        found.sort(key=itemgetter(0))
        for name, entry in found:
            if not name.startswith(start) or (name.startswith(_TEMP_PREFIX) and name.endswith(_TEMP_SUFFIX)):
                continue
            if not is_utf8(name):
                continue
            if name.endswith("/"):
                yield from self._walk(folder + name, "")
            else:
                yield folder + name, entry

    def _path(self, key: str) -> str:
        if any(part in {"", ".", ".."} or "\0" in part for part in key.split("/")):
            raise InvalidLocation(f"{self.url}: {key!r} names no file below this folder; use a plain relative path")
        if not is_utf8(key):
            raise InvalidLocation(f"{self.url}: {key!r} is not UTF-8; rename the file")
        return f"{self.url}/{key}"

    def _os_errors(self, key: str, *, missing: type[StorageError] = ObjectNotFound) -> AbstractContextManager[None]:
        return local_errors(f"{self.url}/{key}", missing=missing)


@contextmanager
def local_errors(path: str, *, missing: type[StorageError] = ObjectNotFound) -> Iterator[None]:
    """Raises a StorageError for an OSError about a path; if the file does not exist, that error is ``missing``."""
    try:
        yield
    except OSError as error:
        fallback = (StorageUnavailable, f"{error.strerror or error}; check the disk and run again")
        kind, remedy = _ERRORS.get(error.errno or 0, fallback)
        raise (missing if kind is ObjectNotFound else kind)(f"{path}: {remedy}") from error


def is_utf8(name: str) -> bool:
    """Whether a name can be encoded: Python represents bytes that are not UTF-8 by lone surrogates."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_by_time(etag: str) -> bool:
    """Whether an etag is a size and a modification time, not a ``content_etag``."""
    return _BY_TIME.fullmatch(etag) is not None


def _is_version(path: str, status: os.stat_result, etag: str) -> bool:
    return etag == (_etag(status) if is_by_time(etag) else content_hash(path, status))


def _etag(status: os.stat_result) -> str:
    return f"{status.st_size}-{status.st_mtime_ns}"


def _info(key: str, status: os.stat_result) -> ObjectInfo:
    return ObjectInfo(key, _etag(status), status.st_size, datetime.fromtimestamp(status.st_mtime, UTC))


def _replace(path: str, body: bytes, private: bool) -> str:
    """Replaces what is there with a whole file; returns its etag."""
    temp, etag = _write_beside(path, body, private)
    try:
        os.replace(temp, path)
    except BaseException:
        _remove(temp)
        raise
    return etag


def _write_beside(path: str, body: bytes, private: bool) -> tuple[str, str]:
    """A synced file in the same folder, which is created if need be, and its etag."""
    temp = f"{os.path.dirname(path)}/{_TEMP_PREFIX}{os.getpid()}-{_nonce}-{next(_numbers)}{_TEMP_SUFFIX}"
    handle = _created(temp, private)
    try:
        try:
            left = memoryview(body)
            while left:
                left = left[os.write(handle, left) :]
            # The kernel's clock ticks every few ms: two versions of equal size within a tick would have equal etags.
            now = time.time_ns()
            os.utime(handle, ns=(now, now))
            os.fsync(handle)
            return temp, _etag(os.fstat(handle))
        finally:
            os.close(handle)
    except BaseException:
        _remove(temp)
        raise


def _remove(temp: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(temp)


def _created(path: str, private: bool) -> int:
    flags, mode = os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if private else 0o666
    with suppress(FileNotFoundError):
        return os.open(path, flags, mode)
    folder = os.path.dirname(path)
    try:
        if private:
            make_folder(Path(folder))
        else:
            os.makedirs(folder, exist_ok=True)
    except FileExistsError as error:
        raise NotADirectoryError(errno.ENOTDIR, "not a folder") from error
    return os.open(path, flags, mode)


@contextmanager
def _locked(folder: str) -> Iterator[None]:
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
