"""Workers AI over its REST API, by the native endpoint ``/ai/run/{model}``, which every model has.

The official client is not used: it percent-encodes the model's name, which the API does not route, and repeats calls
on errors that cannot go away.
"""

from __future__ import annotations

import base64
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from typing import Any

import httpx
import pydantic_core

from backends.errors import BadReply, ConnectionFailed, ContextOverflow, ModelError, ModelNotFound, StreamError
from backends.http import network_errors, open_client
from backends.ir import (
    ChatRequest,
    ChatResponse,
    EmbedRequest,
    EmbedResponse,
    Message,
    ModelInfo,
    RawRequest,
    RawResponse,
    StreamChunk,
)
from backends.workers_ai_errors import PROVIDER, is_refusal, refusal, request_id
from backends.workers_ai_shapes import Reply, read_chat, read_usage, read_vectors, unwrap
from backends.workers_ai_stream import read_events, read_stream
from storage.environment import CloudflareAccount, cloudflare_account

# Sent with every chat request that has no limit of its own: the API's default of 256 cuts answers off without a word.
# Long enough for a page and a half, short enough to end within the service's 120–240 s and to fit small context windows.
DEFAULT_MAX_TOKENS = 2048
LEAST_MAX_TOKENS = 64  # an answer shorter than this is not worth a second call
PAGE = 50  # models a page of the list

# Texts an embedding call takes: `maxItems` of the models' input schemas.
MAX_TEXTS = 100
MAX_TEXTS_BY_MODEL: Mapping[str, int] = {"@cf/qwen/qwen3-embedding-0.6b": 32}

_MODEL = re.compile(r"@?[\w-][\w.:-]*(/[\w-][\w.:-]*)*", re.ASCII)  # goes into a path unescaped: no "..", no "?"
_OVERFLOW = re.compile(r"tokens \((\d+)\).*limit \((\d+)\)", re.DOTALL)


def open_backend() -> WorkersAI:
    """The backend of the account that the environment names. Raises MissingSettings."""
    return WorkersAI(cloudflare_account())


class WorkersAI:
    """See Backend. Every error is a ModelError that names the model, the code and the remedy."""

    name = PROVIDER

    def __init__(
        self,
        account: CloudflareAccount,
        transport: httpx.AsyncBaseTransport | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._root = f"{account.url}/ai"
        self._clock = clock
        self._client = open_client({"Authorization": f"Bearer {account.token}"}, transport)

    async def execute(self, request: ChatRequest) -> ChatResponse:
        """Answers a conversation.

        Where the default of max_tokens alone makes the request too long for the model's context window, the call is
        made again with what fits.
        """
        body = chat_body(request)
        try:
            return await self._chat(request.model, body)
        except ContextOverflow as error:
            fits = _fitting_max_tokens(error, body["max_tokens"])
            if fits is None or _asked_max_tokens(request) is not None:
                raise
            response = await self._chat(request.model, {**body, "max_tokens": fits})
        warning = f"max_tokens was lowered from {DEFAULT_MAX_TOKENS} to {fits} to fit the context window"
        return replace(response, warnings=(*response.warnings, warning))

    async def execute_stream(self, request: ChatRequest) -> AsyncIterator[StreamChunk]:
        """Answers a conversation piece by piece. Raises StreamError when the stream ends before its end mark."""
        body = {**chat_body(request), "stream": True}
        outgoing = self._post(request.model, body)
        with network_errors(PROVIDER, self._root):
            incoming = await self._client.send(outgoing, stream=True)
        try:
            if _content_type(incoming) == "text/event-stream":
                async for chunk in read_stream(read_events(_raw(incoming)), body["max_tokens"], self._refused(incoming, request.model)):
                    yield chunk
                return
            with network_errors(PROVIDER, self._root):
                await incoming.aread()
        finally:
            await incoming.aclose()
        # Some models ignore `stream` and send JSON, which may be empty.
        reply = self._read(incoming, request.model)
        ...
