"""Open files that wait for their turn to be dealt out, where files keep coming. No Beam."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from llmdo.transforms.elements import KnownShard, Leftovers, Opened, OpenFile, Written
from llmdo.transforms.lines.deal import SMALLEST_STRETCH, Dealer, bounds_of, stop_of_stretch
from llmdo.transforms.lines.reading import Reading, one_gap_each
from llmdo.transforms.lines.stretches import is_quick

# A process reads a large stretch to its end before it begins another one; where files keep coming, that must not take
# long. Some 2,500 lines. Bytes.
HELD_STRETCH = 4 * SMALLEST_STRETCH
# Waiting elements that keep the content of their small files, of 16 KiB each at most; the others are read again.
CONTENTS = 1_000
# What comes back within this long is emitted together. Seconds.
_TOGETHER_S = 0.05
# How often it looks which files are still in work. Seconds.
_LOOK_S = 5.0


@dataclass(slots=True)
class _Part:
    """What is left to deal of one gap, or of a file that is one stretch."""

    element: OpenFile
    start: int
    last: int


class HeldFiles:
    """Takes open files in at once, however many, and deals them out as processes have room. Thread-safe.

    Files take turns, stretch by stretch, and quick ones do not wait for large ones. The time since which a file is in
    work is given to all that is emitted of it.

    Args:
        reading: how files are read; stretches have at most ``range_bytes``, and HELD_STRETCH.
        clock: Unix time in seconds; where it goes back, time stands still here.
    """

    def __init__(self, reading: Reading, clock: Callable[[], float] = time.time) -> None:
        self._reading, self._clock = reading, clock
        self._now = clock()
        self._since: dict[str, float] = {}  # by work_id
        self._ready: list[Written] = []
        self._quick: deque[_Part] = deque()
        self._large: deque[_Part] = deque()
        self._oldest, self._look_at = self._now, float("-inf")
        self._lock = threading.Lock()

    def add(self, element: Opened) -> None:
        """Takes in what is known of an open file, or is to be read of it."""
        with self._lock:
            self._since.setdefault(element.file.work_id, self._time())
            if isinstance(element, KnownShard):
                self._ready.append(Written(element.file, shard=element.shard))
            elif isinstance(element, Leftovers):
                self._ready.append(Written(element.file, leftovers=element.names))
            else:
                self._hold(element)

    def emit(self, dealer: Dealer, seconds: float) -> list[tuple[Written, float]]:
        """Deals out what there is room for, until something has come back or ``seconds`` are over.

        Returns what is to be emitted, with its file's time. Raises what ``Dealer.take`` raises.
        """
        with self._lock:
            found, self._ready = self._ready, []
        end = time.monotonic() + (_TOGETHER_S if found else seconds)
        while True:
            with self._lock:
                self._deal(dealer)
            left = end - time.monotonic()
            back = dealer.take(max(0.0, left))
            if back and not found:
                end = min(end, time.monotonic() + _TOGETHER_S)
            found += back
            if left <= 0:
                break
        with self._lock:
            now = self._time()
            return [(written, self._since.get(written.file.work_id, now)) for written in found]

    def oldest(self, in_work: Callable[[], Iterable[str]]) -> float:
        """The earliest time that what is still to be emitted may have. ``in_work``: the work_ids of open files."""
        with self._lock:
            now = self._time()
            if time.monotonic() >= self._look_at or not self._since:
                self._look_at = time.monotonic() + _LOOK_S
                known = set(in_work())
                self._since = {name: since for name, since in self._since.items() if name in known}
                self._oldest = min(self._since.values(), default=now)
            return self._oldest

    # Under the lock.

    def _time(self) -> float:
        self._now = max(self._now, self._clock())
        return self._now

    def _hold(self, element: OpenFile) -> None:
        if element.content is not None and len(self._quick) + len(self._large) >= CONTENTS:
            element = replace(element, content=None)
        for part in one_gap_each(element):
            assert isinstance(part, OpenFile)  # noqa: S101  others have no gaps
            start, last = bounds_of(part, self._reading)
            (self._quick if is_quick(part, start, last) else self._large).append(_Part(part, start, last))

    def _deal(self, dealer: Dealer) -> None:
        for waiting in (self._quick, self._large):
            while waiting:
                part = waiting[0]
                most = min(self._reading.range_bytes, HELD_STRETCH)
                stop = stop_of_stretch(part.element.file, part.start, part.last, most, dealer.most)
                if not dealer.offer(part.element, part.start, stop):
                    break
                waiting.popleft()
                part.start = stop
                if stop < part.last:
                    waiting.append(part)
