"""What a refusal means: tables of meanings, and the error that a reply becomes by them."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from llmdo.backends.errors import About, ModelError, RateLimited
from llmdo.backends.http.client import next_midnight_utc
from llmdo.backends.refusals.body import Body
from llmdo.backends.refusals.waits import wait_s

_SAID = 400  # characters of the provider's own text that go into our sentence
_PACIFIC = "America/Los_Angeles"  # Google's day
SOON_S = 60.0  # a day's limit that leaves room again so soon is a rate


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a refusal is, in words, and the class that decides what follows.

    ``{key}`` and ``{provider}`` in the remedy are filled in. ``about``: see ModelError. ``ends``: when an
    allowance comes back: at a midnight, whatever wait the reply names, or after that wait.
    """

    error: type[ModelError]
    what: str
    remedy: str
    about: About | None = None
    ends: Literal["UTC", "Pacific", "stated"] | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """A refusal that is known by its words, under statuses where these are not a prompt that the service repeats."""

    words: re.Pattern[str]
    statuses: frozenset[int]
    meaning: Meaning

    def fits(self, status: int, said: str) -> bool:
        """Whether it is this refusal; of a row with numbers, what was asked for must be above the limit."""
        found = self.words.search(said) if status in self.statuses else None
        if found and self.words.groups:
            asked, limit = (int(found[name].replace(",", "")) for name in ("asked", "limit"))
            return asked > limit
        return bool(found)


@dataclass(frozen=True, slots=True)
class Refusals:
    """What the refusals of a kind of service mean. The words are looked at before the codes, which are more general;
    the status decides where neither is known.
    """

    texts: tuple[Row, ...]
    codes: Mapping[Any, Meaning]
    statuses: Mapping[int, Meaning]

    def known(self, status: int, codes: Iterable[Hashable], words: str) -> Meaning | None:
        """What the words or the codes say; None where both are unknown."""
        by_text = (row.meaning for row in self.texts if row.fits(status, words))
        by_code = (self.codes[code] for code in codes if code in self.codes)
        return next(by_text, None) or next(by_code, None)

    def known_by(self, status: int, body: Body) -> Meaning | None:
        """The same for a body whose codes are words, and may stand among the others."""
        return self.known(status, (code.lower() for code in body.codes), f"{body.words} {' '.join(body.codes)}")

    def by_status(self, status: int) -> Meaning:
        """What the status alone says: its own row, or that of its hundred."""
        return self.statuses.get(status) or self.statuses[min(max(status // 100, 2), 5)]


def words(pattern: str, *statuses: int, meaning: Meaning) -> Row:
    """A row of ``texts``; in any case of letters."""
    return Row(re.compile(pattern, re.IGNORECASE), frozenset(statuses), meaning)


def make_error(
    meaning: Meaning,
    body: Body,
    headers: Mapping[str, str],
    now: float,
    *,
    model: str,
    status: int,
    code: int | str | None,
    request_id: str | None,
    provider: str,
    key: str,
    lost: bool | None = None,
) -> ModelError:
    """The error: what happened to which model, codes, the remedy, the provider's own words, and when to resume.

    ``key``: the variable that holds the key. ``now``: Unix time in seconds.
    """
    wait = wait_s(headers, body, now)
    if meaning.ends == "stated" and wait is not None and wait <= SOON_S:
        meaning = replace(meaning, error=RateLimited)
    label = f"code {code}" if isinstance(code, int) else code
    numbers = f"{label}, HTTP {status}" if label is not None else f"HTTP {status}"
    remedy = meaning.remedy.replace("{key}", key).replace("{provider}", provider)
    text = f"{model}: {meaning.what} ({numbers}): {remedy}"
    return meaning.error(
        f"{text}; the service said {body.words[:_SAID]!r}" if body.words else text,
        status=status,
        code=code,
        retry_after=wait,
        request_id=request_id,
        provider=provider,
        until=_midnight(meaning, now) or (None if wait is None else now + wait),
        about=meaning.about,
        lost=lost,
    )


def _midnight(meaning: Meaning, now: float) -> float | None:
    """Unix time of the midnight at which it ends; None for one that does not, and where the zone is not known."""
    if meaning.ends == "UTC":
        return next_midnight_utc(now)
    if meaning.ends != "Pacific":
        return None
    try:
        here = datetime.fromtimestamp(now, ZoneInfo(_PACIFIC))
    except ZoneInfoNotFoundError:
        return None
    return (here.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)).timestamp()
