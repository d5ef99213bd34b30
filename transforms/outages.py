"""Waits and retries while a service fails, with one warning at the beginning and one at the end."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from llmdo.storage.errors import QueueError, StorageError, is_passing
from llmdo.storage.queues.api import SLOW_CODES
from llmdo.transforms.run_state import RunState

# Between two tries, doubling, where the service does not say how long to wait. Seconds.
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 60.0
# How long ``run`` waits for a queue, in all. Cloudflare's API refuses a user who made too many calls for 5 minutes.
QUEUE_PATIENCE_S = 600.0
# And for R2: a run whose heartbeat cannot be written for 90 s is over anyway.
STORE_PATIENCE_S = 60.0
_STEP_S = 0.25

_log = logging.getLogger(__name__)
T = TypeVar("T")


class Outage:
    """How long one caller waits before each try while a service fails. Not thread-safe.

    A run warns once when the first caller finds the service failing, and once when one finds it working again.

    Args:
        state: notes for the whole run which services fail.
        what: names the service in the second warning, such as "R2".
    """

    def __init__(self, state: RunState, what: str) -> None:
        self._failing = state.failing
        self._what = what
        self._tries = 0
        self._began = 0.0
        self._waited_s = 0.0

    @property
    def lasted_s(self) -> float:
        """How long it has lasted, with the wait that was asked for last; 0 while the service works."""
        return max(self._waited_s, time.monotonic() - self._began) if self._tries else 0.0

    def wait_after(self, error: StorageError) -> float:
        """Seconds until the next try: what the service asks for, else ever longer.

        Raises an error that will not pass.
        """
        if not is_passing(error):
            raise error
        if not self._tries:
            self._began = time.monotonic()
        if self._what not in self._failing:
            self._failing.add(self._what)
            _log.warning("%s; trying again until it works", error)
        wait = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** min(self._tries, 10))
        if isinstance(error, QueueError):
            asked = SLOW_CODES.get(error.code or 0, wait) if error.retry_after is None else error.retry_after
            wait = max(FIRST_WAIT_S, asked)
        self._tries += 1
        self._waited_s += wait
        return wait

    def over(self) -> None:
        """The service works."""
        if not self._tries:
            return
        if self._what in self._failing:
            self._failing.discard(self._what)
            _log.warning("%s works again after %.0f s", self._what, self.lasted_s)
        self._tries, self._waited_s = 0, 0.0


def pause(state: RunState, seconds: float) -> None:
    """Waits for some seconds, or until the run stops."""
    while seconds > 0 and not state.stopping:
        step = min(_STEP_S, seconds)
        time.sleep(step)
        seconds -= step


def patiently(state: RunState, work: Callable[[], T]) -> T:
    """What ``work`` returns, which is called again while R2 fails, for STORE_PATIENCE_S in all.

    Raises StorageError after that, and at once for an error that will not pass, or where the run stops.
    """
    outage = Outage(state, "R2")
    while True:
        try:
            done = work()
        except StorageError as error:
            _wait_out(state, outage, error)
        else:
            outage.over()
            return done


def persistently(state: RunState, find: Callable[[], Iterator[T]], name: Callable[[T], str]) -> Iterator[T]:
    """What ``find`` yields, each ``name`` once; it is called again while R2 fails. Raises as ``patiently``."""
    outage, seen = Outage(state, "R2"), set[bytes]()  # of a million files 16 bytes each are enough
    while True:
        try:
            for one in find():
                digest = hashlib.blake2b(name(one).encode(errors="surrogatepass"), digest_size=16).digest()
                if digest not in seen:
                    seen.add(digest)
                    yield one
        except StorageError as error:
            _wait_out(state, outage, error)
        else:
            outage.over()
            return


def _wait_out(state: RunState, outage: Outage, error: StorageError) -> None:
    wait = outage.wait_after(error)
    if outage.lasted_s > STORE_PATIENCE_S or state.stopping:
        raise error
    pause(state, wait)
