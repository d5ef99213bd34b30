"""What is spent, leased and left of an output's budget, for people and for machines."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from llmdo.backends.money.lease import PeriodBudget
from llmdo.storage.errors import StorageError
from llmdo.storage.objects.opening import open_store
from llmdo.storage.objects.store import Location
from llmdo.storage.runs.budgets import BudgetBook, BudgetRecord, end_of

if TYPE_CHECKING:  # status shows a budget, too, and begins to print sooner without it
    from llmdo.transforms.run_state import RunState

_log = logging.getLogger(__name__)

_LOOK_S = 10.0


@dataclass(frozen=True, slots=True)
class BudgetNow:
    """An output's budget at one moment.

    Attributes:
        since: when its period began; None for one without a period, as ``until``, when the next one begins.
        reserved_usd, reserved_tokens: what lines may cost that wait in batches which no run holds.
        left: what is neither spent, leased nor reserved.
        waiting: how many processes have a call that does not fit into that.
    """

    budget: PeriodBudget
    since: datetime | None
    until: datetime | None
    spent_usd: float
    spent_tokens: int
    leased_usd: float
    leased_tokens: int
    reserved_usd: float
    reserved_tokens: int
    left: float
    waiting: int

    @classmethod
    def of(cls, record: BudgetRecord, now: datetime) -> BudgetNow:
        """As a record has it."""
        limit, leases = record.limit, record.leases.values()
        spent, until = record.spent[limit.period], end_of(limit.period, now)
        usd, tokens = sum(one.usd for one in leases), sum(one.tokens for one in leases)
        reserved = record.reserved_in(limit.period)
        in_dollars = (limit.usd or 0.0) - spent.usd - usd - reserved[0]
        in_tokens = (limit.tokens or 0) - spent.tokens - tokens - reserved[1]
        left = in_tokens if limit.usd is None else in_dollars
        budget = PeriodBudget(limit.usd, limit.tokens, limit.period)
        since, waiting = spent.since if until else None, sum(one.waiting for one in leases)
        amounts = spent.usd, spent.tokens, usd, tokens, *reserved
        return cls(budget, since, until, *amounts, max(0.0, left), waiting)

    def as_json(self) -> dict[str, Any]:
        """For ``--json``; times in ISO 8601."""
        usd = self.budget.usd is not None
        return {
            "budget": str(self.budget),
            "since": None if self.since is None else self.since.isoformat(),
            "next_period": None if self.until is None else self.until.isoformat(),
            "spent_usd": self.spent_usd,
            "spent_tokens": self.spent_tokens,
            "leased_usd": self.leased_usd if usd else None,
            "leased_tokens": None if usd else self.leased_tokens,
            "reserved_usd": self.reserved_usd if usd else None,
            "reserved_tokens": None if usd else self.reserved_tokens,
            "left_usd": self.left if usd else None,
            "left_tokens": None if usd else int(self.left),
            "waiting": self.waiting,
        }

    def __str__(self) -> str:
        """A sentence for people, without its stop."""
        if self.budget.usd is None:
            spent, leased, left = f"{self.spent_tokens:,} tokens", f"{self.leased_tokens:,}", f"{int(self.left):,}"
            reserved = f"{self.reserved_tokens:,}" if self.reserved_tokens else ""
        else:
            spent, leased, left = (f"${amount:,.6g}" for amount in (self.spent_usd, self.leased_usd, self.left))
            reserved = f"${self.reserved_usd:,.6g}" if self.reserved_usd else ""
        batches = f", {reserved} reserved by batches" if reserved else ""
        period = "" if self.until is None else f" until {self.until:%Y-%m-%d %H:%M} UTC"
        waits = ", and calls wait" if self.waiting else ""
        held = f"{leased} leased by running processes{batches}"
        return f"Budget of {self.budget}: {spent} spent, {held}, {left} left{period}{waits}"


def budget_now(where: Location) -> BudgetNow | None:
    """The budget of an output; None if it has none, or its record cannot be read now."""
    try:
        book = BudgetBook(open_store(where.store_url), where.key)
        record = book.read()
    except StorageError as error:
        _log.info("the budget cannot be read: %s", error)
        return None
    return None if record is None else BudgetNow.of(record, book.now())


def beside_budget(
    watch: Callable[[RunState], AbstractContextManager[None]], where: Location
) -> Callable[[RunState], AbstractContextManager[None]]:
    """Keeps ``state.output_budget`` up to date while a run is watched."""

    @contextmanager
    def both(state: RunState) -> Iterator[None]:
        over = threading.Event()

        def look_on() -> None:
            while not over.wait(_LOOK_S):
                state.output_budget = budget_now(where) or state.output_budget

        thread = threading.Thread(target=look_on, name="llmdo-budget", daemon=True)
        with watch(state):
            thread.start()
            try:
                yield
            finally:
                over.set()
                thread.join()

    return both
