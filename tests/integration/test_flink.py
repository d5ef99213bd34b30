"""Files answered on Flink, against the stand-in for Cloudflare: in this process, and by workers in others."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.fakes.ports import free_port
from tests.integration.cloud import MODEL, OUTPUT, prompts
from tests.integration.test_end_to_end import FILES, upload_all

pytestmark = [pytest.mark.flink, pytest.mark.timeout(600)]
_ARGUMENTS = ("--queue", "llmdo-input", "--output", OUTPUT, "--model", MODEL, "--runner", "flink", "--json")


@pytest.fixture(params=["here", "in another process"])
def place(request, cloud):
    """The command line's and the options' way of saying where steps run."""
    if request.param == "here":
        yield {}
        return
    with worker_pool(cloud) as address:
        yield {"environment_type": "EXTERNAL", "environment_config": address}


@contextlib.contextmanager
def worker_pool(cloud):
    """It starts a process for each worker that a runner asks for."""
    port = free_port()
    pool = subprocess.Popen(
        [sys.executable, "-m", "llmdo.runners.workers.pool", f"--service_port={port}"],
        env=os.environ | cloud.env | {"PYTHONPATH": str(Path.cwd())},
    )
    try:
        wait_until(lambda: answers(port))
        yield f"localhost:{port}"
    finally:
        pool.terminate()
        pool.wait()


def answers(port):
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def wait_until(done, seconds=240):
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def said(place):
    """As arguments."""
    return [f"--{name.replace('_', '-')}={value}" for name, value in place.items()]


@pytest.mark.fast("in another process")
def test_every_line_of_every_kind_of_file_is_answered_once_and_every_message_acked(cloud, place):
    upload_all(cloud)
    summary = cloud.run(runner="flink", flink=place)
    assert (summary.problem, summary.in_work, summary.left) == (None, (), {})
    assert summary.exit_code == 3
    counts = {s.file.key.removeprefix("input/"): (s.answered, s.failed) for s in summary.settled}
    assert set(counts) == set(FILES)
    assert (counts["plain.jsonl"], counts["broken.jsonl"], counts["packed.jsonl.gz"]) == ((250, 0), (1, 5), (30, 0))
    assert (summary.counts.files_done, summary.counts.files_with_errors) == (len(FILES), 1)
    assert (summary.counts.answered, summary.counts.failed) == (417, 5)
    assert summary.spent.calls >= 287
    cloud.check()
    assert cloud.backlog() == 0
    assert cloud.alive() == []


@pytest.mark.slow
def test_shards_appear_before_the_end_and_what_a_killed_run_left_is_not_paid_again(cloud):
    lines, window = 600, 16
    cloud.upload("big.jsonl", prompts(lines))
    cloud.fault(target="ai", probability=1.0, latency_s=1.0)  # most lines are left when two shards were seen
    process = cloud.command("run", *_ARGUMENTS, "--concurrency", str(window), "--batch-size", "20")
    wait_until(lambda: sum("/shard-" in key for key in cloud.keys("output/llmdo/")) >= 2)
    process.kill()
    process.communicate()
    assert len(cloud.keys("output/_open/")) == 1
    cloud.no_faults()
    summary = cloud.run(runner="flink")
    assert summary.problem is None
    assert summary.counts.answered_before >= 40
    cloud.check()
    assert cloud.stats()["paid"]["calls"] <= lines + window


@pytest.mark.fast("here")
def test_a_stream_answers_what_comes_and_drains_when_told_to(cloud, place):
    process = cloud.command("stream", *_ARGUMENTS, *said(place), "--batch-seconds", "1")
    for number in range(3):
        cloud.upload(f"{number}.jsonl", prompts(30))
        wait_until(lambda: len(manifests(cloud)) > number)  # noqa: B023  called at once
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=240)
    summary = json.loads(out)
    assert process.returncode == 0, err.decode()
    assert (summary["answered"], summary["files_done"], summary["failed"]) == (90, 3, 0)
    cloud.check()
    assert cloud.alive() == []


def manifests(cloud):
    return [key for key in cloud.keys("output/") if key.endswith("_manifest.json")]


@pytest.mark.slow
def test_an_error_that_no_call_survives_stops_the_run_wherever_its_steps_are(cloud, place):
    cloud.upload("a.jsonl", prompts(40))
    cloud.fault(target="ai", probability=1.0, status=401)
    summary = cloud.run(runner="flink", flink=place)
    assert summary.exit_code == 1
    assert summary.final
    assert "token" in summary.problem
    assert [one.key for one in summary.in_work] == ["input/a.jsonl"]
    cloud.no_faults()
    assert cloud.run().exit_code == 0
    cloud.check()
