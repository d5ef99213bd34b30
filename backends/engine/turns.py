"""Whose turn it is: the calls of an engine that wait, by model, and how many are in flight.

Of each model no more calls are in flight than its Throttle allows, and over all models no more than ``window``.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from llmdo.backends.errors import ModelError, StopRun
from llmdo.backends.limits.arrays import ArrayLimits
from llmdo.backends.limits.calls import Started
from llmdo.backends.limits.throttle import Throttle
from llmdo.backends.money.money import Budget
from llmdo.backends.requests import EmbedRequest, Request
from llmdo.backends.responses import Response

# Jobs that are taken in beyond the room while a service seems away, at first and at most.
LEAST_FURTHER, MOST_FURTHER = 32, 512


class NotStarted(Exception):
    """The run was stopped before this call."""


class TooManyTexts(Exception):
    """The service takes fewer texts a call, as was learnt meanwhile: the call is not made."""


@dataclass(frozen=True, slots=True, eq=False)
class _Turn:
    """A call that waits to be started. ``granted`` becomes None where it must not be."""

    provider: str
    request: Request
    paid: bool
    job: int | None
    fresh: bool
    suspect: bool
    granted: asyncio.Future[Started | None]


class _Line:
    """The calls of one model that wait for their turn; those that were tried before go first."""

    __slots__ = ("again", "paused", "refused", "refused_until", "throttle", "turns")

    def __init__(self, throttle: Throttle) -> None:
        self.throttle = throttle
        self.paused = False
        self.refused: ModelError | None = None
        self.refused_until = 0.0
        self.again: deque[_Turn] = deque()
        self.turns: deque[_Turn] = deque()

    def __len__(self) -> int:
        return len(self.again) + len(self.turns)

    def next(self) -> tuple[deque[_Turn], int]:
        """Where the next one stands. To see whether a service is back it is the last that came and was never tried:
        those that came right behind lines that failed may be like them.
        """
        if self.throttle.breaker.is_open:
            for at in range(len(self.turns) - 1, -1, -1):
                if self.turns[at].fresh:
                    return self.turns, at
        return self.again or self.turns, 0

    def send_away(self, error: ModelError | None = None) -> None:
        """Grants none of them; ``error`` says why, where it is not that the run was stopped."""
        for turns in (self.again, self.turns):
            for turn in turns:
                if turn.granted.done():
                    continue
                if error:
                    turn.granted.set_exception(error)
                else:
                    turn.granted.set_result(None)
            turns.clear()


class Turns:
    """See the module; used on the loop's thread. ``gate`` and ``budget``: see Engine; a StopRun of theirs goes to
    ``stop``, which must call ``close``. The calls of a provider whose prices are being read for the budget wait for
    them; others go on.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        window: int,
        throttle: Callable[[str, str], Throttle],
        gate: Callable[[], StopRun | None],
        budget: Budget | None,
        stop: Callable[[StopRun], None],
    ) -> None:
        self.in_flight = self.calls = 0
        self.closed = self.paused = False
        self.arrays = ArrayLimits()
        self._loop = loop
        self._window = window
        self._throttle = throttle
        self._gate = gate
        self._budget = budget
        self._stop = stop
        self._lines: dict[tuple[str, str], _Line] = {}
        self._unread: set[str] = set()  # providers whose prices calls wait, or waited, for
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_at = 0.0

    async def take(
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
        """Waits until a call may be made; it has its place in the window then, until ``give_back``.

        ``again``: it goes before first tries. ``paid``: the budget must have room for it. ``job``, ``suspect``: see
        Started. ``fresh``: the job was never tried. Raises NotStarted, TooManyTexts (see ``arrays``), PriceUnknown
        where the budget cannot admit calls of this model, and what it was refused with.
        """
        key = (provider, request.model)
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = _Line(self._throttle(*key))
        if self.closed:
            raise NotStarted
        if line.refused and self._loop.time() < line.refused_until:
            raise line.refused
        turn = _Turn(provider, request, paid, job, fresh, suspect, self._loop.create_future())
        (line.again if again else line.turns).append(turn)
        self.start()
        try:
            call = await turn.granted
        except asyncio.CancelledError:
            if self._budget and paid and turn.granted.done() and not turn.granted.cancelled():
                self._budget.give_back(request)  # it was granted, and is not made
            raise
        if call is None:
            raise NotStarted
        return call

    def give_back(self, provider: str, call: Started, response: Response | None, error: ModelError | None) -> None:
        """The place of a call that has ended; ``start`` then lets another one have it."""
        self.in_flight -= 1
        self._lines[provider, call.request.model].throttle.ended(call, response, error, self._loop.time())

    @property
    def further(self) -> int:
        """How many jobs more than there is room for are to be taken in, so that one that looks whether a service is
        back does not stand beside those that failed: ever more, while such calls fail.
        """
        outages = [line.throttle.breaker for line in self._lines.values() if line.throttle.breaker.is_open]
        return max((min(LEAST_FURTHER * 2 ** min(one.failed_probes, 8), MOST_FURTHER) for one in outages), default=0)

    def in_flight_of(self, key: tuple[str, str]) -> int:
        """Calls of a provider's model in flight."""
        line = self._lines.get(key)
        return line.throttle.in_flight if line else 0

    def throttle_of(self, key: tuple[str, str]) -> Throttle:
        """What holds the calls of a provider's model back, of which there was a call."""
        return self._lines[key].throttle

    def hold(self, key: tuple[str, str], paused: bool) -> None:
        """Starts no call of a provider's model, or goes on; ``start`` must be called then."""
        if line := self._lines.get(key):
            line.paused = paused

    def refuse(self, key: tuple[str, str], error: ModelError, seconds: float) -> None:
        """Raises an error to all that wait for a call of a provider's model, and for some time to those that come."""
        if line := self._lines.get(key):
            line.refused, line.refused_until = error, self._loop.time() + seconds
            line.send_away(error)

    def close(self) -> None:
        """Starts no further call; those that wait raise NotStarted."""
        self.closed = True
        self.pause()
        for line in self._lines.values():
            line.send_away()

    def pause(self) -> None:
        """Starts no further call, and leaves those that wait as they are; their tasks must be cancelled in the end."""
        self.paused = True
        if self._alarm:
            self._alarm.cancel()

    def throttles(self) -> list[tuple[str, str, Throttle]]:
        """Provider, model and what holds its calls back; from any thread."""
        return [(*key, line.throttle) for key, line in list(self._lines.items())]

    def start(self) -> None:
        """Starts all calls whose turn it is, and sets the alarm for the next one."""
        lines = [line for line in self._lines.values() if line and not line.paused]
        if lines and not self.paused and (error := self._gate()):
            self._stop(error)
        if self.paused:
            return
        if len(lines) > 1:
            lines.sort(key=lambda line: line.throttle.in_flight)
        now, soonest = self._loop.time(), float("inf")
        for line in lines:
            opens_at, room = 0.0, True
            while line and room and self.in_flight < self._window:
                opens_at = line.throttle.opens_at()
                if opens_at > now:
                    break
                room = self._launch(line, now)
            if self.paused:
                return
            held = len(line) if room and self.in_flight < self._window else 0
            line.throttle.look(held, now)
            soonest = min(soonest, opens_at) if opens_at > now else soonest
        if soonest < float("inf") and (self._alarm is None or soonest < self._alarm_at):
            if self._alarm:
                self._alarm.cancel()
            # uvloop's handle does not tell its time where that has come already.
            self._alarm, self._alarm_at = self._loop.call_at(soonest, self._wake), soonest

    def _wake(self) -> None:
        self._alarm = None
        self.start()

    def _launch(self, line: _Line, now: float) -> bool:
        """Starts the first call in line; says whether the budget has room for it."""
        turns, at = line.next()
        turn, budget = turns[at], self._budget
        if turn.granted.done():  # its task was cancelled
            del turns[at]
            return True
        if self._is_too_long(turn):
            del turns[at]
            turn.granted.set_exception(TooManyTexts())
            return True
        if budget and turn.paid:
            if self._awaits_prices(turn.provider, budget):
                return False
            error = budget.before(turn.provider, turn.request)
            if isinstance(error, StopRun):
                if not budget.can_wait():
                    self._stop(error)
                return False
            if error:
                del turns[at]
                turn.granted.set_exception(error)
                return True
        del turns[at]
        self.in_flight += 1
        self.calls += 1
        call = line.throttle.started(turn.request, now, turn.job, suspect=turn.suspect)
        turn.granted.set_result(call)
        return True

    def _is_too_long(self, turn: _Turn) -> bool:
        most = self.arrays.most(turn.provider, turn.request.model)
        return most is not None and isinstance(turn.request, EmbedRequest) and len(turn.request.texts) > most

    def _awaits_prices(self, provider: str, budget: Budget) -> bool:
        """Whether a provider's prices are still being read; ``start`` is called when they are there."""
        pending = budget.pending(provider)
        if pending is None:
            return False
        if provider not in self._unread:
            self._unread.add(provider)
            pending.add_done_callback(self._prices_are_there)
        return True

    def _prices_are_there(self, _: object) -> None:
        with suppress(RuntimeError):  # the loop was closed meanwhile
            self._loop.call_soon_threadsafe(self.start)
