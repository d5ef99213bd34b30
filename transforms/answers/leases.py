"""Keeps this process's lease of the output's budget: takes, renews and returns it in the output's record."""

from __future__ import annotations

import atexit
import logging
import threading
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import cast

from llmdo.backends.errors import BudgetSpent
from llmdo.backends.money.grants import NOTHING_FREE, Allowance
from llmdo.backends.money.lease import Lease, PeriodBudget, Wish
from llmdo.backends.money.money import Budget
from llmdo.settings.clock import elapsed
from llmdo.storage.errors import StorageError, is_passing
from llmdo.storage.objects.store import R2_SCHEME
from llmdo.storage.runs.budgets import BudgetBook, BudgetRecord, LeaseRecord, LimitRecord, Period, end_of
from llmdo.transforms.run import Run
from llmdo.transforms.run_state import RunState

_log = logging.getLogger(__name__)

# Seconds for whose use a lease lasts. R2 takes one write a second to a key: with many processes each writes
# less often.
HORIZON_S, _APIECE_S, _LONGEST_HORIZON_S = 15.0, 2.0, 150.0
# A lease ends unless it is renewed; its holder makes no call in the last seconds, whatever its clock says.
LEASE_S, MARGIN_S = 120.0, 15.0
# Besides what calls in flight hold, a lease has at most this part of the budget, or what one call needs.
PART = 0.1
_GAP_S, _LOCAL_GAP_S = 1.0, 0.05  # between two writes of one process
_AGAIN_S, _LOOK_S, _NOTHING_S = 3.0, 60.0, 600.0
_ENDLESS = float("inf")


@dataclass(frozen=True, slots=True)
class LeaseChange:
    """A change of a process's lease.

    Attributes:
        name: the process's.
        number: of its changes.
        spent: by it since its last change.
        leased: what it had leased then.
        wish: what it would like.
        at: by the process's clock.
        seconds: for how long it would like it.
    """

    name: str
    run_id: str
    number: int
    limit: LimitRecord
    spent: Allowance
    leased: Allowance
    wish: Wish
    at: float
    seconds: float


def claimed(record: BudgetRecord, now: datetime, claim: LeaseChange) -> BudgetRecord:
    """The record with a change made: spent and leased stay within the budgets, as long as estimates of calls hold."""
    mine = record.leases.get(claim.name)
    if mine and mine.number == claim.number:  # it is made already: the reply was lost
        return record
    spent, wish = claim.spent, claim.wish
    total = wish.kept.at_least(wish.held)
    if mine is None:  # if there was one, it has run out, and all of it counts as spent
        spent, total = (spent - claim.leased).at_least(NOTHING_FREE), wish.held
    if mine or claim.leased == NOTHING_FREE:  # else what is left in batches is spent, too
        for batch, one in wish.reserves.items():
            record = record.with_reserved(batch, one.lines, one.most.usd, int(one.most.tokens), now)
            spent = (spent - one.most.at_least(NOTHING_FREE)).at_least(NOTHING_FREE)  # they are a part of it
    record = record.with_spent(spent.usd, int(spent.tokens))
    room = room_in(record, claim.limit, claim.name)
    fits = wish.least is not None and room.covers(wish.held + wish.least)
    if fits or wish.least is None:
        # Who is alone may have all that is left; several share it until little is.
        alone = len(record.leases) <= (mine is not None)
        left = (room - wish.held).at_least(NOTHING_FREE).times(1.0 if alone else 0.5 / (len(record.leases) + 1))
        part = left.at_most(_amount_of(claim.limit).times(PART)).at_least(wish.least or NOTHING_FREE)
        total = total.at_least(wish.held + wish.wanted.at_most(part))
    waiting = wish.least is not None and not fits
    leases = {name: one for name, one in record.leases.items() if name != claim.name}
    if waiting or total != NOTHING_FREE:
        leases[claim.name] = LeaseRecord(
            run_id=claim.run_id,
            limit=claim.limit,
            usd=total.usd,
            tokens=int(total.tokens),
            until=now + timedelta(seconds=claim.seconds),
            number=claim.number,
            waiting=waiting,
        )
    return record.model_copy(update={"limit": claim.limit, "leases": leases})


def room_in(
    record: BudgetRecord, limit: LimitRecord, name: str, returns: Callable[[str], bool] = lambda _: False
) -> Allowance:
    """What a process may lease in all: what neither is spent nor leased to others, by every budget that holds now.

    ``returns``: whether a run's lease does not count, since it may be returned.
    """
    others = [one for other, one in record.leases.items() if other != name]
    room = Allowance(_ENDLESS, _ENDLESS)
    for budget in (limit, *(one.limit for one in others)):
        spent, reserved = record.spent[budget.period], Allowance(*record.reserved_in(budget.period))
        room = room.at_most(_amount_of(budget) - Allowance(spent.usd, spent.tokens) - reserved)
    kept = [one for one in others if not returns(one.run_id)]
    return room - Allowance(sum(one.usd for one in kept), sum(one.tokens for one in kept))


def _amount_of(limit: LimitRecord) -> Allowance:
    usd, tokens = limit.usd, limit.tokens
    return Allowance(_ENDLESS if usd is None else usd, _ENDLESS if tokens is None else tokens)


class Leaseholder:
    """Keeps a Lease in the output's record, from a thread of its own until it is closed.

    Args:
        book: the output's record.
        lease: what the process's Budget has.
        run_id: the process's run.
        gap_s: seconds between two writes, unless ``turn`` is called by somebody else.
        is_alive: whether another run may still return what it has leased. May raise StorageError.
        clock: seconds, monotonic; that of the lease.
    """

    def __init__(
        self,
        book: BudgetBook,
        lease: Lease,
        run_id: str,
        gap_s: float,
        clock: Callable[[], float] = elapsed,
        is_alive: Callable[[str], bool] = lambda _: True,
    ) -> None:
        self._is_alive = is_alive
        self._book, self._lease, self._run_id, self._gap_s, self._clock = book, lease, run_id, gap_s, clock
        self._limit = limit_of(lease.budget)
        self._name, self._number = uuid.uuid4().hex[:12], 0
        self._leased, self._sharing = Allowance(), 1
        self._unsure: LeaseChange | None = None
        self._failing = self._differs = self._waits = False
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._live, name="llmdo-lease", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def close(self) -> None:
        """Writes what was spent, and returns what was not; only calls that are still in flight keep theirs."""
        self._over.set()
        self._lease.asked.set()
        if self._thread.ident is not None:
            self._thread.join()
        left = self._lease.wish(0.0)
        if self._number or left.used != NOTHING_FREE or left.reserves:  # late answers cost without a call
            try:
                if self._unsure is not None:
                    self._change(self._unsure)
                self._change(self._claim(left))
            except StorageError as error:
                _log.warning("all that this process had leased of --budget counts as spent: %s", error)

    def turn(self) -> float:
        """Writes what is due; returns the seconds after which the next is, unless something is asked for before."""
        try:
            if self._unsure is not None:
                self._change(self._unsure)
            wish = self._lease.wish(self._horizon_s)
            claim = self._claim(wish)
            if (claim.spent, claim.leased, wish.least, wish.wanted) == (NOTHING_FREE, NOTHING_FREE, None, NOTHING_FREE):
                return _NOTHING_S
            record = self._change(claim)
        except StorageError as error:
            if not self._failing:
                _log.warning("--budget: %s", error)
            self._failing = True
            if not is_passing(error):
                self._lease.refuse(NOTHING_FREE, BudgetSpent(str(error)))
            return _AGAIN_S
        self._failing = False
        return self._after(record, wish)

    def _claim(self, wish: Wish) -> LeaseChange:
        self._number += 1
        return LeaseChange(
            self._name,
            self._run_id,
            self._number,
            self._limit,
            wish.used - self._lease.settled,
            self._leased,
            wish,
            self._clock(),
            max(LEASE_S, 4 * self._horizon_s),
        )

    def _change(self, claim: LeaseChange) -> BudgetRecord:
        self._unsure = claim  # until there is a reply; it is made before any other
        record = self._book.change(lambda there, now: claimed(there, now, claim))
        self._unsure = None
        mine = record.leases.get(self._name)
        self._leased = Allowance(mine.usd, mine.tokens) if mine else Allowance()
        self._sharing = max(1, len(record.leases))
        self._lease.grant(claim.wish, self._leased, claim.at + claim.seconds - MARGIN_S)
        return record

    def _after(self, record: BudgetRecord, wish: Wish) -> float:
        others = [one.limit for name, one in record.leases.items() if name != self._name]
        if not self._differs and (other := next((one for one in others if one != self._limit), None)):
            self._differs = True
            text = PeriodBudget(other.usd, other.tokens, other.period)
            _log.warning("another run of this output has --budget %s: the smaller one holds", text)
        mine = record.leases.get(self._name)
        if self._waits and not (mine and mine.waiting):
            self._waits = False
            _log.warning("--budget %s: calls go on", self._lease.budget)
        if mine is None:
            return _NOTHING_S
        if not mine.waiting or wish.least is None:
            return self._horizon_s
        now, needed = self._book.now(), wish.held + wish.least
        end = end_of(self._limit.period, now)
        if wish.held != NOTHING_FREE or room_in(record, self._limit, self._name, self._may_live).covers(needed):
            return _AGAIN_S  # calls in flight, or others, may return something
        if self._lease.budget.waits and end is not None:
            if not self._waits:
                self._waits = True
                _log.warning("%s; calls wait until then", self._used_up(record, end))
            return min(_LOOK_S, (end - now).total_seconds() + 0.1)
        until = None if end is None else end.timestamp()
        self._lease.refuse(wish.least, BudgetSpent(self._used_up(record, end), until=until))
        return _LOOK_S

    def _may_live(self, run_id: str) -> bool:
        try:
            return self._is_alive(run_id)
        except StorageError:
            return True

    def _used_up(self, record: BudgetRecord, end: datetime | None) -> str:
        spent = record.spent[self._limit.period]
        reserved = record.reserved_in(self._limit.period)
        usd, tokens = spent.usd + reserved[0], spent.tokens + reserved[1]
        for name, one in record.leases.items():
            if name != self._name:
                usd, tokens = usd + one.usd, tokens + one.tokens
        amount = f"{tokens:,} tokens" if self._limit.usd is None else f"${usd:.6g}"
        batches = reserved_text(*reserved, in_dollars=self._limit.usd is not None)
        said = f"--budget {self._lease.budget}: {amount} are spent or leased by all runs of this output{batches}"
        if end is None:
            return f"{said}, and the next call could exceed it: raise it and run the same command again to resume"
        since = f"since {spent.since:%Y-%m-%d %H:%M} UTC, and the next call could exceed it"
        return f"{said} {since}: run the same command again from {end:%Y-%m-%d %H:%M} UTC on, or raise it"

    @property
    def _horizon_s(self) -> float:
        return min(max(HORIZON_S, _APIECE_S * self._sharing), _LONGEST_HORIZON_S)

    def _live(self) -> None:
        due = self._clock() + _NOTHING_S
        while not self._over.wait(self._gap_s):
            # What a process leases and does not use, others may wait for.
            if self._lease.asked.wait(min(_AGAIN_S, max(0.0, due - self._clock()))) or self._lease.idle:
                due = float("-inf")
            if not self._over.is_set() and due <= self._clock():
                due = self._clock() + self.turn()


_kept: list[Leaseholder] = []  # of all runs of this process, until they are closed


def keep_lease(run: Run, budget: Budget) -> None:
    """Has a thread keep the lease of a budget, if it has one, until ``close_leases``; called before calls are made."""
    lease = budget.lease
    if lease is None:
        return
    gap_s = _GAP_S if run.output.store_url.startswith(R2_SCHEME) else _LOCAL_GAP_S

    def is_alive(run_id: str) -> bool:  # only a process with a heartbeat can tell
        return run.state.presence is None or run.state.is_alive(run_id)

    def begin() -> Leaseholder:
        book = BudgetBook(run.store, run.output.key)
        holder = Leaseholder(book, lease, run.run_id, gap_s, is_alive=is_alive)
        holder.start()
        _kept.append(holder)
        return holder

    run.state.shared(Leaseholder, begin, str(id(budget)))


def close_leases(state: RunState) -> None:
    """Returns what the run has leased in this process, whose calls have ended."""
    for holder in state.take(Leaseholder).values():
        with suppress(ValueError):  # the process is about to end, and returns all leases
            _kept.remove(holder)
        holder.close()


@atexit.register
def return_leases() -> None:
    """Returns what this process has leased, for whatever run: a runner ends its workers without a word to the steps."""
    while _kept:
        _kept.pop().close()


def reserved_text(usd: float, tokens: int, *, in_dollars: bool) -> str:
    """What part of an amount is reserved by batches, behind it; "" for none."""
    amount = (f"${usd:.6g}" if usd else "") if in_dollars else (f"{tokens:,} tokens" if tokens else "")
    return amount and f" ({amount} of it reserved by batches that are out)"


def limit_of(budget: PeriodBudget) -> LimitRecord:
    """A budget as it stands in the output's record."""
    return LimitRecord(usd=budget.usd, tokens=budget.tokens, period=cast(Period, budget.period))
