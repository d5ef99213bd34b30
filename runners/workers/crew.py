"""The workers of ``--processes``: starts them, deals stretches out to them, and replaces those that die."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import count

from llmdo.backends.money.grants import Ask, Return
from llmdo.backends.money.spent import Spent
from llmdo.pipelines.options import JsonlOptions
from llmdo.pipelines.run_options import RunOptions
from llmdo.runners.servers import stop_tied
from llmdo.runners.workers.dealt_stretches import DealtStretch, recover
from llmdo.runners.workers.reports import error_of_worker, spent_by_worker, sum_of_workers, with_past
from llmdo.runners.workers.shared_budget import SharedBudget
from llmdo.runners.workers.shared_limits import SharedLimits
from llmdo.runners.workers.wire import (
    Alive,
    Begun,
    FromWorker,
    Leave,
    LogLine,
    NoMore,
    WorkerEnded,
    WorkerReport,
)
from llmdo.runners.workers.worker_process import SaidOnce, WorkerProcess, start_worker, worker_for
from llmdo.transforms.elements import OpenFile, Written
from llmdo.transforms.lines.deal import Dealing
from llmdo.transforms.lines.stretches import Stretch
from llmdo.transforms.run import Run
from llmdo.transforms.run_state import NOTHING_ELSEWHERE, Elsewhere

_log = logging.getLogger(__name__)

# A run fails when more workers than these died one after the other, and nothing came from any of them in between.
MOST_DEATHS = 3
# A worker that reports nothing for this long is killed. Seconds in which this process was awake.
LONGEST_SILENCE = 60.0
# How often the run's limits are shared out anew, and workers hear that it lives. Seconds.
SHARE_SECONDS, ALIVE_SECONDS = 0.5, 2.0
_LOOK_SECONDS = 0.1
# After --drain-seconds a worker has 60 s for its last shards; then it is killed. Seconds.
_LAST_SECONDS = 75.0


class WorkerFailed(RuntimeError):
    """The pipeline of a worker failed, or workers die again and again."""


class Crew:
    """At most ``most`` workers of one run: a Dealer. Thread-safe.

    A worker starts when there is a stretch for it. One that dies is replaced: what it has written is found in the
    output, and the rest of its stretches is dealt out again; paid answers are in the ledger.
    """

    def __init__(self, options: JsonlOptions, run: Run) -> None:
        self._options, self._run, self._state = options, run, run.state
        self._changed = threading.Condition()
        self._workers: list[WorkerProcess] = []
        self._past = NOTHING_ELSEWHERE
        self._numbers = count(1)
        self._back: list[Written] = []
        self._lost: list[DealtStretch] = []
        self._again: list[DealtStretch] = []
        self._suspects: list[DealtStretch] = []
        self._deaths = 0  # since something came back
        self._failure: WorkerFailed | None = None
        self._leaving = False
        self._said = SaidOnce()
        self._limits = SharedLimits(options.concurrency.calls, self.most)
        self._budget = SharedBudget(self._state.budget or options.new_budget())
        self._over = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="llmdo-crew", daemon=True)
        self._watcher.start()

    @property
    def most(self) -> int:
        """See Dealer. A worker has at least one call in flight."""
        return min(self._options.processes, self._options.concurrency.calls)

    def offer(self, element: OpenFile, start: int, stop: int) -> bool:
        """See Dealer."""
        with self._changed:
            self._deal_again()
            dealt = DealtStretch(Stretch(next(self._numbers), element, start, stop))
            waiting = any(one.stretch.quick == dealt.stretch.quick for one in self._again)
            return not waiting and self._place(dealt)

    def take(self, seconds: float) -> list[Written]:
        """See Dealer. Raises WorkerFailed and StorageError."""
        with self._changed:
            self._deal_again()
            if seconds and not (self._back or self._lost or self._failure):
                self._changed.wait(seconds)
            if self._failure:
                raise self._failure
            back, self._back = self._back, []
            lost, self._lost = self._lost, []
        for dealt in lost:
            found, rest = recover(self._run, dealt, next(self._numbers))
            back += found
            with self._changed:
                if rest is None:
                    self._deaths = 0  # none of them will die of it any more
                else:
                    (self._suspects if rest.deaths else self._again).append(rest)
        return back

    @property
    def busy(self) -> bool:
        """See Dealer."""
        with self._changed:
            if self._back or self._lost or self._failure:
                return True
            if self._state.stopping:
                return bool(self._workers)
            return bool(self._again or self._suspects or any(worker.dealt for worker in self._workers))

    def elsewhere(self) -> Elsewhere:
        """What all workers do and have done."""
        with self._changed:
            return sum_of_workers([worker.report for worker in self._workers if worker.report], self._past)

    def close(self, reason: str = "") -> None:
        """Waits until all workers have ended; with a ``reason`` they leave what is undone."""
        with self._changed:
            if reason and self._workers:
                _log.warning(
                    "the pipeline failed: waiting for calls in flight, to keep their answers; Ctrl-C exits at once"
                )
                self._leave(reason)
            for worker in self._workers:
                worker.channel.send(NoMore())
            in_time = self._options.drain_seconds + _LAST_SECONDS
            if not self._changed.wait_for(lambda: not self._workers, in_time):
                _log.warning("%d workers have not ended: they are killed", len(self._workers))
        self._over.set()
        self._watcher.join()
        for worker in self._workers:
            worker.process.kill()
            stop_tied(worker.process)

    # Under the lock.

    def _place(self, dealt: DealtStretch) -> bool:
        """Sends a stretch to the worker with the least to read, or to a new one; False if none has room.

        One that a worker died of has its next worker to itself: others must not be taken for deadly with it.
        """
        if self._state.stopping or self._failure or self._leaving:
            return False
        few_calls, suspect = self._limits.few_calls, dealt.deaths > 0
        most, alone = 1 if few_calls else self.most, any(worker.reads_alone for worker in self._workers)
        kept = bool(self._lost or self._suspects) and not (suspect or alone)
        if (suspect and alone) or (kept and most == 1):
            return False
        worker = worker_for(self._workers, dealt, few_calls=few_calls)
        if worker is None or worker.unread:
            if len(self._workers) < most - kept:
                worker = self._start()
            elif worker is None:
                return False
        worker.give(dealt)
        return True

    def _deal_again(self) -> None:
        self._suspects.sort(key=lambda dealt: dealt.deaths)
        while self._suspects and self._place(self._suspects[-1]):
            self._suspects.pop()
        self._again = [dealt for dealt in self._again if not self._place(dealt)]

    def _start(self) -> WorkerProcess:
        share = self._limits.first(self._workers)
        worker = start_worker(self._run.run_id, self._options, self.most, share)
        self._workers.append(worker)
        self._budget.join(worker)
        worker.channel.send(self._alive())
        threading.Thread(target=self._hear, args=(worker,), name="llmdo-hear", daemon=True).start()
        return worker

    def _leave(self, reason: str) -> None:
        if not self._leaving:
            self._leaving = True
            for worker in self._workers:
                worker.channel.send(Leave(reason))

    def _alive(self) -> Alive:
        presence, counts = self._state.presence, self._state.counts
        return Alive(presence.beat_at if presence else float("-inf"), counts.answered + counts.answered_before > 0)

    # The thread that hears a worker.

    def _hear(self, worker: WorkerProcess) -> None:
        while True:
            try:
                self._heard(worker, worker.channel.receive())
            except EOFError:
                break
            except Exception as error:  # noqa: BLE001  else the run would wait for this worker for ever
                self._fail(error)
        worker.channel.close()
        with self._changed:
            worker.gone = True

    def _heard(self, worker: WorkerProcess, message: FromWorker) -> None:
        worker.silent_s = 0.0
        match message:
            case LogLine():
                self._said(message)
            case WorkerReport():
                self._reported(worker, message)
            case Ask() | Return():
                self._budget.receive(worker, message)
            case Written():
                with self._changed:
                    self._deaths = 0
                    self._back.append(message)
                    worker.came_back(message)
                    self._changed.notify_all()
            case Begun():
                with self._changed:
                    worker.begins(message.number)
                    self._changed.notify_all()
            case WorkerEnded():
                worker.ended = message

    def _reported(self, worker: WorkerProcess, report: WorkerReport) -> None:
        worker.report, counts = report, report.member.counts
        self._state.add(**{name: number - worker.counted.get(name, 0) for name, number in counts.items()})
        worker.counted = counts
        for what, why in report.member.left.items():
            self._state.report_undone(what, why)
        if report.member.stopped is not None and not self._state.stopping:
            self._state.stop(error_of_worker(report.member.stopped))

    # The watcher's thread.

    def _watch(self) -> None:
        alive_at = shared_at = before = time.monotonic()
        while not self._over.wait(_LOOK_SECONDS):
            now = time.monotonic()
            # If this process was frozen, what workers have said meanwhile is still to be heard.
            passed, before = min(now - before, 1.0), now
            try:
                for worker in list(self._workers):
                    self._look_after(worker, passed)
                with self._changed:
                    if self._state.stop_reason is not None:
                        self._leave(str(self._state.stop_reason))
                    if now - shared_at >= SHARE_SECONDS and not self._leaving:
                        shared_at = now
                        self._limits.resize(self._state.window)
                        self._limits.deal(self._workers)
                        for worker in self._limits.needless(self._workers):
                            worker.leaving = True
                            worker.channel.send(Leave("another worker makes all calls"))
                    if now - alive_at >= ALIVE_SECONDS:
                        alive_at = now
                        for worker in self._workers:
                            worker.channel.send(self._alive())
            except Exception as error:  # noqa: BLE001  else nobody would look after the workers any more
                self._fail(error)

    def _fail(self, error: Exception) -> None:
        _log.debug("the workers cannot be looked after", exc_info=error)
        with self._changed:
            self._failure = self._failure or WorkerFailed(f"{type(error).__name__}: {error}")
            self._changed.notify_all()

    def _look_after(self, worker: WorkerProcess, passed: float) -> None:
        worker.silent_s += passed
        if worker.process.poll() is not None:
            stop_tied(worker.process)  # its watcher ends, and with it the other end of the socket
            if worker.gone:
                self._bury(worker)
        elif worker.gone or worker.silent_s > LONGEST_SILENCE:
            if not worker.gone:
                _log.warning("a worker process has not reported for %g s: it is replaced", LONGEST_SILENCE)
            worker.process.kill()

    def _bury(self, worker: WorkerProcess) -> None:
        with self._changed:
            self._workers.remove(worker)
            died = worker.ended is None
            if worker.report:
                self._past = with_past(self._past, worker.report, replaced=died or worker.leaving)
            spent = spent_by_worker(worker.report, died=died) if worker.report else Spent()
            self._budget.leave(worker, spent, died=died)
            left, worker.dealt = list(worker.dealt.values()), {}
            if worker.ended is not None and worker.ended.problem:
                problem = worker.ended.problem
                what = problem.splitlines()[0]
                self._failure = self._failure or WorkerFailed(f"a worker process failed ({what}):\n{problem}")
            elif worker.leaving and worker.ended is not None:
                rests = (dealt.rest(next(self._numbers)) for dealt in left)
                self._again += [rest for rest in rests if rest is not None]
            elif worker.ended is None or (left and not self._state.stopping):
                self._died(worker, left)
            self._changed.notify_all()

    def _died(self, worker: WorkerProcess, left: list[DealtStretch]) -> None:
        """What it has answered and not written is answered again, from the ledger."""
        self._state.add(**{name: worker.written[name] - number for name, number in worker.counted.items()})
        self._deaths += 1
        code = worker.process.returncode
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        if self._state.stopping or self._leaving:
            _log.warning("a worker process %s", how)
            return
        _log.warning("a worker process %s: another one takes over its lines", how)
        if self._deaths > MOST_DEATHS:
            self._failure = WorkerFailed(
                f"{self._deaths} worker processes died one after the other, the last one {how.removeprefix('was ')}: "
                "see the log, give the machine more memory, or lower --processes"
            )
        for dealt in left:
            dealt.deaths += dealt.begun
            self._lost.append(dealt)


@contextmanager
def crew_of(options: RunOptions, run_id: str, last_calls: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    """The run's workers, if it has several processes, as long as the context lasts.

    ``last_calls``: the context in which it waits for them if the pipeline failed.
    """
    if options.processes == 1:
        yield
        return
    assert isinstance(options, JsonlOptions)  # noqa: S101  other runs have one process
    run = options.run(run_id)
    crew = Crew(options, run)
    run.state.elsewhere = crew.elsewhere
    run.state.shared(Dealing, lambda: Dealing(crew))
    try:
        yield
    except BaseException:
        with last_calls():
            crew.close("the run failed")
        raise
    crew.close()
