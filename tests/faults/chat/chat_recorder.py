"""Chats in a world that keeps the order of every write, and processes that die at any one of them (see ``recorder``).

A call to the model is one of the writes here: it is paid. So are an ack and a push.
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
import uuid
from collections import Counter
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic_core import from_json, to_json

from llmdo.backends.engine.registry import close_engines
from llmdo.backends.engine.settings import SAME_MESSAGE, CallSettings
from llmdo.backends.requests import ChatRequest
from llmdo.backends.responses import ChatResponse
from llmdo.backends.usage import Usage
from llmdo.backends.workers_ai import backend as workers_ai
from llmdo.local.queues.api import QueuesApi
from llmdo.local.queues.queues import NewMessage
from llmdo.local.wire import HttpCall, Refused, failure
from llmdo.pipelines.chat_options import check_chat_options
from llmdo.runners.running.chat import ChatSummary, chat
from llmdo.storage.chat import log as chat_log
from llmdo.storage.chat.log import ChatLog
from llmdo.storage.objects.store import Location
from llmdo.storage.queues.api import QueueApi
from llmdo.storage.runs.histories import is_history
from llmdo.transforms.acks import close_acks
from llmdo.transforms.answers.ledger_settings import LedgerSettings
from llmdo.transforms.chat import converse
from llmdo.transforms.chat import read_events as chat_source
from llmdo.transforms.chat.conversations import Conversations, close_conversations
from llmdo.transforms.chat.converse import Converse, conversations_of, queue_replies
from llmdo.transforms.chat.elements import ChatDefaults, ConversationSettings
from llmdo.transforms.chat.replies import Replies
from llmdo.transforms.run import Run
from tests.faults.recorder import HOUR, Death, Died, Process, World, Write
from tests.states import forget_runs

MODEL = "@cf/test/model"
PREFIX = "chat/"
RECEIVED = "v1.LLMResponseReceived"
_SOON_S = 60.0

Event = Mapping[str, Any]


class RecordedQueues(httpx.BaseTransport):
    """The stand-in for Queues' API as one process reaches it. What is written is named conversation/message."""

    def __init__(self, api: QueuesApi, process: Process, leased: dict[str, str]) -> None:
        self._api = api
        self._process = process
        self._leased = leased

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path
        call = HttpCall(request.method, path, request.url.query.decode(), request.headers, request.read())
        rest = [part for part in path.partition("/queues")[2].split("/") if part]
        with self._process.lock:
            if request.method == "GET":
                return self._asked(call, rest)
            operation, names = self._outgoing(rest[-1], call.body)
            self._process.begin(operation, *names)
            reply = self._asked(call, rest)
            if operation == "pull":
                names = self._pulled(reply.content)
            if names or operation == "tell":
                self._process.done(operation, *names)
        return reply

    def _asked(self, call: HttpCall, rest: list[str]) -> httpx.Response:
        try:
            reply = self._api.answer(call, rest)
        except Refused as refused:
            reply = failure(refused.status, refused.code, refused.message)
        return httpx.Response(reply.status, content=reply.body, headers=reply.headers)

    def _pulled(self, answered: bytes) -> list[str]:
        messages = from_json(answered)["result"]["messages"]
        for message in messages:
            args = from_json(base64.b64decode(message["body"]))["args"]
            self._leased[message["lease_id"]] = f"{args['conversationId']}/{args['id']}"
        return [self._leased[message["lease_id"]] for message in messages]

    def _outgoing(self, what: str, asked: bytes) -> tuple[str, list[str]]:
        if what == "ack":
            return "ack", [self._leased[ack["lease_id"]] for ack in from_json(asked)["acks"]]
        if what == "pull":
            return "pull", []
        bodies = [message["body"] for message in from_json(asked)["messages"]]
        args = [body["args"] for body in bodies if body["name"] == RECEIVED]
        return "push" if args else "tell", [f"{one['conversationId']}/{one['responseToMessageId']}" for one in args]


class InstantModel:
    """Stands for Workers AI as one process reaches it: answers at once, and counts the calls for each message."""

    name = "workers-ai"

    def __init__(self, calls: Counter[str], process: Process) -> None:
        self._calls = calls
        self._process = process

    async def execute(self, request: ChatRequest) -> ChatResponse:
        with self._process.lock:
            self._process.begin("call", request.request_id)
            self._calls[request.request_id] += 1
            self._process.done("call", request.request_id)
        await asyncio.sleep(0)
        return ChatResponse(f"re: {request.messages[-1].content}", "stop", Usage(3, 2), request.model)

    def max_texts(self, model: str) -> int:
        return 1

    async def aclose(self) -> None:
        pass


def kind_of(write: Write) -> str:
    """What a write is to the design."""
    if not write.keys or not write.keys[0].startswith(PREFIX):
        return write.operation
    folders, name = write.key.removeprefix(PREFIX).split("/")[:-1], write.key.rpartition("/")[2]
    kinds = {"_open": "mark", "_traces": "trace", "_runs": "heartbeat", "messages": "message", "answers": "answer"}
    kind = next((kinds[folder] for folder in folders if folder in kinds), name.removesuffix(".json"))
    if is_history(name):
        kind = "history"
    return f"{kind} removed" if write.operation == "delete" else kind


class ChatWorld(World):
    """What outlives a process, and the history of all writes; ``calls``: how often each message was paid."""

    kind_of = staticmethod(kind_of)

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._folder = folder
        self._out = self._queues.create("chat-out")
        self._events: list[dict[str, Any]] = []

    def install(self, patch: pytest.MonkeyPatch) -> None:
        open_api, api = QueueApi.__init__, QueuesApi(self._queues)
        super().install(patch)

        def opened(queue_api: QueueApi, account: Any, _: Any, sleep: Any) -> None:
            open_api(queue_api, account, RecordedQueues(api, self.process, self._announced), sleep)

        patch.setattr(QueueApi, "__init__", opened)
        patch.setattr(workers_ai, "open_backend", lambda: InstantModel(self.calls, self.process))
        patch.setattr(converse, "ConversationSettings", partial(ConversationSettings, linger_s=0.01, look_again_s=0.01))
        patch.setattr(converse, "Replies", partial(Replies, every_s=0.0))
        patch.delenv("STORE_ID", raising=False)

    def send(self, events: list[Event]) -> None:
        """By the queue, and as a file."""
        self._queues.push(self._queue, [NewMessage(to_json(event)) for event in events])
        (self._folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))

    @property
    def log(self) -> ChatLog:
        """The log, as one sees it from outside."""
        return ChatLog(self.bucket, PREFIX)

    def pushed(self) -> dict[str, list[dict[str, Any]]]:
        """The responses in the reply queue, by conversation/message."""
        found: dict[str, list[dict[str, Any]]] = {}
        self._events += [from_json(message.body) for message in self._queues.pull(self._out, 100, 10**8)]
        for event in self._events:
            if event["name"] == RECEIVED:
                name = f"{event['args']['conversationId']}/{event['args']['responseToMessageId']}"
                found.setdefault(name, []).append(event)
        return found

    def answer_files(self, dies: Death | None = None) -> ChatSummary | None:
        """``llmdo chat --events``, the whole of it; None where the process died. Afterwards an hour goes by."""
        process = self._new_process(dies)
        options = {"events": (str(self._folder / "events.jsonl"),), "output": f"r2://llmdo/{PREFIX}", "model": MODEL}
        summary = None
        with suppress(Died):
            given = {"ledger": self._ledger, "context_tokens": 10**6, "concurrency": "fixed:2"}
            summary = chat(check_chat_options(**options, **given), lambda _: nullcontext())
        forget_runs()
        return self._after(process, summary)

    def answer_queue(self, dies: Death | None = None) -> bool:
        """The steps of ``llmdo chat --queue``, by hand, until nothing is left to do; whether the process lived."""
        process = self._new_process(dies)
        where = Location("r2://llmdo", PREFIX)
        run = Run(f"run-{uuid.uuid4().hex}", where)
        calls = CallSettings(2, fixed=True, kept=LedgerSettings(self._ledger, SAME_MESSAGE))
        with suppress(Died):
            source = chat_source._QueuedEvents(self._queue.queue_id, run, None, 0.25)
            step = Converse(ChatDefaults(MODEL), calls, run, partial(queue_replies, self._out.queue_id))
            conversations = run.state.shared(Conversations, lambda: conversations_of(step))
            try:
                self._look_again_and_again(source, conversations)
            finally:
                close_conversations(run.state)
                close_engines()
                source.close()
                close_acks(run.state)
        return self._after(process, True) or False

    def _new_process(self, dies: Death | None) -> Process:
        chat_log._logs.clear()  # it knows nothing of what the last one wrote
        self.process = Process(self.history, dies, self.kind_of)
        return self.process

    def _look_again_and_again(self, source: chat_source._QueuedEvents, conversations: Conversations) -> None:
        end, left = time.monotonic() + _SOON_S, 0

        def done(_: object) -> None:
            nonlocal left
            left -= 1

        while True:
            found, _ = source.look()
            left += len(found)
            for incoming in found:
                conversations.submit(incoming, done)
            self.process.check_alive()
            if not left and not self.backlog():
                return
            assert time.monotonic() < end, "it did not come to an end"
            time.sleep(0.002)

    def _after(self, process: Process, result: Any) -> Any:
        self.clock.now += HOUR
        self.process = Process(self.history)
        return None if process.dead else result


def name_of(write: Write) -> str:
    """conversation/message of what is written about a message in the log; the conversation where it is its owner."""
    folders = [part for part in write.key.removeprefix(PREFIX).split("/")[:-1] if part not in _FOLDERS]
    name = write.key.rpartition("/")[2].removesuffix(".json")
    return folders[0] if name == "_owner" else f"{folders[0]}/{name}"


_FOLDERS = {"_open", "_traces", "messages", "answers"}
