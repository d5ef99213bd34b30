"""On a Flink cluster whose machines and workers die in the middle of a job, every line is answered once still."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator

import httpx
import pytest

from llmdo.runners.flink import rest as flink_rest
from tests.integration.cloud import MODEL, OUTPUT, Cloud, prompts
from tests.servers.flink import LocalCluster, running_cluster

pytestmark = [pytest.mark.slow, pytest.mark.flink, pytest.mark.timeout(900)]

LINES = 2400
WINDOW = 8
MACHINES = 2  # each has a Python process, with a window of its own
BEFORE_A_KILL = 64  # calls
# A call takes so long that lines are left when the cluster has noticed a kill, however slow the machine is; the faults
# are lifted as soon as the last kill was noticed.
CALL_S = 2.0


@pytest.fixture
def flink(cloud: Cloud) -> Iterator[LocalCluster]:
    """A cluster whose workers have the environment of ``cloud``; its one machine has the slots of one job."""
    with running_cluster(task_managers=1) as cluster:
        yield cluster


def start(cloud: Cloud, cluster: LocalCluster) -> subprocess.Popen[bytes]:
    return cloud.command(
        *("run", "--queue", "llmdo-input", "--output", OUTPUT, "--model", MODEL, "--concurrency", str(WINDOW)),
        *("--runner", "flink", "--flink-master", cluster.master, "--environment-config", cluster.pool),
        # As many slots as are left when one machine is gone.
        *("--parallelism", "2", "--checkpoint-seconds", "2", "--batch-seconds", "1", "--json"),
    )


def paid(cloud: Cloud) -> int:
    return cloud.stats()["paid"]["calls"]


def shards(cloud: Cloud) -> list[str]:
    return [info.key for info in cloud.store.list("output/") if "/shard-" in info.key]


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[bytes], seconds: float = 300.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it took too long"
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)


def the_job(cluster: LocalCluster) -> flink_rest.FlinkJob:
    (row,) = [
        row
        for row in httpx.get(f"{cluster.url}/jobs/overview", timeout=60).json()["jobs"]
        if row["state"] != "CANCELED"
    ]
    return flink_rest.FlinkJob(row["jid"], row["name"], row["state"])


def restarts(cluster: LocalCluster) -> int:
    found = httpx.get(f"{cluster.url}/jobs/{the_job(cluster).id}/metrics?get=numRestarts", timeout=60).json()
    return int(found[0]["value"]) if found else 0  # there are no metrics in the first seconds


def completed_checkpoints(cluster: LocalCluster) -> int:
    found = httpx.get(f"{cluster.url}/jobs/{the_job(cluster).id}/checkpoints", timeout=60).json()
    return int(found["counts"]["completed"])


def ends_well(process: subprocess.Popen[bytes]) -> None:
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, (out.decode(), err.decode()[-3000:])
    assert json.loads(out)["exit_code"] == 0


def test_a_killed_machine_and_killed_workers_cost_no_line_and_at_most_the_calls_in_flight(
    cloud: Cloud, flink: LocalCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    cloud.upload("big.jsonl", prompts(LINES))
    cloud.upload("empty.jsonl", b"")
    cloud.fault(target="ai", probability=1.0, latency_s=CALL_S)
    process = start(cloud, flink)
    wait_until(lambda: paid(cloud) > BEFORE_A_KILL and len(shards(cloud)) > 0, process)
    wait_until(lambda: completed_checkpoints(flink) > 0, process)
    assert not cloud.keys("output/llmdo/input/big.jsonl/_manifest.json")
    calls = paid(cloud)
    flink.start_task_manager()  # only now, so that the job is on the other one
    os.kill(flink.task_managers[0].pid, signal.SIGKILL)
    wait_until(lambda: restarts(flink) > 0 and paid(cloud) > calls + BEFORE_A_KILL, process)
    calls, before = paid(cloud), restarts(flink)
    os.killpg(flink.pool_process.pid, signal.SIGKILL)
    flink.start_pool()
    wait_until(lambda: restarts(flink) > before and paid(cloud) > calls + 2 * WINDOW, process)
    cloud.no_faults()
    ends_well(process)
    cloud.check()
    assert cloud.backlog() == 0
    calls, allowed = paid(cloud), LINES + 2 * MACHINES * WINDOW
    with capsys.disabled():
        print(f"\n{LINES} lines, a TaskManager and a pool killed, {calls} calls paid, at most {allowed} allowed")
    assert LINES <= calls <= allowed


def test_after_a_cancelled_job_a_new_one_without_a_savepoint_ends_the_same(
    cloud: Cloud, flink: LocalCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    cloud.upload("big.jsonl", prompts(LINES))
    cloud.fault(target="ai", probability=1.0, latency_s=CALL_S)
    process = start(cloud, flink)
    wait_until(lambda: paid(cloud) > BEFORE_A_KILL and len(shards(cloud)) > 0, process)
    flink_rest.cancel(flink.url, the_job(flink))
    process.communicate(timeout=300)
    assert process.returncode == 1
    calls = paid(cloud)
    assert calls < LINES
    cloud.no_faults()
    ends_well(start(cloud, flink))
    cloud.check()
    calls, allowed = paid(cloud), LINES + MACHINES * WINDOW
    with capsys.disabled():
        print(f"\n{LINES} lines, a job cancelled, {calls} calls paid, at most {allowed} allowed")
    assert LINES <= calls <= allowed
