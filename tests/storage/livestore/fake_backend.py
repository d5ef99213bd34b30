"""A sync backend as LiveStore's sync-cf 0.4.0 is, over real WebSockets, with the faults that it has and some more.

It keeps the log as the real one does: it accepts any numbers behind a right first parent, and any event.
"""

from __future__ import annotations

import asyncio
import json
import random
import ssl
import threading
import time
from collections import Counter, defaultdict
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from urllib.parse import unquote

from aiohttp import WSMsgType, web

from tests.fakes.ports import free_port


@dataclass
class Faults:
    """Probabilities, for each frame that is sent or received."""

    lose_broadcast: float = 0.0
    late_broadcast: float = 0.0
    cut: float = 0.0
    cut_after_push: float = 0.0
    deaf: float = 0.0
    refuse_push: float = 0.0
    chunk: int = 100
    repeat_broadcast: float = 0.0
    no_pong: bool = False


@dataclass(eq=False)
class Connection:
    """A client's connection, and the pulls that get broadcasts on it."""

    socket: web.WebSocketResponse
    pulls: list[str] = field(default_factory=list)
    acks: asyncio.Queue = field(default_factory=asyncio.Queue)
    deaf: bool = False


class FakeBackend:
    """Stores by id: their logs are lists of encoded events."""

    def __init__(self, seed: int = 0, payload: object = None, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self.faults = Faults()
        self.payload = payload
        self.ahead = 0.0  # seconds: its clock, by which events are stored, before this machine's
        self.refused: set[str] = set()  # stores that no payload opens
        self.logs: dict[str, list[dict]] = defaultdict(list)
        self.backends: dict[str, str] = defaultdict(lambda: f"log{random.randrange(1 << 40)}")
        self.counts: Counter[str] = Counter()
        self.urls: list[str] = []
        self.pushed = threading.Condition()
        self._random = random.Random(seed)
        self._connections: dict[str, list[Connection]] = defaultdict(list)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._site: web.AppRunner | None = None
        self._tasks: set[asyncio.Task] = set()
        self._reads = asyncio.Event()
        self._reads.set()
        self.port = free_port()  # for after a kill, too
        self.start()

    @property
    def url(self) -> str:
        return f"{'wss' if self._tls else 'ws'}://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Listens; on the same port again after ``kill``."""
        self._call(self._start())

    def kill(self) -> None:
        """Ends all connections at once, and accepts none."""
        self._call(self._kill())

    def stop(self) -> None:
        self.kill()
        self._call(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def write(self, store: str, name: str, args: dict, client: str = "page", numbers: tuple[int, int] | None = None):
        """As another client's push does; ``numbers`` (parent, own) may be wrong ones."""
        self._call(self._write(store, name, args, client, numbers))

    def rewind(self, store: str, length: int) -> None:
        """Restores an older state of a log."""
        self._call(self._rewind(store, length))

    def replace_log(self, store: str) -> None:
        """A new, empty log under the old name."""
        self.backends[store] = f"log{self._random.randrange(1 << 40)}"
        self.rewind(store, 0)

    def cut(self) -> None:
        """Ends all connections."""
        self._call(self._cut())

    def hold_pulls(self) -> None:
        """From now on a pull gets broadcasts at once, and what is stored only after ``release_pulls``."""
        self._loop.call_soon_threadsafe(self._reads.clear)

    def release_pulls(self) -> None:
        self._loop.call_soon_threadsafe(self._reads.set)

    def wait(self, there, seconds: float = 55) -> None:
        """Waits until something is true of the logs."""
        with self.pushed:
            assert self.pushed.wait_for(there, seconds), "it did not come"

    def wait_for_count(self, name: str, count: int = 1) -> None:
        """Waits until something has happened a given number of times."""
        for _ in range(5_500):
            if self.counts[name] >= count:
                return
            time.sleep(0.01)
        raise AssertionError(f"no {name}")

    def _call(self, work) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    def _spawn(self, work) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _start(self) -> None:
        app = web.Application()
        app.router.add_get("/{tail:.*}", self._connect)
        self._site = web.AppRunner(app, shutdown_timeout=0.1, access_log=None)
        await self._site.setup()
        site = web.TCPSite(self._site, "127.0.0.1", self.port, ssl_context=self._tls)
        await site.start()

    async def _kill(self) -> None:
        await self._cut()
        if self._site is not None:
            await self._site.cleanup()
            self._site = None

    async def _end(self) -> None:
        tasks = self._tasks - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _cut(self) -> None:
        for connections in self._connections.values():
            for one in list(connections):
                one.socket._req.transport.abort()

    async def _write(self, store, name, args, client, numbers) -> None:
        head = self._head(store)
        parent, number = numbers or (head, head + 1)
        self._append(
            store,
            [
                {
                    "name": name,
                    "args": args,
                    "seqNum": number,
                    "parentSeqNum": parent,
                    "clientId": client,
                    "sessionId": "s",
                }
            ],
        )

    async def _rewind(self, store, length) -> None:
        del self.logs[store][length:]
        await self._cut()

    def _head(self, store: str) -> int:
        return self.logs[store][-1]["seqNum"] if self.logs[store] else 0

    def _append(self, store: str, batch: list[dict]) -> None:
        at = datetime.now(UTC) + timedelta(seconds=self.ahead)
        now = at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        stored = [json.loads(json.dumps(event)) for event in batch]
        for event in stored:
            event["_at"] = now
        with self.pushed:
            self.logs[store] += stored
            self.pushed.notify_all()
        for one in list(self._connections[store]):
            for pull in one.pulls:
                if self._random.random() < self.faults.lose_broadcast:
                    self.counts["lost"] += 1
                    continue
                late = self._random.random() < self.faults.late_broadcast
                delay = self._random.uniform(0.0, 0.05) if late else 0.0
                for _ in range(1 + (self._random.random() < self.faults.repeat_broadcast)):
                    self._loop.call_later(delay, self._tell, store, one, pull, stored)

    def _tell(self, store: str, one: Connection, pull: str, events: list[dict]) -> None:
        if not one.deaf:
            self._spawn(self._send(one, self._chunk(store, pull, events, 0)))

    def _chunk(self, store: str, pull: str, events: list[dict], remaining: int) -> dict:
        page = {"_tag": "MoreKnown", "remaining": remaining} if remaining else {"_tag": "NoMore"}
        batch = [
            {
                "eventEncoded": {name: value for name, value in event.items() if name != "_at"},
                "metadata": {"_tag": "Some", "value": {"_tag": "SyncMessage.SyncMetadata", "createdAt": event["_at"]}},
            }
            for event in events
        ]
        value = {"batch": batch, "pageInfo": page, "backendId": self.backends[store]}
        return {"_tag": "Chunk", "requestId": pull, "values": [value]}

    async def _send(self, one: Connection, message: dict) -> None:
        if self._random.random() < self.faults.cut:
            self.counts["cut"] += 1
            one.socket._req.transport.abort()
            return
        with suppress(ConnectionError, RuntimeError):
            await one.socket.send_str(json.dumps(message, separators=(",", ":")))

    async def _connect(self, request: web.Request) -> web.StreamResponse:
        self.counts["connects"] += 1
        self.urls.append(str(request.rel_url))
        payload = request.query.get("payload")
        wrong = self.payload is not None and json.loads(unquote(payload or "null")) != self.payload
        if wrong or request.query["storeId"] in self.refused:
            return web.Response(status=400, text='UnknownError: { "cause": Error: Invalid auth token }')
        if request.query.get("transport") != "ws":
            return web.Response(text="not a transport")
        store = request.query["storeId"]
        socket = web.WebSocketResponse(max_msg_size=1 << 26)
        await socket.prepare(request)
        one = Connection(socket)
        self._connections[store].append(one)
        try:
            async for message in socket:
                if message.type is WSMsgType.TEXT:
                    self._heard(store, one, message.data)
        finally:
            self._connections[store].remove(one)
        return socket

    def _heard(self, store: str, one: Connection, text: str) -> None:
        if text == '{"_tag":"Ping"}':  # by the runtime, whatever became of the handler
            self.counts["pings"] += 1
            if not self.faults.no_pong:
                self._spawn(one.socket.send_str('{"_tag":"Pong"}'))
            return
        self.counts["frames"] += 1
        if not one.deaf and self._random.random() < self.faults.deaf:
            self.counts["deaf"] += 1
            one.deaf = True
        if one.deaf:
            return
        message = json.loads(text)
        if message["_tag"] == "Ack":
            one.acks.put_nowait(message["requestId"])
            return
        if message["_tag"] == "Interrupt":
            with suppress(ValueError):
                one.pulls.remove(message["requestId"])
            return
        if not (isinstance(message["id"], str) and message["id"].isdecimal()):
            one.deaf = True
            return
        if message["tag"] == "SyncWsRpc.Pull":
            self._spawn(self._pull(store, one, message["id"], message["payload"]["cursor"]))
        else:
            self._spawn(self._push(store, one, message["id"], message["payload"]))

    async def _pull(self, store: str, one: Connection, pull: str, cursor: dict) -> None:
        self.counts["pulls"] += 1
        number = 0
        if cursor["_tag"] == "Some":
            if cursor["value"]["backendId"] != self.backends[store]:
                error = {"expected": "a", "received": "b", "_tag": "BackendIdMismatchError"}
                await self._send(one, _failure(pull, error))
                return
            number = cursor["value"]["eventSequenceNumber"]
        assert not one.pulls, "a second pull on a connection: each gets all broadcasts from then on"
        one.pulls.append(pull)
        await self._reads.wait()
        events = [event for event in self.logs[store] if event["seqNum"] > number]
        while True:
            some, events = events[: self.faults.chunk], events[self.faults.chunk :]
            self.counts["chunks"] += 1
            await self._send(one, self._chunk(store, pull, some, len(events)))
            if not events:
                return
            await one.acks.get()

    async def _push(self, store: str, one: Connection, request: str, payload: dict) -> None:
        self.counts["pushes"] += 1
        batch = payload["batch"]
        if self._random.random() < self.faults.refuse_push:
            error = {"cause": {"name": "Error", "message": "SQLITE_BUSY"}, "payload": payload, "_tag": "UnknownError"}
            await self._send(one, _failure(request, error))
            return
        if payload["backendId"]["value"] != self.backends[store]:
            await self._send(
                one, _failure(request, {"expected": "a", "received": "b", "_tag": "BackendIdMismatchError"})
            )
            return
        if batch[0]["parentSeqNum"] != self._head(store):
            self.counts["ahead"] += 1
            error = {"minimumExpectedNum": self._head(store), "providedNum": 0, "_tag": "ServerAheadError"}
            await self._send(one, _failure(request, error))
            return
        self._append(store, batch)
        if self._random.random() < self.faults.cut_after_push:
            self.counts["cut after a push"] += 1
            one.socket._req.transport.abort()
            return
        await self._send(one, {"_tag": "Exit", "requestId": request, "exit": {"_tag": "Success", "value": {}}})


def _failure(request: str, error: dict) -> dict:
    return {
        "_tag": "Exit",
        "requestId": request,
        "exit": {"_tag": "Failure", "cause": {"_tag": "Fail", "error": error}},
    }
