"""OpenTelemetry's own collector takes what a run exports."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fakes.ports import free_port
from tests.integration.openai_service import serving as openai
from tests.servers.installing import collector
from tests.servers.serving import Server, serving

pytestmark = [pytest.mark.slow, pytest.mark.servers, pytest.mark.timeout(3600)]

ROOT = Path(__file__).parents[2]
SECRET = "what nobody else may read"


def value(of):
    (found,) = of.values()
    return [value(one) for one in found["values"]] if isinstance(found, dict) else found


def attributes(of):
    return {one["key"]: value(one["value"]) for one in of.get("attributes", [])}


@pytest.fixture
def exported(tmp_path):
    """The address of a collector, and what it has written, by signal."""
    port, out = free_port(), tmp_path / "exported.jsonl"
    settings = {
        "receivers": {"otlp": {"protocols": {"http": {"endpoint": f"127.0.0.1:{port}"}}}},
        "exporters": {"file": {"path": str(out), "flush_interval": "100ms"}},
        "service": {
            "telemetry": {"metrics": {"level": "none"}},
            "pipelines": {kind: {"receivers": ["otlp"], "exporters": ["file"]} for kind in ("traces", "metrics")},
        },
    }
    (tmp_path / "collector.yaml").write_text(json.dumps(settings))
    server = Server([collector(), tmp_path / "collector.yaml"], port, "/", tmp_path / "collector.log")

    def read():
        server.process.terminate()  # writes what it has
        server.process.wait(60)
        server.process = None
        return [json.loads(line) for line in out.read_text().splitlines()]

    with serving(server):
        yield server.url, read


@pytest.mark.parametrize("processes", [1, 2])
def test_a_collector_takes_the_spans_and_metrics_of_a_run(tmp_path, exported, processes):
    url, read = exported
    lines = [{"id": str(i), "prompt": f"{SECRET} {i}"} for i in range(6)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with openai() as service:
        env = {"OPENAI_BASE_URL": service.url, "OPENAI_API_KEY": "sk-x", "OTEL_EXPORTER_OTLP_ENDPOINT": url}
        env |= {"OTEL_TRACES_SAMPLER": "always_on", "OTEL_SERVICE_NAME": "nightly", "NO_PROXY": "127.0.0.1"}
        command = [sys.executable, "-m", "llmdo", "run", tmp_path / "in.jsonl", "--output", tmp_path / "out", "--json"]
        command += ["--model", "openai/small", "--runner", "direct", "--processes", str(processes)]
        done = subprocess.run(command, env=os.environ | env, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "OpenTelemetry" not in done.stderr, done.stderr
    messages = read()
    assert SECRET not in json.dumps(messages)
    scopes = [(of, scope) for one in messages for of in one.get("resourceSpans", []) for scope in of["scopeSpans"]]
    assert {attributes(of["resource"])["service.name"] for of, _ in scopes} == {"nightly"}
    assert {scope["schemaUrl"] for _, scope in scopes} == {"https://opentelemetry.io/schemas/gen-ai/1.42.0"}
    spans = [span for _, scope in scopes for span in scope["spans"]]
    names = [span["name"] for span in spans]
    assert (names.count("llmdo run"), names.count("llmdo file"), names.count("chat small")) == (1, 1, 6)
    (file,) = [span for span in spans if span["name"] == "llmdo file"]
    assert {span["parentSpanId"] for span in spans if span["name"] == "chat small"} == {file["spanId"]}
    scopes = [scope for one in messages for of in one.get("resourceMetrics", []) for scope in of["scopeMetrics"]]
    names = {metric["name"] for scope in scopes for metric in scope["metrics"]}
    assert {"gen_ai.client.operation.duration", "gen_ai.client.token.usage", "llmdo.lines"} <= names
