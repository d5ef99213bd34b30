"""Requests and answers in one form for all providers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from llmdo.backends.errors import ModelError


class LineId(str):
    """A request id that knows its line.

    Attributes:
        place: the file's full place, whatever its version.
        version: the file's etag.
        start: the line's offset in bytes.
        resumed: an earlier run worked on the file, perhaps one that kept answers by the id alone.
    """

    __slots__ = ("place", "resumed", "start", "version")
    place: str
    version: str
    start: int
    resumed: bool

    @classmethod
    def of(cls, text: str, place: str, version: str, start: int, *, resumed: bool = False) -> LineId:
        """An id with its line."""
        line = cls(text)
        line.place, line.version, line.start, line.resumed = place, version, start, resumed
        return line


Role = Literal["system", "developer", "user", "assistant", "tool", "function"]
# Roles by the names of all services; some know no others.
COMMON_ROLES: Mapping[Role, Role] = {"developer": "system", "function": "tool"}
# OpenAI's: stop, length, tool_calls, content_filter; another one is as the provider wrote it.
FinishReason = str


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
        listen: gets each chunk of the answer while it is generated, on the thread of the call; it must not block. Each
            try begins with a ``start``. An answer that was kept comes without chunks.
    """

    model: str
    messages: tuple[Message, ...]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    request_id: str = ""
    listen: Callable[[StreamChunk], None] | None = field(default=None, compare=False, repr=False)


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
    """A model's own input, passed on as it is, for tasks that have no common form (translation, reranking …).

    Attributes:
        path: of an API with OpenAI's routes, below its base URL: "embeddings", "completions" or "responses", whose body
            ``input`` is, without the model; "" is Workers AI's own way.
    """

    model: str
    input: Mapping[str, Any]
    request_id: str = ""
    path: str = ""


Request = ChatRequest | EmbedRequest | RawRequest


@dataclass(frozen=True, slots=True)
class Usage:
    """What a request used, in tokens, over all its tries that the provider told of; ``neurons`` where Workers AI tells.

    ``cached_tokens`` are part of the input, ``reasoning_tokens`` of the output.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    neurons: float | None = None


def added(one: Usage, other: Usage) -> Usage:
    """The usage of both."""
    neurons = [part.neurons for part in (one, other) if part.neurons is not None]
    return Usage(
        one.input_tokens + other.input_tokens,
        one.output_tokens + other.output_tokens,
        one.cached_tokens + other.cached_tokens,
        one.reasoning_tokens + other.reasoning_tokens,
        sum(neurons) if neurons else None,
    )


@dataclass(frozen=True, slots=True)
class ChatResponse:
    """An answer.

    Attributes:
        text: what the model said; None when it only called tools, or spent all its tokens on reasoning.
        tool_calls: in OpenAI's shape, arguments as JSON text; custom ones as they came.
        finish_reason: None where the provider does not tell.
        model: the name that the provider says answered, which need not be the one asked for.
        warnings: sentences about what is not as asked: a parameter dropped or clamped, another model, cut by length,
            a model that will be switched off.
        details: what the provider tells besides, to be kept: ``{"cache_status": …, "log_id": …}`` of a gateway.
        shared: another line's call brought the answer, and its usage counts there.
        body: the provider's chat.completion as it came, but for what the other fields hold: text, reasoning, tool calls
            and finish reason of its first choice.
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

    @property
    def refused(self) -> bool:
        """Whether the text is what the model said in ``refusal``, and there is no other."""
        choices = self.body.get("choices") or [{}]
        message: Mapping[str, Any] = choices[0].get("message") or {}
        return bool(message.get("refusal")) and "content" in message


@dataclass(frozen=True, slots=True)
class EmbedResponse:
    """One vector a text, in the order of the texts; () where the provider's cannot be used.

    Attributes:
        shared: another line's call, or another text of this array, brought all vectors: see ChatResponse.
        parts: one response for each text where they do not come from one call; ``usage`` is that of those not shared.
    """

    vectors: tuple[tuple[float, ...], ...]
    usage: Usage
    model: str
    request_id: str | None = None
    warnings: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    shared: bool = False
    parts: tuple[EmbedResponse, ...] = ()


@dataclass(frozen=True, slots=True)
class RawResponse:
    """A model's own result, as the provider sent it: JSON, text, or ``{"content_type": …, "base64": …}`` for bytes."""

    result: Any
    usage: Usage
    model: str
    request_id: str | None = None
    warnings: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    shared: bool = False


Response = ChatResponse | EmbedResponse | RawResponse


@dataclass(frozen=True, slots=True)
class StreamChunk:
    """One piece of a streamed answer, numbered from 0: start; content, tool_use, metadata; done.

    A stream that fails, or ends without its end mark, gives an ``error`` chunk and then raises that error: it never
    passes for a short answer.

    Attributes:
        text: of content: what was added; reasoning is metadata.
        tool_call: of tool_use: one whole call in OpenAI's shape, arguments as JSON text.
        finish_reason, usage: of done.
        details: of metadata: what the provider tells besides, ``{"reasoning": …}``, ``{"model": …}`` …
        error: of error: the sentence.
    """

    sequence: int
    kind: Literal["start", "content", "tool_use", "metadata", "done", "error"]
    text: str = ""
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    tool_call: Mapping[str, Any] | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""


@dataclass(frozen=True, slots=True)
class Price:
    """What a model costs, in US dollars: for a million tokens, or for ``unit`` where it is not paid by the token."""

    input: float | None = None
    output: float | None = None
    cached_input: float | None = None
    unit: str = "M tokens"


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """One entry of a provider's list.

    Attributes:
        name: with the provider's prefix; it can be given to ``--model``.
        task: as the provider calls it: "Text Generation", "Text Embeddings" …
        price: None where nobody tells.
        capabilities: of "tools", "vision", "reasoning", "json", "batch", "paid plan only", "beta".
        deprecated: the date in ISO 8601 on which it is switched off, or was; "" where none is known.
        properties: what else the provider tells, as it is.
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
class BatchPlace:
    """Where a request stands in a batch: ``number`` from 0, of ``count``; ``reference`` names it there."""

    number: int
    reference: str
    count: int


def batch_places(requests: Sequence[Request]) -> tuple[BatchPlace, ...]:
    """The places of all requests of a batch. Their ids are the references where these tell them apart."""
    count = len(requests)
    ids = [request.request_id for request in requests]
    references = ids if all(ids) and len(set(ids)) == count else map(str, range(count))
    return tuple(BatchPlace(number, reference, count) for number, reference in enumerate(references))


@dataclass(frozen=True, slots=True)
class BatchState:
    """An asynchronous batch: None while the provider works on it, else one result or error for each request, in the
    order of the requests. An item that the provider has lost is a Retryable error.
    """

    results: tuple[Response | ModelError, ...] | None
