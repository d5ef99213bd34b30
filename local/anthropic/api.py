"""Routes of Anthropic's API below ``/anthropic``, as the official client calls them.

Any key is taken, and has batches of its own. By ``#messages.create``, ``#batches.create``, ``#batches.list`` and so on,
a fault can match one kind of call.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from shutil import rmtree
from typing import Any, Literal
from urllib.parse import unquote

from pydantic_core import from_json

from llmdo.backends.backend import Backend
from llmdo.backends.errors import ContextOverflow, InvalidRequest, ModelError, Retryable
from llmdo.backends.llama_cpp.backend import CHAT_MODEL
from llmdo.local.ai.answering import begin_stream, event_stream, in_flight
from llmdo.local.ai.api import LINE_HEADER
from llmdo.local.ai.catalogue import TEXT_GENERATION, LocalModel
from llmdo.local.ai.inputs import prompts_of
from llmdo.local.anthropic.batches import MessageBatches
from llmdo.local.anthropic.messages import chat_of, message_events, message_json
from llmdo.local.anthropic.pages import id_page
from llmdo.local.faults import Faults
from llmdo.local.settings import ANTHROPIC_BASE
from llmdo.local.stats import Stats
from llmdo.local.wire import AnthropicRefused, HttpCall, HttpReply, json_reply

# Names of real models, and their context windows.
_NAMES = {
    "claude-haiku-4-5": 200_000,
    "claude-sonnet-4-5": 200_000,
    "claude-opus-4-5": 200_000,
    "claude-sonnet-5": 1_000_000,
    "claude-haiku-5-5": 1_000_000,
    "claude-opus-5-5": 1_000_000,
}
# By class of a backend's error: the status. The first match wins.
_ERRORS: tuple[tuple[type[ModelError], int], ...] = (
    (ContextOverflow, 400),
    (InvalidRequest, 400),
    (Retryable, 529),
    (ModelError, 500),
)


def anthropic_models(*, echo: bool) -> dict[str, LocalModel]:
    """The rows by name: of the echo, which answers each by its own name, or of SmolLM2."""
    return {
        name: LocalModel(
            name,
            TEXT_GENERATION,
            "Answered on this machine.",
            name if echo else CHAT_MODEL,
            context if echo else 2048,
        )
        for name, context in _NAMES.items()
    }


class AnthropicApi:
    """Answers calls; ``clock`` returns seconds since 1970. What an earlier server left in ``folder`` is removed."""

    def __init__(
        self,
        backend: Backend,
        models: Mapping[str, LocalModel],
        faults: Faults,
        stats: Stats,
        folder: Path,
        clock: Callable[[], float],
    ) -> None:
        self._backend = backend
        self._models = models
        self._faults = faults
        self._stats = stats
        self._folder = folder
        self._clock = clock
        self._kept: dict[str, MessageBatches] = {}
        rmtree(folder, ignore_errors=True)

    async def answer(self, call: HttpCall) -> HttpReply:
        """The reply to a call, an error included."""
        try:
            scheme, _, token = call.headers.get("Authorization", "").partition(" ")
            key = call.headers.get("x-api-key") or (token if scheme == "Bearer" else "")
            if not key:
                raise AnthropicRefused(401, "x-api-key header is required")
            if not call.headers.get("anthropic-version"):
                raise AnthropicRefused(400, "anthropic-version: header is required")
            reply = await self._routed(call, key)
        except AnthropicRefused as refused:
            reply = refused.reply
        reply.headers["request-id"] = f"req_{secrets.token_hex(12)}"
        return reply

    async def message(
        self, body: Mapping[str, Any], texts: tuple[str, ...], line: str | None, batch: Literal["row"] | None = None
    ) -> HttpReply:
        """The reply to a body of the Messages API, under the faults that strike it.

        ``line`` is what the statistics count it under, ``texts`` what a fault can match, too. Raises AnthropicRefused.
        """
        prompts = prompts_of({"messages": body.get("messages")})

        async def work() -> HttpReply:
            model, chat = chat_of(body, self._models)
            if body.get("stream"):
                reply = event_stream(message_events(await begin_stream(self._backend, chat), model))
            else:
                answer = await self._backend.execute(chat)
                reply = json_reply(message_json(answer, model, "batch" if batch else "standard"))
            self._stats.paid(prompts, line)
            return reply

        try:
            with self._stats.flight():
                reply = await self._faults.under("anthropic", (*texts, *prompts), work, batch)
        except ModelError as error:
            status = next(status for kind, status in _ERRORS if isinstance(error, kind))
            raise AnthropicRefused(status, error.message) from error
        if reply.pieces:
            reply.pieces = in_flight(self._stats, reply.pieces)
        return reply

    def _of(self, key: str) -> MessageBatches:
        if key not in self._kept:
            folder = self._folder / str(len(self._kept))
            self._kept[key] = MessageBatches(folder, self.message, self._faults, self._clock)
        return self._kept[key]

    async def _routed(self, call: HttpCall, key: str) -> HttpReply:
        parts = [unquote(part) for part in call.path.removeprefix(ANTHROPIC_BASE).strip("/").split("/")]
        if call.method == "POST" and parts == ["v1", "messages"]:
            texts = call.target, "#messages.create"
            return await self.message(_json_object(call.body), texts, call.headers.get(LINE_HEADER))
        name, work = self._route(call, parts[1:] if parts[0] == "v1" else [], self._of(key))

        async def done() -> HttpReply:
            result = work()
            result = await result if isinstance(result, Awaitable) else result
            return result if isinstance(result, HttpReply) else json_reply(result)

        return await self._faults.under("anthropic", (call.target, f"#{name}"), done)

    def _route(self, call: HttpCall, parts: list[str], batches: MessageBatches) -> tuple[str, Callable[[], object]]:
        """The name of an operation, and what does it. Raises AnthropicRefused."""
        work: Callable[[], object]
        match call.method, parts:
            case "POST", ["messages", "batches"]:
                name, work = "batches.create", lambda: self._create(call, batches)
            case "GET", ["messages", "batches"]:
                name, work = "batches.list", lambda: batches.listing(call)
            case "GET", ["messages", "batches", batch]:
                name, work = "batches.retrieve", lambda: self._poll(call, batch, batches)
            case "GET", ["messages", "batches", batch, "results"]:
                name, work = "batches.results", lambda: batches.results(batch)
            case "POST", ["messages", "batches", batch, "cancel"]:
                name, work = "batches.cancel", lambda: batches.cancel(call, batch)
            case "DELETE", ["messages", "batches", batch]:
                name, work = "batches.delete", lambda: batches.delete(batch)
            case "GET", ["models"]:
                name, work = "models", lambda: id_page([self._listed(one) for one in self._models], call)
            case "GET", ["models", model]:
                name, work = "models", lambda: self._listed(model)
            case _:
                raise AnthropicRefused(404, f"Not found: {call.method} {call.path}")
        return name, work

    async def _create(self, call: HttpCall, batches: MessageBatches) -> object:
        made = await batches.create(call)
        self._stats.batch("submitted")
        return made

    def _poll(self, call: HttpCall, batch: str, batches: MessageBatches) -> object:
        self._stats.batch("polled")
        return batches.poll(call, batch)

    def _listed(self, name: str) -> object:
        row = self._models.get(name)
        if row is None:
            raise AnthropicRefused(404, f"model: {name}")
        able = ("batch", "structured_outputs")
        return {
            "id": name,
            "type": "model",
            "display_name": name.replace("-", " ").title(),
            "created_at": "2026-01-01T00:00:00Z",
            "lifecycle": "active",
            "max_input_tokens": row.context_tokens,
            "max_tokens": row.context_tokens // 4,
            "capabilities": {one: {"supported": True} for one in able},
        }


def _json_object(body: bytes) -> dict[str, Any]:
    try:
        found = from_json(body)
    except ValueError as error:
        raise AnthropicRefused(400, f"The request body is not valid JSON: {error}") from error
    if not isinstance(found, dict):
        raise AnthropicRefused(400, "The request body must be a JSON object")
    return found
