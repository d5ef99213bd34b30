"""The engine's work on its event loop: whose turn it is, the call, and what follows from how it ended.

A job is tried by a task of its own, which asks Recall and then waits for its turn among the calls of its model. No
more than ``window`` calls are in flight over all models. A job that waits for its next try has no task, and no place in
the window; it is first in line when its time has come.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from backends.batch_work import BatchWork
from backends.batches import Batches, Mode
from backends.connections import Connections
from backends.engine_stats import EngineStats, Latencies
from backends.errors import BadReply, CallTimeout, ConnectionFailed, ModelError, StopRun
from backends.ir import EmbedRequest, EmbedResponse, Request, Response
from backends.jobs import Done, Job, Place, can_split, halves, one_each, parts, texts_sent
from backends.money import Budget
from backends.openai_shapes import unusable_vector
from backends.recall import Recall
from backends.retry import Retry
from backends.throttle import ModelLimits, Throttle
from backends.turns import NotStarted, TooManyTexts, Turns

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
    mode: Mode = "sync"


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
        self._tasks: dict[Job, asyncio.Task[None]] = {}
        self._waiting: dict[Job, asyncio.TimerHandle] = {}
        self._late: list[Job] = []  # that came while it was being closed
        self._succeeded = self._failed = self._retries = self._input = self._output = 0
        self._retried: Counter[str] = Counter()
        self._latencies = Latencies()
        budget, recall = settings.budget, settings.recall
        self._turns = Turns(loop, settings.window, settings.throttle, settings.gate, budget, self.stop)
        self.arrays = self._turns.arrays
        self._batches: Batches | None = None
        if settings.mode != "sync" or recall:
            work = BatchWork(loop, self._turns, settings.retry, settings.call_timeout_s, recall, budget, self.stop)
            self._batches = Batches(settings.mode, connections, work)

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
        self._turns.close()
        if self._batches:
            self._batches.stop()

    def pause(self) -> None:
        """Starts no further call, and delivers nothing but the ends of those in flight."""
        self._turns.pause()

    @property
    def idle(self) -> bool:
        """Whether it was paused or stopped, and no call is in flight any more; from any thread."""
        return self._turns.paused and not self._turns.in_flight

    async def cancel(self) -> None:
        """Ends what runs; deliver_left() delivers the rest."""
        self.closing = True
        for timer in self._waiting.values():
            timer.cancel()
        self._turns.pause()
        self._turns.closed = True
        tasks = [*self._tasks.values(), *(self._batches.tasks if self._batches else ())]
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
        turns, now = self._turns, self._loop.time()
        throttles = turns.throttles()
        held_back = [throttle.held_back_s(now) for *_, throttle in throttles]
        windows = {f"{provider}/{model}": throttle.window for provider, model, throttle in throttles}
        return EngineStats(
            calls=turns.calls,
            in_flight=turns.in_flight,
            most_in_flight=turns.most,
            batched=self._batches.waiting if self._batches else 0,
            succeeded=self._succeeded,
            failed=self._failed,
            retries=self._retries,
            input_tokens=self._input,
            output_tokens=self._output,
            retried=dict(self._retried),
            window=min(self._settings.window, sum(windows.values())) if windows else self._settings.window,
            throttled_s=max((seconds for seconds, _ in held_back), default=0.0),
            waited_s=sum(seconds for _, seconds in held_back),
            calls_by_model={f"{provider}/{model}": throttle.calls for provider, model, throttle in throttles},
            windows=windows,
            latency_s=self._latencies.sum_s,
            most_latency_s=self._latencies.most_s,
            latencies=tuple(self._latencies.classes),
        )

    def limits(self) -> list[ModelLimits]:
        """What holds each model's calls back."""
        now = self._loop.time()
        return [throttle.report(provider, model, now) for provider, model, throttle in self._turns.throttles()]

    # One try of one job.

    def _begin(self, job: Job) -> None:
        if self.stopped:
            self._deliver(job, None, self.stopped, 0.0)
        elif self.closing:
            self._late.append(job)
        else:
            self._tasks[job] = self._loop.create_task(self._try(job))

    async def _try(self, job: Job) -> None:
        began, job.call = self._loop.time(), None
        try:
            response, error = await self._call(job)
        except TooManyTexts:
            del self._tasks[job]
            self._part(job)
            return
        now = self._loop.time()
        del self._tasks[job]
        latency_s = now - began
        if job.call:
            latency_s = now - job.call.at
            self._latencies.add(latency_s)
            self._turns.give_back(job.provider, job.call, response, error)
        if response:
            if job.call and isinstance(response, EmbedResponse):
                self.arrays.answered(job.provider, job.request.model, len(texts_sent(job)), job.halved)
            self._deliver(job, response, None, latency_s)
        elif error:
            if error.usage:
                self._input += error.usage.input_tokens
                self._output += error.usage.output_tokens
            self._handle(job, error, latency_s, now)
        if self._settings.recall and self._settings.recall.broken:
            self.stop(self._settings.recall.broken)
        self._turns.start()

    async def _answer(self, job: Job) -> Response:
        async def call(request: Request) -> Response:
            if self._batches and (response := await self._batches.answer(job, request)):
                return response
            await self._turn(job, request)
            ended: Response | ModelError | None = None
            try:
                ended = await self._connections.answer(job.provider, request, self._settings.call_timeout_s)
            except ModelError as error:
                ended = error
                raise
            finally:
                if self._settings.budget:
                    self._settings.budget.after(job.provider, request, ended)
            return ended

        recall = self._settings.recall
        return await (recall.answer(job.provider, job.request, call) if recall else call(job.request))

    async def _turn(self, job: Job, request: Request) -> None:
        """Waits until the call may be made. Raises NotStarted."""
        job.call = await self._turns.take(job.provider, request, again=job.again)
        if job.began is None:
            job.began = job.call.at
        self._retries += bool(job.tries)
        job.tries += 1

    async def _call(self, job: Job) -> tuple[Response | None, ModelError | None]:
        model = job.request.model
        try:
            return await self._answer(job), None
        except NotStarted:
            return None, self.stopped
        except TooManyTexts:
            raise
        except ModelError as known:
            error = known
        except TimeoutError:
            said = f"{model}: no answer within {self._settings.call_timeout_s:g} s"
            error = CallTimeout(f"{said}: raise --call-timeout, or ask for fewer tokens")
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
            if self.arrays.refused(job.provider, job.request.model, texts_sent(job), error.message):
                self._part(job)
            else:
                for half in halves(job):
                    self._begin(half)
        else:
            self._deliver(job, None, error, latency_s)

    def _part(self, job: Job) -> None:
        """Begins with an array anew, in parts that the service takes, as far as that is known."""
        for part in parts(job, self.arrays.most(job.provider, job.request.model) or job.deliveries):
            self._begin(part)

    def _again(self, job: Job) -> None:
        del self._waiting[job]
        self._begin(job)

    def _deliver(self, job: Job, response: Response | None, error: ModelError | None, latency_s: float) -> None:
        attempts = job.earlier + job.tries
        spent_s = 0.0 if job.began is None else self._loop.time() - job.began
        if response:
            self._input += response.usage.input_tokens
            self._output += response.usage.output_tokens
        each: Sequence[Response | None] = [response] * job.deliveries
        if job.apart and isinstance(response, EmbedResponse) and isinstance(job.request, EmbedRequest):
            each = one_each(response, job.request.texts)
        for position, part in enumerate(each):
            self._free(job.place)  # first, so that a submitter that deliver() wakes finds room
            done = Done(part, error, attempts, latency_s, spent_s)
            if job.apart and isinstance(part, EmbedResponse) and part.vectors == ((),):  # the others keep theirs
                unusable = unusable_vector(part.model, job.provider, part.request_id, part.usage)
                done = Done(None, unusable, attempts, latency_s, spent_s)
            self._succeeded += done.error is None
            self._failed += done.error is not None
            try:
                job.deliver(job.first + position, done)
            except Exception:  # noqa: BLE001 - the other jobs' deliveries go on
                _log.exception("%s: deliver() failed: a result is lost", job.request.model)
