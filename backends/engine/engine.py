"""The engine: all model calls of a process, submitted from any thread, made on one event loop of its own.

At most ``window`` calls are in flight; as many jobs again are taken in ahead, so that a submitter that is busy for a
moment does not let the window run dry. A job that waits, for its turn or its next try, still counts as taken in: memory
stays bounded, and a service that refuses everything slows the submitters down.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError
from typing import Any

import uvloop

from llmdo.backends.backend import Backend
from llmdo.backends.connections import Connections
from llmdo.backends.engine.dispatch import Dispatcher
from llmdo.backends.engine.intake import Intake, Room
from llmdo.backends.engine.jobs import Done, EngineStats, Job, Reservation
from llmdo.backends.engine.recall import Recall
from llmdo.backends.engine.settings import CallSettings
from llmdo.backends.errors import EngineClosed, StopRun
from llmdo.backends.lanes.records import BatchRecord
from llmdo.backends.limits.shares import Demand, Share
from llmdo.backends.limits.throttle import ModelLimits
from llmdo.backends.money.lanes import WINDOWS
from llmdo.backends.providers import connect
from llmdo.backends.requests import EmbedRequest, Request

# Of what waits in batches no more is taken in: one of the largest (50,000 requests) fits, and what comes behind it.
BATCH_ITEMS, BATCH_SIZE = 60_000, 200_000_000
_LOOK_S = 0.02  # how often it looks whether they have ended
UNAWAITED_S = 120.0  # for how long the end of a run looks at batches whose answers no file waits for
GOODBYE_S = 10.0  # how long close() waits for the loop, which a provider or a deliver() may hold

_log = logging.getLogger(__name__)


class Engine:
    """Makes the calls that are submitted to it, from any thread, on an event loop in a thread of its own.

    Each job's ``deliver`` is called on the loop's thread, once for each result, in the order of completion; it must be
    quick and must not block. The first StopRun stops the engine: jobs that are not in flight, and later ones, get that
    error without a call. Submitting to an engine that is closed, or whose thread is dead, raises EngineClosed.

    Args:
        settings: see CallSettings. A batch has ``retry.deadline_s`` s to be answered.
        connect: opens the backend of a provider, when it is first called.
        recall: looks each request up before its call, and keeps each answer right after it. Only then may another
            call start in its place. None: nothing is kept.
    """

    def __init__(
        self, settings: CallSettings, connect: Callable[[str], Backend] = connect, recall: Recall | None = None
    ) -> None:
        self._recall, self._window = recall, settings.window
        self._connections = Connections(connect, settings.own, flex=settings.lane == "flex")
        self._over = False  # guarded by the intake's lock
        self._closing = asyncio.Event()
        self._runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        self._loop = self._runner.get_loop()
        jobs = 2 * settings.window
        calls_only = settings.mode == "sync" and settings.lane not in WINDOWS
        room = Room(jobs) if calls_only else Room(jobs, BATCH_ITEMS, BATCH_SIZE)
        self._intake = taken = Intake(self._loop, room, lambda: self.usable, self._begin)
        self._work = Dispatcher(
            self._loop, self._connections, settings, recall, taken.free, taken.lend, taken.look_further
        )
        if recall:  # the lines of a batch that is out are fetched together, in any mode
            recall.submissions.found = functools.partial(taken.widen, BATCH_ITEMS, BATCH_SIZE)
        self._thread = threading.Thread(target=self._live, name="llmdo-engine", daemon=True)
        self._thread.start()

    def submit(self, provider: str, request: Request, deliver: Callable[[Done], None], *, wait: bool = True) -> bool:
        """Takes a job in, and waits until there is room; with ``wait=False`` it returns False if there is none.

        Raises EngineClosed.
        """
        return self._intake.take(Job(provider, request, lambda _, done: deliver(done), Reservation(1)), wait=wait)

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

        An array that is refused for its content is split in halves until each bad text stands alone. A call's usage is
        shared among its texts by length. ``line_ids``: each text's line, for Recall. ``wait``: see submit.
        """
        if not texts:
            return True
        request = EmbedRequest(model, tuple(texts), parameters, line_ids=tuple(line_ids))
        return self._intake.take(Job(provider, request, deliver, Reservation(len(texts)), apart=True), wait=wait)

    def wait_for_room(self, timeout_s: float) -> bool:
        """Waits until a job can be taken in, at most ``timeout_s`` s; returns whether one can. Raises EngineClosed."""
        return self._intake.wait(timeout_s)

    def max_texts(self, provider: str, model: str) -> int:
        """How many texts an embedding call of this model takes. Raises ModelError where there is no such provider."""
        return self._connections.get(provider).max_texts(model)

    def array_size(self, provider: str, model: str) -> int:
        """How many texts to submit together: ``max_texts``, or fewer where the service was found to take no more."""
        most = self.max_texts(provider, model)
        return min(most, self._work.arrays.most(provider, model) or most)

    @property
    def stopped(self) -> StopRun | None:
        """The error that stopped the engine, or None."""
        return self._work.stopped

    @property
    def usable(self) -> bool:
        """Whether jobs can be submitted: not closed, and the thread lives."""
        return not self._over and self._thread.is_alive()

    @property
    def window(self) -> int:
        """Calls in flight at most, as it was opened."""
        return self._window

    def stats(self) -> EngineStats:
        """What has been done so far; from any thread."""
        return self._work.stats()

    def limits(self) -> list[ModelLimits]:
        """What holds each model's calls back, with the changes that led there; from any thread."""
        return self._work.limits()

    def demand(self) -> Demand:
        """What there is to do, by which several processes share what they may use; from any thread."""
        return self._work.demand()

    def set_share(self, share: Share) -> None:
        """What may be used from now on, of what several processes share: see ``demand``."""
        with self._intake.lock:
            if self.usable:
                self._loop.call_soon_threadsafe(self._work.set_share, share)
        self._intake.resize(2 * max(share.window, self._window))

    def stop(self, error: StopRun) -> None:
        """Starts no further call: jobs that are not in flight, and later ones, are delivered ``error``."""
        with self._intake.lock:
            if self.usable:
                self._loop.call_soon_threadsafe(self._work.stop, error)

    def pause(self) -> None:
        """Starts no further call until ``stop`` or ``close``; only the ends of calls in flight are delivered."""
        with self._intake.lock:
            if self.usable:
                self._loop.call_soon_threadsafe(self._work.pause)

    @property
    def idle(self) -> bool:
        """Whether it was paused or stopped, and no call is in flight any more: what was answered is kept."""
        return not self.usable or self._work.idle

    @property
    def keeps_answers(self) -> bool:
        """Whether it has a ledger."""
        return self._recall is not None

    def close_unawaited(self, is_awaited: Callable[[BatchRecord], bool]) -> None:
        """Ends batches of earlier runs that no line waits for, see Batches; called when all jobs have ended."""
        with self._intake.lock:
            if not self.usable or self.stopped or not (batches := self._work.batches):
                return
            ended = asyncio.run_coroutine_threadsafe(batches.close_unawaited(is_awaited), self._loop)
        try:
            ended.result(UNAWAITED_S)
        except (TimeoutError, CancelledError):
            ended.cancel()  # a later run does it
        except Exception:  # noqa: BLE001 - what else the run's end has to close must be closed
            _log.exception("batches whose answers no file waits for could not be looked at")

    def close(self, drain_s: float = 0.0) -> None:
        """Cancels what runs, delivers EngineClosed to every job left, closes the backends. Can be called again.

        Calls in flight have ``drain_s`` s to end before; none is started.
        """
        if drain_s:
            self.pause()
            end = time.monotonic() + drain_s
            while not self.idle and time.monotonic() < end:
                time.sleep(_LOOK_S)
        with self._intake.lock:
            if not self._over and self._thread.is_alive():
                self._loop.call_soon_threadsafe(self._closing.set)
        if threading.current_thread() is not self._thread:
            self._thread.join(GOODBYE_S)

    # The loop's thread.

    def _live(self) -> None:
        try:
            with self._runner:
                try:
                    self._runner.run(self._main())
                finally:
                    with self._intake.lock:
                        self._over = True
                        self._intake.lock.notify_all()
        finally:
            error = EngineClosed("the engine was closed before the call ended: start the run again")
            self._work.deliver_left(self._intake.left(), error)

    def _begin(self, jobs: list[Job]) -> None:
        self._work.add(jobs)

    async def _main(self) -> None:
        await self._closing.wait()
        with self._intake.lock:
            self._over = True
        await self._work.cancel()
        await self._connections.aclose()
        if self._recall:
            await self._recall.aclose()
