"""Workers AI's streams of chat answers, as our chunks.

``data: {json}`` events, native ``{"response": "…"}`` or OpenAI's ``{"choices": [{"delta": {…}, "finish_reason": …}]}``,
then ``data: [DONE]``. Usage comes in the last chunk or after it. An error can come as an event, also as the first one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import Any

from llmdo.backends.errors import BadReply, ModelError, StreamError
from llmdo.backends.finish_reasons import finish_of, finish_warning
from llmdo.backends.http.reply_json import mapping, read_json
from llmdo.backends.openai.messages import as_text, read_content, tool_calls
from llmdo.backends.openai.shapes import choice_error, failed_choice, first_choice, read_usage
from llmdo.backends.responses import FinishReason, StreamChunk
from llmdo.backends.streams import ToolCalls
from llmdo.backends.usage import Usage
from llmdo.backends.workers_ai.errors import PROVIDER, is_refusal
from llmdo.backends.workers_ai.shapes import Reply, model_of

END = "[DONE]"


async def read_stream(
    events: AsyncIterator[str],
    model: str,
    max_tokens: int,
    refused: Callable[[Any], ModelError],
    head: Reply,
    warnings: Sequence[str] = (),
) -> AsyncIterator[StreamChunk]:
    """Yields start, metadata and content, tool_use for each whole call, done.

    ``refused`` makes the error of an event that is one; ``head``: what the reply's headers say; ``warnings`` come as
    metadata. Raises StreamError when the events end without an end mark and without a finish reason.
    """
    yield StreamChunk("start")
    said = _Said(head)
    async for data in events:
        if data == END:
            said.ended = True
            break
        event = _event(data, model, said.warnings.append)
        if is_refusal(event):
            raise _broken(refused(event), model, said)
        for chunk in said.take(event, model):
            yield chunk
    usage = said.usage if said.told else None
    failed = choice_error(said.ending, usage, refused)
    failed = failed or failed_choice(said.ending, model, PROVIDER, head.request_id, usage)
    if failed is not None:
        raise failed
    if not said.ended and said.finish is None:
        raise StreamError(
            f"{model}: the stream ended before its end mark: ask again", request_id=head.request_id, provider=PROVIDER
        )
    for chunk in said.rest(max_tokens, warnings):
        yield chunk


class _Said:
    """What a stream has told so far."""

    def __init__(self, head: Reply) -> None:
        self.finish: FinishReason | None = None
        self.ending: dict[str, Any] = {}  # what is said of the end
        self.warnings: list[str] = []
        self.ended = False
        self._head = head
        self.usage = Usage(neurons=head.neurons)
        self.told = False
        self._deltas = ToolCalls()
        self._calls: list[Mapping[str, Any]] = []  # native ones come whole
        self._named = False
        self.answered = False

    def take(self, event: Mapping[str, Any], model: str) -> Iterator[StreamChunk]:
        """Takes one event in, and gives the chunks that it makes."""
        if event.get("usage"):
            self.usage, self.told = read_usage(event, self._head.neurons), True
        answered, substituted = model_of(event, model)
        if substituted and not self._named:
            self._named = True
            yield StreamChunk("metadata", details={"model": answered, "warnings": substituted})
        choice = first_choice(event) or {}
        reason = choice.get("finish_reason") or event.get("finish_reason")
        self.ending |= {"finish_reason": reason} if reason else {}
        self.ending |= {"error": choice["error"]} if choice.get("error") else {}
        self.finish = finish_of(reason) or self.finish
        odd = finish_warning(reason)
        self.warnings += [odd] if odd else []
        delta = mapping(choice.get("delta"))
        self._deltas.add(delta.get("tool_calls"))
        self._calls += tool_calls(event.get("tool_calls"))
        content = read_content(delta.get("content") if choice else event.get("response"))
        reasoning = as_text(delta.get("reasoning_content")) or as_text(delta.get("reasoning")) or content.reasoning
        if reasoning:
            yield StreamChunk("metadata", details={"reasoning": reasoning})
        text = content.text
        if text:
            self.answered = True
            yield StreamChunk("content", text)

    def rest(self, max_tokens: int, warnings: Sequence[str]) -> Iterator[StreamChunk]:
        """The chunks after the end mark."""
        calls = [*self._deltas.whole(), *self._calls]
        for call in calls:
            yield StreamChunk("tool_use", tool_call=call)
        finish = self.finish
        if finish is None and calls:
            finish = "tool_calls"  # native events have no finish reason
        elif finish is None and self.usage.output_tokens >= max_tokens:
            finish = "length"
        said = [*warnings, *dict.fromkeys(self.warnings)]
        if finish == "length":
            said.append(f"the answer is cut off at {max_tokens} tokens: raise max_tokens")
        elif not self.answered and not calls:
            said.append("the model sent no text")
        details = {**self._head.details, **({"warnings": tuple(said)} if said else {})}
        if details:
            yield StreamChunk("metadata", details=details)
        yield StreamChunk("done", finish_reason=finish, usage=self.usage)


def _event(data: str, model: str, warn: Callable[[str], None]) -> dict[str, Any]:
    try:
        event = read_json(data.encode("utf-8", "surrogateescape"), warn)
    except ValueError as error:
        raise StreamError(f"{model}: the stream broke off inside an event: ask again", provider=PROVIDER) from error
    return event if isinstance(event, dict) else {"response": event}


def _broken(error: ModelError, model: str, said: _Said) -> ModelError:
    """An error event that no table knows is a broken stream, not a broken line; what was said before it is billed."""
    if isinstance(error, BadReply):
        return StreamError(f"{model}: the stream broke off ({error.message})", provider=PROVIDER)
    error.lost = True if said.answered else error.lost
    return error
