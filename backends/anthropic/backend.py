"""Anthropic's API over HTTP, and servers that speak it: POST /v1/messages, GET /v1/models.

Source: platform.claude.com/docs/en/api.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from llmdo.backends.anthropic.blocks import system_and_turns
from llmdo.backends.anthropic.caching import SharedPrefixes
from llmdo.backends.anthropic.errors import refusal
from llmdo.backends.anthropic.models import model_info
from llmdo.backends.anthropic.replies import raw_response, read_message, read_message_usage, without_tool
from llmdo.backends.anthropic.requests import (
    KEY_VARIABLE,
    PROVIDER,
    JsonWay,
    betas_of,
    chat_body,
    chat_without_turns,
    json_way,
    raw_message_body,
)
from llmdo.backends.anthropic.stream import read_message_stream
from llmdo.backends.backend import naming_provider
from llmdo.backends.errors import BadReply, InvalidRequest, ModelError, call_known
from llmdo.backends.http.base_url import base_url
from llmdo.backends.http.client import Call, Incoming, Network, Transport
from llmdo.backends.http.network_errors import network_errors
from llmdo.backends.http.reply_events import open_events, stray_events
from llmdo.backends.http.reply_json import mapping
from llmdo.backends.json_mode.answers import check_schema_now, in_format, wants_json
from llmdo.backends.openai.errors import is_refusal, request_id
from llmdo.backends.openai.replies import ReplyReader
from llmdo.backends.openai.stream import StreamHead
from llmdo.backends.requests import ChatRequest, EmbedRequest, RawRequest, Request, sent_json
from llmdo.backends.responses import ChatResponse, EmbedResponse, ModelInfo, RawResponse, StreamChunk
from llmdo.backends.streams import collected, whole_answer, with_errors
from llmdo.settings.environment import AnthropicAccess

_VERSION = "2023-06-01"
_PAGE, _MOST_PAGES = 1000, 100


class Anthropic:
    """See Backend."""

    name = PROVIDER

    def __init__(
        self, access: AnthropicAccess, transport: Transport | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        self._base = base = base_url(PROVIDER, access.base_url)
        self._clock = clock
        keys = {"x-api-key": access.key} if access.key else {}
        keys |= {"authorization": base.authorization} if base.authorization else {}
        headers = {**keys, "anthropic-version": _VERSION, "content-type": "application/json"}
        self._post = Call("POST", base.at("v1/messages"), headers)
        self._list = Call("GET", base.at("v1/models"), headers)
        self._batches = Call("GET", base.at("v1/messages/batches"), headers)
        self._transport = transport or Network(base.root)
        self._reader = ReplyReader("ANTHROPIC_BASE_URL", is_refusal, self._refusal, request_id)
        self._prefixes = SharedPrefixes()
        self._refused: set[tuple[str, str]] = set()  # models with schemas that they take no other way than in words

    @naming_provider
    async def execute(self, request: ChatRequest) -> ChatResponse:
        """Answers a conversation; see in_format for JSON mode."""
        return await in_format(request, lambda asked, _: self._answer(asked), PROVIDER)

    def execute_stream(self, request: ChatRequest) -> AsyncIterator[StreamChunk]:
        """Answers a conversation piece by piece, in JSON mode in one piece.

        Raises StreamError when the stream ends before its end mark.
        """
        return with_errors(self._stream(request), self.name)

    @naming_provider
    async def embed(self, request: EmbedRequest) -> EmbedResponse:
        """Raises InvalidRequest: Anthropic has no embeddings."""
        raise _embeds_nothing(request.model)

    @naming_provider
    async def run(self, request: RawRequest) -> RawResponse:
        """Answers a request that is written for this API, with all that only this API has; its answer comes as a
        chat.completion. In JSON mode, by ``output_config.format``, see in_format.
        """
        body, betas = raw_message_body(request), betas_of(request)

        async def answer(asked: ChatRequest, _: bool) -> ChatResponse:
            more = system_and_turns(asked.messages, lambda _: None)[1]
            call = self._call({**body, "messages": [*_listed(body.get("messages")), *more]}, betas)
            return await self._read(await self._send(call), request.model, ())

        return raw_response(await in_format(chat_without_turns(request), answer, PROVIDER), request.request_id)

    def check(self, request: Request) -> None:
        """Builds the call. Raises InvalidRequest."""
        with call_known(provider=PROVIDER):
            if isinstance(request, EmbedRequest):
                raise _embeds_nothing(request.model)
            if isinstance(request, ChatRequest):
                check_schema_now(request.parameters.get("response_format"), request.model, PROVIDER)
                self._call(chat_body(request))
            else:
                self._call(raw_message_body(request))

    @naming_provider
    async def list_models(self) -> list[ModelInfo]:
        """All models of the service that can be called."""
        listed: list[ModelInfo] = []
        after: dict[str, str] = {}
        for _ in range(_MOST_PAGES):
            page = await self._models(limit=_PAGE, **after)
            entries = page.get("data")
            if not isinstance(entries, list):
                raise BadReply(f"{self._base.root}/v1/models sent no list: check ANTHROPIC_BASE_URL")
            listed += [model_info(entry, PROVIDER) for entry in entries if isinstance(entry, dict) and entry.get("id")]
            if not page.get("has_more") or not page.get("last_id"):
                break
            after = {"after_id": str(page["last_id"])}
        return listed

    def max_texts(self, model: str) -> int:  # noqa: ARG002  none embeds
        """1: no model of Anthropic embeds."""
        return 1

    @naming_provider
    async def health(self) -> None:
        """Asks for one entry of the list of models."""
        await self._models(limit=1)

    async def aclose(self) -> None:
        """Closes the connections."""
        await self._transport.aclose()

    async def _answer(self, request: ChatRequest) -> ChatResponse:
        """By the service's own structured outputs, or where it refuses a schema, in words; it says which it takes."""
        way, schema = json_way(request), str(request.parameters.get("response_format"))
        if way == "format" and (request.model, schema) in self._refused:
            way = "words"
        try:
            return await self._asked(request, way)
        except InvalidRequest as refused:
            if way != "format":
                raise
            try:
                response = await self._asked(request, "words")
            except InvalidRequest:
                raise refused from None  # it is not the schema
            self._refused.add((request.model, schema))
            return response

    async def _asked(self, request: ChatRequest, way: JsonWay | None) -> ChatResponse:
        warnings: list[str] = []
        body = self._prefixes.marked(chat_body(request, warnings.append, way=way), request.parameters)
        response = await self._read(await self._send(self._call(body)), request.model, warnings)
        return without_tool(response) if way == "tool" else response

    async def _stream(self, request: ChatRequest) -> AsyncGenerator[StreamChunk, None]:
        if wants_json(request.parameters.get("response_format")):
            for chunk in whole_answer(await self.execute(request)):
                yield chunk
            return
        warnings: list[str] = []
        body = self._prefixes.marked(chat_body(request, warnings.append), request.parameters)
        model = request.model
        async with open_events(self._transport, self._call({**body, "stream": True}), model) as (reply, events):
            if events is not None:
                async for chunk in self._pieces(events, reply, model, warnings):
                    yield chunk
                return
        for chunk in whole_answer(await self._read(reply, model, warnings)):
            yield chunk

    def _pieces(
        self, events: AsyncIterator[str], head: Incoming, model: str, warnings: Sequence[str]
    ) -> AsyncIterator[StreamChunk]:
        start = StreamHead(model, request_id(head.headers), {}, tuple(warnings))
        return read_message_stream(events, start, partial(self._reader.refused, head, model=model))

    async def _read(self, incoming: Incoming, model: str, warnings: Iterable[str]) -> ChatResponse:
        if (events := stray_events(incoming)) is not None:
            return await collected(self._pieces(events, incoming, model, tuple(warnings)), model)
        told = list(warnings)
        body = self._reader.read(incoming, model, told.append)
        identity, usage = request_id(incoming.headers), read_message_usage(mapping(body).get("usage"))
        with call_known(request_id=identity, usage=lambda: usage):
            response = read_message(body, model)
        return replace(response, request_id=identity, warnings=(*told, *response.warnings))

    def _call(self, body: Mapping[str, Any], betas: str = "") -> Call:
        call = replace(self._post, content=sent_json(str(body["model"]), body))
        return replace(call, headers={**call.headers, "anthropic-beta": betas}) if betas else call

    async def _models(self, **query: int | str) -> Mapping[str, Any]:
        call = replace(self._list, url=self._list.url.update_query(query))
        return mapping(self._reader.read(await self._send(call), "the list of models", lambda _: None))

    async def _send(self, outgoing: Call) -> Incoming:
        with network_errors(outgoing.url):
            return await self._transport.send(outgoing)

    def _refusal(self, incoming: Incoming, body: object, model: str) -> ModelError:
        return refusal(incoming.status, incoming.headers, body, model, PROVIDER, KEY_VARIABLE, self._clock())


def _listed(turns: Any) -> list[Any]:
    return turns if isinstance(turns, list) else []


def _embeds_nothing(model: str) -> InvalidRequest:
    return InvalidRequest(
        f"{model}: Anthropic has no embedding models: name one of another provider, such as "
        "openai/text-embedding-3-small or @cf/baai/bge-m3"
    )
