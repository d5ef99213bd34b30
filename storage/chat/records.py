"""What the log of chats holds: messages, their answers, what happened to them later, and whole conversations."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict

from llmdo.storage.errors import StorageError

RESPONSE = "v1.LLMResponseReceived"  # the event that carries an answer's text
ChatRole = Literal["user", "assistant", "system"]

# Names that begin with "_" are the log's own folders.
_SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


class DamagedLog(StorageError):
    """A record of the log that this version cannot read."""


def safe(identity: str) -> str:
    """A conversation's or message's id as a part of a key: the id itself if it is plain, else a hash of it."""
    if _SAFE.fullmatch(identity):
        return identity
    return "~" + hashlib.sha256(identity.encode("utf-8", "surrogatepass")).hexdigest()[:40]


def cleaned(text: str) -> str:
    """A text that can be written as UTF-8: surrogates, which models do send, are joined or replaced."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


class ChatMessage(BaseModel):
    """One message of a conversation, as ``v1.ChatMessageSent`` describes it.

    Attributes:
        event: the whole envelope as it came.
        id: the message's, from its sender; unique in its store.
        created: Unix time in seconds, by the sender's clock.
        arrived: Unix time in seconds, by the clock of the process that logs it; rises with the lines of a file.
        context: what the sender's page shows, as JSON text; "" if it does not say.
    """

    model_config = ConfigDict(frozen=True)

    version: Literal[1] = 1
    event: dict[str, Any]
    id: str
    conversation: str
    text: str
    role: ChatRole
    created: float
    arrived: float
    context: str = ""

    @property
    def order(self) -> tuple[float, float, str]:
        """Sorts the messages of a conversation."""
        return self.created, self.arrived, self.id


class LoggedAnswer(BaseModel):
    """The one answer of a message, whoever made it.

    Attributes:
        message_id: of the message that is answered.
        events: the response events exactly as they are pushed, one of them a ``v1.LLMResponseReceived``.
        history: ids of the earlier messages in the call, in order.
        trace: stage → Unix time in seconds, up to the answer.
        failed: no model answered; the events apologise to the user.
        error: why, for whoever runs the service.
        usage: tokens and the like, as in the event's metadata.
    """

    model_config = ConfigDict(frozen=True)

    version: Literal[1] = 1
    conversation: str
    message_id: str
    events: tuple[dict[str, Any], ...]
    history: tuple[str, ...] = ()
    trace: dict[str, float] = {}
    failed: bool = False
    error: Annotated[str, BeforeValidator(cleaned)] = ""
    usage: dict[str, Any] | None = None
    attempts: int = 0

    @property
    def response(self) -> Mapping[str, Any]:
        """The arguments of the event that carries the text; empty if there is none."""
        found: Mapping[str, Any]
        for event in self.events:
            if event.get("name") == RESPONSE:
                found = event["args"]
                return found
        return {}

    @property
    def response_id(self) -> str:
        """The id of the response's row; "" if there is none."""
        return str(self.response.get("id", ""))

    @property
    def text(self) -> str | None:
        """The model's text; None if it failed or answered nothing."""
        return None if self.failed else self.response.get("message") or None


class Trace(BaseModel):
    """What else happened to a message after it was logged: (stage, Unix time in seconds), in order."""

    model_config = ConfigDict(frozen=True)

    version: Literal[1] = 1
    stages: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Conversation:
    """All messages of a conversation in their order, and their answers by message id."""

    messages: tuple[ChatMessage, ...]
    answers: Mapping[str, LoggedAnswer]

    def before(self, message: ChatMessage) -> tuple[tuple[ChatMessage, str | None], ...]:
        """The messages before this one, each with its answer's text; None if it has no answer, or a failed one."""
        return tuple((one, self._text(one)) for one in self.messages if one.order < message.order)

    @property
    def unanswered(self) -> tuple[ChatMessage, ...]:
        """The user's messages without an answer, in order."""
        return tuple(one for one in self.messages if one.role == "user" and one.id not in self.answers)

    def _text(self, message: ChatMessage) -> str | None:
        answer = self.answers.get(message.id)
        return None if answer is None else answer.text


@dataclass(frozen=True, slots=True)
class Found:
    """Everything that the log knows about a message. ``open``: it has no answer yet, or one that is not pushed."""

    message: ChatMessage
    answer: LoggedAnswer | None
    open: bool
    trace: Trace
