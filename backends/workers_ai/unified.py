"""Models of others that Cloudflare passes calls on to, and bills: ``openai/gpt-5``, ``anthropic/claude-opus-5`` …

They answer at OpenAI's routes of the account's own address, for its one token, through an AI Gateway: the account's
default one where none is named (developers.cloudflare.com/ai-gateway/usage/rest-api).
"""

from __future__ import annotations

from collections.abc import Callable

from llmdo.backends.http.client import Network, Transport
from llmdo.backends.openai.backend import OpenAI, Service
from llmdo.backends.workers_ai.api import gateway_headers
from llmdo.backends.workers_ai.errors import PROVIDER
from llmdo.settings.environment import AiGateway, CloudflareAccount


def unified(
    account: CloudflareAccount,
    gateway: AiGateway | None,
    transport: Transport | None,
    clock: Callable[[], float],
    timeout_s: float,
) -> OpenAI:
    """The account as a service with OpenAI's API. A gateway that is named by its URL has these models at ``compat``."""
    url = f"{gateway.name.rstrip('/')}/compat" if gateway and "://" in gateway.name else f"{account.url}/ai/v1"
    service = Service(
        name=PROVIDER,
        url=url,
        headers={"authorization": f"Bearer {account.token}", **(gateway_headers(gateway) if gateway else {})},
        key="CLOUDFLARE_API_TOKEN",
        details={"cf-aig-cache-status": "cache_status", "cf-aig-log-id": "log_id"},
    )
    return OpenAI(service, transport or Network(url, timeout_s), clock)
