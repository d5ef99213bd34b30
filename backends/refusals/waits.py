"""How long a refusal asks to wait: by its headers, its body, or its words."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime

from llmdo.backends.http.client import retry_after_s
from llmdo.backends.refusals.body import Body

# "6m0s", "1.5s", "120 ms", "35000 seconds", "2 hours"; then ".NET's" 2.15:30:00 (days, hours, minutes, seconds).
_UNITS = {"d": 86_400.0, "h": 3_600.0, "m": 60.0, "s": 1.0, "ms": 0.001, "milli": 0.001}
_NUMBER = r"\d{1,9}(?:\.\d{1,12})?"
_AMOUNT = re.compile(rf"({_NUMBER})\s?(ms|milli|d|h|m|s)[a-z]{{0,9}}", re.IGNORECASE)
_UNIT = r"(?:ms|milliseconds?|s|secs?|seconds?|m|mins?|minutes?|h|hrs?|hours?|d|days?)(?![a-z])"
_DURATION = re.compile(rf"(?:{_NUMBER}\s?{_UNIT}(?:,? and |,? |(?=\d))?){{1,5}}", re.IGNORECASE)
_CLOCKED = re.compile(r"(?:(\d{1,4})\.)?(\d{1,3}):(\d\d):(\d\d)(?:\.\d{1,9})?")
# The words before it: "Please retry in", "Try again in about", "Please wait", "Quota will be replenished in".
_ASKS = re.compile(
    r"(?:try(?:ing)? again|retry(?:ing)?(?: your request| again)?|wait(?: for)?|replenished|resets?|available again)"
    r"(?: in| after)?(?: about| at least| approximately)? ",
    re.IGNORECASE,
)
_DATE = re.compile(r"regain access on (\d{4}-\d\d-\d\d) at (\d\d:\d\d) UTC")
LONGEST_S = 366 * 86_400.0  # what is more is a mistake, and no date
_EPOCH_S, _EPOCH_MS = 1e9, 1e12


def wait_s(headers: Mapping[str, str], body: Body, now: float) -> float | None:
    """Seconds that a refusal asks to wait; None where nothing says.

    A header made for it wins (``retry-after-ms``, ``Retry-After``, Azure's ``x-ms-retry-after``); else the longest of
    what the body names, the resets of the limits that are used up, and the sentence's "try again in 20s". More than
    LONGEST_S counts as that.
    """
    asked = next(_asked(headers, body, now), None)
    if asked is None:
        named = (until_s(text, now) for text in body.waits)
        found = (*named, *_resets(headers, now), *_resets(body.headers, now), words_s(body.words, now))
        asked = max((wait for wait in found if wait is not None), default=None)
    return asked if asked is None else min(asked, LONGEST_S)


def _asked(headers: Mapping[str, str], body: Body, now: float) -> Iterator[float]:
    for name in ("retry-after-ms", "x-ms-retry-after-ms"):
        if (amount := _number(headers.get(name, ""))) is not None:
            yield amount / 1000
    for header in (
        headers.get("retry-after", ""),
        headers.get("x-ms-retry-after", ""),
        body.headers.get("retry-after", ""),
    ):
        if (wait := retry_after_s({"retry-after": header}, now)) is not None:
            yield wait


def words_s(words: str, now: float) -> float | None:
    """Seconds to wait by a sentence: "Please retry in 2.5s", "wait 35000 seconds", "regain access on 2026-12-01 …"."""
    for asks in _ASKS.finditer(words):
        rest = words[asks.end() : asks.end() + 80]
        amount = _DURATION.match(rest) or _CLOCKED.match(rest)
        if amount:
            return duration_s(amount[0])
    date = _DATE.search(words)
    return until_s(f"{date[1]}T{date[2]}:00+00:00", now) if date else None


def until_s(text: str, now: float) -> float | None:
    """Seconds of a duration, a number of seconds, a Unix time in seconds or milliseconds, or an RFC 3339 time."""
    amount = _number(text)
    if amount is not None:
        at = amount / 1000 if amount >= _EPOCH_MS else amount
        return max(0.0, at - now) if at >= _EPOCH_S else amount
    if (duration := duration_s(text)) is not None:
        return duration
    try:
        time = datetime.fromisoformat(text.strip())
    except ValueError:
        return None
    return max(0.0, (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp() - now)


def duration_s(text: str) -> float | None:
    """Seconds of ``1h6m0s``, ``120ms``, ``35000 seconds``, ``2.15:30:00``; None for what is not a duration."""
    text = text.strip()[:80]
    clock = _CLOCKED.fullmatch(text)
    if clock:
        days, hours, minutes, seconds = (int(part or 0) for part in clock.groups())
        return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)
    if not _DURATION.fullmatch(text):
        return None
    amounts = _AMOUNT.findall(text)
    return sum(float(number) * _UNITS[unit.lower()] for number, unit in amounts)


def _resets(headers: Mapping[str, str], now: float) -> Iterator[float | None]:
    """When limits that are used up are whole again, by ``x-ratelimit-reset-tokens`` and the like."""
    for name, value in headers.items():
        reset = name.lower()
        if "ratelimit" in reset and "reset" in reset:
            left = headers.get(reset.replace("reset", "remaining"), "0" if reset.endswith("ratelimit-reset") else "")
            if _number(left) == 0:
                yield until_s(value, now)


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return max(0.0, number) if abs(number) < 1e15 else None
