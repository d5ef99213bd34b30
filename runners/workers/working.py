"""What a worker of ``--processes`` does: answers the stretches that it is sent, and reports."""

from __future__ import annotations

import logging
import os
import queue
import threading
from collections.abc import Iterator
from dataclasses import replace

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from llmdo.backends.collector import spare_the_collector
from llmdo.backends.engine.registry import (
    calls_made,
    close_engines,
    demand_of_engines,
    drain_engines,
    limits_of_engines,
    requests_in_batches,
    share_with_engines,
)
from llmdo.backends.limits.shares import Share
from llmdo.backends.money.grants import Denial, Grant, Grants, Reclaim
from llmdo.backends.money.limits import NO_LIMITS
from llmdo.backends.money.money import Budget
from llmdo.backends.money.prices import Prices
from llmdo.backends.telemetry.switch import flush_telemetry
from llmdo.pipelines.dealt import build_worker
from llmdo.pipelines.options import JsonlOptions
from llmdo.runners.direct import ARGUMENTS
from llmdo.runners.showing.logs import log_level, quieten
from llmdo.runners.temporary import temporary_files
from llmdo.runners.workers.wire import (
    Alive,
    Begin,
    Begun,
    Channel,
    Leave,
    LogLine,
    NoMore,
    WorkerEnded,
    WorkerReport,
)
from llmdo.storage.runs.runs import is_asleep
from llmdo.transforms.answers.leases import close_leases
from llmdo.transforms.elements import Idle, Mark, Read, Written
from llmdo.transforms.lines.stretches import Stretch, read_stretch
from llmdo.transforms.members import report_of
from llmdo.transforms.run import Run
from llmdo.transforms.run_state import state_of
from llmdo.transforms.state_cache import measure_state_cheaply

_log = logging.getLogger(__name__)

_REPORT_SECONDS = 0.5
# How long the reader waits for a stretch before the steps behind it are to emit what they have. Seconds.
_IDLE_S = 0.02
# When the run's process is gone, calls in flight have this long; soon after, the worker is killed. Seconds.
_LAST_CALLS_S = 8.0
# For the last shards, once calls have ended or were cancelled. Seconds.
_LAST_WRITES_S = 60.0


class Link:
    """A worker's side of the socket. Thread-safe."""

    def __init__(self, channel: Channel, begin: Begin) -> None:
        self._channel = channel
        self._run_id, self._drain_s = begin.run_id, begin.options.drain_seconds
        self._state = state = state_of(begin.run_id)
        self._alive: Alive | None = None
        self._share: Share | None = begin.share
        self._sharing = threading.Lock()
        self._ready = False
        self._stretches: queue.SimpleQueue[Stretch] = queue.SimpleQueue()
        self._quick: queue.SimpleQueue[Stretch] = queue.SimpleQueue()
        self._came = threading.Event()
        self._over = threading.Event()  # no more stretches come
        self._ended = threading.Event()
        limits = begin.options.limits
        grants = None if replace(limits, output=None) == NO_LIMITS else Grants(channel.send)
        state.budget = self._budget = Budget(limits, Prices(own=begin.options.own_prices), grants)
        state.stops_calls = True
        state.others_answered = lambda: self._alive is not None and self._alive.answered
        state.starter_asleep = lambda: self._alive is not None and is_asleep(self._alive.beat_at)
        state.shared(Link, lambda: self)

    def start(self) -> None:
        """Listens, and reports again and again."""
        for work in (self._listen, self._report_again):
            threading.Thread(target=work, name="llmdo-link", daemon=True).start()

    def begin(self) -> None:
        """The engine is there, and has no work yet: it keeps to the share of this worker from now on."""
        with self._sharing:
            self._ready = True
        if self._share is not None:
            self._use(self._share)

    def next(self) -> Stretch | None:
        """The next stretch to read, or None if there is none within a moment."""
        if self._quick.empty() and self._stretches.empty():
            self._came.wait(_IDLE_S)
        self._came.clear()
        return self.next_quick() or self._next_of(self._stretches)

    def next_quick(self) -> Stretch | None:
        """A stretch to read before the rest of a larger one."""
        return None if self._quick.empty() else self._next_of(self._quick)

    def _next_of(self, stretches: queue.SimpleQueue[Stretch]) -> Stretch | None:
        try:
            stretch = stretches.get_nowait()
        except queue.Empty:
            return None
        # The run must know what it died of if its first line ends this process.
        self._channel.send_and_wait(Begun(stretch.number))
        return stretch

    @property
    def over(self) -> bool:
        """Whether all that was sent is read, and no more comes."""
        return self._over.is_set() and self._stretches.empty() and self._quick.empty()

    def send(self, written: Written) -> None:
        """Passes on what was written."""
        self._channel.send(written)

    def report(self) -> None:
        """Reports what was done so far."""
        run_id = self._run_id
        self._channel.send(
            WorkerReport(
                report_of(self._state),
                calls_made(run_id),
                requests_in_batches(run_id),
                tuple(limits_of_engines(run_id)),
                demand_of_engines(run_id) if self._ready else None,
                self._budget.prices.used(),
            )
        )

    def end(self, problem: str) -> None:
        """The last message."""
        self._ended.set()
        self.report()
        self._channel.send(WorkerEnded(problem))
        self._channel.flush()

    def _report_again(self) -> None:
        while not self._ended.wait(_REPORT_SECONDS):
            self.report()

    def _listen(self) -> None:
        while True:
            try:
                message = self._channel.receive()
            except EOFError:
                break
            match message:
                case Stretch():
                    (self._quick if message.quick else self._stretches).put(message)
                    self._came.set()
                case Alive():
                    self._alive = message
                case Share():
                    self._use(message)
                case Grant() | Reclaim() | Denial():
                    self._budget.receive(message)
                case NoMore():
                    self._over.set()
                case Leave():
                    self._over.set()
                    threading.Thread(
                        target=self._leave, args=(message.reason,), name="llmdo-leave", daemon=True
                    ).start()
        if not self._ended.is_set():
            self._abandoned()

    def _use(self, share: Share) -> None:
        with self._sharing:
            self._share = share
            if self._ready:
                share_with_engines(share, self._run_id)

    def _leave(self, reason: str) -> None:
        """Ends the run in this process within ``drain_seconds``, and some for the last writes."""
        self._state.stop(reason)
        if not self._ended.wait(self._drain_s):
            close_engines(self._run_id)
            if not self._ended.wait(_LAST_WRITES_S):
                os._exit(1)

    def _abandoned(self) -> None:
        """The run's process is gone: what is in flight is kept in the ledger, and another run takes over the rest."""
        self._state.over = True
        drain_engines(_LAST_CALLS_S, _say_what_for, self._run_id)
        close_engines(self._run_id)
        close_leases(self._state)
        os._exit(1)


class _ToTheRun(logging.Handler):
    """Sends what is logged to the run's process, whose log it is."""

    def __init__(self, channel: Channel) -> None:
        super().__init__()
        self._channel = channel

    def emit(self, record: logging.LogRecord) -> None:
        self._channel.send(LogLine(record.name, record.levelno, record.getMessage()))


def read_dealt(_: None, options: JsonlOptions, run: Run) -> Iterator[Read | Mark]:
    """The lines of stretches as they come; endless until the run has no more, or stops."""
    ((link,), reading) = run.state.find(Link), options.reading
    link.begin()
    while not run.state.stopping:
        stretch = link.next()
        if stretch is not None:
            for one in read_stretch(stretch, reading, run):
                yield one
                quick = link.next_quick()
                if quick is not None:
                    yield from read_stretch(quick, reading, run)
        elif link.over:
            return
        else:
            yield Idle()


def send_written(written: Written, run: Run) -> None:
    """Passes on what was written."""
    for link in run.state.find(Link):
        link.send(written)


def _say_what_for(calls: int) -> None:
    _log.warning("waiting for %d calls in flight, to keep their answers", calls)


def work(channel: Channel, begin: Begin) -> int:
    """Works for a run; returns the exit code."""
    quieten(log_level())
    logging.getLogger().handlers[:] = [_ToTheRun(channel)]
    spare_the_collector()
    measure_state_cheaply()
    link = Link(channel, begin)
    link.start()
    problem = ""
    try:
        with temporary_files():
            pipeline = beam.Pipeline(options=PipelineOptions(list(ARGUMENTS)))
            build_worker(pipeline, begin.options, begin.run_id, read_dealt, send_written)
            pipeline.run().wait_until_finish()
    except Exception as error:  # noqa: BLE001  Beam wraps what a step raises in whatever its runner likes
        _log.debug("the pipeline of a worker failed", exc_info=error)
        problem = f"{type(error).__name__}: {error}"
        drain_engines(begin.options.drain_seconds, _say_what_for, begin.run_id)
    link.end(problem)
    close_engines(begin.run_id)
    close_leases(state_of(begin.run_id))
    flush_telemetry()
    return 1 if problem else 0
