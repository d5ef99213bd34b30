"""``run --processes`` loses nothing and pays for nothing twice, whoever dies, and stops as one run."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from tests.faults.test_kills import unheard_once
from tests.integration.cloud import MODEL, OUTPUT, prompts
from tests.integration.test_processes import LONG_PROMPTS
from tests.signals import insist

WINDOW, SECONDS = 16, 240


def start(cloud, *more, first="", **env):
    where = ["--input", "r2://llmdo/input/", "--output", OUTPUT, "--model", MODEL, "--json"]
    how = ["--concurrency", str(WINDOW), "--processes", "2", "--range-bytes", "65536", "--batch-size", "20"]
    return cloud.command("run", *where, *how, *more, first=first, **env)


def workers_of(pid):
    """The processes of a run's workers."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            command = (path / "cmdline").read_bytes().split(b"\0")
        except (OSError, IndexError):
            continue
        if (
            parent == pid
            and any(b"llmdo.runners.workers.child" in word for word in command)
            and b"/bin/sh" not in command
        ):
            found.append(int(path.name))
    return sorted(found)


def session_of(pid):
    """All processes of a worker's session."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            fields = (path / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == pid and fields[0] != "Z":
            found.append(int(path.name))
    return found


def paid(cloud):
    return cloud.stats()["paid"]["calls"]


def wait_until(condition, process=None):
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, "it took too long"
        assert process is None or process.poll() is None, process.communicate()[1].decode()[-3000:]
        time.sleep(0.05)


def big(cloud, lines=1_500):
    """Two stretches at least, of some 700 lines."""
    cloud.upload("big.jsonl", prompts(lines, "a prompt of some length, so that the file has several stretches"))
    cloud.fault(target="ai", probability=1.0, latency_s=0.1)
    return lines


def both_work(cloud, process):
    wait_until(lambda: len(workers_of(process.pid)) == 2 and paid(cloud) >= 100, process)
    return workers_of(process.pid)


def ended(process):
    out, err = process.communicate(timeout=SECONDS)
    return json.loads(out), err.decode()


def test_a_worker_that_is_killed_is_replaced_and_its_lines_are_paid_once(cloud):
    lines = big(cloud)
    process = start(cloud)
    first, second = both_work(cloud, process)
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: workers_of(process.pid) not in ([first, second], [second]), process)
    cloud.no_faults()
    summary, err = ended(process)
    assert (summary["exit_code"], summary["problem"], summary["answered"]) == (0, None, lines)
    assert "killed by signal 9: another one takes over its lines" in err
    cloud.check()
    # The window is shared out by what each worker has to do: nearly all of it may have been this one's.
    assert lines <= paid(cloud) <= lines + WINDOW
    assert 0 < summary["spent"]["possibly"]["calls"] <= WINDOW
    assert session_of(first) == []


def test_no_worker_outlives_its_run_and_the_next_one_goes_on(cloud):
    lines = big(cloud)
    process = start(cloud)
    workers = both_work(cloud, process)
    process.kill()
    process.communicate()
    wait_until(lambda: not any(map(session_of, workers)))
    cloud.no_faults()
    summary, _ = ended(start(cloud))
    assert (summary["exit_code"], summary["answered"]) == (0, lines)
    cloud.check()
    assert paid(cloud) == lines  # calls in flight ended, and their answers were kept


def test_ctrl_c_ends_the_calls_in_flight_of_all_and_the_next_run_goes_on(cloud):
    lines = big(cloud)
    process = start(cloud)
    workers = both_work(cloud, process)
    process.send_signal(signal.SIGINT)
    summary, err = ended(process)
    assert (process.returncode, summary["exit_code"]) == (1, 1)
    assert summary["problem"] == "stopped by SIGINT; run the same command again to resume"
    assert "Traceback" not in err
    stopped = paid(cloud)
    assert 0 < summary["answered"] == summary["spent"]["calls"] == stopped < lines
    assert not any(map(session_of, workers))
    cloud.no_faults()
    assert ended(start(cloud))[0]["exit_code"] == 0
    cloud.check()
    assert paid(cloud) == lines


@pytest.mark.slow
def test_a_second_ctrl_c_exits_at_once_with_all_workers(cloud):
    big(cloud)
    cloud.fault(target="ai", probability=1.0, latency_s=200, match="prompt")
    process = start(cloud)
    wait_until(lambda: len(workers_of(process.pid)) == 2 and cloud.stats()["ai"]["calls"] >= 2, process)
    workers = workers_of(process.pid)
    process.send_signal(signal.SIGINT)
    time.sleep(1.0)
    assert process.poll() is None
    insist(process, signal.SIGINT)
    assert process.returncode == 128 + signal.SIGINT
    wait_until(lambda: not any(map(session_of, workers)))


@pytest.mark.slow
def test_a_token_that_is_revoked_stops_all_workers_with_that_error(cloud):
    lines = big(cloud)
    process = start(cloud)
    both_work(cloud, process)
    cloud.fault(target="ai", probability=1.0, status=401, code=10000)
    summary, err = ended(process)
    assert (process.returncode, summary["exit_code"]) == (1, 1)
    assert "CLOUDFLARE_API_TOKEN" in summary["problem"] and "Traceback" not in err
    assert summary["answered"] == paid(cloud) < lines
    cloud.no_faults()
    assert ended(start(cloud))[0]["exit_code"] == 0
    cloud.check()
    assert paid(cloud) == lines


@pytest.mark.slow
def test_a_worker_that_is_silent_is_killed_before_its_lines_are_dealt_again(cloud):
    lines = big(cloud)
    short = "import llmdo.runners.workers.crew as crew; crew.LONGEST_SILENCE = 5.0; "
    process = start(cloud, first=short)
    first, _ = both_work(cloud, process)
    os.kill(first, signal.SIGSTOP)
    wait_until(lambda: session_of(first) == [], process)
    cloud.no_faults()
    summary, err = ended(process)
    assert (summary["exit_code"], summary["answered"]) == (0, lines)
    assert "has not reported for 5 s: it is replaced" in err
    cloud.check()
    assert lines <= paid(cloud) <= lines + WINDOW


@pytest.mark.slow
def test_a_budget_holds_whichever_worker_is_killed(cloud):
    cloud.upload("a.jsonl", LONG_PROMPTS)
    cloud.fault(target="ai", probability=1.0, latency_s=0.1)
    limit = 60_000
    process = start(cloud, "--max-tokens-total", str(limit))
    for _ in range(2):
        before = paid(cloud)
        wait_until(lambda: len(workers_of(process.pid)) == 2 and paid(cloud) >= before + 60, process)  # noqa: B023
        killed = workers_of(process.pid)[0]
        os.kill(killed, signal.SIGKILL)
        wait_until(lambda: killed not in workers_of(process.pid), process)  # noqa: B023
    cloud.no_faults()
    summary, _ = ended(process)
    assert summary["exit_code"] == 1 and "--max-tokens-total 60000" in summary["problem"]
    # The prompts are equal: what the dead have paid is known, too.
    spent = summary["spent"]
    tokens = paid(cloud) * (spent["input_tokens"] + spent["output_tokens"]) / spent["calls"]
    assert 0.25 * limit < tokens <= limit


# Before a worker parses its first line: as a bug in native code does, or the system when memory is short.
# What it has sent leaves it a moment later, as on a busy machine.
DEADLY = """
import os
import time
from multiprocessing.connection import Connection
from llmdo.transforms.answers import infer

parse = infer.parse_prompt

def parse_prompt(data, *rest, **more):
    if b"deadly" in data:
        os._exit(139)
    return parse(data, *rest, **more)

infer.parse_prompt = parse_prompt

send = Connection.send

def slow_send(self, message):
    time.sleep(0.02)
    send(self, message)

Connection.send = slow_send
"""


def test_lines_that_every_worker_dies_of_are_left_open_and_the_others_are_answered(cloud, tmp_path):
    cloud.upload("bad.jsonl", b'{"prompt": "deadly"}\n')
    cloud.upload("good.jsonl", prompts(200))
    (tmp_path / "deadly.py").write_text(DEADLY)
    process = start(cloud, first=f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {WORKERS_IMPORT}")
    summary, err = ended(process)
    assert summary["exit_code"] == 1, err
    ((what, why),) = summary["left"].items()
    assert "bad.jsonl" in what and "3 worker processes died while they read its bytes from 0 on" in why
    assert [(one["file"], one["status"]) for one in summary["files"]] == [("r2://llmdo/input/good.jsonl", "done")]
    assert summary["answered"] == 200 == paid(cloud)
    assert ended(start(cloud))[0]["exit_code"] == 0
    cloud.check()


def test_workers_that_all_die_before_they_do_anything_end_the_run(cloud, tmp_path):
    cloud.upload("a.jsonl", prompts(5))
    (tmp_path / "deadly.py").write_text("raise SystemExit(7)")
    process = start(cloud, first=f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {WORKERS_IMPORT}")
    summary, err = ended(process)
    assert summary["exit_code"] == 1, err
    assert "4 worker processes died one after the other, the last one ended with exit code 7" in summary["problem"]
    assert ended(start(cloud))[0]["exit_code"] == 0
    cloud.check()


# The workers' command is changed in the run's process.
WORKERS_IMPORT = (
    "from llmdo.runners.workers import worker_process as module; start_tied = module.start_tied; "
    "module.start_tied = lambda command, *rest, **how: start_tied([command[0], '-P', '-c', "
    '\'import runpy, sys, deadly; runpy.run_module("llmdo.runners.workers.child", run_name="__main__")\', '
    "command[-1]], *rest, **how); "
)


def test_a_run_whose_workers_cannot_write_fails_with_one_sentence_and_pays_nothing_twice(cloud):
    lines = big(cloud)
    cloud.fault(target="r2", match="/shard-", status=403)
    summary, err = ended(start(cloud))
    assert summary["exit_code"] == 1
    assert "/shard-" in summary["problem"] and "\n" not in summary["problem"] and "Traceback" not in err
    assert "calls in flight, to keep their answers" in err
    assert 0 < paid(cloud) < lines
    cloud.no_faults()
    assert ended(start(cloud))[0]["exit_code"] == 0
    cloud.check()
    assert paid(cloud) == lines


@pytest.mark.slow
def test_a_run_that_was_not_heard_for_too_long_begins_again_with_its_workers_and_pays_nothing_twice(
    cloud, monkeypatch, caplog
):
    lines = big(cloud)
    with unheard_once(monkeypatch, lambda: paid(cloud) >= 200), caplog.at_level("WARNING"):
        summary = cloud.run(input="r2://llmdo/input/", processes=2, batch_size=20, range_bytes=65_536)
    assert caplog.text.count("resuming") == 1
    assert (summary.exit_code, summary.asleep) == (0, False)
    cloud.check()
    assert paid(cloud) == summary.spent.calls == lines
    assert cloud.alive() == []


@pytest.mark.slow
def test_calls_that_do_not_end_in_time_after_ctrl_c_are_given_up_in_all_workers(cloud):
    big(cloud)
    cloud.no_faults()
    cloud.fault(target="ai", probability=1.0, latency_s=300)
    process = start(cloud, "--drain-seconds", "2")
    wait_until(lambda: len(workers_of(process.pid)) == 2 and cloud.stats()["ai"]["in_flight"] == WINDOW, process)
    workers = workers_of(process.pid)
    process.send_signal(signal.SIGINT)
    summary, err = ended(process)
    assert (process.returncode, summary["answered"]) == (1, 0)
    assert "Traceback" not in err
    assert not any(map(session_of, workers))
