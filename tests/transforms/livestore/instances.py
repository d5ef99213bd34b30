"""Instances that answer a store's messages, with claims, connections and replies as a run has them."""

from __future__ import annotations

import asyncio
import itertools
import time
from contextlib import suppress
from types import SimpleNamespace

from llmdo.storage.chat.records import ChatMessage
from llmdo.storage.livestore.places import StorePlace
from llmdo.storage.livestore.stores import LiveStores
from llmdo.transforms.chat.events import completed, received
from llmdo.transforms.chat.replies import AnsweredElsewhere
from llmdo.transforms.livestore.claims import CLAIM_S, Claims
from llmdo.transforms.livestore.connections import client_name
from llmdo.transforms.livestore.store_replies import StoreReplies

SENT, STARTED = "v1.ChatMessageSent", "v1.LLMResponseStarted"
RECEIVED, COMPLETED = "v1.LLMResponseReceived", "v1.LLMResponseCompleted"
CREATED = "2026-01-01T00:00:00.000Z"


def message(name, conversation="c"):
    return ChatMessage(
        event={}, id=name, conversation=conversation, text="?", role="user", created=1.0, arrived=time.time()
    )


def say(backend, name, conversation="c"):
    args = {"id": name, "conversationId": conversation, "message": "?", "role": "user", "createdAt": CREATED}
    backend.write("s", SENT, args)


def claim(backend, name, client, **more):
    args = {"conversationId": "c", "userMessageId": name, "createdAt": CREATED, **more}
    backend.write("s", STARTED, args, client)


def respond(backend, name, response="r", client="app", **more):
    args = {"id": response, "conversationId": "c", "message": "!", "role": "assistant", "modelId": "m"}
    named = {"responseToMessageId": name} if name else {}
    backend.write("s", RECEIVED, {**args, **named, "createdAt": CREATED, **more}, client)


def answer_to(one, text="an answer"):
    """The events of an answer."""
    return (received(one, text, "m", time.time(), {"source": "x"}), completed(one, time.time(), 1, True))


def of(backend, name):
    return [event for event in backend.logs["s"] if event["name"] == name]


def answers(backend):
    """Which messages have a response, in order, with repeats."""
    return [event["args"].get("responseToMessageId") for event in of(backend, RECEIVED)]


def contiguous_behind_ours(backend):
    """Whether each event that an instance pushed follows the one before it."""
    log = backend.logs["s"]
    return all(
        (event["parentSeqNum"], event["seqNum"]) == (before["seqNum"], before["seqNum"] + 1)
        for before, event in itertools.pairwise(log)
        if event["clientId"].startswith("llmdo-")
    )


class Instance:
    """Used on one event loop, within which it may be killed."""

    def __init__(self, backend, run="run-1", log="log", alive=None, paid=None, *, announced=True):
        self.alive = {run} if alive is None else alive
        self.alive.add(run)
        self.run, self.calls = run, []
        self.paid = {} if paid is None else paid  # what the log of chats has
        self.claims = Claims(lambda: time.monotonic() + backend.ahead)
        self.client = client_name(log, run)
        stores = LiveStores(
            [StorePlace(backend.url, "s")], {"s": self.client}, {}, self._hear, lambda _: self.claims.forget()
        )
        links = SimpleNamespace(
            stores=stores, claims={"s": self.claims}, clients={"s": self.client}, log_ids={"s": log}
        )
        self.stores = stores
        self.replies = StoreReplies(links, "s", self.alive.__contains__, announced=announced)
        self.tasks = set()

    def _hear(self, _, event):
        return self.claims.hear(event)

    def begin(self, one, takes_s=0.02, gate=None):
        """Answers a message, as a conversation does; the call does not end before the gate is open."""
        task = asyncio.get_running_loop().create_task(self.answer(one, takes_s, gate))
        self.tasks.add(task)
        return task

    async def answer(self, one, takes_s=0.02, gate=None):
        while one.id not in self.paid:
            try:
                async with self.replies.answering(one):
                    self.calls.append(one.id)
                    await (asyncio.sleep(takes_s) if gate is None else gate.wait())
                self.paid[one.id] = answer_to(one, f"by {self.run}")
            except AnsweredElsewhere:
                if self.claims.answered(one.conversation, one.id):
                    return
                await asyncio.sleep(0.01)
        while not await self.replies.push(self.paid[one.id]):  # noqa: ASYNC110  as the sweep of the log does
            await asyncio.sleep(0.01)

    async def kill(self):
        """Leaves everything as it is."""
        self.alive.discard(self.run)
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await asyncio.to_thread(self.stores.close)

    async def end(self):
        with suppress(asyncio.CancelledError):
            await self.kill()


async def let_expire(backend, *instances, messages=("m1",)):
    """Moves all clocks until a claim is over that is not repeated then; before, all must know of it."""
    await until(lambda: all(one.claims.holder(name) is not None for one in instances for name in messages))
    backend.ahead += CLAIM_S + 1.0


async def until(condition, seconds=55):
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110  other threads and tasks make it true
            await asyncio.sleep(0.01)
