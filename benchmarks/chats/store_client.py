"""A client of LiveStore's stores that sends messages and notes when their answers come; the protocol is llmdo's own.

What LiveStore's own client takes to put a row on the page is not in its times.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from benchmarks import continuous
from benchmarks.read_lines import PROMPT
from benchmarks.servers.sync_backend import SyncBackend
from llmdo.storage.chat.records import RESPONSE
from llmdo.storage.livestore.frames import NewEvent, StoredEvent
from llmdo.storage.livestore.stores import LiveStores
from llmdo.transforms.chat.events import ERROR_MODEL, MESSAGE_SENT

Asked = tuple[str, str]  # a store and a message's id


class StoreClient:
    """Connected to some stores until it is closed. ``answered``: the Unix time at which each answer came."""

    def __init__(self, backend: SyncBackend, stores: Sequence[str]) -> None:
        self.answered: dict[Asked, float] = {}
        self._known: set[Asked] = set()
        self._errors: list[str] = []
        places = [backend.place(store) for store in stores]
        self._stores = LiveStores(places, dict.fromkeys(stores, "page"), {}, self._hear, self._reset)

    def say(self, store: str, *messages: tuple[str, str]) -> None:
        """Pushes messages, given by id and conversation, at most 100."""
        events = [NewEvent(MESSAGE_SENT, sent_now(*message)) for message in messages]
        first = store, messages[0][0]
        self._stores.push(store, lambda: () if first in self._known else events)

    def wait_for(self, done: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
        """Reads until ``done``; an error instead of an answer ends the benchmark."""
        begin = time.monotonic()
        while not done():
            continuous.check(process, begin)
            self._stores.take(1_000, 0.1)
            if self._errors:
                raise SystemExit(f"a message got no answer: {self._errors[0]}")

    def close(self) -> None:
        """Ends the connections."""
        self._stores.close()

    def _hear(self, store: str, event: StoredEvent) -> None:
        if event.name == MESSAGE_SENT:
            self._known.add((store, event.args["id"]))
        elif event.name == RESPONSE:
            self.answered.setdefault((store, event.args["responseToMessageId"]), time.time())
            if event.args["modelId"] == ERROR_MODEL:
                self._errors.append(event.args["message"])

    def _reset(self, store: str) -> None:
        self._errors.append(f"the log of {store} was replaced")


def sent_now(identity: str, conversation: str) -> dict[str, str]:
    """The arguments of a user's message, as a page writes them."""
    at = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return {"id": identity, "conversationId": conversation, "message": PROMPT, "role": "user", "createdAt": at}
