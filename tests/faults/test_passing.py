"""The queue refuses acks for a while, or for good: what passes costs nothing but time, what stays is one sentence."""

from __future__ import annotations

import json
import os

import pytest

from llmdo.settings.environment import cloudflare_account
from llmdo.storage.queues.client import find_queue
from tests.faults.test_kills import start, wait_until
from tests.integration.cloud import prompts

# Of the acks, one after the other; then they work.
PASSING = [
    {"drop": True, "after": True},
    {"drop": True},
    {"status": 500},
    {"status": 502, "page": True},
    {"status": 429, "retry_after": 2},
]
ACKS = "/messages/ack"
LINES = 20


@pytest.fixture
def begin(cloud):
    """Starts llmdo, and leaves no process behind."""
    started = []

    def go(command, runner, *more, first=""):
        started.append(start(cloud, runner, "--batch-seconds", "1", *more, command=command, first=first))
        return started[-1]

    yield go
    for process in started:
        if process.poll() is None:
            process.kill()
            process.communicate()


def upload(cloud, name):
    """A file that is wanted, and one whose message is skipped."""
    cloud.upload(f"{name}.jsonl", prompts(LINES, name))
    cloud.upload(f"{name}.txt", b"a note")


def fail_acks(cloud):
    for fault in PASSING:
        cloud.fault(target="queue", match=ACKS, count=1, **fault)


def settled(cloud, *names):
    keys = cloud.keys("output/llmdo/input/")
    manifests = [key for key in keys if key.endswith("/_manifest.json")]
    return all(any(f"/{name}.jsonl/" in key for key in manifests) for name in names)


def refused(cloud):
    """The calls to the queue that were told to wait."""
    return cloud.stats()["queue"]["by_status"].get("429", 0)


def end(process, seconds=120):
    out, err = process.communicate(timeout=seconds)
    return json.loads(out), " ".join(err.decode().split())


@pytest.mark.fast("direct")
@pytest.mark.parametrize("runner", ["direct", pytest.param("prism", marks=pytest.mark.prism)])
def test_a_run_whose_acks_fail_for_a_while_answers_everything_and_waits_to_ack_it(cloud, begin, runner):
    upload(cloud, "a")
    fail_acks(cloud)
    summary, said = end(begin("run", runner, "--ledger", "none"))
    assert (summary["exit_code"], summary["problem"], summary["left"]) == (0, None, {})
    assert said.count("trying again until it works") == said.count("works again after") == 1
    assert "Traceback" not in said
    cloud.check()
    assert settled(cloud, "a")
    assert (cloud.backlog(), cloud.stats()["paid"]["calls"]) == (0, LINES)


@pytest.mark.prism
def test_a_stream_whose_acks_fail_for_a_while_goes_on_and_acks_them_later(cloud, begin):
    upload(cloud, "a")
    fail_acks(cloud)
    process = begin("stream", "prism", "--ledger", "none")
    wait_until(lambda: settled(cloud, "a"), 120, process)
    upload(cloud, "b")  # comes through, whether acks work again or not
    wait_until(lambda: settled(cloud, "b"), 120, process)
    wait_until(lambda: cloud.backlog() == 0, 120, process)
    process.terminate()
    summary, said = end(process)
    assert (summary["exit_code"], summary["problem"], summary["restarts"]) == (0, None, 0)
    assert said.count("trying again until it works") == said.count("works again after") == 1
    cloud.check()
    assert cloud.stats()["paid"]["calls"] == 2 * LINES


@pytest.mark.prism
def test_a_stream_that_is_told_to_stop_while_the_queue_asks_to_wait_for_minutes_ends_at_once(cloud, begin):
    cloud.upload("a.jsonl", prompts(LINES))
    cloud.fault(target="queue", match=ACKS, status=429, retry_after=300)
    process = begin("stream", "prism")
    wait_until(lambda: settled(cloud, "a"), 120, process)
    wait_until(lambda: refused(cloud) == 1, 120, process)  # the ack
    cloud.fault(target="queue", match="/messages/pull", status=429, retry_after=300)
    wait_until(lambda: refused(cloud) > 1, 120, process)
    process.terminate()
    summary, said = end(process)
    assert (summary["exit_code"], summary["problem"]) == (0, None)
    assert "1 message(s) could not be acked: they will come again, at no cost" in said
    assert cloud.backlog() == 1
    cloud.check()


# How long R2's calls are repeated before the pipeline fails, in seconds: by default it is a minute.
QUICK = "import llmdo.transforms.outages; llmdo.transforms.outages.STORE_PATIENCE_S = 5.0; "


@pytest.mark.prism
def test_a_stream_that_loses_r2_for_longer_than_its_restarts_go_on_when_it_is_back(cloud, begin):
    process = begin("stream", "prism", "--max-restarts", "0", first=QUICK)
    os.set_blocking(process.stderr.fileno(), False)
    said = bytearray()
    upload(cloud, "a")
    wait_until(lambda: settled(cloud, "a"), 120, process)
    cloud.fault(target="r2", match="/output/", status=503)
    cloud.upload("b.jsonl", prompts(LINES, "b"))

    def restarts():
        said.extend(process.stderr.read() or b"")
        return said.count(b"restarts in")

    wait_until(lambda: restarts() >= 2, 120, process)
    cloud.no_faults()
    upload(cloud, "c")
    wait_until(lambda: settled(cloud, "c"), 120, process)
    process.terminate()
    summary, _ = end(process)
    assert (summary["exit_code"], summary["problem"]) == (0, None)
    assert cloud.run(input="r2://llmdo/input/").exit_code == 0  # b's message was pulled, and comes again later
    cloud.check()


@pytest.mark.fast("fault0-*")
@pytest.mark.prism
@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ({"status": 401, "code": 10000}, "check CLOUDFLARE_API_TOKEN: it needs the account permission Queues: Edit"),
        ({"status": 404, "code": 10104}, "there is no such queue in this account"),
    ],
)
def test_acks_that_are_refused_for_good_stop_a_stream_with_one_sentence(cloud, begin, fault, sentence):
    cloud.fault(target="queue", match=ACKS, **fault)
    process = begin("stream", "prism")
    upload(cloud, "a")
    summary, said = end(process)
    assert (process.returncode, summary["exit_code"], summary["restarts"]) == (1, 1, 0)
    assert summary["problem"].startswith("ack to queue ") and sentence in summary["problem"]
    assert "Traceback" not in said and said.count(sentence) <= 1
    cloud.no_faults()
    assert cloud.run().exit_code == 0  # and the next one goes on


@pytest.mark.slow
@pytest.mark.prism
def test_a_queue_that_is_deleted_stops_a_stream_with_one_sentence(cloud, begin):
    process = begin("stream", "prism")
    upload(cloud, "a")
    wait_until(lambda: settled(cloud, "a") and cloud.backlog() == 0, 120, process)
    account = cloudflare_account()
    queue = find_queue(account, "llmdo-input")
    path = f"/client/v4/accounts/{os.environ['CLOUDFLARE_ACCOUNT_ID']}/queues/{queue}"
    cloud.api.delete(path).raise_for_status()
    summary, said = end(process)
    assert (summary["exit_code"], summary["restarts"]) == (1, 0)
    assert "there is no such queue in this account" in summary["problem"]
    assert "Traceback" not in said
