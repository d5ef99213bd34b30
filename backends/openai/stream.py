"""Streams of chat answers, as our chunks: OpenAI's, which many services speak, and Workers AI's native ones.

``data: {"choices": [{"delta": {…}, "finish_reason": …}], "usage": …}`` events, or ``{"response": "…"}`` natively; then
``data: [DONE]``. Usage comes with the last event or after it. An error can come as an event, also as the first one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from llmdo.backends.errors import BadReply, ModelError, StreamError, call_known
from llmdo.backends.finish_reasons import finish_of, finish_warning
from llmdo.backends.http.reply_json import mapping, read_json
from llmdo.backends.openai.messages import as_text, read_content, tool_calls
from llmdo.backends.openai.shapes import (
    answer_warnings,
    answering_model,
    choice_error,
    failed_choice,
    first_choice,
    read_usage,
)
from llmdo.backends.responses import FinishReason, StreamChunk
from llmdo.backends.streams import ToolCalls
from llmdo.backends.usage import Usage

END = "[DONE]"
SEVERAL = "the stream held several answers: all but the first were left out"
# What is read, or says nothing, of an event and of a delta; what else they hold is kept.
_EVENT = frozenset({"choices", "created", "error", "id", "model", "obfuscation", "object", "usage"})
_DELTA = frozenset({"content", "function_call", "reasoning", "reasoning_content", "refusal", "role", "tool_calls"})


@dataclass(frozen=True, slots=True)
class StreamHead:
    """What is known of a stream before its first event.

    Attributes:
        model: the model that was asked for.
        request_id: the provider's id of the call.
        details: what else the reply's headers say, for the answer's details.
        warnings: what was changed in the request.
        native: events may have Workers AI's own shape, in which fields that are not read mean nothing.
        neurons: by the headers, where the events have none.
        max_tokens: the limit that was sent; native events have no finish reason that shows that it was reached.
    """

    model: str
    request_id: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    native: bool = False
    neurons: float | None = None
    max_tokens: int | None = None

    def broken(self, what: str) -> StreamError:
        """The error of a stream that ended before its answer did."""
        return StreamError(f"{self.model}: the stream {what}", request_id=self.request_id)


async def read_stream(
    events: AsyncIterator[str], head: StreamHead, refused: Callable[[Any], ModelError | None]
) -> AsyncIterator[StreamChunk]:
    """Yields start, content and metadata, tool_use for each whole call, metadata, done.

    ``refused`` makes the error of an event that is one. Raises StreamError when the events end without a finish reason
    and without ``[DONE]`` after an answer.
    """
    yield StreamChunk("start")
    said = _Said(head)
    async for data in events:
        if data == END:
            said.ended = True
            break
        event = _event(data, head, said.warnings.append)
        error = refused(event)
        if error is not None:
            raise _broken(error, head, said)
        for chunk in said.take(event):
            yield chunk
    failed = choice_error(said.ending, refused) or failed_choice(said.ending, head.model)
    if failed is not None:
        with call_known(request_id=head.request_id, usage=lambda: said.usage if said.reported else None):
            raise failed
    if not said.is_whole:
        raise head.broken("ended before its end mark: ask again")
    for chunk in said.rest():
        yield chunk


class _Said:
    """What a stream has brought so far."""

    def __init__(self, head: StreamHead) -> None:
        self.finish: FinishReason | None = None
        self.ending: dict[str, Any] = {}  # what the choice says of its end
        self.usage = Usage(neurons=head.neurons)
        self.reported = False
        self.warnings: list[str] = []
        self.answered = False
        self.ended = False
        self._head = head
        self._deltas = ToolCalls()
        self._calls: list[Mapping[str, Any]] = []  # native ones come whole
        self._more: dict[str, Any] = {}
        self._named = self._thought = False
        self._index: Any = None  # of the choice that is read

    @property
    def calls(self) -> list[Mapping[str, Any]]:
        """The tool calls."""
        return [*self._deltas.whole(), *self._calls]

    @property
    def is_whole(self) -> bool:
        """Whether the stream has come to its end: an end mark alone is an answer of native models only."""
        return self.finish is not None or (self.ended and bool(self._head.native or self.answered or self.calls))

    def take(self, event: Mapping[str, Any]) -> Iterator[StreamChunk]:
        """Takes one event in, and yields its chunks."""
        if event.get("usage"):
            self.usage, self.reported = read_usage(event, self._head.neurons), True
        yield from self._names(event)
        self._keep(event, _EVENT)
        choice = first_choice(event) or (_native_choice(event) if self._head.native else None)
        if choice is None:
            return
        index = choice.get("index")
        self._index = index if self._index is None else self._index
        if index not in (None, self._index):  # of several that were asked for, in a stream that was not
            self.warnings.append(SEVERAL)
            return
        self.ending |= {name: choice[name] for name in ("finish_reason", "error") if choice.get(name)}
        reason = choice.get("finish_reason")
        self.finish = finish_of(reason) or self.finish
        if odd := finish_warning(reason):
            self.warnings.append(odd)
        delta = mapping(choice.get("delta"))
        self._keep(delta, _DELTA)
        self._deltas.add(delta.get("tool_calls"))
        self._calls += tool_calls(event.get("tool_calls")) if self._head.native else ()
        content = read_content(delta.get("content"))
        reasoning = as_text(delta.get("reasoning_content")) or as_text(delta.get("reasoning")) or content.reasoning
        if reasoning:
            self._thought = True
            yield StreamChunk("metadata", details={"reasoning": reasoning})
        text = content.text or as_text(delta.get("refusal")) or as_text(choice.get("text"))
        if text:
            self.answered = True
            yield StreamChunk("content", text)

    def rest(self) -> Iterator[StreamChunk]:
        """The chunks after the end mark."""
        calls, finish, limit = self.calls, self.finish, self._head.max_tokens
        for call in calls:
            yield StreamChunk("tool_use", tool_call=call)
        if finish is None and self._head.native and calls:
            finish = "tool_calls"
        elif finish is None and limit is not None and self.usage.output_tokens >= limit:
            finish = "length"
        tokens = limit or self.usage.output_tokens
        odd = answer_warnings(finish, tokens, self.answered or bool(calls), thought=self._thought)
        warnings = dict.fromkeys((*self._head.warnings, *self.warnings, *odd))
        details = {**self._head.details, **self._more}
        details |= {"warnings": tuple(warnings)} if warnings else {}
        details |= {"request_id": self._head.request_id} if self._head.request_id else {}
        if details:
            yield StreamChunk("metadata", details=details)
        yield StreamChunk("done", finish_reason=finish, usage=self.usage)

    def _names(self, event: Mapping[str, Any]) -> Iterator[StreamChunk]:
        """The model that answers, once."""
        model, warnings = answering_model(event, self._head.model, native=self._head.native)
        if self._named or not event.get("model") or (self._head.native and not warnings):
            return
        self._named = True
        yield StreamChunk("metadata", details={"model": model, **({"warnings": warnings} if warnings else {})})

    def _keep(self, fields: Mapping[str, Any], but: frozenset[str]) -> None:
        """Annotations, citations, images, a fingerprint …: lists come in pieces, other values again and again."""
        for name in () if self._head.native else fields.keys() - but:
            value, before = fields[name], self._more.get(name)
            if isinstance(value, list) and isinstance(before, list) and value != before:
                before.extend(value)
            elif value:
                self._more[name] = list(value) if isinstance(value, list) else value


def _native_choice(event: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"delta": {"content": event.get("response")}, "finish_reason": event.get("finish_reason")}


def _event(data: str, head: StreamHead, warn: Callable[[str], None]) -> Mapping[str, Any]:
    try:
        event = read_json(data.encode("utf-8", "surrogateescape"), warn)
    except ValueError as error:
        raise head.broken("broke off inside an event: ask again") from error
    if head.native and not isinstance(event, dict):
        return {"response": event}
    return mapping(event[0] if isinstance(event, list) and event else event)  # Gemini's errors come in a list


def _broken(error: ModelError, head: StreamHead, said: _Said) -> ModelError:
    """An error event that no table knows is a broken stream, not a broken line; what was said before it is billed."""
    if isinstance(error, BadReply):
        return head.broken(f"broke off ({error.message})")
    error.lost = True if said.answered else error.lost
    return error
