"""Workers AI's streams of chat answers, as our chunks.

``data: {json}`` events, native ``{"response": "…"}`` or OpenAI's ``{"choices": [{"delta": {…}, "finish_reason": …}]}``,
then ``data: [DONE]``. Usage comes in the last chunk or after it. An error can come as an event.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pydantic_core

from backends.errors import BadReply, ContentFiltered, ModelError, StreamError
from backends.ir import ChatResponse, FinishReason, StreamChunk, Usage
from backends.workers_ai_errors import PROVIDER, is_refusal
from backends.workers_ai_shapes import FINISH_REASONS, as_text, read_usage

END = "[DONE]"


async def read_stream(
    events: AsyncIterator[str], model: str, max_tokens: int, refused: Callable[[Any], ModelError]
) -> AsyncIterator[StreamChunk]:
    """Yields start, content …, done. ``refused`` makes the error of an event that is one.

    Raises StreamError when the events end without an end mark and without a finish reason.
    """
    yield StreamChunk(0, "start")
    sequence = 1
    finish: FinishReason | None = None
    usage = Usage()
    ended = False
    async for data in events:
        if data == END:
            ended = True
            break
        event = _event(data, model)
        if is_refusal(event):
            raise _retryable(refused(event), model)
        if event.get("usage"):
            usage = read_usage(event, None)
        finish = _finish(event) or finish
        text = _text(event)
        if text:
            yield StreamChunk(sequence, "content", text)
            sequence += 1
    if finish == "content_filter":
        raise ContentFiltered(f"{model}: the filter cut the answer off: change the prompt", provider=PROVIDER)
    if not ended and finish is None:
        raise StreamError(f"{model}: the stream ended before its end mark: ask again", provider=PROVIDER)
    if finish is None and usage.output_tokens >= max_tokens:
        finish = "length"  # native events have no finish reason
    yield StreamChunk(sequence, "done", finish_reason=finish, usage=usage)


def whole_answer(response: ChatResponse) -> list[StreamChunk]:
    """The chunks of an answer that came in one piece."""
    content = [StreamChunk(1, "content", response.text)] if response.text else []
    last = StreamChunk(1 + len(content), "done", finish_reason=response.finish_reason, usage=response.usage)
    return [StreamChunk(0, "start"), *content, last]


def _event(data: str, model: str) -> dict[str, Any]:
    try:
        event = pydantic_core.from_json(data)
    except ValueError as error:
        raise StreamError(f"{model}: the stream broke off inside an event: ask again", provider=PROVIDER) from error
    return event if isinstance(event, dict) else {"response": event}


def _choice(event: dict[str, Any]) -> dict[str, Any]:
    choices = event.get("choices")
    return choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}


def _text(event: dict[str, Any]) -> str:
    choice = _choice(event)
    delta = choice.get("delta")
    content = (delta if isinstance(delta, dict) else {}).get("content") if choice else event.get("response")
    return as_text(content) or ""


def _finish(event: dict[str, Any]) -> FinishReason | None:
    return FINISH_REASONS.get(str(_choice(event).get("finish_reason") or event.get("finish_reason")))


def _retryable(error: ModelError, model: str) -> ModelError:
    """An error event that no table knows is a broken stream, not a broken line."""
    if isinstance(error, BadReply):
        return StreamError(f"{model}: the stream broke off ({error.message})", provider=PROVIDER)
    return error
