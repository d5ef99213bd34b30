"""Runs are seen and steered from another process, through the output alone."""

from __future__ import annotations

import json
import time
from contextlib import contextmanager

import pytest

from tests.integration.cloud import MODEL, OUTPUT, prompts

WHERE = ["--input", "r2://llmdo/input/", "--output", OUTPUT, "--model", MODEL]


def until(condition, what):
    end = time.monotonic() + 110.0
    while not (found := condition()):
        assert time.monotonic() < end, what
        time.sleep(0.2)
    return found


def said(cloud, *words, code=0):
    process = cloud.command(*words, "--json")
    out, err = process.communicate(timeout=120)
    assert process.returncode == code, err.decode()
    return json.loads(out)


def calls(cloud):
    return cloud.stats()["ai"]["calls"]


@contextmanager
def running(cloud, *more):
    """A run of slow calls, 8 at once, that has made some."""
    cloud.upload("a.jsonl", prompts(2_000))
    cloud.fault(target="ai", latency_s=0.5)  # two minutes: several commands begin and end meanwhile
    process = cloud.command("run", *WHERE, "--concurrency", "fixed:8", "--batch-size", "20", "--json", *more)
    try:
        until(lambda: calls(cloud) > 20, "no calls")
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    "more", [(), pytest.param(("--processes", "2"), marks=pytest.mark.slow)], ids=["one", "two processes"]
)
def test_a_run_is_paused_resumed_changed_and_drained_and_status_shows_it(cloud, more):
    with running(cloud, *more) as process:
        (run,) = said(cloud, "status", OUTPUT)["runs"]
        assert run["alive"] and run["command"] == "run" and not run["paused"]
        assert run["figures"]["bytes_opened"] >= 0
        (answer,) = said(cloud, "ctl", OUTPUT, "pause")
        assert answer == {"run_id": run["run_id"], "obeys": True, "said": "obeys"}
        assert said(cloud, "status", OUTPUT)["runs"][0]["paused"]

        def still():
            before = calls(cloud)
            time.sleep(2.0)
            return calls(cloud) == before

        until(still, "it goes on calling")
        paused_at = calls(cloud)
        said(cloud, "ctl", OUTPUT, "set", "concurrency=3")
        assert calls(cloud) == paused_at  # it is still paused
        said(cloud, "ctl", OUTPUT, "resume")
        until(lambda: calls(cloud) > paused_at + 20, "it does not go on")
        found = said(cloud, "status", OUTPUT)
        assert found["files"] == {"done": 0, "in_work": 1, "waiting": 0, "left_open": 0, "dead_letters": 0}
        assert found["open"][0]["file"] == "r2://llmdo/input/a.jsonl" and found["open"][0]["run_alive"]
        said(cloud, "ctl", OUTPUT, "drain")
        out, err = process.communicate(timeout=120)
        assert process.returncode == 1, err.decode()
        assert json.loads(out)["problem"] == "stopped by llmdo ctl; run the same command again to resume"
    assert cloud.alive() == []
    cloud.no_faults()
    assert cloud.run(input="r2://llmdo/input/", concurrency=64).exit_code == 0
    cloud.check()
    assert cloud.stats()["paid"]["calls"] == 2_000
    found = said(cloud, "status", OUTPUT)
    assert found["files"]["done"] == 1 and found["lines"]["answered"] == 2_000 and found["runs"] == []


def test_the_window_follows_an_order(cloud):
    with running(cloud):
        said(cloud, "ctl", OUTPUT, "set", "concurrency=2")
        until(lambda: _in_flight(cloud) <= 2, "more than two calls are in flight")
        said(cloud, "ctl", OUTPUT, "set", "concurrency=8")
        until(lambda: _in_flight(cloud) == 8, "fewer than eight calls are in flight")


def _in_flight(cloud):
    """The most calls in flight that the server saw within two seconds."""
    return max(cloud.stats()["ai"]["in_flight"] for _ in range(20) if time.sleep(0.1) is None)


def test_a_limit_of_cost_is_changed_while_it_runs(cloud):
    with running(cloud, "--max-cost", "50") as process:
        said(cloud, "ctl", OUTPUT, "set", "max-cost=0.0001")
        out, _ = process.communicate(timeout=120)
        assert "--max-cost 0.0001 could be exceeded by the next call" in json.loads(out)["problem"]


@pytest.mark.slow
def test_a_limit_of_cost_over_several_processes_is_refused_and_said(cloud):
    with running(cloud, "--processes", "2", "--max-cost", "50"):
        (answer,) = said(cloud, "ctl", OUTPUT, "set", "max-cost=1", code=1)
        assert answer["obeys"] is False and "the run has several processes" in answer["said"]


def test_orders_to_nobody_and_orders_that_make_no_sense_are_usage_errors(cloud, tmp_path):
    place = str(tmp_path)
    for words, says in [
        (("pause",), "no run of "),
        (("set", "concurrency=0"), "write set concurrency=N"),
        (("set", "window=3"), "'window=3' cannot be set"),
        (("set",), "write set concurrency=N"),
        (("pause", "concurrency=3"), "pause takes no settings"),
        (("pause", "--run", "x"), "run x of "),
    ]:
        assert says in said(cloud, "ctl", place, *words, code=2)["problem"], words
