"""A message for each settled file, before its job record goes."""

from __future__ import annotations

import json

import httpx
import pytest

from llmdo.settings.environment import CloudflareAccount
from llmdo.storage.objects.opening import open_store
from llmdo.storage.objects.store import Location
from llmdo.storage.output.costs import Cost
from llmdo.storage.output.jobs import JobRecord, Jobs
from llmdo.storage.queues.client import QueueClient
from llmdo.transforms.elements import FileVersion, Settled
from llmdo.transforms.files import settled_messages
from llmdo.transforms.files.settled_messages import remove_told, tell_settled
from llmdo.transforms.run import Run
from tests.states import run_state

ACCOUNT = CloudflareAccount("a" * 32, "token-of-the-tests", "https://api.test/client/v4")
FILE = FileVersion("r2://bucket", "input/a.jsonl", "e1", 100, opening="n1")
DONE = Settled(FILE, "done", 5, 2, cost=Cost(0.25, 1, None))


class Queue:
    """The queue's API: refuses as often as it is told, then takes everything."""

    def __init__(self) -> None:
        self.refusals: list[httpx.Response] = []
        self.messages: list[dict] = []

    def answer(self, request: httpx.Request) -> httpx.Response:
        if self.refusals:
            return self.refusals.pop(0)
        assert request.url.path.endswith("/queues/told/messages/batch")
        self.messages += [message["body"] for message in json.loads(request.content)["messages"]]
        return httpx.Response(200, json={"success": True, "errors": [], "result": {}})


@pytest.fixture
def queue(monkeypatch):
    queue = Queue()
    monkeypatch.setattr(
        settled_messages,
        "QueueClient",
        lambda account, name: QueueClient(ACCOUNT, name, httpx.MockTransport(queue.answer)),
    )
    monkeypatch.setattr(settled_messages, "cloudflare_account", lambda: ACCOUNT)
    monkeypatch.setattr(settled_messages, "pause", lambda state, seconds: None)
    return queue


@pytest.fixture
def run(tmp_path):
    run = Run("run-1", Location(str(tmp_path), "out/"), "c", notify="told")
    record = JobRecord(
        store_url=FILE.store_url,
        key=FILE.key,
        etag=FILE.etag,
        size=FILE.size,
        notification={},
        configuration="c",
        run_id="run-1",
        nonce="n1",
    )
    Jobs(open_store(str(tmp_path)), "out/").claim(record, lambda run_id: False)
    return run


def refused(status: int, code: int) -> httpx.Response:
    return httpx.Response(status, json={"success": False, "errors": [{"code": code, "message": "no"}]})


def left(run: Run) -> int:
    return len(list(run.jobs.sweep()))


def test_a_message_has_the_manifest_the_counts_and_the_cost(queue, run, tmp_path):
    remove_told(run, [DONE])
    assert queue.messages == [
        {
            "type": "file-settled",
            "version": 1,
            "file": "r2://bucket/input/a.jsonl",
            "etag": "e1",
            "status": "done",
            "answered": 5,
            "failed": 2,
            "neurons": None,
            "cost_usd": 0.25,
            "cost_is_lower_bound": True,
            "size": 100,
            "manifest": f"{tmp_path}/out/bucket/input/a.jsonl/e1/_manifest.json",
            "run_id": "run-1",
        }
    ]
    assert left(run) == 0


def test_a_stale_file_is_told_of_with_its_reason_and_without_a_manifest(queue, run):
    remove_told(run, [Settled(FILE, "stale", reason="it is corrupt")])
    (message,) = queue.messages
    assert (message["status"], message["reason"], message["manifest"]) == ("stale", "it is corrupt", None)
    assert "answered" not in message


def test_files_are_told_of_a_hundred_at_a_time(queue, run):
    files = [Settled(FileVersion("r2://bucket", f"{at}.jsonl", "e", 1), "done") for at in range(250)]
    assert tell_settled(run, files)
    assert [message["file"] for message in queue.messages] == [f"r2://bucket/{at}.jsonl" for at in range(250)]


def test_without_a_queue_nothing_is_sent_and_nothing_waits(queue, run, tmp_path):
    remove_told(Run("run-1", run.output, "c"), [DONE])
    assert (queue.messages, left(run)) == ([], 0)


def test_a_queue_that_fails_for_a_while_is_waited_for(queue, run):
    queue.refusals = [refused(500, 15000)] * 6
    remove_told(run, [DONE])
    assert (len(queue.messages), left(run), run_state().stop_reason) == (1, 0, None)


def test_a_queue_that_fails_for_long_leaves_the_record_for_the_next_run(queue, run):
    queue.refusals = [refused(500, 15000)] * 1_000
    remove_told(run, [DONE])
    assert (queue.messages, left(run), run_state().stop_reason) == ([], 1, None)
    ((what, why),) = run_state().left.items()
    assert "queue told" in what and "run again" in why


def test_a_queue_that_is_not_there_any_more_stops_the_run_and_leaves_the_record(queue, run):
    queue.refusals = [refused(404, 10104)]
    remove_told(run, [DONE])
    assert left(run) == 1
    assert "no such queue" in str(run_state().stop_reason)
