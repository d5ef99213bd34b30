"""A pipeline of somebody else on Flink whose workers are killed: with a ledger each answer is paid once."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.ml.inference.base import RunInference
from apache_beam.options.pipeline_options import PipelineOptions

import llmdo
from llmdo.pipelines.options import check_options
from llmdo.runners.flink.checks import check
from llmdo.runners.flink.runner import flink_arguments, running_job_server
from tests.integration.cloud import MODEL, OUTPUT, Cloud
from tests.servers.flink import LocalCluster, running_cluster

pytestmark = [pytest.mark.slow, pytest.mark.flink, pytest.mark.timeout(900)]

ROWS, WINDOW = 400, 8
BEFORE_A_KILL = 80  # calls


@pytest.fixture
def flink(cloud: Cloud) -> Iterator[LocalCluster]:
    with running_cluster(task_managers=1) as cluster:
        yield cluster


def paid(cloud: Cloud) -> int:
    return cloud.stats()["paid"]["calls"]


def wait_until(condition: Callable[[], bool], job: threading.Thread) -> None:
    end = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < end and job.is_alive()
        time.sleep(0.1)


def run_and_kill(cloud: Cloud, flink: LocalCluster, step: Any) -> list[str]:
    """Runs a pipeline whose workers are killed once. Returns the states in which the job ended."""
    place = {"flink_master": flink.master, "environment_config": flink.pool, "parallelism": 1, "checkpoint_seconds": 2}
    options = check_options(
        input="r2://llmdo/input/",
        output=OUTPUT,
        model=MODEL,
        runner="flink",
        flink=place,
        concurrency=WINDOW,
    )
    ended: list[str] = []
    plan = check(options)
    with running_job_server(plan) as endpoint:
        # Bundles as large as those of a batch: what RunInference has of one that is repeated is paid again.
        large = ["--max_bundle_size=1000", "--max_bundle_time_mills=60000"]
        arguments = [*flink_arguments(options, plan, endpoint, "somebody-elses"), *large]
        pipeline = beam.Pipeline(options=PipelineOptions(arguments))
        rows = [{"text": f"prompt {number}"} for number in range(ROWS)]
        _ = pipeline | beam.Create(rows) | "Ask" >> step
        job = threading.Thread(target=lambda: ended.append(str(pipeline.run().wait_until_finish())))
        cloud.fault(target="ai", probability=1.0, latency_s=1.0)
        job.start()
        wait_until(lambda: paid(cloud) > BEFORE_A_KILL, job)
        os.killpg(flink.pool_process.pid, signal.SIGKILL)
        flink.start_pool()
        cloud.no_faults()
        job.join(400)
        assert not job.is_alive()
    return ended


@pytest.mark.parametrize("name", ["AskModel", "RunInference"])
def test_killed_workers_cost_at_most_the_calls_in_flight(
    name: str, cloud: Cloud, flink: LocalCluster, capsys: Any
) -> None:
    ledger = "r2://llmdo/paid/"
    step = llmdo.AskModel(MODEL, "{text}", ledger=ledger, concurrency=WINDOW)
    if name == "RunInference":
        step = RunInference(llmdo.ModelHandler(MODEL, prompt="{text}", ledger=ledger, concurrency=WINDOW))
    assert run_and_kill(cloud, flink, step) == ["DONE"]
    answered, calls = cloud.stats()["paid"]["by_prompt"], paid(cloud)
    with capsys.disabled():
        print(f"\n{name}: {ROWS} rows, a pool killed, {calls} calls paid, at most {ROWS + WINDOW} allowed")
    assert len(answered) == ROWS
    assert ROWS <= calls <= ROWS + WINDOW


def test_run_inference_without_a_ledger_pays_again_for_the_bundles_that_are_repeated(
    cloud: Cloud, flink: LocalCluster, capsys: Any
) -> None:
    step = RunInference(llmdo.ModelHandler(MODEL, prompt="{text}", concurrency=WINDOW))
    assert run_and_kill(cloud, flink, step) == ["DONE"]
    twice = sum(count > 1 for count in cloud.stats()["paid"]["by_prompt"].values())
    with capsys.disabled():
        print(f"\nRunInference: {ROWS} rows, a pool killed, {paid(cloud)} calls paid, {twice} rows twice")
    assert twice > WINDOW
