"""Workers AI over its REST API, by the native endpoint ``/ai/run/{model}``, which every model has.

The official client is not used: it percent-encodes the model's name, which the API does not route, and repeats calls
on errors that cannot go away.
"""

from __future__ import annotations

import base64
import functools
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from typing import Any

import aiohttp
import httpx
import pydantic_core

from backends.errors import (
    BadReply,
    ConnectionFailed,
    ContextOverflow,
    InvalidRequest,
    ModelError,
    ModelNotFound,
    StreamError,
)
from backends.http import check_url, network_errors, open_client
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
from backends.parameters import token_limit
from backends.sse import read_events
from backends.workers_ai_errors import PROVIDER, is_refusal, refusal, request_id
from backends.workers_ai_shapes import Reply, read_chat, read_usage, read_vectors, unwrap
from backends.workers_ai_stream import read_stream, whole_answer
from storage.environment import CloudflareAccount, cloudflare_account

# Sent with every chat request that has no limit of its own: the API's default of 256 cuts answers off without a word.
# Long enough for three pages, short enough to end within the 120 to 240 s that the service gives a call.
DEFAULT_MAX_TOKENS = 2048
LEAST_MAX_TOKENS = 64  # below this, an answer that fits the context window is not worth a second call
PAGE = 50  # models a page of the list

# Texts an embedding call takes: `maxItems` in the models' input schemas.
MAX_TEXTS = 100
MAX_TEXTS_BY_MODEL: Mapping[str, int] = {"@cf/qwen/qwen3-embedding-0.6b": 32}

# Its embedding models by name: bge-*, *embed*; a reranker takes a query with contexts instead.
_EMBEDS = re.compile(r"embed|/bge-(?!reranker)")

_MODEL = re.compile(r"@?[\w-][\w.:-]*(/[\w-][\w.:-]*)*", re.ASCII)  # it stands unescaped in the path: no "..", no "?"
_OVERFLOW = re.compile(r"tokens \((\d+)\).*limit \((\d+)\)", re.DOTALL)


def open_backend() -> WorkersAI:
    """The backend of the account that the environment names. Raises MissingSettings."""
    return WorkersAI(cloudflare_account())


class WorkersAI:
    """See Backend. Endpoint: developers.cloudflare.com/api, POST /accounts/{account_id}/ai/run/{model}."""

    name = PROVIDER

    def __init__(
        self,
        account: CloudflareAccount,
        transport: httpx.AsyncBaseTransport | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._root = f"{account.url}/ai"
        check_url(PROVIDER, account.base_url)
        self._clock = clock
        self._client = open_client({"authorization": f"Bearer {account.token}"}, transport)

    async def execute(self, request: ChatRequest) -> ChatResponse:
        """Answers a conversation.

        Where only our default of max_tokens makes the request too long for the model's context window, the call is made
        again with what fits.
        """
        body = chat_body(request)
        try:
            return await self._chat(request.model, body)
        except ContextOverflow as error:
            fits = None if token_limit(request.parameters, PROVIDER) else _fitting_max_tokens(error)
            if fits is None:
                raise
        response = await self._chat(request.model, {**body, "max_tokens": fits})
        warning = f"max_tokens was lowered from {DEFAULT_MAX_TOKENS} to {fits} to fit the context window"
        return replace(response, warnings=(*response.warnings, warning))

    async def execute_stream(self, request: ChatRequest) -> AsyncIterator[StreamChunk]:
        """Answers a conversation piece by piece. Raises StreamError when the stream ends before its end mark."""
        body = chat_body(request)
        model, limit = request.model, body["max_tokens"]
        outgoing = self._post(model, {**body, "stream": True})
        with network_errors(PROVIDER, self._root):
            incoming = await self._client.send(outgoing, stream=True)
        try:
            if incoming.is_success and _content_type(incoming) == "text/event-stream":
                events = read_events(_bytes_of_stream(incoming, model))
                async for chunk in read_stream(
                    events, model, limit, lambda event: self._refusal(incoming, event, model)
                ):
                    yield chunk
                return
            with network_errors(PROVIDER, self._root):
                await incoming.aread()
        finally:
            await incoming.aclose()
        reply = self._read(incoming, model)
        # Some models pass over `stream` and send JSON; the result can be empty then, and only a plain call answers.
        response = read_chat(reply, model, limit) if reply.result else await self.execute(request)
        for chunk in whole_answer(response):
            yield chunk

    async def embed(self, request: EmbedRequest) -> EmbedResponse:
        """Embeds at most ``max_texts`` texts; an empty text is the service's to refuse."""
        body = {**request.parameters, "text": list(request.texts)}
        reply = self._read(await self._send(self._post(request.model, body)), request.model)
        return EmbedResponse(
            vectors=read_vectors(reply, request.model, len(request.texts)),
            usage=read_usage(reply.result, reply.neurons),
            model=_named(reply.result, request.model),
            request_id=reply.request_id,
        )

    async def run(self, request: RawRequest) -> RawResponse:
        """Passes a model's own input on; images and audio come back as ``{"content_type": …, "base64": …}``."""
        incoming = await self._send(self._post(request.model, request.input))
        kind = _content_type(incoming)
        if incoming.is_success and "json" not in kind and kind != "text/html":
            is_text = kind.startswith("text/")
            result: Any = incoming.text if is_text else _binary(incoming.content, kind)
            reply = Reply(result, request_id(incoming.headers), _neurons(incoming))
        else:
            reply = self._read(incoming, request.model)
        usage = read_usage(reply.result, reply.neurons)
        return RawResponse(reply.result, usage, _named(reply.result, request.model), reply.request_id)

    async def list_models(self) -> list[ModelInfo]:
        """All models of the account, by GET /ai/models/search; a page that is not full is the last one."""
        models: list[ModelInfo] = []
        for page in range(1, 1000):
            query = {"page": page, "per_page": PAGE}
            outgoing = self._client.build_request("GET", f"{self._root}/models/search", params=query)
            entries = self._read(await self._send(outgoing), "the list of models").result
            if not isinstance(entries, list):
                raise BadReply(f"{self._root}/models/search sent no list: check CLOUDFLARE_BASE_URL", provider=PROVIDER)
            models += [_model_info(entry) for entry in entries if isinstance(entry, dict) and entry.get("name")]
            if len(entries) < PAGE:
                break
        return models

    def max_texts(self, model: str) -> int:
        """See MAX_TEXTS; 1 for a model that embeds nothing."""
        return MAX_TEXTS_BY_MODEL.get(model, MAX_TEXTS) if _EMBEDS.search(model) else 1

    async def aclose(self) -> None:
        """Closes the connections."""
        await self._client.aclose()

    async def _chat(self, model: str, body: Mapping[str, Any]) -> ChatResponse:
        reply = self._read(await self._send(self._post(model, body)), model)
        return read_chat(reply, model, body["max_tokens"])

    def _post(self, model: str, body: Mapping[str, Any]) -> httpx.Request:
        url = _run_url(self._root, model)
        try:
            content = pydantic_core.to_json(dict(body))
        except ValueError as error:
            raise InvalidRequest(
                f"{model}: the input cannot be written as JSON ({error})", provider=PROVIDER
            ) from error
        headers = {"content-type": "application/json"}
        return self._client.build_request("POST", url, content=content, headers=headers)

    async def _send(self, outgoing: httpx.Request) -> httpx.Response:
        with network_errors(PROVIDER, self._root):
            return await self._client.send(outgoing)

    def _read(self, incoming: httpx.Response, model: str) -> Reply:
        """The result of a whole reply; raises what the reply means otherwise, never anything but a ModelError."""
        try:
            body = pydantic_core.from_json(incoming.content)
        except ValueError as error:
            if incoming.is_success:
                raise _no_json(incoming, model) from error
            body = incoming.content.decode("utf-8", "replace")
        if not incoming.is_success or is_refusal(body):
            raise self._refusal(incoming, body, model)
        return Reply(unwrap(body), request_id(incoming.headers), _neurons(incoming))

    def _refusal(self, incoming: httpx.Response, body: object, model: str) -> ModelError:
        return refusal(incoming.status_code, incoming.headers, body, model, self._clock())


@functools.lru_cache(maxsize=256)  # parsing a URL is a sixth of a call's CPU time
def _run_url(root: str, model: str) -> httpx.URL:
    if not _MODEL.fullmatch(model):
        raise ModelNotFound(f"{model!r} is no model's name: write one such as @cf/baai/bge-m3", provider=PROVIDER)
    return httpx.URL(f"{root}/run/{model}")


def chat_body(request: ChatRequest) -> dict[str, Any]:
    """The native input of a conversation: parameters by OpenAI's names, and always a limit of tokens."""
    # Newer models say max_completion_tokens and still take max_tokens; older ones know only the latter.
    ours = ("max_completion_tokens", "stream")
    body = {name: value for name, value in request.parameters.items() if name not in ours}
    body["max_tokens"] = token_limit(request.parameters, PROVIDER) or DEFAULT_MAX_TOKENS
    if "response_format" in body:
        body["response_format"] = _native_format(body["response_format"])
    body["messages"] = [_native_message(message) for message in request.messages]
    return body


def _native_format(wanted: Any) -> Any:
    """Native models want the bare JSON Schema where OpenAI wraps it as ``{"name", "schema", "strict"}``."""
    schema = wanted.get("json_schema") if isinstance(wanted, dict) else None
    if isinstance(schema, dict) and isinstance(schema.get("schema"), dict):
        return {**wanted, "json_schema": schema["schema"]}
    return wanted


def _native_message(message: Message) -> dict[str, Any]:
    content = message.content  # null is refused, also beside tool calls
    parts = "" if content is None else content if isinstance(content, str) else list(content)
    return {**message.extra, "role": message.role, "content": parts}


def _fitting_max_tokens(error: ContextOverflow) -> int | None:
    """What the context window leaves for the answer, by the numbers in error 5021; None if too little."""
    numbers = _OVERFLOW.search(error.message)
    if not numbers:
        return None
    estimate, limit = map(int, numbers.groups())
    fits = DEFAULT_MAX_TOKENS - (estimate - limit)
    return fits if LEAST_MAX_TOKENS <= fits < DEFAULT_MAX_TOKENS else None


async def _bytes_of_stream(incoming: httpx.Response, model: str) -> AsyncIterator[bytes]:
    try:
        async for chunk in incoming.aiter_bytes():
            yield chunk
    except (httpx.RequestError, aiohttp.ClientError, OSError) as error:
        raise StreamError(f"{model}: the stream broke off ({error}): ask again", provider=PROVIDER) from error


def _no_json(incoming: httpx.Response, model: str) -> ModelError:
    kind, identity = _content_type(incoming), request_id(incoming.headers)
    if "json" in kind:
        text = f"{model}: the reply broke off after {len(incoming.content)} bytes: ask again"
        return ConnectionFailed(text, status=incoming.status_code, request_id=identity, provider=PROVIDER)
    text = f"{model}: the reply is {kind or 'of no type'}, not JSON: check CLOUDFLARE_BASE_URL and any proxy between"
    return BadReply(text, status=incoming.status_code, request_id=identity, provider=PROVIDER)


def _content_type(incoming: httpx.Response) -> str:
    return incoming.headers.get("content-type", "").partition(";")[0].strip().lower()


def _neurons(incoming: httpx.Response) -> float | None:
    try:
        return float(incoming.headers["cf-ai-neurons"])
    except (KeyError, ValueError):
        return None


def _binary(content: bytes, kind: str) -> dict[str, str]:
    return {"content_type": kind, "base64": base64.b64encode(content).decode("ascii")}


def _named(result: Any, asked: str) -> str:
    named = result.get("model") if isinstance(result, dict) else None
    return named if isinstance(named, str) and named else asked


def _model_info(entry: Mapping[str, Any]) -> ModelInfo:
    pairs = [item for item in entry.get("properties") or () if isinstance(item, dict) and "property_id" in item]
    properties = {str(item["property_id"]): item.get("value") for item in pairs}
    window = str(properties.get("context_window") or "")
    return ModelInfo(
        name=f"{PROVIDER}/{entry['name']}",
        task=str((entry.get("task") or {}).get("name") or ""),
        description=str(entry.get("description") or ""),
        context_tokens=int(window) if window.isdecimal() else None,
        properties=properties,
    )
