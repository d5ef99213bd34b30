"""Taking jobs in: from the submitters' threads to the engine's loop, and no more than it may hold at a time."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

from llmdo.backends.engine.jobs import Job, Reservation
from llmdo.backends.errors import EngineClosed
from llmdo.backends.limits.sizes import memory_size

LOOK_S = 1.0  # how often a waiting submitter looks whether the loop's thread still lives
# A waiting submitter is woken when this part of the room is free: to wake a thread for each slot costs CPU time.
_PARTS = 8


@dataclass(frozen=True, slots=True)
class Room:
    """How many jobs are held at a time: ``jobs``, whatever they are, and ``more`` as long as all have ``size`` at most.

    A job's size is the characters of its request.
    """

    jobs: int
    more: int = 0
    size: int = 0


class Intake:
    """Holds jobs from ``take`` until all their deliveries are made. ``begin`` gets them, on the loop's thread.

    While ``usable`` returns False, submitting and waiting raise EngineClosed. ``lock`` guards what the submitters'
    threads and the loop's share.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        room: Room,
        usable: Callable[[], bool],
        begin: Callable[[list[Job]], None],
    ) -> None:
        self.lock = threading.Condition()
        self._loop = loop
        self._room = room
        self._usable = usable
        self._begin = begin
        self._jobs = self._size = self._freed = self._further = 0
        self._inbox: deque[Job] = deque()
        self._called = False
        self._loops_thread: int | None = None

    def take(self, job: Job, *, wait: bool) -> bool:
        """Takes a job in. Without room it waits, or returns False. Raises EngineClosed."""
        if self._room.more:
            job.reservation.size = memory_size(job.request)
        with self.lock:
            if not self._wait(None if wait else 0.0):
                return False
            self._jobs += 1
            self._size += job.reservation.size
            self._inbox.append(job)
            if not self._called:
                self._called = True
                self._loop.call_soon_threadsafe(self._open)
            return True

    def wait(self, timeout_s: float) -> bool:
        """Waits until a job can be taken in, at most ``timeout_s`` s; returns whether one can. Raises EngineClosed."""
        with self.lock:
            return self._wait(timeout_s)

    def free(self, reservation: Reservation) -> None:
        """One of the reservation's deliveries is made."""
        reservation.open -= 1
        if not reservation.open:
            self.lend(reservation)

    def lend(self, reservation: Reservation) -> None:
        """Lets other jobs have a reservation whose own job waits for them."""
        if reservation.lent:
            return
        reservation.lent = True
        with self.lock:
            self._jobs -= 1
            self._size -= reservation.size
            self._freed += 1
            if reservation.open or self._freed >= self._room.jobs // _PARTS:
                self._freed = 0
                self.lock.notify_all()

    def look_further(self, jobs: int) -> None:
        """Takes in this many jobs beyond the room: the first ones may all be of one kind."""
        if jobs != self._further:
            with self.lock:
                self._further = jobs
                self.lock.notify_all()

    def resize(self, jobs: int) -> None:
        """Holds this many jobs at a time from now on, whatever they are."""
        with self.lock:
            self._room = replace(self._room, jobs=jobs)
            self.lock.notify_all()

    def widen(self, more: int, size: int) -> None:
        """Holds ``more`` jobs of ``size`` besides; see Room."""
        if self._room.more < more:
            with self.lock:
                self._room = replace(self._room, more=more, size=size)
                self.lock.notify_all()

    def left(self) -> list[Job]:
        """The jobs that were not started."""
        with self.lock:
            jobs = list(self._inbox)
            self._inbox.clear()
        return jobs

    def _wait(self, timeout_s: float | None) -> bool:
        end = None if timeout_s is None else time.monotonic() + timeout_s
        while self._check() and self._is_full():
            left = LOOK_S if end is None else min(LOOK_S, end - time.monotonic())
            if left <= 0:
                return False
            if threading.get_ident() == self._loops_thread:
                raise RuntimeError("deliver() waits for room in the engine that calls it: submit with wait=False there")
            self.lock.wait(left)
        return True

    def _check(self) -> bool:
        if not self._usable():
            raise EngineClosed("the engine that calls the models is closed: start the run again")
        return True

    def _is_full(self) -> bool:
        room, most = self._room, self._room.jobs + self._further
        return self._jobs >= most and (self._jobs >= most + room.more or self._size >= room.size)

    def _open(self) -> None:
        self._loops_thread = threading.get_ident()
        with self.lock:
            self._called = False
        self._begin(self.left())
