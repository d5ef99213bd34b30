"""What the log of chats holds: messages, their answers, what happened to them later; and a conversation as a whole."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict

from llmdo.storage.errors import StorageError

RESPONSE = "v1.LLMResponseReceived"  # the event that carries an answer's text
Role = Literal["user", "assistant", "system"]

# Names that begin with "_" are the log's own folders.
_SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


class DamagedLog(StorageError):
    """A record of the log that this version cannot read."""


def safe(identity: str) -> str:
    """A conversation's or message's id as a part of a key: itself where it is plain, else a hash of it."""
    if _SAFE.fullmatch(identity):
        return identity
    return "~" + hashlib.sha256(identity.encode("utf-8", "surrogatepass")).hexdigest()[:40]


def cleaned(text: str) -> str:
    """A text that can be written as UTF-8: halves of surrogate pairs, which models do send, joined or replaced."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


class ChatMessage(BaseModel):
    """One message of a conversation, as ``v1.ChatMessageSent`` describes it.

    Attributes:
        event: the whole envelope as it came.
        id: of the message; unique in its store, as its sender made it.
        created: Unix time in seconds, by the sender's clock.
        arrived: Unix time in seconds, by the clock of who logs it; lines of a file have rising ones.
        context: what the sender's page shows, as JSON text; "" where it does not say.
    """

    model_config = ConfigDict(frozen=True)

    version: Literal[1] = 1
    event: dict[str, Any]
    id: str
    conversation: str
    text: str
    role: Role
    created: float
    arrived: float
    context: str = ""

    @property
    def order(self) -> tuple[float, float, str]:
        """Messages of a conversation follow each other by this."""
        return self.created, self.arrived, self.id


class LoggedAnswer(BaseModel):
    """What a message got for an answer; there is one only, whoever made it.

    Attributes:
        message_id: of the message that is answered.
        events: the response events exactly as they are pushed, one of them a ``v1.LLMResponseReceived``.
        history: ids of the messages that stood before it in the call, in order.
        trace: stage → Unix time in seconds, up to the answer.
        failed: the answer says that there is none.
        error: why, for who runs the service; the events say it for the user.
        usage: tokens and the like, as the event's metadata has them.
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
        """The arguments of the event that carries the text; empty where there is none."""
        found: Mapping[str, Any]
        for event in self.events:
            if event.get("name") == RESPONSE:
                found = event["args"]
                return found
        return {}

    @property
    def response_id(self) -> str:
        """The id of the response's row; "" where there is none."""
        return str(self.response.get("id", ""))

    @property
    def text(self) -> str | None:
        """What the model said; None where it failed, or said nothing."""
        return None if self.failed else self.response.get("message") or None


class Trace(BaseModel):
    """What happened to a message after it was logged, beside its answer: (stage, Unix time in seconds), in order."""

    model_config = ConfigDict(frozen=True)

    version: Literal[1] = 1
    stages: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Conversation:
    """All messages of one conversation in their order, and the answers by the ids of their messages."""

    messages: tuple[ChatMessage, ...]
    answers: Mapping[str, LoggedAnswer]

    def before(self, message: ChatMessage) -> tuple[tuple[ChatMessage, str | None], ...]:
        """The messages before this one, each with its answer's text; None where it has none, or a failed one."""
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
    """All that the log knows of one message. ``open``: it is not yet answered, or its answer not yet pushed."""

    message: ChatMessage
    answer: LoggedAnswer | None
    open: bool
    trace: Trace
