"""Responses in the background: taken at once, answered later, fetched by their id; kept while the server runs.

One is ``queued``, ``in_progress``, ``completed`` (or ``incomplete``, ``failed``, ``cancelled``) as fast as this machine
is. Shapes: the official client's types, and developers.openai.com/api/docs/guides/background. Faults: see
``faults.Fault.batch``.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic_core import from_json

from llmdo.backends.responses import ChatResponse
from llmdo.backends.responses_api.response_object import response_object
from llmdo.backends.usage import Usage
from llmdo.local.ai.catalogue import TEXT_GENERATION, LocalModel
from llmdo.local.ai.inputs import prompts_of
from llmdo.local.faults import Faults, Strike
from llmdo.local.openai.batch_object import checked_metadata
from llmdo.local.openai.endpoints import Endpoints
from llmdo.local.openai.models import openai_model
from llmdo.local.wire import HttpReply, OpenAIRefused

ENDPOINT = "/v1/responses"
COMPLETION_WINDOWS = ("soonest", "2h", "8h")
_WAIT_S = 0.01  # between looks at whether one that is held up may go on
_WORKING = ("queued", "in_progress")
_FAILURE = "The model failed to generate a response."

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Background:
    """One response; ``answer`` is what the model has said, once it has."""

    id: str
    body: dict[str, Any]
    created_at: int
    metadata: dict[str, str]
    strikes: list[Strike]
    status: str = "queued"
    answer: dict[str, Any] = field(default_factory=dict)
    error: dict[str, Any] | None = None

    def of(self, kind: str) -> list[Strike]:
        """The faults of a kind that have struck it."""
        return [one for one in self.strikes if one.fault.batch == kind]

    def as_json(self) -> dict[str, Any]:
        """The ``response`` object."""
        nothing = ChatResponse(None, None, Usage(), str(self.body.get("model")))
        bare = {**response_object(nothing, self.id, self.body), "output": [], "usage": None, "service_tier": "default"}
        return {
            **bare,
            **self.answer,
            "id": self.id,
            "created_at": self.created_at,
            "status": self.status,
            "error": self.error,
            "background": True,
            "store": True,
            "metadata": self.metadata,
        }


class BackgroundResponses:
    """Those of one key. ``clock`` returns seconds since 1970."""

    def __init__(
        self, endpoints: Endpoints, models: Mapping[str, LocalModel], faults: Faults, clock: Callable[[], float]
    ) -> None:
        self._endpoints = endpoints
        self._models = models
        self._faults = faults
        self._clock = clock
        self._kept: dict[str, _Background] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def create(self, body: dict[str, Any], line: str | None) -> dict[str, Any]:
        """Takes a response in, which is worked on from now on. Raises OpenAIRefused."""
        _check(body)
        model = openai_model(self._models, body.get("model"), TEXT_GENERATION)
        metadata = checked_metadata(body.get("metadata")) or {}
        strikes = self._faults.of_batch("openai", ENDPOINT, *prompts_of(body), *metadata.values())
        name = f"resp_{secrets.token_hex(24)}"
        made = self._kept[name] = _Background(name, body, int(self._clock()), metadata, strikes)
        made.body = {**body, "model": model.name}
        task = asyncio.get_running_loop().create_task(self._work(made, line))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return made.as_json()

    def retrieve(self, name: str) -> dict[str, Any]:
        """The ``response`` object. Raises OpenAIRefused."""
        found = self._find(name)
        shown = found.as_json()
        for strike in found.of("hold"):
            strike.look()
        return shown

    def cancel(self, name: str) -> dict[str, Any]:
        """Ends one that is not done; a second time it does nothing. Raises OpenAIRefused for one that has ended."""
        found = self._find(name)
        if found.status in ("completed", "incomplete", "failed"):
            raise OpenAIRefused(400, f"Cannot cancel a response with status '{found.status}'.")
        found.status = "cancelled"
        return found.as_json()

    def _find(self, name: str) -> _Background:
        found = self._kept.get(name)
        if found is None or found.of("forget"):
            raise OpenAIRefused(404, f"Response with id '{name}' not found.")
        return found

    async def _work(self, made: _Background, line: str | None) -> None:
        try:
            for strike in made.of("hold"):
                made.status = strike.fault.state
                strike.begin()
                while strike.holds():
                    if made.status == "cancelled":
                        return
                    await asyncio.sleep(_WAIT_S)
            if made.status == "cancelled":
                return
            if ends := [*made.of("cancel"), *made.of("fail")]:
                code = ends[0].fault.code or "server_error"
                made.status = "cancelled" if ends[0].fault.batch == "cancel" else "failed"
                made.error = {"code": code, "message": _FAILURE} if made.status == "failed" else None
                return
            made.status = "in_progress"
            await self._answer(made, line)
        except Exception:  # noqa: BLE001  it fails, and the server goes on
            _log.exception("%s failed", made.id)
            made.status, made.error = "failed", {"code": "server_error", "message": _FAILURE}

    async def _answer(self, made: _Background, line: str | None) -> None:
        asked = {name: value for name, value in made.body.items() if name not in ("background", "background_options")}
        try:
            reply = await self._endpoints.answer(ENDPOINT, asked, (made.id,), line, "row")
        except OpenAIRefused as refused:
            reply = refused.reply
        if made.status == "cancelled":
            return
        body = _object(reply)
        if reply.status == 200 and "output" in body:
            made.answer = {name: value for name, value in body.items() if name not in ("id", "status")}
            made.status = body["status"]
        else:
            said = body.get("error") or {}
            made.error = {"code": said.get("code") or "server_error", "message": said.get("message") or _FAILURE}
            made.status = "failed"


def _check(body: Mapping[str, Any]) -> None:
    """Raises OpenAIRefused for what does not go with a response in the background."""
    options = body.get("background_options") or {}
    window = options.get("completion_window", "soonest") if isinstance(options, dict) else None
    if window not in COMPLETION_WINDOWS:
        message = f"Invalid value: '{window}'. Supported values are: {', '.join(COMPLETION_WINDOWS)}."
        raise OpenAIRefused(400, message, "invalid_value", "background_options.completion_window")
    if body.get("input") is None:
        raise OpenAIRefused(400, "Missing required parameter: 'input'.", "missing_required_parameter", "input")
    standard = (None, "auto", "default")
    tiers = (body.get("service_tier"),) if window == "soonest" else standard
    for name, others, why in (
        ("stream", (None, False), "are not streamed here"),
        ("store", (None, True), "have to be stored"),
        ("service_tier", tiers, "are of the default service tier where they have a window"),
    ):
        if body.get(name) not in others:
            raise OpenAIRefused(400, f"Responses in the background {why}.", "unsupported_value", name)


def check_foreground(body: Mapping[str, Any]) -> None:
    """Raises OpenAIRefused for a window of a response that is answered at once."""
    options = body.get("background_options")
    if isinstance(options, dict) and options.get("completion_window", "soonest") != "soonest":
        message = "'background_options.completion_window' needs 'background': true."
        raise OpenAIRefused(400, message, "invalid_value", "background_options")


def _object(reply: HttpReply) -> dict[str, Any]:
    try:
        found = from_json(reply.body)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
