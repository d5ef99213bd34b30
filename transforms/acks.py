"""Acks of messages, for every source: on a thread of their own, and again until the queue takes them."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from itertools import islice

from llmdo.settings.environment import cloudflare_account
from llmdo.storage.errors import StorageError, is_passing
from llmdo.storage.queues.client import MAX_BATCH, QueueClient
from llmdo.transforms.outages import FIRST_WAIT_S, Outage
from llmdo.transforms.run_state import RunState

# Longer than opening a full batch of messages takes; a message is acked within seconds. Seconds.
VISIBILITY_TIMEOUT = 300.0
# How long the end of a run waits for a call that is under way. Seconds.
_LAST_CALL_S = 10.0

_log = logging.getLogger(__name__)


class Acks:
    """Acks leases of one queue. Thread-safe.

    While the queue fails they are kept and acked later, without anyone waiting. A lease that has expired meanwhile is
    dropped: its message is delivered again, finds its job record or its manifest, and is acked then. An error that will
    not pass stops the run.
    """

    def __init__(self, client: QueueClient, state: RunState, clock: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._clock = clock
        self._state = state
        self._outage = Outage(state, f"ack to queue {client.queue_id}")
        self._changed = threading.Condition()
        self._left: dict[str, float] = {}  # by lease, when it ends
        self._calling = self._failing = self._closed = False
        self._again_at = float("-inf")
        self._due = float("inf")  # when the next call is to be made, if the queue works
        self._lapsed = 0
        self._thread = threading.Thread(target=self._live, name="llmdo-acks", daemon=True)
        self._thread.start()

    def add(self, leases: Iterable[str], within_s: float = 0.0) -> None:
        """Acks these soon: ``within_s`` seconds, or as soon as there are enough for a call."""
        with self._changed:
            now = self._clock()
            if not self._left:
                self._due = float("inf")
            self._left.update((lease, now + VISIBILITY_TIMEOUT) for lease in leases)
            if self._left and (len(self._left) >= MAX_BATCH or now + within_s < self._due):
                self._due = now if len(self._left) >= MAX_BATCH else now + within_s
                self._changed.notify_all()

    def hurry(self) -> None:
        """Acks what is left now."""
        with self._changed:
            self._hurry()

    def flush(self) -> None:
        """Waits until each lease was acked, or the queue has failed."""
        with self._changed:
            self._hurry()
            self._changed.wait_for(self._tried)

    def close(self, *, patient: bool) -> int:
        """Tries what was not tried yet, and ends; returns the number of messages whose acks failed: they come again.

        ``patient``: waits for a queue that fails, until the last lease has ended or the run stops.
        """
        with self._changed:
            self._hurry()
            while patient and self._left and not self._state.stopping:
                self._changed.wait(0.25)
            self._changed.wait_for(self._tried, _LAST_CALL_S)
            self._closed = True
            self._changed.notify_all()
        self._thread.join(_LAST_CALL_S)
        self._client.close()
        return self._lapsed + len(self._left)

    def _hurry(self) -> None:
        self._due = self._clock()
        self._changed.notify_all()

    def _tried(self) -> bool:
        return self._failing or not (self._left or self._calling)

    def _live(self) -> None:
        while leases := self._next():
            wait = 0.0
            try:
                self._client.settle(leases, tries=1)
                self._outage.over()
            except Exception as error:  # noqa: BLE001  whatever it is, nothing may wait for this thread forever
                wait = self._wait_after(error)
            with self._changed:
                self._calling, self._failing, self._again_at = False, wait > 0, self._clock() + wait
                if self._failing:
                    self._due = self._again_at
                else:
                    for lease in leases:
                        self._left.pop(lease, None)
                self._changed.notify_all()

    def _next(self) -> list[str]:
        """The next leases to ack, when it is time; none when there is nothing to do any more."""
        with self._changed:
            while True:
                now = self._clock()
                self._drop_lapsed(now)
                if self._closed and (self._failing or not self._left):
                    return []
                at = max(self._again_at, self._due)
                if self._left and (now >= at or self._closed):
                    self._calling = True
                    if len(self._left) <= MAX_BATCH:
                        self._due = float("inf")
                    return list(islice(self._left, MAX_BATCH))
                self._changed.notify_all()
                self._changed.wait(min(at, *self._left.values()) - now if self._left else None)

    def _drop_lapsed(self, now: float) -> None:
        lapsed = [lease for lease, end in self._left.items() if end <= now]
        for lease in lapsed:
            del self._left[lease]
        self._lapsed += len(lapsed)

    def _wait_after(self, error: Exception) -> float:
        """Seconds until the next try. An error that will not pass stops the run, and what is left is dropped."""
        if self._closed:  # the run is over: what is left is counted, and comes again
            return FIRST_WAIT_S
        if isinstance(error, StorageError) and is_passing(error):
            return self._outage.wait_after(error)
        self._state.stop(error)
        with self._changed:
            self._left.clear()
        return 0.0


def acks_of(state: RunState, queue_id: str) -> Acks:
    """A run's acks to a queue in this process, until ``close_acks``. Raises MissingSettings."""
    return state.shared(Acks, lambda: Acks(QueueClient(cloudflare_account(), queue_id), state), queue_id)


def not_acked(count: int) -> str:
    """What a user reads about messages whose acks failed."""
    return f"{count} message(s) could not be acked: they will come again, at no cost"


def close_acks(state: RunState, *, patient: bool = False) -> dict[str, int]:
    """Ends a run's acks; returns by queue how many messages come again since their acks failed."""
    left = {}
    for queue_id, acks in state.take(Acks).items():
        if count := acks.close(patient=patient):
            left[queue_id] = count
            _log.warning("queue %s: %s", queue_id, not_acked(count))
    return left
