"""Who answers which message, as a store's event log says. No Beam.

Before an instance calls the model it pushes ``v1.LLMResponseStarted``: the first in the log has the message. A push is
compared with the log's head, so there is one first, and everybody sees the same. Who has it repeats the event once a
minute; if it does not, another takes the message over, and says from whom (``takesOver``).
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from llmdo.storage.chat.records import RESPONSE, ChatMessage
from llmdo.storage.livestore.frames import StoredEvent
from llmdo.transforms.chat.events import MESSAGE_SENT, RESPONSE_STARTED, BadEvent, ResponseEvent, read_event

# An instance repeats its claim after this long, and loses it after so long without; as with a run's heartbeat. Seconds.
RENEW_S, CLAIM_S = 60.0, 180.0
TAKES_OVER = "takesOver"
# How many claims of messages without an answer are known, and of how many conversations the last message. Entries.
_REMEMBERED = 20_000

V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class MessageClaim:
    """Who answers a message: the ``client`` of its event, which the backend stored last at ``at`` (Unix time, s)."""

    client: str
    at: float


class Claims:
    """Of one store; changed on the thread of its connection, and asked on any.

    ``clock``: seconds. Not the time of day, which may be corrected: a living instance would seem to be silent.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._behind: float | None = None  # how far the backend's clock is behind this one, at least
        # Of the whole log: a response that is pushed twice stops clients for good. Some 100 bytes each.
        self._answered: set[bytes] = set()
        self._responses: set[bytes] = set()
        self._claims: _Newest[MessageClaim] = _Newest()
        self._last_asked: _Newest[str] = _Newest()  # a conversation's last message of its user

    def hear(self, event: StoredEvent) -> StoredEvent:
        """Takes note of an event of the store, and returns it; a response that names no message gets its name.

        In the first version of its schema a response does not say what it answers: it is the last message of the user
        before it, in the log's order.
        """
        behind = self._clock() - event.stored
        self._behind = behind if self._behind is None else min(self._behind, behind)
        if event.name == RESPONSE_STARTED:
            self._claimed(event)
            return event
        if event.name not in (MESSAGE_SENT, RESPONSE):
            return event
        identity = event.args.get("id")
        repeated = isinstance(identity, str) and self.has_response(identity)
        if event.name == RESPONSE and isinstance(identity, str):
            self._responses.add(_digest(identity))
        try:
            found = read_event(event.envelope, event.stored)
        except BadEvent:
            return event
        if isinstance(found, ChatMessage) and found.role == "user":
            self._last_asked[found.conversation] = found.id
        if not isinstance(found, ResponseEvent) or found.answer is None:
            return event
        conversation, answered = found.answer.conversation, found.answer.message_id
        if not answered and not repeated:
            answered = self._last_asked.get(conversation, "")
            if answered and not self.answered(conversation, answered):
                event = replace(event, args={**event.args, "responseToMessageId": answered})
        if answered:
            self._answered.add(_digest(conversation, answered))
            self._claims.pop(answered, None)
        return event

    def forget(self) -> None:
        """The store's log is another one."""
        for known in (self._answered, self._responses, self._claims, self._last_asked):
            known.clear()

    def answered(self, conversation: str, message_id: str) -> bool:
        """Whether the log has an answer, whoever's."""
        return _digest(conversation, message_id) in self._answered

    def has_response(self, response_id: str) -> bool:
        """Whether the log has a response of this id."""
        return _digest(response_id) in self._responses

    def holder(self, message_id: str) -> MessageClaim | None:
        """Who has claimed a message without an answer, no matter how long ago."""
        return self._claims.get(message_id)

    def age(self, stored: float) -> float:
        """How long ago something was stored at a time of the backend's clock, in seconds, at least."""
        return max(0.0, self._clock() - (self._behind or 0.0) - stored)

    def _claimed(self, event: StoredEvent) -> None:
        message_id = event.args.get("userMessageId")
        if not isinstance(message_id, str) or self.answered(str(event.args.get("conversationId")), message_id):
            return
        before = self._claims.get(message_id)
        if before is None or event.client == before.client or event.args.get(TAKES_OVER) == before.client:
            self._claims[message_id] = MessageClaim(event.client, event.stored)


class _Newest(OrderedDict[str, V], Generic[V]):
    """The entries that were set last, _REMEMBERED of them."""

    def __setitem__(self, key: str, value: V) -> None:
        super().__setitem__(key, value)
        self.move_to_end(key)
        if len(self) > _REMEMBERED:
            self.popitem(last=False)


def _digest(*names: str) -> bytes:
    text = "\n".join((str(len(names[0])), *names))
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest()
