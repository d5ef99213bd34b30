"""Temporary folders that end with their process; what a kill -9 leaves behind, the next start of llmdo removes."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

# Names of folders that a process holds the lock of, and of those that stay for the user to look at.
_HELD, _KEPT = "llmdo-run-", "llmdo-kept-"
KEPT_SECONDS = 24 * 3600.0

_users: list[object] = []
_shared = ExitStack()
_changing = threading.Lock()


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder for this process and the servers that end with it, removed afterwards."""
    folder, lock = _make()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


@contextmanager
def temporary_files() -> Iterator[None]:
    """Puts whatever this process asks ``tempfile`` for into a folder of its own; Beam leaves some behind.

    Runs side by side in one process share the folder; it goes with the last of them.
    """
    with _changing:
        if not _users:
            _shared.enter_context(_own_tempdir())
        _users.append(user := object())
    try:
        yield
    finally:
        with _changing:
            _users.remove(user)
            if not _users:
                _shared.close()


@contextmanager
def _own_tempdir() -> Iterator[None]:
    before = tempfile.tempdir
    with temporary_folder() as folder:
        tempfile.tempdir = str(folder)
        try:
            yield
        finally:
            tempfile.tempdir = before


def kept_folder() -> Path:
    """A folder that outlives this process: the first start of llmdo after ``KEPT_SECONDS`` removes it."""
    return Path(tempfile.mkdtemp(prefix=_KEPT))


def remove_abandoned() -> None:
    """Removes what was left by processes of this user that have ended, and folders that were kept long enough.

    What cannot be removed stays, silently: another start may try again.
    """
    with suppress(OSError):
        root = Path(tempfile.gettempdir())
        for folder in [*root.glob(f"{_HELD}*"), *root.glob(f"{_KEPT}*")]:
            with suppress(OSError):  # held by its process, or another user's
                _remove_abandoned(folder)


def _make() -> tuple[Path, int]:
    """A new folder, and the descriptor that holds the lock on it; the system frees it when this process dies."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_HELD))
        # Until it is locked, another process may think that it was abandoned.
        try:
            lock = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:
            continue
        with suppress(
            OSError
        ):  # a file system without locks: no other process gets one either, and the folder stays after a kill
            fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.exists():
            return folder, lock
        os.close(lock)


def _remove_abandoned(folder: Path) -> None:
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        status = os.fstat(lock)
        fresh = folder.name.startswith(_KEPT) and time.time() - status.st_mtime < KEPT_SECONDS
        if status.st_uid == os.geteuid() and not fresh:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)
