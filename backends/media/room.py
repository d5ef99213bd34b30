"""Bounds the bytes that are held at a time."""

from __future__ import annotations

import asyncio
from collections import deque


class ByteRoom:
    """Room for ``most`` bytes, given out in the order in which it is asked for; used from one event loop.

    Who asks for more than all of it waits until it is empty, and has it alone.
    """

    def __init__(self, most: int) -> None:
        self._most = self._left = most
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def take(self, size: int) -> None:
        """Waits until there is room; ``give`` releases it."""
        if not self._waiting and min(size, self._most) <= self._left:
            self._left -= min(size, self._most)
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((size, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give(size)
            else:
                self._waiting.remove((size, turn))
                self._admit()
            raise

    def give(self, size: int) -> None:
        """Releases what was taken."""
        self._left += min(size, self._most)
        self._admit()

    def _admit(self) -> None:
        while self._waiting and min(self._waiting[0][0], self._most) <= self._left:
            size, turn = self._waiting.popleft()
            if turn.cancelled():  # it is removed by itself otherwise, but its task has not run yet
                self._waiting.appendleft((size, turn))
                return
            self._left -= min(size, self._most)
            turn.set_result(None)
