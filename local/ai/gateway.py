"""AI Gateways in front of the models: named by a header or by their own address, with a cache and a token, or not.

Sources: developers.cloudflare.com/ai-gateway, usage/rest-api, configuration/authentication, features/caching.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from llmdo.local.wire import HttpCall, HttpReply, json_reply

HEADER = "cf-aig-gateway-id"


@dataclass(frozen=True, slots=True)
class GatewayKind:
    """Whether a gateway keeps answers for equal requests, and whether it requires a token."""

    caches: bool = False
    private: bool = False


GATEWAYS = {"default": GatewayKind(), "cached": GatewayKind(caches=True), "private": GatewayKind(private=True)}


class Gateways:
    """The gateways of one account, with the answers that they keep."""

    def __init__(self) -> None:
        self._kept: dict[str, HttpReply] = {}

    async def through(self, call: HttpCall, name: str, work: Callable[[], Awaitable[HttpReply]]) -> HttpReply:
        """Answers one call by its work or from the cache; streams are not cached."""
        kind = GATEWAYS.get(name)
        if kind is None:
            return _refusal(400, 2001, "Please configure AI Gateway in the Cloudflare dashboard")
        # The account has one token, which is also that of its gateways.
        if kind.private and call.headers.get("cf-aig-authorization") != call.headers.get("Authorization"):
            return _refusal(401, 2009, "Unauthorized")
        key = hashlib.sha256(f"{name} {call.path} ".encode() + call.body).hexdigest()
        kept = self._kept.get(key) if call.headers.get("cf-aig-skip-cache") != "true" else None
        reply = replace(kept, headers=dict(kept.headers)) if kept else await work()
        if kind.caches and reply.status == 200 and reply.ending == "whole" and not reply.pieces:
            self._kept[key] = replace(reply, headers=dict(reply.headers))
        reply.headers["cf-aig-cache-status"] = "HIT" if kept else "MISS"
        reply.headers["cf-aig-log-id"] = str(uuid.uuid4())
        return reply


def _refusal(status: int, code: int, message: str) -> HttpReply:
    """A gateway's own refusal, whose list of errors is called ``error``."""
    more = {"name": "AiGatewayError", "httpCode": status, "internalCode": code, "message": message}
    errors = [{"code": code, "message": message}]
    return json_reply({"success": False, "result": [], "messages": [], "error": errors, **more}, status)
