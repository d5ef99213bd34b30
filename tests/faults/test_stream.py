"""``llmdo stream`` as a process of its own: it drains, begins again, shares the work, survives being frozen."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.faults.test_kills import WINDOW, paid, start, wait_until
from tests.integration.cloud import MODEL, OUTPUT, prompts
from tests.signals import drain, insist

pytestmark = pytest.mark.prism


@pytest.fixture
def stream(cloud):
    """Starts streams, and leaves none behind."""
    started = []

    def begin(*more):
        started.append(start(cloud, "prism", "--batch-seconds", "1", *more, command="stream"))
        return started[-1]

    yield begin
    for process in started:
        if process.poll() is None:
            process.kill()
            process.communicate()


def settled(cloud, name):
    return any(key.endswith("/_manifest.json") for key in cloud.keys(f"output/llmdo/input/{name}/"))


def prisms(process):
    """The pids of the Prisms that a process has started and that run."""
    found = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(pid) for pid in found if "prism" in Path(f"/proc/{pid}/comm").read_text()]


def new_prisms(process, killed):
    """Those that are not among these: it may take a while until one that was killed is missed."""
    with suppress(FileNotFoundError):  # one of them has ended meanwhile
        return [pid for pid in prisms(process) if pid not in killed]
    return []


def runs(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:  # it ended before it was looked at, or while it was read
        return False


def ended(process, seconds=120):
    out, err = process.communicate(timeout=seconds)
    return json.loads(out), err.decode()


def test_files_are_answered_as_they_arrive_and_sigterm_drains(cloud, stream):
    cloud.fault(target="ai", probability=1.0, latency_s=0.3)
    process = stream()
    cloud.upload("a.jsonl", prompts(30))
    wait_until(lambda: settled(cloud, "a.jsonl"), 120, process)
    cloud.upload("b.jsonl", prompts(1, "b"))
    wait_until(lambda: settled(cloud, "b.jsonl"), 120, process)
    cloud.upload("big.jsonl", prompts(600, "big"))
    wait_until(lambda: paid(cloud) > 100, 120, process)
    wait_until(lambda: cloud.backlog() == 0, 120, process)  # acked, though the file is far from done
    process.terminate()
    summary, err = ended(process)
    assert (process.returncode, summary["exit_code"], summary["problem"]) == (0, 0, None)
    assert "Traceback" not in err
    assert (len(cloud.keys("output/_open/")), cloud.alive()) == (1, [])
    before = paid(cloud)
    assert before < 31 + 600
    cloud.no_faults()
    assert cloud.run(ledger="none").exit_code == 0  # without a ledger: all that was paid for is in a shard
    cloud.check()
    assert paid(cloud) == 631


def test_ctrl_c_reaches_the_whole_group_and_still_drains_and_a_second_one_leaves_at_once(cloud, stream):
    cloud.fault(target="ai", probability=1.0, latency_s=200.0)
    cloud.upload("a.jsonl", prompts(200))
    command = [
        sys.executable,
        "-m",
        "llmdo",
        "stream",
        "--queue",
        "llmdo-input",
        "--output",
        OUTPUT,
        "--model",
        MODEL,
    ]
    process = subprocess.Popen(
        [*command, "--concurrency", "4", "--drain-seconds", "600", "--json"],
        env=os.environ | cloud.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    wait_until(lambda: cloud.stats()["ai"]["max_in_flight"] > 0, 120, process)
    (prism,) = prisms(process)
    os.killpg(process.pid, signal.SIGINT)
    time.sleep(1.0)
    assert process.poll() is None and runs(prism)  # the calls in flight are waited for
    insist(process, signal.SIGINT, os.killpg)  # the calls in flight take 200 s, and none is waited for
    assert process.returncode == 128 + signal.SIGINT
    wait_until(lambda: not runs(prism), 30)
    cloud.no_faults()
    assert cloud.run().exit_code == 0
    cloud.check()


def test_calls_that_outlast_the_drain_are_given_up_and_made_again_later(cloud, stream):
    cloud.fault(target="ai", probability=1.0, latency_s=200.0)
    cloud.upload("a.jsonl", prompts(20))
    process = stream("--drain-seconds", "1")
    wait_until(lambda: cloud.stats()["ai"]["max_in_flight"] > 0, 120, process)
    process.terminate()
    summary, _ = ended(process, 150)
    assert (process.returncode, summary["problem"]) == (0, None)
    cloud.no_faults()
    assert cloud.run().exit_code == 0
    cloud.check()


def test_a_prism_that_dies_is_started_again_and_nothing_is_lost(cloud, stream):
    cloud.fault(target="ai", probability=1.0, latency_s=0.1)
    cloud.upload("a.jsonl", prompts(600))
    process = stream()
    killed: list[int] = []
    for calls in (100, 300):
        wait_until(lambda calls=calls: paid(cloud) > calls and new_prisms(process, killed), 120, process)  # noqa: B023  called at once
        killed += new_prisms(process, killed)
        os.kill(killed[-1], signal.SIGKILL)
    wait_until(lambda: new_prisms(process, killed), 120, process)  # the file may be settled before that
    wait_until(lambda: settled(cloud, "a.jsonl"), 120, process)
    process.terminate()
    summary, _ = ended(process)
    assert (process.returncode, summary["restarts"]) == (0, 2)
    cloud.check()
    assert 600 <= paid(cloud) <= 600 + 2 * WINDOW


@pytest.mark.slow
def test_two_streams_and_a_run_on_one_queue_pay_for_no_line_twice(cloud, stream):
    for i in range(50):
        cloud.upload(f"file-{i}.jsonl", prompts(20, f"file {i} line"))
    cloud.fault(target="ai", probability=1.0, latency_s=0.05)
    # Without a ledger it is the job records alone that keep them apart.
    streams = [stream("--ledger", "none"), stream("--ledger", "none")]
    listing = ["--input", "r2://llmdo/input/", "--output", OUTPUT, "--model", MODEL, "--concurrency", "8", "--json"]
    run = cloud.command("run", *listing, "--ledger", "none")
    summary, _ = ended(run, 120)
    assert summary["exit_code"] == 0
    wait_until(lambda: not cloud.keys("output/_open/") and not cloud.backlog(), 120)
    for process in streams:
        drain(process)
        assert ended(process)[0]["exit_code"] == 0
    cloud.check()
    assert set(cloud.stats()["paid"]["by_prompt"].values()) == {1}
    assert paid(cloud) == 1000


# The heartbeat's times, in seconds, so that a freeze of some seconds is a long one.
_TIMES = {"BEAT_SECONDS": 1.0, "DEAD_SECONDS": 8.0, "ASLEEP_SECONDS": 4.0, "_ASK_AGAIN_SECONDS": 1.0}
_QUICK = f"import llmdo.storage.runs.runs; vars(llmdo.storage.runs.runs).update({_TIMES}); "


@pytest.mark.fast("direct")
@pytest.mark.parametrize("runner", ["direct", "prism"])
def test_a_run_that_wakes_after_its_file_was_settled_by_another_changes_nothing(cloud, runner, tmp_path):
    cloud.upload("a.jsonl", prompts(300))
    cloud.fault(target="ai", probability=1.0, latency_s=0.2)
    listing = [
        "run",
        "--input",
        "r2://llmdo/input/",
        "--output",
        OUTPUT,
        "--model",
        MODEL,
        "--concurrency",
        "8",
        "--json",
    ]

    def begin(*more):
        code = _QUICK + f"from llmdo.runners.cli.main import main; main({[*listing, *more]!r})"
        env = os.environ | cloud.env | {"XDG_STATE_HOME": str(tmp_path / f"state{len(more)}")}
        return subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    frozen = begin("--runner", runner, "--batch-size", "20")
    wait_until(lambda: len([k for k in cloud.keys("output/llmdo/") if "/shard-" in k]) >= 2, 120, frozen)
    frozen.send_signal(signal.SIGSTOP)
    time.sleep(10)
    other = begin("--batch-size", "30")
    out, err = other.communicate(timeout=120)
    assert json.loads(out)["exit_code"] == 0, err.decode()[-2000:]
    (manifest,) = [key for key in cloud.keys("output/llmdo/") if key.endswith("_manifest.json")]
    body = cloud.store.read(manifest)
    cloud.check()
    frozen.send_signal(signal.SIGCONT)
    out, err = frozen.communicate(timeout=120)
    assert frozen.returncode == 0, (out, err.decode()[-2000:])
    assert cloud.store.read(manifest) == body
    cloud.check()  # every shard of the manifest is there still
