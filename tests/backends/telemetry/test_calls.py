"""What is exported of calls: by the environment, and by an application's own providers."""

import logging
import random
import subprocess
import sys
import time

import pytest
from opentelemetry import metrics, trace
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from llmdo.backends.errors import BadReply, RateLimited
from llmdo.backends.requests import ChatRequest, EmbedRequest, LineId, Message, RawRequest
from llmdo.backends.responses import ChatResponse, EmbedResponse, RawResponse
from llmdo.backends.telemetry import conventions
from llmdo.backends.telemetry.calls import MOST_FAILED_PER_S, CallEnded, CallTelemetry, lines_of
from llmdo.backends.telemetry.measures import CallKind, CallMeasures
from llmdo.backends.telemetry.switch import call_measures, flush_telemetry, forget_telemetry, telemetry
from llmdo.backends.usage import Usage
from llmdo.settings.secrets import without_secrets
from tests.fakes.otlp import Receiver, attributes_of

SECRET = "a prompt that nobody may see"
ASKED = ChatRequest(
    "gpt-4o-mini",
    (Message("user", SECRET),),
    {"temperature": 0, "max_tokens": 9, "seed": 4, "n": 1, "response_format": {"type": "json_object"}},
    LineId.of("a", "r2://b/in.jsonl", "e1", 70),
)
ANSWERED = ChatResponse(SECRET, "stop", Usage(10, 20, 4, 5), "gpt-4o-mini-2024", "chatcmpl-1")


@pytest.fixture
def environment(monkeypatch):
    for name in ("OTEL_SDK_DISABLED", "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_TRACES_SAMPLER", "OTEL_TRACES_EXPORTER"):
        monkeypatch.delenv(name, raising=False)
    forget_telemetry()
    yield monkeypatch
    forget_telemetry()


@pytest.fixture
def receiver(environment):
    receiver = Receiver()
    environment.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
    environment.setenv("OTEL_TRACES_SAMPLER", "always_on")
    yield receiver
    forget_telemetry()
    receiver.close()


def ended(how, request=ASKED, provider="openai", took_s=0.25, number=1):
    return CallEnded(provider, request, lines_of(request), took_s, number, how)


def test_nothing_is_on_and_nothing_imported_where_nobody_asks():
    code = (
        "import sys; import llmdo.backends.engine.engine; from llmdo.backends.telemetry.calls import CallTelemetry;"
        "assert CallTelemetry.of('r') is None; print([name for name in sys.modules if 'opentelemetry' in name])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_call_is_a_span_by_the_conventions_and_holds_no_content(receiver):
    calls = CallTelemetry.of("run-1")
    before = time.time_ns()
    calls(ended(ANSWERED, number=2))
    flush_telemetry()
    ((span, schema, about),) = receiver.spans
    assert (span.name, span.kind, schema) == ("chat gpt-4o-mini", Span.SPAN_KIND_CLIENT, conventions.SCHEMA_URL)
    assert span.end_time_unix_nano - span.start_time_unix_nano == pytest.approx(0.25e9, rel=1e-6)
    assert before <= span.end_time_unix_nano <= time.time_ns()
    assert about["service.name"] == "llmdo" and about["service.instance.id"]
    assert attributes_of(span.attributes) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "gpt-4o-mini",
        "gen_ai.request.temperature": 0.0,
        "gen_ai.request.max_tokens": 9,
        "gen_ai.request.seed": 4,
        "gen_ai.output.type": "json",
        "gen_ai.response.model": "gpt-4o-mini-2024",
        "gen_ai.response.id": "chatcmpl-1",
        "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.usage.input_tokens": 10,
        "gen_ai.usage.output_tokens": 20,
        "gen_ai.usage.cache_read.input_tokens": 4,
        "gen_ai.usage.reasoning.output_tokens": 5,
        "llmdo.run.id": "run-1",
        "llmdo.file": "r2://b/in.jsonl",
        "llmdo.file.version": "e1",
        "llmdo.line.offset": 70,
        "llmdo.try": 2,
    }
    assert not any(SECRET.encode() in body for body in receiver.raw)


@pytest.mark.parametrize(
    ("request_", "answer", "name", "attributes"),
    [
        (
            EmbedRequest("bge", (SECRET, "b"), {"dimensions": 8}, line_ids=("x", "y")),
            EmbedResponse(((0.1,), (0.2,)), Usage(7), "bge-m3"),
            "embeddings bge",
            {"gen_ai.embeddings.dimension.count": 8, "gen_ai.usage.input_tokens": 7, "llmdo.texts": 2},
        ),
        (
            RawRequest("gpt", {"prompt": SECRET, "max_tokens": 3}, path="completions"),
            RawResponse({"text": SECRET}, Usage(1, 2), "gpt"),
            "text_completion gpt",
            {"gen_ai.request.max_tokens": 3, "gen_ai.usage.output_tokens": 2},
        ),
        (RawRequest("m2m", {"text": SECRET}), RawResponse({}, Usage(), "m2m"), "generate_content m2m", {}),
    ],
)
def test_each_kind_of_call_has_its_operation(receiver, request_, answer, name, attributes):
    CallTelemetry.of("r")(ended(answer, request_, "workers-ai"))
    flush_telemetry()
    ((span, about),) = receiver.named("")
    assert span.name == name and about["gen_ai.provider.name"] == "workers-ai"
    assert attributes.items() <= about.items()
    assert not any(SECRET.encode() in body for body in receiver.raw)


def test_a_call_that_fails_always_has_a_span_without_the_services_words(receiver, environment):
    environment.setenv("OTEL_TRACES_SAMPLER", "traceidratio")
    environment.setenv("OTEL_TRACES_SAMPLER_ARG", "0")
    calls = CallTelemetry.of("run-1")
    calls(ended(ANSWERED))
    calls(ended(RateLimited(f"too many: {SECRET}", status=429, code=3021)))
    calls(ended(TimeoutError()))
    flush_telemetry()
    (refused, refusal), (late, timeout) = receiver.named("chat")
    assert (refusal["error.type"], refusal["http.response.status_code"], refusal["llmdo.error.code"]) == (
        "RateLimited",
        429,
        "3021",
    )
    assert timeout["error.type"] == "CallTimeout"
    assert {refused.status.code, late.status.code} == {Status.STATUS_CODE_ERROR} and not refused.status.message
    assert not any(SECRET.encode() in body for body in receiver.raw)


def test_a_service_that_refuses_everything_fills_no_queue(receiver):
    calls = CallTelemetry.of("run-1")
    for _ in range(5 * MOST_FAILED_PER_S):
        calls(ended(RateLimited("no")))
    flush_telemetry()
    assert MOST_FAILED_PER_S <= len(receiver.spans) <= 3 * MOST_FAILED_PER_S
    (point,) = receiver.points("gen_ai.client.operation.duration")
    assert point.count == 5 * MOST_FAILED_PER_S, "all are measured"


@pytest.mark.parametrize(
    ("sampler", "ratio", "spans"),
    [
        (None, None, range(2, 35)),
        ("traceidratio", "0.5", range(400, 600)),
        ("parentbased_traceidratio", "1", range(1000, 1001)),
        ("parentbased_always_on", None, range(1000, 1001)),
        ("always_off", None, range(1)),
    ],
)
def test_the_sampler_of_the_environment_holds_and_else_one_call_of_a_hundred(
    receiver, environment, sampler, ratio, spans
):
    for name, value in (("OTEL_TRACES_SAMPLER", sampler), ("OTEL_TRACES_SAMPLER_ARG", ratio)):
        environment.delenv(name, raising=False) if value is None else environment.setenv(name, value)
    calls = CallTelemetry(telemetry(), call_measures(), "r", random.Random(7))
    for _ in range(1000):
        calls(ended(ANSWERED))
    flush_telemetry()
    assert len(receiver.named("chat")) in spans
    (point,) = receiver.points("gen_ai.client.operation.duration")
    assert point.count == 1000


def test_calls_are_in_the_trace_of_their_file_whichever_process_makes_them(receiver):
    calls, again = CallTelemetry.of("run-1"), CallTelemetry.of("run-1")
    calls(ended(ANSWERED))
    again(ended(ANSWERED))
    lines = (LineId.of("x", "r2://b/in.jsonl", "e1", 0), LineId.of("y", "r2://b/other.jsonl", "e2", 0))
    calls(ended(EmbedResponse(((0.1,), (0.2,)), Usage(7), "bge"), EmbedRequest("bge", ("a", "b"), line_ids=lines)))
    flush_telemetry()
    (first, _), (second, _), (both, about) = receiver.named("")
    assert first.trace_id == second.trace_id and first.parent_span_id == second.parent_span_id
    assert first.span_id != second.span_id
    assert [link.trace_id == first.trace_id for link in both.links] == [True, False] and not both.parent_span_id
    assert "llmdo.file" not in about


def test_durations_and_tokens_are_histograms_by_model_and_error(receiver):
    calls = CallTelemetry.of("r")
    for took_s in (0.015, 0.3, 0.3, 200.0):
        calls(ended(ANSWERED, took_s=took_s))
    calls(ended(BadReply("?", usage=Usage(1000, 0)), took_s=0.5))
    calls(ended(RateLimited("?", usage=Usage(24, 0)), took_s=0.5))
    flush_telemetry()
    durations = {attributes_of(p.attributes).get("error.type"): p for p in receiver.points(conventions.DURATION)}
    assert durations.keys() == {None, "BadReply", "RateLimited"}
    point = durations[None]
    assert (point.count, point.min, point.max) == (4, 0.015, 200.0) and point.sum == pytest.approx(200.615)
    assert list(point.explicit_bounds) == pytest.approx([0.01 * 2**n for n in range(14)])
    assert [n for n, count in enumerate(point.bucket_counts) for _ in range(count)] == [1, 5, 5, 14]
    tokens = {
        (at["gen_ai.token.type"], at.get("gen_ai.response.model")): p
        for p in receiver.points(conventions.TOKENS_USED)
        for at in [attributes_of(p.attributes)]
    }
    assert {key: (p.count, p.sum) for key, p in tokens.items()} == {
        ("input", "gpt-4o-mini-2024"): (4, 40),
        ("output", "gpt-4o-mini-2024"): (4, 80),
        ("input", None): (2, 1024),
    }
    assert "process.uptime" in {metric.name for metric, *_ in receiver.metrics}


@pytest.mark.parametrize(("preference", "counts"), [("cumulative", [1, 3]), ("delta", [1, 2])])
def test_histograms_are_cumulative_or_deltas_as_the_environment_prefers(receiver, environment, preference, counts):
    environment.setenv("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", preference)
    calls, found = CallTelemetry.of("r"), []
    for more in (1, 2):
        for _ in range(more):
            calls(ended(ANSWERED))
        flush_telemetry()
        (point,) = receiver.points(conventions.DURATION)
        found.append(point.count)
    assert found == counts


def test_an_exporter_that_was_closed_before_does_not_end_the_flush_of_another(receiver):
    """The thread that closes it may need longer than anybody waits for it."""
    calls, said = CallTelemetry.of("r"), logging.getLogger("opentelemetry.exporter.otlp")
    receiver.before = lambda: (said.warning("Exporter already shutdown, ignoring call"), time.sleep(0.3))
    calls(ended(ANSWERED))
    flush_telemetry(60.0)
    assert len(receiver.spans) == len(receiver.points(conventions.DURATION)) == 1


def test_lines_that_name_many_models_are_counted_together_beyond_a_thousand():
    measures = CallMeasures()
    for number in range(1500):
        measures.add(CallKind("openai", f"m{number}", "chat"), 1.0, None)
    _, found = measures.taken()
    assert len(found) == 1001 and sum(sum(one.seconds.counts) for one in found.values()) == 1500


@pytest.mark.parametrize("traces", [True, False])
def test_only_the_signal_that_has_an_address_is_exported(environment, traces):
    receiver = Receiver()
    name, path = ("TRACES", "/v1/traces") if traces else ("METRICS", "/v1/metrics")
    environment.setenv(f"OTEL_EXPORTER_OTLP_{name}_ENDPOINT", receiver.url + path)
    environment.setenv("OTEL_TRACES_SAMPLER", "always_on")
    CallTelemetry.of("r")(ended(ANSWERED))
    flush_telemetry()
    receiver.close()
    assert (bool(receiver.spans), bool(receiver.metrics)) == (traces, not traces)


@pytest.mark.parametrize(
    ("name", "value"),
    [("OTEL_SDK_DISABLED", "true"), ("OTEL_TRACES_EXPORTER", "none"), ("OTEL_EXPORTER_OTLP_ENDPOINT", "")],
)
def test_it_can_be_switched_off(receiver, environment, name, value):
    environment.setenv(name, value)
    environment.setenv("OTEL_METRICS_EXPORTER", "none")
    if name != "OTEL_TRACES_EXPORTER":
        environment.delenv("OTEL_METRICS_EXPORTER")
    assert telemetry() is None and CallTelemetry.of("r") is None


def test_settings_that_cannot_be_heeded_are_said_once(receiver, environment, caplog):
    environment.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    environment.setenv("OTEL_TRACES_SAMPLER", "jaeger_remote")
    for _ in range(2):
        CallTelemetry.of("r")
    said = [record.getMessage() for record in caplog.records if record.name.startswith("llmdo")]
    assert len(said) == 2 and "PROTOCOL=grpc" in said[0] and "jaeger_remote" in said[1]


def test_without_the_sdk_one_sentence_names_the_extra(receiver, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.metric_exporter", None)
    monkeypatch.delitem(sys.modules, "llmdo.backends.telemetry.sdk", raising=False)
    assert CallTelemetry.of("r") is None and CallTelemetry.of("r") is None
    (said,) = [record.getMessage() for record in caplog.records if record.name.startswith("llmdo")]
    assert "pip install 'opentelemetry-sdk<" in said


def test_a_collector_that_is_not_there_costs_no_time_and_one_warning(environment, caplog):
    environment.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    environment.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20sk-a-very-secret-key")
    environment.setenv("OTEL_TRACES_SAMPLER", "always_on")
    environment.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "300")
    calls, began = CallTelemetry.of("r"), time.monotonic()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            calls(ended(ANSWERED))
            flush_telemetry(seconds=300.0)
    assert time.monotonic() - began < 55, "it does not wait for tries that would take a minute"
    (warning,) = [record for record in caplog.records if record.name.startswith(("llmdo", "opentelemetry"))]
    assert "check OTEL_EXPORTER_OTLP_ENDPOINT" in warning.getMessage()


def test_a_collector_that_never_answers_holds_a_run_up_no_longer_than_it_is_given(receiver, environment):
    environment.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "300")
    receiver.before = lambda: time.sleep(70)
    CallTelemetry.of("r")(ended(ANSWERED))
    began = time.monotonic()
    flush_telemetry(seconds=0.5)
    assert time.monotonic() - began < 55


def test_keys_of_a_collector_are_sent_and_never_shown(receiver, environment):
    environment.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20sk-a-very-secret-key,x-bt-parent=project")
    environment.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://user:passw0rd-1@127.0.0.1:1/v1/traces")
    assert "sk-a-very" not in without_secrets("it said: Bearer sk-a-very-secret-key and Bearer%20sk-a-very-secret-key")
    assert "passw0rd" not in without_secrets("http://user:passw0rd-1@127.0.0.1:1/v1/traces")
    environment.delenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    CallTelemetry.of("r")(ended(ANSWERED))
    flush_telemetry()
    assert {headers["authorization"] for headers in receiver.headers} == {"Bearer sk-a-very-secret-key"}


def test_an_applications_own_providers_are_used(environment):
    spans, reader = InMemorySpanExporter(), InMemoryMetricReader()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    environment.setattr(trace, "get_tracer_provider", lambda: provider)
    environment.setattr(metrics, "get_meter_provider", lambda: measured)
    environment.setenv("OTEL_TRACES_SAMPLER", "always_on")
    measured = MeterProvider([reader])
    calls = CallTelemetry.of("run-1")
    calls(ended(ANSWERED))
    calls(ended(RateLimited("?")))
    good, bad = spans.get_finished_spans()
    assert good.name == bad.name == "chat gpt-4o-mini" and good.parent is None
    assert good.attributes["llmdo.file"] == "r2://b/in.jsonl" and bad.attributes["error.type"] == "RateLimited"
    found = {
        metric.name: metric
        for of in reader.get_metrics_data().resource_metrics
        for s in of.scope_metrics
        for metric in s.metrics
    }
    assert sum(point.count for point in found[conventions.DURATION].data.data_points) == 2
    assert {p.attributes["gen_ai.token.type"]: p.sum for p in found[conventions.TOKENS_USED].data.data_points} == {
        "input": 10,
        "output": 20,
    }
