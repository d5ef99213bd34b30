"""What held a run's calls back, and when a stopped run can resume: for people, and as JSON."""

from __future__ import annotations

import math
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from llmdo.backends.limits.throttle import CHANGES, Change, ModelLimits

_END_OF_TIME = datetime(9999, 12, 31, 23, 59, tzinfo=UTC)
_WORTH_A_WORD_S = 1.0  # shorter delays are not shown
_MOSTLY = 0.5


def limits_json(limits: ModelLimits) -> dict[str, Any]:
    """A model's limits with every change and its reason; rates are null where there is none. Times in seconds."""
    return {
        "model": f"{limits.provider}/{limits.model}",
        "calls": limits.calls,
        "refused": limits.refused,
        "window": limits.window,
        "requests_per_s": _finite(limits.per_s),
        "rpm": _finite(limits.rates.rpm),
        "tpm": _finite(limits.rates.tpm),
        "throttled_s": round(limits.throttled_s, 3),
        "waited_s": round(limits.waited_s, 3),
        "away_s": round(limits.away_s, 3),
        "changes": [_change_json(change) for change in limits.changes],
    }


def limits_text(limits: ModelLimits) -> str:
    """The same in a line; "" if nothing worth mentioning held the calls back."""
    parts = []
    slower = sum(_is_slower(change) for change in limits.changes)
    if slower:
        times = "once" if slower == 1 else f"{slower:,} times"
        least = "at least " if len(limits.changes) == CHANGES else ""
        parts.append(f"slowed down {least}{times} by refusals ({limits.refused:,} of {limits.calls:,} calls)")
        most = max(limits.window, *(change.window for change in limits.changes))
        last = f", {limits.window:,} at last" if limits.window < most else ""
        parts.append(f"calls at once: {most:,}{last}")
        if limits.per_s is not None:
            parts.append(f"≈ {limits.per_s:.3g} requests/s learnt")
    if limits.throttled_s >= _WORTH_A_WORD_S:
        rates = ((limits.rates.rpm, "requests a minute"), (limits.rates.tpm, "tokens a minute"))
        allowed = " and ".join(f"{rate:g} {what}" for rate, what in rates if _finite(rate) is not None)
        parts.append(f"held back for {limits.throttled_s:,.0f} s" + (f" (allowed: {allowed})" if allowed else ""))
    if limits.away_s >= _WORTH_A_WORD_S:
        parts.append(f"paused for {limits.away_s:,.0f} s while the service was unavailable")
    return f"{limits.provider}/{limits.model}: {'; '.join(parts)}" if parts else ""


def held_text(limits: Iterable[ModelLimits], throttled: float) -> str:
    """What holds calls back at this moment, for a progress line; "" where nothing does.

    ``throttled``: the part of the last seconds in which a call was ready and had to wait.
    """
    found = []
    for model in limits:
        rate = min((rate for rate in (_finite(model.per_s), _finite(model.rates.per_s)) if rate), default=None)
        if throttled > _MOSTLY and rate is not None:
            found.append(f"held back to {rate:.3g} requests/s")
        if model.away:
            wait_s = model.away.next_try_s
            then = f"next try in {wait_s:,.0f} s" if wait_s else "trying now"
            found.append(f"{model.provider}/{model.model} has not answered for {model.away.for_s:,.0f} s, {then}")
    return " · ".join(found)


def iso_time(at: float, timespec: str = "seconds") -> str:
    """A Unix time in ISO 8601, in UTC.

    >>> iso_time(1_790_000_000.5)
    '2026-09-21T14:13:20Z'
    """
    return _utc(at).isoformat(timespec=timespec).replace("+00:00", "Z")


def until_text(at: float) -> str:
    """A sentence on when a run can resume: a minute too late is better than one too early.

    >>> until_text(1_790_000_000.0)
    'It can resume from 2026-09-21 14:14 UTC: run the same command again then.'
    """
    minute = _utc(60 * math.ceil(at / 60))
    return f"It can resume from {minute:%Y-%m-%d %H:%M} UTC: run the same command again then."


def _utc(at: float) -> datetime:
    """Capped at the latest date there is: a service may ask to wait any number of seconds."""
    return datetime.fromtimestamp(at, UTC) if at < _END_OF_TIME.timestamp() else _END_OF_TIME


def _change_json(change: Change) -> dict[str, Any]:
    return {
        "at": iso_time(change.at),
        "window": change.window,
        "requests_per_s": _finite(change.per_s),
        "pause_s": round(change.pause_s, 3),
        "reason": change.reason,
    }


def _is_slower(change: Change) -> bool:
    return change.pause_s > 0  # only slowing down needs a pause


def _finite(value: float | None) -> float | None:
    """JSON has no infinity: no limit is null."""
    return None if value is None or math.isinf(value) else round(value, 3)
