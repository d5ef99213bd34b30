"""How old the oldest message of a queue is, for whoever asks again and again."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from llmdo.settings.environment import MissingSettings, cloudflare_account
from llmdo.storage.errors import StorageError
from llmdo.storage.queues.client import Backlog, QueueClient

_log = logging.getLogger(__name__)

# An answer is given again for so long, and a new one is waited for so long. Seconds.
_FRESH_S, _PATIENCE_S = 15.0, 2.0


class OldestMessage:
    """Asks the service about a queue, at most every 15 s and only while somebody asks for the age. Thread-safe.

    Args:
        queue_id: the queue's.
        ask: replaces the question to the service.
        clock: seconds on a clock that never goes back.
    """

    def __init__(
        self,
        queue_id: str,
        ask: Callable[[str], Backlog | None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._queue_id, self._question, self._clock = queue_id, ask or _ask, clock
        self._found: Backlog | None = None
        self._asked_at: float | None = None
        self._asking = False
        self._answered = threading.Event()
        self._lock = threading.Lock()

    def age(self) -> float | None:
        """Seconds, 0 for an empty queue; None if it is not known. Takes 2 s at most."""
        now = self._clock()
        with self._lock:
            starts = not self._asking and (self._asked_at is None or now - self._asked_at >= _FRESH_S)
            if starts:
                self._asking, self._asked_at = True, now
                self._answered.clear()
                threading.Thread(target=self._renew, name="llmdo-oldest-message", daemon=True).start()
        if starts:
            self._answered.wait(_PATIENCE_S)
        found = self._found
        if found is None:
            return None
        if found.oldest_at is None:
            return None if found.messages else 0.0
        return max(0.0, time.time() - found.oldest_at)

    def _renew(self) -> None:
        try:
            self._found = self._question(self._queue_id)
        finally:
            self._asking = False
            self._answered.set()


def _ask(queue_id: str) -> Backlog | None:
    try:
        with QueueClient(cloudflare_account(), queue_id) as client:
            return client.backlog_now()
    except (StorageError, MissingSettings) as error:
        _log.info("the queue cannot be asked for its oldest message: %s", error)
        return None
