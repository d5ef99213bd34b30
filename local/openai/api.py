"""Routes of OpenAI's API below ``/openai/v1``, as the official client calls them.

Any key is taken, and has files and batches of its own. By ``#files.create``, ``#batches.create``, ``#chat.completions``
and so on, a fault can match one kind of call; a response is ``#responses``, in the background too.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from shutil import rmtree
from typing import Any
from urllib.parse import unquote

from pydantic_core import from_json

from llmdo.backends.backend import Backend
from llmdo.local.ai.api import LINE_HEADER
from llmdo.local.ai.catalogue import LocalModel
from llmdo.local.ai.inputs import prompts_of
from llmdo.local.faults import Faults
from llmdo.local.openai.background import ENDPOINT, BackgroundResponses, check_foreground
from llmdo.local.openai.batches import OpenAIBatches
from llmdo.local.openai.endpoints import Endpoints
from llmdo.local.openai.files import StoredFiles
from llmdo.local.settings import OPENAI_BASE
from llmdo.local.stats import Stats
from llmdo.local.wire import HttpCall, HttpReply, OpenAIRefused, json_reply


class OpenAIApi:
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
        self._models = models
        self._faults = faults
        self._stats = stats
        self._folder = folder
        self._clock = clock
        self._endpoints = Endpoints(backend, models, faults, stats)
        self._kept: dict[str, tuple[StoredFiles, OpenAIBatches, BackgroundResponses]] = {}
        rmtree(folder, ignore_errors=True)

    async def answer(self, call: HttpCall) -> HttpReply:
        """The reply to a call, an error included."""
        try:
            scheme, _, key = call.headers.get("Authorization", "").partition(" ")
            if scheme != "Bearer" or not key:
                message = "You didn't provide an API key. Provide it in an Authorization header (Bearer YOUR_KEY)."
                raise OpenAIRefused(401, message)
            reply = await self._routed(call, key)
        except OpenAIRefused as refused:
            reply = refused.reply
        reply.headers["x-request-id"] = f"req_{secrets.token_hex(16)}"
        return reply

    def _of(self, key: str) -> tuple[StoredFiles, OpenAIBatches, BackgroundResponses]:
        if key not in self._kept:
            files = StoredFiles(self._folder / str(len(self._kept)), self._clock)
            batches = OpenAIBatches(files, self._endpoints, self._models, self._faults, self._clock)
            responses = BackgroundResponses(self._endpoints, self._models, self._faults, self._clock)
            self._kept[key] = files, batches, responses
        return self._kept[key]

    async def _routed(self, call: HttpCall, key: str) -> HttpReply:
        path = call.path.removeprefix(OPENAI_BASE)
        endpoint = f"/v1{path}"
        if call.method == "POST" and endpoint in self._endpoints.by_path:
            name = path.strip("/").replace("/", ".")
            line, body, struck = call.headers.get(LINE_HEADER), _json_object(call.body), (call.target, f"#{name}")
            if endpoint == ENDPOINT and body.get("background"):
                return await self._in_background(body, struck, line, self._of(key)[2])
            check_foreground(body)
            return await self._endpoints.answer(endpoint, body, struck, line)
        name, work = self._route(call, [unquote(part) for part in path.strip("/").split("/")], *self._of(key))
        return await self._faults.under("openai", (call.target, f"#{name}"), work)

    async def _in_background(
        self, body: dict[str, Any], struck: tuple[str, ...], line: str | None, responses: BackgroundResponses
    ) -> HttpReply:
        async def create() -> HttpReply:
            return json_reply(responses.create(body, line))

        return await self._faults.under("openai", (*struck, *prompts_of(body)), create)

    def _route(
        self,
        call: HttpCall,
        parts: list[str],
        files: StoredFiles,
        batches: OpenAIBatches,
        responses: BackgroundResponses,
    ) -> tuple[str, Callable[[], Awaitable[HttpReply]]]:
        """The name of an operation, and what does it. Raises OpenAIRefused."""
        work: Callable[[], object]
        match call.method, parts:
            case "POST", ["files"]:
                return "files.create", lambda: self._upload(call, files)
            case "GET", ["files"]:
                name, work = "files.list", lambda: files.listing(call)
            case "GET", ["files", file]:
                name, work = "files.retrieve", lambda: files.find(file).as_json()
            case "GET", ["files", file, "content"]:
                name, work = "files.content", lambda: files.content(file)
            case "DELETE", ["files", file]:
                name, work = "files.delete", lambda: files.delete(file)
            case "POST", ["batches"]:
                name, work = "batches.create", lambda: self._create(call, batches)
            case "GET", ["batches"]:
                name, work = "batches.list", lambda: batches.listing(call)
            case "GET", ["batches", batch]:
                name, work = "batches.retrieve", lambda: self._poll(batch, batches)
            case "POST", ["batches" | "responses" as kind, one, "cancel"]:
                name, work = f"{kind}.cancel", lambda: (batches if kind == "batches" else responses).cancel(one)
            case "GET", ["responses", response]:
                name, work = "responses.retrieve", lambda: responses.retrieve(response)
            case "GET", ["models", *rest]:
                name, work = "models", lambda: self._listed_models("/".join(rest))
            case _:
                raise OpenAIRefused(404, f"Invalid URL ({call.method} {call.path})")

        async def done() -> HttpReply:
            result = work()
            return result if isinstance(result, HttpReply) else json_reply(result)

        return name, done

    async def _upload(self, call: HttpCall, files: StoredFiles) -> HttpReply:
        return json_reply((await files.upload(call)).as_json())

    def _create(self, call: HttpCall, batches: OpenAIBatches) -> object:
        made = batches.create(_json_object(call.body))
        self._stats.batch("submitted")
        return made

    def _poll(self, batch: str, batches: OpenAIBatches) -> object:
        self._stats.batch("polled")
        return batches.poll(batch)

    def _listed_models(self, name: str) -> object:
        listed = {
            one: {"id": one, "object": "model", "created": 1_735_689_600, "owned_by": "llmdo"} for one in self._models
        }
        if not name:
            return {"object": "list", "data": [*listed.values()]}
        if name not in listed:
            raise OpenAIRefused(404, f"The model '{name}' does not exist", "model_not_found", "model")
        return listed[name]


def _json_object(body: bytes) -> dict[str, Any]:
    try:
        found = from_json(body)
    except ValueError as error:
        raise OpenAIRefused(400, f"We could not parse the JSON body of your request: {error}") from error
    if not isinstance(found, dict):
        raise OpenAIRefused(400, "The body must be a JSON object.")
    return found
