"""The ledger of one machine: an SQLite database that many processes may write at once.

Write-ahead log with ``synchronous=FULL``: what is committed outlives kill -9, and a power cut too, as far as the disk
keeps what it synced. (``NORMAL`` would do for kill -9; a power cut would take the last commits.) Puts share commits,
and so the sync: all that come in one turn of the loop, or while a commit runs. Where the disk syncs within QUICK_S the
loop commits itself: it is held up for less time than a thread would wait for Python's lock, twice. The file must be on
a local disk: the log needs shared memory (sqlite.org/wal.html).
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

from storage.errors import LedgerError
from storage.ledger import Counts, Pruned, check_key, checksum

BUSY_S = 20.0  # how long a write waits for other processes'
QUICK_S, QUICK_BYTES = 0.002, 1 << 20  # a commit on the loop takes no longer, in the mean, and is no larger
# Of answers that come all at once so many are committed in a turn of the loop, so that the calls which follow the first
# of them are under way before the last is committed: they spread, and the next answers do not come all at once.
QUICK_ROWS = 16
_WEIGHT, _FORGET = 0.125, 0.98  # of a commit in that mean; of the mean, with each commit that a thread makes
# Only while another process recovers the log of a killed one, some ms; it holds up the loop.
_READ_BUSY_S = 1.0
_GROUP_ROWS, _GROUP_BYTES = 1000, 32 << 20  # of one commit, so that the log stays small
_CHECKED_BYTES = 1 << 30  # a larger file is not checked whole when it is opened: 0.6 s for this size when cached
_PRUNE_ROWS = 500  # of one transaction, so that others can write between them

_APPLICATION_ID = 0x6C6C6D64  # "llmd"; tells it from other programs' databases
_VERSION = 1
# The value is last, so that the other columns are read without it.
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

_ELSEWHERE = "or name another --ledger"
_DAMAGED = f"the database is damaged; move it away (its answers are then paid again), {_ELSEWHERE}"
# SQLite's primary result codes (sqlite.org/rescode.html): what it is, and what to do.
_ERRORS = {
    sqlite3.SQLITE_BUSY: f"another program keeps the database locked; close it, {_ELSEWHERE}",
    sqlite3.SQLITE_LOCKED: f"another program keeps the database locked; close it, {_ELSEWHERE}",
    sqlite3.SQLITE_NOTADB: f"this file is no SQLite database; move it away, {_ELSEWHERE}",
    sqlite3.SQLITE_CORRUPT: _DAMAGED,
    sqlite3.SQLITE_ERROR: _DAMAGED,
    sqlite3.SQLITE_CANTOPEN: f"the file cannot be opened; check its permissions and its folder's, {_ELSEWHERE}",
    sqlite3.SQLITE_PERM: f"this user may not write it; change its permissions and its folder's, {_ELSEWHERE}",
    sqlite3.SQLITE_READONLY: f"this user may not write it; change its permissions and its folder's, {_ELSEWHERE}",
    sqlite3.SQLITE_FULL: f"the disk is full; make room and run again, {_ELSEWHERE}",
}


class _Put(NamedTuple):
    key: bytes
    crc: int
    created_at: int  # Unix seconds
    value: bytes
    damaged: object  # the stored checksum of an entry to replace, or None
    done: asyncio.Future[None]


class SqliteLedger:
    """A Ledger in one SQLite file, whose folder must exist. See the module, and open_ledger for what is raised."""

    def __init__(self, path: Path) -> None:
        self.counts = Counts()
        self._path = path
        with _translated(path):
            self._writing = _connect(path)
            # Reads stay on the loop: about 15 µs each, less than a hop to a thread and back costs.
            self._reading = sqlite3.connect(path, _READ_BUSY_S, isolation_level=None, check_same_thread=False)
            self._reading.execute("PRAGMA query_only = ON")
        self._waiting: deque[_Put] = deque()
        self._groups: SimpleQueue[list[_Put] | None] = SimpleQueue()
        self._damaged: dict[str, object] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._closed = False
        self._takes_s = 0.0  # a commit on the loop, in the mean
        self._ended: Future[None] = Future()
        # No executor: Python ends those before atexit, where the engine that puts is closed.
        threading.Thread(target=self._write, name="llmdo-ledger", daemon=True).start()

    async def get(self, key: str) -> bytes | None:
        """See Ledger."""
        digest = bytes.fromhex(check_key(key))
        self._check_open()
        try:
            with _translated(self._path):
                row = self._reading.execute("SELECT crc, value FROM answers WHERE key = ?", (digest,)).fetchone()
        except LedgerError as error:
            if _code(error.__cause__) != sqlite3.SQLITE_CORRUPT:
                raise
            self.counts.cannot_read(f"{self._path}: entry {key}", "a page of the database is damaged")
            return None
        if row is None:
            self.counts.misses += 1
            return None
        crc, value = row
        if not isinstance(value, bytes) or crc != checksum(key, value):
            self._damaged[key] = crc
            self.counts.cannot_read(f"{self._path}: entry {key}", "the value is not the one that was kept")
            return None
        self.counts.hits += 1
        return value

    async def put(self, key: str, value: bytes) -> None:
        """See Ledger; returns when it is committed."""
        digest, crc = bytes.fromhex(check_key(key)), checksum(key, value)
        self._check_open()
        loop = asyncio.get_running_loop()
        put = _Put(digest, crc, int(time.time()), value, self._damaged.get(key), loop.create_future())
        self._waiting.append(put)
        if self._idle.is_set():
            self._idle.clear()
            loop.call_soon(self._hand_over)  # not at once: what else this turn of the loop puts comes along
        await put.done
        self._damaged.pop(key, None)
        self.counts.stored += 1

    async def aclose(self) -> None:
        """See Ledger."""
        self._closed = True
        await self._idle.wait()
        self._reading.close()
        self._groups.put(None)
        await asyncio.shield(asyncio.wrap_future(self._ended))

    def _check_open(self) -> None:
        if self._closed:
            raise LedgerError(f"{self._path}: this ledger is closed; open it again")

    def _hand_over(self) -> None:
        if self._takes_s <= QUICK_S:
            group = self._some(QUICK_ROWS, QUICK_BYTES)
            if self._commit_at_once(group):
                self._committed(group, None)
                return
        else:
            self._takes_s *= _FORGET
            group = []
        self._groups.put(group + self._some(_GROUP_ROWS - len(group), _GROUP_BYTES))

    def _some(self, rows: int, most_bytes: int) -> list[_Put]:
        """The first puts that wait, until they have so many bytes."""
        group: list[_Put] = []
        size = 0
        while self._waiting and len(group) < rows and size < most_bytes:
            group.append(self._waiting.popleft())
            size += len(group[-1].value)
        return group

    def _commit_at_once(self, group: Sequence[_Put]) -> bool:
        """Unless it is large, another process writes, or there is an error: the thread waits, and tells."""
        if sum(len(put.value) for put in group) > QUICK_BYTES:
            return False
        begin = time.perf_counter()
        try:
            self._wait_for_others(0.0)
            self._commit(group)
        except Exception:  # noqa: BLE001  whatever it is: the thread meets it again
            return False
        finally:
            self._takes_s += _WEIGHT * (time.perf_counter() - begin - self._takes_s)
        return True

    def _committed(self, group: Sequence[_Put], error: LedgerError | None) -> None:
        # A callback and no task: who cancels all tasks at the loop's end does not cancel what others wait for.
        self.counts.commits += error is None
        for put in group:
            if put.done.cancelled():
                continue
            if error is None:
                put.done.set_result(None)
            else:
                put.done.set_exception(LedgerError(*error.args))
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._hand_over)
        else:
            self._idle.set()

    # The writing thread.

    def _write(self) -> None:
        try:
            while group := self._groups.get():
                error: LedgerError | None = None
                try:
                    self._wait_for_others(BUSY_S)
                    self._commit(group)
                except LedgerError as known:
                    error = known
                except Exception as surprise:  # noqa: BLE001  whoever waits for this put must not wait for ever
                    error = LedgerError(f"{self._path}: unexpected {type(surprise).__name__} ({surprise}): report it")
                with suppress(RuntimeError):  # the loop was closed, and nobody waits
                    group[0].done.get_loop().call_soon_threadsafe(self._committed, group, error)
            self._writing.close()  # the last connection of all moves the log into the database
        finally:
            self._ended.set_result(None)

    # One of both at a time.

    def _wait_for_others(self, seconds: float) -> None:
        with _translated(self._path):
            self._writing.execute(f"PRAGMA busy_timeout = {1000 * seconds:.0f}")

    def _commit(self, group: Sequence[_Put]) -> None:
        # One statement is one transaction, and the GIL changes hands once and not once a row.
        rows = ",".join(["(?,?,?,?)"] * len(group))
        values = [column for put in group for column in put[:4]]
        with _translated(self._path):
            for put in group:
                if put.damaged is not None:
                    self._writing.execute("DELETE FROM answers WHERE key = ? AND crc IS ?", (put.key, put.damaged))
            self._writing.execute(
                f"INSERT INTO answers (key, crc, created_at, value) VALUES {rows} ON CONFLICT (key) DO NOTHING",  # noqa: S608  question marks
                values,
            )


def prune_database(path: Path, before: float) -> Pruned:
    """See ledger.prune; ``before`` in Unix seconds. Gives the space back to the file system."""
    if not path.is_file():
        raise LedgerError(f"{path}: there is no ledger to prune; check the path")
    entries = size = last = 0
    with _translated(path):
        db = _connect(path)
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


def _connect(path: Path) -> sqlite3.Connection:
    """A connection that may write, to a database that was checked. Raises sqlite3.Error and LedgerError."""
    if not path.parent.is_dir():
        raise LedgerError(f"{path}: there is no folder {path.parent}; create it, {_ELSEWHERE}")
    if path.is_dir():
        raise LedgerError(f"{path}: this is a folder; name a file in it, {_ELSEWHERE}")
    end = time.monotonic() + BUSY_S
    # No cached statements: each would keep a copy of the last values that it wrote.
    db = sqlite3.connect(path, BUSY_S, isolation_level=None, check_same_thread=False, cached_statements=0)
    try:
        while True:
            try:
                _prepare(db, path)
            except sqlite3.OperationalError as error:
                # SQLite does not itself wait where processes turn the log on at once.
                if _code(error) != sqlite3.SQLITE_BUSY or time.monotonic() > end:
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

    db.execute("BEGIN")  # one view: another process may be making it now
    owner, version = ask("application_id"), ask("user_version")
    is_new = not (owner or version or db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0])
    db.rollback()
    if not is_new and owner != _APPLICATION_ID:
        raise LedgerError(f"{path}: this is another program's database; leave it, and name another --ledger")
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


def _code(error: BaseException | None) -> int:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF  # the primary code, without SQLite's finer distinctions


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        remedy = _ERRORS.get(_code(error), f"the database does not work; check the disk, {_ELSEWHERE}")
        raise LedgerError(f"{path}: {remedy} ({error})") from error
    except OSError as error:
        raise LedgerError(f"{path}: {_ERRORS[sqlite3.SQLITE_CANTOPEN]} ({error.strerror})") from error
