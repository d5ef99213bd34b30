"""Files and folders for this user alone, with modes 0600 and 0700, because they hold prompts, answers or keys."""

from __future__ import annotations

import fcntl
import os
import secrets
import stat
import threading
from contextlib import suppress
from pathlib import Path
from typing import IO

_FOLDER, _FILE = 0o700, 0o600
_OTHERS = 0o077  # what group and others may do
_making = threading.Lock()


def make_folder(folder: Path) -> None:
    """Creates a folder and missing parents; existing ones stay as they are. Raises OSError."""
    for one in reversed([folder, *folder.parents]):
        if one == folder or not one.exists():
            one.mkdir(_FOLDER, exist_ok=True)


def own_folder(folder: Path) -> None:
    """Creates a folder of llmdo's own, or makes an existing one private. Raises OSError."""
    make_folder(folder)
    _tighten(folder)


def make_database(path: Path) -> None:
    """Creates the empty file of a database, or makes an existing one private.

    SQLite gives the files beside it (-wal, -shm, -journal) the mode of the database. Raises OSError.
    """
    path = Path(os.path.realpath(path))  # a dangling link names the file that SQLite would create
    # Never opens an existing file, which this process may have open: closing it would drop SQLite's locks (POSIX).
    with _making, suppress(FileExistsError):
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _FILE))
    for name in (path, path.with_name(f"{path.name}-wal"), path.with_name(f"{path.name}-shm")):
        with suppress(FileNotFoundError):
            _tighten(name)


def write(path: Path, body: bytes) -> None:
    """Writes or replaces a whole file. Raises OSError."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _FILE), "wb") as file:
            file.write(body)
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def lock(folder: Path) -> IO[str]:
    """Waits for the lock on a folder of llmdo's own, and holds it until the file is closed or the process dies.

    Raises OSError.
    """
    own_folder(folder)
    file = (folder / "lock").open("w")
    fcntl.flock(file, fcntl.LOCK_EX)
    return file


def _tighten(path: Path) -> None:
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & _OTHERS:
        with suppress(PermissionError):  # it is another user's, who lets this one use it
            path.chmod(mode & ~_OTHERS)
