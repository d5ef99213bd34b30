"""A process that dies right before or right after any write of a hand-over: each batch is submitted and paid once."""

from __future__ import annotations

import asyncio
from itertools import count

import pytest

from llmdo.backends.connections import Connections
from llmdo.backends.engine.dispatch import Dispatcher
from llmdo.backends.engine.jobs import Job, Reservation
from llmdo.backends.engine.recall import Recall
from llmdo.backends.engine.settings import CallSettings
from llmdo.backends.errors import BatchUnclear
from llmdo.backends.requests import ChatRequest, Message
from llmdo.backends.responses import BatchState, ChatResponse
from llmdo.backends.usage import Usage
from tests.backends.fake_clock import run
from tests.fakes.ledger import MemoryLedger, MemoryRecords
from tests.fakes.mortal import Mortal

LINES = 4


class World(Mortal):
    """A provider, a ledger and records that outlive processes; at its ``at``-th point the process stands still."""

    name = "fake"

    def __init__(self, at=None, unclear=False):
        super().__init__(at)
        self.unclear = unclear
        self.batches, self.paid = {}, []
        self.ledger = MemoryLedger()
        self.records = MemoryRecords()

    # The provider.

    async def execute(self, request):
        await self.point()
        self.paid.append(request.request_id)
        return answer_to(request)

    async def submit_batch(self, model, requests, nonce):
        await self.point()
        self.batches[nonce] = list(requests)
        self.paid += [request.request_id for request in requests]
        await self.point()
        return f"batch {nonce}"

    async def poll_batch(self, model, batch, requests, places):
        whole = self.batches[batch.removeprefix("batch ")]
        return BatchState(self._results([whole[place.number] for place in places]))

    async def _results(self, requests):
        yield 99, answer_to(requests[0])  # of none of these
        for number, request in reversed(list(enumerate(requests))):
            yield number, answer_to(request)
            yield number, answer_to(request)

    async def find_batch(self, model, nonce, count, since):
        if self.unclear:
            raise BatchUnclear("the list is broken")
        return f"batch {nonce}" if nonce in self.batches else None

    async def cancel_batch(self, model, batch):
        raise AssertionError("nothing is cancelled")


class Points:
    """The ledger, with a point before and after each put."""

    def __init__(self, world):
        self.world, self.get, self.aclose = world, world.ledger.get, world.ledger.aclose

    async def put(self, key, value, patience_s):
        await self.world.point()
        await self.world.ledger.put(key, value, patience_s)
        await self.world.point()


def answer_to(request):
    return ChatResponse(f"re: {request.messages[0].content}", "stop", Usage(2, 1), request.model)


@pytest.fixture(autouse=True)
def _no_threads(monkeypatch):
    async def inline(call, *args):
        return call(*args)

    monkeypatch.setattr(asyncio, "to_thread", inline)


async def process(world, seconds, mode="batch"):
    """Runs one process for so long; returns how each line ended."""
    done = {}
    settings = CallSettings(64, mode=mode, batches=world.records)
    work = Dispatcher(
        asyncio.get_running_loop(),
        Connections(lambda _: world),
        settings,
        Recall(Points(world), "same-line"),
        *[lambda _: None] * 3,
    )
    for number in range(LINES):
        request = ChatRequest("m", (Message("user", f"text {number}"),), {}, f"id-{number}")

        def deliver(_, one, key=request.request_id):
            assert key not in done
            done[key] = one

        work.add([Job("fake", request, deliver, Reservation(1))])
    async with asyncio.timeout(seconds):
        while len(done) < LINES and not world.dead:  # noqa: ASYNC110 - on a fake clock
            await asyncio.sleep(0.5)
    await work.cancel()
    return done


def test_a_process_that_dies_at_any_write_of_a_hand_over_pays_for_nothing_twice():
    for at in count(1):
        world = World(at)
        run(process(world, 10_000))
        if not world.dead:
            break
        world.dead, world.at = False, None
        done = run(process(world, 10_000))
        assert {key: one.response.text for key, one in done.items()} == {f"id-{n}": f"re: text {n}" for n in range(4)}
        assert sorted(world.paid) == [f"id-{number}" for number in range(LINES)], at
        assert [one for one in world.records.all() if not one.ended_at] == [], at
    assert at > 2 * (LINES + 3)


def test_what_nobody_can_tell_stays_open_is_said_and_is_submitted_again_once_its_record_is_removed(caplog):
    at = next(at for at in count(1) if submitted_at(at))
    world = World(at, unclear=True)
    run(process(world, 10_000))
    world.dead, world.at = False, None
    done = run(process(world, 10_000))
    assert [type(one.error) for one in done.values()] == [BatchUnclear] * LINES
    assert sum("nobody can tell" in record.getMessage() for record in caplog.records) == 1
    (record,) = [one for one in world.records.all() if not one.ended_at]
    assert record.unclear == "the list is broken"
    assert len(world.paid) == LINES
    world.records.kept.clear()
    assert all(one.response for one in run(process(world, 10_000)).values())


def submitted_at(at):
    """Whether a process that dies at this point has submitted its batch, and does not know it."""
    world = World(at)
    run(process(world, 10_000))
    return bool(world.batches)
