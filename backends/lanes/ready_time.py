"""Until when answers are wanted, as a user writes it: a time of day, a duration, or a date with a time."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer

from llmdo.backends.lanes.ready_by import ReadyBy

_TIME_OF_DAY = re.compile(r"([01]?\d|2[0-3]):([0-5]\d)(?::([0-5]\d))?")
_DURATION = re.compile(r"(?=\d)" + "".join(rf"(?:(\d+(?:\.\d+)?){unit})?" for unit in "dhms"))
_SECONDS = (86_400.0, 3600.0, 60.0, 1.0)
_LONGEST_S = 366 * _SECONDS[0]
_HOW = "write a time of day (06:00), a duration (8h, 1h30m) or a date with a time (2026-12-01T06:00Z)"


def ready_time(text: str, now: float) -> ReadyBy:
    """Reads ``06:00``, the next one by this machine's clock; ``8h`` from now; ``2026-12-01T06:00Z``, without Z local.

    ``now``: Unix time, as in the result. Raises ValueError, also for what is past.

    >>> ready_time("1h30m", 1000.0)
    ReadyBy(at=6400.0, begun=1000.0)
    """
    at = _time_of_day(text, now) or _after(text, now) or _moment(text)
    if at is None:
        raise ValueError(_HOW)
    if at <= now:
        raise ValueError(
            f"that was {_local(at):%Y-%m-%d %H:%M:%S}, and it is {_local(now):%H:%M:%S}: name a later time"
        )
    if at > now + _LONGEST_S:
        raise ValueError("that is more than a year from now: name an earlier time, or leave the option out")
    return ReadyBy(at, now)


def _time_of_day(text: str, now: float) -> float | None:
    found = _TIME_OF_DAY.fullmatch(text)
    if found is None:
        return None
    hour, minute, second = (int(part or 0) for part in found.groups())
    today = _local(now).replace(tzinfo=None, hour=hour, minute=minute, second=second, microsecond=0)
    # Each date by its own offset: the clocks may be changed in between.
    moments = ((today + timedelta(days=days)).timestamp() for days in (0, 1))
    return next(moment for moment in moments if moment > now)


def _after(text: str, now: float) -> float | None:
    found = _DURATION.fullmatch(text)
    if found is None:
        return None
    return now + sum(float(part or 0) * seconds for part, seconds in zip(found.groups(), _SECONDS, strict=True))


def _moment(text: str) -> float | None:
    if not re.search(r"\d[T ]\d", text):
        return None  # a date alone
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError):
        return None


def _local(at: float) -> datetime:
    return datetime.fromtimestamp(at).astimezone()


def _read(value: Any) -> Any:
    # llmdo.toml may have a time or a date of TOML's own.
    return value if isinstance(value, ReadyBy) else ready_time(str(value).strip(), time.time())


def _written(ready_by: ReadyBy) -> str:
    return datetime.fromtimestamp(ready_by.at, UTC).isoformat()


ReadyTime = Annotated[ReadyBy, BeforeValidator(_read), PlainSerializer(_written)]
