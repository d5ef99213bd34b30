"""Per-model queues of waiting calls.

A call starts when its model's throttle and the engine-wide window both have room.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from llmdo.backends.engine.settings import CallSettings
from llmdo.backends.errors import ModelError, StopRun
from llmdo.backends.limits.arrays import ArrayLimits
from llmdo.backends.limits.breaker import REQUESTS, Breaker
from llmdo.backends.limits.call_speed import CallSpeed
from llmdo.backends.limits.calls import Started
from llmdo.backends.limits.prefixes import FirstAhead
from llmdo.backends.limits.rates import Rates
from llmdo.backends.limits.shares import Demand, ProviderModel, Share
from llmdo.backends.limits.throttle import Throttle
from llmdo.backends.money.money import Budget
from llmdo.backends.money.prices import caching_pays
from llmdo.backends.providers import published_rates
from llmdo.backends.requests import EmbedRequest, Request
from llmdo.backends.responses import Response

# Jobs taken in beyond the room while a service seems away: at first, and at most.
LEAST_FURTHER, MOST_FURTHER = 32, 512


class NotStarted(Exception):
    """The run was stopped before this call."""


class TooManyTexts(Exception):
    """The service takes fewer texts a call, as was learnt meanwhile: the call is not made."""


@dataclass(slots=True, eq=False)
class _WaitingCall:
    """A call that waits to be started; ``granted`` becomes None if it must not be."""

    provider: str
    request: Request
    paid: bool
    job: int | None
    fresh: bool
    suspect: bool
    granted: asyncio.Future[Started | None]


class _ModelQueue:
    """The waiting calls of one model: retries start before first tries."""

    __slots__ = ("first_tries", "paused", "refused", "refused_until", "retries", "throttle")

    def __init__(self, throttle: Throttle) -> None:
        self.throttle = throttle
        self.paused = False
        self.refused: ModelError | None = None
        self.refused_until = 0.0
        self.retries: deque[_WaitingCall] = deque()
        self.first_tries: deque[_WaitingCall] = deque()

    def __len__(self) -> int:
        return len(self.retries) + len(self.first_tries)

    def next(self) -> tuple[deque[_WaitingCall], int]:
        """The deque and index of the call to start next.

        While the service seems away, that is the newest call that was never tried: those that came right behind lines
        that failed may be like them.
        """
        if self.throttle.breaker.is_open:
            for at in range(len(self.first_tries) - 1, -1, -1):
                if self.first_tries[at].fresh:
                    return self.first_tries, at
        return self.retries or self.first_tries, 0

    def send_away(self, error: ModelError | None = None) -> None:
        """Grants none of the calls; they raise ``error``, or NotStarted without one."""
        for calls in (self.retries, self.first_tries):
            for waiting in calls:
                if waiting.granted.done():
                    continue
                if error:
                    waiting.granted.set_exception(error)
                else:
                    waiting.granted.set_result(None)
            calls.clear()


class Scheduler:
    """Starts the calls of all models, each when there is room for it; used on the loop's thread.

    Args:
        loop: the engine's event loop.
        settings: those of the engine. While a provider's prices are being read for the budget, its calls wait, and
            others start.
        stop: gets the error that ends the run, of the gate or the budget; it must call ``close``.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, settings: CallSettings, stop: Callable[[StopRun], None]
    ) -> None:
        self.in_flight = self.calls = 0
        self.closed = self.paused = False
        self.arrays = ArrayLimits()
        self._prefixes = FirstAhead(caching_pays)
        self._loop, self._settings, self._stop = loop, settings, stop
        self._gate, self._budget = settings.gate, settings.budget
        self._share = Share(settings.window)
        self._queues: dict[tuple[str, str], _ModelQueue] = {}
        self._unread: set[str] = set()  # providers whose prices calls wait, or waited, for
        self._granted: Future[None] | None = None  # what calls wait, or waited, for that lack a budget's grant
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_at = 0.0

    async def take(self, provider: str, request: Request, **how: Any) -> Started:
        """As ``_take``, with its arguments, once no call with the same long beginning is ahead: see FirstAhead."""
        await self._prefixes.wait(provider, request)
        try:
            return await self._take(provider, request, **how)
        except BaseException:
            self._prefixes.ended(request)
            raise

    async def _take(
        self,
        provider: str,
        request: Request,
        *,
        again: bool,
        paid: bool = True,
        job: int | None = None,
        fresh: bool = False,
        suspect: bool = False,
    ) -> Started:
        """Waits until a call may be made. It counts as in flight from then on, until ``give_back``.

        Args:
            provider: the provider's name.
            request: what is asked.
            again: whether it precedes first tries.
            paid: whether the budget must have room for it.
            job: see Started.
            fresh: whether the job was never tried.
            suspect: see Started.

        Raises NotStarted, TooManyTexts (see ``arrays``), PriceUnknown if the budget cannot admit calls of this model,
        and the error given to ``refuse``.
        """
        key = (provider, request.model)
        queue = self._queues.get(key)
        if queue is None:
            queue = self._queues[key] = _ModelQueue(self._new_throttle(*key))
        if self.closed:
            raise NotStarted
        if queue.refused and self._loop.time() < queue.refused_until:
            raise queue.refused
        waiting = _WaitingCall(provider, request, paid, job, fresh, suspect, self._loop.create_future())
        (queue.retries if again else queue.first_tries).append(waiting)
        self.start()
        try:
            call = await waiting.granted
        except asyncio.CancelledError:
            if self._budget and paid and waiting.granted.done() and not waiting.granted.cancelled():
                self._budget.give_back(request)  # it was granted, and is not made
            raise
        if call is None:
            raise NotStarted
        return call

    def give_back(self, provider: str, call: Started, response: Response | None, error: ModelError | None) -> None:
        """Takes note that a call has ended; call ``start`` next, which starts another one in its place."""
        self.in_flight -= 1
        self._prefixes.ended(call.request)
        self._queues[provider, call.request.model].throttle.ended(call, response, error, self._loop.time())

    @property
    def window(self) -> int:
        """Calls of all models in flight at most; from any thread."""
        return self._share.window

    @property
    def further(self) -> int:
        """Jobs to take in beyond the room while a service seems away; doubles with each probe that fails.

        A probe should not be a job that came right behind those that failed.
        """
        outages = [queue.throttle.breaker for queue in self._queues.values() if queue.throttle.breaker.is_open]
        return max((min(LEAST_FURTHER * 2 ** min(one.failed_probes, 8), MOST_FURTHER) for one in outages), default=0)

    def in_flight_of(self, key: tuple[str, str]) -> int:
        """Calls of a provider's model in flight."""
        return 0 if (queue := self._queues.get(key)) is None else queue.throttle.in_flight

    def speed_of(self, provider: str, model: str) -> tuple[CallSpeed, int]:
        """What is known of a model's calls, and how many are in flight or wait."""
        queue = self._queues.get((provider, model))
        throttle = self._new_throttle(provider, model) if queue is None else queue.throttle
        return throttle.speed, throttle.in_flight + len(queue or ())

    def throttle_of(self, key: tuple[str, str]) -> Throttle:
        """The throttle of a provider's model that was called before."""
        return self._queues[key].throttle

    def hold(self, key: tuple[str, str], paused: bool) -> None:
        """Holds back all calls of a provider's model, or lets them start again; call ``start`` then."""
        if (queue := self._queues.get(key)) is not None:
            queue.paused = paused

    def refuse(self, key: tuple[str, str], error: ModelError, seconds: float) -> None:
        """Raises an error to all waiting calls of a provider's model, and to those that come within ``seconds``."""
        if (queue := self._queues.get(key)) is not None:
            queue.refused, queue.refused_until = error, self._loop.time() + seconds
            queue.send_away(error)

    def close(self) -> None:
        """Starts no further call; those that wait raise NotStarted."""
        self.closed = True
        self.pause()
        for queue in self._queues.values():
            queue.send_away()

    def pause(self) -> None:
        """Starts no further call; those that wait stay waiting until their tasks are cancelled."""
        self.paused = True
        if self._alarm:
            self._alarm.cancel()

    def throttles(self) -> list[tuple[str, str, Throttle]]:
        """Provider, model and throttle of all models; from any thread."""
        return [(*key, queue.throttle) for key, queue in list(self._queues.items())]

    def demand(self, waiting: int) -> Demand:
        """What this process has to do; ``waiting``: jobs between two tries. From any thread."""
        queues = list(self._queues.items())
        return Demand(
            self._share.window,
            self.in_flight,
            waiting + sum(len(queue) for _, queue in queues),
            {key: queue.throttle.pace() for key, queue in queues},
            {key: self._rates(key, 1.0).per_s for key, _ in queues},
        )

    def set_share(self, share: Share) -> None:
        """What this process may use from now on, of what several share; call ``start`` next."""
        self._share = share
        for key, queue in self._queues.items():
            queue.throttle.set_share(share.window, self._rates(key, share.part), share.paces.get(key))

    def start(self) -> None:
        """Starts all calls for which there is room, and sets the alarm for the next one."""
        queues = [queue for queue in self._queues.values() if queue and not queue.paused]
        if queues and not self.paused and (error := self._gate()):
            self._stop(error)
        if self.paused:
            return
        window = self._share.window
        if len(queues) > 1:
            queues.sort(key=lambda queue: queue.throttle.in_flight)
        now, soonest = self._loop.time(), float("inf")
        for queue in queues:
            opens_at, room = 0.0, True
            while queue and room and self.in_flight < window:
                opens_at = queue.throttle.opens_at()
                if opens_at > now:
                    break
                room = self._launch(queue, now)
            if self.paused:
                return
            held = len(queue) if room and self.in_flight < window else 0
            queue.throttle.look(held, now)
            soonest = min(soonest, opens_at) if opens_at > now else soonest
        if soonest < float("inf") and (self._alarm is None or soonest < self._alarm_at):
            if self._alarm:
                self._alarm.cancel()
            # uvloop's handle does not know its time once that has come.
            self._alarm, self._alarm_at = self._loop.call_at(soonest, self._wake), soonest

    def _new_throttle(self, provider: str, model: str) -> Throttle:
        asked, share = self._settings, self._share
        breaker = Breaker(f"{provider}/{model}", asked.patience_s, min(REQUESTS, 2 * asked.window))
        rates = self._rates((provider, model), share.part)
        return Throttle(share.window, rates, breaker, asked.first_window, asked.retry.deadline_s, fixed=asked.fixed)

    def _rates(self, key: ProviderModel, part: float) -> Rates:
        asked = self._settings
        return asked.rates.or_else(published_rates(*key)).shared_by(asked.workers / part)

    def _wake(self) -> None:
        self._alarm = None
        self.start()

    def _launch(self, queue: _ModelQueue, now: float) -> bool:
        """Starts the next call of a queue; returns whether the budget has room for it."""
        calls, at = queue.next()
        waiting, budget = calls[at], self._budget
        if waiting.granted.done():  # its task was cancelled
            del calls[at]
            return True
        if self._is_too_long(waiting):
            del calls[at]
            waiting.granted.set_exception(TooManyTexts())
            return True
        if budget and waiting.paid:
            if self._awaits_prices(waiting.provider, budget):
                return False
            error = budget.before(waiting.provider, waiting.request)
            if isinstance(error, StopRun):
                if not budget.can_wait():
                    self._stop(error)
                elif (granted := budget.awaited()) is not None and granted is not self._granted:
                    self._granted = granted
                    granted.add_done_callback(self._start_soon)
                return False
            if error:
                del calls[at]
                waiting.granted.set_exception(error)
                return True
        del calls[at]
        self.in_flight += 1
        self.calls += 1
        call = queue.throttle.started(waiting.request, now, waiting.job, suspect=waiting.suspect)
        waiting.granted.set_result(call)
        return True

    def _is_too_long(self, waiting: _WaitingCall) -> bool:
        most = self.arrays.most(waiting.provider, waiting.request.model)
        return most is not None and isinstance(waiting.request, EmbedRequest) and len(waiting.request.texts) > most

    def _awaits_prices(self, provider: str, budget: Budget) -> bool:
        """Whether a provider's prices are still being read; ``start`` is called when they are there."""
        pending = budget.pending(provider)
        if pending is None:
            return False
        if provider not in self._unread:
            self._unread.add(provider)
            pending.add_done_callback(self._start_soon)
        return True

    def _start_soon(self, _: object) -> None:
        with suppress(RuntimeError):  # the loop was closed meanwhile
            self._loop.call_soon_threadsafe(self.start)
