"""The queues of waiting calls, also where no call waits any more."""

import asyncio

import pytest

from llmdo.backends.engine.scheduler import Scheduler
from llmdo.backends.engine.settings import CallSettings
from llmdo.backends.errors import LimitReached
from llmdo.backends.requests import ChatRequest
from tests.backends.fake_clock import run

KEY = ("fake", "m")


def scheduler():
    loop = asyncio.get_running_loop()
    return Scheduler(loop, CallSettings(4), pytest.fail)


def test_calls_in_flight_are_known_while_none_waits():
    async def scenario():
        calls = scheduler()
        await calls.take("fake", ChatRequest("m", ()), again=False)
        return calls.in_flight_of(KEY)

    assert run(scenario()) == 1


def test_a_refusal_holds_for_calls_that_come_after_the_queue_was_empty():
    async def scenario():
        calls = scheduler()
        await calls.take("fake", ChatRequest("m", ()), again=False)
        calls.refuse(KEY, LimitReached("full"), 5.0)
        with pytest.raises(LimitReached):
            await calls.take("fake", ChatRequest("m", ()), again=False)
        await asyncio.sleep(6)
        return await calls.take("fake", ChatRequest("m", ()), again=False)

    assert run(scenario()).request.model == "m"


def test_calls_that_come_after_the_queue_was_empty_are_held_back_too():
    async def scenario():
        calls = scheduler()
        await calls.take("fake", ChatRequest("m", ()), again=False)
        calls.hold(KEY, True)
        held = asyncio.create_task(calls.take("fake", ChatRequest("m", ()), again=False))
        await asyncio.sleep(1)
        waited = not held.done()
        calls.hold(KEY, False)
        calls.start()
        await held
        return waited

    assert run(scenario())
