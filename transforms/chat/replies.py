"""Pushes response events to the reply queue: many in a call, in order, and repeatedly until the queue has them."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol

from pydantic_core import to_json

from llmdo.storage.chat.records import ChatMessage
from llmdo.storage.errors import QueueError
from llmdo.storage.queues.api import SLOW_CODES
from llmdo.storage.queues.client import MAX_BATCH, MAX_MESSAGE_BYTES
from llmdo.transforms.chat.events import started

# The API's limit for one user is 1,200 calls in 5 minutes
# (developers.cloudflare.com/fundamentals/api/reference/limits): a burst of BURST, then one every EVERY_S.
BURST, EVERY_S = 40, 0.26
# If less than half of the burst is left, a call waits for more events: until none has arrived for _QUIET_S, at most
# _GATHER_S. Seconds.
_QUIET_S, _GATHER_S = 0.03, 0.1
# What the queue has not accepted after this long is left to the sweep of the log. Seconds.
PUSH_PATIENCE_S = 240.0
_LONGEST_WAIT_S = 30.0

ResponseEventFields = Mapping[str, Any]
_log = logging.getLogger(__name__)


class AnsweredElsewhere(Exception):
    """Another instance answers the message, or has: the answer is to be found in the log soon."""


class ReplySink(Protocol):
    """Where responses go; used on one event loop.

    Attributes:
        most_bytes: how large an event may be, as JSON.
    """

    most_bytes: int

    def answering(self, message: ChatMessage) -> AbstractAsyncContextManager[None]:
        """Announces that a message is being answered, as long as the context lasts.

        Raises AnsweredElsewhere if another instance answers it.
        """

    async def push(self, events: Sequence[ResponseEventFields]) -> bool:
        """Pushes an answer; returns whether readers have it, and otherwise it is pushed again some time later."""

    def stop(self) -> None:
        """Lets nothing be retried from now on."""


def fits(event: ResponseEventFields, most_bytes: int) -> bool:
    """Whether an event has at most this many bytes as JSON."""
    try:
        return len(to_json(event)) <= most_bytes
    except ValueError:
        return False


@dataclass(frozen=True, slots=True, eq=False)
class _Parcel:
    """Events that are pushed together; ``sent`` gets None, or the error. None: nobody waits for them."""

    events: Sequence[ResponseEventFields]
    sent: asyncio.Future[Exception | None] | None


class Replies:
    """A ReplySink that pushes events with ``push_many`` (see QueueClient), which blocks.

    One call is made at a time, with all events that arrived during the last one, so that their order is kept.
    """

    most_bytes = MAX_MESSAGE_BYTES

    def __init__(
        self,
        push_many: Callable[[list[ResponseEventFields]], object],
        every_s: float = EVERY_S,
        patience_s: float = PUSH_PATIENCE_S,
        burst: int = BURST,
    ) -> None:
        self._push_many = push_many
        self._every_s = every_s
        self._burst = burst
        self._patience_s = patience_s
        self._waiting: deque[_Parcel] = deque()
        self._sender: asyncio.Task[None] | None = None
        self._last = 0.0  # when the last event arrived, in the loop's time
        self._full_at = float("-inf")  # when the whole burst is available again
        self._failing = False
        self._stopped = asyncio.Event()

    def tell(self, *events: ResponseEventFields) -> None:
        """Tries once to push events that may be lost."""
        self._add(_Parcel(events, None))

    @asynccontextmanager
    async def answering(self, message: ChatMessage) -> AsyncIterator[None]:
        """Pushes the event that announces an answer."""
        self.tell(started(message, time.time()))
        yield

    async def push(self, events: Sequence[ResponseEventFields]) -> bool:
        """Pushes events, retrying for ``patience_s`` s or until ``stop``; returns whether the queue has them."""
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
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopped.wait(), wait)
                return False

    def stop(self) -> None:
        """Lets nothing be retried from now on."""
        self._stopped.set()

    def _add(self, parcel: _Parcel) -> None:
        loop = asyncio.get_running_loop()
        self._last = loop.time()
        self._waiting.append(parcel)
        if self._sender is None:
            self._sender = loop.create_task(self._send_all())

    async def _send_all(self) -> None:
        while self._waiting:
            await self._call_is_due()
            parcels = self._next_call()
            error: Exception | None = None
            try:
                await asyncio.to_thread(self._push_many, [one for parcel in parcels for one in parcel.events])
            except Exception as problem:  # noqa: BLE001 - whatever it is, the events are in the log and are retried
                error = problem
            self._log_change(error)
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

    def _next_call(self) -> list[_Parcel]:
        parcels = [self._waiting.popleft()]
        count = len(parcels[0].events)
        while self._waiting and count + len(self._waiting[0].events) <= MAX_BATCH:
            parcels.append(self._waiting.popleft())
            count += len(parcels[-1].events)
        return parcels

    def _log_change(self, error: Exception | None) -> None:
        if error is not None and not self._failing:
            _log.warning("answers do not reach the reply queue and will be pushed again: %s", error)
        elif error is None and self._failing:
            _log.warning("answers reach the reply queue again")
        self._failing = error is not None


def _wait_s(error: Exception, tries: int) -> float:
    """What the service asks for, else a back-off that starts at half a second, with jitter."""
    asked = 0.0
    if isinstance(error, QueueError):
        asked = error.retry_after or SLOW_CODES.get(error.code or 0, 0.0)
    spread = random.uniform(0.5, 1.0)  # noqa: S311  not for security
    return max(asked, spread * min(_LONGEST_WAIT_S, 0.5 * 2.0 ** min(tries, 10)))
