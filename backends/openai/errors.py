"""Refusals of OpenAI's API, and of the servers that speak it: the error that each reply means."""

from __future__ import annotations

from collections.abc import Mapping

from llmdo.backends.errors import ConnectionFailed, ModelError
from llmdo.backends.refusals.body import is_envelope, read_body
from llmdo.backends.refusals.cloudflare import CLOUDFLARE_REFUSALS, numbers
from llmdo.backends.refusals.meanings import make_error
from llmdo.backends.refusals.rows import COMPATIBLE_REFUSALS

_NUMBERED = ("code", "status", "statusCode", "__type")
_FINE = (None, 0, "0", 200, "200", "ok", "success")
# A body that has one of these answers something, whatever else stands beside it.
_ANSWERS = ("choices", "data", "output", "embeddings")


def refusal(
    status: int, headers: Mapping[str, str], body: object, model: str, provider: str, key: str, now: float
) -> ModelError:
    """The error that a reply means. ``body`` is parsed JSON, or the text of a body that is not JSON (an HTML page).

    ``key``: the variable that holds the key. ``now``: Unix time in seconds.
    """
    read = read_body(body)
    if status < 300:  # an error inside a success, or in a stream: some servers put the status beside it
        status = read.status or status
    meaning = (
        (CLOUDFLARE_REFUSALS.known(status, numbers(read), read.words) if is_envelope(body) else None)
        or COMPATIBLE_REFUSALS.known_by(status, read)
        or COMPATIBLE_REFUSALS.by_status(status)
    )
    return make_error(
        meaning,
        read,
        headers,
        now,
        model=model,
        status=status,
        code=next((code for code in read.codes if not code.isdecimal()), None),
        request_id=request_id(headers),
        provider=provider,
        key=key,
        # A proxy's word that it has sent nothing on: no server behind it has seen the request.
        lost=False if meaning.error is ConnectionFailed else None,
    )


def is_refusal(body: object) -> bool:
    """Whether a JSON body, or a stream's event, is an error whatever its HTTP status."""
    if isinstance(body, list):
        return bool(body) and isinstance(body[0], dict) and bool(body[0].get("error"))
    if not isinstance(body, dict):
        return False
    if body.get("error") or body.get("object") == "error" or body.get("success") is False:
        return True
    if any(body.get(key) for key in _ANSWERS):
        return False
    if "detail" in body or body.get("errors"):
        return True
    says = isinstance(body.get("message") or body.get("msg") or body.get("Message"), str)
    return says and any(body.get(key) not in _FINE for key in _NUMBERED)


def request_id(headers: Mapping[str, str]) -> str | None:
    """The service's id of a call."""
    return headers.get("x-request-id") or headers.get("request-id")
