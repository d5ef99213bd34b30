"""Faults on demand, for tests and benchmarks: errors, delays, lost replies, cut or empty bodies, rate limits."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, model_validator

from llmdo.local.wire import HttpReply, failure, s3_failure

FaultTarget = Literal["ai", "queue", "r2"]

# The code that a service sends with a status if a fault names none, and the services' messages by code.
# Sources: developers.cloudflare.com/workers-ai/platform/errors, …/queues/reference/error-codes, …/r2/api/error-codes.
DEFAULT_CODES: dict[FaultTarget, dict[int, int]] = {
    "ai": {400: 5006, 401: 10000, 403: 10000, 404: 3042, 408: 3046, 413: 3006, 429: 3040},
    "queue": {400: 10207, 401: 10000, 403: 10000, 404: 10104, 429: 10250, 500: 15000},
    "r2": {400: 10054, 401: 10002, 403: 10003, 404: 10007, 412: 10031, 416: 10039, 429: 10058, 500: 10001, 503: 10043},
}
MESSAGES = {
    3003: "AiError: 3003: Incomplete request",
    3006: "AiError: 3006: Request is too large",
    3007: "AiError: 3007: Timeout",
    3021: "AiError: 3021: rate limiting: inference request per min rate reached",
    3023: "AiError: 3023: Account blocked",
    3036: "AiError: 3036: you have used up your daily free allocation of 10,000 neurons, "
    "please upgrade to Cloudflare's Workers Paid plan if you would like to continue usage.",
    3040: "InferenceUpstreamError: 3040: Capacity temporarily exceeded, please try again.",
    3042: "AiError: 3042: Invalid model ID",
    3046: "AiError: 3046: Request timeout",
    4006: "AiError: AiError: 4006: you have used up your daily free allocation of 10,000 neurons, "
    "please upgrade to Cloudflare's Workers Paid plan if you would like to continue usage.",
    5006: "AiError: Bad input: Error: oneOf at '/' not met",
    5007: "No such model or task",
    5016: "AiError: 5016: Model agreement required",
    5018: "AiError: 5018: Account not allowed for private model",
    5021: "AiError: 5021: estimated number of input and maximum output tokens exceeded this model context window limit",
    7003: "Could not route, perhaps your object identifier is invalid?",
    10000: "Authentication error",
    10104: "Queue not found",
    10106: "Unauthorized",
    10207: "Request body is invalid",
    10250: "Queue is overloaded",
    10251: "Queue storage limit exceeded",
    10252: "Queue delivery is paused",
    10253: "Free tier limit exceeded",
    15000: "Unknown internal error",
}
S3_ERRORS = {
    10001: ("InternalError", "We encountered an internal error. Please try again."),
    10002: ("Unauthorized", "Unauthorized"),
    10003: ("AccessDenied", "Access Denied"),
    10006: ("NoSuchBucket", "The specified bucket does not exist."),
    10007: ("NoSuchKey", "The specified key does not exist."),
    10018: ("ExpiredRequest", "Request has expired"),
    10031: ("PreconditionFailed", "At least one of the pre-conditions you specified did not hold."),
    10035: ("SignatureDoesNotMatch", "The request signature we calculated does not match the signature you provided."),
    10039: ("InvalidRange", "The requested range is not satisfiable"),
    10043: ("ServiceUnavailable", "Service is unable to handle request."),
    10054: ("ClientDisconnect", "Client disconnected before the request was complete."),
    10058: ("TooManyRequests", "Reduce your concurrent request rate for the same object."),
}


class LogNormal(BaseModel):
    """A heavy-tailed delay, in seconds: exp(N(ln median, sigma))."""

    model_config = ConfigDict(extra="forbid")
    median: float = Field(gt=0)
    sigma: float = Field(ge=0)


class Fault(BaseModel):
    """One fault, as POST /_faults takes it.

    Attributes:
        target: the service whose calls it strikes.
        probability: for each matching call; ``seed`` makes the draws repeatable.
        count: how often it strikes at most; None: without end.
        match: only calls whose decoded path, or whose prompt, contains this.
        status: the service's own error instead of an answer.
        code: the service's own error code; for R2 its number, or its name in XML.
        retry_after: seconds in Retry-After, sent with the error.
        latency_s: seconds before anything else happens; without another effect, the call is then answered as usual.
        drop: closes the connection without a reply, before the work, or ``after`` it: a lost reply, which is paid for.
        empty: answers 200 without a body or the service's headers, before the work or ``after`` it.
        page: a web page instead of a reply, as from a proxy or a firewall, with ``status`` or 200.
        truncate: sends half of the body with the Content-Length of the whole; a stream ends without its end mark.
        rate_per_s: a token bucket, one second deep: calls beyond it get 429 at once, or after this fault's latency_s.
    """

    model_config = ConfigDict(extra="forbid")
    target: FaultTarget
    probability: float = Field(1.0, ge=0, le=1)
    count: int | None = Field(None, ge=1)
    match: str = ""
    seed: int | None = None
    status: int | None = Field(None, ge=400, le=599)
    code: int | str | None = None
    retry_after: float | None = Field(None, ge=0)
    latency_s: float | LogNormal | None = None
    drop: bool = False
    empty: bool = False
    page: bool = False
    after: bool = False
    truncate: bool = False
    rate_per_s: float | None = Field(None, gt=0)
    _random: random.Random = PrivateAttr()
    _tokens: float = PrivateAttr(0.0)
    _filled_at: float = PrivateAttr(0.0)

    @model_validator(mode="after")
    def _one_effect(self) -> Fault:
        if not self.effects and self.latency_s is None:
            raise ValueError("a fault needs one of status, latency_s, drop, empty, page, truncate, rate_per_s")
        if isinstance(self.latency_s, float) and self.latency_s < 0:
            raise ValueError("latency_s is in seconds, and not negative")
        if isinstance(self.code, str) and self.target != "r2":
            raise ValueError("code is a number; only R2 has names for its errors")
        return self

    def model_post_init(self, _context: object) -> None:
        """Starts the draws and fills the bucket."""
        self._random = random.Random(self.seed)  # noqa: S311  faults need repeatability, not secrecy
        self._tokens = max(self.rate_per_s or 0.0, 1.0)

    @property
    def effects(self) -> bool:
        """Whether it does more than delay."""
        return bool(self.status or self.drop or self.empty or self.page or self.truncate or self.rate_per_s)

    def strikes(self, target: FaultTarget, texts: tuple[str, ...], now: float) -> bool:
        """Draws for one call; if it strikes, uses up one of ``count``."""
        if target != self.target or self.count == 0 or not any(self.match in text for text in texts):
            return False
        if self.rate_per_s is not None and self._within_rate(self.rate_per_s, now):
            return False
        if self.probability < 1 and self._random.random() >= self.probability:
            return False
        if self.count is not None:
            self.count -= 1
        return True

    def _within_rate(self, rate: float, now: float) -> bool:
        depth = max(rate, 1.0)
        if self._filled_at:
            self._tokens = min(depth, self._tokens + (now - self._filled_at) * rate)
        self._filled_at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    def delay(self) -> float:
        """Seconds to wait; a distribution is drawn from each time."""
        if isinstance(self.latency_s, LogNormal):
            return self.latency_s.median * self._random.lognormvariate(0, self.latency_s.sigma)
        return self.latency_s or 0.0

    def error(self) -> HttpReply | None:
        """The error reply of this fault, or None if it has another effect."""
        if self.rate_per_s is not None:
            code = self.code or (3021 if self.target == "ai" else None)
            return error_reply(self.target, 429, code, self.retry_after)
        if self.page:
            return _page(self.status or 200, self.retry_after)
        return error_reply(self.target, self.status, self.code, self.retry_after) if self.status else None


class Faults:
    """The active faults, which are drawn in the order in which they were added."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.active: list[Fault] = []

    def draw(self, target: FaultTarget, *texts: str) -> tuple[float, Fault | None]:
        """What strikes one call: all delays added up in seconds, and the first fault that is more than a delay.

        ``texts``: its decoded path and its prompt.
        """
        delay, chosen = 0.0, None
        for fault in self.active:
            if (chosen is None or not fault.effects) and fault.strikes(target, texts, self._clock()):
                delay += fault.delay()
                chosen = fault if fault.effects else chosen
        if chosen and chosen.rate_per_s is not None:
            delay = chosen.delay()  # calls beyond the rate are refused at once, not after the usual latency
        return delay, chosen

    async def under(
        self, target: FaultTarget, texts: tuple[str, ...], work: Callable[[], Awaitable[HttpReply]]
    ) -> HttpReply:
        """Answers one call, by its work or by a fault."""
        delay, fault = self.draw(target, *texts)
        if delay:
            await asyncio.sleep(delay)
        if fault is None:
            return await work()
        error = fault.error()
        if error:
            return error
        reply = await work() if fault.after or fault.truncate else HttpReply(0)
        if fault.empty:
            if reply.pieces:
                await reply.pieces.aclose()
            return reply if reply.status >= 400 else HttpReply(200)
        reply.ending = "drop" if fault.drop else "truncate"
        return reply


def error_reply(
    target: FaultTarget, status: int, code: int | str | None, retry_after: float | None = None
) -> HttpReply:
    """An error in the service's own shape. Like the real one, a 5xx of the edge, without a code, is an HTML page."""
    code = code or DEFAULT_CODES[target].get(status)
    if target == "r2":
        names = dict(S3_ERRORS.values())
        name, message = (
            S3_ERRORS.get(code, S3_ERRORS[10001]) if isinstance(code, int) else (code or "InternalError", "")
        )
        reply = s3_failure(status, name, message or names.get(name, name))
    elif isinstance(code, int):
        reply = failure(status, code, MESSAGES.get(code, f"Error {code}"))
    else:
        return _page(status, retry_after)
    return _asking_to_wait(reply, retry_after)


def _page(status: int, retry_after: float | None) -> HttpReply:
    page = f"<!DOCTYPE html><html><head><title>{status}</title></head><body>cloudflare</body></html>"
    return _asking_to_wait(HttpReply(status, page.encode(), {"Content-Type": "text/html; charset=UTF-8"}), retry_after)


def _asking_to_wait(reply: HttpReply, retry_after: float | None) -> HttpReply:
    if retry_after is not None:
        reply.headers["Retry-After"] = f"{retry_after:g}"
    return reply
