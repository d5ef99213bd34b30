"""The engine: all model calls of a process, submitted from any thread, made on one event loop of its own.

At most ``window`` calls are in flight; as many jobs again are taken in ahead, so that a thread that is busy for a
moment does not let the window run dry. A call that waits for its next try gives its place in the window up, and is
first in line when its time has come: slow retries delay nobody but themselves. It still counts as taken in, so memory
stays bounded and a service that refuses everything slows the submitters down.
"""

from __future__ import annotations

import asyncio
import atexit
import functools
import gc
import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from backends.connections import Connections
from backends.errors import BadReply, CallTimeout, ConnectionFailed, EngineClosed, ModelError, StopRun
from backends.ir import EmbedRequest, EmbedResponse, Request, Response
from backends.jobs import Done, Job, Place, can_split, halves, one_each
from backends.protocol import Backend, connect
from backends.recall import Recall
from backends.retry import THREE_TRIES, Retry

CALL_TIMEOUT_S = 180.0  # of one try, all in all; Workers AI itself ends a call after 120 to 240 s
GOODBYE_S = 10.0  # how long close() waits for the loop, which a provider or a deliver() may hold
LOOK_S = 1.0  # how often a waiting submitter looks whether the loop's thread still lives

_log = logging.getLogger(__name__)

__all__ = [
    "Done",
    "Engine",
    "EngineStats",
    "calls_in_flight",
    "calls_made",
    "close_engines",
    "get_engine",
    "stop_engines",
]


@dataclass(frozen=True, slots=True)
class EngineStats:
    """What an engine has done so far.

    Attributes:
        calls: calls started, retries and the parts of split arrays included.
        in_flight: calls running now; ``most_in_flight``: the most there ever were.
        succeeded: deliveries with a response, each text of an array counted; ``failed``: those with an error.
        retries: calls that repeated a failed one.
    """

    calls: int
    in_flight: int
    most_in_flight: int
    succeeded: int
    failed: int
    retries: int
    input_tokens: int
    output_tokens: int


class Engine:
    """See the module. ``deliver`` is called on the loop's thread, once for each job, in the order of completion; it
    must be quick and must not block.

    The first StopRun error stops the engine: whatever is not in flight, and whatever is submitted later, is delivered
    that error without a call. A submitter that finds the engine closed, or its thread dead, gets EngineClosed raised.

    ``recall`` is asked before each call and told right after it; a call's place in the window is free only then.
    ``gate`` is asked before calls are started; an error that it gives stops the engine.
    """

    def __init__(
        self,
        *,
        window: int,
        retry: Retry = THREE_TRIES,
        connect: Callable[[str], Backend] = connect,
        call_timeout_s: float = CALL_TIMEOUT_S,
        recall: Recall | None = None,
        gate: Callable[[], StopRun | None] = lambda: None,
    ) -> None:
        _spare_the_collector()
        self._window = window
        self._retry = retry
        self._timeout_s = call_timeout_s
        self._recall = recall
        self._gate = gate
        self._random = random.Random()  # noqa: S311 - spreads waits, guards nothing
        self._connections = Connections(connect)
        self._room = threading.Condition()  # guards the next four
        self._taken = 0
        self._inbox: deque[Job] = deque()
        self._called = False
        self._over = False

        # Touched by the loop's thread only.
        self._ready: deque[Job] = deque()
        self._waiting: dict[Job, asyncio.TimerHandle] = {}
        self._running: dict[Job, asyncio.Task[None]] = {}
        self._stopped: StopRun | None = None
        self._calls = self._most = self._succeeded = self._failed = self._retries = self._input = self._output = 0

        self._closing = asyncio.Event()
        self._runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
        self._loop = self._runner.get_loop()
        self._thread = threading.Thread(target=self._live, name="llmdo-engine", daemon=True)
        self._thread.start()

    def try_submit(self, provider: str, request: Request, deliver: Callable[[Done], None]) -> bool:
        """Takes a job in, or says False when there is no room; see wait_for_room. Raises EngineClosed."""
        return self._take_in(Job(provider, request, lambda _, done: deliver(done), Place(1)), wait=False)

    def submit(self, provider: str, request: Request, deliver: Callable[[Done], None]) -> None:
        """Takes a job in; waits until there is room. Raises EngineClosed."""
        self._take_in(Job(provider, request, lambda _, done: deliver(done), Place(1)), wait=True)

    def submit_texts(
        self,
        provider: str,
        model: str,
        texts: Sequence[str],
        parameters: Mapping[str, Any],
        deliver: Callable[[int, Done], None],
        *,
        line_ids: Sequence[str] = (),
        wait: bool = True,
    ) -> bool:
        """Embeds at most ``max_texts`` texts with one call; delivers each text's index with a Done of one vector.

        An array that is refused for its content is split in halves until each bad text stands alone. The usage of a
        call is shared among its texts by their length; the sum is the call's. ``line_ids`` name the line of each text,
        for Recall. With ``wait=False`` like try_submit.
        """
        if not texts:
            return True
        request = EmbedRequest(model, tuple(texts), parameters, line_ids=tuple(line_ids))
        return self._take_in(Job(provider, request, deliver, Place(len(texts)), apart=True), wait=wait)

    def wait_for_room(self, timeout_s: float) -> bool:
        """Waits until a job can be taken in, at most ``timeout_s`` s; says whether one can. Raises EngineClosed."""
        with self._room:
            return self._wait(timeout_s)

    def max_texts(self, provider: str, model: str) -> int:
        """How many texts an embedding call of this model takes. Raises ModelError where there is no such provider."""
        return self._connections.get(provider).max_texts(model)

    @property
    def stopped(self) -> StopRun | None:
        """The error that stopped the engine, or None."""
        return self._stopped

    @property
    def usable(self) -> bool:
        """Whether jobs can be submitted: not closed, and the thread lives."""
        return not self._over and self._thread.is_alive()

    def stats(self) -> EngineStats:
        """What has been done so far; from any thread."""
        return EngineStats(
            calls=self._calls,
            in_flight=len(self._running),
            most_in_flight=self._most,
            succeeded=self._succeeded,
            failed=self._failed,
            retries=self._retries,
            input_tokens=self._input,
            output_tokens=self._output,
        )

    def stop(self, error: StopRun) -> None:
        """Starts no further call: jobs that are not in flight, and later ones, are delivered ``error``."""
        with self._room:
            if self.usable:
                self._loop.call_soon_threadsafe(self._stop_now, error)

    def close(self) -> None:
        """Cancels what runs, delivers EngineClosed to every job left, closes the backends. Can be called again."""
        with self._room:
            if not self._over and self._thread.is_alive():
                self._loop.call_soon_threadsafe(self._closing.set)
        if threading.current_thread() is not self._thread:
            self._thread.join(GOODBYE_S)

    # Taking in, on the submitters' threads.

    def _take_in(self, job: Job, *, wait: bool) -> bool:
        with self._room:
            if not self._wait(None if wait else 0.0):
                return False
            self._taken += 1
            self._inbox.append(job)
            if not self._called:
                self._called = True
                self._loop.call_soon_threadsafe(self._open_inbox)
            return True

    def _wait(self, timeout_s: float | None) -> bool:
        end = None if timeout_s is None else time.monotonic() + timeout_s
        while self._check() and self._taken >= 2 * self._window:
            left = LOOK_S if end is None else min(LOOK_S, end - time.monotonic())
            if left <= 0:
                return False
            if threading.current_thread() is self._thread:
                raise RuntimeError("deliver() waits for room in the engine that calls it: use try_submit there")
            self._room.wait(left)
        return True

    def _check(self) -> bool:
        if not self.usable:
            raise EngineClosed("the engine that calls the models is closed: start the run again")
        return True

    # The loop's thread.

    def _live(self) -> None:
        try:
            with self._runner:
                try:
                    self._runner.run(self._main())
                finally:
                    with self._room:
                        self._over = True
                        self._room.notify_all()
        finally:
            self._deliver_rest()

    async def _main(self) -> None:
        await self._closing.wait()
        with self._room:
            self._over = True
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._connections.aclose()
        if self._recall:
            await self._recall.aclose()

    def _deliver_rest(self) -> None:
        error = self._stopped or EngineClosed("the engine was closed before the call ended: start the run again")
        left = [*self._running, *self._waiting, *self._ready, *self._inbox]
        for jobs in (self._running, self._waiting, self._ready, self._inbox):
            jobs.clear()
        for job in left:
            self._deliver(job, None, error, 0.0)

    def _open_inbox(self) -> None:
        with self._room:
            self._called = False
            self._ready.extend(self._inbox)
            self._inbox.clear()
        self._start_calls()

    def _start_calls(self) -> None:
        if self._ready and not self._stopped and (error := self._gate()):
            self._stop(error)
        while self._ready and self._stopped:
            self._deliver(self._ready.popleft(), None, self._stopped, 0.0)
        while self._ready and len(self._running) < self._window:
            job = self._ready.popleft()
            self._running[job] = self._loop.create_task(self._try(job))
        self._most = max(self._most, len(self._running))

    async def _try(self, job: Job) -> None:
        started = time.perf_counter()
        response, error = await self._call(job)
        latency_s = time.perf_counter() - started
        del self._running[job]
        if response:
            self._deliver(job, response, None, latency_s)
        elif error:
            self._handle(job, error, latency_s)
        if self._recall and self._recall.broken:
            self._stop(self._recall.broken)
        self._start_calls()

    async def _answer(self, job: Job) -> Response:
        async def call(request: Request) -> Response:
            self._calls += 1
            self._retries += bool(job.tries)
            job.tries += 1
            return await self._connections.answer(job.provider, request, self._timeout_s)

        return await (self._recall.answer(job.provider, job.request, call) if self._recall else call(job.request))

    async def _call(self, job: Job) -> tuple[Response | None, ModelError | None]:
        model, error = job.request.model, None
        try:
            return await self._answer(job), None
        except ModelError as known:
            error = known
        except TimeoutError:
            error = CallTimeout(f"{model}: no answer within {self._timeout_s:g} s: ask for fewer tokens")
        except asyncio.CancelledError:
            if self._over:
                raise
            error = ConnectionFailed(f"{model}: the call was cancelled: ask again")
        except Exception as surprise:  # noqa: BLE001 - one line's surprise must not end the others
            _log.exception("%s: unexpected error", model)
            error = BadReply(f"{model}: unexpected {type(surprise).__name__} ({str(surprise)[:200]}): report it")
        error.provider = error.provider or job.provider
        return None, error

    def _handle(self, job: Job, error: ModelError, latency_s: float) -> None:
        if isinstance(error, StopRun):
            self._stop(error)
        wait_s = self._retry.wait_s(error, job.tries, self._random)
        splits = wait_s is None and can_split(job, error)
        if self._stopped and (splits or wait_s is not None):
            self._deliver(job, None, self._stopped, latency_s)  # it had a call to come, which is not made
        elif wait_s is not None:
            self._waiting[job] = self._loop.call_later(wait_s, self._again, job)
        elif splits:
            self._ready.extendleft(reversed(halves(job)))
        else:
            self._deliver(job, None, error, latency_s)

    def _again(self, job: Job) -> None:
        del self._waiting[job]
        self._ready.appendleft(job)
        self._start_calls()

    def _stop_now(self, error: StopRun) -> None:
        self._stop(error)
        self._start_calls()

    def _stop(self, error: StopRun) -> None:
        self._stopped = self._stopped or error
        for job, timer in self._waiting.items():
            timer.cancel()
            self._ready.append(job)
        self._waiting.clear()

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

    def _free(self, place: Place) -> None:
        place.open -= 1
        if not place.open:
            with self._room:
                self._taken -= 1
                self._room.notify()


@functools.cache
def _spare_the_collector() -> None:
    """Takes what is loaded by now out of the garbage collector's rounds, once a process.

    With Beam in memory a full round stops the loop, and with it all calls, for some 60 ms.
    """
    gc.collect()
    gc.freeze()


# A module global and not an attribute of a DoFn class: Beam pickles classes of __main__ with all that hangs on them.
_engines: dict[tuple[int, Retry, str], Engine] = {}
_opening = threading.Lock()


def get_engine(
    window: int,
    retry: Retry = THREE_TRIES,
    run_id: str = "",
    *,
    open_recall: Callable[[], Recall | None] = lambda: None,
    gate: Callable[[], StopRun | None] = lambda: None,
) -> Engine:
    """The process's engine with these settings; all threads and all DoFn instances share it.

    One that was closed is replaced. One that was stopped stays so: a later run in this process has another ``run_id``,
    or calls close_engines() first. ``open_recall`` and ``gate`` are those of the first who asks.
    """
    key = (window, retry, run_id)
    with _opening:
        engine = _engines.get(key)
        if engine is None or not engine.usable:
            engine = _engines[key] = Engine(window=window, retry=retry, recall=open_recall(), gate=gate)
        return engine


def calls_made() -> int:
    """Calls that the engines of get_engine have started."""
    with _opening:
        return sum(engine.stats().calls for engine in _engines.values())


def calls_in_flight() -> int:
    """Calls of the engines of get_engine that run at this moment."""
    with _opening:
        return sum(engine.stats().in_flight for engine in _engines.values())


def stop_engines(error: StopRun) -> None:
    """Lets the engines of get_engine finish the calls in flight, and start none."""
    with _opening:
        for engine in _engines.values():
            engine.stop(error)


def close_engines() -> None:
    """Closes all engines of get_engine; called at the process's end."""
    with _opening:
        engines = list(_engines.values())
        _engines.clear()
    for engine in engines:
        engine.close()


atexit.register(close_engines)
