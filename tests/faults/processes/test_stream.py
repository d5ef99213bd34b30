"""``stream --processes`` on Prism: small files overtake, nothing is lost or paid twice, and it stops as one run."""

from __future__ import annotations

import json
import os
import signal
import time

import pytest

from tests.faults.processes.test_workers import DEADLY, WINDOW, WORKERS_IMPORT, session_of, wait_until, workers_of
from tests.faults.test_duplicates import event
from tests.faults.test_stream import prisms, settled
from tests.integration.cloud import MODEL, OUTPUT, prompts
from tests.integration.test_end_to_end import FILES, comparable, upload_all
from tests.signals import drain, insist

pytestmark = pytest.mark.prism

PROMPT = "a prompt of some length, so that the file has several stretches: " + "word " * 60


@pytest.fixture
def stream(cloud):
    """Starts streams of two workers, and leaves none behind."""
    started = []

    def begin(*more, first=""):
        where = ["--queue", "llmdo-input", "--output", OUTPUT, "--model", MODEL, "--json"]
        how = ["--concurrency", str(WINDOW), "--processes", "2", "--batch-size", "20", "--batch-seconds", "1"]
        started.append(cloud.command("stream", *where, *how, *more, first=first))
        return started[-1]

    yield begin
    for process in started:
        if process.poll() is None:
            process.kill()
            process.communicate()


def big(cloud, lines=2_000):
    """Stretches for both workers, and more that wait."""
    cloud.upload("big.jsonl", prompts(lines, PROMPT))
    cloud.fault(target="ai", probability=1.0, latency_s=0.1)
    return lines


def paid(cloud):
    return cloud.stats()["paid"]["calls"]


def both_work(cloud, process, calls=100):
    wait_until(lambda: len(workers_of(process.pid)) == 2 and paid(cloud) >= calls, process)
    return workers_of(process.pid)


def ended(process):
    """Drains it; its summary and its log."""
    if process.poll() is None:
        drain(process)
    out, err = process.communicate(timeout=120)
    assert b"Traceback" not in err, err.decode()
    return json.loads(out), err.decode()


def test_rows_of_files_that_come_while_it_runs_are_those_of_one_process(cloud, stream):
    process = stream()
    cloud.upload("first.jsonl", prompts(3))
    wait_until(lambda: settled(cloud, "first.jsonl"), process)
    upload_all(cloud)
    wait_until(lambda: all(settled(cloud, name) for name in FILES), process)
    wait_until(lambda: cloud.backlog() == 0 and cloud.keys("output/_open/") == [], process)
    summary, _ = ended(process)
    assert (process.returncode, summary["exit_code"], summary["problem"], summary["restarts"]) == (0, 0, None, 0)
    cloud.check()
    rows = {name: comparable(cloud.rows(name)) for name in FILES}
    for key in cloud.keys():  # noqa: SIM118  a method, no dict
        cloud.store.delete(key)
    one = cloud.run(input="r2://llmdo/input/", ledger="none")
    assert {name: comparable(cloud.rows(name)) for name in FILES} == rows
    assert (summary["answered"], summary["failed"]) == (one.counts.answered, one.counts.failed)


def test_a_small_file_overtakes_a_large_one(cloud, stream):
    lines = big(cloud)
    cloud.no_faults()
    cloud.fault(target="ai", probability=1.0, latency_s=0.4)  # a quarter of the lines takes 12 s: long enough anywhere
    process = stream()
    both_work(cloud, process)
    for number in range(3):
        name, before = f"small-{number}.jsonl", paid(cloud)
        cloud.upload(name, prompts(1, name))
        wait_until(lambda: settled(cloud, name), process)  # noqa: B023
        # In calls of the large one: some seconds of both workers' windows.
        assert paid(cloud) - before < lines // 4
    assert not settled(cloud, "big.jsonl")
    cloud.no_faults()
    wait_until(lambda: settled(cloud, "big.jsonl"), process)
    summary, _ = ended(process)
    assert (process.returncode, summary["answered"]) == (0, lines + 3)
    cloud.check()
    assert paid(cloud) == lines + 3


@pytest.mark.fast("set")
@pytest.mark.parametrize("limit", ["set", "learned"])
def test_where_few_calls_are_allowed_one_worker_makes_all_and_no_file_waits_for_another_one(cloud, stream, limit):
    lines = big(cloud)
    if limit == "learned":
        cloud.no_faults()
        cloud.fault(target="ai", probability=1.0, rate_per_s=5)
    process = stream(*(("--rpm", "300") if limit == "set" else ()))
    wait_until(lambda: paid(cloud) >= 20, process)
    names, before = [f"small-{number}.jsonl" for number in range(4)], paid(cloud)
    for name in names:
        cloud.upload(name, prompts(1, name))
    wait_until(lambda: all(settled(cloud, name) for name in names), process)
    assert paid(cloud) - before < 8 * WINDOW  # what the workers had taken in of the large one
    wait_until(lambda: len(workers_of(process.pid)) == 1, process)
    assert not settled(cloud, "big.jsonl")
    if limit == "learned":
        cloud.no_faults()
        wait_until(lambda: settled(cloud, "big.jsonl"), process)
    summary, err = ended(process)
    assert (summary["exit_code"], summary["restarts"]) == (0, 0)
    assert "another one takes over" not in err
    assert summary["answered"] == paid(cloud)
    cloud.no_faults()
    assert cloud.run().exit_code == 0
    cloud.check()
    assert paid(cloud) == lines + len(names)


def test_messages_that_come_again_change_nothing(cloud, stream, queue):
    lines = big(cloud)
    message = event(cloud, "input/big.jsonl")
    process = stream()
    both_work(cloud, process)
    queue.push_many([message] * 3)
    wait_until(lambda: cloud.backlog() == 0, process)
    cloud.no_faults()
    wait_until(lambda: settled(cloud, "big.jsonl"), process)
    queue.push_many([message])
    wait_until(lambda: cloud.backlog() == 0, process)
    summary, _ = ended(process)
    assert (summary["exit_code"], summary["answered"], paid(cloud)) == (0, lines, lines)
    cloud.check()


def test_a_file_is_settled_however_many_windows_its_lines_take(cloud, stream):
    lines = big(cloud, 800)
    process = stream(first="import llmdo.transforms.endless as endless; endless.WINDOW_SECONDS = 0.5; ")
    wait_until(lambda: settled(cloud, "big.jsonl"), process)
    summary, _ = ended(process)
    assert (summary["exit_code"], summary["answered"], summary["restarts"]) == (0, lines, 0)
    cloud.check()


def test_a_worker_that_is_killed_is_replaced_and_its_lines_are_paid_once(cloud, stream):
    lines = big(cloud)
    process = stream()
    first, second = both_work(cloud, process)
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: workers_of(process.pid) not in ([first, second], [second]), process)
    cloud.no_faults()
    wait_until(lambda: settled(cloud, "big.jsonl"), process)
    summary, err = ended(process)
    assert (summary["exit_code"], summary["problem"], summary["answered"], summary["restarts"]) == (0, None, lines, 0)
    assert "killed by signal 9: another one takes over its lines" in err
    cloud.check()
    assert lines <= paid(cloud) <= lines + WINDOW
    assert session_of(first) == []


def test_a_file_whose_line_every_worker_dies_of_stays_open_and_the_next_stream_answers_it(cloud, stream, tmp_path):
    deaths = tmp_path / "deaths"
    (tmp_path / "deadly.py").write_text(DEADLY.replace("os._exit", f'open({str(deaths)!r}, "a").write("x"); os._exit'))
    process = stream(first=f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {WORKERS_IMPORT}")
    cloud.upload("bad.jsonl", b'{"prompt": "deadly"}\n')
    wait_until(lambda: deaths.exists() and deaths.read_text() == "xxx", process)
    cloud.upload("good.jsonl", prompts(200))
    wait_until(lambda: settled(cloud, "good.jsonl"), process)
    summary, _ = ended(process)
    ((what, why),) = summary["left"].items()
    assert "bad.jsonl" in what and "3 worker processes died while they read its bytes from 0 on" in why
    assert (summary["restarts"], summary["answered"], paid(cloud), cloud.backlog()) == (0, 200, 200, 0)
    assert not settled(cloud, "bad.jsonl") and len(cloud.keys("output/_open/")) == 1
    process = stream()
    wait_until(lambda: settled(cloud, "bad.jsonl"), process)
    assert ended(process)[0]["exit_code"] == 0
    cloud.check()
    assert paid(cloud) == 201


def test_no_worker_outlives_a_stream_that_is_killed_and_the_next_one_goes_on(cloud, stream):
    lines = big(cloud)
    process = stream()
    workers = both_work(cloud, process)
    process.kill()
    process.communicate()
    wait_until(lambda: not any(map(session_of, workers)))
    cloud.no_faults()
    process = stream()
    wait_until(lambda: settled(cloud, "big.jsonl"), process)
    assert ended(process)[0]["exit_code"] == 0
    cloud.check()
    assert paid(cloud) == lines  # calls in flight ended, and their answers were kept


def test_a_prism_that_dies_is_started_again_with_new_workers(cloud, stream):
    lines = big(cloud)
    process = stream()
    workers = both_work(cloud, process)
    (prism,) = prisms(process)
    os.kill(prism, signal.SIGKILL)
    wait_until(lambda: not any(map(session_of, workers)), process)
    cloud.no_faults()
    wait_until(lambda: settled(cloud, "big.jsonl"), process)
    process.terminate()
    out, err = process.communicate(timeout=120)
    summary = json.loads(out)
    assert (process.returncode, summary["restarts"]) == (0, 1), err.decode()
    cloud.check()
    assert paid(cloud) == lines


def test_ctrl_c_ends_the_calls_in_flight_of_all_and_exits_well(cloud, stream):
    lines = big(cloud)
    process = stream("--drain-seconds", "600")  # it ends far sooner than that
    workers = both_work(cloud, process)
    wait_until(lambda: cloud.backlog() == 0, process)  # acked, though the file is far from done
    process.send_signal(signal.SIGINT)
    summary, _ = ended_by_itself(process)
    assert (process.returncode, summary["exit_code"], summary["problem"]) == (0, 0, None)
    stopped = paid(cloud)
    assert 0 < summary["answered"] == stopped < lines
    assert not any(map(session_of, workers))
    cloud.no_faults()
    assert cloud.run(ledger="none").exit_code == 0  # without a ledger: all that was paid for is in a shard
    cloud.check()
    assert paid(cloud) == lines


@pytest.mark.slow
def test_a_second_ctrl_c_leaves_at_once_with_all_workers_and_prism(cloud, stream):
    big(cloud)
    cloud.no_faults()
    cloud.fault(target="ai", probability=1.0, latency_s=200)
    process = stream("--drain-seconds", "600")
    wait_until(lambda: cloud.stats()["ai"]["calls"] and len(workers_of(process.pid)) == 2, process)
    children = [*workers_of(process.pid), *prisms(process)]
    assert len(children) == 3
    process.send_signal(signal.SIGINT)
    time.sleep(1.0)
    assert process.poll() is None
    insist(process, signal.SIGINT)
    assert process.returncode == 128 + signal.SIGINT
    wait_until(lambda: not any(map(session_of, children)))


def ended_by_itself(process):
    out, err = process.communicate(timeout=120)
    assert b"Traceback" not in err, err.decode()
    return json.loads(out), err.decode()


@pytest.mark.fast("cost")
@pytest.mark.parametrize(
    ("option", "most"), [("--max-tokens-total", 60_000), ("--max-cost", 0.02)], ids=["tokens", "cost"]
)
def test_a_budget_holds_over_all_workers_and_ends_the_stream(cloud, stream, option, most):
    lines = big(cloud)
    cloud.no_faults()
    process = stream(option, str(most))
    summary, _ = ended_by_itself(process)
    assert (process.returncode, summary["exit_code"]) == (1, 1)
    assert f"{option} {most}" in summary["problem"]
    spent = summary["spent"]
    tokens = spent["input_tokens"] + spent["output_tokens"]
    assert most / 2 < (spent["cost_usd"] if option == "--max-cost" else tokens) <= most
    assert paid(cloud) == spent["calls"] < lines
    assert cloud.run().exit_code == 0
    cloud.check()
    assert paid(cloud) == lines


def test_a_stream_whose_workers_cannot_write_fails_with_one_sentence_and_is_restarted(cloud, stream):
    lines = big(cloud, 200)
    cloud.fault(target="r2", match="/shard-", status=403)
    process = stream("--max-restarts", "1")
    out, _ = process.communicate(timeout=120)  # Beam prints how a step failed
    summary = json.loads(out)
    assert (process.returncode, summary["restarts"]) == (1, 1)
    assert "/shard-" in summary["problem"] and "\n" not in summary["problem"]
    cloud.no_faults()
    assert cloud.run().exit_code == 0
    cloud.check()
    assert paid(cloud) == lines


def test_a_stream_whose_workers_all_die_at_once_gives_up_with_one_sentence(cloud, stream, tmp_path):
    cloud.upload("a.jsonl", prompts(5))
    (tmp_path / "deadly.py").write_text("raise SystemExit(7)")
    first = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {WORKERS_IMPORT}"
    process = stream("--max-restarts", "0", first=first)
    out, _ = process.communicate(timeout=120)  # Beam prints how a step failed
    summary = json.loads(out)
    assert (process.returncode, summary["answered"]) == (1, 0)
    assert summary["problem"] == (
        "4 worker processes died one after the other, the last one ended with exit code 7: "
        "see the log, give the machine more memory, or lower --processes"
    )
    assert cloud.run().exit_code == 0
    cloud.check()
