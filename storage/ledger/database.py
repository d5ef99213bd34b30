"""The SQLite database of a ledger: opened and checked, its errors in our words, and old answers removed from it."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llmdo.settings.private import make_database
from llmdo.storage.errors import LedgerError
from llmdo.storage.ledger.ledger import Pruned

# Prepared statements of a connection for writing: preparing one again and again takes a fifth of a small commit. Each
# keeps a copy of the last values that it wrote.
STATEMENTS, HELD_BYTES = 4, 64 << 10  # bytes of values
BUSY_S = 20.0  # how long a write waits for other processes
_CHECKED_BYTES = 1 << 30  # a larger file is not checked when it is opened; this size takes 0.6 s when cached
_PRUNE_ROWS = 500  # of one transaction, so that others can write in between

_APPLICATION_ID = 0x6C6C6D64  # "llmd"; distinguishes it from other programs' databases
_VERSION = 1
# The value is last, so that the other columns can be read without it.
_SCHEMA = f"""
    BEGIN IMMEDIATE;
    CREATE TABLE IF NOT EXISTS answers (
        id INTEGER PRIMARY KEY,
        key BLOB NOT NULL UNIQUE,
        crc INTEGER NOT NULL,
        created_at INTEGER NOT NULL,
        value BLOB NOT NULL
    );
    PRAGMA application_id = {_APPLICATION_ID};
    PRAGMA user_version = {_VERSION};
    COMMIT;
"""

_ELSEWHERE = "or name another ledger"
_DAMAGED = f"the database is damaged; move it away (its answers are then paid again), {_ELSEWHERE}"
# By SQLite's primary result code (sqlite.org/rescode.html): the problem and the remedy.
_ERRORS = {
    sqlite3.SQLITE_BUSY: f"another program keeps the database locked; close it, {_ELSEWHERE}",
    sqlite3.SQLITE_LOCKED: f"another program keeps the database locked; close it, {_ELSEWHERE}",
    sqlite3.SQLITE_NOTADB: f"this file is not an SQLite database; move it away, {_ELSEWHERE}",
    sqlite3.SQLITE_CORRUPT: _DAMAGED,
    sqlite3.SQLITE_ERROR: _DAMAGED,
    sqlite3.SQLITE_CANTOPEN: f"the file cannot be opened; check its permissions and its folder's, {_ELSEWHERE}",
    sqlite3.SQLITE_PERM: f"this user may not write it; change its permissions and its folder's, {_ELSEWHERE}",
    sqlite3.SQLITE_READONLY: f"this user may not write it; change its permissions and its folder's, {_ELSEWHERE}",
    sqlite3.SQLITE_FULL: f"the disk is full; make room and run again, {_ELSEWHERE}",
}


def connect_database(path: Path) -> sqlite3.Connection:
    """A connection for writing, to a database that was checked. Raises sqlite3.Error, OSError and LedgerError."""
    if not path.parent.is_dir():
        raise LedgerError(f"{path}: there is no folder {path.parent}; create it, {_ELSEWHERE}")
    if path.is_dir():
        raise LedgerError(f"{path}: this is a folder; name a file in it, {_ELSEWHERE}")
    make_database(path)
    end = time.monotonic() + BUSY_S
    db = sqlite3.connect(path, BUSY_S, isolation_level=None, check_same_thread=False, cached_statements=STATEMENTS)
    try:
        while True:
            try:
                _prepare(db, path)
            except sqlite3.OperationalError as error:
                # SQLite itself does not wait when several processes turn on the write-ahead log at once.
                if primary_code(error) != sqlite3.SQLITE_BUSY or time.monotonic() > end:
                    raise
                db.rollback()
                time.sleep(0.02)
            else:
                return db
    except BaseException:
        db.close()
        raise


def _prepare(db: sqlite3.Connection, path: Path) -> None:
    def ask(pragma: str) -> object:
        return db.execute(f"PRAGMA {pragma}").fetchone()[0]

    db.execute("BEGIN")  # a consistent view: another process may be creating the database
    owner, version = ask("application_id"), ask("user_version")
    is_new = not (owner or version or db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0])
    db.rollback()
    if not is_new and owner != _APPLICATION_ID:
        raise LedgerError(f"{path}: this is another program's database; leave it, and name another ledger")
    if not is_new and version != _VERSION:
        raise LedgerError(
            f"{path}: has version {version}, this program reads {_VERSION}; use the llmdo that wrote it, {_ELSEWHERE}"
        )
    if is_new:
        db.execute("PRAGMA auto_vacuum = INCREMENTAL")
    if ask("journal_mode = WAL") != "wal":
        raise LedgerError(f"{path}: the file system cannot hold a write-ahead log; put the ledger on a local disk")
    db.execute("PRAGMA synchronous = FULL")
    if is_new:
        db.executescript(_SCHEMA)
    elif path.stat().st_size <= _CHECKED_BYTES and ask("quick_check(1)") != "ok":
        raise LedgerError(f"{path}: {_DAMAGED}")
    db.execute("SELECT id, key, crc, created_at, value FROM answers LIMIT 0")
    db.execute("BEGIN IMMEDIATE")
    db.execute("ROLLBACK")


def forget_statements(db: sqlite3.Connection) -> None:
    """Frees the statements that are cached, and the values that they hold."""
    for number in range(STATEMENTS):
        db.execute(f"SELECT {number}").fetchone()


def primary_code(error: BaseException | None) -> int:
    """SQLite's primary result code; 0 for an error that is not SQLite's."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


@contextmanager
def sqlite_errors(path: Path) -> Iterator[None]:
    """Turns errors of SQLite and of the disk into LedgerError."""
    try:
        yield
    except sqlite3.Error as error:
        remedy = _ERRORS.get(primary_code(error), f"the database does not work; check the disk, {_ELSEWHERE}")
        raise LedgerError(f"{path}: {remedy} ({error})") from error
    except OSError as error:
        raise LedgerError(f"{path}: {_ERRORS[sqlite3.SQLITE_CANTOPEN]} ({error.strerror})") from error


def prune_database(path: Path, before: float) -> Pruned:
    """See opening.prune_ledger; ``before`` in Unix seconds. Returns the space to the file system."""
    if not path.is_file():
        raise LedgerError(f"{path}: there is no ledger to prune; check the path")
    entries = size = last = 0
    with sqlite_errors(path):
        db = connect_database(path)
        try:
            while True:
                db.execute("BEGIN IMMEDIATE")
                found = db.execute(
                    "SELECT id, length(value) FROM answers WHERE id > ? AND created_at <= ? ORDER BY id LIMIT ?",
                    (last, before, _PRUNE_ROWS),
                ).fetchall()
                db.executemany("DELETE FROM answers WHERE id = ?", [(row,) for row, _ in found])
                db.execute("COMMIT")
                if not found:
                    break
                entries, size, last = entries + len(found), size + sum(n for _, n in found), found[-1][0]
                db.executescript("PRAGMA incremental_vacuum")  # execute() would free a single page
        finally:
            db.close()
    return Pruned(entries, size)
