"""A stand-in for models, for tests and benchmarks: instant, deterministic, and without any understanding.

Chat answers ``echo: `` and the last user message, in JSON or as a tool call if required; an embedding is a unit vector
made from the text's hash. Tokens are words. For real answers, serve the embedded model instead.
"""

from __future__ import annotations

import hashlib
import math
import re
import struct
from collections.abc import AsyncGenerator, AsyncIterator, Mapping

from llmdo.backends.errors import ContextOverflow, InvalidRequest, ModelNotFound
from llmdo.backends.limits.sizes import checked_token_limit
from llmdo.backends.parameters import Dialect, translate
from llmdo.backends.requests import ChatRequest, EmbedRequest, Message, RawRequest, Request
from llmdo.backends.responses import ChatResponse, EmbedResponse, FinishReason, ModelInfo, RawResponse, StreamChunk
from llmdo.backends.streams import with_errors
from llmdo.backends.usage import Usage
from llmdo.local.ai.catalogue import EMBEDDINGS, LocalModel
from llmdo.local.ai.json_mode import as_asked

_WORD = re.compile(r"\S+\s*")
_DIALECT = Dialect(known=frozenset({"response_format", "tools", "tool_choice"}))


class Echo:
    """A backend that answers from the request alone."""

    name = "echo"

    def __init__(self, catalogue: Mapping[str, LocalModel]) -> None:
        self._catalogue = catalogue

    async def execute(self, request: ChatRequest) -> ChatResponse:
        """``echo: <last user text>``, cut after ``max_tokens`` words. Raises ContextOverflow."""
        return self._answer(request)

    def execute_stream(self, request: ChatRequest) -> AsyncIterator[StreamChunk]:
        """The same, one word a chunk. Raises ContextOverflow."""
        return with_errors(self._pieces(request), self.name)

    async def embed(self, request: EmbedRequest) -> EmbedResponse:
        """One unit vector a text, the same for the same text."""
        size = self._find(request.model).dimensions
        tokens = sum(len(text.split()) for text in request.texts)
        return EmbedResponse(tuple(vector(text, size) for text in request.texts), Usage(tokens), request.model)

    async def run(self, request: RawRequest) -> RawResponse:
        """Raises InvalidRequest: nothing else can be echoed."""
        raise InvalidRequest(f"{request.model}: the echo stand-in only chats and embeds", provider=self.name)

    def check(self, request: Request) -> None:
        """Accepts every request."""

    async def list_models(self) -> list[ModelInfo]:
        """The catalogue."""
        return [ModelInfo(f"echo/{m.name}", m.task, m.description, m.context_tokens) for m in self._catalogue.values()]

    def max_texts(self, model: str) -> int:
        """How many texts one embedding call takes."""
        row = self._catalogue.get(model)
        return row.max_texts if row and row.task == EMBEDDINGS else 1

    async def health(self) -> None:
        """Always succeeds."""

    async def aclose(self) -> None:
        """Nothing is open."""

    async def _pieces(self, request: ChatRequest) -> AsyncGenerator[StreamChunk, None]:
        answer = self._answer(request)
        yield StreamChunk("start")
        if answer.warnings:
            yield StreamChunk("metadata", details={"warnings": answer.warnings})
        for word in _WORD.findall(answer.text or ""):
            yield StreamChunk("content", word)
        for call in answer.tool_calls:
            yield StreamChunk("tool_use", tool_call=call)
        yield StreamChunk("done", finish_reason=answer.finish_reason, usage=answer.usage)

    def _find(self, model: str) -> LocalModel:
        if model not in self._catalogue:
            text = f"{model} is not a model of the echo stand-in: use one of {', '.join(self._catalogue)}"
            raise ModelNotFound(text, provider=self.name)
        return self._catalogue[model]

    def _answer(self, request: ChatRequest) -> ChatResponse:
        row = self._find(request.model)
        _, warnings = translate(request.parameters, _DIALECT, request.model)
        texts = [text_of(message) for message in request.messages]
        asked = next(
            (t for t, m in zip(reversed(texts), reversed(request.messages), strict=True) if m.role == "user"), ""
        )
        limit = checked_token_limit(request.parameters) or 256
        tokens, window = sum(len(text.split()) for text in texts), row.context_tokens
        if tokens + limit > window:
            raise ContextOverflow(
                f"AiError: AiError: 5021: The estimated number of input and maximum output tokens ({tokens + limit})"
                f" exceeded this model context window limit ({window})."
            )
        words = _WORD.findall(f"echo: {asked}")
        cut = len(words) > limit
        reason: FinishReason = "length" if cut else "stop"
        text = "".join(words[:limit]).rstrip() if cut else f"echo: {asked}"
        usage = Usage(tokens, min(len(words), limit))
        return as_asked(request, ChatResponse(text, reason, usage, request.model, warnings=warnings))


def text_of(message: Message) -> str:
    """A message's text, or the texts among its parts."""
    if message.content is None or isinstance(message.content, str):
        return message.content or ""
    return "\n".join(str(part.get("text", "")) for part in message.content if part.get("type") == "text")


def vector(text: str, size: int) -> tuple[float, ...]:
    """A unit vector of ``size`` numbers from the text's SHAKE-256."""
    digest = hashlib.shake_256(text.encode("utf-8", "surrogatepass")).digest(2 * size)
    numbers = struct.unpack(f"<{size}h", digest)
    length = math.sqrt(sum(n * n for n in numbers)) or 1.0
    return tuple(round(n / length, 8) for n in numbers)
