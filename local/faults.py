"""Faults on demand, for tests and benchmarks: errors, delays, lost replies, cut or empty bodies, rate limits."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, model_validator

from llmdo.local.service_errors import FaultTarget, error_page, error_reply
from llmdo.local.wire import HttpReply

BatchFault = Literal[
    "row", "hold", "limit", "fail", "expire", "cancel", "shuffle", "repeat", "foreign", "cut", "hide", "forget"
]


_NAMES_ERRORS = frozenset({"anthropic", "openai", "r2"})


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
        code: the service's own error code; for R2 its number, or its name in XML; for OpenAI its name; for Anthropic
            the error's type, or credit_balance, usage_limit.
        retry_after: seconds in Retry-After, sent with the error.
        latency_s: seconds before anything else happens; without another effect, the call is then answered as usual.
        drop: closes the connection without a reply, before the work, or ``after`` it: a lost reply, which is paid for.
        empty: answers 200 without a body or the service's headers, before the work or ``after`` it.
        page: a web page instead of a reply, as from a proxy or a firewall, with ``status`` or 200.
        truncate: sends half of the body with the Content-Length of the whole; a stream ends without its end mark.
        rate_per_s: a token bucket, one second deep: calls beyond it get 429 at once, or after this fault's latency_s.
        batch: strikes batches of OpenAI and of Anthropic as they are created, not calls, in one of these ways; several
            may strike one batch, and ``match`` sees its endpoint, its file's name, and the values of its metadata; of
            Anthropic's, its first custom_id and its model.
            ``row``: single lines, by the other effects: ``status`` (also 0), ``page`` and ``empty`` give the row such a
            reply, ``drop`` leaves the row out, ``truncate`` cuts it; ``match`` sees the custom_id and the prompt.
            ``hold``: it stays in ``state``, also one that OpenAI does not have, and in_progress after ``share`` of its
            lines; for ``latency_s``, for ``polls``, or until this fault is removed.
            ``hide``: lists do not have it, for as long; ``polls`` counts lists.
            ``expire``, ``cancel``, ``fail``: it ends so, after ``share`` of its lines (``fail``: before any), which
            have their rows; ``code`` is that of the failure. ``limit``: it fails with token_limit_exceeded if more
            than ``tokens`` are enqueued for its model. ``forget``: its metadata are dropped.
            Anthropic's know neither ``fail``, ``limit`` nor ``forget``.
            A response of OpenAI's in the background is struck as a batch of one line is, by ``row`` (a refusal makes it
            fail), ``hold`` (before its answer), ``cancel``, ``fail``, and ``forget``: it is not found; ``match`` sees
            its prompt, too.
            ``shuffle``, ``repeat``, ``foreign``, ``cut``: of its output, the order is random, a ``share`` of the rows
            is there twice, or again under custom_ids that nobody has sent, or only a ``share`` of the bytes is there.
    """

    model_config = ConfigDict(extra="forbid")
    target: FaultTarget
    probability: float = Field(1.0, ge=0, le=1)
    count: int | None = Field(None, ge=1)
    match: str = ""
    seed: int | None = None
    status: int | None = Field(None, ge=0, le=599)
    code: int | str | None = None
    retry_after: float | None = Field(None, ge=0)
    latency_s: float | LogNormal | None = None
    drop: bool = False
    empty: bool = False
    page: bool = False
    after: bool = False
    truncate: bool = False
    rate_per_s: float | None = Field(None, gt=0)
    batch: BatchFault | None = None
    state: str = "in_progress"
    share: float | None = Field(None, ge=0, le=1)
    polls: int | None = Field(None, ge=0)
    tokens: int = Field(0, ge=0)
    _random: random.Random = PrivateAttr()
    _tokens: float = PrivateAttr(0.0)
    _filled_at: float = PrivateAttr(0.0)

    @model_validator(mode="after")
    def _one_effect(self) -> Fault:
        if not self.effects and self.latency_s is None:
            raise ValueError("a fault needs one of status, latency_s, drop, empty, page, truncate, rate_per_s, batch")
        if self.status is not None and self.status < 400 and (self.status or self.batch != "row"):
            raise ValueError("status is from 400 to 599, or 0 for a row of a batch")
        if self.batch and self.target not in ("anthropic", "openai"):
            raise ValueError("batch is for batches of OpenAI and of Anthropic")
        if isinstance(self.latency_s, float) and self.latency_s < 0:
            raise ValueError("latency_s is in seconds, and not negative")
        if isinstance(self.code, str) and self.target not in _NAMES_ERRORS:
            raise ValueError("code is a number; only Anthropic, OpenAI and R2 have names for their errors")
        return self

    def model_post_init(self, _context: object) -> None:
        """Starts the draws and fills the bucket."""
        self._random = random.Random(self.seed)  # noqa: S311  faults need repeatability, not secrecy
        self._tokens = max(self.rate_per_s or 0.0, 1.0)

    @property
    def effects(self) -> bool:
        """Whether it does more than delay."""
        done = self.drop or self.empty or self.page or self.truncate
        return bool(done or self.rate_per_s or self.status is not None or self.batch not in (None, "row"))

    def strikes(self, target: FaultTarget, texts: tuple[str, ...], now: float, batch: BatchFault | None = None) -> bool:
        """Draws for one call, row or batch; if it strikes, uses up one of ``count``."""
        if (target, batch) != (self.target, self.batch) or self.count == 0:
            return False
        if not any(self.match in text for text in texts):
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
            return error_page(self.status or 200, self.retry_after)
        if self.status == 0:
            return HttpReply(0)
        return error_reply(self.target, self.status, self.code, self.retry_after) if self.status else None

    def shuffled(self, items: list[bytes]) -> list[bytes]:
        """The items in a random order."""
        return self._random.sample(items, len(items))


class Faults:
    """The active faults, which are drawn in the order in which they were added."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.active: list[Fault] = []

    def draw(self, target: FaultTarget, *texts: str, batch: Literal["row"] | None = None) -> tuple[float, Fault | None]:
        """What strikes one call, or one row of a batch: all delays in seconds, and the first fault beyond a delay.

        ``texts``: its decoded path and its prompt.
        """
        delay, chosen = 0.0, None
        for fault in self.active:
            if (chosen is None or not fault.effects) and fault.strikes(target, texts, self._clock(), batch):
                delay += fault.delay()
                chosen = fault if fault.effects else chosen
        if chosen and chosen.rate_per_s is not None:
            delay = chosen.delay()  # calls beyond the rate are refused at once, not after the usual latency
        return delay, chosen

    def of_batch(self, target: FaultTarget, *texts: str) -> list[Strike]:
        """All faults that strike one new batch."""
        found = [one for one in self.active if one.batch not in (None, "row")]
        struck = [one for one in found if one.strikes(target, texts, self._clock(), one.batch)]
        return [Strike(one, self) for one in struck]

    def now(self) -> float:
        """Seconds, of the clock that faults go by."""
        return self._clock()

    async def under(
        self,
        target: FaultTarget,
        texts: tuple[str, ...],
        work: Callable[[], Awaitable[HttpReply]],
        batch: Literal["row"] | None = None,
    ) -> HttpReply:
        """Answers one call, or one row of a batch, by its work or by a fault."""
        delay, fault = self.draw(target, *texts, batch=batch)
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


class Strike:
    """A fault that has struck a batch."""

    def __init__(self, fault: Fault, faults: Faults) -> None:
        self.fault = fault
        self._faults = faults
        self._until: float | None = None
        self._looks = 0

    def begin(self) -> None:
        """From now on, it holds something up."""
        self._looks = 0
        if self.fault.latency_s is not None:
            self._until = self._faults.now() + self.fault.delay()

    def look(self) -> None:
        """Somebody has looked at what it holds up."""
        self._looks += 1

    def holds(self) -> bool:
        """Whether it does so still."""
        fault = self.fault
        if not any(one is fault for one in self._faults.active):
            return False
        if fault.polls is None and self._until is None:
            return True
        within = self._until is not None and self._faults.now() < self._until
        return within or (fault.polls is not None and self._looks < fault.polls)
