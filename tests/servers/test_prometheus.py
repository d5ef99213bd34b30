"""A real Prometheus scrapes a stream, and answers what the dashboard asks."""

import functools
import json
import os
import re
import shutil
import signal
import time
from pathlib import Path

import httpx
import pytest

from tests.fakes.ports import free_port
from tests.integration.cloud import MODEL, OUTPUT, Cloud, prompts
from tests.servers.serving import Server, serving

pytestmark = [pytest.mark.slow, pytest.mark.prism]

DASHBOARD = Path(__file__).parents[2] / "examples/deploy/grafana.json"
SOON = 120.0


@pytest.fixture
def cloud(cloudflare, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return Cloud(cloudflare)


@pytest.fixture
def prometheus(tmp_path):
    program = shutil.which("prometheus")
    if program is None:
        missing = "prometheus is not on PATH: apt-get install prometheus"
        pytest.fail(missing) if os.environ.get("CI") == "true" else pytest.skip(missing)
    scraped, port = free_port(), free_port()
    settings = {
        "global": {"scrape_interval": "1s"},
        "scrape_configs": [{"job_name": "llmdo", "static_configs": [{"targets": [f"127.0.0.1:{scraped}"]}]}],
    }
    (tmp_path / "prometheus.yml").write_text(json.dumps(settings))  # YAML, too
    places = [f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data"]
    command = [program, *places, f"--web.listen-address=127.0.0.1:{port}"]
    with serving(Server(command, port, "/-/ready", tmp_path / "prometheus.log")) as server:
        yield server.url, scraped


def asked(url, query):
    """The values of a query by their labels."""
    reply = (
        httpx.get(f"{url}/api/v1/query", params={"query": query}, trust_env=False, timeout=60).raise_for_status().json()
    )
    return {tuple(sorted(one["metric"].items())): float(one["value"][1]) for one in reply["data"]["result"]}


def names_of(url):
    """All metrics that were scraped."""
    reply = httpx.get(f"{url}/api/v1/label/__name__/values", trust_env=False, timeout=60).raise_for_status()
    return set(reply.json()["data"])


def until(condition, process):
    end = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < end, "it took too long"
        assert process.poll() is None, process.communicate()[1].decode()[-3000:]
        time.sleep(0.2)


def test_prometheus_scrapes_a_stream_and_its_dashboard_has_answers(cloud, prometheus):
    url, port = prometheus
    how = ["--queue", "llmdo-input", "--output", OUTPUT, "--model", MODEL, "--batch-seconds", "1"]
    cloud.upload("a.jsonl", prompts(40))
    process = cloud.command("stream", *how, "--metrics-port", str(port), "--json")
    try:
        until(lambda: 40 in asked(url, 'llmdo_lines_total{outcome="answered"}').values(), process)
        until(lambda: 1 in asked(url, 'llmdo_files_total{outcome="done"}').values(), process)
        expected = {"llmdo_calls_in_flight", "llmdo_window", "llmdo_cost_usd_total", "llmdo_restarts_total"}
        expected.add("llmdo_queue_oldest_message_age_seconds")  # not in every scrape: the queue may be slow to answer
        until(lambda: expected <= names_of(url), process)
        names = names_of(url)
        slowest = asked(url, "histogram_quantile(0.99, sum by (le) (llmdo_call_seconds_bucket))")
        assert 0 < next(iter(slowest.values())) < SOON
        assert asked(url, "sum(llmdo_call_seconds_count)") == {(): 40.0}
        for panel in json.loads(DASHBOARD.read_text())["panels"]:
            for target in panel["targets"]:
                query = target["expr"].replace("$job", "llmdo")
                (name, *_) = re.findall(r"llmdo_\w+", query)
                if name in names:  # nothing was tried again, nothing limits the cost, and it is no schedule
                    until(functools.partial(asked, url, query), process)  # an error in the query would be a 400
        ready = [
            httpx.get(f"http://127.0.0.1:{port}{path}", trust_env=False, timeout=60) for path in ("/healthz", "/readyz")
        ]
        assert [reply.status_code for reply in ready] == [200, 200]
    finally:
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=SOON)
    assert process.returncode == 0, err.decode()
