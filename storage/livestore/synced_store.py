"""One store of LiveStore: its events as they come, in the log's order, and pushes by compare-and-swap on its head."""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
from collections.abc import Callable
from contextlib import suppress
from itertools import count

import aiohttp
from yarl import URL

from llmdo.settings.network import ca_file, proxy_for, tls_context
from llmdo.storage.errors import AccessDenied, StorageError, StorageUnavailable
from llmdo.storage.livestore import frames
from llmdo.storage.livestore.frames import PING, Author, BadFrame, Chunk, Cursor, Defect, Exit, Pong, StoredEvent
from llmdo.storage.livestore.places import StorePlace
from llmdo.storage.livestore.push_queue import ConnectionLost, PushQueue, said
from llmdo.storage.livestore.pushes import Make

# workerd that is about to end keeps its port and accepts nothing: a connect must end by itself. Seconds.
CONNECT_S = 10.0
# A silent connection is pinged after this long, and given up after as long again. Seconds.
SILENCE_S = 10.0
# A push, or a pull, without a reply: the backend's handler may have ended, though pings are answered still. Seconds.
REPLY_S, PULL_REPLY_S = 10.0, 30.0
# Broadcasts get lost (upstream issues 1462 and 1537): one that a push or a refusal tells of is waited for this long,
# and a store without any events is read again after so long. Seconds.
BROADCAST_S, RECHECK_S = 2.0, 300.0
# Events that wait for whoever reads them. At the first number no more stored ones are asked for; at the second the
# connection is ended, since new ones come unasked.
MOST_UNTAKEN, MOST_BEHIND = 1_000, 10_000
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.2, 10.0
_LARGEST_FRAME = 1 << 26  # a chunk has at most 900,000 bytes, a broadcast as many as its push

_log = logging.getLogger(__name__)


class _PullAgain(ConnectionLost):
    """Something may have been missed: it is pulled, which is no fault of the backend."""


def open_sync_session() -> aiohttp.ClientSession:
    """For the connections to any number of stores. Raises StorageError for certificates that cannot be used."""
    try:
        trusted: ssl.SSLContext | bool = tls_context() if ca_file() else True
    except ValueError as error:
        raise StorageError(str(error)) from None
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, ssl=trusted),
        cookie_jar=aiohttp.DummyCookieJar(),
        middlewares=(_never_redirected,),
    )


class SyncedStore:
    """A ConnectedLog; used on one event loop.

    Args:
        cursor: where to begin; None for the start of the log.
        on_event: gets the log's id and each event once, in order, before ``head`` moves past it, so that what ``make``
            of a push knows is never older than the head that the push is compared with.
        waiting: how many events were not taken by their reader so far.
        on_reset: the log is another one, or an older state of it: its events come again from the start.

    Attributes:
        problem: why the store cannot be read at the moment.
    """

    def __init__(
        self,
        place: StorePlace,
        author: Author,
        cursor: Cursor | None,
        on_event: Callable[[str, StoredEvent], None],
        waiting: Callable[[], int],
        on_reset: Callable[[str], None],
    ) -> None:
        self.place, self.head = place, cursor
        self.caught_up = asyncio.Event()
        self.link: object | None = None
        self.refused: StorageError | None = None
        self.problem: StorageUnavailable | None = None
        self._on_event, self._waiting, self._on_reset = on_event, waiting, on_reset
        self._pushes = PushQueue(self, place, author)
        self._ids = count()
        self._replies: dict[str, asyncio.Future[Exit]] = {}
        self._moved = asyncio.Condition()
        self._hole: tuple[int, int] | None = None

    async def run(self, http: aiohttp.ClientSession) -> None:
        """Stays connected until it is cancelled or ``refused``."""
        loop, wait = asyncio.get_running_loop(), _FIRST_WAIT_S
        while self.refused is None:
            began, before = loop.time(), self.head
            try:
                await self._connection(http)
            except _PullAgain as error:
                _log.debug("store %s is pulled again: %s", self.place.store, error)
            except (aiohttp.ClientError, OSError, ConnectionLost, BadFrame) as error:
                self._failed(error)
            finally:
                self._disconnected()
            moved = self.head is not None and self.head.number > (before.number if before else 0)
            lasted = loop.time() - began > _LONGEST_WAIT_S
            wait = _FIRST_WAIT_S if moved or lasted else min(2 * wait, _LONGEST_WAIT_S)
            if self.refused is None:
                await asyncio.sleep(wait * random.uniform(0.5, 1.0))  # noqa: S311  not for security

    def give_up(self, error: StorageError) -> None:
        """Ends what waits for this store, with an error."""
        self.refused = error
        self.caught_up.set()  # lets the pusher end
        self._pushes.fail(error)

    async def push(self, make: Make) -> bool:
        """See PushQueue.push."""
        return await self._pushes.push(make)

    # Reading.

    async def _connection(self, http: aiohttp.ClientSession) -> None:
        place, closing = self.place, aiohttp.ClientWSTimeout(ws_close=2.0)
        await self._room()
        try:
            proxy = proxy_for(place.web_url)
        except ValueError as error:
            raise ConnectionLost(str(error)) from None
        address = URL(place.address, encoded=True)
        async with asyncio.timeout(CONNECT_S) as limit:
            async with http.ws_connect(address, proxy=proxy, max_msg_size=_LARGEST_FRAME, timeout=closing) as socket:
                limit.reschedule(None)
                request = str(next(self._ids))
                await socket.send_str(frames.pull(request, place.store, place.payload, self.head))
                self.link = socket
                await self._listen(socket, request)

    async def _listen(self, socket: aiohttp.ClientWebSocketResponse, pull: str) -> None:
        loop, pinged = asyncio.get_running_loop(), False
        heard = loop.time()
        while True:
            try:
                message = await socket.receive(SILENCE_S)
            except TimeoutError:
                silent = loop.time() - heard
                if pinged or (silent > PULL_REPLY_S and not self.caught_up.is_set()):
                    raise ConnectionLost(f"no reply for {silent:.0f} s") from None
                if silent > RECHECK_S:
                    raise _PullAgain(f"nothing came for {RECHECK_S:g} s") from None
                pinged = True
                await socket.send_str(PING)
                continue
            if message.type is not aiohttp.WSMsgType.TEXT:
                raise ConnectionLost(f"the connection was closed ({socket.close_code})")
            pinged = False
            for frame in frames.read_frames(message.data):
                await self._frame(socket, pull, frame)
                if not isinstance(frame, Pong):
                    heard = loop.time()

    async def _frame(self, socket: aiohttp.ClientWebSocketResponse, pull: str, frame: frames.Frame) -> None:
        match frame:
            case Chunk(request) if request == pull:
                await self._take(frame)
                if frame.more:
                    await self._room()
                elif self._waiting() > MOST_BEHIND:
                    raise _PullAgain("its events come faster than they are taken")
                await socket.send_str(frames.ack(request))
            case Exit(request, refusals) if request == pull:
                if any(one.kind == "BackendIdMismatchError" for one in refusals):
                    self.start_again("its backend has another log of this name")
                    raise _PullAgain("another log")
                raise ConnectionLost(f"the pull ended: {said(refusals, self.place)}")
            case Exit(request):
                reply = self._replies.pop(request, None)
                if reply is not None and not reply.done():
                    reply.set_result(frame)
            case Defect(text):
                raise ConnectionLost(f"the backend failed: {self.place.shown(text)}")

    async def _take(self, chunk: Chunk) -> None:
        head = self.head
        if head is not None and head.backend != chunk.backend:
            self.start_again("its backend has another log of this name")
            raise _PullAgain("another log")
        number, follows = head.number if head else 0, False
        try:
            for event in chunk.events:
                if event.number <= number:  # a push and a pull may both bring it
                    follows = event.number == number
                    continue
                # Within a chunk events stand as in the log, which may have holes: clients that renumber under load
                # write such ones. Between chunks a broadcast may have overtaken what is stored, or one was lost. If it
                # is the same after a new pull, the log has the hole.
                if event.parent != number and not follows and self._hole != (number, event.number):
                    self._hole = number, event.number
                    raise _PullAgain(f"event {event.number} followed {number}")
                self._on_event(chunk.backend, event)
                number, follows = event.number, True
        finally:
            self.head = Cursor(chunk.backend, number)
            async with self._moved:
                self._moved.notify_all()
        if not chunk.more:
            self.problem = None
            self.caught_up.set()

    async def _room(self) -> None:
        while self._waiting() >= MOST_UNTAKEN:  # noqa: ASYNC110  another thread makes room
            await asyncio.sleep(0.05)

    def _failed(self, error: Exception) -> None:
        """What ended a connection. Of aiohttp's errors most hold the address in their text, and so the payload."""
        place = self.place
        if isinstance(error, aiohttp.WSServerHandshakeError) and error.status in {400, 401, 403}:
            self.refused = AccessDenied(
                f"store {place.store}: {place.url} refuses the payload (HTTP {error.status}): correct "
                "LIVESTORE_PAYLOAD, or the store's id"
            )
            return
        if isinstance(error, ConnectionLost | BadFrame | aiohttp.ClientConnectorError):
            what = place.shown(str(error) or type(error).__name__)
        elif isinstance(error, aiohttp.WSServerHandshakeError | aiohttp.ClientHttpProxyError):
            what = f"HTTP {error.status} instead of a WebSocket: is this the address of its sync backend?"
        elif isinstance(error, aiohttp.ClientResponseError):  # whose status aiohttp makes up
            what = "a reply that cannot be read"
        elif isinstance(error, TimeoutError):
            what = f"no connection within {CONNECT_S:g} s"
        else:
            what = type(error).__name__
        self.problem = StorageUnavailable(f"store {place.store} at {place.url}: {what}")
        _log.debug("%s", self.problem)

    def _disconnected(self) -> None:
        self.caught_up.clear()
        self.link = None
        for reply in self._replies.values():
            if not reply.done():
                reply.set_exception(ConnectionLost("the connection ended"))
        self._replies.clear()

    # For the pushes.

    def start_again(self, why: str) -> None:
        """See ConnectedLog."""
        self.caught_up.clear()
        self.head = None
        self._on_reset(why)

    async def ask(self, link: object, frame: Callable[[str], str]) -> Exit:
        """See ConnectedLog."""
        assert isinstance(link, aiohttp.ClientWebSocketResponse)  # noqa: S101  links are made here
        request = str(next(self._ids))
        reply = self._replies[request] = asyncio.get_running_loop().create_future()
        try:
            if self.link is not link:
                raise ConnectionLost("the connection ended")
            async with asyncio.timeout(REPLY_S):
                await link.send_str(frame(request))
                return await reply
        except (OSError, aiohttp.ClientError) as error:  # also TimeoutError
            raise ConnectionLost(f"no reply to a push ({type(error).__name__})") from None
        finally:
            self._replies.pop(request, None)

    async def wait_for_event(self, link: object, number: int) -> None:
        """See ConnectedLog. If it does not come, it is pulled."""

        def there() -> bool:
            return self.link is not link or (self.head is not None and self.head.number >= number)

        async with self._moved:
            with suppress(TimeoutError):
                async with asyncio.timeout(BROADCAST_S):
                    await self._moved.wait_for(there)
                return
        await self.reconnect(link, f"nothing came of event {number}")

    async def reconnect(self, link: object, why: str) -> None:
        """See ConnectedLog."""
        assert isinstance(link, aiohttp.ClientWebSocketResponse)  # noqa: S101  links are made here
        _log.debug("store %s: %s", self.place.store, why)
        if self.link is link:
            self.caught_up.clear()
        with suppress(Exception):  # it is of no more use, whatever it says
            await link.close()


async def _never_redirected(request: aiohttp.ClientRequest, send: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    response = await send(request)
    if 300 <= response.status < 400:
        response.close()
        raise ConnectionLost(
            f"HTTP {response.status} leads to another address, which is not followed, since the payload is for this "
            "one: correct --livestore"
        )
    return response
