"""An engine for work without an end: one that an error stopped is replaced after a while."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress

from llmdo.backends.engine.engine import Engine
from llmdo.backends.engine.jobs import Done
from llmdo.backends.errors import StopRun
from llmdo.backends.requests import Request
from llmdo.storage.errors import StorageError

# A stopped engine is replaced after this long, or when its error says that calls can succeed again. Seconds.
STOP_S = 30.0
# It is replaced after this long at the latest: the limit may have been raised, and a refused call is free. Seconds.
LONGEST_STOP_S = 300.0


class LastingEngine:
    """Calls models with the engine that ``open_engine`` returns; used on one event loop.

    ``open_engine`` blocks for some ms, and returns the existing engine as long as it is usable. The first StopRun stops
    an engine: later calls get this error at once until STOP_S have passed, the error's ``until`` (or LONGEST_STOP_S, if
    sooner) has passed, and no call of the old engine is in flight; then a new one is opened.
    """

    def __init__(self, open_engine: Callable[[], Engine], window: int) -> None:
        self._open_engine = open_engine
        self._engine: Engine | None = open_engine()
        self._room = asyncio.Semaphore(2 * window)  # what an engine takes in
        self._replacing = asyncio.Lock()
        self._in_work = 0
        self._stopped: StopRun | None = None
        self._again_at = 0.0

    async def call(self, provider: str, request: Request) -> Done:
        """Returns how the call ended. Raises EngineClosed if the engine was closed elsewhere: the run is over."""
        async with self._room:
            engine = await self._usable()
            if engine is None:
                return Done(None, self._stopped, 0, 0.0)
            loop = asyncio.get_running_loop()
            ended: asyncio.Future[Done] = loop.create_future()

            def deliver(done: Done) -> None:
                with suppress(RuntimeError):  # the loop is closed: nobody waits
                    loop.call_soon_threadsafe(_set, ended, done)

            self._in_work += 1
            try:
                engine.submit(provider, request, deliver)  # there is room
                return await ended
            finally:
                self._in_work -= 1

    async def _usable(self) -> Engine | None:
        async with self._replacing:
            engine, now = self._engine, time.time()
            if engine is not None and engine.stopped is None:
                return engine
            if engine is not None and self._stopped is not engine.stopped:
                self._stop(engine.stopped, now)
            if now < self._again_at or self._in_work:
                return engine
            self._engine = None
            try:
                if engine is not None:
                    await asyncio.to_thread(engine.close)
                self._engine = await asyncio.to_thread(self._open_engine)
            except StorageError as error:  # the ledger cannot be opened
                self._stop(StopRun(str(error)), now)
            return self._engine

    def _stop(self, error: StopRun | None, now: float) -> None:
        self._stopped = error
        until = (error and error.until) or 0.0
        self._again_at = max(now + STOP_S, min(until, now + LONGEST_STOP_S))


def _set(future: asyncio.Future[Done], done: Done) -> None:
    if not future.done():
        future.set_result(done)
