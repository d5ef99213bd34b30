"""Connections to stores by themselves: how soon a long log is caught up with, and the memory of many.

``resume``: a store of 20,000 events of some 450 bytes each. ``first_s``: from the start of a client that knows nothing
of it until it has the last one. Then five more come, and clients that know the 20,000 are started one after the other:
``p50_s`` is the median of the times from connecting, as a thread of its own, to having all five.

``memory``: a process that does nothing else connects to 100 stores, which have ten events each. ``mb`` is its resident
memory when it has read them all, ``before_mb`` that before it connected: the interpreter, aiohttp and pydantic.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.chats.store_client import sent_now
from benchmarks.continuous import TIMEOUT_S
from benchmarks.servers.sync_backend import SyncBackend
from llmdo.storage.livestore.frames import MOST_EVENTS, Cursor, NewEvent, StoredEvent
from llmdo.storage.livestore.stores import LiveStores
from llmdo.transforms.chat.events import MESSAGE_SENT

LONG, MORE = "long", 5
EACH = 10  # events in each store of ``held``
TEXT = "What was said before this is known to all, and what comes after it is not. " * 3


@dataclass(frozen=True, slots=True)
class Resident:
    """What a process has."""

    mb: float
    threads: int


def resident(pid: int | str) -> Resident:
    """What a process has now. On Linux only."""
    status = Path(f"/proc/{pid}/status")
    if not status.exists():
        raise SystemExit("memory is measured on Linux only: choose another part with --only")
    lines = status.read_text(encoding="utf-8").splitlines()
    fields = {name: value.split() for name, _, value in (line.partition(":") for line in lines)}
    return Resident(round(int(fields["VmRSS"][0]) / 1024, 1), int(fields["Threads"][0]))


class Following:
    """A client of one store that begins at a cursor."""

    def __init__(self, backend: SyncBackend, store: str, cursor: Cursor | None, until: int) -> None:
        self._until, self._there = until, threading.Event()
        self.came_at, self.cursor = 0.0, cursor
        begin = {} if cursor is None else {store: cursor}
        self.began_at = time.perf_counter()
        self.stores = LiveStores([backend.place(store)], {store: "reader"}, begin, self._hear, _ignore)

    def read(self) -> float:
        """Reads up to the event ``until``; returns how long that took since the start, in seconds."""
        end = time.monotonic() + TIMEOUT_S
        while not self._there.is_set():
            if time.monotonic() > end:
                raise SystemExit(f"event {self._until} did not come")
            self._take()
        self._take()
        return self.came_at - self.began_at

    def _take(self) -> None:
        for taken in self.stores.take(1_000, 0.05):
            self.cursor = taken.cursor

    def _hear(self, _: str, event: StoredEvent) -> None:
        if event.number == self._until:
            self.came_at = time.perf_counter()
            self._there.set()


def resume(backend: SyncBackend, events: int, times: int) -> dict[str, Any]:
    """Reads a long log from its start, then its last events, again and again."""
    fill(backend, LONG, None, events)
    first = Following(backend, LONG, None, events)
    first_s = first.read()
    first.stores.close()
    fill(backend, LONG, first.cursor, MORE)
    again = []
    for _ in range(times):
        one = Following(backend, LONG, first.cursor, events + MORE)
        again.append(one.read())
        one.stores.close()
    return {
        "events": events,
        "first_s": round(first_s, 2),
        "p50_s": round(median(again), 4),
        "max_s": round(max(again), 4),
    }


def fill(backend: SyncBackend, store: str, after: Cursor | None, events: int) -> None:
    """Appends messages to a store, whose last event is at ``after``."""
    begin = after.number if after else 0
    end = begin + events
    writer = Following(backend, store, after, end)
    for start in range(begin, end, MOST_EVENTS):
        some = [
            NewEvent(MESSAGE_SENT, sent_now(f"m{n}", f"c{n % 20}") | {"message": TEXT})
            for n in range(start, min(start + MOST_EVENTS, end))
        ]
        writer.stores.push(store, lambda some=some: some)  # type: ignore[misc]
    writer.read()
    writer.stores.close()


def held(backend: SyncBackend, names: Sequence[str]) -> dict[str, float]:
    """What a process of its own has that is connected to these stores: see ``benchmarks.chats.hold_stores``."""
    for name in names:
        fill(backend, name, None, EACH)
    command = [sys.executable, "-m", "benchmarks.chats.hold_stores", backend.url, str(EACH), *names]
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=os.environ, timeout=TIMEOUT_S)
    before, after = (float(word) for word in ended.stdout.split())
    return {"mb": after, "before_mb": before}


def _ignore(_: str) -> None:
    """A log that is replaced is not in these measurements."""
