"""A pipeline that fails while calls are in flight: their answers are kept, and no line is paid twice."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import signal
import sqlite3
import threading
import time
from contextlib import closing

import apache_beam as beam
import pytest

from llmdo.backends.engine import registry
from llmdo.backends.engine.registry import get_engine
from llmdo.backends.engine.settings import CallSettings
from llmdo.backends.limits.retry import set_instant
from llmdo.backends.requests import ChatRequest
from llmdo.backends.responses import ChatResponse
from llmdo.backends.usage import Usage
from llmdo.pipelines.chat_options import check_chat_options
from llmdo.pipelines.options import check_options
from llmdo.runners.running.attempt import attempt
from llmdo.runners.running.retry import retry, retry_options
from llmdo.runners.running.stop import Stop
from llmdo.runners.showing.progress import quiet
from llmdo.transforms.answers.ledger_settings import LedgerSettings
from tests.integration.cloud import MODEL, OUTPUT, prompts
from tests.integration.test_end_to_end import wait_until
from tests.integration.test_flink import worker_pool

LINES, WINDOW = 320, 32
WAITING = re.compile(r"the pipeline failed: waiting up to \d+ s for (\d+) calls in flight")


def padded(count):
    """Lines of a file that Prism reads in several bundles: one writes its shards while the others call."""
    return b"".join(
        json.dumps({"id": i, "prompt": f"prompt {i}", "metadata": {"padding": "x" * 400}}).encode() + b"\n"
        for i in range(count)
    )


def fail_in_the_middle(cloud, **how):
    """A shard cannot be written, while other calls are in flight; some of them for long, that of an early line too."""
    cloud.fault(target="ai", match="prompt 31", latency_s=6.0)
    cloud.fault(target="ai", latency_s={"median": 0.5, "sigma": 0.3})
    cloud.fault(target="r2", match="/shard-", status=403, **how)


def paid(cloud):
    return cloud.stats()["paid"]["calls"]


def start(cloud, command, runner, *more):
    how = ["--concurrency", f"fixed:{WINDOW}", "--batch-size", "10", "--runner", runner, "--json", *more]
    return cloud.command(command, "--queue", "llmdo-input", "--output", OUTPUT, "--model", MODEL, *how)


@pytest.mark.fast("direct")
@pytest.mark.parametrize("runner", ["direct", pytest.param("prism", marks=pytest.mark.prism)])
def test_a_failed_run_and_its_resume_pay_each_line_once(cloud, runner):
    cloud.upload("a.jsonl", padded(LINES))
    fail_in_the_middle(cloud)
    process = start(cloud, "run", runner)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "shard-" in json.loads(out)["problem"]
    (waited,) = WAITING.findall(err.decode())
    assert 0 < int(waited) <= WINDOW
    assert paid(cloud) <= LINES  # on Prism all are called before the first shard
    cloud.no_faults()
    process = start(cloud, "run", runner)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err.decode()
    assert paid(cloud) == LINES
    cloud.check()


@pytest.mark.slow
@pytest.mark.flink
@pytest.mark.timeout(600)
def test_workers_of_a_job_that_failed_on_flink_keep_the_answers_of_their_calls_in_flight(cloud):
    cloud.upload("a.jsonl", padded(LINES))
    fail_in_the_middle(cloud)
    how = ["--batch-seconds", "1", "--environment-type", "EXTERNAL", "--flink-restarts", "0"]
    with worker_pool(cloud) as address:
        process = start(cloud, "run", "flink", *how, "--environment-config", address)
        out, err = process.communicate(timeout=250)
        assert process.returncode == 1, err.decode()
        assert "shard-" in json.loads(out)["problem"]
        failed = paid(cloud)
        cloud.no_faults()
        process = start(cloud, "run", "flink", *how, "--environment-config", address)
        out, err = process.communicate(timeout=250)
        assert process.returncode == 0, (out.decode(), err.decode())
    assert 0 < failed < LINES
    assert paid(cloud) == LINES
    cloud.check()


@pytest.mark.prism
def test_a_stream_whose_pipeline_fails_goes_on_by_itself_and_pays_each_line_once(cloud):
    cloud.upload("a.jsonl", padded(LINES))
    fail_in_the_middle(cloud, count=1)
    process = start(cloud, "stream", "prism", "--batch-seconds", "1")
    try:
        wait_until(lambda: any(key.endswith("_manifest.json") for key in cloud.keys("output/llmdo/")), seconds=120)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=240)
    finally:
        process.kill()
    assert process.returncode == 0, err.decode()
    assert len(WAITING.findall(err.decode())) == 1
    assert paid(cloud) == LINES
    cloud.check()


def test_a_failed_retry_and_the_next_one_pay_each_line_once(cloud):
    lines = 60
    cloud.upload("a.jsonl", prompts(lines))
    cloud.fault(target="ai", status=400, code=5024)
    set_instant(True)
    try:
        assert cloud.run().exit_code == 3
    finally:
        set_instant(False)
    cloud.no_faults()
    fail_in_the_middle(cloud)
    options = retry_options(OUTPUT, "retryable", concurrency=f"fixed:{WINDOW}", batch_size=10)
    failed = retry(options, quiet)
    assert (failed.exit_code, failed.problem is not None) == (1, True)
    cloud.no_faults()
    assert retry(options, quiet).exit_code == 0
    assert paid(cloud) == lines
    cloud.check()


def test_ctrl_c_while_it_waits_leaves_at_once(cloud):
    cloud.upload("a.jsonl", prompts(60))
    cloud.fault(target="ai", match="prompt 5", latency_s=200.0)
    cloud.fault(target="ai", match="prompt 4", latency_s=3.0)  # a shard's failure shows when more answers arrive
    cloud.fault(target="r2", match="/shard-", status=403)
    process = start(cloud, "run", "direct", "--drain-seconds", "200")
    said = b""
    while not WAITING.search(said.decode()):
        line = process.stderr.readline()
        assert line, said.decode()
        said += line
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=150)
    assert process.returncode == 128 + signal.SIGINT
    assert time.monotonic() - began < 150


class Slow(logging.Handler):
    """Stands for a provider: four calls begin, and end when the run has said that it waits for them."""

    def __init__(self):
        super().__init__()
        self.begun, self.ended, self.cancelled = 0, 0, 0
        self.gate = threading.Event()

    def emit(self, record):
        if WAITING.search(record.getMessage()):
            self.gate.set()

    async def execute(self, request):
        self.begun += 1
        try:
            while not self.gate.is_set():  # noqa: ASYNC110 - a thread sets it, not the loop
                await asyncio.sleep(0.01)
        except BaseException:
            self.cancelled += 1
            raise
        self.ended += 1
        return ChatResponse("re", "stop", Usage(1, 1), request.model)

    async def aclose(self):
        pass


class CallAndFail(beam.DoFn):
    """Has calls in flight when it fails."""

    def __init__(self, ledger, run_id):
        self._calls = CallSettings(4, kept=LedgerSettings(ledger), run_id=run_id)

    def process(self, _):
        engine = get_engine(self._calls)
        for key in range(8):
            engine.submit("slow", ChatRequest("m", (), request_id=str(key)), lambda done: None)
        while engine.stats().in_flight < 4:
            time.sleep(0.01)
        raise ValueError("something else")


def options_of(kind, folder, drain):
    (folder / "a.jsonl").touch()
    model, output = "local/smollm2-135m-instruct", str(folder / "out")
    if kind == "chat":
        return check_chat_options(events=(str(folder / "a.jsonl"),), output=output, model=model, drain_seconds=drain)
    return check_options(files=(str(folder / "a.jsonl"),), output=output, model=model, drain_seconds=drain)


@pytest.mark.fast("60.0-4-files", "0.0-0-chat")
@pytest.mark.parametrize("kind", ["files", "chat"])
@pytest.mark.parametrize(("drain", "kept"), [(60.0, 4), (0.0, 0)])
def test_the_calls_in_flight_of_any_failed_graph_end_within_the_time_to_drain(
    tmp_path, monkeypatch, caplog, kind, drain, kept
):
    provider, ledger = Slow(), f"sqlite:///{tmp_path}/ledger.sqlite"
    monkeypatch.setattr(registry, "connect", lambda name, gateway: provider)
    logging.getLogger().addHandler(provider)

    def build(pipeline, options, run_id):
        return pipeline | beam.Create([None]) | beam.ParDo(CallAndFail(ledger, run_id))

    try:
        summary = attempt(options_of(kind, tmp_path, drain), quiet, Stop(drain), build)
    finally:
        logging.getLogger().removeHandler(provider)
    assert "something else" in summary.problem
    assert (provider.begun, provider.ended, provider.cancelled) == (4, kept, 4 - kept)
    assert len(WAITING.findall(caplog.text)) == (1 if kept else 0)
    assert ("4 calls have not ended in 0 s" in caplog.text) == (not kept)
    with closing(sqlite3.connect(tmp_path / "ledger.sqlite")) as found:
        (table,) = [name for (name,) in found.execute("select name from sqlite_master where type = 'table'")]
        assert found.execute(f"select count(*) from {table}").fetchone() == (kept,)
