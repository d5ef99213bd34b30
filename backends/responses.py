"""Answers in one form for all providers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from llmdo.backends.errors import ModelError
from llmdo.backends.usage import Usage

# OpenAI's: stop, length, tool_calls, content_filter; another one is as the provider wrote it.
FinishReason = str
# How vectors are written: as numbers, or as 32-bit floats in base64; OpenAI's words.
VectorFormat = Literal["float", "base64"]


@dataclass(slots=True)
class ChatResponse:
    """An answer.

    Attributes:
        text: what the model said; None when it only called tools, or spent all its tokens on reasoning.
        tool_calls: in OpenAI's shape, arguments as JSON text; custom ones as they came.
        finish_reason: "stop", "length", "tool_calls", "content_filter" or the provider's own; None if it sends none.
        usage: the tokens of the call, and of its tries before.
        request_id: the provider's id of the call, or None.
        reasoning: what the model thought, where the provider sends that.
        model: the name that the provider says answered, which need not be the one asked for.
        warnings: sentences about what is not as asked: a parameter dropped or clamped, another model, cut by length,
            a model that will be switched off.
        details: what else the provider reports, to be kept: ``{"cache_status": …, "log_id": …}`` of a gateway.
        shared: another line's call brought the answer, and its usage counts there.
        body: the provider's chat.completion as it came, but for what the other fields hold: text, reasoning, tool calls
            and finish reason of its first choice.
        lane: what it was billed as, where that was not the list price: "batch", "flex", "priority", "2h", "8h".
        rescued: it was called since its batch would have come too late.
    """

    text: str | None
    finish_reason: FinishReason | None
    usage: Usage
    model: str
    request_id: str | None = None
    reasoning: str | None = None
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    warnings: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    shared: bool = False
    body: Mapping[str, Any] = field(default_factory=dict)
    lane: str = ""
    rescued: bool = False

    @property
    def refused(self) -> bool:
        """Whether the text is what the model said in ``refusal``, and there is no other."""
        choices = self.body.get("choices") or [{}]
        message: Mapping[str, Any] = choices[0].get("message") or {}
        return bool(message.get("refusal")) and "content" in message


@dataclass(slots=True)
class EmbedResponse:
    """One vector a text, in the order of the texts; () where the provider's cannot be used.

    Attributes:
        vectors: floats, as many as the model has dimensions.
        usage: the tokens of the call, and of its tries before.
        model: the name that the provider says answered.
        request_id: the provider's id of the call, or None.
        warnings, details, lane, rescued: see ChatResponse.
        shared: another line's call, or another text of this array, brought all vectors: see ChatResponse.
        parts: one response for each text where they do not come from one call; ``usage`` is that of those not shared.
    """

    vectors: tuple[Sequence[float], ...]
    usage: Usage
    model: str
    request_id: str | None = None
    warnings: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    shared: bool = False
    parts: tuple[EmbedResponse, ...] = ()
    lane: str = ""
    rescued: bool = False


@dataclass(slots=True)
class RawResponse:
    """A model's own result.

    Attributes:
        result: as the provider sent it: JSON, text, or ``{"content_type": …, "base64": …}`` for bytes.
        usage: the tokens of the call, and of its tries before.
        model: the name that the provider says answered.
        request_id: the provider's id of the call, or None.
        warnings, details, shared, lane, rescued: see ChatResponse.
    """

    result: Any
    usage: Usage
    model: str
    request_id: str | None = None
    warnings: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    shared: bool = False
    lane: str = ""
    rescued: bool = False


Response = ChatResponse | EmbedResponse | RawResponse


@dataclass(frozen=True, slots=True)
class StreamChunk:
    """One piece of a streamed answer: start; content, tool_use, metadata; done.

    A stream that fails, or ends without its end mark, yields an ``error`` chunk and then raises that error: it
    never passes for a short answer.

    Attributes:
        kind: which of these it is.
        text: of content: what was added; reasoning is metadata.
        tool_call: of tool_use: one whole call in OpenAI's shape, arguments as JSON text.
        finish_reason, usage: of done.
        details: of metadata: what else the provider reports, ``{"reasoning": …}``, ``{"model": …}`` …
        error: of error: the sentence.
    """

    kind: Literal["start", "content", "tool_use", "metadata", "done", "error"]
    text: str = ""
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    tool_call: Mapping[str, Any] | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""


@dataclass(frozen=True, slots=True)
class Price:
    """What a model costs, in US dollars: for a million tokens, or for ``unit`` where it is not paid by the token.

    Attributes:
        cached_input, cache_write, input_audio: for tokens of the input that were read from the provider's cache, were
            written to it, or are sound; where None, as ``input``.
        cache_write_1h: for what is written to a cache that keeps it for an hour; where None, as ``cache_write``.
        reasoning, output_audio: for such tokens of the output; where None, as ``output``.
        request: for each call besides.
        above: (tokens, price) in rising order: the price of all tokens of a call whose input has more than these.
        lanes: (lane, price): the price of a call that was billed as this lane; see ChatResponse.
        source, date: who says so, and as of when, in ISO 8601; "" where that is not known.
    """

    input: float | None = None
    output: float | None = None
    cached_input: float | None = None
    unit: str = "M tokens"
    cache_write: float | None = None
    input_audio: float | None = None
    reasoning: float | None = None
    output_audio: float | None = None
    request: float | None = None
    above: tuple[tuple[int, Price], ...] = ()
    source: str = ""
    date: str = ""
    cache_write_1h: float | None = None
    lanes: tuple[tuple[str, Price], ...] = ()


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """One entry of a provider's list.

    Attributes:
        name: with the provider's prefix; it can be given to ``--model``.
        task: as the provider calls it: "Text Generation", "Text Embeddings" …
        price: None if unknown.
        capabilities: of "tools", "vision", "reasoning", "json", "batch", "paid plan only", "beta".
        deprecated: the date in ISO 8601 on which it is switched off, or was; "" where none is known.
        properties: what else the provider reports, as it is.
    """

    name: str
    task: str = ""
    description: str = ""
    context_tokens: int | None = None
    properties: Mapping[str, Any] = field(default_factory=dict)
    price: Price | None = None
    capabilities: frozenset[str] = frozenset()
    deprecated: str = ""


@dataclass(frozen=True, slots=True)
class Models:
    """A provider's list; ``age_s`` seconds old when it is from the cache, and then ``problem`` says why, or is ""."""

    models: tuple[ModelInfo, ...]
    age_s: float = 0.0
    problem: str = ""


@dataclass(frozen=True, slots=True)
class BatchState:
    """An asynchronous batch: None while the provider works on it; else its results, streamed.

    A result goes with the position of its request among those that were asked for, each at most once, in any order.
    A request without one was neither answered nor billed: its batch expired, was cancelled or failed, or lost it.

    ``answered``: how many of all its requests have answers, as far as the provider says that while it works on them.
    """

    results: AsyncIterator[tuple[int, Response | ModelError]] | None
    answered: int = 0
