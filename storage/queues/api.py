"""One call to Cloudflare's REST API for Queues: the envelope of its replies, and what its errors mean.

Source: developers.cloudflare.com/queues/reference/error-codes. Its sample of an error has ``"success": true``, so the
status, the errors and the success flag must all be good.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any, Self

import httpx
from pydantic import BaseModel, ValidationError

from llmdo.settings.environment import CloudflareAccount
from llmdo.settings.network import CA_REMEDY, httpx_settings, is_untrusted
from llmdo.storage.errors import QueueError, QueueNotFound, QueueUnauthorized, is_passing

_TIMEOUT = httpx.Timeout(30.0, connect=10.0)
_LONGEST_WAIT_S = 30.0  # the caller waits out a longer Retry-After

_TOKEN = "check CLOUDFLARE_API_TOKEN: it needs the account permission Queues: Edit"  # noqa: S105  a sentence
_ROUTE = "check CLOUDFLARE_ACCOUNT_ID and the queue's id or name"
_QUEUE = "there is no such queue in this account; create it, or correct its id or name"

WRONG_ACCOUNT = frozenset({7000, 7003})

# By Cloudflare's error code: the error and the remedy.
_CODES: dict[int, tuple[type[QueueError], str]] = {
    7000: (QueueNotFound, _ROUTE),
    7003: (QueueNotFound, _ROUTE),
    9109: (QueueUnauthorized, _TOKEN),
    10000: (QueueUnauthorized, _TOKEN),
    10104: (QueueNotFound, _QUEUE),
    10105: (QueueUnauthorized, "Queues is not enabled for this account; enable it in the dashboard"),
    10106: (QueueUnauthorized, _TOKEN),
    10107: (QueueNotFound, "the queue's id is not 32 hexadecimal characters; copy it, or give the queue's name"),
    10202: (QueueError, "a delay has 1 to 86,400 seconds"),
    10204: (QueueError, "a message has at most 128 KB; put the content into the bucket and send its key"),
    10250: (QueueError, "the queue is overloaded; ask less often"),
    10251: (QueueError, "the queue is full (25 GB); let it be consumed, or purge it"),
    10252: (QueueError, "delivery is paused; resume it with: npx wrangler queues resume-delivery NAME"),
    10253: (QueueError, "the free plan's operations of the day are used up; wait for the next day in UTC, or pay"),
}
# Codes that a quick retry does not cure, with the seconds to wait.
SLOW_CODES = {10251: 60.0, 10252: 60.0, 10253: 300.0}
# By HTTP status, if the code is unknown.
_STATUSES: dict[int, tuple[type[QueueError], str]] = {
    401: (QueueUnauthorized, _TOKEN),
    403: (QueueUnauthorized, _TOKEN),
    404: (QueueNotFound, _ROUTE),
    429: (
        QueueError,
        "too many calls (5,000 messages a second for a queue; of others 1,200 in 5 minutes); ask less often",
    ),
}


class _Error(BaseModel):
    code: int | None = None
    message: str | None = None


class Envelope(BaseModel):
    """The wrapper of every reply; ``result`` is as it came."""

    success: bool | None = None
    errors: list[_Error] | None = None
    result: Any = None
    result_info: dict[str, Any] | None = None


class QueueApi:
    """HTTP with the account's token. Thread-safe."""

    def __init__(
        self, account: CloudflareAccount, transport: httpx.BaseTransport | None, sleep: Callable[[float], None]
    ) -> None:
        headers = {"Authorization": f"Bearer {account.token}"}
        reach = httpx_settings(account.url) if transport is None else {}
        self._http = httpx.Client(base_url=account.url, headers=headers, timeout=_TIMEOUT, transport=transport, **reach)
        self._sleep = sleep

    def call(
        self,
        method: str,
        path: str,
        what: str,
        *,
        body: Any = None,
        params: Mapping[str, Any] | None = None,
        tries: int,
    ) -> Envelope:
        """One call, retried while it fails transiently, at most ``tries`` in all: 1 if a repeat would do harm.

        ``what`` begins the error's sentence ("pull from queue 0123…"). Raises QueueError and its subclasses.
        """
        for attempt in range(1, tries + 1):
            try:
                return self._once(method, path, what, body, params)
            except QueueError as error:
                wait = error.retry_after or random.uniform(0.1, 0.25 * 2.0**attempt)  # noqa: S311  jitter
                if attempt == tries or not is_passing(error) or error.code in SLOW_CODES or wait > _LONGEST_WAIT_S:
                    raise
                self._sleep(wait)
        raise ValueError(f"{tries} tries: at least one is needed")

    def _once(self, method: str, path: str, what: str, body: Any, params: Mapping[str, Any] | None) -> Envelope:
        try:
            reply = self._http.request(method, path, json=body, params=params)
        except httpx.HTTPError as error:
            reason = str(error) or type(error).__name__
            remedy = CA_REMEDY if is_untrusted(reason) else "check the network and CLOUDFLARE_BASE_URL"
            raise QueueError(f"{what}: no reply ({reason}); {remedy}") from error
        try:
            envelope = Envelope.model_validate_json(reply.content)
        except ValidationError:
            envelope = None
        if envelope is None or reply.is_error or envelope.errors or not envelope.success:
            raise _refusal(what, reply, envelope)
        return envelope

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _refusal(what: str, reply: httpx.Response, envelope: Envelope | None) -> QueueError:
    status = reply.status_code
    errors = (envelope.errors if envelope else None) or [_Error()]
    code = errors[0].code
    reply_text = " ".join(str(part) for part in (status, code, (errors[0].message or "")[:200]) if part)
    kind: type[QueueError] = QueueError
    if reply.headers.get("cf-mitigated") == "challenge":
        remedy = "a firewall of Cloudflare's stopped this host, not the token; call from another network"
    elif envelope is None and status < 400:
        remedy = "the reply is not the Queues API's; check CLOUDFLARE_BASE_URL and any proxy"
    elif status >= 500:
        remedy = "Cloudflare's API is failing; try again later"
    else:
        known = _CODES.get(code or 0) or _STATUSES.get(status)
        kind, remedy = known or (QueueError, "the Queues API refused this call")
    return kind(f"{what}: {remedy} ({reply_text})", status, code, _retry_after(reply))


def _retry_after(reply: httpx.Response) -> float | None:
    """Cloudflare sends whole seconds: developers.cloudflare.com/fundamentals/api/reference/limits."""
    text = reply.headers.get("retry-after", "")
    return float(text) if text.isdecimal() else None
