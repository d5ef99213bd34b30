"""Rows of a batch's output and error files: ``{custom_id, response: {status_code, request_id, body}, error}``."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import pydantic_core

from llmdo.backends.http.client import Incoming
from llmdo.backends.http.reply_json import mapping
from llmdo.backends.requests import BatchPlace

# What OpenAI writes for a request that it has not run.
_NOT_RUN = frozenset({"batch_expired", "batch_cancelled"})
_UNAVAILABLE = 503  # of a row without a status, or with 0: nobody was asked, or nobody answered
_STATUSES = frozenset(map(str, range(400, 600)))


def custom_id(place: BatchPlace) -> str:
    """What names a request in its batch: short and plain ASCII, whatever our id is (Doubleword takes 64 characters).

    It is made of the request's id too, so that an answer of another batch is not taken for one of this.
    """
    return f"{place.number}-{hashlib.sha256(place.reference.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}"


def row_reply(row: Mapping[str, Any]) -> Incoming | None:
    """A row as the reply that a call would have got; None for a request that was not run."""
    response, error = mapping(row.get("response")), row.get("error")
    body, status = response.get("body"), response.get("status_code")
    if not body:
        if not _NOT_RUN.isdisjoint((mapping(error).get("code"), mapping(error).get("type"))):
            return None
        body = {"error": error or "the batch's row holds neither an answer nor an error"}
    elif status is None and not error:
        status = 200  # some servers leave it out
    if not isinstance(status, int) or not 100 <= status < 600:
        status = _status_of(mapping(body).get("error"))
    identity = response.get("request_id")
    headers = {"content-type": "application/json", **({"x-request-id": identity} if isinstance(identity, str) else {})}
    content = body.encode("utf-8", "replace") if isinstance(body, str) else pydantic_core.to_json(body)
    return Incoming(status, headers, content)


def _status_of(error: Any) -> int:
    """The status that an error names; without one it may pass."""
    named = (mapping(error).get(name) for name in ("status", "status_code", "code"))
    return next((int(str(one)) for one in named if str(one) in _STATUSES), _UNAVAILABLE)
