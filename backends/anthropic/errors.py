"""Refusals of Anthropic's API: the error that each reply, event of a stream, or result of a batch means."""

from __future__ import annotations

from collections.abc import Mapping

from llmdo.backends.errors import ModelError
from llmdo.backends.http.reply_json import mapping
from llmdo.backends.openai.errors import refusal as compatible_refusal

# An error that comes without a status of its own, in a stream or a batch: its type → the status of a reply with it.
_STATUSES = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "conflict_error": 409,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
}


def refusal(
    status: int, headers: Mapping[str, str], body: object, model: str, provider: str, key: str, now: float
) -> ModelError:
    """The error that a reply means; see the one of llmdo.backends.openai.errors."""
    if status < 300:
        status = _STATUSES.get(str(mapping(mapping(body).get("error")).get("type")), status)
    return compatible_refusal(status, headers, body, model, provider, key, now)
