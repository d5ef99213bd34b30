"""OpenAI's API over HTTP, and any server that speaks it: vLLM, llama.cpp, Ollama, LM Studio, proxies.

Endpoints: chat/completions, embeddings, completions, responses, moderations, models below the base URL
(platform.openai.com/docs/api-reference).
"""

from __future__ import annotations

import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from yarl import URL

from llmdo.backends.backend import naming_provider
from llmdo.backends.errors import BadReply, InvalidRequest, ModelError, ModelNotFound, call_known
from llmdo.backends.http.base_url import base_url
from llmdo.backends.http.client import Call, Incoming, Network, Transport
from llmdo.backends.http.network_errors import network_errors
from llmdo.backends.http.reply_events import open_events, stray_events
from llmdo.backends.http.reply_json import mapping
from llmdo.backends.json_mode.answers import in_format, wants_json
from llmdo.backends.limits.prefixes import prefix_key
from llmdo.backends.limits.retry import CALL_TIMEOUT_S
from llmdo.backends.openai.errors import is_refusal, refusal
from llmdo.backends.openai.errors import request_id as _request_id
from llmdo.backends.openai.models import model_info
from llmdo.backends.openai.raw import check_answered_now, raw_warnings, read_response, without_bad_vectors
from llmdo.backends.openai.replies import ReplyReader
from llmdo.backends.openai.requests import COMPATIBLE_DIALECT, OPENAI_DIALECT, chat_body
from llmdo.backends.openai.shapes import are_packed, read_completion, read_usage, read_vectors
from llmdo.backends.openai.stream import StreamHead, read_stream
from llmdo.backends.openai.vectors import read_vectors_json
from llmdo.backends.parameters import Dialect, translate
from llmdo.backends.requests import ChatRequest, EmbedRequest, RawRequest, Request, sent_json
from llmdo.backends.responses import ChatResponse, EmbedResponse, ModelInfo, RawResponse, StreamChunk
from llmdo.backends.responses_api.chat_request import as_chat
from llmdo.backends.responses_api.input_items import check_file_parts
from llmdo.backends.responses_api.native import checked_response
from llmdo.backends.responses_api.response_object import as_for_responses, response_object
from llmdo.backends.streams import collected, whole_answer, with_errors
from llmdo.settings.environment import OPENAI_API, OpenAIAccess, openai_access
from llmdo.settings.secrets import header_values

# OpenAI takes 2,048 texts with 300,000 tokens in all; some servers have less patience.
MAX_TEXTS = 256
# Routes whose bodies are passed on as they are: what llmdo has no form of its own for.
RAW_PATHS = ("embeddings", "completions", "responses", "moderations")
# Embedding models by name: the API does not list what a model does.
_EMBEDS = re.compile(
    r"embed|(?:^|[/-])(?:labse|(?:bge|e5|gte|gtr-t5|all-minilm|all-mpnet|multi-qa|paraphrase|sentence-t5|voyage)-(?!.*rerank))",
    re.IGNORECASE,
)
EMBEDDINGS_DIALECT = Dialect(known=frozenset({"dimensions", "encoding_format", "user"}))
# How a service answers a route that it does not have, or a model that has only chats; a model that there is not is
# not found by a chat either.
_NO_ROUTE = frozenset({404, 405, 501})
# How a service refuses an encoding that it does not know.
_REFUSED = frozenset({400, 422})
_OF_ENCODING = re.compile(r"encoding.?format|base64", re.IGNORECASE)
_CLIENT_ID = re.compile(r"[!-~]{1,512}")  # what X-Client-Request-Id may hold


@dataclass(frozen=True, slots=True)
class Service:
    """A service that speaks OpenAI's API.

    Attributes:
        name: of the provider.
        url: the base URL: see llmdo.backends.http.base_url.
        headers: sent with every call, by names in lower case; they hold the key.
        key: the variable that holds the key, for errors.
        dialect: the chat parameters that it takes.
        is_openai: it is OpenAI itself: max_completion_tokens for all models, and a request id of ours.
        health: the URL that ``health`` asks; by default the list of models.
        details: response header → its name in a response's details.
    """

    name: str
    url: str = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    key: str
    dialect: Dialect = COMPATIBLE_DIALECT
    is_openai: bool = False
    health: str = ""
    details: Mapping[str, str] = field(default_factory=dict)


def open_backend(headers: Sequence[str] = (), timeout_s: float = CALL_TIMEOUT_S) -> OpenAI:
    """The service that OPENAI_BASE_URL names, without batches; see openai_service."""
    return OpenAI(*openai_service(headers, timeout_s))


def openai_service(headers: Sequence[str], timeout_s: float) -> tuple[Service, Network]:
    """The service that OPENAI_BASE_URL names; ``headers``: see header_values. Raises MissingSettings."""
    access = openai_access()
    keys = {"authorization": f"Bearer {access.key}"} if access.key else {}
    keys |= {name: value for name, value in _accounts(access) if value}
    keys |= header_values(headers)
    service = Service("openai", access.base_url, keys, "OPENAI_API_KEY")
    itself = access.base_url == OPENAI_API
    service = replace(service, dialect=OPENAI_DIALECT, is_openai=True) if itself else service
    return service, Network(base_url(service.name, service.url).root, timeout_s)


def _accounts(access: OpenAIAccess) -> Iterator[tuple[str, str]]:
    """As OpenAI's own client sends them."""
    yield "openai-organization", access.organization
    yield "openai-project", access.project


class OpenAI:
    """See Backend."""

    def __init__(
        self,
        service: Service,
        transport: Transport | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.name = service.name
        self._base = base = base_url(service.name, service.url)
        keys = {**service.headers, **({"authorization": base.authorization} if base.authorization else {})}
        self._service = replace(service, url=base.root, headers=keys)
        self._clock = clock
        headers = {**keys, "content-type": "application/json"}
        paths = ("chat/completions", *RAW_PATHS)  # parsing a URL is a sixth of a call's CPU time
        self._posts = {path: Call("POST", base.at(path), headers) for path in paths}
        self._transport = transport or Network(base.root)
        self._respond: set[str] = set()  # models that have answered at /v1/responses
        self._only_chats: set[str] = set()  # models that have answered a chat instead
        self._packs: dict[str, bool] = {}  # by model: whether it sends vectors in base64
        self._reader = ReplyReader("the base URL", is_refusal, self._refusal, _request_id)

    @naming_provider
    async def execute(self, request: ChatRequest) -> ChatResponse:
        """Answers a conversation; see in_format for JSON mode."""
        return await in_format(request, lambda asked, _: self._answer(asked), self.name)

    def execute_stream(self, request: ChatRequest) -> AsyncIterator[StreamChunk]:
        """Answers a conversation piece by piece, in JSON mode in one piece.

        Raises StreamError when the stream ends before its end mark.
        """
        return with_errors(self._stream(request), self.name)

    @naming_provider
    async def embed(self, request: EmbedRequest) -> EmbedResponse:
        """Embeds at most ``max_texts`` texts."""
        parameters, warnings = translate(request.parameters, EMBEDDINGS_DIALECT, request.model)
        incoming, reply = await self._embeddings(request, parameters)
        request_id = _request_id(incoming.headers)
        with self._reader.reading(incoming, reply):
            vectors = read_vectors(reply, request.model, len(request.texts))
        named = str(mapping(reply).get("model") or request.model)
        details = self._details(incoming)
        return EmbedResponse(vectors, read_usage(reply), named, request_id, warnings, details)

    @naming_provider
    async def run(self, request: RawRequest) -> RawResponse:
        """Passes the body of another route on, see RAW_PATHS. Raises InvalidRequest where the request names none.

        A service without /v1/responses, which is learnt for each model, is asked by a chat.
        """
        if request.path != "responses":
            return await self._pass_on(request)
        if request.model in self._only_chats:
            return await self._by_chat(request)
        try:
            answer = await checked_response(request, self._pass_on, self._again, read_response, self.name)
            self._respond.add(request.model)
        except ModelError as error:
            there = self._service.is_openai or request.model in self._respond
            if there or not (error.status in _NO_ROUTE or isinstance(error, ModelNotFound)):
                raise
            answer = await self._by_chat(request)
            self._only_chats.add(request.model)
        return answer

    async def _by_chat(self, request: RawRequest) -> RawResponse:
        warnings: list[str] = []
        chat = as_chat(request.input, request.model, request.request_id, warnings.append)
        check_file_parts(chat.messages)
        response = await self.execute(chat)
        return RawResponse(
            result=response_object(response, request.request_id, request.input),
            usage=response.usage,
            model=response.model,
            request_id=response.request_id,
            warnings=(*warnings, *as_for_responses(response.warnings)),
            details=response.details,
        )

    async def _again(self, request: RawRequest) -> RawResponse:
        """By a chat, since some servers ignore ``text.format`` (llama.cpp's), but have a chat's ``response_format``."""
        if self._service.is_openai:
            return await self._pass_on(request)
        try:
            return await self._by_chat(request)
        except InvalidRequest:  # it has what a chat cannot have
            return await self._pass_on(request)

    async def _pass_on(self, request: RawRequest) -> RawResponse:
        return self._read_raw(await self._send(self._raw(request)), request)

    def _read_raw(self, incoming: Incoming, request: RawRequest) -> RawResponse:
        warnings: list[str] = []
        reply = self._reader.read(incoming, request.model, warnings.append)
        request_id, named = _request_id(incoming.headers), str(mapping(reply).get("model") or request.model)
        usage = read_usage(reply)
        with self._reader.reading(incoming, reply):
            warnings += raw_warnings(reply, request.model)
            reply = without_bad_vectors(reply, request.model, warnings.append)
        return RawResponse(reply, usage, named, request_id, tuple(warnings), self._details(incoming))

    def check(self, request: Request) -> None:
        """Builds the call. Raises InvalidRequest."""
        with call_known(provider=self.name):
            if isinstance(request, ChatRequest):
                self._post("chat/completions", self._chat_body(request)[0], request.model, request.request_id)
            elif isinstance(request, RawRequest):
                self._raw(request)

    @naming_provider
    async def list_models(self) -> list[ModelInfo]:
        """All models of the service, by GET models."""
        entries = await self._get(self._base.at("models"), "the list of models")
        listed = mapping(entries).get("data", entries)
        if not isinstance(listed, list):
            raise BadReply(f"{self._service.url}/models sent no list: check the base URL")
        return [model_info(entry, self.name) for entry in listed if isinstance(entry, dict) and entry.get("id")]

    def max_texts(self, model: str) -> int:
        """See MAX_TEXTS; 1 for a model that embeds nothing, by its name."""
        return MAX_TEXTS if _EMBEDS.search(model) else 1

    @naming_provider
    async def health(self) -> None:
        """Asks for the list of models, or what the service has instead: no call is paid."""
        asked = self._service.health
        await self._get(URL(asked, encoded=True) if asked else self._base.at("models"), self.name)

    async def aclose(self) -> None:
        """Closes the connections."""
        await self._transport.aclose()

    async def _answer(self, request: ChatRequest) -> ChatResponse:
        body, warnings = self._chat_body(request)
        incoming = await self._send(self._post("chat/completions", body, request.model, request.request_id))
        return await self._completion(incoming, request.model, warnings)

    async def _embeddings(self, request: EmbedRequest, parameters: Mapping[str, Any]) -> tuple[Incoming, Any]:
        """Vectors packed in base64 have a quarter of the bytes; a model that refuses them is asked for numbers instead,
        and from then on.
        """

        async def ask(encoding: str) -> tuple[Incoming, Any]:
            body = {"model": model, "input": list(request.texts), "encoding_format": encoding, **parameters}
            incoming = await self._send(self._post("embeddings", body, model, request.request_id))
            return incoming, self._reader.read(incoming, model, lambda _: None, read_vectors_json)

        model = request.model
        packs = self._packs.get(model)
        if packs is False or "encoding_format" in parameters:
            return await ask("float")
        try:
            answer = await ask("base64")
        except ModelError as error:
            if packs or not (error.status in _REFUSED or _OF_ENCODING.search(error.message)):
                raise
            answer = await ask("float")
        self._packs[model] = are_packed(answer[1])
        return answer

    async def _stream(self, request: ChatRequest) -> AsyncGenerator[StreamChunk, None]:
        if wants_json(request.parameters.get("response_format")):
            for chunk in whole_answer(await self.execute(request)):
                yield chunk
            return
        body, warnings = self._chat_body(request, stream=True)
        body = {**body, "stream": True, "stream_options": {"include_usage": True}}
        model = request.model
        outgoing = self._post("chat/completions", body, model, request.request_id)
        async with open_events(self._transport, outgoing, model) as (reply, events):
            if events is not None:
                async for chunk in self._pieces(events, reply, model, warnings):
                    yield chunk
                return
        for chunk in whole_answer(await self._completion(reply, model, warnings)):
            yield chunk

    def _pieces(
        self, events: AsyncIterator[str], head: Incoming, model: str, warnings: tuple[str, ...]
    ) -> AsyncIterator[StreamChunk]:
        start = StreamHead(model, _request_id(head.headers), self._details(head), warnings)
        return read_stream(events, start, partial(self._reader.refused, head, model=model))

    def _chat_body(self, request: ChatRequest, *, stream: bool = False) -> tuple[dict[str, Any], tuple[str, ...]]:
        service = self._service
        return chat_body(request, service.dialect, new_limit=service.is_openai, stream=stream)

    def _raw(self, request: RawRequest) -> Call:
        if request.path not in RAW_PATHS:
            raise InvalidRequest(
                f"{request.model}: {self.name} takes no input of a model's own ({', '.join(sorted(request.input))}): "
                "give prompt, messages, or text for an embedding model"
            )
        check_answered_now(request)
        return self._post(request.path, self._raw_body(request), request.model, request.request_id)

    def _raw_body(self, request: RawRequest) -> dict[str, Any]:
        key = prefix_key(request) if self._service.is_openai else ""
        return {**({"prompt_cache_key": key} if key else {}), **request.input, "model": request.model}

    async def _completion(self, incoming: Incoming, model: str, warnings: tuple[str, ...]) -> ChatResponse:
        events = stray_events(incoming)
        if events is not None:
            return await collected(self._pieces(events, incoming, model, warnings), model)
        told = list(warnings)
        body = self._reader.read(incoming, model, told.append)
        with self._reader.reading(incoming, body):
            response = read_completion(body, model)
        about, details = _request_id(incoming.headers), self._details(incoming)
        return replace(response, request_id=about, warnings=(*told, *response.warnings), details=details)

    def _post(self, path: str, body: Mapping[str, Any], model: str, request_id: str) -> Call:
        call = replace(self._posts[path], content=sent_json(model, body))
        if self._service.is_openai and _CLIENT_ID.fullmatch(request_id):
            call = replace(call, headers={**call.headers, "x-client-request-id": request_id})
        return call

    async def _get(self, url: URL, about: str) -> Any:
        incoming = await self._send(Call("GET", url, self._service.headers))
        return self._reader.read(incoming, about, lambda _: None)

    async def _send(self, outgoing: Call) -> Incoming:
        with network_errors(self._service.url):
            return await self._transport.send(outgoing)

    def _refusal(self, incoming: Incoming, body: object, model: str) -> ModelError:
        status, key = incoming.status, self._service.key
        return refusal(status, incoming.headers, body, model, self.name, key, self._clock())

    def _details(self, incoming: Incoming) -> dict[str, str]:
        wanted = self._service.details
        return {name: incoming.headers[header] for header, name in wanted.items() if header in incoming.headers}
