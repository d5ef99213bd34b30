"""The bound on the bytes that are held."""

from __future__ import annotations

import asyncio
import random

from llmdo.backends.media.room import ByteRoom


def test_no_more_than_the_room_is_out_and_all_are_served():
    async def scenario():
        room, held, most = ByteRoom(100), 0, 0

        async def use(size):
            nonlocal held, most
            await room.take(size)
            held += min(size, 100)
            most = max(most, held)
            await asyncio.sleep(random.random() / 1000)
            held -= min(size, 100)
            room.give(size)

        await asyncio.gather(*(use(random.randint(0, 150)) for _ in range(300)))
        return held, most

    held, most = asyncio.run(scenario())
    assert held == 0
    assert 50 < most <= 100


def test_what_waits_and_is_cancelled_takes_nothing_and_lets_others_by():
    async def scenario():
        room = ByteRoom(10)
        await room.take(8)
        large, small = asyncio.create_task(room.take(10)), asyncio.create_task(room.take(2))
        await asyncio.sleep(0)
        assert not small.done()  # in order
        large.cancel()
        await asyncio.wait_for(small, 55)
        room.give(8)
        granted = asyncio.create_task(room.take(8))
        await asyncio.sleep(0)
        await granted
        waiting = asyncio.create_task(room.take(10))
        await asyncio.sleep(0)
        room.give(8)
        room.give(2)  # grants it
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await asyncio.wait_for(room.take(10), 55)

    asyncio.run(scenario())
