"""Pauses the calls of a model during an outage of its service, and makes one call now and then to see if it is over.

Times are seconds of one clock, which the caller brings.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from llmdo.backends.errors import CallTimeout, ConnectionFailed, ModelError, Overloaded, Retryable
from llmdo.backends.limits.calls import Started
from llmdo.backends.limits.retry import instant, is_throttled
from llmdo.backends.responses import Response

PATIENCE_S = 600.0
# Failed calls, with no answer to one that began later, that look like an outage: as many as were in flight, within
# these bounds. Of several servers behind one address some may fail, and sooner than the others answer.
FEWEST, MOST = 3, 16
REQUESTS = 3  # that must be among them where requests may be to blame: one may crash the server again and again
SHORT_S = 5.0  # an outage after which calls go on as before; after a longer one the window grows again from its start
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
WARN_EVERY_S = 300.0
_KEPT = 100  # failed calls that are remembered

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Away:
    """An ongoing outage: its length so far, and the seconds until the next call (0: one is under way)."""

    for_s: float
    next_try_s: float


class Breaker:
    """Of one model at one provider, ``name``. It must hear of each call's start and end.

    It opens when some calls in a row have found the service away, and at the first one if nothing was ever answered and
    the request cannot be to blame. While it is open one call is made at a time, after pauses that double from 1 to 60 s
    (or as long as Retry-After says). The first reply to such a call closes it. Calls that the outage has ended are
    ``excused``, as are those that did not reach the service at all: their tries do not count. Where the first such call
    is answered soon, there was no outage, but requests that stand together and fail: they are the requests' ``own``,
    and further failures of these open nothing.

    ``requests``: of how many requests the failed calls must be where these may be to blame.
    After ``patience_s`` s without a reply ``given_up`` is the last error, until ``try_once``.
    """

    def __init__(self, name: str, patience_s: float = PATIENCE_S, requests: int = REQUESTS) -> None:
        self.given_up: Retryable | None = None
        self._name = name
        self._patience_s = patience_s
        self._requests = requests
        self._answered = False  # ever
        self._failed: list[tuple[Started, bool]] = []  # in a row, and whether the request may be to blame
        self._many = FEWEST  # failures that count as an outage
        self._since: float | None = None
        self._paused_s = 0.0
        self._waited_s = 0.0  # the pauses of this outage, which take no time where waits are instant
        self._pause_s = FIRST_PAUSE_S
        self.failed_probes = 0  # of this outage
        self._next_at = 0.0
        self._probe: Started | None = None
        self._warned_at = 0.0

    @property
    def is_open(self) -> bool:
        """Whether calls are paused."""
        return self._since is not None

    def opens_at(self) -> float:
        """From when on a call may start; infinite while a probing call is under way."""
        if self._since is None:
            return float("-inf")
        if self._probe:
            return float("inf")
        return float("-inf") if instant() else self._next_at

    def away(self, now: float) -> Away | None:
        """The ongoing outage, or None."""
        if self._since is None:
            return None
        return Away(now - self._since, 0.0 if self._probe else max(0.0, self._next_at - now))

    def paused_s(self, now: float) -> float:
        """Seconds of all outages so far."""
        return self._paused_s + (0.0 if self._since is None else now - self._since)

    def started(self, call: Started) -> None:
        """Takes note of a call that starts."""
        if self._since is not None:
            self._probe = call

    def ended(
        self, call: Started, response: Response | None, error: ModelError | None, now: float, in_flight: int = 1
    ) -> bool:
        """Takes note of a call's end, one of ``in_flight``; returns whether it ends a long outage."""
        was_probe, self._probe = call is self._probe, None if call is self._probe else self._probe
        if response or (error and not _is_away(error)):
            self._answered = self._answered or response is not None
            if self._since is None:
                for failed, soft in self._failed if response else ():
                    failed.own = failed.own or (soft and failed.at <= call.at)
                self._failed = [(failed, soft) for failed, soft in self._failed if failed.at > call.at]
            elif was_probe:
                return self._close(now)
        elif isinstance(error, Retryable):
            if not self._failed:
                self._many = min(max(in_flight, FEWEST), MOST)
            self._fails(call, error, was_probe, now)
        return False

    def try_once(self, now: float) -> None:
        """After ``given_up``: the outage lasts, and the next call may be made at once."""
        self.given_up, self._next_at = None, now

    def _forget(self) -> None:
        self._since = self._probe = None
        self._failed.clear()
        self._waited_s, self._pause_s, self.failed_probes = 0.0, FIRST_PAUSE_S, 0

    def _fails(self, call: Started, error: Retryable, was_probe: bool, now: float) -> None:
        certain = _is_certain(error) or (not self._answered and error.status == 503)
        if call.suspect and not certain and self._since is None:
            return
        self._failed.append((call, not certain))
        several = len({failed.job or id(failed) for failed, soft in self._failed if soft}) >= self._requests
        call.excused = certain
        if self._since is None:
            unreached = sum(not soft for _, soft in self._failed)
            enough = len(self._failed) >= self._many and (several or unreached >= FEWEST)
            if not (enough or (certain and not self._answered)):
                return
            self._since = self._warned_at = now
            _log.warning("%s does not answer, calls pause: %s", self._name, error.message)
        elif was_probe:
            self.failed_probes += 1
            self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
        for failed, soft in self._failed:
            failed.excused = several or not soft
        del self._failed[:-_KEPT]
        if was_probe or not self._waited_s:
            self._wait(error, now)

    def _wait(self, error: Retryable, now: float) -> None:
        assert self._since is not None  # noqa: S101  it is open
        left_s = self._patience_s - max(self._waited_s, now - self._since)
        if left_s <= 0:
            self.given_up = error
            return
        wait_s = max(min(self._pause_s, left_s), error.retry_after or 0.0)
        self._waited_s += wait_s
        self._next_at = now + wait_s
        if now - self._warned_at >= WARN_EVERY_S:
            self._warned_at = now
            _log.warning("%s has not answered for %.0f s: %s", self._name, now - self._since, error.message)

    def _close(self, now: float) -> bool:
        assert self._since is not None  # noqa: S101  it is open
        lasted_s = now - self._since
        if not self.failed_probes and lasted_s <= SHORT_S:
            for failed, soft in self._failed:
                failed.own, failed.excused = soft, failed.excused and not soft
        self._paused_s += lasted_s
        _log.warning("%s answers again, after %.0f s", self._name, lasted_s)
        self._forget()
        return lasted_s > SHORT_S


def _is_away(error: ModelError) -> bool:
    """Whether the service may be down, as far as one call can show: it did not reply, or failed as a whole.

    Where it counts the tokens of an answer that failed, it works.
    """
    if error.usage is not None:
        return False
    if isinstance(error, Overloaded):
        return not is_throttled(error) and (error.status is None or error.status >= 500)
    return isinstance(error, CallTimeout | ConnectionFailed)


def _is_certain(error: ModelError) -> bool:
    """Whether the request cannot be to blame: it was not sent, or the server was still loading its model."""
    return error.code == "unavailable_error" if isinstance(error, Overloaded) else error.lost is False
