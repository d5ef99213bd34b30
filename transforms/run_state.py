"""What the steps of one process tell each other and the progress display: counts, settled files, and why to stop.

On the runners that use this process's threads (direct, Prism with LOOPBACK) the command line reads it too. Nothing that
must be right depends on it: the truth is in the output.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from llmdo.backends.money.money import Budget, Limits
from llmdo.storage.runs.runs import Presence, attempt_of, run_of
from llmdo.transforms.elements import FileVersion, Settled

# Files that are done stand in memory one by one up to this many, the newest; the counts hold all of them.
KEPT = 10_000


@dataclass(slots=True)
class Counts:
    """Lines and files by what became of them, and tokens, since the run began.

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


@dataclass(slots=True)
class RunState:
    """One run in one process. Thread-safe.

    Attributes:
        opened: the files in work, by id.
        settled: files that are done or stale, by id; the newest KEPT of them.
        left: what was left undone, and why.
        others: files that other runs work on, with the run's id.
        backlog: about how many messages the queue holds, or None.
        failing: services that fail at this moment, and are tried again; see llmdo.transforms.outages.
        stop_reason: why the run ends early, or None.
        budget: what calls have spent, also in earlier pipelines of the same command; None before the first line.
    """

    counts: Counts = field(default_factory=Counts)
    opened: dict[str, FileVersion] = field(default_factory=dict)
    settled: dict[str, Settled] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    others: dict[str, str] = field(default_factory=dict)
    backlog: int | None = None
    failing: set[str] = field(default_factory=set)
    presence: Presence | None = None
    budget: Budget | None = None
    stop_reason: BaseException | str | None = None
    on_stop: Callable[[], None] = lambda: None
    _budgets: dict[Limits, Budget] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, **amounts: int) -> None:
        """Adds to counts, by name."""
        with self._lock:
            for name, amount in amounts.items():
                setattr(self.counts, name, getattr(self.counts, name) + amount)

    def open(self, file: FileVersion) -> None:
        """A file is in work."""
        with self._lock:
            self.opened[file.id] = file
            self.left.pop(file.id, None)
            self.others.pop(file.id, None)
            self.counts.bytes_opened += file.size

    def settle(self, settled: Settled) -> None:
        """A file is done, or stale."""
        with self._lock:
            file = settled.file
            self.opened.pop(file.id, None)
            self.left.pop(file.id, None)
            self.others.pop(file.id, None)
            before = self.settled.pop(file.id, None)
            if before is not None and before.status == settled.status:
                self.settled[file.id] = before
                return  # another message about the same version
            self.settled[file.id] = settled
            self.counts.files_done += settled.status == "done"
            self.counts.files_stale += settled.status == "stale"
            self.counts.files_with_errors += bool(settled.failed)
            if len(self.settled) > KEPT:
                del self.settled[next(iter(self.settled))]

    def budget_within(self, limits: Limits) -> Budget:
        """The run's budget; where it has other limits, one of their own for all steps that have these."""
        with self._lock:
            if self.budget is None:
                self.budget = Budget(limits)
            if self.budget.limits == limits:
                return self.budget
            if limits not in self._budgets:
                self._budgets[limits] = Budget(limits, self.budget.prices)
            return self._budgets[limits]

    def next_attempt(self) -> str:
        """Begins anew where a runner has lost what was in work, and names the attempt; later ones are greater.

        What the job records of earlier attempts of this run name is free for this one (see ``is_held``).
        """
        with self._lock:
            self.opened.clear()
        return "0" if self.presence is None else f"{self.presence.store_time():.1f}"

    def is_held(self, owner: str, run_id: str, attempt: str) -> bool:
        """Whether an ``owner_of`` may still work on its files, asked by an attempt of this run. Raises StorageError."""
        if run_of(owner) != run_id:
            return self.is_alive(owner)
        return float(attempt_of(owner) or 0) >= float(attempt or 0)

    def in_work(self) -> list[FileVersion]:
        """The files in work at this moment."""
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
        """Notes what this run did not do, and why; shown at its end."""
        with self._lock:
            self.left[what] = why

    def stop(self, reason: BaseException | str) -> None:
        """Reading ends, calls in flight are finished, what is there is written. The first reason stays."""
        with self._lock:
            first = self.stop_reason is None
            if first:
                self.stop_reason = reason
        if first:
            self.on_stop()


# A module global: a class attribute of a DoFn would be pickled with it.
_state = RunState()


def run_state() -> RunState:
    """The process's run."""
    return _state


def reset_run_state() -> RunState:
    """Begins a new run in this process."""
    global _state  # noqa: PLW0603  one run a process at a time; the steps reach it without being handed it
    _state = RunState()
    return _state


def stopping() -> bool:
    """Whether the run ends early: a signal, or an error after which no call can succeed."""
    return _state.stop_reason is not None
