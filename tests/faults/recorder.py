"""R2, a queue, a ledger and a model that keep the order of every write, and processes that die at any one of them.

They stand behind the classes that the steps use (``World.install`` puts them there), so what runs is the real graph. A
dead process changes nothing any more: whatever it tries raises Died, an error that no step expects.
"""

from __future__ import annotations

import asyncio
import base64
import os
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import httpx
import pytest
from pydantic_core import from_json, to_json

from llmdo.backends.requests import ChatRequest
from llmdo.backends.responses import ChatResponse
from llmdo.backends.usage import Usage
from llmdo.backends.workers_ai import backend as workers_ai
from llmdo.local.queues.api import QueuesApi
from llmdo.local.queues.notifications import ObjectEvent
from llmdo.local.queues.queues import NewMessage, Queues
from llmdo.local.wire import HttpCall, Refused, failure
from llmdo.pipelines.options import check_options
from llmdo.runners.running.run import run
from llmdo.runners.showing.summary import Summary
from llmdo.storage.ledger.sqlite import SqliteLedger
from llmdo.storage.objects.r2 import R2Store
from llmdo.storage.objects.store import ObjectInfo
from llmdo.storage.output.manifests import MANIFEST_NAME, counts_as_output
from llmdo.storage.queues.api import QueueApi
from llmdo.storage.queues.client import Pacer
from llmdo.storage.runs.histories import is_history
from tests.fakes.clocks import Clock
from tests.memory_store import MemoryStore

ACCOUNT = "0123456789abcdef" * 2
OUTPUT = "r2://llmdo/output/"
HOUR = 3600.0
SOAK = bool(os.environ.get("LLMDO_SOAK"))  # every case, however long that takes

Moment = Literal["before", "after"]


class Died(Exception):
    """The process is dead."""


@dataclass(frozen=True, slots=True)
class Write:
    """One change that outlives its process.

    Attributes:
        operation: the ObjectStore's method, ``pull`` (which leases messages), ``ack``, ``push`` of messages about
            settled files, or ``keep``, the ledger's.
        keys: the object; or the objects that the messages are about; or the ledger's key.
    """

    operation: str
    keys: tuple[str, ...]
    body: bytes = b""

    @property
    def key(self) -> str:
        """The only one."""
        (key,) = self.keys
        return key


@dataclass(frozen=True, slots=True)
class Death:
    """A process dies right before or right after its write number ``number``, counted from 1.

    With ``kind`` only the writes of that kind (see ``kind_of``) are counted: which write has a given number of all
    depends on the order of threads, the first manifest is always the first manifest.
    """

    moment: Moment
    number: int
    kind: str = ""


def kind_of(write: Write) -> str:
    """What a write is to the design."""
    if write.operation in ("pull", "ack", "push", "keep"):
        return write.operation
    folder, name = write.key.split("/")[1], write.key.rpartition("/")[2]
    shard_or_other = "shard" if counts_as_output(write.key) else name
    kinds = {"_open": "record", "_runs": "heartbeat", MANIFEST_NAME: "manifest"}
    kind = "history" if is_history(name) else kinds.get(folder) or kinds.get(name, shard_or_other)
    return f"{kind} removed" if write.operation == "delete" else kind


class Process:
    """One process, which dies at one of its writes, or never."""

    def __init__(
        self, history: list[Write], dies: Death | None = None, kind_of: Callable[[Write], str] = kind_of
    ) -> None:
        self.lock = threading.RLock()
        self.dead = False
        self._history = history
        self._dies = dies
        self._kind_of = kind_of
        self._writes = 0  # of the kind that counts

    def check_alive(self) -> None:
        """Raises Died."""
        if self.dead:
            raise Died("this process is dead")

    def begin(self, operation: str, *keys: str) -> None:
        """Something is about to be written; ``keys`` as far as they are known. Raises Died."""
        with self.lock:
            # Two writes may begin before either is done: so the number may have been skipped.
            dies = self._dies
            if dies is not None and dies.moment == "before" and self._counts(Write(operation, keys)):
                self.dead = self.dead or self._writes + 1 >= dies.number
            self.check_alive()

    def done(self, operation: str, *keys: str, body: bytes = b"") -> None:
        """It was written. Raises Died where that was the last thing."""
        with self.lock:
            write = Write(operation, keys, body)
            dies = self._dies
            # One that had begun when the process died came a moment before its last, for all that others can tell.
            late = self.dead and dies is not None and dies.moment == "after"
            self._history.insert(len(self._history) - late, write)
            self._writes += self._counts(write)
            self.dead = self.dead or (dies is not None and dies.moment == "after" and self._writes >= dies.number)
            self.check_alive()

    def _counts(self, write: Write) -> bool:
        return self._dies is not None and self._dies.kind in ("", self._kind_of(write))

    @contextmanager
    def writing(self, operation: str, key: str, body: bytes = b"") -> Iterator[None]:
        """One write as a whole; one that the store refuses is none."""
        with self.lock:
            self.begin(operation, key)
            yield
            self.done(operation, key, body=body)


@dataclass
class RecordedStore:
    """The bucket as one process reaches it. Versions are dated by the services' clock."""

    inner: MemoryStore
    process: Process
    clock: Clock
    times: dict[str, float]
    url: str = field(init=False)
    keeps_metadata: bool = field(init=False)

    def __post_init__(self) -> None:
        self.url, self.keeps_metadata = self.inner.url, self.inner.keeps_metadata

    def stat(self, key: str) -> ObjectInfo:
        return replace(self.inner.stat(key), modified=datetime.fromtimestamp(self.times[key], UTC))

    def read(self, key: str) -> tuple[bytes, str]:
        return self.inner.read(key)

    def stream(self, key: str, etag: str, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        return self.inner.stream(key, etag, start, stop)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        return (replace(self.stat(info.key), metadata={}) for info in self.inner.list(prefix))

    def list_near(self, prefixes: Sequence[str]) -> Sequence[Sequence[ObjectInfo] | None]:
        return [[*self.list(prefix)] for prefix in prefixes]

    def versions(self, prefix: str) -> Iterator[tuple[str, str]]:
        return self.inner.versions(prefix)

    def put(self, key: str, body: bytes, metadata: Mapping[str, str] | None = None) -> str:
        with self.process.writing("put", key, body):
            self.times[key] = self.clock()
            return self.inner.put(key, body, metadata if self.keeps_metadata else None)

    def put_if_absent(self, key: str, body: bytes) -> str:
        with self.process.writing("put_if_absent", key, body):
            etag = self.inner.put_if_absent(key, body)
            self.times[key] = self.clock()
            return etag

    def put_if_match(self, key: str, body: bytes, etag: str) -> str:
        with self.process.writing("put_if_match", key, body):
            new = self.inner.put_if_match(key, body, etag)
            self.times[key] = self.clock()
            return new

    def delete(self, key: str) -> None:
        with self.process.writing("delete", key):
            self.inner.delete(key)

    def delete_many(self, keys: Sequence[str]) -> None:
        for key in keys:  # a process may die when R2 has removed some of them
            self.delete(key)


class RecordedQueues(httpx.BaseTransport):
    """The stand-in for Queues' API as one process reaches it, without a network."""

    def __init__(self, api: QueuesApi, process: Process, announced: dict[str, str]) -> None:
        self._api = api
        self._process = process
        self._announced = announced  # by lease

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path
        call = HttpCall(request.method, path, request.url.query.decode(), request.headers, request.read())
        rest = [part for part in path.partition("/queues")[2].split("/") if part]
        with self._process.lock:
            operation = "push" if path.endswith("/messages/batch") else rest[-1] if rest else ""
            if request.method != "GET":
                self._process.begin(operation)
            try:
                reply = self._api.answer(call, rest)
            except Refused as refused:
                reply = failure(refused.status, refused.code, refused.message)
            if operation == "push":
                told = [message["body"]["file"] for message in from_json(call.body)["messages"]]
                self._process.done(operation, *(file.removeprefix("r2://llmdo/") for file in told))
            leases = self._leases(path, call.body, reply.body)
            if leases:
                self._process.done(operation, *(self._announced[lease] for lease in leases))
        return httpx.Response(reply.status, content=reply.body, headers=reply.headers)

    def _leases(self, path: str, asked: bytes, answered: bytes) -> list[str]:
        if path.endswith("/ack"):
            return [ack["lease_id"] for ack in from_json(asked)["acks"]]
        if not path.endswith("/pull"):
            return []
        messages = from_json(answered)["result"]["messages"]
        for message in messages:
            event = from_json(base64.b64decode(message["body"]))
            self._announced[message["lease_id"]] = event["object"]["key"]
        return [message["lease_id"] for message in messages]


class InstantModel:
    """Stands for Workers AI as one process reaches it: answers at once, and counts the calls for each prompt."""

    name = "workers-ai"

    def __init__(self, calls: Counter[str], process: Process) -> None:
        self._calls = calls
        self._process = process

    async def execute(self, request: ChatRequest) -> ChatResponse:
        prompt = str(request.messages[-1].content)
        with self._process.lock:
            self._process.check_alive()
            self._calls[prompt] += 1
        await asyncio.sleep(0)
        return ChatResponse(f"re: {prompt}", "stop", Usage(3, 2), request.model)

    def max_texts(self, model: str) -> int:
        return 1

    async def aclose(self) -> None:
        pass


class World:
    """What outlives a process, and the history of all writes.

    Attributes:
        history: what was written, by whichever process.
        calls: how often each prompt was paid.
        process: the one that runs now.
        kind_of: what a write is to the design.
    """

    kind_of = staticmethod(kind_of)

    def __init__(self, folder: Path, *, keeps_metadata: bool = True) -> None:
        self.clock = Clock()
        self.history: list[Write] = []
        self.calls: Counter[str] = Counter()
        self.process = Process(self.history)
        self.bucket = MemoryStore("r2://llmdo", keeps_metadata=keeps_metadata)
        self._times: dict[str, float] = {}
        self._ledger = f"sqlite:///{folder}/ledger.sqlite"
        self._queues = Queues(folder / "queues.sqlite", self.clock)
        self._queue = self._queues.create("llmdo-input")
        self._queues.set_consumer(self._queue, "llmdo-dead", {"max_retries": 10})
        self._queues.create("llmdo-settled")
        self._announced: dict[str, str] = {}

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Puts this world where the steps find R2, Queues, Workers AI and the ledger."""
        for name in ("CLOUDFLARE_API_TOKEN", "R2_ACCESS_KEY_ID", "R2_SECRET_ACCESS_KEY"):
            patch.setenv(name, "unused")
        patch.setenv("CLOUDFLARE_ACCOUNT_ID", ACCOUNT)
        patch.setattr(R2Store, "open", lambda bucket: self.store)
        patch.setattr(workers_ai, "open_backend", lambda: InstantModel(self.calls, self.process))
        patch.setattr(Pacer, "wait", lambda *_: 0.0)  # this queue is never slow to show a message
        open_api, keep = QueueApi.__init__, SqliteLedger.put
        api = QueuesApi(self._queues)

        def opened(queue_api: QueueApi, account: Any, _: Any, sleep: Any) -> None:
            open_api(queue_api, account, RecordedQueues(api, self.process, self._announced), sleep)

        async def kept(ledger: SqliteLedger, key: str, value: bytes, patience_s: float = 0.0) -> None:
            process = self.process
            process.begin("keep", key)
            await keep(ledger, key, value, patience_s)
            process.done("keep", key)

        patch.setattr(QueueApi, "__init__", opened)
        patch.setattr(SqliteLedger, "put", kept)

    @property
    def store(self) -> RecordedStore:
        """The bucket, as the process that runs now reaches it."""
        return RecordedStore(self.bucket, self.process, self.clock, self._times)

    def put(self, key: str, body: bytes) -> str:
        """Puts an object that is in no history; returns its etag."""
        self._times[key] = self.clock()
        return self.bucket.put(key, body)

    def upload(self, name: str, body: bytes, messages: int = 1) -> str:
        """Puts input/NAME, and announces it by ``messages`` messages; returns its etag."""
        key = f"input/{name}"
        etag = self.put(key, body)
        event = ObjectEvent("PutObject", "llmdo", key, len(body), etag)
        message = NewMessage(to_json(event.message(ACCOUNT, self.clock())))
        self._queues.push(self._queue, [message] * messages)
        return etag

    def backlog(self) -> int:
        """Messages that are not acked."""
        return self._queues.backlog(self._queue)["backlog_count"]

    def kept(self) -> int:
        """Answers in the ledger. A process that dies may keep one without knowing it."""
        with closing(sqlite3.connect(self._ledger.removeprefix("sqlite:///"))) as db:
            there = db.execute("SELECT count(*) FROM sqlite_master WHERE name = 'answers'").fetchone()[0]
            return db.execute("SELECT count(*) FROM answers").fetchone()[0] if there else 0

    def run(self, dies: Death | None = None, **options: Any) -> Summary | None:
        """One process from its begin to its end; None where it died. Afterwards an hour goes by.

        In that hour a dead process's heartbeat grows old, and the messages that it had pulled show again.
        """
        process = self.process = Process(self.history, dies, self.kind_of)
        summary = None
        given = {"queue": "llmdo-input", "output": OUTPUT, "model": "@cf/test/model", "ledger": self._ledger}
        with suppress(Died):
            summary = run(check_options(**given | options), lambda _: nullcontext())
        self.clock.now += HOUR
        self.process = Process(self.history)  # whoever looks at the world now
        return None if process.dead else summary
