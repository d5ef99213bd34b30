"""An event loop whose time is not the world's: a wait ends at once, and the clock says that it has passed."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any


class _NoWaiting(selectors.SelectSelector):
    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None:
            raise RuntimeError("nothing is left to wait for")
        self.now += max(timeout, 0.0)
        return super().select(0)


class FakeClockLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._selector_clock = _NoWaiting()
        super().__init__(self._selector_clock)

    def time(self) -> float:
        return self._selector_clock.now


def run(main: Coroutine[Any, Any, Any]) -> Any:
    with asyncio.Runner(loop_factory=FakeClockLoop) as runner:
        return runner.run(main)
