"""The engine's work on its event loop: whose turn it is, the call, and what follows from how it ended.

A job is tried by a task of its own, which asks Recall and then waits for its turn among the calls of its model. No
more than ``window`` calls are in flight over all models. A job that waits for its next try has no task, and no place in
the window; it is first in line when its time has come.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from backends.connections import Connections
from backends.engine_stats import EngineStats, Latencies
from backends.errors import BadReply, CallTimeout, ConnectionFailed, ModelError, StopRun
from backends.ir import EmbedRequest, EmbedResponse, Request, Response
from backends.jobs import Done, Job, Place, can_split, halves, one_each
from backends.money import Budget
from backends.recall import Recall
from backends.retry import Retry
from backends.throttle import ModelLimits, Throttle

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Settings:
    """What a Dispatcher keeps to; see Engine."""

    window: int
    retry: Retry
    call_timeout_s: float
    recall: Recall | None
    gate: Callable[[], StopRun | None]
    budget: Budget | None
    throttle: Callable[[str, str], Throttle]


@dataclass(frozen=True, slots=True)
class _Turn:
    """A call that waits to be started. ``granted`` becomes False where it must not be."""

    job: Job
    request: Request
    granted: asyncio.Future[bool]


class _Line:
    """The calls of one model that wait for their turn; those that were tried before go first."""

    __slots__ = ("again", "throttle", "turns")

    def __init__(self, throttle: Throttle) -> None:
        self.throttle = throttle
        self.again: deque[_Turn] = deque()
        self.turns: deque[_Turn] = deque()

    def __len__(self) -> int:
        return len(self.again) + len(self.turns)

    @property
    def first(self) -> deque[_Turn]:
        """Where the next one stands."""
        return self.again or self.turns

    def send_away(self) -> None:
        """Grants none of them."""
        for turns in (self.again, self.turns):
            for turn in turns:
                if not turn.granted.done():
                    turn.granted.set_result(False)
            turns.clear()


class _NotStarted(Exception):
    """The run was stopped before this call."""


class Dispatcher:
    """See the module. All methods but the reports are called on the loop's thread; ``free`` gets each place used."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        connections: Connections,
        settings: Settings,
        free: Callable[[Place], None],
    ) -> None:
        self.stopped: StopRun | None = None
        self.closing = False
        self._loop = loop
        self._connections = connections
        self._settings = settings
        self._free = free
        self._random = random.Random()  # noqa: S311 - spreads waits, guards nothing
        self._lines: dict[tuple[str, str], _Line] = {}
        self._tasks: dict[Job, asyncio.Task[None]] = {}
        self._waiting: dict[Job, asyncio.TimerHandle] = {}
        self._late: list[Job] = []  # that came while it was being closed
        self._alarm: asyncio.TimerHandle | None = None
        self._in_flight = self._most = 0
        self._calls = self._succeeded = self._failed = self._retries = self._input = self._output = 0
        self._retried: Counter[str] = Counter()
        self._latencies = Latencies()

    def add(self, jobs: Iterable[Job]) -> None:
        """Takes jobs in."""
        for job in jobs:
            self._begin(job)

    def stop(self, error: StopRun) -> None:
        """Starts no further call; delivers the first such error to all jobs that are not in flight."""
        self.stopped = self.stopped or error
        waiting = list(self._waiting.items())
        self._waiting.clear()
        for job, timer in waiting:
            timer.cancel()
            self._deliver(job, None, self.stopped, 0.0)
        for line in self._lines.values():
            line.send_away()

    async def cancel(self) -> None:
        """Ends what runs; deliver_left() delivers the rest."""
        self.closing = True
        for timer in self._waiting.values():
            timer.cancel()
        if self._alarm:
            self._alarm.cancel()
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def deliver_left(self, more: Iterable[Job], error: ModelError) -> None:
        """Delivers an error to all jobs that have no result yet, and to these."""
        left = [*self._tasks, *self._waiting, *self._late, *more]
        self._tasks.clear()
        self._waiting.clear()
        self._late.clear()
        for job in left:
            self._deliver(job, None, self.stopped or error, 0.0)

    # Reports, from any thread.

    def stats(self) -> EngineStats:
        """What was done so far."""
        lines, now = list(self._lines.items()), self._loop.time()
        held_back = [line.throttle.held_back_s(now) for _, line in lines]
        windows = {f"{provider}/{model}": line.throttle.window for (provider, model), line in lines}
        return EngineStats(
            calls=self._calls,
            in_flight=self._in_flight,
            most_in_flight=self._most,
            succeeded=self._succeeded,
            failed=self._failed,
            retries=self._retries,
            input_tokens=self._input,
            output_tokens=self._output,
            retried=dict(self._retried),
            window=min(self._settings.window, sum(windows.values())) if windows else self._settings.window,
            throttled_s=max((seconds for seconds, _ in held_back), default=0.0),
            waited_s=sum(seconds for _, seconds in held_back),
            calls_by_model={f"{provider}/{model}": line.throttle.calls for (provider, model), line in lines},
            windows=windows,
            latency_s=self._latencies.sum_s,
            most_latency_s=self._latencies.most_s,
            latencies=tuple(self._latencies.classes),
        )

    def limits(self) -> list[ModelLimits]:
        """What holds each model's calls back."""
        now = self._loop.time()
        return [line.throttle.report(provider, model, now) for (provider, model), line in list(self._lines.items())]

    # Turns.

    def _begin(self, job: Job) -> None:
        if self.stopped:
            self._deliver(job, None, self.stopped, 0.0)
        elif self.closing:
            self._late.append(job)
        else:
            self._tasks[job] = self._loop.create_task(self._try(job))

    async def _turn(self, job: Job, request: Request) -> None:
        """Waits until the call may be made; it has its place in the window then. Raises _NotStarted."""
        key = (job.provider, request.model)
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = _Line(self._settings.throttle(*key))
        if self.stopped:
            raise _NotStarted
        turn = _Turn(job, request, self._loop.create_future())
        (line.again if job.again else line.turns).append(turn)
        self._start()
        if not await turn.granted:
            raise _NotStarted

    def _start(self) -> None:
        """Starts all calls whose turn it is, and sets the alarm for the next one."""
        lines = [line for line in self._lines.values() if line]
        if lines and not self.stopped and (error := self._settings.gate()):
            self.stop(error)
        if self.stopped or self.closing:
            return
        if len(lines) > 1:
            lines.sort(key=lambda line: line.throttle.in_flight)
        now, soonest = self._loop.time(), float("inf")
        for line in lines:
            opens_at, room = 0.0, True
            while line and room and self._in_flight < self._settings.window:
                opens_at = line.throttle.opens_at()
                if opens_at > now:
                    break
                room = self._launch(line, now)
            if self.stopped:
                return
            held = len(line) if room and self._in_flight < self._settings.window else 0
            line.throttle.look(held, now)
            soonest = min(soonest, opens_at) if opens_at > now else soonest
        if soonest < float("inf") and (self._alarm is None or soonest < self._alarm.when()):
            if self._alarm:
                self._alarm.cancel()
            self._alarm = self._loop.call_at(soonest, self._wake)

    def _wake(self) -> None:
        self._alarm = None
        self._start()

    def _launch(self, line: _Line, now: float) -> bool:
        """Starts the first call in line; says whether the budget has room for it."""
        turns, budget = line.first, self._settings.budget
        turn = turns[0]
        if turn.granted.done():  # its task was cancelled
            turns.popleft()
            return True
        error = budget.before(turn.job.provider, turn.request) if budget else None
        if error:
            if not (budget and budget.can_wait()):
                self.stop(error)
            return False
        turns.popleft()
        turn.job.call = line.throttle.started(turn.request, now)
        if turn.job.began is None:
            turn.job.began = now
        self._in_flight += 1
        self._most = max(self._most, self._in_flight)
        self._calls += 1
        self._retries += bool(turn.job.tries)
        turn.job.tries += 1
        turn.granted.set_result(True)
        return True

    # One try of one job.

    async def _try(self, job: Job) -> None:
        began, job.call = self._loop.time(), None
        response, error = await self._call(job)
        now = self._loop.time()
        del self._tasks[job]
        latency_s = now - began
        if job.call:
            latency_s = now - job.call.at
            self._latencies.add(latency_s)
            self._in_flight -= 1
            self._lines[job.provider, job.request.model].throttle.ended(job.call, response, error, now)
        if response:
            self._deliver(job, response, None, latency_s)
        elif error:
            self._handle(job, error, latency_s, now)
        if self._settings.recall and self._settings.recall.broken:
            self.stop(self._settings.recall.broken)
        self._start()

    async def _answer(self, job: Job) -> Response:
        async def call(request: Request) -> Response:
            await self._turn(job, request)
            response = None
            try:
                response = await self._connections.answer(job.provider, request, self._settings.call_timeout_s)
            finally:
                if self._settings.budget:
                    self._settings.budget.after(job.provider, request, response)
            return response

        recall = self._settings.recall
        return await (recall.answer(job.provider, job.request, call) if recall else call(job.request))

    async def _call(self, job: Job) -> tuple[Response | None, ModelError | None]:
        model = job.request.model
        try:
            return await self._answer(job), None
        except _NotStarted:
            return None, self.stopped
        except ModelError as known:
            error = known
        except TimeoutError:
            error = CallTimeout(f"{model}: no answer within {self._settings.call_timeout_s:g} s: ask for fewer tokens")
        except asyncio.CancelledError:
            if self.closing:
                raise
            error = ConnectionFailed(f"{model}: the call was cancelled: ask again")
        except Exception as surprise:  # noqa: BLE001 - one line's surprise must not end the others
            _log.exception("%s: unexpected error", model)
            error = BadReply(f"{model}: unexpected {type(surprise).__name__} ({str(surprise)[:200]}): report it")
        error.provider = error.provider or job.provider
        return None, error

    def _handle(self, job: Job, error: ModelError, latency_s: float, now: float) -> None:
        if isinstance(error, StopRun):
            self.stop(error)
        tries = job.count(error)
        spent_s = 0.0 if job.began is None else now - job.began
        wait_s = self._settings.retry.wait_s(error, tries, self._random, spent_s)
        splits = wait_s is None and can_split(job, error)
        if self.stopped and (splits or wait_s is not None):
            self._deliver(job, None, self.stopped, latency_s)  # it had a call to come, which is not made
        elif wait_s is not None:
            self._retried[type(error).__name__] += 1
            self._waiting[job] = self._loop.call_later(wait_s, self._again, job)
        elif splits:
            for half in halves(job):
                self._begin(half)
        else:
            self._deliver(job, None, error, latency_s)

    def _again(self, job: Job) -> None:
        del self._waiting[job]
        self._begin(job)

    def _deliver(self, job: Job, response: Response | None, error: ModelError | None, latency_s: float) -> None:
        attempts = job.earlier + job.tries
        if response:
            self._input += response.usage.input_tokens
            self._output += response.usage.output_tokens
        each: Sequence[Response | None] = [response] * job.deliveries
        if job.apart and isinstance(response, EmbedResponse) and isinstance(job.request, EmbedRequest):
            each = one_each(response, job.request.texts)
        for position, part in enumerate(each):
            self._succeeded += error is None
            self._failed += error is not None
            self._free(job.place)  # first, so that a submitter that deliver() wakes finds room
            done = Done(part, error, attempts, latency_s)
            try:
                job.deliver(job.first + position, done)
            except Exception:  # noqa: BLE001 - the other jobs' deliveries go on
                _log.exception("%s: deliver() failed: a result is lost", job.request.model)
