"""A run that is killed again and again loses nothing, and pays twice for no more than the calls in flight.

The fast tier kills a few times, the slow one 20 times; the long form ten times as often: LLMDO_SOAK=1, or
``make soak``.
"""

from __future__ import annotations

import json
import logging
import os
import random
import threading
import time
from contextlib import contextmanager

import pytest

from llmdo.storage.runs import runs
from llmdo.transforms.acks import VISIBILITY_TIMEOUT
from tests.integration.cloud import MODEL, OUTPUT, prompts
from tests.signals import drain

SOAK = bool(os.environ.get("LLMDO_SOAK"))
FEW, KILLS = 2, 200 if SOAK else 20
WINDOW = 16
# What a run does between two kills, at most.
LINES_A_KILL = 60


def start(cloud, runner, *more, command="run", first=""):
    places = ["--queue", "llmdo-input", "--output", OUTPUT, "--model", MODEL]
    how = ["--concurrency", str(WINDOW), "--runner", runner, "--json", *more]
    return cloud.command(command, *places, *how, first=first)


def paid(cloud):
    return cloud.stats()["paid"]["calls"]


def wait_until(condition, seconds, process=None):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it took too long"
        assert process is None or process.poll() is None, process.communicate()[1].decode()[-3000:]
        time.sleep(0.05)


def kill_again_and_again(cloud, queue_clock, command, runner, kills):
    """Kills at random moments: before the first call, between calls, and after the last one. Returns how often.

    The last one is killed between calls, however long its start takes. What was leased and not yet acked comes again.
    """
    rng = random.Random(7)
    cloud.fault(target="ai", probability=1.0, latency_s=0.1)
    for kill in range(kills):
        process = start(cloud, runner, "--batch-seconds", "1", command=command)
        last = kill == kills - 1
        until = paid(cloud) + rng.randrange(int(last), LINES_A_KILL)
        end = time.monotonic() + (60.0 if last else rng.uniform(1.0, 12.0))
        while paid(cloud) < until and time.monotonic() < end and process.poll() is None:
            time.sleep(0.02)
        if process.poll() is not None:
            return kill
        process.kill()
        process.communicate()
        queue_clock.ahead += VISIBILITY_TIMEOUT + 1
    return kills


@pytest.mark.timeout(3600 if SOAK else 420)
@pytest.mark.parametrize(
    ("command", "runner", "kills"),
    [
        ("run", "direct", FEW),
        pytest.param("stream", "prism", FEW, marks=pytest.mark.prism),
        pytest.param("run", "direct", KILLS, marks=pytest.mark.slow),
        pytest.param("run", "prism", KILLS if SOAK else 6, marks=[pytest.mark.prism, pytest.mark.slow]),
        pytest.param("stream", "prism", KILLS, marks=[pytest.mark.prism, pytest.mark.slow]),
    ],
)
def test_kills_at_random_moments_repeat_at_most_the_calls_in_flight(cloud, queue_clock, command, runner, kills, capsys):
    count = LINES_A_KILL * kills
    cloud.upload("big.jsonl", prompts(count))
    cloud.upload("small.jsonl", prompts(40, "small"))
    cloud.upload("empty.jsonl", b"")
    done = kill_again_and_again(cloud, queue_clock, command, runner, kills)
    assert done >= kills // 2
    cloud.no_faults()
    last = start(cloud, runner, "--batch-seconds", "1", command=command)
    if command == "stream":
        wait_until(lambda: not cloud.keys("output/_open/") and not cloud.backlog(), 120, last)
        drain(last)  # all may have been done before it began
    out, err = last.communicate(timeout=120)
    summary = json.loads(out)
    assert summary["exit_code"] == 0, (summary, err.decode()[-2000:])
    cloud.check()
    assert cloud.backlog() == 0
    lines, calls = count + 40, paid(cloud)
    with capsys.disabled():
        allowed = lines + done * WINDOW
        print(f"\n{command} on {runner}: {lines} lines, {done} kills, {calls} calls paid, at most {allowed} allowed")
    assert lines <= calls <= allowed


def test_two_runs_at_once_pay_for_no_line_twice(cloud):
    for i in range(12):
        cloud.upload(f"file-{i}.jsonl", prompts(30, f"file {i} line"))
    cloud.fault(target="ai", probability=1.0, latency_s=0.05)
    listing = ["--input", "r2://llmdo/input/", "--output", OUTPUT, "--model", MODEL, "--concurrency", "8", "--json"]
    # Each has a ledger of its own, so that it is the job record alone that keeps them apart.
    both = [
        cloud.command("run", *listing, "--ledger", "none"),
        start(cloud, "direct", "--ledger", "none"),
    ]
    summaries = [json.loads(process.communicate(timeout=120)[0]) for process in both]
    assert {summary["exit_code"] for summary in summaries} == {0}
    cloud.check()
    assert set(cloud.stats()["paid"]["by_prompt"].values()) == {1}
    assert paid(cloud) == 360


def test_a_file_of_a_killed_run_is_free_at_once_on_the_same_host(cloud, monkeypatch):
    cloud.upload("a.jsonl", prompts(200))
    cloud.fault(target="ai", probability=1.0, latency_s=0.5)
    process = start(cloud, "direct")
    while paid(cloud) < 20:
        time.sleep(0.02)
    process.kill()
    process.communicate()
    assert len(cloud.alive()) == 1
    cloud.no_faults()
    monkeypatch.setattr(runs, "DEAD_SECONDS", 3600.0)  # its age would not free it
    assert cloud.run().exit_code == 0
    cloud.check()


def test_another_model_on_the_same_output_is_refused_before_any_call(cloud):
    cloud.upload("a.jsonl", prompts(3))
    assert cloud.run().exit_code == 0
    calls = paid(cloud)
    cloud.upload("b.jsonl", prompts(3, "other"))
    process = start(cloud, "direct", "--max-tokens", "7")
    _, err = process.communicate(timeout=240)
    assert process.returncode == 2
    said = " ".join(err.decode().split())
    assert "max_tokens" in said and "use another --output" in said
    assert (paid(cloud), cloud.backlog()) == (calls, 1)


def test_a_ledger_that_is_no_database_is_said_before_any_call(cloud, tmp_path):
    cloud.upload("a.jsonl", prompts(3))
    (tmp_path / "broken.sqlite").write_bytes(b"this is no database" * 100)
    process = start(cloud, "direct", "--ledger", f"sqlite:///{tmp_path}/broken.sqlite")
    _, err = process.communicate(timeout=240)
    assert process.returncode in (1, 2)
    assert b"broken.sqlite" in err and b"Traceback" not in err
    assert (paid(cloud), cloud.backlog()) == (0, 1)


def test_equal_requests_share_one_call_if_that_is_asked_for(cloud):
    line = json.dumps({"prompt": "always the same"}).encode() + b"\n"
    cloud.upload("a.jsonl", line * 50)
    cloud.upload("b.jsonl", line * 20)
    assert cloud.run(reuse="same-request").exit_code == 0
    cloud.check()
    assert paid(cloud) == 1


@contextmanager
def unheard_once(monkeypatch, ready):
    """As soon as ``ready``, this process's run has had no heartbeat for too long; once it says so, it has one again."""
    asleep_s = runs.ASLEEP_SECONDS
    monkeypatch.setattr(runs, "ASLEEP_SECONDS", asleep_s)

    class Awake(logging.Handler):
        def emit(self, record):
            runs.ASLEEP_SECONDS = asleep_s

    def fall_asleep():
        wait_until(ready, 120)
        runs.ASLEEP_SECONDS = 0.0

    warned = logging.getLogger("llmdo.runners.running.run")
    warned.addHandler(awake := Awake(logging.WARNING))
    sleeper = threading.Thread(target=fall_asleep)
    sleeper.start()
    try:
        yield
    finally:
        sleeper.join()
        warned.removeHandler(awake)


def test_a_run_that_was_not_heard_for_too_long_begins_again_and_pays_nothing_twice(cloud, monkeypatch, caplog):
    cloud.upload("a.jsonl", prompts(80))
    cloud.fault(target="ai", probability=1.0, latency_s=0.5)
    with unheard_once(monkeypatch, lambda: paid(cloud) >= 8), caplog.at_level("WARNING"):
        summary = cloud.run(concurrency=4)
    assert caplog.text.count("resuming") == 1
    assert (summary.exit_code, summary.asleep) == (0, False)
    cloud.check()
    assert paid(cloud) == 80
    assert cloud.alive() == []
