"""Pushes events into one store, by compare-and-swap on its log's head; one push is in flight at a time."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Protocol

from llmdo.storage.errors import StorageError
from llmdo.storage.livestore import frames
from llmdo.storage.livestore.frames import Author, Cursor, Exit, Refusal
from llmdo.storage.livestore.places import StorePlace
from llmdo.storage.livestore.pushes import Make, Parcel, PushBatch, next_batch

_log = logging.getLogger(__name__)


class ConnectionLost(Exception):
    """The connection is of no more use; whether a push in flight was taken is unknown."""


class ConnectedLog(Protocol):
    """What pushing needs of a store.

    Attributes:
        caught_up: whether there is a connection, and everything that was stored before it is read.
        link: identifies the connection.
        head: of the log, as far as it was read.
        refused: why the store will not be read any more.
    """

    caught_up: asyncio.Event
    link: object | None
    head: Cursor | None
    refused: StorageError | None

    async def ask(self, link: object, frame: Callable[[str], str]) -> Exit:
        """Sends a request, made with its id, and returns how it ended. Raises ConnectionLost."""

    async def wait_for_event(self, link: object, number: int) -> None:
        """Returns once the log was read up to an event that must be there, or the connection has ended."""

    async def reconnect(self, link: object, why: str) -> None:
        """Ends a connection, and reads the log again from the head."""

    def start_again(self, why: str) -> None:
        """Reads the log from its start, with the next connection."""


class PushQueue:
    """Events on their way into a store; used on one event loop."""

    def __init__(self, log: ConnectedLog, place: StorePlace, author: Author) -> None:
        self._log, self._place, self._author = log, place, author
        self._waiting: deque[Parcel] = deque()
        self._pusher: asyncio.Task[None] | None = None

    async def push(self, make: Make) -> bool:
        """Appends what ``make`` returns, once; returns False if it returned nothing.

        It is asked again before each try, when all events up to the log's head are known. Waits while the backend
        is away. Raises StorageError if the backend refuses the events.
        """
        if self._log.refused is not None:
            raise self._log.refused
        parcel = Parcel(make, asyncio.get_running_loop().create_future())
        self._waiting.append(parcel)
        if self._pusher is None or self._pusher.done():
            self._pusher = asyncio.create_task(self._push_all())
        return await parcel.pushed

    def fail(self, error: StorageError) -> None:
        """Gives back everything that waits."""
        while self._waiting:
            self._waiting.popleft().settle(error)

    async def _push_all(self) -> None:
        log = self._log
        while self._waiting and log.refused is None:
            await log.caught_up.wait()
            link, head = log.link, log.head
            if link is None or head is None:
                log.caught_up.clear()  # until the next connection
                continue
            batch = next_batch(self._waiting)
            if not batch.events:
                continue
            try:
                settled = await self._pushed(link, head, batch)
            except Exception as error:  # noqa: BLE001  else whoever waits for it would wait for ever
                _log.debug("store %s: unexpected %s", self._place.store, type(error).__name__)
                for parcel in batch.parcels:
                    parcel.settle(StorageError(f"store {self._place.store}: unexpected {type(error).__name__}"))
                continue
            if not settled:
                self._waiting.extendleft(reversed([one for one in batch.parcels if not one.pushed.done()]))

    async def _pushed(self, link: object, head: Cursor, batch: PushBatch) -> bool:
        """Whether the parcels of a batch are settled; else they wait for another try."""
        place = self._place
        try:
            exit_ = await self._log.ask(
                link,
                lambda request: frames.push(request, place.store, place.payload, head, batch.events, self._author),
            )
        except ConnectionLost as error:
            # Whether it was taken is unknown: after the next pull ``make`` knows.
            await self._log.reconnect(link, str(error))
            return False
        if exit_.refusals:
            await self._refused(link, head, batch, exit_.refusals)
            return False
        # Whoever waits for it finds it among the events that were read.
        await self._log.wait_for_event(link, head.number + len(batch.events))
        for parcel in batch.parcels:
            parcel.settle(True)
        return True

    async def _refused(self, link: object, head: Cursor, batch: PushBatch, refusals: tuple[Refusal, ...]) -> None:
        log = self._log
        ahead = next((one.head for one in refusals if one.kind == "ServerAheadError" and one.head is not None), None)
        if ahead is not None and ahead < head.number:
            why = f"its log ends at event {ahead} and had {head.number}: it was restored from a backup"
            log.start_again(why)
            await log.reconnect(link, why)
        elif ahead is not None and ahead > head.number:
            await log.wait_for_event(link, ahead)
        elif any(one.kind == "BackendIdMismatchError" for one in refusals):
            await log.reconnect(link, "another log")  # the next pull is refused for it, too
        else:
            for parcel in batch.parcels:
                if len(batch.parcels) == 1:
                    parcel.settle(
                        StorageError(f"store {self._place.store} refuses an event: {said(refusals, self._place)}")
                    )
                parcel.refused = True


def said(refusals: tuple[Refusal, ...], place: StorePlace) -> str:
    """What a backend says, in a line."""
    words = "; ".join(f"{one.kind}: {one.text}" if one.text else one.kind for one in refusals)
    return place.shown(words) or "without a reason"
