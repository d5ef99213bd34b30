"""Fetches what lines name by reference, when they are called: each object about once, within bounds of memory.

A reference gets its version first, from a cheap look at the object; by that the ledger knows the request. Only a
request that is really called has its bytes fetched, before it waits for its turn: the model's window and time are not
used for that.
"""

from __future__ import annotations

import asyncio
import base64
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from llmdo.backends.limits.retry import instant
from llmdo.backends.media.errors import MediaAway, MediaChanged, MediaOutage, MediaUnusable
from llmdo.backends.media.kinds import media_kind
from llmdo.backends.media.parts import Encoded, references_in, renamed, shown_name, with_bytes
from llmdo.backends.media.room import ByteRoom
from llmdo.backends.requests import MediaReference, Request

# Base64 that is kept for lines to come, and that calls may hold at a time: waiting, in flight, and on its way. Bytes.
KEPT_BYTES, IN_HAND_BYTES = 128 << 20, 256 << 20
# Of all that one line names: OpenAI takes 50 MB a request (developers.openai.com/docs/guides/images-vision).
MOST_OF_A_LINE = 50_000_000
MOST_NAMES = 500  # of a line; OpenAI takes as many images
LOOKS_KEPT, LOOK_LASTS_S = 10_000, 60.0
_THREADS = 64  # most wait for the network; they are started as they are needed
# Between two tries while a place does not answer. Seconds.
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 30.0

_log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Looked:
    """An object's version, and its size in bytes, or the most that it may have."""

    version: str
    size: int


class MediaStore(Protocol):
    """Where the objects are. Called on threads; raises MediaOutage, and every other error as it is to end the line."""

    max_bytes: int

    def look(self, reference: MediaReference) -> Looked:
        """The version that is there now. Raises MediaUnusable for one that is too large."""

    def read(self, reference: MediaReference) -> bytes:
        """The bytes of exactly this version. Raises MediaChanged."""


class MediaSource(Protocol):
    """Names where lines may take media from; equal where it is the same."""

    def marked(self, request: Request, store_url: str) -> Request:
        """A request with MediaReferences where the names stand that its line may use; the same one without any.

        ``store_url``: the bucket or folder of the line's file. Raises MediaNotAllowed.
        """

    def open(self) -> MediaStore:
        """Opens it; makes no request."""

    def __hash__(self) -> int:
        """Goes with equality."""


class MediaLoader:
    """The pictures, sounds and files of an engine's requests; used on its loop.

    Args:
        source: where they are.
        patience_s: how long a place may fail before MediaAway is raised.
    """

    def __init__(self, source: MediaSource, patience_s: float) -> None:
        self._store = source.open()
        self._patience_s = patience_s
        self._threads = ThreadPoolExecutor(_THREADS, "llmdo-media")
        self._looks: OrderedDict[str, tuple[float, Looked]] = OrderedDict()
        self._kept: OrderedDict[tuple[str, str], Encoded] = OrderedDict()
        self._kept_size = 0
        self._at_work: dict[tuple[str, ...], asyncio.Task[Any]] = {}
        self._room = ByteRoom(IN_HAND_BYTES)
        self._failing: set[str] = set()
        self._stopping = asyncio.Event()

    async def pinned(self, request: Request) -> Request:
        """The request with the version of each object in its name. Raises ModelError."""
        references = references_in(request)
        if len(references) > MOST_NAMES:
            raise MediaUnusable(
                f"the line names {len(references):,} objects: {MOST_NAMES} are sent at most, name fewer"
            )
        named = {one.place: one for one in references}
        looks = await asyncio.gather(*(self._look(one) for one in named.values()), return_exceptions=True)
        for look in looks:
            if isinstance(look, BaseException):
                raise look
        found = {place: look for place, look in zip(named, looks, strict=True) if isinstance(look, Looked)}
        whole, most = sum(look.size for look in found.values()), max(MOST_OF_A_LINE, self._store.max_bytes)
        if whole > most:
            raise MediaUnusable(
                f"the line names {len(found):,} objects of {whole:,} bytes in all, and {most:,} are sent at most: name "
                "fewer, or smaller ones"
            )

        def pin(name: str, medium: str, _: bool) -> str:
            if not isinstance(name, MediaReference):
                return name
            look = found[name.place]
            return MediaReference.of(str(name), name.store, name.key, medium, look.version, look.size)

        return renamed(request, pin)

    @asynccontextmanager
    async def filled(self, request: Request) -> AsyncIterator[Request]:
        """A pinned request with bytes in the place of references, held as long as the block runs. Raises ModelError."""
        references = references_in(request)
        size = sum(encoded_size(one.size) for one in references)
        await self._room.take(size)
        try:
            there = {one.place: one for one in references}
            fetched = await asyncio.gather(*(self._fetch(one) for one in there.values()), return_exceptions=True)
            for one in fetched:
                if isinstance(one, BaseException):
                    raise one
            by_place = {name: one for name, one in zip(there, fetched, strict=True) if isinstance(one, Encoded)}
            yield with_bytes(request, lambda reference: by_place[reference.place])
        finally:
            self._room.give(size)

    def stop(self) -> None:
        """Waits for no place any more."""
        self._stopping.set()

    async def aclose(self) -> None:
        """Ends what is at work; reads that have begun end by themselves."""
        self.stop()
        tasks = list(self._at_work.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _look(self, reference: MediaReference) -> Looked:
        now, place = asyncio.get_running_loop().time(), reference.place
        at, known = self._looks.get(place, (0.0, None))
        if known is not None and now - at < LOOK_LASTS_S:
            self._looks.move_to_end(place)
            return known
        return await self._once(("look", place), lambda: self._looked(reference))

    async def _looked(self, reference: MediaReference) -> Looked:
        look = await self._patiently(reference, lambda: self._store.look(reference))
        self._looks[reference.place] = asyncio.get_running_loop().time(), look
        if len(self._looks) > LOOKS_KEPT:
            self._looks.popitem(last=False)
        return look

    async def _fetch(self, reference: MediaReference) -> Encoded:
        key = reference.place, reference.version
        if (kept := self._kept.get(key)) is not None:
            self._kept.move_to_end(key)
            return kept
        return await self._once(("read", *key), lambda: self._fetched(reference))

    async def _fetched(self, reference: MediaReference) -> Encoded:
        def read() -> Encoded:
            return _encoded(reference, self._store.read(reference))

        try:
            encoded = await self._patiently(reference, read)
        except MediaChanged:
            self._looks.pop(reference.place, None)  # the next try looks again
            raise
        self._keep(reference, encoded)
        return encoded

    def _keep(self, reference: MediaReference, encoded: Encoded) -> None:
        self._kept[reference.place, reference.version] = encoded
        self._kept_size += len(encoded.data_url)
        while self._kept_size > KEPT_BYTES:
            _, oldest = self._kept.popitem(last=False)
            self._kept_size -= len(oldest.data_url)

    async def _once(self, key: tuple[str, ...], work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """What ``work`` returns, for all who ask for the same meanwhile."""
        task = self._at_work.get(key)
        if task is None:
            task = self._at_work[key] = asyncio.ensure_future(work())
            task.add_done_callback(lambda done: self._ended(key, done))
        found: T = await asyncio.shield(task)
        return found

    def _ended(self, key: tuple[str, ...], task: asyncio.Task[Any]) -> None:
        del self._at_work[key]
        if not task.cancelled():
            task.exception()  # whoever waited for it may have been cancelled

    async def _patiently(self, reference: MediaReference, work: Callable[[], T]) -> T:
        """What ``work`` returns on a thread; it is called again while the place does not answer. Raises MediaAway."""
        loop, place = asyncio.get_running_loop(), reference.store or _origin(reference.key)
        began, wait_s = loop.time(), _FIRST_WAIT_S
        while True:
            try:
                done = await self._in_thread(work)
            except MediaOutage as outage:
                self._say_failing(place, outage)
                if loop.time() - began > self._patience_s or self._stopping.is_set():
                    said = f"{outage}: see that {place} can be read, then run the same command again"
                    raise MediaAway(said) from outage
                await self._pause(wait_s)
                wait_s = min(2 * wait_s, _LONGEST_WAIT_S)
            else:
                if place in self._failing:
                    self._failing.discard(place)
                    _log.warning("%s can be read again", place)
                return done

    def _say_failing(self, place: str, outage: MediaOutage) -> None:
        if place not in self._failing:
            self._failing.add(place)
            _log.warning("%s; trying again until it works", outage)

    async def _pause(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._stopping.wait(), 0.0 if instant() else seconds)
        except TimeoutError:
            return

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)


def encoded_size(size: int) -> int:
    """The size that this number of bytes has in base64, in bytes."""
    return -(-size // 3) * 4


def _origin(url: str) -> str:
    return "/".join(url.split("/")[:3])


def _encoded(reference: MediaReference, data: bytes) -> Encoded:
    name = shown_name(reference.place)
    if not data:
        raise MediaUnusable(f"{name} is empty: store its content again")
    kind = media_kind(data, name)
    if kind is None:
        raise MediaUnusable(
            f"{name} is neither a picture, a sound, a video nor a document that is known here, by its first bytes: "
            "convert it to PNG, JPEG, WAV, MP3 or PDF"
        )
    return Encoded(kind, f"data:{kind.mime};base64,{base64.b64encode(data).decode()}")
