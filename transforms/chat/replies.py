"""Response events on their way to the reply queue: many in a call, in order, and again until the queue has them."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic_core import to_json

from llmdo.storage.errors import QueueError
from llmdo.storage.queues.api import SLOW_CODES
from llmdo.storage.queues.client import MAX_BATCH, MAX_MESSAGE_BYTES

# The API's limit for one user is 1,200 calls in 5 minutes
# (developers.cloudflare.com/fundamentals/api/reference/limits): so many go at once, and one more in so many seconds.
BURST, EVERY_S = 40, 0.26
# A call that leaves less than half of them waits for what comes right behind: until nothing has come for so long, at
# most so long. Seconds.
_QUIET_S, _GATHER_S = 0.03, 0.1
# What the queue has not taken after this long is left to the sweep of the log. Seconds.
PATIENCE_S = 240.0
_LONGEST_WAIT_S = 30.0

Event = Mapping[str, Any]
_log = logging.getLogger(__name__)


def fits(event: Event) -> bool:
    """Whether a queue takes an event: at most 128 KB of JSON."""
    try:
        return len(to_json(event)) <= MAX_MESSAGE_BYTES
    except ValueError:
        return False


@dataclass(frozen=True, slots=True, eq=False)
class _Parcel:
    """Events that go together; ``sent`` gets None, or why not. Nobody waits for those without it."""

    events: Sequence[Event]
    sent: asyncio.Future[Exception | None] | None


class Replies:
    """Pushes events by ``push_many`` (see QueueClient), which blocks; used on one event loop.

    One call is made at a time, each with all that has come meanwhile, so that events arrive in their order.
    """

    def __init__(
        self,
        push_many: Callable[[list[Event]], object],
        every_s: float = EVERY_S,
        patience_s: float = PATIENCE_S,
        burst: int = BURST,
    ) -> None:
        self._push_many = push_many
        self._every_s = every_s
        self._burst = burst
        self._patience_s = patience_s
        self._waiting: deque[_Parcel] = deque()
        self._sender: asyncio.Task[None] | None = None
        self._last = 0.0  # when something came; ``_full_at``: when the burst is whole again. The loop's time
        self._full_at = float("-inf")
        self._failing = False
        self._stopped = asyncio.Event()

    def tell(self, *events: Event) -> None:
        """Pushes what may be lost: it is tried once."""
        self._add(_Parcel(events, None))

    async def push(self, events: Sequence[Event]) -> bool:
        """Pushes events, again and again for PATIENCE_S s or until ``stop``; says whether the queue has them."""
        loop, tries = asyncio.get_running_loop(), 0
        end = loop.time() + self._patience_s
        while True:
            sent: asyncio.Future[Exception | None] = loop.create_future()
            self._add(_Parcel(events, sent))
            error = await sent
            if error is None:
                return True
            tries += 1
            wait = _wait_s(error, tries)
            if self._stopped.is_set() or loop.time() + wait > end:
                return False
            try:
                await asyncio.wait_for(self._stopped.wait(), wait)
            except TimeoutError:
                continue
            return False

    def stop(self) -> None:
        """Tries nothing again that fails from now on."""
        self._stopped.set()

    def _add(self, parcel: _Parcel) -> None:
        loop = asyncio.get_running_loop()
        self._last = loop.time()
        self._waiting.append(parcel)
        if self._sender is None:
            self._sender = loop.create_task(self._send_all())

    async def _send_all(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            await self._call_is_due()
            parcels = self._some()
            error: Exception | None = None
            try:
                await loop.run_in_executor(None, self._push_many, [one for parcel in parcels for one in parcel.events])
            except Exception as problem:  # noqa: BLE001 - whatever it is: the events are in the log, and go again
                error = problem
            self._tell_of(error)
            for parcel in parcels:
                if parcel.sent is not None and not parcel.sent.done():
                    parcel.sent.set_result(error)
        self._sender = None

    async def _call_is_due(self) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(self._full_at - self._every_s * (self._burst - 1) - loop.time())
        now = loop.time()
        if self._full_at + self._every_s - now > self._every_s * self._burst / 2:
            end = now + _GATHER_S
            while (now := loop.time()) < (until := min(self._last + _QUIET_S, end)):  # noqa: ASYNC110  until nothing comes
                await asyncio.sleep(until - now)
        self._full_at = max(self._full_at, now) + self._every_s

    def _some(self) -> list[_Parcel]:
        parcels, count = [self._waiting.popleft()], 0
        count = len(parcels[0].events)
        while self._waiting and count + len(self._waiting[0].events) <= MAX_BATCH:
            parcels.append(self._waiting.popleft())
            count += len(parcels[-1].events)
        return parcels

    def _tell_of(self, error: Exception | None) -> None:
        if error is not None and not self._failing:
            _log.warning("answers do not reach the reply queue, and are pushed again: %s", error)
        elif error is None and self._failing:
            _log.warning("answers reach the reply queue again")
        self._failing = error is not None


def _wait_s(error: Exception, tries: int) -> float:
    """What the service asks for, else a back-off from half a second, spread so that not all come back at once."""
    asked = 0.0
    if isinstance(error, QueueError):
        asked = error.retry_after or SLOW_CODES.get(error.code or 0, 0.0)
    spread = random.uniform(0.5, 1.0)  # noqa: S311  guards nothing
    return max(asked, spread * min(_LONGEST_WAIT_S, 0.5 * 2.0 ** min(tries, 10)))
