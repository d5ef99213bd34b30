"""How the backend is asked, by whichever API."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import replace

from llmdo.backends.backend import Backend
from llmdo.backends.requests import ChatRequest, EmbedRequest
from llmdo.backends.responses import EmbedResponse, StreamChunk
from llmdo.backends.usage import Usage
from llmdo.local.stats import Stats
from llmdo.local.wire import EVENT_STREAM, HttpReply


async def embed_all(backend: Backend, request: EmbedRequest) -> EmbedResponse:
    """Embeds in pieces of as many texts as the backend takes, which may be fewer than the named model does."""
    most = backend.max_texts(request.model)
    pieces = [
        await backend.embed(replace(request, texts=request.texts[start : start + most]))
        for start in range(0, len(request.texts), most)
    ]
    vectors = tuple(vector for piece in pieces for vector in piece.vectors)
    return EmbedResponse(vectors, Usage(sum(piece.usage.input_tokens for piece in pieces)), request.model)


async def begin_stream(backend: Backend, chat: ChatRequest) -> AsyncIterator[StreamChunk]:
    """Starts a stream and waits for its first chunk, so that an error before it gets a status of its own."""
    chunks = aiter(backend.execute_stream(chat))
    first = await anext(chunks)
    while first.kind == "error":  # which is raised next
        first = await anext(chunks)

    async def whole() -> AsyncIterator[StreamChunk]:
        yield first
        async for chunk in chunks:
            yield chunk

    return whole()


def event_stream(pieces: AsyncGenerator[bytes, None]) -> HttpReply:
    """A reply of server-sent events."""
    return HttpReply(200, headers={"Content-Type": EVENT_STREAM, "Cache-Control": "no-cache"}, pieces=pieces)


async def in_flight(stats: Stats, pieces: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """The pieces of a reply, which counts as in flight until its end."""
    with stats.flight():
        async for piece in pieces:
            yield piece
