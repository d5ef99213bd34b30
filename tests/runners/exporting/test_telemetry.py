"""What a receiver of OTLP gets of a run: its span, those of its files and calls, and its figures."""

import json
import logging

import pytest

from llmdo.backends.telemetry.switch import flush_telemetry, forget_telemetry
from llmdo.runners.exporting.telemetry import figures_exported
from llmdo.settings.environment import cloudflare_account
from llmdo.storage.queues.client import QueueClient, find_queue
from llmdo.transforms.elements import FileVersion, Settled
from llmdo.transforms.run_state import RunState
from tests.fakes.otlp import Receiver, attributes_of
from tests.integration import openai_service
from tests.integration.openai_service import answer

SECRET = "what nobody else may read"


@pytest.fixture
def service(monkeypatch):
    with openai_service.serving() as running:
        monkeypatch.setenv("OPENAI_BASE_URL", running.url)
        monkeypatch.setenv("OPENAI_API_KEY", "k")
        yield running


@pytest.fixture
def receiver(monkeypatch):
    receiver = Receiver()
    forget_telemetry()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_on")
    yield receiver
    forget_telemetry()
    receiver.close()


def files(folder, lines):
    for name, count in lines.items():
        prompts = [{"id": f"{name}-{i}", "prompt": f"{SECRET} {name} {i}"} for i in range(count)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in prompts))
    return [folder / f"{name}.jsonl" for name in lines]


@pytest.mark.parametrize(
    ("runner", "processes"),
    [("direct", 1), ("direct", 2), pytest.param("prism", 1, marks=[pytest.mark.prism, pytest.mark.slow])],
)
def test_a_run_its_files_and_its_calls_are_spans_that_belong_together(tmp_path, service, receiver, runner, processes):
    paths = files(tmp_path, {"a": 3, "b": 2})
    summary = answer(*paths, output=tmp_path / "out", runner=runner, processes=processes)
    assert (summary.exit_code, summary.counts.answered) == (0, 5)
    ((run, of_run),) = receiver.named("llmdo run")
    assert of_run["llmdo.run.id"] == summary.run_id and of_run["llmdo.outcome"] == "done"
    assert (of_run["llmdo.lines.answered"], of_run["llmdo.files.done"], of_run["llmdo.runner"]) == (5, 2, runner)
    of_files = {about["llmdo.file"].rpartition("/")[2]: (span, about) for span, about in receiver.named("llmdo file")}
    assert of_files.keys() == {"a.jsonl", "b.jsonl"}
    assert [about["llmdo.lines.answered"] for _, (_, about) in sorted(of_files.items())] == [3, 2]
    for span, about in of_files.values():
        assert [link.span_id for link in span.links] == [run.span_id] and about["llmdo.run.id"] == summary.run_id
        assert run.start_time_unix_nano <= span.start_time_unix_nano < span.end_time_unix_nano
        assert span.end_time_unix_nano <= run.end_time_unix_nano
    calls = receiver.named("chat small")
    assert len(calls) == 5
    for span, about in calls:
        parent, _ = of_files[about["llmdo.file"].rpartition("/")[2]]
        assert (span.trace_id, span.parent_span_id) == (parent.trace_id, parent.span_id)
    assert not any(SECRET.encode() in body for body in receiver.raw)
    points = receiver.points("gen_ai.client.operation.duration")
    assert sum(point.count for point in points) == 5
    lines = {attributes_of(p.attributes)["llmdo.outcome"]: p.as_int for p in receiver.points("llmdo.lines")}
    assert lines["answered"] == 5
    assert len({about["service.instance.id"] for *_, about in receiver.spans}) == (1 if processes == 1 else 3)


def test_figures_count_on_over_the_runs_of_a_process(tmp_path, service, receiver):
    for number, name in enumerate(("a", "b"), start=1):
        answer(*files(tmp_path, {name: 2}), output=tmp_path / "out")
        (point,) = receiver.points("llmdo.calls")
        assert point.as_int == 2 * number


def test_the_age_of_the_queues_oldest_message_is_a_figure(receiver, cloudflare):
    account = cloudflare_account()
    state = RunState("r", queue=find_queue(account, "llmdo-input"))
    with QueueClient(account, state.queue) as client:
        client.push_many([{}])
    with figures_exported(state):
        flush_telemetry()
    (point,) = receiver.points("llmdo.queue.oldest_message.age")
    assert 0 <= point.as_double < 600


def test_a_run_that_fails_is_an_error_without_the_sentence(tmp_path, service, receiver):
    service.close()
    paths = files(tmp_path, {"a": 1})
    summary = answer(*paths, output=tmp_path / "out", patience=0.1, deadline=1.0)
    assert summary.counts.failed == 1 or summary.problem
    ((_, about),) = receiver.named("llmdo run")
    assert about["llmdo.lines.failed"] == summary.counts.failed
    failed = receiver.named("chat")
    assert failed and all(about["error.type"] == "ConnectionFailed" for _, about in failed)


def test_a_run_without_a_collector_ends_as_any_other_and_says_so_once(tmp_path, service, receiver, monkeypatch, caplog):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    with caplog.at_level(logging.WARNING, "llmdo"):
        summary = answer(*files(tmp_path, {"a": 2}), output=tmp_path / "out")
    assert (summary.exit_code, summary.counts.answered) == (0, 2)
    said = [record.getMessage() for record in caplog.records if "OpenTelemetry" in record.getMessage()]
    assert len(said) == 1 and "check OTEL_EXPORTER_OTLP_ENDPOINT" in said[0]


def test_a_file_that_was_done_before_has_no_span_and_a_stale_one_has(receiver):
    file = FileVersion("r2://b", "a.jsonl", "e", 10)
    state = RunState("r")
    state.settle(Settled(file, "done", 1, 0, "was done before"))
    state.settle(Settled(FileVersion("r2://b", "b.jsonl", "e", 10), "stale", reason="it is gone"))
    state.settle(Settled(FileVersion("r2://b", "b.jsonl", "e", 10), "stale", reason="it is gone"))
    flush_telemetry()
    ((_, about),) = receiver.named("llmdo file")
    assert (about["llmdo.file"], about["llmdo.outcome"]) == ("r2://b/b.jsonl", "stale")
