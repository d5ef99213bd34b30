"""Schedules as processes of their own: one run at a time, kills, stops, and what the output says of them."""

import itertools
import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import httpx
import pytest

from tests.fakes.ports import free_port
from tests.integration.cloud import MODEL, OUTPUT, prompts
from tests.signals import drain, insist

WINDOW, LINES = 4, 400
SOON = 120.0  # seconds until a test gives up waiting
CLAIM = "output/_runs/_schedule.json"


@pytest.fixture
def start(cloud):
    """Starts a schedule that ticks each second; those that are left at the end are killed."""
    begun = []

    def start(*more, **env):
        places = ["--input", "r2://llmdo/input/", "--output", OUTPUT, "--model", MODEL]
        how = ["--cron", "* * * * * *", "--concurrency", str(WINDOW), "--json", *more]
        begun.append(cloud.command("schedule", *places, *how, **env))
        return begun[-1]

    yield start
    for process in begun:
        if process.poll() is None:
            process.kill()
            process.communicate()


def wait_until(condition, process):
    end = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < end, "it took too long"
        assert process.poll() is None, process.communicate()[1].decode()[-3000:]
        time.sleep(0.05)


def end(process):
    """Stops a schedule; gives its exit code, the runs that it told of, and its stderr."""
    drain(process)
    return told_by(process, *process.communicate(timeout=SOON))


def told_by(process, out, err):
    return process.returncode, [json.loads(line) for line in out.splitlines()], err.decode()


def summaries(cloud):
    keys = [key for key in cloud.alive() if key.endswith("Z.json")]
    return [json.loads(cloud.store.read(key)[0]) for key in keys]


def runs(cloud):
    return [summary for summary in summaries(cloud) if "exit_code" in summary]


def paid(cloud):
    return cloud.stats()["paid"]["calls"]


def slow(cloud):
    """A file whose run takes 100 s, until ``no_faults``: other processes start meanwhile, on a busy machine."""
    cloud.fault(target="ai", probability=1.0, latency_s=1.0)
    cloud.upload("slow.jsonl", prompts(LINES))


def run_of(process):
    """The pid of the run that a schedule has in work, which has a session of its own."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    (found,) = [pid for pid in children if b"\0run\0" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    return Path(f"/proc/{found}")


def ended(process):
    try:
        return "State:\tZ" in (process / "status").read_text()
    except OSError:  # it ended before it was looked at, or while it was read
        return True


@pytest.mark.slow
def test_two_schedules_of_one_output_never_run_at_once_and_each_tick_is_run_for_once(cloud, start):
    cloud.upload("a.jsonl", prompts(20))
    both = [start(), start()]
    wait_until(lambda: runs(cloud), both[0])
    cloud.upload("b.jsonl", prompts(20, "later"))
    wait_until(lambda: len(runs(cloud)) >= 3, both[1])
    told = [end(process) for process in both]
    said = sorted((one for _, some, _ in told for one in some), key=lambda one: one["started"])
    assert len(said) >= 3
    assert all(first["ended"] <= then["started"] for first, then in itertools.pairwise(said))
    assert len({one["tick"] for one in said}) == len(said)
    assert {code for code, _, _ in told} <= {0, 1}  # 1: it was stopped in the middle of a run
    assert [one["problem"] for one in said if one["exit_code"] != 0 and "stopped by" not in one["problem"]] == []
    cloud.check()
    assert paid(cloud) == 40


def test_each_run_leaves_its_summary_in_the_output_as_it_was_told(cloud, start):
    cloud.upload("a.jsonl", prompts(3) + b"{broken\n")
    process = start("--timezone", "Europe/Berlin")
    wait_until(lambda: runs(cloud), process)
    _, told, err = end(process)
    stored = runs(cloud)
    first = stored[0]
    assert first == told[0]
    assert (first["answered"], first["failed"], first["files_done"], first["exit_code"]) == (3, 1, 1, 3)
    assert first["tick"][:19] <= first["started"][:19]
    assert first["started"] < first["ended"]
    assert first["schedule"] == "* * * * * * Europe/Berlin"
    assert "schedule --input r2://llmdo/input/" in first["command"]
    assert f"output/_runs/{first['tick'].replace(':', '-')}.json" in cloud.keys("output/_runs/")
    assert cloud.env["R2_SECRET_ACCESS_KEY"] not in json.dumps(stored)
    assert err == ""


def test_a_schedule_that_is_killed_takes_its_run_with_it_and_another_one_takes_over(cloud, start):
    slow(cloud)
    first = start()
    wait_until(lambda: paid(cloud) >= 8, first)
    second = start()
    wait_until(lambda: [one for one in summaries(cloud) if "skipped" in one], second)
    run = run_of(first)
    first.kill()
    first.communicate()
    killed = time.monotonic()
    while not ended(run):
        assert time.monotonic() < killed + 60
        time.sleep(0.05)
    cloud.no_faults()
    wait_until(lambda: runs(cloud), second)
    code, told, err = end(second)
    assert "is still running on the tick of" in err
    assert "died while it worked on the tick of" in err
    assert told[0]["exit_code"] == 0
    assert code in (0, 1)
    cloud.check()
    assert LINES <= paid(cloud) <= LINES + WINDOW
    assert json.loads(cloud.store.read(CLAIM)[0])["run_id"] == ""


def test_sigterm_drains_the_run_in_work_and_the_next_start_goes_on(cloud, start):
    slow(cloud)
    process = start()
    wait_until(lambda: paid(cloud) >= 8, process)
    code, told, err = end(process)
    assert code == 1
    (only,) = told
    assert only["problem"].startswith("stopped by SIGTERM")
    assert "Traceback" not in err
    assert runs(cloud) == told
    answered = paid(cloud)
    assert answered < LINES
    cloud.no_faults()
    again = start()
    wait_until(lambda: len(runs(cloud)) >= 2, again)
    end(again)
    cloud.check()
    assert paid(cloud) == LINES


@pytest.mark.slow
def test_a_second_sigterm_leaves_at_once_and_the_run_in_work_with_it(cloud, start):
    cloud.fault(target="ai", probability=1.0, latency_s=100)
    cloud.upload("slow.jsonl", prompts(LINES))
    process = start("--drain-seconds", "600")
    wait_until(lambda: cloud.stats()["ai"]["in_flight"] == WINDOW, process)
    run = run_of(process)
    drain(process)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(2.0)  # the calls in flight are waited for
    code, told, _ = told_by(process, *insist(process, signal.SIGTERM))
    assert (code, told) == (128 + signal.SIGTERM, [])
    killed = time.monotonic()
    while not ended(run):
        assert time.monotonic() < killed + 60
        time.sleep(0.05)


@pytest.mark.slow
def test_a_run_that_dies_does_not_end_the_schedule(cloud, start):
    slow(cloud)
    process = start()
    wait_until(lambda: paid(cloud) >= 8, process)
    os.kill(int(run_of(process).name), signal.SIGKILL)
    cloud.no_faults()
    wait_until(lambda: len(runs(cloud)) >= 2, process)
    _, told, _ = end(process)
    assert (told[0]["exit_code"], told[1]["exit_code"]) == (137, 0)
    assert told[0]["problem"] == "the run was killed by SIGKILL; the next one resumes from there"
    cloud.check()
    assert LINES <= paid(cloud) <= LINES + WINDOW


@pytest.mark.fast("places0-*")
@pytest.mark.parametrize(
    ("places", "says"),
    [
        (["--input", "r2://there-is-none/", "--output", OUTPUT], "there is no such bucket"),
        (["--queue", "no-such-queue", "--output", OUTPUT], "no-such-queue"),
    ],
)
def test_what_no_run_could_do_ends_the_schedule_before_its_first_tick(cloud, places, says):
    process = cloud.command("schedule", "--cron", "0 0 1 1 *", *places, "--model", MODEL)
    _, err = process.communicate(timeout=SOON)
    assert process.returncode == 2
    assert says in " ".join(err.decode().split())
    assert b"Traceback" not in err


def test_the_runs_of_a_schedule_may_have_several_processes_which_a_stop_drains(cloud, start):
    slow(cloud)
    schedule = start("--processes", "2")
    wait_until(lambda: paid(cloud) >= 10, schedule)
    code, (said,), err = end(schedule)
    assert (code, said["exit_code"]) == (1, 1)
    assert said["problem"] == "stopped by SIGTERM; run the same command again to resume"
    assert 10 <= said["answered"] == paid(cloud) < LINES
    assert "Traceback" not in err


@pytest.mark.slow
def test_a_schedule_serves_what_its_runs_have_done_and_is_ready(cloud, start):
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    cloud.upload("a.jsonl", prompts(12))
    process = start("--metrics-port", str(port))

    def says(*lines):
        try:
            text = httpx.get(f"{url}/metrics", trust_env=False, timeout=60).text
        except httpx.TransportError:
            return False
        return all(re.search(f"^{line}", text, re.MULTILINE) for line in lines)

    ran = r'llmdo_schedule_runs_total\{exit_code="0"\} [1-9]'
    wait_until(
        lambda: says(ran, r'llmdo_lines_total\{outcome="answered"\} 12\.0$', r"llmdo_calls_total 12\.0$"), process
    )
    assert httpx.get(f"{url}/readyz", trust_env=False, timeout=60).status_code == 200
    end(process)
