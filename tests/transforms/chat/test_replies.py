import asyncio
import itertools

import pytest

from llmdo.storage.errors import QueueError
from llmdo.storage.queues.client import MAX_MESSAGE_BYTES
from llmdo.transforms.chat.replies import BURST, EVERY_S, Replies, fits
from tests.backends.fake_clock import FakeClockLoop

SOON = 60.0  # seconds until a test gives up waiting


class Queue:
    """Stands for QueueClient.push_many: the sizes of calls and their times; fails as often as the test says."""

    def __init__(self, *errors):
        self.errors = list(errors)
        self.calls, self.times, self.events = [], [], []

    def __call__(self, events):
        self.calls.append(len(events))
        self.times.append(asyncio.get_running_loop().time())
        if self.errors:
            raise self.errors.pop(0)
        self.events += events


def events(count, name="e"):
    return [{"name": f"{name}{number}"} for number in range(count)]


class Loop(FakeClockLoop):
    """Makes blocking calls itself; by its clock each takes 20 ms."""

    def run_in_executor(self, executor, call, *args):
        async def later():
            await asyncio.sleep(0.02)
            return call(*args)

        return self.create_task(later())


def run(work):
    async def bounded():
        async with asyncio.timeout(SOON):
            return await work

    with asyncio.Runner(loop_factory=Loop) as runner:
        return runner.run(bounded())


def test_what_comes_while_a_push_is_made_goes_together_at_most_a_hundred_a_call_and_in_order():
    queue = Queue()

    async def push():
        replies = Replies(queue, every_s=0.0)
        given = events(250)
        return given, await asyncio.gather(*(replies.push(given[n : n + 2]) for n in range(0, 250, 2)))

    given, found = run(push())
    assert found == [True] * 125
    assert queue.events == given
    assert queue.calls == [100, 100, 50]


def distances(times):
    return [later - earlier for earlier, later in itertools.pairwise(times)]


def test_pushes_keep_their_distance():
    queue = Queue()

    async def push():
        replies = Replies(queue, every_s=0.1, burst=1)
        for event in events(4):
            await replies.push([event])

    run(push())
    assert (len(queue.times), min(distances(queue.times)) > 0.08) == (4, True)


def test_some_pushes_go_at_once_then_they_keep_their_distance_and_after_a_rest_they_go_at_once_again():
    queue = Queue()

    async def push():
        replies = Replies(queue, every_s=0.2, burst=4)
        for wait in (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0):
            await asyncio.sleep(wait)
            await replies.push([{"name": "e"}])

    run(push())
    waits = distances(queue.times)
    assert max(waits[:2]) < 0.1  # the burst; where half of it is gone, a moment for what comes behind
    assert sum(waits[:5]) > 0.38  # the two beyond it
    assert waits[4] > 0.15
    assert waits[6] < 0.1


def test_the_limit_of_the_api_is_kept_in_any_five_minutes():
    assert BURST + 300.0 / EVERY_S <= 1_200


def test_while_pushes_are_scarce_what_comes_close_together_goes_together():
    queue = Queue()

    async def push():
        replies = Replies(queue, every_s=0.3, burst=1)
        await replies.push([{"name": "first"}])
        await asyncio.sleep(0.29)
        late = []
        for event in events(6):
            late.append(asyncio.ensure_future(replies.push([event])))
            await asyncio.sleep(0.012)
        await asyncio.gather(*late)

    run(push())
    assert queue.calls == [1, 6]


def test_what_comes_without_end_is_not_waited_for():
    queue = Queue()

    async def push():
        replies = Replies(queue, every_s=0.05, burst=1)
        for event in events(30):
            replies.tell(event)
            await asyncio.sleep(0.02)

    run(push())
    assert 3 <= len(queue.calls) <= 8


def test_what_may_be_lost_is_tried_once_and_the_rest_until_the_queue_has_it(monkeypatch, caplog):
    monkeypatch.setattr("llmdo.transforms.chat.replies._LONGEST_WAIT_S", 0.02)
    queue = Queue(QueueError("down", 503), OSError("odd"), QueueError("down", 503))

    async def push():
        replies = Replies(queue, every_s=0.0)
        replies.tell({"name": "started"})
        return await replies.push([{"name": "answer"}])

    assert run(push()) is True
    assert queue.events == [{"name": "answer"}]
    assert queue.calls == [2, 1, 1, 1]
    assert [record.getMessage() for record in caplog.records if record.name.startswith("llmdo.transforms")] == [
        "answers do not reach the reply queue and will be pushed again: down",
        "answers reach the reply queue again",
    ]


@pytest.mark.parametrize("patience_s", [0.0, 0.2])
def test_patience_ends(patience_s, monkeypatch):
    monkeypatch.setattr("llmdo.transforms.chat.replies._LONGEST_WAIT_S", 0.02)
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
    assert fits({"name": "e", "args": {"message": text}}, MAX_MESSAGE_BYTES) is does
