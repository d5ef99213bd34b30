"""Requests and answers in one form for all providers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal["system", "user", "assistant", "tool"]
FinishReason = Literal["stop", "length", "tool_calls", "content_filter", "error"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. ``content`` is text, or parts as OpenAI writes them: ``{"type": "text", "text": …}``,
    ``{"type": "image_url", "image_url": {"url": …}}``. ``extra``: name, tool_calls, tool_call_id …
    """

    role: Role
    content: str | tuple[Mapping[str, Any], ...] | None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A conversation to go on with.

    Attributes:
        model: the provider's own name, without the ``provider/`` prefix.
        parameters: by OpenAI's names (temperature, max_tokens, top_p, stop, seed, tools, response_format …); a provider
            translates what it knows and passes on the rest.
        request_id: the same over all tries of one request.
    """

    model: str
    messages: tuple[Message, ...]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class EmbedRequest:
    """Texts to embed with one call; at most ``Backend.max_texts(model)`` of them."""

    model: str
    texts: tuple[str, ...]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    request_id: str = ""
    line_ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RawRequest:
    """A model's own input, passed on as it is, for tasks that have no common form (translation, reranking …)."""

    model: str
    input: Mapping[str, Any]
    request_id: str = ""


Request = ChatRequest | EmbedRequest | RawRequest


@dataclass(frozen=True, slots=True)
class Usage:
    """What a call used, in tokens; ``neurons`` where Workers AI tells."""

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    neurons: float | None = None


@dataclass(frozen=True, slots=True)
class ChatResponse:
    """An answer.

    Attributes:
        text: what the model said; None when it only called tools, or spent all its tokens on reasoning.
        tool_calls: in OpenAI's shape, arguments as JSON text.
        finish_reason: None where the provider does not tell.
        model: the name that the provider says answered, which need not be the one asked for.
        warnings: sentences about what is not as asked (dropped parameter, other model, cut by length).
    """

    text: str | None
    finish_reason: FinishReason | None
    usage: Usage
    model: str
    request_id: str | None = None
    reasoning: str | None = None
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class EmbedResponse:
    """One vector a text, in the order of the texts."""

    vectors: tuple[tuple[float, ...], ...]
    usage: Usage
    model: str
    request_id: str | None = None


@dataclass(frozen=True, slots=True)
class RawResponse:
    """A model's own result, as the provider sent it: JSON, text, or ``{"content_type": …, "base64": …}`` for bytes."""

    result: Any
    usage: Usage
    model: str
    request_id: str | None = None


Response = ChatResponse | EmbedResponse | RawResponse


@dataclass(frozen=True, slots=True)
class StreamChunk:
    """One piece of a streamed answer, numbered from 0: start, content …, done; without a done comes StreamError."""

    sequence: int
    kind: Literal["start", "content", "done"]
    text: str = ""
    finish_reason: FinishReason | None = None
    usage: Usage | None = None


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """One entry of a provider's list. ``name`` has the provider's prefix and can be given to ``--model``."""

    name: str
    task: str = ""
    description: str = ""
    context_tokens: int | None = None
    properties: Mapping[str, Any] = field(default_factory=dict)
