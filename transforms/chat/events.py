"""The events of a chat: parses those that come in, and builds those that go out.

Source of the schemas: github.com/sociotechnica-org/lifebuild, packages/shared/src/livestore/events.ts (dates are ISO
8601 there), and that file's first version in work-squared at 9f7fe613, which named fewer fields.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, Field, ValidationError
from pydantic_core import to_json

from llmdo.backends.errors import ModelError
from llmdo.backends.responses import ChatResponse
from llmdo.storage.chat.records import RESPONSE, ChatMessage, ChatRole, LoggedAnswer, cleaned
from llmdo.storage.field_problems import first_problem
from llmdo.transforms.chat.failures import Reason
from llmdo.transforms.prompts.line_json import BadLine, json_object

MESSAGE_SENT, CONVERSATION_CREATED = "v1.ChatMessageSent", "v1.ConversationCreated"
RESPONSE_STARTED, RESPONSE_COMPLETED = "v1.LLMResponseStarted", "v1.LLMResponseCompleted"
RESPONSE_DELTA = "v1.LLMResponseDelta"
ERROR_MODEL = "error"  # the modelId of a response that reports a failure

# Response ids are UUIDv5 in this namespace, so that answering a message again writes the same row.
RESPONSE_IDS = uuid.UUID("5b0f7c8e-3c1d-5d5e-9a35-0c6a1f0f7a11")

A = TypeVar("A", bound=BaseModel)


class BadEvent(Exception):
    """Not an event, or one of a known name with wrong arguments; the text says what is wrong."""


@dataclass(frozen=True, slots=True)
class ResponseEvent:
    """A response event that came in: our own coming back, or another service's.

    Attributes:
        answer: what it says; its ``message_id`` is "" if the event does not name the message. None for an event that
            carries no text.
        created: when the answer was made; Unix time in seconds.
    """

    answer: LoggedAnswer | None = None
    created: float = 0.0


@dataclass(frozen=True, slots=True)
class OtherEvent:
    """An event that is neither a message nor a response."""

    event: Mapping[str, Any]


ChatEvent = ChatMessage | ResponseEvent | OtherEvent


_LAST_MS = 253_402_300_799_999  # the end of the year 9999


def seconds(value: object) -> float:
    """Unix time in seconds, from ISO 8601 (UTC if it has no zone) or from milliseconds since 1970."""
    if isinstance(value, str):
        try:
            at = datetime.fromisoformat(value)
        except ValueError:
            raise ValueError("must be a date in ISO 8601, such as 2025-06-11T09:30:00Z") from None
        return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= _LAST_MS:
        return value / 1000
    raise ValueError("must be a date in ISO 8601, or milliseconds since 1970")


_Id = Annotated[str, Field(min_length=1)]
_Time = Annotated[float, BeforeValidator(seconds)]


class _Envelope(BaseModel):
    name: _Id
    args: dict[str, Any]


class _Created(BaseModel):
    id: _Id
    title: str
    created: _Time = Field(alias="createdAt")


class _Sent(BaseModel):
    id: _Id
    conversation: _Id = Field(alias="conversationId")
    message: str
    role: ChatRole
    created: _Time = Field(alias="createdAt")
    context: str | dict[str, Any] | None = Field(None, alias="navigationContext")


class _Received(BaseModel):
    id: _Id
    conversation: _Id = Field(alias="conversationId")
    message: str
    model: str = Field(alias="modelId")
    answers: str | None = Field(None, alias="responseToMessageId")
    created: _Time = Field(alias="createdAt")


def read_event(raw: bytes | str | Mapping[str, Any], arrived: float) -> ChatEvent:
    """Parses one event, in LiveStore's envelope or as ``{name, args}`` alone; ``arrived`` is Unix time in seconds.

    Raises BadEvent, and nothing else, with a sentence that says what is wrong.
    """
    event = _object(raw)
    envelope = _valid(_Envelope, event, "an event")
    match envelope.name:
        case name if name == MESSAGE_SENT:
            return _message(event, _valid(_Sent, envelope.args, name), arrived)
        case name if name == RESPONSE:
            return _response(event, _valid(_Received, envelope.args, name))
        case name if name.startswith("v1.LLMResponse"):
            return ResponseEvent()
        case name:
            if name == CONVERSATION_CREATED:
                _valid(_Created, envelope.args, name)
            return OtherEvent(event)


def response_id(message_id: str) -> str:
    """The id of the response to a message, the same whoever answers it."""
    return str(uuid.uuid5(RESPONSE_IDS, message_id))


def started(message: ChatMessage, now: float) -> dict[str, Any]:
    """The event that announces an answer; all times are Unix times in seconds."""
    args = {"conversationId": message.conversation, "userMessageId": message.id, "createdAt": _iso(now)}
    return {"name": RESPONSE_STARTED, "args": args}


def delta(message: ChatMessage, number: int, text: str, attempt: int = 1) -> dict[str, Any]:
    """A piece of the answer's text as it is generated, numbered from 0 in each attempt; each restarts the text."""
    args = {
        "id": response_id(message.id),
        "conversationId": message.conversation,
        "responseToMessageId": message.id,
        "attempt": attempt,
        "number": number,
        "text": cleaned(text),
    }
    return {"name": RESPONSE_DELTA, "args": args}


def received(message: ChatMessage, text: str, model: str, now: float, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The event that carries the answer; ``metadata`` appears under the names of both versions of the schema."""
    args = {
        "id": response_id(message.id),
        "conversationId": message.conversation,
        "message": cleaned(text),
        "role": "assistant",
        "modelId": model,
        "responseToMessageId": message.id,
        "createdAt": _iso(now),
        "llmMetadata": dict(metadata),
        "metadata": dict(metadata),
    }
    return {"name": RESPONSE, "args": args}


def failed(
    message: ChatMessage, reason: Reason, now: float, error: Exception | None = None, attempts: int = 0
) -> dict[str, Any]:
    """The event that reports a failure: what the user reads, and the class of the error, but not its own words."""
    metadata: dict[str, Any] = {"source": reason.word, "attempts": attempts}
    if error is not None:
        metadata["error"] = {"class": type(error).__name__}
        if isinstance(error, ModelError):
            metadata["error"] |= {"status": error.status, "code": error.code}
    return received(message, reason.sentence, ERROR_MODEL, now, metadata)


def completed(message: ChatMessage, now: float, iterations: int, success: bool) -> dict[str, Any]:
    """The event that ends a response; ``iterations`` is how often the model was called."""
    args = {
        "conversationId": message.conversation,
        "userMessageId": message.id,
        "createdAt": _iso(now),
        "iterations": iterations,
        "success": success,
    }
    return {"name": RESPONSE_COMPLETED, "args": args}


def metadata(
    source: str,
    response: ChatResponse,
    attempts: int,
    latency_s: float,
    warnings: Sequence[str] = (),
    cost_usd: float | None = None,
) -> dict[str, Any]:
    """What an answer's event holds besides the text. ``source`` is the provider; ``warnings`` precede its own."""
    used = response.usage
    usage: dict[str, Any] = {
        "inputTokens": used.input_tokens,
        "outputTokens": used.output_tokens,
        "cachedTokens": used.cached_tokens,
        "reasoningTokens": used.reasoning_tokens,
    }
    if used.neurons is not None:
        usage["neurons"] = used.neurons
    cost = {} if cost_usd is None else {"costUsd": cost_usd}
    return {
        "source": source,
        "usage": usage,
        **cost,
        "finishReason": response.finish_reason,
        "attempts": attempts,
        "latencyMs": round(latency_s * 1000),
        "requestId": response.request_id,
        "warnings": [*warnings, *response.warnings],
    }


def _object(raw: bytes | str | Mapping[str, Any]) -> dict[str, Any]:
    """The event with JSON's types only."""
    if isinstance(raw, bytes):
        data = raw.removeprefix(b"\xef\xbb\xbf")
    else:
        try:
            data = raw.encode() if isinstance(raw, str) else to_json(raw)
        except (ValueError, RecursionError) as error:
            raise BadEvent(f"the event cannot be written as JSON: {error}") from None
    try:
        return json_object(data)
    except BadLine as error:
        raise BadEvent(f"no event: {error.message}") from None


def _valid(kind: type[A], fields: Mapping[str, Any], what: str) -> A:
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise BadEvent(f"{what}: {first_problem(error)}") from None


def _message(event: dict[str, Any], sent: _Sent, arrived: float) -> ChatMessage:
    context = sent.context or ""
    return ChatMessage(
        event=event,
        id=sent.id,
        conversation=sent.conversation,
        text=sent.message,
        role=sent.role,
        created=sent.created,
        arrived=arrived,
        context=context if isinstance(context, str) else to_json(context).decode(),
    )


def _response(event: dict[str, Any], args: _Received) -> ResponseEvent:
    answer = LoggedAnswer(
        conversation=args.conversation,
        message_id=args.answers or "",
        events=(event,),
        trace={"answered": args.created},
        failed=args.model == ERROR_MODEL,
    )
    return ResponseEvent(answer, args.created)


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
