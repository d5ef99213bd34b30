"""Figures for Prometheus, and probes for Kubernetes."""

import json
import re
import socket
import threading
import time
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from llmdo.backends.money.limits import Limits
from llmdo.backends.money.money import Budget
from llmdo.backends.money.spent import Spent
from llmdo.backends.telemetry.measures import CallKind
from llmdo.backends.telemetry.switch import call_measures, forget_telemetry
from llmdo.pipelines.usage import UsageError
from llmdo.runners.exporting import oldest_message
from llmdo.runners.exporting.metrics import CALL_SECONDS, Scraped, serving, serving_schedule
from llmdo.runners.exporting.oldest_message import OldestMessage
from llmdo.runners.exporting.scheduled import SCHEDULED, ScheduleFigures
from llmdo.runners.exporting.totals import FIGURES, Totals
from llmdo.settings.environment import cloudflare_account
from llmdo.storage.queues.client import Backlog, QueueClient, find_queue
from llmdo.transforms.elements import FileVersion, Settled
from llmdo.transforms.run_state import RunState
from tests.fakes.ports import free_port

DASHBOARD = Path(__file__).parents[3] / "examples/deploy/grafana.json"
HERE = "127.0.0.1"


@pytest.fixture
def port():
    return free_port()


def read(port):
    """Samples by name and labels, as Prometheus reads them."""
    reply = httpx.get(f"http://{HERE}:{port}/metrics", trust_env=False, timeout=60).raise_for_status()
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(reply.text)
        for sample in family.samples
    }


def status(port, path):
    return httpx.get(f"http://{HERE}:{port}{path}", trust_env=False, timeout=60).status_code


def working(**counts):
    state = RunState("r")
    state.open(FileVersion("r2://b", "a.jsonl", "e", 100))
    state.add(**counts)
    return state


def test_counts_go_on_over_the_pipelines_of_a_command_and_what_is_now_ends_with_each(port):
    with serving(lambda _: nullcontext(), port, HERE) as watch:
        assert read(port)["llmdo_lines_total", "answered"] == read(port)["llmdo_calls_total",] == 0
        first = working(answered=5, failed=2, input_tokens=30)
        with watch(first):
            found = read(port)
            assert found["llmdo_lines_total", "answered"] == 5 and found["llmdo_lines_total", "failed"] == 2
            assert found["llmdo_tokens_total", "input"] == 30 and found["llmdo_files_open",] == 1
            first.settle(Settled(FileVersion("r2://b", "a.jsonl", "e", 100), "done", 5, 2))
            assert read(port)["llmdo_files_total", "done"] == 1
        between = read(port)
        assert between["llmdo_lines_total", "answered"] == 5 and ("llmdo_files_open",) not in between
        second = working(answered=1)
        second.backlog = 70
        with watch(second):
            found = read(port)
            assert found["llmdo_lines_total", "answered"] == 6 and found["llmdo_restarts_total",] == 1
            assert found["llmdo_queue_backlog",] == 70
    with pytest.raises(httpx.ConnectError):
        read(port)


def sent(count):
    account = cloudflare_account()
    with QueueClient(account, find_queue(account, "llmdo-input")) as client:
        client.push_many({"number": number} for number in range(count))
        return client.queue_id


def test_the_age_of_the_oldest_message_is_what_the_queue_says(port, cloudflare, monkeypatch):
    queue = sent(2)
    monkeypatch.setattr(oldest_message, "_FRESH_S", 0.0)
    monkeypatch.setattr(oldest_message, "_PATIENCE_S", 60.0)
    name = "llmdo_queue_oldest_message_age_seconds"
    with serving(lambda _: nullcontext(), port, HERE) as watch:
        assert (name,) not in read(port)
        with watch(working()):
            assert (name,) not in read(port)  # it reads no queue
        state = working()
        state.queue = queue
        with watch(state):
            age = read(port)[name,]
            assert 0 <= age < 600
            time.sleep(0.05)
            assert read(port)[name,] > age
            with QueueClient(cloudflare_account(), queue) as client:
                client.settle([message.lease_id for message in client.pull().messages])
            assert read(port)[name,] == 0
            cloudflare.fault("queue", status=403)
            assert (name,) not in read(port)  # better none than one that does not grow
        assert (name,) not in read(port)


def test_the_queue_is_asked_no_more_often_than_its_answer_gets_old():
    asked, now = [], [100.0]
    oldest = OldestMessage("q", lambda queue: asked.append(queue) or Backlog(1, time.time() - 50.0), lambda: now[0])
    assert not asked
    for _ in range(5):
        assert oldest.age() == pytest.approx(50.0, abs=40.0)
    assert asked == ["q"]
    now[0] += 15.0
    oldest.age()
    assert asked == ["q", "q"]


def test_a_queue_that_does_not_answer_keeps_nobody_waiting_for_long(monkeypatch):
    monkeypatch.setattr(oldest_message, "_PATIENCE_S", 0.01)
    answer, asked = threading.Event(), []
    oldest = OldestMessage("q", lambda queue: asked.append(queue) or (answer.wait(60.0) and Backlog(0, None)))
    assert [oldest.age() for _ in range(3)] == [None, None, None]
    end = time.monotonic() + 60.0
    while not asked and time.monotonic() < end:  # a thread asks, whenever it has its turn
        time.sleep(0.01)
    assert asked == ["q"]
    answer.set()
    while oldest.age() is None and time.monotonic() < end:
        time.sleep(0.01)
    assert oldest.age() == 0.0


def test_the_age_of_a_message_without_a_time_is_not_known():
    assert OldestMessage("q", lambda _: Backlog(3, None)).age() is None
    assert OldestMessage("q", lambda _: None).age() is None


def test_probes_say_whether_it_is_alive_and_ready(port, monkeypatch):
    state = working()
    with serving(lambda _: nullcontext(), port, HERE) as watch:
        assert (status(port, "/healthz"), status(port, "/readyz"), status(port, "/else")) == (200, 503, 404)
        with watch(state):
            assert (status(port, "/healthz"), status(port, "/readyz")) == (200, 200)
            state.failing.add("R2")
            assert (status(port, "/healthz"), status(port, "/readyz")) == (200, 503)
            state.failing.clear()
            state.stop("it is drained")
            assert (status(port, "/healthz"), status(port, "/readyz")) == (200, 503)
            monkeypatch.setattr(RunState, "asleep", lambda self: RuntimeError("frozen"))
            assert status(port, "/healthz") == 503
        assert status(port, "/healthz") == 200


def test_a_port_that_is_taken_is_one_sentence():
    with socket.create_server((HERE, 0)) as one:
        taken = one.getsockname()[1]
        with pytest.raises(UsageError, match=f"--metrics-port {taken}: .* name a free port"), _served_at(taken):
            pass


def _served_at(port):
    return serving(lambda _: nullcontext(), port, HERE)


def test_every_name_has_its_help_and_its_label():
    totals = Totals()
    with totals.of(working(answered=1)):
        families = {family.name: family for family in Scraped(totals, FIGURES).collect()}
    assert families.keys() == {f"llmdo_{one.name}" for one in FIGURES}
    assert all(family.documentation.endswith(".") for family in families.values())


def test_the_dashboard_asks_for_metrics_and_labels_that_there_are():
    text = DASHBOARD.read_text()
    names = {f"llmdo_{one.name}{'_total' if one.counter else ''}": one.label for one in {*FIGURES, *SCHEDULED}}
    names[f"{CALL_SECONDS}_bucket"] = "le"
    asked = set(re.findall(r"llmdo_\w+", text))
    assert asked <= names.keys() and len(asked) > 10
    for panel in json.loads(text)["panels"]:
        for target in panel["targets"]:
            by = re.findall(r"by \((\w+)\)", target["expr"])
            (name, *_) = re.findall(r"llmdo_\w+", target["expr"])
            assert by == ([names[name]] if by else []), target


def test_the_cost_of_a_command_is_counted_once_although_its_pipelines_share_a_budget(port):
    budget = Budget(Limits(max_cost_usd=2.0))
    with serving(lambda _: nullcontext(), port, HERE) as watch:
        for pipeline in (1, 2, 3):
            state = working(answered=1)
            state.budget = budget
            with watch(state):
                budget.add(Spent(calls=1, cost_usd=0.25))
                found = read(port)
                assert found["llmdo_cost_usd_total",] == pytest.approx(0.25 * pipeline)
                assert found["llmdo_budget_left_usd",] == pytest.approx(2.0 - 0.25 * pipeline)
    assert "llmdo_budget_left_usd" not in {name for name, *_ in Totals().samples()}


def test_the_seconds_of_calls_are_a_histogram_by_model_and_error(port):
    forget_telemetry()
    with serving(lambda _: nullcontext(), port, HERE):
        calls = call_measures()
        for answered_by in ("m-1", "m-2"):
            calls.add(CallKind("openai", "m", "chat", answered_by), 0.3, None)
        calls.add(CallKind("openai", "m", "chat", error="CallTimeout"), 300.0, None)
        found = read(port)
    bucket = f"{CALL_SECONDS}_bucket"
    assert [found[bucket, "", bound, "m", "openai"] for bound in ("0.16", "0.32", "+Inf")] == [0, 2, 2]
    assert [found[bucket, "CallTimeout", bound, "m", "openai"] for bound in ("81.92", "+Inf")] == [0, 1]
    assert found[f"{CALL_SECONDS}_sum", "", "m", "openai"] == pytest.approx(0.6)
    forget_telemetry()


def ended(code, **more):
    times = {"started": "2026-11-30T12:00:00.000Z", "ended": "2026-11-30T12:00:30.500Z"}
    return {"tick": "2026-11-30T12:00:00Z", **times, "exit_code": code, **more}


def test_a_schedule_says_how_its_runs_ended_and_when_the_next_one_is(port):
    with serving_schedule(port, HERE) as figures:
        assert (status(port, "/healthz"), status(port, "/readyz")) == (200, 503)
        figures.waits(datetime(2026, 11, 30, 12, 0, tzinfo=UTC))
        found = read(port)
        assert status(port, "/readyz") == 200 and found["llmdo_schedule_running",] == 0
        assert found["llmdo_schedule_next_tick_timestamp_seconds",] == 1796040000
        figures.started()
        assert read(port)["llmdo_schedule_running",] == 1
        spent = {"calls": 8, "input_tokens": 70, "output_tokens": 7, "cost_usd": 0.5}
        figures.ended(ended(3, answered=5, failed=2, files_done=1, files_stale=0, spent=spent))
        figures.ended(ended(1))
        found = read(port)
    assert found["llmdo_schedule_runs_total", "3"] == found["llmdo_schedule_runs_total", "1"] == 1
    assert (found["llmdo_schedule_running",], found["llmdo_schedule_last_exit_code",]) == (0, 1)
    assert found["llmdo_schedule_last_run_seconds",] == 30.5
    assert found["llmdo_lines_total", "answered"] == 5 and found["llmdo_tokens_total", "output"] == 7
    assert found["llmdo_cost_usd_total",] == 0.5 and found["llmdo_calls_total",] == 8


@pytest.mark.parametrize(("code", "age"), [(0, 10.0), (3, 10.0), (1, 110.0), (2, 110.0), (-9, 110.0)])
def test_the_age_of_the_last_success_grows_until_a_run_answers_all(code, age):
    now = [1000.0]
    figures = ScheduleFigures(clock=lambda: now[0])
    now[0] += 100.0
    figures.ended(ended(code))
    now[0] += 10.0
    assert figures.samples()["schedule_last_success_age_seconds", ""] == age
    assert {name for name, _ in figures.samples()} <= {one.name for one in SCHEDULED}
