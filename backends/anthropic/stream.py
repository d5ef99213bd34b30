"""Streams of Anthropic's messages as our chunks: message_start, blocks with their deltas, message_delta, message_stop.

Source: platform.claude.com/docs/en/build-with-claude/streaming. An error can come as an event, also as the first one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any

from pydantic_core import from_json

from llmdo.backends.anthropic.replies import read_message, read_message_usage
from llmdo.backends.errors import BadReply, ModelError, call_known
from llmdo.backends.http.reply_json import mapping, read_json
from llmdo.backends.openai.stream import StreamHead
from llmdo.backends.responses import StreamChunk
from llmdo.backends.streams import MOST_CALLS, too_many_calls

# What a delta adds to its block: the delta's field, and the block's.
_DELTAS = {"text_delta": "text", "thinking_delta": "thinking", "signature_delta": "signature"}


async def read_message_stream(
    events: AsyncIterator[str], head: StreamHead, refused: Callable[[Any], ModelError | None]
) -> AsyncIterator[StreamChunk]:
    """Yields start, content and metadata, tool_use for each whole call, metadata, done.

    ``refused`` makes the error of an event that is one. Raises StreamError when the events end without a stop reason.
    """
    yield StreamChunk("start")
    message = _Message(head)
    async for data in events:
        event = _event(data, head, message.warnings.append)
        if (error := refused(event)) is not None:
            raise _broken(error, head, message)
        for chunk in message.take(event):
            yield chunk
        if event.get("type") == "message_stop":
            break
    if not message.fields.get("stop_reason"):
        raise head.broken("ended before its end mark: ask again")
    for chunk in message.rest():
        yield chunk


class _Message:
    """What a stream has brought so far: a message in the making."""

    def __init__(self, head: StreamHead) -> None:
        self.fields: dict[str, Any] = {}
        self.warnings: list[str] = []
        self.answered = False
        self._head = head
        self._blocks: dict[Any, dict[str, Any]] = {}
        self._pieces: dict[Any, dict[str, list[str]]] = {}  # of a block's texts: joined once, however many they are

    def take(self, event: Mapping[str, Any]) -> Iterator[StreamChunk]:
        """Takes one event in, and yields its chunks."""
        match event.get("type"):
            case "message_start":
                self.fields |= mapping(event.get("message"))
                if self.fields.get("model"):
                    yield StreamChunk("metadata", details={"model": self.fields["model"]})
            case "content_block_start":
                if len(self._blocks) > MOST_CALLS:
                    raise too_many_calls(len(self._blocks))
                index, block = event.get("index"), dict(mapping(event.get("content_block")))
                self._blocks[index], self._pieces[index] = block, {}
                yield from self._says(block.get("type"), block.get("text") or block.get("thinking"))
            case "content_block_delta":
                yield from self._delta(event.get("index"), mapping(event.get("delta")))
            case "message_delta":
                usage = {name: value for name, value in mapping(event.get("usage")).items() if value is not None}
                self.fields |= mapping(event.get("delta"))
                self.fields["usage"] = {**mapping(self.fields.get("usage")), **usage}

    def rest(self) -> Iterator[StreamChunk]:
        """The chunks after the end mark. Raises what the whole message means."""
        head, usage = self._head, read_message_usage(self.fields.get("usage"))
        with call_known(request_id=head.request_id, usage=lambda: usage):
            response = read_message({**self.fields, "content": [*map(self._whole, self._blocks)]}, head.model)
        for call in response.tool_calls:
            yield StreamChunk("tool_use", tool_call=call)
        parts = response.body["choices"][0]["message"].get("content_parts")
        details = {**head.details, **({"content_parts": parts} if parts else {})}
        warnings = dict.fromkeys((*head.warnings, *self.warnings, *response.warnings))
        details |= {"model": response.model}
        details |= {"warnings": tuple(warnings)} if warnings else {}
        details |= {"request_id": head.request_id} if head.request_id else {}
        yield StreamChunk("metadata", details=details)
        yield StreamChunk("done", finish_reason=response.finish_reason, usage=response.usage)

    def _delta(self, index: Any, delta: Mapping[str, Any]) -> Iterator[StreamChunk]:
        kind, block = delta.get("type"), self._blocks.setdefault(index, {"type": "text"})
        pieces = self._pieces.setdefault(index, {})
        if kind == "citations_delta":
            block["citations"] = [*(block.get("citations") or ()), delta.get("citation")]
        elif kind == "input_json_delta":
            pieces.setdefault("input", []).append(str(delta.get("partial_json") or ""))
        elif (name := _DELTAS.get(str(kind))) is not None and isinstance(delta.get(name), str):
            pieces.setdefault(name, []).append(delta[name])
            yield from self._says(name, delta[name])

    def _says(self, kind: Any, text: Any) -> Iterator[StreamChunk]:
        if not text:
            return
        self.answered = True
        if kind == "text":
            yield StreamChunk("content", str(text))
        elif kind == "thinking":
            yield StreamChunk("metadata", details={"reasoning": str(text)})

    def _whole(self, index: Any) -> dict[str, Any]:
        """A block with its pieces in it. Raises StreamError where the input of a tool is cut off."""
        block, pieces = dict(self._blocks[index]), self._pieces.get(index, {})
        for name, texts in pieces.items():
            text = "".join(texts)
            if name != "input":
                block[name] = str(block.get(name) or "") + text
            elif text:
                try:
                    block[name] = from_json(text)
                except ValueError as error:
                    if self.fields.get("stop_reason") != "max_tokens":
                        raise self._head.broken("has a tool call whose input is not JSON: ask again") from error
                    block[name] = text  # the limit cut it off
        return block


def _event(data: str, head: StreamHead, warn: Callable[[str], None]) -> Mapping[str, Any]:
    try:
        return mapping(read_json(data.encode("utf-8", "surrogateescape"), warn))
    except ValueError as error:
        raise head.broken("broke off inside an event: ask again") from error


def _broken(error: ModelError, head: StreamHead, message: _Message) -> ModelError:
    """An error event that no table knows is a broken stream, not a broken line; what was said before it is billed."""
    if isinstance(error, BadReply):
        return head.broken(f"broke off ({error.message})")
    error.lost = True if message.answered else error.lost
    return error
