"""The REST API of Workers AI: native runs, batches, the OpenAI-compatible routes, the list of models; and AI Gateway.

Shapes: developers.cloudflare.com/workers-ai (models' schemas, configuration/open-ai-compatibility, platform/errors).
The OpenAI routes answer without Cloudflare's envelope; their errors come in it, as on the real service.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import unquote

from llmdo.backends.backend import Backend
from llmdo.backends.errors import CallTimeout, ContextOverflow, InvalidRequest, ModelError, ModelNotFound, Retryable
from llmdo.backends.responses_api.response_object import response_object
from llmdo.local.ai.answering import begin_stream, embed_all, event_stream, in_flight
from llmdo.local.ai.batches import BatchStore
from llmdo.local.ai.catalogue import EMBEDDINGS, TEXT_GENERATION, LocalModel
from llmdo.local.ai.gateway import HEADER as GATEWAY_HEADER
from llmdo.local.ai.gateway import Gateways
from llmdo.local.ai.inputs import bad_input, chat_request, embed_request, json_body, prompts_of, responses_request
from llmdo.local.ai.replies import (
    chat_completion,
    native_chat,
    native_stream,
    native_vectors,
    openai_stream,
    openai_vectors,
    usage_of,
)
from llmdo.local.faults import Faults
from llmdo.local.stats import Stats
from llmdo.local.wire import HttpCall, HttpReply, Refused, json_reply, no_route, page_of, success

LINE_HEADER = "x-llmdo-line"
# By class of a backend's error: Workers AI's status and code. The first match wins.
_ERRORS: tuple[tuple[type[ModelError], int, int], ...] = (
    (ContextOverflow, 400, 5021),
    (ModelNotFound, 400, 5007),
    (InvalidRequest, 400, 5006),
    (CallTimeout, 408, 3046),
    (Retryable, 429, 3040),
    (ModelError, 500, 5001),
)
_Answer = Callable[[dict[str, Any], LocalModel], Awaitable[HttpReply]]


class ModelsApi:
    """Answers calls below ``/accounts/{account}/ai``."""

    def __init__(self, backend: Backend, models: Mapping[str, LocalModel], faults: Faults, stats: Stats) -> None:
        self._backend = backend
        self._models = models
        self._faults = faults
        self._stats = stats
        self._gateways = Gateways()
        self._batches = BatchStore(self._item)
        self._openai: dict[tuple[str, ...], tuple[str, _Answer]] = {
            ("chat", "completions"): (TEXT_GENERATION, self._chat_openai),
            ("embeddings",): (EMBEDDINGS, self._embed_openai),
            ("responses",): (TEXT_GENERATION, self._respond_openai),
        }

    async def answer(self, call: HttpCall, rest: list[str], gateway: str = "") -> HttpReply:
        """``rest``: the path below ``ai``, in parts that are still encoded; ``gateway``: the one of the address.

        Raises Refused.
        """
        if call.method == "GET" and rest == ["v1", "models"]:
            return await self._faults.under("ai", (call.target,), self._list_openai)
        if call.method == "GET" and rest == ["models", "search"]:
            return await self._search(call)
        if call.method == "GET" and rest == ["models", "schema"]:
            return success(self._find(call.parameter("model"), None).schema())
        gateway = gateway or call.headers.get(GATEWAY_HEADER, "")
        if call.method == "POST" and gateway:
            return await self._gateways.through(call, gateway, lambda: self._post(call, rest))
        return await self._post(call, rest)

    async def _post(self, call: HttpCall, rest: list[str]) -> HttpReply:
        head, tail = rest[0] if rest else "", rest[1:]
        if call.method != "POST":
            raise no_route(call)
        if head == "v1" and tuple(tail) in self._openai:
            task, answer = self._openai[tuple(tail)]
            body = json_body(call)
            return await self._call(call, body, self._find(str(body.get("model") or ""), task), answer)
        if rest == ["run"]:
            body = json_body(call)
            model, given = self._find(str(body.get("model") or ""), None), body.get("input")
            if GATEWAY_HEADER not in call.headers or not isinstance(given, dict):
                raise bad_input(f"Workers AI models need an object as 'input' and the header {GATEWAY_HEADER} here")
            return await self._call(call, given, model, self._run)
        # The real router takes an encoded slash for a part of a name, and finds no route.
        if head == "run" and tail and not any("%2f" in part.lower() for part in tail):
            body, model = json_body(call), self._find(unquote("/".join(tail)), None)
            if body.keys() == {"request_id"} or (call.parameter("queueRequest") == "true" and "requests" in body):
                # By this mark a fault can match one of the two.
                texts = (call.target, "#batch-submit" if "requests" in body else "#batch-poll")
                return await self._faults.under("ai", texts, lambda: self._queue(call, body, model))
            return await self._call(call, body, model, self._run)
        raise no_route(call)

    async def _queue(self, call: HttpCall, body: dict[str, Any], model: LocalModel) -> HttpReply:
        if "requests" in body:
            reply = self._batches.submit(body, model, len(call.body))
            self._stats.batch("submitted")
            return reply
        self._stats.batch("polled")
        return self._batches.poll(body["request_id"], model)

    async def _item(self, body: dict[str, Any], model: LocalModel) -> HttpReply:
        """One request of a batch; a fault can match its prompt or ``#batch-item``."""
        with self._stats.flight():
            return await self._paid(body, model, self._run, f"/ai/run/{model.name}#batch-item", None)

    async def _call(self, call: HttpCall, body: dict[str, Any], model: LocalModel, answer: _Answer) -> HttpReply:
        with self._stats.flight():
            reply = await self._paid(body, model, answer, call.target, call.headers.get(LINE_HEADER))
        reply.headers.setdefault("cf-ai-req-id", str(uuid.uuid4()))
        if reply.pieces:
            reply.pieces = in_flight(self._stats, reply.pieces)
        return reply

    async def _paid(
        self, body: dict[str, Any], model: LocalModel, answer: _Answer, target: str, line: str | None
    ) -> HttpReply:
        """Answers one request, under a fault that strikes it, and counts it as paid. Raises Refused."""
        prompts = prompts_of(body)
        named = line or body.get("custom_id")

        async def work() -> HttpReply:
            reply = await answer(body, model)
            self._stats.paid(prompts, str(named) if named else None)
            return reply

        try:
            return await self._faults.under("ai", (target, *prompts), work)
        except ModelError as error:
            status, code = next((s, c) for kind, s, c in _ERRORS if isinstance(error, kind))
            raise Refused(status, code, error.message) from error

    async def _run(self, body: dict[str, Any], model: LocalModel) -> HttpReply:
        if model.task == EMBEDDINGS:
            response = await embed_all(self._backend, embed_request(body, model, ("text", "queries", "documents")))
            reply = success(native_vectors(response, str(body.get("pooling", "mean"))))
            return _metered(reply, model.neurons(response.usage.input_tokens, 0))
        if model.answer is not None:
            result = model.answer(body, model.name)
            return (
                HttpReply(200, result, {"Content-Type": "image/png"}) if isinstance(result, bytes) else success(result)
            )
        chat = chat_request(body, model)
        if body.get("stream"):
            return event_stream(native_stream(await begin_stream(self._backend, chat), model))
        answer = await self._backend.execute(chat)
        shape = chat_completion if model.openai_shape else native_chat
        return _metered(success(shape(answer, model)), usage_of(answer.usage, model)["neurons"])

    async def _chat_openai(self, body: dict[str, Any], model: LocalModel) -> HttpReply:
        chat = chat_request(body, model)
        if body.get("stream"):
            with_usage = bool((body.get("stream_options") or {}).get("include_usage"))
            return event_stream(openai_stream(await begin_stream(self._backend, chat), model, with_usage=with_usage))
        return json_reply(chat_completion(await self._backend.execute(chat), model))

    async def _respond_openai(self, body: dict[str, Any], model: LocalModel) -> HttpReply:
        """Of Cloudflare's own models only gpt-oss is documented to have this route; what others answer there is not."""
        if "gpt-oss" not in model.name and model.is_own:
            raise Refused(400, 5007, f"AiError: AiError: No such model {model.name} or task")
        answer = await self._backend.execute(responses_request(body, model))
        fields = response_object(replace(answer, model=model.name), f"resp_{uuid.uuid4().hex}", body)
        return json_reply({**fields, "created_at": int(time.time())})

    async def _embed_openai(self, body: dict[str, Any], model: LocalModel) -> HttpReply:
        return json_reply(openai_vectors(await embed_all(self._backend, embed_request(body, model, ("input",))), model))

    async def _list_openai(self) -> HttpReply:
        listed = [
            {"id": name, "object": "model", "created": 1735689600, "owned_by": name.split("/")[1]}
            for name in self._models
        ]
        return json_reply({"object": "list", "data": listed})

    async def _search(self, call: HttpCall) -> HttpReply:
        words, task = call.parameter("search").lower(), call.parameter("task")
        found = [
            model.as_json()
            for model in self._models.values()
            if model.is_own and words in f"{model.name} {model.description}".lower() and task in ("", model.task)
        ]
        return success(**page_of(found, call))

    def _find(self, name: str, task: str | None) -> LocalModel:
        model = self._models.get(name)
        if model is None or (task is not None and model.task != task):
            raise Refused(400, 5007, f"AiError: AiError: No such model {name} or task")
        return model


def _metered(reply: HttpReply, neurons: float) -> HttpReply:
    reply.headers["cf-ai-neurons"] = f"{neurons:g}"
    return reply
