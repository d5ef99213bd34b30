"""What the steps of a run share within one process: counts, settled files, why to stop, connections.

On the runners that use this process's threads (direct, Prism with LOOPBACK) the command line reads it too. Nothing that
must be right depends on it: the truth is in the output.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar, cast

from llmdo.backends.engine.registry import stop_engines
from llmdo.backends.errors import BatchUnclear, EngineClosed, StaysOpen, StopRun
from llmdo.backends.limits.throttle import ModelLimits
from llmdo.backends.money.limits import Limits
from llmdo.backends.money.money import Budget
from llmdo.backends.money.own_prices import OwnPrices
from llmdo.backends.money.prices import Prices
from llmdo.backends.money.spent import Spent
from llmdo.backends.responses import Price
from llmdo.storage.runs.runs import ASLEEP_SECONDS, Presence, attempt_of, run_of
from llmdo.transforms.elements import FileVersion, Settled
from llmdo.transforms.file_spans import export_span

# The newest finished files are kept one by one, up to this many; the counts cover all of them.
SETTLED_KEPT = 10_000

T = TypeVar("T")

_log = logging.getLogger(__name__)


class RunAsleep(StopRun):
    """The run sent no heartbeat for too long; a new one resumes its work."""


@dataclass(slots=True)
class Counts:
    """Lines and files by outcome, and tokens, since the run began.

    ``files_done`` and ``files_stale`` count those too that were so before; ``bytes_opened`` is the size of all opened;
    ``answered_before`` and ``failed_before`` are lines of opened files that earlier runs have written;
    ``lines_written`` are those that stand in ``shards`` of this one.
    """

    messages_passed_over: int = 0
    messages_undecodable: int = 0
    files_done: int = 0
    files_stale: int = 0
    files_with_errors: int = 0
    answered: int = 0
    failed: int = 0
    answered_before: int = 0
    failed_before: int = 0
    blank: int = 0
    bytes_opened: int = 0
    bytes_done: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    shards: int = 0
    lines_written: int = 0


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """The calls that other processes of this machine make for a run: ``calls`` in all, and some at this moment.

    ``limits`` holds them back, all of a model's together; ``spent`` by this run, not by earlier ones of the command;
    ``prices`` of the models that they asked.
    """

    calls: int = 0
    in_flight: int = 0
    batched: int = 0
    limits: tuple[ModelLimits, ...] = ()
    spent: Spent = field(default_factory=Spent)
    prices: Mapping[str, Price] = field(default_factory=dict)


NOTHING_ELSEWHERE = Elsewhere()


@dataclass(frozen=True, slots=True)
class HandedOver:
    """Lines that a run leaves to a later one: ``lines`` wait in batches, whose answers are due by ``expected_by``.

    Of ``unclear`` lines nobody can tell whether their batch was submitted, and ``why`` says more. Unix time.
    """

    lines: int = 0
    expected_by: float = 0.0
    unclear: int = 0
    why: str = ""

    def with_line(self, error: StaysOpen) -> HandedOver:
        """The same with one line more."""
        if isinstance(error, BatchUnclear):
            return replace(self, unclear=self.unclear + 1, why=self.why or error.message)
        return replace(self, lines=self.lines + 1, expected_by=max(self.expected_by, error.until or 0.0))


NOTHING_HANDED_OVER = HandedOver()


@dataclass(slots=True)
class RunState:
    """One run in one process. Thread-safe.

    Attributes:
        run_id: names the run.
        stops_calls: whether engines make no more calls once the run stops, those of other steps of the run, too.
        over: the run has ended in this process; what a failed pipeline left running opens nothing more.
        opened: the files in work, by id.
        settled: files that are done or stale, by id; the newest SETTLED_KEPT of them.
        left: what was left undone, and why.
        others: files that other runs work on, with the run's id.
        window: calls in flight at most, by order; None: as the run was started.
        queue: the id of the queue that the run reads, or "".
        backlog: about how many messages the queue holds, or None.
        failing: services that fail at this moment, and are tried again; see llmdo.transforms.outages.
        stop_reason: why the run ends early, or None.
        budget: what calls have spent, also in earlier pipelines of the same command; None before the first line.
        output_budget: how the output's budget stands (see runners/showing/budget.py), or None.
        others_answered: whether other processes of the run have answered lines.
        starter_asleep: whether the process that started this one for the run is ``asleep``; its heartbeat counts.
        handed_over: lines that are left to a later run.
        elsewhere: what other processes of this machine do for the run, at this moment.
    """

    run_id: str = ""
    stops_calls: bool = False
    over: bool = False
    counts: Counts = field(default_factory=Counts)
    opened: dict[str, FileVersion] = field(default_factory=dict)
    settled: dict[str, Settled] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    others: dict[str, str] = field(default_factory=dict)
    window: int | None = None
    queue: str = ""
    backlog: int | None = None
    failing: set[str] = field(default_factory=set)
    presence: Presence | None = None
    budget: Budget | None = None
    handed_over: HandedOver = NOTHING_HANDED_OVER
    output_budget: Any = None
    stop_reason: BaseException | str | None = None
    others_answered: Callable[[], bool] = lambda: False
    starter_asleep: Callable[[], bool] = lambda: False
    elsewhere: Callable[[], Elsewhere] = lambda: NOTHING_ELSEWHERE
    _done_of: dict[str, int] = field(default_factory=dict)
    _budgets: dict[Limits, Budget] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _shared: dict[tuple[type, str], Any] = field(default_factory=dict)
    # Held while something is opened, which may share something else.
    _sharing: threading.RLock = field(default_factory=threading.RLock)

    def add(self, **amounts: int) -> None:
        """Adds to counts, by name."""
        with self._lock:
            self._add(**amounts)

    def _add(self, **amounts: int) -> None:
        for name, amount in amounts.items():
            setattr(self.counts, name, getattr(self.counts, name) + amount)

    def add_done(self, file: FileVersion, size: int, **amounts: int) -> None:
        """Adds to counts, and ``size`` positions to what is done of a file."""
        with self._lock:
            before = self._done_of.get(file.id, 0)
            if file.id in self.opened:
                self._done_of[file.id] = before + size
            self._add(bytes_done=file.stored(before + size) - file.stored(before), **amounts)

    def done_of(self, file_id: str) -> int:
        """Positions of a file in work that this process knows to be done."""
        return self._done_of.get(file_id, 0)

    def open(self, file: FileVersion) -> None:
        """A file is being worked on."""
        _log.info("opened, %d bytes", file.size, extra={"run": self.run_id, "file": file.id})
        with self._lock:
            self.opened[file.id] = file
            self.left.pop(file.id, None)
            self.others.pop(file.id, None)
            self.counts.bytes_opened += file.size

    def settle(self, settled: Settled) -> None:
        """A file is done, or stale."""
        if self._is_news(settled):
            export_span(self.run_id, settled)

    def _is_news(self, settled: Settled) -> bool:
        with self._lock:
            file = settled.file
            self.opened.pop(file.id, None)
            self._done_of.pop(file.id, None)
            self.left.pop(file.id, None)
            self.others.pop(file.id, None)
            before = self.settled.pop(file.id, None)
            if before is not None and before.status == settled.status:
                self.settled[file.id] = before
                return False  # another message about the same version
            about = {"run": self.run_id, "file": file.id}
            said = settled.status, settled.answered, settled.failed, settled.reason or "settled"
            _log.info("%s: %d lines answered, %d errors (%s)", *said, extra=about)
            self.settled[file.id] = settled
            self.counts.files_done += settled.status == "done"
            self.counts.files_stale += settled.status == "stale"
            self.counts.files_with_errors += bool(settled.failed)
            if len(self.settled) > SETTLED_KEPT:
                del self.settled[next(iter(self.settled))]
            return True

    def budget_within(self, limits: Limits, prices: OwnPrices = ()) -> Budget:
        """The run's budget; where it has other limits, one of their own for all steps that have these.

        Raises EngineClosed when the run is over.
        """
        self._check_open()
        with self._lock:
            if self.budget is None:
                self.budget = Budget(limits, Prices(own=prices))
            if self.budget.limits == limits:
                return self.budget
            if limits not in self._budgets:
                self._budgets[limits] = Budget(limits, self.budget.prices)
            return self._budgets[limits]

    def next_attempt(self) -> str:
        """Starts over where a runner has lost what was in work, and names the attempt; later ones are greater.

        What the job records of earlier attempts of this run name is free for this one (see ``is_held``).
        """
        with self._lock:
            self.opened.clear()
        return "0" if self.presence is None else f"{self.presence.store_time():.1f}"

    def leave_open(self, error: StaysOpen) -> None:
        """A line is left to a later run, which fetches its answer."""
        with self._lock:
            self.handed_over = self.handed_over.with_line(error)

    def is_held(self, owner: str, run_id: str, attempt: str) -> bool:
        """Whether an ``owner_of`` may still work on its files, asked by an attempt of this run. Raises StorageError."""
        if run_of(owner) != run_id:
            return self.is_alive(owner)
        return float(attempt_of(owner) or 0) >= float(attempt or 0)

    def in_work(self) -> list[FileVersion]:
        """The files that are being worked on."""
        with self._lock:
            return list(self.opened.values())

    def is_alive(self, owner: str) -> bool:
        """Whether another run may still work on its files. Raises StorageError."""
        return self.presence is not None and self.presence.is_alive(owner)

    def report_elsewhere(self, file: FileVersion, run_id: str) -> None:
        """Notes that another run, which is alive, works on a file."""
        with self._lock:
            self.others[file.id] = run_id

    def report_undone(self, what: str, why: str) -> None:
        """Records what this run did not do, and why; shown at its end."""
        with self._lock:
            self.left[what] = why

    def stop(self, reason: BaseException | str) -> None:
        """Stops reading; calls in flight end, and what is there is written. The first reason is kept."""
        with self._lock:
            first = self.stop_reason is None
            if first:
                self.stop_reason = reason
        if first and self.stops_calls:
            error = StopRun("the run is being stopped: run the same command again to resume")
            stop_engines(error, self.run_id)

    @property
    def stopping(self) -> bool:
        """Whether the run ends early: a signal, or an error after which no call can succeed."""
        return self.stop_reason is not None

    def asleep(self) -> StopRun | None:
        """Why no further call may be made, if the run was silent for so long that others may have its files."""
        if not (self.starter_asleep() if self.presence is None else self.presence.asleep):
            return None
        frozen = f"this run was frozen or cut off for over {ASLEEP_SECONDS:.0f} s"
        return RunAsleep(f"{frozen}: run the same command again to resume")

    def answered_before(self) -> bool:
        """Whether earlier runs, or other processes of this one, have answered lines of this run's files."""
        return self.counts.answered_before > 0 or self.others_answered()

    def shared(self, kind: type[T], make: Callable[[], T], name: str = "") -> T:
        """What the steps of the run share in this process, by kind and name; made on first use.

        Raises EngineClosed when the run is over, and what ``make`` raises.
        """
        self._check_open()
        with self._sharing:
            if (kind, name) not in self._shared:
                self._shared[kind, name] = make()
            return cast(T, self._shared[kind, name])

    def find(self, kind: type[T], name: str | None = None) -> list[T]:
        """All of a kind that was made by ``shared``, or the one of this name."""
        parts = list(self._shared.items())
        return [part for (of, called), part in parts if of is kind and name in (None, called)]

    def take(self, kind: type[T]) -> dict[str, T]:
        """All of a kind by name, which the caller closes: ``shared`` makes it anew."""
        with self._sharing:
            return {name: self._shared.pop((of, name)) for of, name in list(self._shared) if of is kind}

    def _check_open(self) -> None:
        if self.over:
            raise EngineClosed(f"run {self.run_id} is over")


# Module globals: class attributes of a DoFn would be pickled with it. Of ended runs only the names are kept.
_states: dict[str, RunState] = {}
_over: set[str] = set()
_finding = threading.Lock()


def state_of(run_id: str) -> RunState:
    """This process's state of a run, made on first use; after ``end_run``, one that is ``over``."""
    state = _states.get(run_id)
    if state is not None:
        return state
    with _finding:
        if run_id in _over:
            return RunState(run_id, over=True, stop_reason="the run is over")
        return _states.setdefault(run_id, RunState(run_id))


def end_run(run_id: str) -> None:
    """Forgets a run of this process, which starts no further work."""
    with _finding:
        _over.add(run_id)
        _states.pop(run_id, None)
