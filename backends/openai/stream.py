"""OpenAI's streams of chat completions, as our chunks.

``data: {"choices": [{"delta": {…}, "finish_reason": …}], "usage": …}`` events, then ``data: [DONE]``. Usage comes after
the finish reason. An error can come as an event, also as the first one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any

from llmdo.backends.errors import BadReply, ModelError, StreamError
from llmdo.backends.finish_reasons import finish_of, finish_warning
from llmdo.backends.http.reply_json import mapping, read_json
from llmdo.backends.openai.messages import as_text, read_content
from llmdo.backends.openai.shapes import choice_error, failed_choice, first_choice, is_same_model, read_usage
from llmdo.backends.responses import FinishReason, StreamChunk
from llmdo.backends.streams import ToolCalls
from llmdo.backends.usage import Usage

END = "[DONE]"
SEVERAL = "the stream held several answers: all but the first were left out"
# What is read, or says nothing, of an event and of a delta; what else they hold is kept.
_EVENT = frozenset({"choices", "created", "error", "id", "model", "obfuscation", "object", "usage"})
_DELTA = frozenset({"content", "function_call", "reasoning", "reasoning_content", "refusal", "role", "tool_calls"})


async def read_stream(
    events: AsyncIterator[str], model: str, provider: str, refused: Callable[[Any], ModelError | None]
) -> AsyncIterator[StreamChunk]:
    """Yields start, content and metadata, tool_use for each whole call, done.

    ``refused`` makes the error of an event that is one. Raises StreamError when the events end without a finish reason
    and without ``[DONE]`` after an answer.
    """
    yield StreamChunk("start")
    said = _Said()
    async for data in events:
        if data == END:
            said.ended = True
            break
        warnings: list[str] = []
        event = _event(data, model, provider, warnings.append)
        error = refused(event)
        if error is not None:
            raise _broken(error, model, provider, said)
        if warnings and not said.mended:
            said.mended = True
            yield StreamChunk("metadata", details={"warnings": tuple(warnings)})
        for chunk in said.take(event, model):
            yield chunk
    usage = said.usage if said.told else None
    failed = choice_error(said.ending, usage, refused) or failed_choice(said.ending, model, provider, None, usage)
    if failed is not None:
        raise failed
    calls = said.calls.whole()
    if said.finish is None and not (said.ended and (said.answered or calls)):
        raise StreamError(f"{model}: the stream ended before its end mark: ask again", provider=provider)
    for call in calls:
        yield StreamChunk("tool_use", tool_call=call)
    if said.more:
        yield StreamChunk("metadata", details=said.more)
    yield StreamChunk("done", finish_reason=said.finish, usage=said.usage)


class _Said:
    """What a stream has told so far."""

    def __init__(self) -> None:
        self.finish: FinishReason | None = None
        self.ending: dict[str, Any] = {}  # what the choice says of its end
        self.usage = Usage()
        self.told = False
        self.calls = ToolCalls()
        self.answered = False
        self.ended = False
        self.more: dict[str, Any] = {}
        self.mended = False  # a warning about its text was given
        self._named = self._several = False
        self._index: Any = None  # of the choice that is read

    def take(self, event: Mapping[str, Any], model: str) -> Iterator[StreamChunk]:
        """Takes one event in, and gives the chunks that it makes."""
        if event.get("usage"):
            self.usage, self.told = read_usage(event), True
        named = event.get("model")
        if not self._named and isinstance(named, str) and named:
            self._named = True
            details: dict[str, Any] = {"model": named}
            if not is_same_model(model, named):
                details["warnings"] = (f"{named} answered instead of {model}",)
            yield StreamChunk("metadata", details=details)
        self._keep(event, _EVENT)
        choice = first_choice(event)
        if choice is None:
            return
        index = choice.get("index")
        self._index = index if self._index is None else self._index
        if index not in (None, self._index):  # of several that were asked for, in a stream that was not
            if not self._several:
                self._several = True
                yield StreamChunk("metadata", details={"warnings": (SEVERAL,)})
            return
        self.ending |= {name: choice[name] for name in ("finish_reason", "error") if choice.get(name)}
        reason = choice.get("finish_reason")
        self.finish = finish_of(reason) or self.finish
        odd = finish_warning(reason)
        if odd:
            yield StreamChunk("metadata", details={"warnings": (odd,)})
        delta = mapping(choice.get("delta"))
        self._keep(delta, _DELTA)
        self.calls.add(delta.get("tool_calls"))
        content = read_content(delta.get("content"))
        reasoning = as_text(delta.get("reasoning_content")) or as_text(delta.get("reasoning")) or content.reasoning
        if reasoning:
            yield StreamChunk("metadata", details={"reasoning": reasoning})
        text = content.text or as_text(delta.get("refusal")) or as_text(choice.get("text"))
        if text:
            self.answered = True
            yield StreamChunk("content", text)

    def _keep(self, fields: Mapping[str, Any], but: frozenset[str]) -> None:
        """Annotations, citations, images, a fingerprint …: lists come in pieces, other values again and again."""
        for name in fields.keys() - but:
            value, before = fields[name], self.more.get(name)
            if isinstance(value, list) and isinstance(before, list) and value != before:
                before.extend(value)
            elif value:
                self.more[name] = list(value) if isinstance(value, list) else value


def _event(data: str, model: str, provider: str, warn: Callable[[str], None]) -> Mapping[str, Any]:
    try:
        event = read_json(data.encode("utf-8", "surrogateescape"), warn)
    except ValueError as error:
        raise StreamError(f"{model}: the stream broke off inside an event: ask again", provider=provider) from error
    return mapping(event[0] if isinstance(event, list) and event else event)  # Gemini's errors come in a list


def _broken(error: ModelError, model: str, provider: str, said: _Said) -> ModelError:
    """An error event that no table knows is a broken stream, not a broken line; what was said before it is billed."""
    if isinstance(error, BadReply):
        return StreamError(f"{model}: the stream broke off ({error.message})", provider=provider)
    error.lost = True if said.answered else error.lost
    return error
