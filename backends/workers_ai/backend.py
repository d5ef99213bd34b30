"""Workers AI over its REST API: natively by ``/ai/run/{model}``, which every model has, and by the OpenAI-compatible
route where a model has OpenAI's input.

The official client is not used: it percent-encodes the model's name, which the API does not route, and repeats calls
on errors that cannot go away.
"""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import Any

import pydantic_core

from llmdo.backends.backend import BatchLimits, naming_provider
from llmdo.backends.errors import BadReply, BatchUnclear, ContextOverflow, InvalidRequest, ModelError, call_known
from llmdo.backends.http.client import Incoming, Transport
from llmdo.backends.http.reply_events import open_events, stray_events
from llmdo.backends.json_mode.answers import check_schema, check_schema_now, in_format, wants_json
from llmdo.backends.limits.prefixes import prefix_key
from llmdo.backends.limits.retry import CALL_TIMEOUT_S
from llmdo.backends.listing import deprecation, kept_models
from llmdo.backends.openai.raw import raw_warnings
from llmdo.backends.openai.shapes import answering_model, read_usage, read_vectors
from llmdo.backends.openai.stream import read_stream
from llmdo.backends.openai.vectors import read_vectors_json
from llmdo.backends.requests import BatchPlace, ChatRequest, EmbedRequest, RawRequest, Request
from llmdo.backends.responses import BatchState, ChatResponse, EmbedResponse, ModelInfo, RawResponse, StreamChunk
from llmdo.backends.streams import collected, whole_answer, with_errors
from llmdo.backends.workers_ai import models
from llmdo.backends.workers_ai.api import Api
from llmdo.backends.workers_ai.batch import LIMITS, batch_content, batch_name, batch_state, share_of_batch
from llmdo.backends.workers_ai.catalogue import model_info
from llmdo.backends.workers_ai.errors import PROVIDER
from llmdo.backends.workers_ai.models import Shape
from llmdo.backends.workers_ai.requests import body_of, chat_body, embed_body, lower_limit, raw_body
from llmdo.backends.workers_ai.shapes import Reply, read_chat
from llmdo.backends.workers_ai.unified import unified
from llmdo.settings.environment import AiGateway, CloudflareAccount, ai_gateway, cloudflare_account

PAGE = 50  # models a page of the list

# What both shapes of input call by the same name, so that a model of unknown shape need not be looked up for it.
_COMMON = frozenset(
    "max_tokens max_completion_tokens temperature top_p seed frequency_penalty presence_penalty stream".split()
)


def open_backend(gateway: str | None = None, timeout_s: float = CALL_TIMEOUT_S) -> WorkersAI:
    """The environment's account, by this AI Gateway or the environment's. Raises MissingSettings."""
    account, by, listed = cloudflare_account(), ai_gateway(gateway), kept_models(PROVIDER)
    return WorkersAI(account, gateway=by, listed=listed, timeout_s=timeout_s)


class WorkersAI:
    """See Backend and BatchBackend."""

    name = PROVIDER

    def __init__(
        self,
        account: CloudflareAccount,
        transport: Transport | None = None,
        clock: Callable[[], float] = time.time,
        gateway: AiGateway | None = None,
        listed: Iterable[ModelInfo] = (),
        timeout_s: float = CALL_TIMEOUT_S,
    ) -> None:
        self._api = Api(account, gateway, transport, clock, timeout_s)
        self._others = unified(account, gateway, transport, clock, timeout_s)
        self._clock = clock
        self._catalogue = _by_name(listed)
        self._shapes: dict[str, Shape] = {}
        self._looking_up = asyncio.Lock()

    @naming_provider
    async def execute(self, request: ChatRequest) -> ChatResponse:
        """Answers a conversation.

        Where only our default of max_tokens makes the request too long for the model's context window, the call is made
        again with what fits. See in_format for JSON mode.
        """
        if models.is_others(request.model):
            return await self._others.execute(request)
        return await in_format(request, lambda asked, again: self._answer(asked, fresh=again), PROVIDER, 5024)

    def execute_stream(self, request: ChatRequest) -> AsyncIterator[StreamChunk]:
        """Answers a conversation piece by piece; in JSON mode, which has no streams, in one piece."""
        if models.is_others(request.model):
            return self._others.execute_stream(request)
        return with_errors(self._chunks(request), self.name)

    @naming_provider
    async def embed(self, request: EmbedRequest) -> EmbedResponse:
        """Embeds at most ``max_texts`` texts; an empty text is the service's to refuse."""
        if models.is_others(request.model):
            return await self._others.embed(request)
        model, warnings = request.model, self._warnings(request.model)
        body = embed_body(request, warnings.append)
        outgoing = self._api.call(model, body, "native", about=request.request_id, fresh=False)
        reply = self._api.read(await self._api.send(outgoing), model, read_vectors_json)
        answered, substituted = answering_model(reply.result, model, native=True)
        with reply.reading():
            vectors = read_vectors(reply.result, model, len(request.texts), reply.neurons)
        return EmbedResponse(
            vectors=vectors,
            usage=read_usage(reply.result, reply.neurons),
            model=answered,
            request_id=reply.request_id,
            warnings=(*warnings, *reply.warnings, *substituted),
            details=reply.details,
        )

    @naming_provider
    async def run(self, request: RawRequest) -> RawResponse:
        """Passes a model's own input on; images and audio come back as ``{"content_type": …, "base64": …}``.

        Images and sounds go in as base64, whatever the model takes: see raw_body.
        """
        if models.is_others(request.model):
            return await self._others.run(request)
        model = request.model
        outgoing = self._api.call(model, raw_body(request), "native", about=request.request_id, fresh=False)
        reply = self._raw(await self._api.send(outgoing), model)
        answered, substituted = answering_model(reply.result, model, native=True)
        with reply.reading():
            odd = raw_warnings(reply.result, model)
        return RawResponse(
            result=reply.result,
            usage=read_usage(reply.result, reply.neurons),
            model=answered,
            request_id=reply.request_id,
            warnings=(*self._warnings(model), *reply.warnings, *odd, *substituted),
            details=reply.details,
        )

    def check(self, request: Request) -> None:
        """Builds the call. Raises InvalidRequest, and ModelNotFound for what is not a model's name."""
        with call_known(provider=PROVIDER):
            if models.is_others(request.model):
                self._others.check(request)
                return
            if isinstance(request, ChatRequest):
                _must_chat(request.model)
                check_schema_now(request.parameters.get("response_format"), request.model, PROVIDER)
            shape = models.shape_of(request.model) or "native"
            self._api.call(request.model, body_of(request, shape), shape, about=request.request_id, fresh=False)

    @naming_provider
    async def list_models(self) -> list[ModelInfo]:
        """All models of the account, deprecated ones too; a page that is not full is the last one."""
        listed: list[ModelInfo] = []
        for page in range(1, 1000):
            asked = self._api.get("models/search", page=page, per_page=PAGE, include_deprecated="true")
            entries = (await self._api.ask(asked, "the list of models")).result
            if not isinstance(entries, list):
                raise BadReply("/ai/models/search sent no list: check CLOUDFLARE_BASE_URL")
            listed += [model_info(entry) for entry in entries if isinstance(entry, dict) and entry.get("name")]
            if len(entries) < PAGE:
                break
        self._catalogue = _by_name(listed)
        return listed

    def max_texts(self, model: str) -> int:
        """See models.MAX_TEXTS; 1 for a model that embeds nothing."""
        return models.max_texts(model)

    @naming_provider
    async def health(self) -> None:
        """Asks for one entry of the list of models."""
        await self._api.ask(self._api.get("models/search", page=1, per_page=1), "the list of models")

    async def aclose(self) -> None:
        """Closes the connections."""
        await self._api.aclose()
        await self._others.aclose()

    def takes_batches(self, model: str) -> bool:
        """Whether the asynchronous batch API takes this model, by the catalogue where it was read."""
        info = self._catalogue.get(model)
        return "batch" in info.capabilities if info else models.takes_batches(model)

    def batch_limits(self, model: str) -> BatchLimits:  # noqa: ARG002 - of BatchBackend, as below
        """The same for all models."""
        return LIMITS

    @naming_provider
    async def batch_share(self, request: Request) -> float:
        """The part of 10 MB that a request takes."""
        if isinstance(request, ChatRequest):
            await check_schema(request.parameters.get("response_format"), request.model, PROVIDER)
        return share_of_batch(request, models.shape_of(request.model) or "native")

    @naming_provider
    async def submit_batch(self, model: str, requests: Sequence[Request], nonce: str = "") -> str:  # noqa: ARG002
        """Hands requests over; below 10 MB in all, else InvalidRequest.

        A LineError means that the model, or this input, is not for batches: ask for each alone. The API has no place
        for a nonce that could be looked for.
        """
        content = batch_content(model, requests, models.shape_of(model) or "native")
        return batch_name(await self._api.ask(self._api.queue(model, content), model), model)

    @naming_provider
    async def poll_batch(
        self, model: str, batch: str, requests: Sequence[Request], places: Sequence[BatchPlace] = ()
    ) -> BatchState:
        """Looks whether a batch is done. A Retryable error: poll again; a LineError: the batch is unknown."""
        content = pydantic_core.to_json({"request_id": batch})
        reply = await self._api.ask(self._api.queue(model, content), model)
        return batch_state(reply, model, requests, self._clock(), places)

    @naming_provider
    async def find_batch(self, model: str, nonce: str, count: int, since: float) -> str | None:  # noqa: ARG002
        """There is no list of batches."""
        raise BatchUnclear(f"{model}: Workers AI cannot say whether a batch was submitted, as it has no list of them")

    @naming_provider
    async def cancel_batch(self, model: str, batch: str) -> None:  # noqa: ARG002
        """There is no way to."""
        raise InvalidRequest(f"{model}: Workers AI cannot cancel a batch")

    async def _answer(self, request: ChatRequest, *, fresh: bool = False) -> ChatResponse:
        shape, body, warnings = await self._prepared(request)
        try:
            response = await self._chat(request, body, shape, fresh=fresh)
        except ContextOverflow as error:
            lower_limit(body, request, error, warnings)
            response = await self._chat(request, body, shape, fresh=fresh)
        if request.parameters.get("tool_choice") == "required" and not response.tool_calls:
            warnings.append("tool_choice was required, and the model called no tool")
        return replace(response, warnings=(*warnings, *response.warnings)) if warnings else response

    async def _prepared(
        self, request: ChatRequest, *, streams: bool = False
    ) -> tuple[Shape, dict[str, Any], list[str]]:
        _must_chat(request.model)
        await check_schema(request.parameters.get("response_format"), request.model, PROVIDER)
        shape = models.shape_of(request.model)
        if shape is None:
            plain = not streams and request.parameters.keys() <= _COMMON
            shape = "native" if plain else await self._look_up(request.model)
        warnings = self._warnings(request.model)
        return shape, chat_body(request, shape, warnings.append), warnings

    async def _look_up(self, model: str) -> Shape:
        """The shape of a model's input by its schema; native where that cannot be had, as every model is called so."""
        async with self._looking_up:
            if model not in self._shapes:
                try:
                    schemas = (await self._api.ask(self._api.get("models/schema", model=model), model)).result
                except ModelError:
                    schemas = None  # the call that needs it will say what is wrong
                self._shapes[model] = models.shape_of_schema(
                    schemas.get("input") if isinstance(schemas, dict) else None
                )
        return self._shapes[model]

    async def _chat(self, request: ChatRequest, body: Mapping[str, Any], shape: Shape, *, fresh: bool) -> ChatResponse:
        model, limit = request.model, body["max_tokens"]
        how = {"about": request.request_id, "session": prefix_key(request)}
        whole = await self._api.send(self._api.call(model, body, shape, fresh=fresh, **how))
        events = stray_events(whole)
        if events is None:
            return read_chat(self._api.read(whole, model), model, limit)
        return await collected(self._pieces(events, whole, model, limit), model)

    def _pieces(
        self, events: AsyncIterator[str], head: Incoming, model: str, limit: int, warnings: Sequence[str] = ()
    ) -> AsyncIterator[StreamChunk]:
        start = self._api.stream_head(head, model, limit, warnings)
        return read_stream(events, start, partial(self._api.reader.refused, head, model=model))

    async def _chunks(self, request: ChatRequest) -> AsyncGenerator[StreamChunk, None]:
        if wants_json(request.parameters.get("response_format")):
            for chunk in whole_answer(await self.execute(request)):
                yield chunk
            return
        shape, body, warnings = await self._prepared(request, streams=True)
        body |= {"stream": True} if shape == "native" else {"stream": True, "stream_options": {"include_usage": True}}
        for last in (False, True):
            try:
                async with aclosing(self._stream(request, body, shape, warnings)) as chunks:
                    async for chunk in chunks:
                        yield chunk
                return
            except ContextOverflow as error:
                if last:
                    raise
                lower_limit(body, request, error, warnings)

    async def _stream(
        self, request: ChatRequest, body: Mapping[str, Any], shape: Shape, warnings: Sequence[str]
    ) -> AsyncGenerator[StreamChunk, None]:
        model = request.model
        how = {"about": request.request_id, "session": prefix_key(request)}
        outgoing = self._api.call(model, body, shape, fresh=False, **how)
        async with open_events(self._api.transport, outgoing, model) as (whole, events):
            if events is not None:
                async for chunk in self._pieces(events, whole, model, body["max_tokens"], warnings):
                    yield chunk
                return
        reply = self._api.read(whole, model)
        # Of a model that ignores `stream` the result can be empty, and only a plain call answers.
        response = read_chat(reply, model, body["max_tokens"]) if reply.result else await self.execute(request)
        for chunk in whole_answer(replace(response, warnings=(*warnings, *response.warnings))):
            yield chunk

    def _raw(self, incoming: Incoming, model: str) -> Reply:
        kind = incoming.content_type
        if not incoming.ok or not incoming.content or "json" in kind or kind == "text/html":
            return self._api.read(incoming, model)
        if kind.startswith("text/"):
            return self._api.reply(incoming, incoming.content.decode("utf-8", "replace"))
        encoded = base64.b64encode(incoming.content).decode("ascii")
        return self._api.reply(incoming, {"content_type": kind, "base64": encoded})

    def _warnings(self, model: str) -> list[str]:
        warning = deprecation(self._catalogue.get(model), self._clock())
        return [warning] if warning else []


def _must_chat(model: str) -> None:
    if models.takes_own_input(model):
        raise InvalidRequest(f"{model} does not chat: name a text generation model, or send this model's own input")


def _by_name(listed: Iterable[ModelInfo]) -> Mapping[str, ModelInfo]:
    return {info.name.removeprefix(f"{PROVIDER}/"): info for info in listed}
