"""A local file that is written piece by piece and appears whole, or not at all."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from llmdo.storage.errors import AlreadyExists
from llmdo.storage.objects.local import local_errors

# In the file's folder; LocalStore's listings skip such names.
_PREFIX, _SUFFIX = ".llmdo-draft-", ".tmp"


class LocalUpload:
    """A file that replaces what is at ``path`` with ``finish``. Missing folders are made.

    Until then it is a hidden file in the same folder, which goes with an error. What a killed process has left there is
    removed by the next upload into the folder. Two processes cannot write the same file at the same time: the second
    one gets AlreadyExists. Every method raises StorageError.
    """

    def __init__(self, path: str) -> None:
        self._path = os.path.realpath(path)  # a link stays, and what it names is replaced
        folder, name = os.path.split(self._path)
        mark = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:16]
        self._draft = f"{folder}/{_PREFIX}{mark}{_SUFFIX}"
        self._handle = -1
        with local_errors(self._path):
            os.makedirs(folder, exist_ok=True)
            if os.path.isdir(self._path):
                raise IsADirectoryError(errno.EISDIR, "a folder")
            _remove_abandoned(folder)
            self._handle = self._open()

    def write(self, data: bytes | memoryview) -> None:
        """Takes the next bytes."""
        with self._errors():
            left = memoryview(data)
            while left:
                left = left[os.write(self._handle, left) :]

    def finish(self) -> None:
        """The file is there, whole, also after a power failure."""
        with self._errors():
            os.fsync(self._handle)
            os.replace(self._draft, self._path)
            self._close()
            folder = os.open(os.path.dirname(self._path), os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def abort(self) -> None:
        """Removes what was written; what was at ``path`` stays. Harmless after ``finish``."""
        if self._handle >= 0:
            with suppress(OSError):
                os.unlink(self._draft)
            self._close()

    def _open(self) -> int:
        """The draft, empty and locked: the lock shows others that its process lives."""
        while True:
            handle = os.open(self._draft, os.O_WRONLY | os.O_CREAT, 0o666)
            try:
                if not _locked(handle):
                    raise AlreadyExists(f"{self._path} is being written by another process: wait for it, and run again")
                with suppress(FileNotFoundError):
                    if os.path.samestat(os.fstat(handle), os.stat(self._draft)):
                        os.truncate(handle, 0)
                        return handle
            except BaseException:
                os.close(handle)
                raise
            os.close(handle)  # between its opening and its lock another process has finished or removed it

    def _close(self) -> None:
        os.close(self._handle)
        self._handle = -1

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            with local_errors(self._path):
                yield
        except BaseException:
            self.abort()
            raise


def _remove_abandoned(folder: str) -> None:
    """Removes drafts of processes that are gone."""
    with os.scandir(folder) as entries:
        drafts = [one.path for one in entries if one.name.startswith(_PREFIX) and one.name.endswith(_SUFFIX)]
    for draft in drafts:
        with suppress(OSError):
            handle = os.open(draft, os.O_WRONLY)
            try:
                if _locked(handle) and os.path.samestat(os.fstat(handle), os.stat(draft)):
                    os.unlink(draft)
            finally:
                os.close(handle)


def _locked(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
