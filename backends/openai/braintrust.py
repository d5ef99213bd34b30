"""Braintrust's proxy: models of many providers by OpenAI's API, each call logged to a project.

Source: braintrust.dev/docs/guides/proxy. Calls with temperature 0 or a seed may be answered from its cache.
"""

from __future__ import annotations

from urllib.parse import quote

from llmdo.backends.http.client import Network
from llmdo.backends.limits.retry import CALL_TIMEOUT_S
from llmdo.backends.openai.backend import OpenAI, Service
from llmdo.settings.environment import BRAINTRUST_API as API
from llmdo.settings.environment import BraintrustAccess, braintrust_access


def open_backend(timeout_s: float = CALL_TIMEOUT_S) -> OpenAI:
    """The proxy, for the project that the environment names. Raises MissingSettings."""
    return OpenAI(service(braintrust_access()), Network(API, timeout_s))


def service(access: BraintrustAccess) -> Service:
    """The proxy as a service that speaks OpenAI's API."""
    return Service(
        name="braintrust",
        url=f"{API}/proxy",
        headers={"authorization": f"Bearer {access.key}", "x-bt-parent": f"project_id:{access.project_id}"},
        key="BRAINTRUST_API_KEY",
        # It asks for the project, which proves key and project; the proxy's own routes would ask a provider.
        health=f"{API}/project/{quote(access.project_id, safe='')}",
        details={"x-bt-cached": "cache_status", "x-bt-used-endpoint": "endpoint", "x-bt-span-id": "log_id"},
    )
