"""Processes of one run: each has its heartbeat, reports what it has done, and stops when asked to."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, replace
from itertools import pairwise
from unittest.mock import Mock

import pytest

import llmdo.transforms.members as module
from llmdo.backends.errors import QuotaExhausted, StopRun
from llmdo.backends.money.money import Budget
from llmdo.backends.money.prices import Prices
from llmdo.backends.requests import RawRequest
from llmdo.backends.responses import ModelInfo, Models, Price
from llmdo.storage.errors import StorageUnavailable
from llmdo.storage.objects.local import LocalStore
from llmdo.storage.objects.opening import open_store
from llmdo.storage.objects.store import locate_folder
from llmdo.storage.runs.members import MemberReport, Members, StopReason
from llmdo.storage.runs.runs import REPORT, Presence
from llmdo.transforms.elements import FileVersion, Settled
from llmdo.transforms.members import (
    REPORT_SLOTS,
    Member,
    ReportSettled,
    add_reports,
    error_of,
    join,
    report_of,
    spent_by,
)
from llmdo.transforms.run import Run
from llmdo.transforms.run_state import RunState
from tests.states import run_state


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "STOP_POLL_SECONDS", 0.02)
    monkeypatch.setattr(module, "REPORT_SECONDS", 0.02)
    monkeypatch.setattr(module, "_SAME_KEY_SECONDS", 0.0)
    return Run("run-1", locate_folder(str(tmp_path)), "c", remote=True)


def wait_until(done):
    deadline = time.monotonic() + 60
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def member_of(run):
    (member,) = run.state.find(Member)
    return member


def file(name):
    return FileVersion("r2://b", name, "e", 10)


def test_a_process_that_joins_keeps_its_run_alive_without_the_one_that_began_it(run):
    join(run)
    store = open_store(run.output.store_url)
    other = Presence(store, run.output.key, "run-2")
    assert other.is_alive("run-1")
    assert not other.is_alive("run-3")
    member_of(run).stop()
    other._known.clear()
    assert not other.is_alive("run-1")
    other.stop()


def test_joining_again_changes_nothing_and_where_the_run_began_nobody_joins(run):
    before = run_state()
    join(replace(run, remote=False))
    assert run_state() is before
    assert before.presence is None
    join(run)
    state = run_state()
    join(run)
    assert run_state() is state
    assert state.presence.run_id == "run-1"


def test_what_a_process_did_and_why_it_stopped_reaches_the_one_that_began_the_run(run):
    join(run)
    run_state().add(answered=3, failed=1)
    run_state().settle(Settled(file("a"), "done", 3, 1))
    run_state().stop(QuotaExhausted("the day's allocation is used", until=12.0))
    wait_until(lambda: any(report.stopped for report in run.notes.reports().values()))
    state = RunState()
    (report,) = run.notes.reports().values()
    assert add_reports(state, [report]) == 0
    assert (state.counts.answered, state.counts.failed, state.counts.files_with_errors) == (3, 1, 1)
    assert state.settled[file("a").id] == Settled(file("a"), "done", 3, 1)
    error = error_of(report.stopped)
    assert isinstance(error, QuotaExhausted)
    assert (str(error), error.until) == ("the day's allocation is used", 12.0)


def test_what_other_processes_have_answered_counts_where_a_refusal_leaves_open_whom_it_is_about(run, monkeypatch):
    assert not run.state.answered_before()
    join(run)
    run_state().counts.answered = 5  # of this process, by another model: these say nothing
    member_of(run).report()
    notes = run.notes
    notes.report("another", MemberReport(counts={"answered": 0, "failed": 2}, spent={}))
    assert not run.state.answered_before()
    notes.report("third", MemberReport(counts={"answered": 1}, spent={}, number=2))
    assert run.state.answered_before()
    monkeypatch.setattr(Members, "others_answered", Mock(side_effect=StorageUnavailable("away")))
    assert not run.state.answered_before()


def test_a_run_that_is_told_to_stop_stops_in_each_process(run):
    join(run)
    assert run_state().stop_reason is None
    run.notes.stop("stopped by SIGTERM")
    wait_until(lambda: run_state().stop_reason == "stopped by SIGTERM")


def test_the_parts_of_several_processes_add_up_and_a_file_counts_once():
    states = [RunState(), RunState()]
    for state in states:
        state.add(answered=2, input_tokens=5)
        state.settle(Settled(file("same"), "done", 4, 0))
    states[1].settle(Settled(file("other"), "stale", reason="gone"))
    total = RunState()
    add_reports(total, map(report_of, states))
    counts = total.counts
    assert (counts.answered, counts.input_tokens, counts.files_done, counts.files_stale) == (4, 10, 1, 1)
    assert spent_by(map(report_of, states)).calls == 0


@pytest.mark.parametrize(("priced", "usd"), [(True, 92e-6), (False, None)])
def test_what_lost_calls_may_have_cost_adds_up_while_all_of_it_is_known(priced, usd):
    reports = []
    for number in range(2):
        price = Price(1.0, 1.0) if priced or number else None
        listed = Models((ModelInfo("p/m", price=price),))
        state = RunState(budget=Budget(prices=Prices(lambda provider, listed=listed: listed)))
        request = RawRequest("m", {"max_tokens": 3})
        state.budget.prices.of("p", "m")
        state.budget.after("p", request, None)
        reports.append(report_of(state))
    spent = spent_by(MemberReport.model_validate_json(report.model_dump_json()) for report in reports)
    assert (spent.calls, spent.lost_calls, spent.lost_input_tokens, spent.lost_output_tokens) == (0, 2, 86, 6)
    assert spent.lost_cost_usd == usd


class Clock:
    """Stands for the module ``time``; nobody may wait."""

    now = 100.0

    def monotonic(self):
        return self.now

    def time(self):
        return self.now

    def sleep(self, seconds):
        assert seconds <= 0, f"a bundle waited {seconds} s"


def test_bundles_that_end_quickly_report_all_that_they_settled_and_do_not_wait_for_each_other(run, monkeypatch):
    monkeypatch.setattr(module, "STOP_POLL_SECONDS", 60.0)
    monkeypatch.setattr(module, "_SAME_KEY_SECONDS", 1.0)
    monkeypatch.setattr(module, "time", clock := Clock())
    written = []
    put = LocalStore.put

    def noted(store, key, body, metadata=None):
        written.append((key, clock.now))
        return put(store, key, body, metadata)

    monkeypatch.setattr(LocalStore, "put", noted)
    tell = ReportSettled(run)
    tell.setup()
    written.clear()
    for number in range(100):
        run_state().settle(Settled(file(f"f{number}"), "done", 1, 0))
        tell.finish_bundle()
        state = RunState()
        add_reports(state, run.notes.reports().values())
        assert len(state.settled) == state.counts.files_done == number + 1
        clock.now += 0.04
    assert len(written) == 100
    times = {key: [at for written_key, at in written if written_key == key] for key, _ in written}
    assert len(times) == 25
    assert all(later - earlier >= 0.999 for each in times.values() for earlier, later in pairwise(each))


def test_a_process_never_has_more_than_so_many_keys_and_the_newest_report_counts(run, monkeypatch):
    monkeypatch.setattr(module, "STOP_POLL_SECONDS", 60.0)
    monkeypatch.setattr(module, "_SAME_KEY_SECONDS", 1.0)
    monkeypatch.setattr(module, "time", Clock())
    join(run)
    for number in range(3 * REPORT_SLOTS):
        run_state().add(answered=1)
        member_of(run).report()
        (report,) = run.notes.reports().values()
        assert report.counts["answered"] == number + 1
    assert sum(info.key.endswith(REPORT) for info in open_store(run.output.store_url).list("")) == REPORT_SLOTS


def test_a_store_that_does_not_answer_fails_no_bundle_and_its_files_are_reported_later(run, monkeypatch, caplog):
    monkeypatch.setattr(module, "STOP_POLL_SECONDS", 60.0)
    tell = ReportSettled(run)
    tell.setup()
    run_state().settle(Settled(file("a"), "done", 1, 0))
    with monkeypatch.context() as outage:
        outage.setattr(Members, "report", Mock(side_effect=StorageUnavailable("R2 sleeps")))
        tell.finish_bundle()
    assert "R2 sleeps" in caplog.text
    member_of(run).report()
    (report,) = run.notes.reports().values()
    assert [settled["file"]["key"] for settled in report.settled] == ["a"]


def test_an_error_of_a_kind_that_is_not_known_still_stops_the_run():
    assert type(error_of(StopReason(error="RunAsleep", message="frozen"))) is StopRun
    assert type(error_of(StopReason(error="AccessDenied", message="no"))) is StopRun


def test_what_was_said_is_forgotten_with_the_run(run):
    join(run)
    member_of(run).report()
    notes = run.notes
    notes.stop("x")
    member_of(run).stop()
    notes.forget()
    assert list(open_store(run.output.store_url).list(run.output.key)) == []
    assert Members(notes.store, notes.prefix, "run-9").stopped() is None


def put_report(run, **fields):
    """A report as JSON, with what somebody has put into it."""
    notes = run.notes
    report = json.dumps({"counts": {"answered": 1}, "spent": {"calls": 1.0}} | fields)
    notes.store.put(f"{notes._folder}other.report.json", report.encode())
    return list(notes.reports().values())


@pytest.mark.parametrize(
    "fields",
    [
        *({"counts": {"answered": count}} for count in (-1, 2**53, 10**4000, "many", None)),
        *({"spent": {"calls": amount}} for amount in (-1, float("nan"), float("inf"), 1e300, "much")),
        *({"in_flight": count} for count in (-1, 10**4000)),
        {"backlog": -1},
        {"settled": 7},
        {"left": {"file": 7}},
        *(
            {"stopped": {"error": "StopRun", "message": "over", "until": until}}
            for until in (-1, 1e300, 253_402_300_800, float("nan"), "soon")
        ),
    ],
)
def test_a_report_with_a_field_that_cannot_be_true_does_not_count(run, fields):
    assert len(put_report(run)) == 1
    assert put_report(run, **fields) == []


@pytest.mark.parametrize(
    "one",
    [
        {},
        {"file": 7},
        {"file": {"store_url": "r2://b"}, "status": "done", "cost": {}},
        {"file": {"store_url": "r2://b", "key": "k", "etag": "e", "size": "large"}, "status": "done"},
        {"file": {"store_url": "r2://b", "key": "k", "etag": "e", "size": 1}, "status": "lost"},
    ],
)
def test_a_file_that_a_report_tells_wrongly_does_not_hide_the_others(run, one):
    good = {"file": asdict(file("a")), "status": "done", "answered": 1}
    state = RunState()
    add_reports(state, put_report(run, settled=[one, good]))
    assert [settled.file for settled in state.settled.values()] == [file("a")]


def test_what_a_report_names_and_nobody_knows_is_passed_over(run):
    reports = put_report(run, counts={"answered": 2, "miracles": 3}, spent={"calls": 2.0, "hope": 1.0})
    state = RunState()
    add_reports(state, reports)
    assert state.counts.answered == 2
    assert spent_by(reports).calls == 2


@pytest.mark.parametrize("name", ["annotations", "Any", "__doc__", "TYPE_CHECKING", "no_such_error"])
def test_a_reason_to_stop_that_is_no_error_stops_all_the_same(name):
    error = error_of(StopReason(error=name, message="over"))
    assert type(error) is StopRun
    assert str(error) == "over"


@pytest.mark.parametrize("body", [b"", b"no JSON", b"{}", b'{"reason": 7}'])
def test_a_stop_that_cannot_be_read_stops_all_the_same(run, body):
    join(run)
    run.notes.store.put(run.notes._stop_key, body)
    wait_until(lambda: run_state().stop_reason is not None)
    assert "/stop.json orders this run to end" in str(run_state().stop_reason)
