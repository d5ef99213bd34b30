"""A queue is pulled no further ahead of the lines than one batch, and no ack waits for calls."""

from __future__ import annotations

import threading

import apache_beam as beam
import pytest
from apache_beam.testing.test_pipeline import TestPipeline

from llmdo.pipelines.options import JsonlOptions
from llmdo.settings.environment import CloudflareAccount
from llmdo.storage.objects.r2 import R2Store
from llmdo.storage.objects.store import Location
from llmdo.storage.queues.client import MAX_BATCH, Pulled, QueueMessage
from llmdo.transforms import acks
from llmdo.transforms.elements import Line, Read
from llmdo.transforms.files import find_files
from llmdo.transforms.files.find_files import FindFiles
from llmdo.transforms.files.open_files import OpenFiles
from llmdo.transforms.files.source import Notifications
from llmdo.transforms.lines.read_lines import ReadLines
from llmdo.transforms.run import Run
from tests.memory_store import MemoryStore
from tests.states import run_state

EVENTS = 100_000
LINES = 1_000  # then the run stops
LINE = b'{"prompt": "x"}\n'
QUEUE: list[Queue] = []  # the one of this test; Beam pickles what a nested function refers to, but no module's names
SEEN: list[int] = []  # by line, how many messages were pulled before it came and had no line yet


class Bucket(MemoryStore):
    """All inputs have one content."""

    def _get(self, key: str):
        return super()._get("content" if key.startswith("in/") else key)


class Queue:
    """Hands out events about ``left`` files, and keeps what was acked."""

    def __init__(self, left: int, etag: str) -> None:
        self.left, self.pulled, self.acked, self.etag = left, 0, [], etag
        self.whole = threading.Condition()

    def __call__(self, account: CloudflareAccount, queue_id: str) -> Queue:
        self.queue_id = queue_id
        return self

    def pull(self, visibility_timeout_s: float) -> Pulled:
        messages = []
        for _ in range(min(MAX_BATCH, self.left)):
            name = f"in/{self.pulled:06d}.jsonl"
            body = {
                "action": "PutObject",
                "bucket": "memory",
                "object": {"key": name, "size": len(LINE), "eTag": self.etag},
            }
            messages.append(QueueMessage(name, name, 1, body, "json", True, body))
            self.pulled += 1
            self.left -= 1
        return Pulled(tuple(messages), self.left)

    def settle(self, leases: list[str], *, tries: int) -> None:
        with self.whole:
            self.acked += leases
            self.whole.notify_all()

    def close(self) -> None:
        pass


@pytest.fixture
def queue(monkeypatch):
    bucket = Bucket("r2://memory")
    queue = Queue(EVENTS, bucket.put("content", LINE))
    monkeypatch.setattr(R2Store, "open", lambda _: bucket)
    for module in (find_files, acks):
        monkeypatch.setattr(module, "QueueClient", queue)
        monkeypatch.setattr(module, "cloudflare_account", lambda: CloudflareAccount("0" * 32, "token"))
    run_state()
    SEEN.clear()
    QUEUE[:] = [queue]
    return queue


def run_over(each) -> None:
    options = JsonlOptions(queue="q", output="r2://memory/out/", model="@cf/a/b")
    run = Run("run-1", Location("r2://memory", "out/"), "c")
    with TestPipeline(runner="FnApiRunner") as pipeline:
        _ = (
            pipeline
            | FindFiles(Notifications("q"), run, together=options.reading.at_once)
            | OpenFiles(run, "q")
            | ReadLines(options.reading, run)
            | beam.Map(each)
        )


def count(element: Read) -> None:
    assert isinstance(element, Line) and element.data == LINE[:-1]
    SEEN.append(QUEUE[0].pulled - len(SEEN) - 1)
    if len(SEEN) == LINES:
        run_state().stop("enough was seen")


def test_of_100_000_events_only_one_batch_is_pulled_ahead_of_the_lines(queue):
    run_over(count)
    assert LINES <= len(SEEN) < LINES + MAX_BATCH
    assert max(SEEN) < 2 * MAX_BATCH
    assert queue.pulled <= LINES + 2 * MAX_BATCH


def hold_up(element: Read) -> None:
    held = QUEUE[0]
    with held.whole:
        if not SEEN:  # a watchdog's time, not a measure
            SEEN.append(held.whole.wait_for(lambda: len(held.acked) == MAX_BATCH, 60))
    run_state().stop("enough was seen")


def test_all_messages_of_a_pull_are_acked_while_the_first_line_is_held_up(queue):
    run_over(hold_up)
    assert SEEN == [True]
    assert sorted(queue.acked) == [f"in/{number:06d}.jsonl" for number in range(MAX_BATCH)]
