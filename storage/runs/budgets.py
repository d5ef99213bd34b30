"""What an output has cost over time, and what running processes may still spend: ``OUTPUT/_budget.json``.

The record is changed by conditional writes only. A process spends only what it has *leased* there before. What it has
spent goes into the record when it changes its lease, so that at any moment no more is spent than the record shows as
spent or leased. When a period ends, what was spent in it is forgotten, and leases go on: they count in the new one.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from llmdo.storage.errors import AlreadyExists, ObjectChanged, ObjectNotFound, StorageError, StorageUnavailable
from llmdo.storage.objects.store import ObjectStore
from llmdo.storage.runs.runs import Owner

BUDGET_NAME = "_budget.json"
Period = Literal["hour", "day", "week", "month", "ever"]
PERIODS: tuple[Period, ...] = ("hour", "day", "week", "month", "ever")

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# A period that begins this far ahead, and a lease that lasts for so long, were written by a clock that was wrong.
_SKEW, _LONGEST_LEASE = timedelta(minutes=5), timedelta(hours=1)
# How long a batch can be out (no provider takes longer), and how many reservations are kept apart.
_LONGEST_BATCH, _MOST_RESERVED = timedelta(days=31), 1000
_TRIES = 60  # of a change that others get ahead of; at most a second apart
_DECIMALS = 12  # of a sum of US dollars

_Usd = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Tokens = Annotated[int, Field(ge=0)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True)


class PeriodSpent(_Record):
    """What was spent since a period began."""

    since: AwareDatetime = _EPOCH
    usd: _Usd = 0.0
    tokens: _Tokens = 0

    def plus(self, usd: float, tokens: int) -> PeriodSpent:
        """With more spent."""
        return self.model_copy(update={"usd": round(self.usd + usd, _DECIMALS), "tokens": self.tokens + tokens})


class LimitRecord(_Record):
    """A ``--budget``: US dollars or tokens, in each period; None: no limit."""

    usd: _Usd | None = None
    tokens: _Tokens | None = None
    period: Period = "ever"


class LeaseRecord(_Record):
    """What a process may spend.

    Attributes:
        run_id: its run.
        limit: the run's budget. While several hold leases, the smallest holds for all.
        until: when it must have stopped making calls; then the whole lease counts as spent.
        number: of the process's changes; by it a process knows its own write when the reply to that was lost.
        waiting: a call of it does not fit into what is left.
    """

    run_id: Owner
    limit: LimitRecord
    usd: _Usd
    tokens: _Tokens
    until: AwareDatetime
    number: int
    waiting: bool = False


class ReservedRecord(_Record):
    """What the lines may cost at most that a run has left in a batch, ``at`` some time."""

    lines: Annotated[int, Field(ge=1)]
    usd: _Usd
    tokens: _Tokens
    at: AwareDatetime


class BudgetRecord(_Record):
    """The content of the object.

    Attributes:
        limit: the budget of the run that changed it last.
        spent: what was spent in the current hour, day, week, month, and ever.
        leases: by process.
        reserved: by batch. It counts in the periods that it was left in, as spent does.
    """

    version: Literal[1] = 1
    limit: LimitRecord = LimitRecord()
    spent: Mapping[Period, PeriodSpent] = {}
    leases: Mapping[str, LeaseRecord] = {}
    reserved: Mapping[str, ReservedRecord] = {}

    def at(self, now: datetime) -> BudgetRecord:
        """The record as time has passed: leases that have run out are spent, and periods that are over forgotten."""
        record, left, longest = self, {}, now + _LONGEST_LEASE
        for name, lease in sorted(self.leases.items(), key=lambda item: item[1].until):
            if lease.until <= now:
                record = record._in_periods(lease.until).with_spent(lease.usd, lease.tokens)
            else:
                left[name] = lease.model_copy(update={"until": min(lease.until, longest)})
        record = record.model_copy(update={"leases": left})._in_periods(now)
        return record._given_up(name for name, one in record.reserved.items() if one.at < now - _LONGEST_BATCH)

    def with_reserved(self, batch: str, lines: int, usd: float, tokens: int, now: datetime) -> BudgetRecord:
        """With more lines in a batch, or fewer. Of many batches the oldest count as spent."""
        there = self.reserved.get(batch)
        lines += there.lines if there else 0
        others = {name: one for name, one in self.reserved.items() if name != batch}
        if lines <= 0:
            return self.model_copy(update={"reserved": others})
        usd = max(0.0, round(usd + (there.usd if there else 0.0), _DECIMALS))
        tokens = max(0, tokens + (there.tokens if there else 0))
        one = ReservedRecord(lines=lines, usd=usd, tokens=tokens, at=now)
        record = self.model_copy(update={"reserved": {**others, batch: one}})
        surplus = sorted(record.reserved, key=lambda name: record.reserved[name].at)[:-_MOST_RESERVED]
        return record._given_up(surplus)

    def reserved_in(self, period: Period) -> tuple[float, int]:
        """US dollars and tokens that are reserved in the current period."""
        since = self.spent[period].since
        found = [one for one in self.reserved.values() if one.at >= since]
        return round(sum(one.usd for one in found), _DECIMALS), sum(one.tokens for one in found)

    def _given_up(self, batches: Iterable[str]) -> BudgetRecord:
        """With batches as spent, in the periods that they count in."""
        record = self
        for name in batches:
            one = record.reserved[name]
            spent = {
                period: tally.plus(one.usd, one.tokens) if one.at >= tally.since else tally
                for period, tally in record.spent.items()
            }
            left = {other: kept for other, kept in record.reserved.items() if other != name}
            record = record.model_copy(update={"spent": spent, "reserved": left})
        return record

    def with_spent(self, usd: float, tokens: int) -> BudgetRecord:
        """With more spent, in each of the periods."""
        return self.model_copy(update={"spent": {name: one.plus(usd, tokens) for name, one in self.spent.items()}})

    def _in_periods(self, now: datetime) -> BudgetRecord:
        spent = {}
        for period in PERIODS:
            tally, begin = self.spent.get(period, PeriodSpent()), begin_of(period, now)
            if tally.since < begin:
                tally = PeriodSpent(since=begin)
            elif tally.since > now + _SKEW:
                tally = tally.model_copy(update={"since": begin})
            spent[period] = tally
        return self.model_copy(update={"spent": spent})


def begin_of(period: Period, now: datetime) -> datetime:
    """When the current period began, in UTC; weeks begin on Mondays.

    >>> begin_of("week", datetime(2026, 12, 1, 5, tzinfo=UTC)).isoformat()
    '2026-11-30T00:00:00+00:00'
    """
    now = now.astimezone(UTC)
    day = now.replace(hour=0, minute=0, second=0, microsecond=0)
    match period:
        case "hour":
            return day.replace(hour=now.hour)
        case "day":
            return day
        case "week":
            return day - timedelta(days=now.weekday())
        case "month":
            return day.replace(day=1)
        case "ever":
            return _EPOCH


def end_of(period: Period, now: datetime) -> datetime | None:
    """When the next period begins; None if none does.

    >>> end_of("month", datetime(2026, 12, 31, 5, tzinfo=UTC)).isoformat()
    '2027-01-01T00:00:00+00:00'
    """
    longest = {"hour": timedelta(hours=1), "day": timedelta(days=1), "week": timedelta(days=7)}
    if period == "ever":
        return None
    # The first moment of the next month is within 31 days of the last of this one.
    return begin_of(period, begin_of(period, now) + longest.get(period, timedelta(days=31)))


class BudgetBook:
    """The budget of one output."""

    def __init__(self, store: ObjectStore, prefix: str, nap: Callable[[float], None] = time.sleep) -> None:
        self._store, self._key, self._nap = store, prefix + BUDGET_NAME, nap

    def now(self) -> datetime:
        """By the store's clock."""
        return datetime.fromtimestamp(self._store.now(), UTC)

    def read(self) -> BudgetRecord | None:
        """As it is now; None if the output has no budget. Raises StorageError."""
        record, etag = self._read()
        return record.at(self.now()) if etag else None

    def change(self, changed: Callable[[BudgetRecord, datetime], BudgetRecord]) -> BudgetRecord:
        """Changes the record as it is now, and returns it; ``changed`` may be asked several times.

        A write whose reply is lost is tried again: ``changed`` must notice that the record has it. Raises StorageError.
        """
        for _ in range(_TRIES):
            there, etag = self._read()
            now = self.now()  # after a reply, so the store's clock is known
            record = changed(there.at(now), now)
            body = record.model_dump_json(indent=1).encode()
            try:
                if etag:
                    self._store.put_if_match(self._key, body, etag)
                else:
                    self._store.put_if_absent(self._key, body)
            except (AlreadyExists, ObjectChanged):
                self._nap(random.random())  # noqa: S311  jitter, no secret
            else:
                return record
        raise StorageUnavailable(f"{self._store.url}/{self._key}: others change it all the time; use fewer processes")

    def _read(self) -> tuple[BudgetRecord, str]:
        try:
            body, etag = self._store.read(self._key)
        except ObjectNotFound:
            return BudgetRecord(), ""
        try:
            return BudgetRecord.model_validate_json(body), etag
        except ValidationError:
            raise StorageError(
                f"{self._store.url}/{self._key} is not a budget that this version can read: remove it, and what was "
                "spent is forgotten"
            ) from None
