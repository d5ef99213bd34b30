"""The stores of a run: their connections live on a thread of their own, and blocking steps take events from it."""

from __future__ import annotations

import asyncio
import logging
import threading
import traceback
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import aiohttp
import uvloop

from llmdo.storage.errors import StorageError, StorageUnavailable
from llmdo.storage.livestore.frames import Author, Cursor, StoredEvent
from llmdo.storage.livestore.places import StorePlace
from llmdo.storage.livestore.pushes import Make
from llmdo.storage.livestore.synced_store import SyncedStore, open_sync_session

_CLOSE_S = 10.0
_SESSION = "llmdo"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TakenEvent:
    """An event of a store.

    Attributes:
        cursor: the place behind it.
        life: how often the store began anew, as another log.
    """

    store: str
    event: StoredEvent
    cursor: Cursor
    life: int = 0


class LiveStores:
    """Connects to stores, each by one WebSocket, until it is closed. Thread-safe.

    Args:
        places: the stores, by id.
        clients: the name that pushed events have, by store.
        cursors: where to begin, by store; the start of the log without one.
        on_event: sees each event of a store on the connections' thread, before any later push is made, and may return
            another one to be taken in its place.
        on_reset: a store's log is another one, or an older state of it; what was known of it does not hold any more.
    """

    def __init__(
        self,
        places: Sequence[StorePlace],
        clients: Mapping[str, str],
        cursors: Mapping[str, Cursor],
        on_event: Callable[[str, StoredEvent], StoredEvent | None],
        on_reset: Callable[[str], None],
    ) -> None:
        self._on_event, self._on_reset = on_event, on_reset
        self._came = threading.Condition()
        self._events: deque[TakenEvent] = deque()
        self._waiting: Counter[str] = Counter()
        self._lives: Counter[str] = Counter()
        self._stores = {
            place.store: SyncedStore(
                place,
                Author(clients[place.store], _SESSION),
                cursors.get(place.store),
                partial(self._take_in, place.store),
                partial(self._waiting.__getitem__, place.store),
                partial(self._reset, place.store),
            )
            for place in places
        }
        self._loop = uvloop.new_event_loop()
        self._stopping = asyncio.Event()
        self._thread = threading.Thread(target=self._live, name="llmdo-livestore", daemon=True)
        self._thread.start()

    def take(self, most: int, wait_s: float) -> list[TakenEvent]:
        """The next events, at most ``most``; waits up to ``wait_s`` s for the first.

        Raises StorageError if a store will not be read any more, whatever the others have.
        """
        with self._came:
            self._came.wait_for(lambda: self._events or self._refused, wait_s)
            if self._refused is not None:
                raise self._refused
            taken = [self._events.popleft() for _ in range(min(most, len(self._events)))]
            self._waiting.subtract(one.store for one in taken)
        return taken

    @property
    def problem(self) -> StorageUnavailable | None:
        """Why a store cannot be read at the moment."""
        return next((store.problem for store in self._stores.values() if store.problem is not None), None)

    def push(self, store: str, make: Make) -> Future[bool]:
        """See PushQueue.push; ``make`` is called on the connections' thread. After ``close`` it is cancelled."""
        push = self._stores[store].push(make)
        try:
            return asyncio.run_coroutine_threadsafe(push, self._loop)
        except RuntimeError:  # the loop is closed
            push.close()
            cancelled: Future[bool] = Future()
            cancelled.cancel()
            return cancelled

    def close(self) -> None:
        """Ends all connections; pushes that wait are cancelled."""
        with suppress(RuntimeError):  # it is closed
            self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(_CLOSE_S)

    @property
    def _refused(self) -> StorageError | None:
        return next((store.refused for store in self._stores.values() if store.refused is not None), None)

    # The connections' thread.

    def _live(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._main())

    async def _main(self) -> None:
        try:
            session = open_sync_session()
        except StorageError as error:
            for store in self._stores.values():
                self._give_up(store, error)
            return
        async with session as http:
            tasks = [asyncio.create_task(self._run(store, http)) for store in self._stores.values()]
            await self._stopping.wait()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, store: SyncedStore, http: aiohttp.ClientSession) -> None:
        try:
            await store.run(http)
        except Exception as error:  # noqa: BLE001  else nobody would hear of it
            # Without its text, which may hold the payload.
            where = "".join(traceback.format_tb(error.__traceback__))
            _log.debug("store %s: unexpected %s\n%s", store.place.store, type(error).__name__, where)
            store.refused = StorageError(f"store {store.place.store}: unexpected {type(error).__name__}")
        if store.refused is not None:
            self._give_up(store, store.refused)

    def _give_up(self, store: SyncedStore, error: StorageError) -> None:
        with self._came:
            store.give_up(error)
            self._came.notify_all()

    def _take_in(self, store: str, backend: str, event: StoredEvent) -> None:
        event = self._on_event(store, event) or event
        with self._came:
            self._events.append(TakenEvent(store, event, Cursor(backend, event.number), self._lives[store]))
            self._waiting[store] += 1
            self._came.notify_all()

    def _reset(self, store: str, why: str) -> None:
        _log.warning("store %s is read from its start again: %s", store, why)
        self._lives[store] += 1
        self._on_reset(store)
