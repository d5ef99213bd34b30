"""Decides what an unclear refusal is about: the line, or the account and so every line.

No status decides that alone: 401, 402, 403, 404 and 451 come for a line as well. So the job is held, without a place in
the window and without another try, until other calls with the same key and model decide.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass

from llmdo.backends.engine.jobs import Job
from llmdo.backends.engine.scheduler import Scheduler
from llmdo.backends.engine.settings import CallSettings
from llmdo.backends.errors import (
    BadReply,
    InvalidRequest,
    LimitReached,
    ModelError,
    ModelUnusable,
    RequestRefused,
    ServiceAway,
    StopRun,
    WrongService,
)
from llmdo.backends.limits.retry import instant

# Lines that must meet the same refusal one after the other, with no answer between. Before the first answer a wrong key
# is likely, and each further call is in vain; after it, some lines of a kind may well stand together.
BEFORE_ANSWERS, AFTER_ANSWERS = 5, 10
QUIET_S = 1.0  # without any call or job of the model: nothing else is to come that could decide
_LOOK_S = 0.25
_MOST = 4  # times as many refusals of several kinds
_OF_LINES_TOO = (403, 404, 451)  # whatever their words, they may be about the line alone

Key = tuple[str, str]  # provider, model


@dataclass(frozen=True, slots=True)
class HeldJob:
    """A job whose refusal is not decided yet. ``at``: when it came."""

    job: Job
    error: ModelError
    at: float
    latency_s: float


class Verdicts:
    """Holds the jobs whose refusals are not decided yet; used on the loop's thread.

    An answer to a call that began after a refusal makes that the line's own error. The same refusal for
    BEFORE_ANSWERS lines, or AFTER_ANSWERS once there were answers, stops the calls; those in flight may still decide.
    Where nothing else is in work, the answers of this run decide, or those of earlier ones.

    Args:
        loop: the engine's event loop.
        scheduler: knows the calls in flight, and holds a model's calls back.
        busy: whether any job of a model is in work, other than held ones.
        settle: ends a held job with an error.
        condemn: ends all held jobs of a model with an error that holds for every call.
        answered_before: see CallSettings. It may take as long as a call, and is asked only where calls are about to
            stop.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        scheduler: Scheduler,
        busy: Callable[[Key], bool],
        settle: Callable[[HeldJob, ModelError], None],
        condemn: Callable[[Key, ModelError, list[HeldJob]], None],
        answered_before: Callable[[], bool],
    ) -> None:
        self._loop = loop
        self._scheduler = scheduler
        self._busy = busy
        self._settle = settle
        self._condemn = condemn
        self._answered_before = answered_before
        self._held: defaultdict[Key, list[HeldJob]] = defaultdict(list)
        self._streak: defaultdict[Key, Counter[tuple[object, ...]]] = defaultdict(Counter)  # refusals since an answer
        self._answered: set[Key] = set()
        self._condemned: set[Key] = set()  # whose errors need no further proof
        self._quiet_since: dict[Key, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def leaves_open(self, key: Key, error: ModelError) -> bool:
        """Whether an error is to be held."""
        if key in self._condemned:
            return False
        if isinstance(error, ModelUnusable) and isinstance(error.code, int):
            return error.about == "unclear"  # a number of Cloudflare's says for certain that it is the model
        if isinstance(error, StopRun | ModelUnusable):
            return error.about == "unclear" or (
                error.status in _OF_LINES_TOO
                and (isinstance(error, ModelUnusable) or key in self._answered or self._answered_before())
            )
        return key not in self._answered and _is_no_api(error)

    def hold(self, key: Key, held: HeldJob) -> None:
        """Takes a job whose error leaves it open; ``ended`` is called next."""
        self._held[key].append(held)
        self._streak[key][_signature(held.error)] += 1
        if self._timer is None:
            self._timer = self._loop.call_later(0.0 if instant() else _LOOK_S, self._look)

    def answered(self, key: Key, at: float) -> None:
        """A call that began at ``at`` was answered."""
        self._answered.add(key)
        self._condemned.discard(key)
        self._streak.pop(key, None)
        if held := self._held.get(key):
            self._held[key] = [one for one in held if one.at > at]
            for one in held:
                if one.at <= at:
                    self._settle(one, as_lines_own(one.error))

    def ended(self, key: Key) -> None:
        """A call has ended, with whatever result."""
        held = self._held.get(key)
        if not held:
            self._scheduler.hold(key, False)
            return
        many = AFTER_ANSWERS if key in self._answered else BEFORE_ANSWERS
        in_flight, last = self._scheduler.in_flight_of(key), _signature(held[-1].error)
        if not in_flight and self._is_enough(key, last, many) and not self._may_be_lines(key, held[-1].error, last):
            self._stop(key, held[-1].error)
            return
        # Those in flight may answer later than others are refused: only more than them look like all.
        most = max(many, in_flight) if key in self._answered else many
        alike = sum(_signature(one.error) == last for one in held)
        self._scheduler.hold(key, bool(in_flight) and (alike >= most or len(held) >= _MOST * most))

    def _is_enough(self, key: Key, last: tuple[object, ...], many: int) -> bool:
        streak = self._streak[key]
        return streak[last] >= many or streak.total() >= _MOST * many

    def _may_be_lines(self, key: Key, error: ModelError, last: tuple[object, ...]) -> bool:
        """Whether there were answers before this run, and there are too few refusals to be sure."""
        before = error.status != 401 and not self._is_enough(key, last, AFTER_ANSWERS)
        return before and self._answered_before()

    def take_all(self) -> list[HeldJob]:
        """What is held, which is not any more."""
        held = [one for some in self._held.values() for one in some]
        self._held.clear()
        if self._timer:
            self._timer.cancel()
            self._timer = None
        return held

    def _look(self) -> None:
        self._timer = None
        now, quiet_s = self._loop.time(), 0.0 if instant() else QUIET_S
        for key in [key for key, held in self._held.items() if held]:
            if self._busy(key):
                self._quiet_since.pop(key, None)
            elif now - self._quiet_since.setdefault(key, now) >= quiet_s:
                del self._quiet_since[key]
                self._decide(key)
        if any(self._held.values()) and self._timer is None:
            self._timer = self._loop.call_later(_LOOK_S, self._look)

    def _decide(self, key: Key) -> None:
        """Nothing else is in work."""
        held = self._held[key]
        error = held[0].error
        before = error.status != 401 and self._answered_before()  # which a key that is wrong now says nothing of
        certain = next((one.error for one in held if _ends_all(one.error)), None)
        if certain:
            self._stop(key, certain)
        elif _is_no_api(error) or key in self._answered or before:
            del self._held[key]
            for one in held:
                self._settle(one, as_lines_own(one.error))
        elif array := next((one for one in held if one.job.deliveries > 1), None):
            held.remove(array)  # its halves show more
            self._settle(array, as_lines_own(array.error))
        else:
            self._stop(key, error)

    def _stop(self, key: Key, error: ModelError) -> None:
        self._condemned.add(key)
        self._streak.pop(key, None)
        held = self._held.pop(key)
        if _is_no_api(error):
            said = f"{key[0]}: what answers at the base URL is not its API: check the URL ({error.message})"
            error = WrongService(said, status=error.status, code=error.code, provider=key[0])
        self._scheduler.hold(key, False)
        self._condemn(key, error, held)


def as_lines_own(error: ModelError) -> ModelError:
    """The error of a line that it is about alone."""
    if not isinstance(error, StopRun | ModelUnusable):
        return error
    return RequestRefused(
        f"{error.message}; other lines were answered: it is about this one",
        status=error.status,
        code=error.code,
        request_id=error.request_id,
        provider=error.provider,
        usage=error.usage,
        lost=error.lost,
    )


def _ends_all(error: ModelError) -> bool:
    """Whether it is certainly about the key or the account, which may have been closed since the last answer."""
    return isinstance(error, StopRun) and error.about == "account"


def _is_no_api(error: ModelError) -> bool:
    """Whether a web server, or anything else, may have answered in the place of the API; it billed nothing then."""
    if isinstance(error, InvalidRequest):
        return error.status in (405, 501)
    return isinstance(error, BadReply) and error.usage is None and error.code is None


def _signature(error: ModelError) -> tuple[object, ...]:
    return type(error), error.status, error.code


def final_error(
    scheduler: Scheduler, key: tuple[str, str], error: ModelError, settings: CallSettings, now: float
) -> ModelUnusable | None:
    """The error of all calls of a provider's model, where one has failed so that no more are to be made; else None.

    Calls that wait get it. So do those that come before the time that the service named; after an outage that outlasted
    the patience, the next call is made at once.
    """
    breaker, name = scheduler.throttle_of(key).breaker, "/".join(key)
    retry, naming = settings.retry, settings.limits.naming
    if retry.asks_too_much(error):
        wait_s = error.retry_after or 0.0
        final: ModelUnusable = LimitReached(
            f"{name} asks to wait for {wait_s:,.0f} s, and {naming.of('deadline_s')} allows {retry.deadline_s:,g}: "
            f"{naming.again} then ({error.message})",
            status=error.status,
            code=error.code,
            retry_after=wait_s,
            provider=key[0],
            until=error.until or time.time() + wait_s,
        )
    elif breaker.given_up:
        wait_s = 0.0  # the next call may find the service back
        final = ServiceAway(
            f"{name} has answered nothing for {settings.patience_s:g} s ({naming.of('patience_s')}): see that the "
            f"service runs at its base URL, then {naming.again} ({error.message})",
            status=error.status,
            code=error.code,
            provider=key[0],
        )
        breaker.try_once(now)
    else:
        return None
    scheduler.refuse(key, final, wait_s)
    return final
