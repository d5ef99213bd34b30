"""Membership of a worker process in a run started elsewhere: heartbeat, progress reports, remote stop.

Heartbeat and reports continue when the process that started the run is gone.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import asdict, fields
from typing import Any

import apache_beam as beam
from pydantic import TypeAdapter, ValidationError

import llmdo.backends.errors
from llmdo.backends.collector import spare_the_collector
from llmdo.backends.engine.registry import calls_in_flight, limit_engines
from llmdo.backends.errors import ModelError, StopRun
from llmdo.backends.money.spent import Spent
from llmdo.storage.errors import StorageError, StorageUnavailable
from llmdo.storage.field_problems import first_problem
from llmdo.storage.objects.opening import open_store
from llmdo.storage.runs.control import Control, read_control
from llmdo.storage.runs.members import MemberReport, StopReason
from llmdo.storage.runs.runs import Presence
from llmdo.transforms.elements import Settled
from llmdo.transforms.run import Run
from llmdo.transforms.run_state import Counts, RunState
from llmdo.transforms.state_cache import measure_state_cheaply

_log = logging.getLogger(__name__)

# How often a process checks for a stop, and how often it reports. Seconds.
STOP_POLL_SECONDS, REPORT_SECONDS = 2.0, 5.0
_LOOKS_PER_ORDER = 3
_SAME_KEY_SECONDS = 1.0  # R2 takes one write a second to a key
# Keys that a process reports under: each report takes the first one that may be written again. R2 needs over 30 ms for
# a report, so they are never all in use. Each is one more object that the starting process reads every 2 s.
REPORT_SLOTS = 32
# The newest settled files, up to this number, are in a report.
FILES_REPORTED = 1_000


class Member:
    """This process's part in a run. Thread-safe."""

    def __init__(self, run: Run, state: RunState) -> None:
        spare_the_collector()
        measure_state_cheaply()
        self._notes, self._state = run.notes, state
        self._name = uuid.uuid4().hex[:12]
        where = run.output
        state.presence = Presence(
            open_store(where.store_url), where.key, run.run_id, run.configuration, member=self._name
        )
        state.others_answered, state.stops_calls = self.others_answered, True
        self._reporting = threading.Lock()
        self._reported: MemberReport | None = None
        self._reported_at = [float("-inf")]  # by slot
        self._number = 0
        self._over = threading.Event()
        self._looked, self._ordered = 0, Control()
        threading.Thread(target=self._live, name="llmdo-member", daemon=True).start()

    def report(self) -> None:
        """Reports at once, if anything changed since the last report. Raises StorageError."""
        with self._reporting:
            report = report_of(self._state)
            if report != self._reported:
                slot = self._slot()
                self._reported_at[slot] = time.monotonic()
                self._number += 1
                self._notes.report(self._name, report.model_copy(update={"number": self._number}), slot)
                self._reported = report

    def _slot(self) -> int:
        """A key that was not written within the last second, or the one written longest ago."""
        before = time.monotonic() - _SAME_KEY_SECONDS
        free = (slot for slot, reported_at in enumerate(self._reported_at) if reported_at <= before)
        slot = next(free, len(self._reported_at))
        if slot == REPORT_SLOTS:
            return min(range(REPORT_SLOTS), key=self._reported_at.__getitem__)
        if slot == len(self._reported_at):
            self._reported_at.append(float("-inf"))
        return slot

    def others_answered(self) -> bool:
        """Whether other processes of this run have reported answers; False where that cannot be read."""
        try:
            return self._notes.others_answered(self._name)
        except StorageError as error:
            _log.warning("%s", error)
            return False

    def _obey(self) -> None:
        """Keeps to what ``llmdo ctl`` orders; whoever began the run drains it."""
        if self._looked % _LOOKS_PER_ORDER == 0:
            self._ordered = read_control(self._notes.store, self._notes.prefix, self._notes.run_id) or self._ordered
        self._looked += 1
        if self._ordered.number:
            limit_engines(self._ordered.window, self._notes.run_id)

    def stop(self) -> None:
        """Ends the heartbeat and the reports."""
        self._over.set()
        if self._state.presence is not None:
            self._state.presence.stop()

    def _live(self) -> None:
        while not self._over.wait(STOP_POLL_SECONDS):
            try:
                self._obey()
                if self._state.stop_reason is None and (reason := self._notes.stopped()) is not None:
                    self._state.stop(reason)
                if self._state.stop_reason is not None or time.monotonic() - max(self._reported_at) >= REPORT_SECONDS:
                    self.report()
            except StorageError as error:
                _log.warning("%s", error)


_settled = TypeAdapter(Settled)


def join(run: Run) -> None:
    """Makes this process a member of a run, unless it is one, or started the run itself.

    Called by each step before it works. Raises StorageError.
    """
    state = run.state
    if run.remote and state.presence is None:
        state.shared(Member, lambda: Member(run, state))


def report_stop(run: Run) -> None:
    """Reports at once if the run stops: this process may not get another chance. Raises StorageError."""
    state = run.state
    for member in state.find(Member) if state.stopping else ():
        member.report()


class ReportSettled(beam.DoFn):
    """Passes settled files on; those of a bundle are reported before it ends, so that none is lost."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def setup(self) -> None:
        """Joins the run."""
        join(self._run)

    def process(self, settled: Settled) -> Iterator[Settled]:
        """As it is."""
        yield settled

    def finish_bundle(self) -> None:
        """Reports; if the store does not answer, the member's thread reports later."""
        for member in self._run.state.find(Member):
            try:
                member.report()
            except StorageUnavailable as error:
                _log.warning("what was settled is reported later: %s", error)


def report_of(state: RunState) -> MemberReport:
    """The report of what a process has done."""
    reason = state.stop_reason
    settled = list(state.settled.values())[-FILES_REPORTED:]
    return MemberReport(
        counts=asdict(state.counts),
        spent=asdict(state.budget.spent()) if state.budget else {},
        in_flight=calls_in_flight(state.run_id),
        settled=tuple(asdict(one) for one in settled),
        left=dict(state.left),
        others=dict(state.others),
        backlog=state.backlog,
        stopped=_stopped(reason) if isinstance(reason, Exception) else None,
    )


def _stopped(reason: Exception) -> StopReason:
    until = getattr(reason, "until", None)
    if until is None and getattr(reason, "retry_after", None) is not None:
        until = time.time() + reason.retry_after  # type: ignore[attr-defined]  # asked for in the line above
    return StopReason(error=type(reason).__name__, message=str(reason), until=until)


def error_of(stopped: StopReason) -> Exception:
    """The error that stopped a process, or a StopRun with its message."""
    kind = getattr(llmdo.backends.errors, stopped.error, None)
    if isinstance(kind, type) and issubclass(kind, ModelError):
        return kind(stopped.message, until=stopped.until)
    return StopRun(stopped.message)


def add_reports(state: RunState, reports: Iterable[MemberReport]) -> int:
    """Sets a state to the sum of all reports; returns the number of calls in flight."""
    in_flight, counts = 0, Counts()
    for report in reports:
        in_flight += report.in_flight
        for field in fields(Counts):
            setattr(counts, field.name, getattr(counts, field.name) + report.counts.get(field.name, 0))
        for one in report.settled:
            try:
                settled = _settled.validate_python(one)
            except ValidationError as error:
                _log.warning("a worker's report about a file cannot be read: %s", first_problem(error))
                continue
            state.settled[settled.file.id] = settled
        state.left.update(report.left)
        state.others.update(report.others)
        if report.backlog is not None:
            state.backlog = report.backlog
    known = list(state.settled.values())
    if len(known) < FILES_REPORTED:  # then all are known, and one that two processes report counts once
        counts.files_done = sum(one.status == "done" for one in known)
        counts.files_stale = sum(one.status == "stale" for one in known)
        counts.files_with_errors = sum(bool(one.failed) for one in known)
    state.counts = counts
    return in_flight


def spent_by(reports: Iterable[MemberReport]) -> Spent:
    """The sum of what all processes have spent; a lower bound if one of them does not know a cost.

    The possible cost of lost calls is an upper bound, and unknown if one process does not know its own.
    """
    reports = list(reports)
    totals: dict[str, Any] = asdict(Spent())
    for report in reports:
        for name, amount in report.spent.items():
            if amount is not None and name in totals:
                totals[name] = (totals[name] or 0) + amount
    exact = {field.name: int(totals[field.name]) for field in fields(Spent) if field.type == "int"}
    if any(report.spent.get("lost_cost_usd", 0.0) is None for report in reports):
        totals["lost_cost_usd"] = None
    return Spent(**totals | exact)
