"""The endpoints that a model answers, called at once or from a line of a batch.

Shapes: the official client's types (``openai/types``) of 2026-11.
"""

from __future__ import annotations

import base64
import math
import struct
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from llmdo.backends.backend import Backend
from llmdo.backends.errors import CallTimeout, ContextOverflow, InvalidRequest, ModelError, ModelNotFound, Retryable
from llmdo.backends.responses_api.response_object import response_object
from llmdo.backends.usage import Usage
from llmdo.local.ai.answering import begin_stream, embed_all, event_stream, in_flight
from llmdo.local.ai.catalogue import EMBEDDINGS, TEXT_GENERATION, LocalModel
from llmdo.local.ai.inputs import chat_request, embed_request, prompts_of, responses_request
from llmdo.local.ai.replies import chat_completion, openai_stream, openai_vectors
from llmdo.local.faults import Faults
from llmdo.local.openai.models import openai_model
from llmdo.local.stats import Stats
from llmdo.local.wire import HttpReply, OpenAIRefused, Refused, json_reply

# By class of a backend's error: OpenAI's status and code. The first match wins.
_ERRORS: tuple[tuple[type[ModelError], int, str | None], ...] = (
    (ContextOverflow, 400, "context_length_exceeded"),
    (ModelNotFound, 404, "model_not_found"),
    (InvalidRequest, 400, None),
    (CallTimeout, 408, None),
    (Retryable, 429, "rate_limit_exceeded"),
    (ModelError, 500, None),
)
_MOST_TOKENS = 16_384  # of an answer without a limit, where the model's context has room for it


class Endpoints:
    """Answers bodies by the backend, under the faults that strike them, and counts what was paid."""

    def __init__(self, backend: Backend, models: Mapping[str, LocalModel], faults: Faults, stats: Stats) -> None:
        self._backend = backend
        self._models = models
        self._faults = faults
        self._stats = stats
        self.by_path: dict[str, tuple[str, str, Callable[[dict[str, Any], LocalModel], Awaitable[HttpReply]]]] = {
            "/v1/chat/completions": (TEXT_GENERATION, "messages", self._chat),
            "/v1/completions": (TEXT_GENERATION, "prompt", self._complete),
            "/v1/embeddings": (EMBEDDINGS, "input", self._embed),
            "/v1/responses": (TEXT_GENERATION, "input", self._respond),
        }

    async def answer(
        self,
        endpoint: str,
        body: dict[str, Any],
        texts: tuple[str, ...],
        line: str | None,
        batch: Literal["row"] | None = None,
    ) -> HttpReply:
        """The reply to a body; ``line`` is what the statistics count it under, ``texts`` what a fault can match, too.

        Raises OpenAIRefused.
        """
        task, needed, by = self.by_path[endpoint]
        model = openai_model(self._models, body.get("model"), task)
        if needed not in body:
            raise OpenAIRefused(400, f"Missing required parameter: '{needed}'.", "missing_required_parameter", needed)
        prompts = prompts_of(body)

        async def work() -> HttpReply:
            reply = await by(body, model)
            self._stats.paid(prompts, line)
            return reply

        try:
            with self._stats.flight():
                reply = await self._faults.under("openai", (*texts, *prompts), work, batch)
        except ModelError as error:
            status, code = next((s, c) for kind, s, c in _ERRORS if isinstance(error, kind))
            raise OpenAIRefused(status, error.message, code) from error
        except Refused as refused:  # Workers AI's words
            raise OpenAIRefused(400, refused.message.rpartition("Error: ")[2], "invalid_value", needed) from refused
        if reply.pieces:
            reply.pieces = in_flight(self._stats, reply.pieces)
        return reply

    async def _chat(self, body: dict[str, Any], model: LocalModel) -> HttpReply:
        chat = chat_request(_limited(body, model), model)
        if body.get("stream"):
            with_usage = bool((body.get("stream_options") or {}).get("include_usage"))
            pieces = openai_stream(
                await begin_stream(self._backend, chat), model, with_usage=with_usage, count=_chat_usage
            )
            return event_stream(pieces)
        answer = await self._backend.execute(chat)
        completion = chat_completion(answer, model)
        completion["choices"][0]["message"] |= {"refusal": None, "annotations": []}
        usage = _chat_usage(answer.usage, model)
        return json_reply({**completion, "usage": usage, "service_tier": _tier(body), "system_fingerprint": None})

    async def _complete(self, body: dict[str, Any], model: LocalModel) -> HttpReply:
        if body.get("stream"):
            raise OpenAIRefused(400, "Streams of completions are not served here.", "unsupported_value", "stream")
        given = body["prompt"]
        prompts = given if isinstance(given, list) else [given]
        chats = [chat_request(_limited({**body, "prompt": prompt}, model), model) for prompt in prompts]
        answers = [await self._backend.execute(chat) for chat in chats]
        usage = Usage(sum(one.usage.input_tokens for one in answers), sum(one.usage.output_tokens for one in answers))
        choices = [
            {"index": index, "text": one.text, "finish_reason": one.finish_reason, "logprobs": None}
            for index, one in enumerate(answers)
        ]
        head = {"id": f"cmpl-{uuid.uuid4().hex}", "object": "text_completion", "created": int(time.time())}
        return json_reply({**head, "model": model.name, "choices": choices, "usage": _chat_usage(usage, model)})

    async def _respond(self, body: dict[str, Any], model: LocalModel) -> HttpReply:
        if body.get("stream") or body.get("background"):
            raise OpenAIRefused(400, "Only plain responses are served here.", "unsupported_value", "stream")
        limit = {"max_output_tokens": body.get("max_output_tokens") or _limit(model)}
        answer = await self._backend.execute(responses_request({**body, **limit}, model))
        fields = response_object(replace(answer, model=model.name), f"resp_{uuid.uuid4().hex}", body)
        return json_reply({**fields, "created_at": int(time.time()), "service_tier": _tier(body)})

    async def _embed(self, body: dict[str, Any], model: LocalModel) -> HttpReply:
        response = await embed_all(self._backend, embed_request(body, model, ("input",)))
        size = body.get("dimensions")
        if size is not None:
            if not isinstance(size, int) or not 1 <= size <= len(response.vectors[0]):
                raise OpenAIRefused(400, f"Invalid value for 'dimensions' = {size}.", "invalid_value", "dimensions")
            response = replace(response, vectors=tuple(_shortened(vector, size) for vector in response.vectors))
        listed = openai_vectors(response, model)
        if body.get("encoding_format") == "base64":
            for item in listed["data"]:
                vector = item["embedding"]
                item["embedding"] = base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
        return json_reply(listed)


def _chat_usage(usage: Usage, _: LocalModel) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.input_tokens + usage.output_tokens,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def _limit(model: LocalModel) -> int:
    return min(_MOST_TOKENS, model.context_tokens // 8)


def _limited(body: Mapping[str, Any], model: LocalModel) -> dict[str, Any]:
    given = (body.get(name) for name in ("max_completion_tokens", "max_tokens"))
    return {**body, "max_completion_tokens": next((one for one in given if one is not None), _limit(model))}


def _tier(body: Mapping[str, Any]) -> str:
    tier = body.get("service_tier")
    return tier if tier in ("flex", "priority") else "default"


def _shortened(vector: Sequence[float], size: int) -> tuple[float, ...]:
    length = math.hypot(*vector[:size]) or 1.0
    return tuple(number / length for number in vector[:size])
