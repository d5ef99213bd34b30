"""The ledger of one machine: an SQLite database that many processes may write at once.

Write-ahead log with ``synchronous=FULL``: a commit survives kill -9, and a power cut if the disk keeps what it synced.
(``NORMAL`` would do for kill -9, but a power cut would take the last commits.) Puts share commits, and so the sync: all
that come in one turn of the loop, while a commit runs, or while all that wait have patience. If the disk syncs within
QUICK_S, the loop itself commits, which blocks it for less time than a thread would wait for the GIL, twice. The file
must be on a local disk: the log needs shared memory (sqlite.org/wal.html).
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import cache
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

from llmdo.storage.errors import LedgerError
from llmdo.storage.ledger.database import (
    BUSY_S,
    HELD_BYTES,
    connect_database,
    forget_statements,
    primary_code,
    sqlite_errors,
)
from llmdo.storage.ledger.ledger import DamageLog, check_key, checksum

QUICK_S, QUICK_BYTES = 0.002, 1 << 20  # longest mean time and largest size of a commit on the loop
# Most rows of a commit on the loop when many answers arrive at once: the calls that follow the first of them are then
# made before the last is committed, so they spread, and the next answers do not arrive all at once.
QUICK_ROWS = 16
# Weight of one value in a moving mean; and the decay of a commit's mean time, with each commit of the thread.
_WEIGHT, _FORGET = 0.125, 0.98
# Puts do not wait for others if _MANY came at once, or if their mean distance is below _CLOSE_S: they share commits
# anyway then.
_MANY, _CLOSE_S = 4, 0.001
# Blocks the loop, but only for the few ms in which another process recovers the log of a killed one.
_READ_BUSY_S = 1.0
_GROUP_ROWS, _GROUP_BYTES = 1000, 32 << 20  # most of one commit, so that the log stays small


class _Put(NamedTuple):
    key: bytes
    crc: int
    created_at: int  # Unix seconds
    value: bytes
    damaged: object  # the stored checksum of an entry to replace, or None
    done: asyncio.Future[None]


class SqliteLedger:
    """A Ledger in one SQLite file, whose folder must exist. See open_ledger for errors."""

    def __init__(self, path: Path) -> None:
        self._damage = DamageLog()
        self._path = path
        with sqlite_errors(path):
            self._writing = connect_database(path)
            # Reads stay on the loop: each takes about 15 µs, less than a hop to a thread and back.
            self._reading = sqlite3.connect(path, _READ_BUSY_S, isolation_level=None, check_same_thread=False)
            self._reading.execute("PRAGMA query_only = ON")
        self._waiting: deque[_Put] = deque()
        self._groups: SimpleQueue[list[_Put] | None] = SimpleQueue()
        self._damaged: dict[str, object] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._closed = False
        self._alarm: asyncio.TimerHandle | None = None  # set while those that wait have patience
        self._due_at = 0.0  # when the first of them has none left
        self._waits_s: float | None = None
        self._takes_s = 0.0  # mean time of a commit on the loop
        self._apart_s, self._last_at = 1.0, 0.0  # mean time between puts; when the last one came
        self._ended: Future[None] = Future()
        # Not an executor: Python ends those before atexit, where the engine is closed, which puts.
        threading.Thread(target=self._write, name="llmdo-ledger", daemon=True).start()

    async def get(self, key: str) -> bytes | None:
        """See Ledger."""
        digest = bytes.fromhex(check_key(key))
        self._check_open()
        try:
            row = self._row(digest)
        except LedgerError as error:
            if primary_code(error.__cause__) != sqlite3.SQLITE_CORRUPT:
                raise
            self._damage.warn(f"{self._path}: entry {key}", "a page of the database is damaged")
            return None
        if row is None:
            return None
        crc, value = row
        if not isinstance(value, bytes) or crc != checksum(key, value):
            self._damaged[key] = crc
            self._damage.warn(f"{self._path}: entry {key}", "the value is not the one that was kept")
            return None
        return value

    def _row(self, digest: bytes) -> Any:
        try:
            return self._reading.execute("SELECT crc, value FROM answers WHERE key = ?", (digest,)).fetchone()
        except (sqlite3.Error, OSError):
            with sqlite_errors(self._path):
                raise

    async def put(self, key: str, value: bytes, patience_s: float = 0.0) -> None:
        """See Ledger; returns when it is committed."""
        digest, crc = bytes.fromhex(check_key(key)), checksum(key, value)
        self._check_open()
        loop = asyncio.get_running_loop()
        put = _Put(digest, crc, int(time.time()), value, self._damaged.get(key), loop.create_future())
        self._waiting.append(put)
        now = loop.time()
        self._apart_s += _WEIGHT * (min(now - self._last_at, 1.0) - self._apart_s)
        self._last_at = now
        due_at = now + patience_s if patience_s > self._apart_s > _CLOSE_S else now
        if self._idle.is_set():
            self._idle.clear()
            self._due_at = due_at
            loop.call_soon(self._gather)  # with all other puts of this turn of the loop
        elif self._alarm is None:
            self._due_at = min(due_at, self._due_at)
        elif due_at < self._due_at:
            self._alarm.cancel()
            self._alarm, self._due_at = None, due_at
            loop.call_soon(self._gather)
        await put.done
        self._damaged.pop(key, None)

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

    def _gather(self) -> None:
        loop = asyncio.get_running_loop()
        if len(self._waiting) < _MANY and self._due_at > loop.time():
            self._alarm = loop.call_at(self._due_at, self._hand_over)
        else:
            self._hand_over()

    def _hand_over(self) -> None:
        self._alarm = None
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
        """The first waiting puts, up to this number of rows and bytes."""
        group: list[_Put] = []
        size = 0
        while self._waiting and len(group) < rows and size < most_bytes:
            group.append(self._waiting.popleft())
            size += len(group[-1].value)
        return group

    def _commit_at_once(self, group: Sequence[_Put]) -> bool:
        """Whether the group was committed. The thread commits a large one, and one that fails or has to wait here."""
        if sum(len(put.value) for put in group) > QUICK_BYTES:
            return False
        begin = time.perf_counter()
        try:
            self._wait_for_others(0.0)
            self._commit(group)
        except Exception:  # noqa: BLE001  the thread will meet the same error, whatever it is
            return False
        finally:
            self._takes_s += _WEIGHT * (time.perf_counter() - begin - self._takes_s)
        return True

    def _committed(self, group: Sequence[_Put], error: LedgerError | None) -> None:
        # A callback, not a task: it must run even if all tasks are cancelled at the loop's end.
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
                except Exception as unexpected:  # noqa: BLE001  or whoever waits for this put would wait for ever
                    kind = type(unexpected).__name__
                    error = LedgerError(f"{self._path}: unexpected {kind} ({unexpected}): report it")
                with suppress(RuntimeError):  # the loop is closed: nobody waits
                    group[0].done.get_loop().call_soon_threadsafe(self._committed, group, error)
            self._writing.close()  # the last connection of all moves the log into the database
        finally:
            self._ended.set_result(None)

    # Used by the loop and the thread, one at a time.

    def _wait_for_others(self, seconds: float) -> None:
        if seconds != self._waits_s:
            with sqlite_errors(self._path):
                self._writing.execute(f"PRAGMA busy_timeout = {1000 * seconds:.0f}")
            self._waits_s = seconds

    def _commit(self, group: Sequence[_Put]) -> None:
        # One statement is one transaction, and the GIL changes hands once, not once for each row.
        values = [column for put in group for column in put[:4]]
        with sqlite_errors(self._path):
            for put in group:
                if put.damaged is not None:
                    self._writing.execute("DELETE FROM answers WHERE key = ? AND crc IS ?", (put.key, put.damaged))
            self._writing.execute(_insertion(len(group)), values)
            if sum(len(put.value) for put in group) > HELD_BYTES:
                forget_statements(self._writing)


@cache
def _insertion(rows: int) -> str:
    marks = ",".join(["(?,?,?,?)"] * rows)
    return f"INSERT INTO answers (key, crc, created_at, value) VALUES {marks} ON CONFLICT (key) DO NOTHING"  # noqa: S608  question marks
