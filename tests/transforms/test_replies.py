import asyncio
import time

import pytest

from storage.errors import QueueError
from transforms.replies import Replies, fits

SOON = 20.0


class Queue:
    """Stands for QueueClient.push_many: the sizes of calls and their times; fails as often as it is told to."""

    def __init__(self, *errors, takes_s=0.0):
        self.errors = list(errors)
        self.takes_s = takes_s
        self.calls, self.times, self.events = [], [], []

    def __call__(self, events):
        self.calls.append(len(events))
        self.times.append(time.monotonic())
        time.sleep(self.takes_s)
        if self.errors:
            raise self.errors.pop(0)
        self.events += events


def events(count, name="e"):
    return [{"name": f"{name}{number}"} for number in range(count)]


def run(work):
    async def bounded():
        async with asyncio.timeout(SOON):
            return await work

    return asyncio.run(bounded())


def test_what_comes_while_a_push_is_made_goes_together_at_most_a_hundred_a_call_and_in_order():
    queue = Queue(takes_s=0.02)

    async def push():
        replies = Replies(queue, every_s=0.0)
        given = events(250)
        return given, await asyncio.gather(*(replies.push(given[n : n + 2]) for n in range(0, 250, 2)))

    given, found = run(push())
    assert found == [True] * 125
    assert queue.events == given
    assert queue.calls == [100, 100, 50]


def test_pushes_keep_their_distance():
    queue = Queue()

    async def push():
        replies = Replies(queue, every_s=0.1)
        for event in events(4):
            await replies.push([event])

    run(push())
    waits = [later - earlier for earlier, later in zip(queue.times, queue.times[1:], strict=False)]
    assert (len(waits), min(waits) > 0.09) == (3, True)


def test_what_may_be_lost_is_tried_once_and_the_rest_until_the_queue_has_it(monkeypatch, caplog):
    monkeypatch.setattr("transforms.replies._LONGEST_WAIT_S", 0.02)
    queue = Queue(QueueError("down", 503), OSError("odd"), QueueError("down", 503))

    async def push():
        replies = Replies(queue, every_s=0.0)
        replies.tell({"name": "started"})
        return await replies.push([{"name": "answer"}])

    assert run(push()) is True
    assert queue.events == [{"name": "answer"}]
    assert queue.calls == [2, 1, 1, 1]
    assert [record.getMessage() for record in caplog.records] == [
        "answers do not reach the reply queue, and are pushed again: down",
        "answers reach the reply queue again",
    ]


@pytest.mark.parametrize("patience_s", [0.0, 0.2])
def test_patience_ends(patience_s, monkeypatch):
    monkeypatch.setattr("transforms.replies._LONGEST_WAIT_S", 0.02)
    queue = Queue(*[QueueError("down", 503)] * 1000)
    assert run(asyncio.wait_for(_push(queue, patience_s), SOON)) is False
    assert (len(queue.calls) > 1) == bool(patience_s)


async def _push(queue, patience_s):
    return await Replies(queue, every_s=0.0, patience_s=patience_s).push(events(1))


def test_a_service_that_asks_to_wait_is_waited_for_and_a_stop_ends_the_wait():
    queue = Queue(QueueError("slow down", 429, None, 60.0))

    async def push():
        replies = Replies(queue, every_s=0.0)
        pushing = asyncio.create_task(replies.push(events(1)))
        await asyncio.sleep(0.2)
        waiting = not pushing.done()
        replies.stop()
        return waiting, await pushing

    assert run(push()) == (True, False)
    assert queue.calls == [1]


@pytest.mark.parametrize(("text", "does"), [("x" * 127_000, True), ("x" * 128_000, False), ("half \ud800", False)])
def test_a_queue_takes_events_of_128_kb(text, does):
    assert fits({"name": "e", "args": {"message": text}}) is does
