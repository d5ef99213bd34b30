"""The engine's work on its event loop: each job's call, and what follows from how it ended.

A job is tried by a task of its own, which asks Recall and then waits for the Scheduler. A job that waits for its next
try has no task and does not count as in flight; it starts first when its time has come. The same holds for a job whose
try was ended by an outage (see Breaker), or whose refusal other calls must explain (see Verdicts).
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from llmdo.backends.connections import Connections
from llmdo.backends.engine.batch_polls import BatchPolls
from llmdo.backends.engine.batches import Batches
from llmdo.backends.engine.calls import JobCalls
from llmdo.backends.engine.jobs import Done, EngineStats, Job, Reservation, can_split, each_of, halves, parts, texts_of
from llmdo.backends.engine.recall import Recall
from llmdo.backends.engine.scheduler import NotStarted, Scheduler, TooManyTexts
from llmdo.backends.engine.settings import CallSettings
from llmdo.backends.engine.verdicts import HeldJob, Key, Verdicts, final_error
from llmdo.backends.errors import BadReply, CallTimeout, ConnectionFailed, ModelError, Retryable, StopRun
from llmdo.backends.limits.shares import Demand, Share
from llmdo.backends.limits.throttle import ModelLimits
from llmdo.backends.media.errors import MediaAway
from llmdo.backends.media.loader import MediaLoader
from llmdo.backends.media.parts import references_in
from llmdo.backends.money.lanes import WINDOWS
from llmdo.backends.requests import Request
from llmdo.backends.responses import EmbedResponse, Response

_WITH_MEDIA = "what it refers to is sent with a call"

_log = logging.getLogger(__name__)


class Dispatcher:
    """Tries jobs until each has its result. All methods but the reports are called on the loop's thread.

    Args:
        loop: the engine's event loop.
        connections: the backends.
        settings: those of the engine.
        recall: see Engine.
        free: gets a job's reservation with each of its deliveries.
        lend: gets the reservation of a job whose refusal is not decided yet, so that others can be taken in.
        look_further: gets the number of jobs to take in beyond the room, see Scheduler.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        connections: Connections,
        settings: CallSettings,
        recall: Recall | None,
        free: Callable[[Reservation], None],
        lend: Callable[[Reservation], None],
        look_further: Callable[[int], None],
    ) -> None:
        self.stopped: StopRun | None = None
        self.closing = False
        self._loop = loop
        self._connections = connections
        self._settings = settings
        self._recall = recall
        self._free = free
        self._lend = lend
        self._look_further = look_further
        self._random = random.Random()  # noqa: S311 - spreads waits, guards nothing
        self._tasks: dict[Job, asyncio.Task[None]] = {}
        self._waiting: dict[Job, asyncio.TimerHandle] = {}
        self._late: list[Job] = []  # that came while it was being closed
        self._retried = Counter[str]()
        self._scheduler = Scheduler(loop, settings, self.stop)
        self.arrays = self._scheduler.arrays
        self._calls = JobCalls(
            *(loop, self._scheduler, connections, settings),
            accepted=lambda provider, model, at: self._verdicts.answered((provider, model), at),
            closing=lambda: self.closing,
        )
        self._verdicts = Verdicts(
            loop, self._scheduler, self._busy, self._settle, self._condemn, settings.answered_before
        )
        self._media = MediaLoader(settings.media, settings.patience_s) if settings.media else None
        self.batches: Batches | None = None
        if settings.mode != "sync" or recall or settings.batches:
            polls = BatchPolls(loop, self._scheduler, settings, recall, self.stop, connections.final)
            self.batches = Batches(connections, polls, self._calls, settings)

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
        for held in self._verdicts.take_all():
            self._deliver(held.job, None, self.stopped, held.latency_s)
        self._scheduler.close()
        for waiter in (self.batches, self._media):
            if waiter:
                waiter.stop()

    def set_share(self, share: Share) -> None:
        """What may be used from now on."""
        self._scheduler.set_share(share)
        self._scheduler.start()

    def pause(self) -> None:
        """Starts no further call, and delivers nothing but the ends of those in flight."""
        self._scheduler.pause()

    @property
    def idle(self) -> bool:
        """Whether it was paused or stopped, and no call is in flight any more; from any thread."""
        return self._scheduler.paused and not self._scheduler.in_flight

    async def cancel(self) -> None:
        """Ends what runs; deliver_left() delivers the rest."""
        self.closing = True
        for timer in self._waiting.values():
            timer.cancel()
        self._scheduler.pause()
        self._scheduler.closed = True
        tasks = [*self._tasks.values(), *(self.batches.tasks if self.batches else ())]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._media:
            await self._media.aclose()

    def deliver_left(self, more: Iterable[Job], error: ModelError) -> None:
        """Delivers an error to all jobs that have no result yet, and to these."""
        held = [held.job for held in self._verdicts.take_all()]
        left = [*self._tasks, *self._waiting, *self._late, *held, *more]
        self._tasks.clear()
        self._waiting.clear()
        self._late.clear()
        for job in left:
            self._deliver(job, None, self.stopped or error, 0.0)

    # Reports, from any thread.

    def stats(self) -> EngineStats:
        """What was done so far."""
        throttles, now = [throttle for *_, throttle in self._scheduler.throttles()], self._loop.time()
        most = self._scheduler.window
        return EngineStats(
            calls=self._scheduler.calls,
            in_flight=self._scheduler.in_flight,
            batched=self.batches.waiting if self.batches else 0,
            rescues=self.batches.rescues if self.batches else {},
            retries=self._calls.retries,
            retried=dict(self._retried),
            window=min(most, sum(throttle.window for throttle in throttles) or most),
            throttled_s=max((throttle.held_back_s(now)[0] for throttle in throttles), default=0.0),
        )

    def limits(self) -> list[ModelLimits]:
        """What holds each model's calls back."""
        now = self._loop.time()
        return [throttle.report(provider, model, now) for provider, model, throttle in self._scheduler.throttles()]

    def demand(self) -> Demand:
        """What there is to do."""
        return self._scheduler.demand(len(self._waiting))

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
        key = job.provider, job.request.model
        try:
            response, error = await self._call(job)
        except TooManyTexts:
            del self._tasks[job]
            self._part(job)
            return
        now = self._loop.time()
        del self._tasks[job]
        latency_s = now - (job.call.at if job.call else began)
        if job.call:
            self._scheduler.give_back(job.provider, job.call, response, error)
            self._look_further(self._scheduler.further)
        if response:
            if job.call and isinstance(response, EmbedResponse):
                self.arrays.answered(job.provider, job.request.model, len(texts_of(job)), job.halved)
            self._deliver(job, response, None, latency_s)
            if job.call:
                self._verdicts.answered(key, job.call.at)
        elif error:
            if job.call and (final := final_error(self._scheduler, key, error, self._settings, now)):
                error = final
            if self._verdicts.leaves_open(key, error) and not self.stopped:
                self._lend(job.reservation)
                self._verdicts.hold(key, HeldJob(job, error, now, latency_s))
            else:
                self._handle(job, error, latency_s)
        self._verdicts.ended(key)
        if self._recall and self._recall.broken:
            self.stop(self._recall.broken)
        self._scheduler.start()

    async def _answer(self, job: Job) -> Response:
        media = self._media if self._media and references_in(job.request) else None
        asked = await media.pinned(job.request) if media else job.request

        async def call(request: Request) -> Response:
            if media:  # by itself: a batch would hold the bytes until it is full
                job.at_list = _WITH_MEDIA if self._settings.lane in WINDOWS else ""
                async with media.filled(request) as filled:
                    return await self._calls.answer(job, request, filled)
            began = self._loop.time()
            if self.batches and (response := await self.batches.answer(job, request)):
                self._verdicts.answered((job.provider, request.model), began)
                return response
            return await self._calls.answer(job, request, request)

        return await (self._recall.answer(job.provider, asked, call) if self._recall else call(asked))

    async def _call(self, job: Job) -> tuple[Response | None, ModelError | None]:
        model = job.request.model
        try:
            return await self._answer(job), None
        except NotStarted:
            return None, self.stopped
        except MediaAway as away:
            self.stop(away)  # whichever provider the line is for
            return None, self.stopped
        except TooManyTexts:
            raise
        except ModelError as known:
            error = known
        except TimeoutError:
            limit, seconds = self._settings.limits.naming.of("call_timeout_s"), self._settings.call_timeout_s
            error = CallTimeout(f"{model}: no answer within {seconds:g} s: raise {limit}, or ask for fewer tokens")
        except asyncio.CancelledError:
            if self.closing:
                raise
            error = ConnectionFailed(f"{model}: the call was cancelled: ask again")
        except Exception as surprise:  # noqa: BLE001 - one line's surprise must not end the others
            _log.exception("%s: unexpected error", model)
            error = BadReply(f"{model}: unexpected {type(surprise).__name__} ({str(surprise)[:200]}): report it")
        error.provider = error.provider or job.provider
        return None, error

    def _handle(self, job: Job, error: ModelError, latency_s: float) -> None:
        if isinstance(error, StopRun) and not self.stopped:
            error = self._connections.final(job.provider, job.request.model, error)
        if isinstance(error, StopRun):
            self.stop(error)
        tries = job.count(error)
        spent_s = 0.0 if job.began is None else self._loop.time() - job.began
        excused = isinstance(error, Retryable) and job.call is not None and job.call.excused
        postponed = excused and self._scheduler.throttle_of((job.provider, job.request.model)).breaker.is_open
        tries = job.tries if excused else tries
        paced = not self._settings.fixed
        wait_s = self._settings.retry.wait_s(error, tries, self._random, spent_s, excused=excused, paced=paced)
        wait_s = 0.0 if postponed else wait_s
        splits = wait_s is None and can_split(job, error)
        if self.stopped and (splits or wait_s is not None or error.about == "unclear"):
            self._deliver(job, None, self.stopped, latency_s)  # it had a call to come, which is not made
        elif wait_s is not None:
            self._retried[type(error).__name__] += 1
            if postponed:
                job.postponed, job.began = True, None
                self._begin(job)
            else:
                self._waiting[job] = self._loop.call_later(wait_s, self._again, job)
        elif splits:
            if self.arrays.refused(job.provider, job.request.model, texts_of(job), error.message):
                self._part(job)
            else:
                for half in halves(job):
                    self._begin(half)
        else:
            self._deliver(job, None, error, latency_s)

    def _part(self, job: Job) -> None:
        """Starts again with an array, in parts that the service takes, as far as that is known."""
        for part in parts(job, self.arrays.most(job.provider, job.request.model) or job.deliveries):
            self._begin(part)

    def _busy(self, key: Key) -> bool:
        return any((job.provider, job.request.model) == key for job in (*self._tasks, *self._waiting))

    def _settle(self, held: HeldJob, error: ModelError) -> None:
        self._handle(held.job, error, held.latency_s)

    def _condemn(self, key: Key, error: ModelError, held: Sequence[HeldJob]) -> None:
        error = self._connections.final(*key, error)
        if isinstance(error, StopRun):
            self.stop(error)
        for one in held:
            self._deliver(one.job, None, self.stopped or error, one.latency_s)
        self._scheduler.start()

    def _again(self, job: Job) -> None:
        del self._waiting[job]
        self._begin(job)

    def _deliver(self, job: Job, response: Response | None, error: ModelError | None, latency_s: float) -> None:
        attempts = job.earlier + job.tries
        spent_s = 0.0 if job.began is None else self._loop.time() - job.began
        for position, (part, problem) in enumerate(each_of(job, response, error)):
            self._free(job.reservation)  # first, so that a submitter that deliver() wakes finds room
            done = Done(part, problem, attempts, latency_s, spent_s)
            try:
                job.deliver(job.first + position, done)
            except Exception:  # noqa: BLE001 - the other jobs' deliveries must continue
                _log.exception("%s: deliver() failed: a result is lost", job.request.model)
