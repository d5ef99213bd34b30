"""Follows a job whose runner does not report its end, or whose steps run in other processes, and ends it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from apache_beam.runners.runner import PipelineResult

from llmdo.backends.engine.registry import calls_in_flight
from llmdo.backends.money.spent import Spent
from llmdo.storage.errors import StorageError
from llmdo.storage.output.jobs import JobRecord, Jobs
from llmdo.storage.runs.members import Members
from llmdo.storage.runs.runs import run_of
from llmdo.transforms.elements import FileVersion
from llmdo.transforms.members import add_reports, error_of, spent_by
from llmdo.transforms.run_state import RunState

_log = logging.getLogger(__name__)

# Between two looks at what the processes of a run have done. Seconds.
ASK_SECONDS = 2.0
# A job with nothing in flight is ended after this silence. Seconds.
SILENT_SECONDS = 4.0
# It is ended anyway this long after the time to drain. Seconds.
LAST_SECONDS = 10.0


@dataclass(slots=True)
class Following:
    """What the processes of a run report, taken into ``state``; without ``notes`` this is the only one."""

    state: RunState
    notes: Members | None = None
    spent: Spent | None = None
    _in_flight: int = 0
    _told: bool = False
    _over: threading.Event = field(default_factory=threading.Event)

    def ask(self) -> None:
        """Reads new reports, and stops the other processes if this run stops. Raises StorageError."""
        if self.notes is None:
            return
        reports = list(self.notes.reports().values())
        self._in_flight = add_reports(self.state, reports)
        self.spent = spent_by(reports)
        for report in reports:
            if report.stopped is not None:
                self.state.stop(error_of(report.stopped))
        if self.state.stop_reason is not None and not self._told:
            self.notes.stop(str(self.state.stop_reason))
            self._told = True

    def in_flight(self) -> int:
        """Calls of all processes at this moment."""
        return calls_in_flight(self.state.run_id) if self.notes is None else self._in_flight

    def silent(self) -> tuple[int, ...] | None:
        """What has been done so far if no call is in flight; None while one is."""
        counts = self.state.counts
        done = (counts.answered, counts.failed, counts.lines_written, counts.files_done, counts.files_stale)
        return None if self.in_flight() else done

    def all_written(self) -> bool:
        """Whether each outcome is in a shard; never true once a runner has repeated some."""
        return self.state.counts.answered + self.state.counts.failed == self.state.counts.lines_written


@contextmanager
def following(state: RunState, notes: Members | None) -> Iterator[Following]:
    """Asks repeatedly until the context ends, then once more; removes the notes."""
    found = Following(state, notes)
    thread = threading.Thread(target=_ask_on, args=(found,), name="llmdo-following", daemon=True)
    if notes is not None:
        thread.start()
    try:
        yield found
    finally:
        found._over.set()
        if notes is not None:
            thread.join()
            try:
                found.ask()
                left_open(state, notes)
                count_by_manifests(state)
                notes.forget()
            except StorageError as error:
                _log.warning("not every worker has reported what it did: %s", error)


def _ask_on(found: Following) -> None:
    while not found._over.wait(ASK_SECONDS):
        try:
            found.ask()
        except StorageError as error:
            _log.warning("the workers cannot be asked: %s", error)


def left_open(state: RunState, notes: Members) -> None:
    """Finds, by their job records, the files that this run opened and did not finish. Raises StorageError."""
    for record in Jobs(notes.store, notes.prefix).sweep():
        if isinstance(record, JobRecord) and run_of(record.run_id) == notes.run_id:
            file = FileVersion(record.store_url, record.key, record.etag, record.size, format=record.format)
            state.opened[file.id] = file


def count_by_manifests(state: RunState) -> None:
    """Corrects the numbers of lines if a runner has repeated some: the output has each once.

    Only where all files are settled, and all of them are known.
    """
    counts, known = state.counts, list(state.settled.values())
    if state.opened or len(known) != counts.files_done + counts.files_stale:
        return
    here = [settled for settled in known if settled.status == "done" and not settled.reason]
    for now, before, total in (
        ("answered", "answered_before", sum(settled.answered for settled in here)),
        ("failed", "failed_before", sum(settled.failed for settled in here)),
    ):
        earlier = min(getattr(counts, before), total)
        if getattr(counts, now) + getattr(counts, before) != total and not counts.files_stale:
            setattr(counts, now, total - earlier)
            setattr(counts, before, earlier)


@contextmanager
def ended_when_stopped(
    result: PipelineResult, found: Following, drain_s: float, clock: Callable[[], float] = time.monotonic
) -> Iterator[None]:
    """Cancels a job that does not end by itself once its run stops and has written all, or ``drain_s`` are over.

    What was not written then is in the ledger.
    """
    over, cancelled = threading.Event(), threading.Event()

    def watch() -> None:
        stopped = since = clock()
        before = found.silent()
        while not over.wait(0.5):
            now = found.silent()
            if found.state.stop_reason is None:
                stopped = clock()
            if found.state.stop_reason is None or now is None or now != before or not found.all_written():
                since, before = clock(), now
            if clock() - since >= SILENT_SECONDS or clock() - stopped >= drain_s + LAST_SECONDS:
                cancelled.set()
                result.cancel()
                return

    thread = threading.Thread(target=watch, name="llmdo-ending", daemon=True)
    thread.start()
    try:
        yield
    except RuntimeError:  # Beam raises it for every end but a good one
        if not cancelled.is_set():
            raise
    finally:
        over.set()
        thread.join()
