"""What all streams of chunks have in common: an honest end, and tool calls that come in pieces."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from pydantic_core import to_json

from llmdo.backends.errors import BadReply, ModelError
from llmdo.backends.http.reply_json import mapping
from llmdo.backends.requests import ChatRequest
from llmdo.backends.responses import ChatResponse, StreamChunk
from llmdo.backends.usage import Usage

if TYPE_CHECKING:
    from llmdo.backends.backend import Backend


async def with_errors(chunks: AsyncGenerator[StreamChunk, None], provider: str) -> AsyncGenerator[StreamChunk, None]:
    """The chunks. A ModelError, which names the provider, comes as an ``error`` chunk first, and is then raised.

    A listener that stops early closes it, and ``chunks`` with it.
    """
    async with aclosing(chunks):
        try:
            async for chunk in chunks:
                yield chunk
        except ModelError as error:
            error.provider = error.provider or provider
            yield StreamChunk("error", error=error.message)
            raise


def whole_answer(response: ChatResponse) -> Iterator[StreamChunk]:
    """The chunks of an answer that came in one piece."""
    yield StreamChunk("start")
    if response.warnings:
        yield StreamChunk("metadata", details={"warnings": response.warnings})
    if response.reasoning:
        yield StreamChunk("metadata", details={"reasoning": response.reasoning})
    if response.text:
        yield StreamChunk("content", response.text)
    for call in response.tool_calls:
        yield StreamChunk("tool_use", tool_call=call)
    if response.details:
        yield StreamChunk("metadata", details=response.details)
    yield StreamChunk("done", finish_reason=response.finish_reason, usage=response.usage)


async def heard(backend: Backend, request: ChatRequest) -> ChatResponse:
    """The whole answer of a stream; ``request.listen`` gets each chunk as it comes. Raises what the stream does."""
    return await collected(backend.execute_stream(request), request.model, request.listen)


async def collected(
    stream: AsyncIterator[StreamChunk], model: str, listen: Callable[[StreamChunk], None] | None = None
) -> ChatResponse:
    """The whole answer of a stream of chunks, which is closed then; see ``heard``."""
    texts: list[str] = []
    reasoning: list[str] = []
    calls: list[Mapping[str, Any]] = []
    warnings: list[str] = []
    details: dict[str, Any] = {}
    last = StreamChunk("done", usage=Usage())
    async with aclosing(cast(AsyncGenerator[StreamChunk, None], stream)) as chunks:
        async for chunk in chunks:
            if listen is not None:
                listen(chunk)
            if chunk.kind == "content":
                texts.append(chunk.text)
            elif chunk.kind == "tool_use" and chunk.tool_call is not None:
                calls.append(chunk.tool_call)
            elif chunk.kind == "metadata":
                fields = dict(chunk.details)
                reasoning.append(fields.pop("reasoning", ""))
                warnings += fields.pop("warnings", ())
                details |= fields
            elif chunk.kind == "done":
                last = chunk
    return ChatResponse(
        text="".join(texts) or None,
        finish_reason=last.finish_reason,
        usage=last.usage or Usage(),
        model=str(details.pop("model", model)),
        request_id=details.pop("request_id", None),
        reasoning="".join(reasoning) or None,
        tool_calls=tuple(calls),
        warnings=tuple(warnings),
        details=details,
    )


_OF_CALL = frozenset({"custom", "function", "id", "index", "type"})


@dataclass(slots=True)
class _Call:
    id: str = ""
    name: str = ""
    arguments: list[str] = field(default_factory=list)
    custom: bool = False  # its input is any text
    more: dict[str, Any] = field(default_factory=dict)

    def whole(self, number: int) -> Mapping[str, Any]:
        text = "".join(self.arguments)
        head = {**self.more, "id": self.id or f"call_{number}"}
        if self.custom:
            return {**head, "type": "custom", "custom": {"name": self.name, "input": text}}
        return {**head, "type": "function", "function": {"name": self.name, "arguments": text or "{}"}}


class ToolCalls:
    """Joins the deltas of OpenAI's tool calls to whole calls.

    A call is known by its ``index``; servers that leave it out, or send 0 for each, are distinguished by their ``id``.
    """

    def __init__(self) -> None:
        self._calls: list[_Call] = []
        self._by_index: dict[str, _Call] = {}

    def add(self, deltas: Any) -> None:
        """Takes what stands in a delta's ``tool_calls``."""
        for delta in deltas if isinstance(deltas, list) else []:
            if isinstance(delta, dict):
                self._add(delta)

    def whole(self) -> list[Mapping[str, Any]]:
        """All calls, in the order in which they began, arguments as JSON text."""
        return [call.whole(number) for number, call in enumerate(self._calls)]

    def _add(self, delta: Mapping[str, Any]) -> None:
        index, identity = repr(delta.get("index")), str(delta.get("id") or "")
        call = self._by_index.get(index)
        if call is None or (identity and call.id and identity != call.id):
            if len(self._calls) >= MOST_CALLS:
                raise too_many_calls(len(self._calls) + 1)
            call = _Call()
            self._calls.append(call)
            self._by_index[index] = call
        custom = mapping(delta.get("custom"))
        call.custom = call.custom or bool(custom)
        named = custom or mapping(delta.get("function"))
        call.id = call.id or identity
        call.name = call.name or str(named.get("name") or "")
        call.arguments.append(_json_text(named.get("input") if custom else named.get("arguments")))
        call.more |= {name: value for name, value in delta.items() if name not in _OF_CALL}


def _json_text(arguments: Any) -> str:
    if isinstance(arguments, str) or arguments is None:
        return arguments or ""
    return to_json(arguments).decode()


MOST_CALLS = 1000  # tool calls of an answer: a thousand times what is usual


def too_many_calls(count: int) -> BadReply:
    """The error of an answer with more than MOST_CALLS."""
    return BadReply(f"the answer has {count:,} tool calls, and at most {MOST_CALLS:,} are read: offer fewer tools")
