"""Everything behind the port: routes each call to the service that its path names."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from llmdo.backends.backend import Backend
from llmdo.backends.errors import ModelError
from llmdo.backends.llama_cpp.backend import CHAT_MODEL
from llmdo.backends.llama_cpp.files import prepare_model
from llmdo.backends.providers import connect
from llmdo.local.ai import catalogue
from llmdo.local.ai.api import ModelsApi
from llmdo.local.ai.echo import Echo
from llmdo.local.anthropic.api import AnthropicApi, anthropic_models
from llmdo.local.faults import Fault, Faults
from llmdo.local.openai.api import OpenAIApi
from llmdo.local.openai.models import openai_models
from llmdo.local.queues.api import QueuesApi
from llmdo.local.queues.notifications import ObjectEvent, Rules
from llmdo.local.queues.notifications_api import NotificationsApi
from llmdo.local.queues.queues import Queues
from llmdo.local.r2.objects import Objects
from llmdo.local.r2.operations import operation_of
from llmdo.local.service_errors import FaultTarget, error_reply
from llmdo.local.settings import ANTHROPIC_BASE, BUCKET, DEAD_LETTERS, OPENAI_BASE, QUEUE, CannotServe, Credentials
from llmdo.local.stats import Stats
from llmdo.local.wire import HttpCall, HttpReply, Refused, failure, json_reply, no_route, success
from llmdo.storage.field_problems import expected

ECHO = "echo"
API = "/client/v4"
MAX_RETRIES = 10  # of the default queue: the pipeline acks early, so what comes back this often is poison
_SERVICES: dict[str, FaultTarget] = {"ai": "ai", "queues": "queue", "event_notifications": "queue"}

_log = logging.getLogger(__name__)


class Cloudflare:
    """One local Cloudflare: answers calls. ``clock`` returns the queues' seconds since 1970."""

    def __init__(self, data: Path, own: Credentials, model: str, clock: Callable[[], float]) -> None:
        rows = catalogue.ECHO_MODELS if model == ECHO else catalogue.SMOLLM2_MODELS
        models = {row.name: row for row in rows}
        self._own = own
        self._clock = clock
        openai, anthropic = openai_models(echo=model == ECHO), anthropic_models(echo=model == ECHO)
        self._backend: Backend = Echo({**models, **openai, **anthropic}) if model == ECHO else connect(model)
        self._faults = Faults()
        self._stats = Stats()
        self._queues = Queues(data / "queues.sqlite", clock)
        self._rules = Rules(self._queues)
        self._objects = Objects(data / "objects.sqlite", own, self._publish)
        self._queues_api = QueuesApi(self._queues)
        self._rules_api = NotificationsApi(self._rules, self._queues, self._queues_api.find, clock)
        self._models_api = ModelsApi(self._backend, models, self._faults, self._stats)
        shared = self._faults, self._stats
        self._others: dict[str, OpenAIApi | AnthropicApi] = {
            "openai": OpenAIApi(self._backend, openai, *shared, data / "openai", clock),
            "anthropic": AnthropicApi(self._backend, anthropic, *shared, data / "anthropic", clock),
        }
        queue = self._queues.ensure(QUEUE)
        if self._queues.consumer(queue) is None:
            self._queues.set_consumer(queue, DEAD_LETTERS, {"max_retries": MAX_RETRIES})
        self._rules.set_defaults()
        self._objects.make_bucket(BUCKET)

    async def aclose(self) -> None:
        """Closes the model, the queues and the objects."""
        await self._backend.aclose()
        self._objects.close()
        self._queues.close()

    async def answer(self, call: HttpCall) -> HttpReply:
        """Answers one call by the service that its path names."""
        parts = call.path.removeprefix(API).split("/")
        target: FaultTarget | None = None
        if call.path.startswith(f"/v1/{self._own.account_id}/"):
            target, parts = "ai", ["", "accounts", *parts[2:]]  # gateway.ai.cloudflare.com/v1/ACCOUNT/GATEWAY/…
        elif call.path.startswith(f"{OPENAI_BASE}/"):
            target = "openai"
        elif call.path.startswith(f"{ANTHROPIC_BASE}/"):
            target = "anthropic"
        elif not call.path.startswith((f"{API}/", "/_faults", "/_stats")):
            target = "r2"
        elif len(parts) > 3 and parts[1] == "accounts":
            target = _SERVICES.get(parts[3])
        try:
            other = self._others.get(target or "")
            reply = await (other.answer(call) if other else self._service(call, target, parts))
        except Refused as refused:
            reply = failure(refused.status, refused.code, refused.message)
        except Exception:  # noqa: BLE001  an error of this server is reported, and other calls continue
            _log.exception("%s %s failed", call.method, call.target)
            reply = error_reply(target or "queue", 500, 15000 if target == "ai" else None)
        if target:
            self._stats.called(target, str(reply.status) if reply.ending == "whole" else reply.ending)
        reply.headers["cf-ray"] = f"{secrets.token_hex(8)}-LOC"
        return reply

    async def _service(self, call: HttpCall, target: FaultTarget | None, parts: list[str]) -> HttpReply:
        if target == "r2":
            self._stats.operation(operation_of(call))
            return await self._faults.under("r2", (call.target,), lambda: self._objects.answer(call))
        if call.headers.get("Authorization") != f"Bearer {self._own.token}":
            raise Refused(401, 10000, "Authentication error")
        if call.path in ("/_faults", "/_stats"):
            return self._control(call)
        if parts[1:] == ["user", "tokens", "verify"]:
            return success({"id": self._own.token_id, "status": "active"})
        if len(parts) < 4 or parts[1] != "accounts":
            raise no_route(call)
        if parts[2] != self._own.account_id:
            message = f"Could not route to {call.path}, perhaps your object identifier is invalid?"
            raise Refused(404, 7003, message)
        if target == "ai" and parts[4:5] == ["workers-ai"]:
            return await self._models_api.answer(call, parts[5:], gateway=parts[3])
        if target == "ai":
            return await self._models_api.answer(call, parts[4:])
        if target == "queue":
            return await self._faults.under("queue", (call.target,), lambda: self._queue(call, parts))
        raise no_route(call)

    async def _queue(self, call: HttpCall, parts: list[str]) -> HttpReply:
        if parts[3] == "queues":
            return self._queues_api.answer(call, parts[4:])
        if parts[4:5] == ["r2"]:
            return self._rules_api.answer(call, parts[5:])
        raise no_route(call)

    def _control(self, call: HttpCall) -> HttpReply:
        match call.method, call.path:
            case "GET", "/_stats":
                return json_reply(self._stats.as_json())
            case "DELETE", "/_stats":
                self._stats.reset()
                return json_reply(self._stats.as_json())
            case "POST", "/_faults":
                try:
                    self._faults.active.append(Fault.model_validate_json(call.body))
                except ValidationError as error:
                    problems = [{"field": ".".join(map(str, e["loc"])), "problem": expected(e)} for e in error.errors()]
                    return json_reply({"error": "this is not a fault", "problems": problems}, 400)
            case "DELETE", "/_faults":
                self._faults.active.clear()
            case "GET", "/_faults":
                pass
            case _:
                raise no_route(call)
        return json_reply({"faults": [fault.model_dump(exclude_defaults=True) for fault in self._faults.active]})

    def _publish(self, event: ObjectEvent) -> None:
        self._rules.publish(event, self._own.account_id, self._clock())


def check_model(model: str) -> None:
    """Raises CannotServe for a model that is not available. Fetches the weights of the embedded one if need be."""
    known = f"local/{CHAT_MODEL}"
    if model == ECHO:
        return
    if model != known:
        raise CannotServe(f"--model {model} is not known here: choose {known} or {ECHO}")
    try:
        prepare_model()
    except ModelError as error:
        raise CannotServe(f"--model {model} cannot be used: {error}; or choose {ECHO}") from error
