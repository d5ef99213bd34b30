"""Processes on several machines share an output's budget: they die at any write, sleep, and their clocks are wrong."""

from __future__ import annotations

import heapq
import random
from collections import Counter, deque
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import count

import pytest

from llmdo.backends.errors import BudgetSpent
from llmdo.backends.money.grants import Allowance
from llmdo.backends.money.lease import PeriodBudget, Reserve, Wish
from llmdo.backends.money.limits import Limits
from llmdo.backends.money.money import Budget
from llmdo.backends.money.prices import Prices
from llmdo.backends.requests import ChatRequest, Message
from llmdo.backends.responses import ChatResponse, ModelInfo, Models, Price
from llmdo.backends.usage import Usage
from llmdo.storage.errors import ObjectChanged, StorageUnavailable
from llmdo.storage.runs.budgets import (
    PERIODS,
    BudgetBook,
    BudgetRecord,
    LeaseRecord,
    LimitRecord,
    PeriodSpent,
    begin_of,
)
from llmdo.transforms.answers.leases import PART, LeaseChange, Leaseholder, claimed, room_in
from tests.memory_store import MemoryStore

PRICES = Prices(lambda _: Models((ModelInfo("fake/m", price=Price(1.0, 1.0)),)))  # a dollar for a million tokens
PRICES.ask("fake").result(10)
LEAST = 49  # tokens of input that a request without a text is estimated at
LATE = datetime(2026, 11, 30, 23, 50, tzinfo=UTC).timestamp()  # a Monday, and the last of its month


class Died(BaseException):
    """The process is dead."""


@dataclass
class Machines(MemoryStore):
    """A store as the process sees it that works at this moment: its clock, and what happens to its writes."""

    world: World = None

    def now(self):
        return self.world.now + self.world.at_work.skew

    def put_if_absent(self, key, body):
        return self._write(lambda: super(Machines, self).put_if_absent(key, body))

    def put_if_match(self, key, body, etag):
        return self._write(lambda: super(Machines, self).put_if_match(key, body, etag))

    def _write(self, write):
        world, process = self.world, self.world.at_work
        world.writes += 1
        if world.others_first():
            other = world.random.choice(world.living())
            if other is not process:
                world.let(other, other.turn)
        moment = world.dies.get(world.writes)
        if moment == "before":
            raise Died
        etag = write()
        world.check()
        if moment == "after":
            raise Died
        chance = world.random.random()
        if chance < world.lost:
            raise ObjectChanged("the client has repeated a write whose reply was lost")
        if chance < 2 * world.lost:
            raise StorageUnavailable("no reply")
        return etag


@dataclass
class Process:
    """Makes calls, each of up to ``most`` tokens of output, ``window`` at once."""

    world: World
    budget: Budget
    holder: Leaseholder
    window: int
    waiting: deque
    skew: float
    offset: float
    in_flight: Counter = field(default_factory=Counter)
    made: int = 0
    dead: bool = False
    asleep_until: float = 0.0
    due: float = 0.0
    stopped: BudgetSpent | None = None

    def turn(self):
        self.due = self.world.now + self.holder.turn()

    def start(self):
        while self.waiting and not self.stopped and len(self.in_flight) < self.window:
            asked = ChatRequest("m", (Message("user", "x"),), {"max_tokens": self.waiting[0]}, str(self.made))
            error = self.budget.before("fake", asked)
            if error:
                if not self.budget.can_wait():
                    self.stopped = error
                return
            tokens = LEAST + self.waiting.popleft()
            used = max(1, round(tokens * self.world.random.random()))
            self.made += 1
            self.in_flight[self.made] = used
            self.world.spend(used)
            after = self.world.random.random() * self.world.longest
            self.world.at(after, self.end, self, asked, self.made, used)

    def end(self, asked, number, used):
        del self.in_flight[number]
        self.budget.after("fake", asked, ChatResponse("x", "stop", Usage(used), "m"))

    @property
    def works(self):
        return not self.dead and self.asleep_until <= self.world.now


class World:
    """Some processes, their store, and what happens to them."""

    def __init__(self, seed, budget, *, start=LATE, skew=0.0, lost=0.0, crowd=0.0, longest=4.0):
        self.random, self.default = random.Random(seed), budget
        self.now, self.lost, self.crowd, self.longest = start, lost, crowd, longest
        self.store = Machines(world=self)
        self.book = BudgetBook(self.store, "out/", nap=lambda _: None)
        self.events, self.serial, self.processes = [], count(), []
        self.most_skew, self.writes, self.nested = skew, 0, False
        self.dies, self.at_work = {}, None
        self.spent, self.by_period = 0, Counter()
        # Calls in flight of a process that outslept its lease count twice: as spent, and as leased once it wakes.
        self.overslept = False

    def add(self, calls=300, window=None, budget=None):
        given = budget or self.default
        offset = self.random.random() * 1e6
        clock = lambda: self.now + offset  # noqa: E731  by the process
        limits = Limits(output=given)
        own = Budget(limits, PRICES, clock=clock)
        holder = Leaseholder(self.book, own.lease, f"run-{len(self.processes)}", 1.0, clock)
        lengths = deque(self.random.choice((20, 100, 400)) for _ in range(calls))
        skew = self.random.uniform(-1, 1) * self.most_skew
        size = window or self.random.choice((1, 8, 32))
        self.processes.append(Process(self, own, holder, size, lengths, skew, offset))
        return self.processes[-1]

    def at(self, delay, act, *args):
        heapq.heappush(self.events, (self.now + delay, next(self.serial), act, args))

    def living(self):
        return [process for process in self.processes if process.works]

    def others_first(self):
        return not (self.nested or self.random.random() >= self.crowd)

    def let(self, process, act):
        before, nested, self.at_work = self.at_work, self.nested, process
        self.nested = before is not None
        try:
            act()
        except Died:
            process.dead = True
        finally:
            self.at_work, self.nested = before, nested

    def spend(self, tokens):
        self.spent += tokens
        now = datetime.fromtimestamp(self.now, UTC)
        for period in PERIODS:
            self.by_period[period, begin_of(period, now)] += tokens

    def record(self):
        return BudgetRecord.model_validate_json(self.store.read("out/_budget.json")[0])

    def check(self):
        """All that was spent is written as spent or leased, and that is within the budget."""
        record = self.record()
        leased = sum(one.tokens + round(one.usd * 1e6) for one in record.leases.values())
        usd = self.default.usd is not None

        def amount(tally):
            return tally.usd * 1e6 if usd else tally.tokens

        assert self.spent <= amount(record.spent["ever"]) + leased + 0.1
        limits = [one.limit for one in record.leases.values()] or [record.limit]
        for limit in limits:
            most = limit.usd * 1e6 if usd else limit.tokens
            assert amount(record.spent[limit.period]) + leased <= most + 0.1 or self.overslept

    def run(self, until):
        """Until then: processes turn when that is due or asked for, at most once a second, and calls end."""
        while self.now < until:
            while self.events and self.events[0][0] <= self.now:
                _, _, act, (process, *args) = heapq.heappop(self.events)
                if not process.dead:
                    if process.works:
                        self.let(process, lambda act=act, args=args: act(*args))
                    else:
                        self.at(process.asleep_until - self.now, act, process, *args)
            for process in self.random.sample(self.processes, len(self.processes)):
                if process.works:
                    self.let(process, process.start)
                    if process.budget.lease.asked.is_set() or process.due <= self.now:
                        self.let(process, process.turn)
            self.now += 1.0

    def end(self):
        """All that live return what they have."""
        for process in self.living():
            self.let(process, process.holder.close)
        assert not self.events or all(process.dead for process in self.processes)


DAY, HOURLY = PeriodBudget(usd=0.04, period="day", waits=True), PeriodBudget(tokens=20_000, period="hour", waits=True)
LIFE = PeriodBudget(tokens=40_000)


@pytest.mark.parametrize("budget", [DAY, HOURLY, LIFE], ids=str)
@pytest.mark.parametrize("seed", range(10))
def test_no_more_is_spent_in_a_period_than_the_budget_whatever_dies_or_sleeps(seed, budget):
    world = World(seed, budget, lost=0.03, crowd=0.2)
    for _ in range(3):
        world.add(calls=1000)
    world.dies = {world.random.randrange(1, 150): world.random.choice(("before", "after")) for _ in range(4)}
    for _ in range(40):
        world.run(world.now + 30)
        if world.random.random() < 0.2 and world.living():
            world.random.choice(world.living()).asleep_until = world.now + world.random.choice((5, 90, 400))
        if sum(not process.dead for process in world.processes) < 3:
            world.add(calls=1000)
    most = (budget.usd or 0) * 1e6 or budget.tokens
    spent = {begin: tokens for (period, begin), tokens in world.by_period.items() if period == budget.period}
    assert all(tokens <= most for tokens in spent.values())
    assert sum(spent.values()) > most / 2
    if budget.period != "ever":
        assert len(spent) == 2  # the period rolled over, and calls went on


def only(world, **given):
    """A world in which one process works until it stops or has nothing to do."""
    process = world.add(**given)
    while process.waiting and not process.stopped:
        world.run(world.now + 10)
        assert world.now < LATE + 1e6
    return process


@pytest.mark.parametrize("budget", [replace(DAY, waits=False), LIFE], ids=str)
def test_a_process_uses_all_of_a_budget_and_says_when_the_next_period_begins(budget):
    world = World(1, budget, start=LATE - 30_000)
    process = only(world, calls=3000)
    world.end()
    assert 40_000 - world.spent < LEAST + process.waiting[0]
    record = world.record()
    assert not record.leases
    assert record.spent["day"].tokens == world.spent
    midnight = datetime(2026, 12, 1, tzinfo=UTC)
    if budget == LIFE:
        assert process.stopped.until is None and "raise it and run the same command again" in str(process.stopped)
    else:
        assert process.stopped.until == midnight.timestamp()
        assert "run the same command again from 2026-12-01 00:00 UTC on, or raise it" in str(process.stopped)


def test_nothing_waits_for_a_budget_that_is_enough_and_little_is_written():
    world = World(2, PeriodBudget(usd=100.0, period="month"))
    process = only(world, calls=4000, window=8)
    seconds = world.now - LATE
    assert not process.stopped and process.made == 4000
    assert world.writes < 10 + seconds / 5


def test_a_process_whose_period_ends_has_the_money_of_the_next_one():
    world = World(3, DAY)
    process = only(world, calls=600, window=2)
    assert not process.stopped
    days = [tokens for (period, _), tokens in sorted(world.by_period.items(), key=str) if period == "day"]
    assert len(days) == 2 and max(days) <= 40_000
    assert world.record().spent["day"].since == datetime(2026, 12, 1, tzinfo=UTC)


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("write", range(1, 11))
def test_a_kill_at_any_write_costs_at_most_the_lease(write, moment):
    world = World(4, LIFE)
    world.add(calls=1000, window=4)
    world.dies = {write: moment}
    world.run(world.now + 120)
    assert [process.dead for process in world.processes] == [True]
    there = world.store.read("out/_budget.json")[0] if (write, moment) != (1, "before") else b"{}"
    (lost,) = [one.tokens for one in BudgetRecord.model_validate_json(there).leases.values()] or [0]
    assert lost <= PART * 40_000 + 4 * (LEAST + 400)
    other = only(world, calls=1000, window=4)
    assert other.stopped and world.spent <= 40_000
    assert 40_000 - world.spent < lost + LEAST + other.waiting[0]


@pytest.mark.parametrize("seed", range(5))
def test_of_two_budgets_the_smaller_holds_and_both_are_told(seed, caplog):
    world = World(seed, PeriodBudget(usd=0.08, period="day"), start=LATE - 30_000)
    world.overslept = True  # the larger one is not kept to by the record, but by what is leased
    world.add(calls=500)
    world.add(calls=500, budget=PeriodBudget(usd=0.02, period="day"))
    world.run(world.now + 20)
    both = [process for process in world.processes if process.waiting and not process.stopped]
    if len(both) == 2:
        assert world.spent <= 20_000
    assert "--budget 0.02 USD/day: the smaller one holds" in caplog.text
    assert "--budget 0.08 USD/day: the smaller one holds" in caplog.text


def test_clocks_that_differ_by_seconds_change_only_when_a_period_ends():
    for seed in range(5):
        world = World(seed, HOURLY, skew=3.0, crowd=0.2)
        for _ in range(3):
            world.add(calls=300)
        world.run(world.now + 1200)  # checks at each write
        assert world.record().spent["hour"].since == datetime(2026, 12, 1, tzinfo=UTC)


def test_a_record_of_a_clock_that_was_far_ahead_does_not_stop_a_budget_for_years():
    now = datetime(2026, 11, 30, 12, tzinfo=UTC)
    ahead = datetime(2037, 1, 1, tzinfo=UTC)
    limit = LimitRecord(usd=5.0, period="day")
    lease = LeaseRecord(run_id="r", limit=limit, usd=1.0, tokens=0, until=ahead, number=1)
    record = BudgetRecord(limit=limit, spent={"day": PeriodSpent(since=ahead, usd=2.0)}, leases={"x": lease}).at(now)
    assert record.spent["day"] == PeriodSpent(since=now.replace(hour=0), usd=2.0)
    assert record.leases["x"].until == now + timedelta(hours=1)
    tomorrow = record.at(now + timedelta(days=1))
    assert (tomorrow.spent["day"].usd, tomorrow.spent["ever"].usd, tomorrow.leases) == (0.0, 1.0, {})


def test_a_lease_that_runs_out_counts_in_the_period_in_which_it_does():
    limit = LimitRecord(tokens=100, period="hour")
    ends = datetime(2026, 11, 30, 12, 59, tzinfo=UTC)
    lease = LeaseRecord(run_id="r", limit=limit, usd=0.0, tokens=30, until=ends, number=1)
    record = BudgetRecord(limit=limit, leases={"x": lease})
    later = record.at(ends)
    assert (later.spent["hour"].tokens, later.leases) == (30, {})
    next_hour = record.at(ends + timedelta(minutes=1))
    assert (next_hour.spent["hour"].tokens, next_hour.spent["day"].tokens, next_hour.leases) == (0, 30, {})


def test_what_cannot_be_read_refuses_calls_with_a_sentence():
    world = World(5, LIFE)
    process = world.add(calls=5)
    world.store.put("out/_budget.json", b"{}x")
    world.run(world.now + 5)
    assert "_budget.json is not a budget that this version can read" in str(process.stopped)


def left_in_batches(lines, used, leased=1.0, number=2):
    """A change of a process that leaves lines of 0.1 USD each in a batch, or fetches some."""
    reserves = {"b": Reserve(lines, Allowance(0.1 * lines, 10 * lines))}
    wish = Wish(Allowance(used), Allowance(), Allowance(), None, Allowance(), reserves)
    return LeaseChange("me", "r", number, LimitRecord(usd=5.0), Allowance(used), Allowance(leased), wish, 0.0, 120.0)


def test_what_is_left_in_batches_is_reserved_and_not_spent_and_back_again():
    now = datetime(2026, 12, 9, 12, tzinfo=UTC)
    limit = LimitRecord(usd=5.0)
    lease = LeaseRecord(run_id="r", limit=limit, usd=1.0, tokens=0, until=now + timedelta(minutes=1), number=1)
    before = BudgetRecord(limit=limit, leases={"me": lease}).at(now)
    after = claimed(before, now, left_in_batches(3, 0.5))
    assert (after.spent["day"].usd, after.reserved["b"].lines) == (pytest.approx(0.2), 3)
    assert after.reserved["b"].usd == pytest.approx(0.3)
    assert room_in(after, limit, "other").usd == pytest.approx(4.5)
    back = claimed(after, now, left_in_batches(-3, 0.05, 0.0, 1))
    assert (back.spent["day"].usd, back.reserved) == (pytest.approx(0.25), {})


def test_what_is_left_by_a_process_whose_lease_has_run_out_is_spent_with_it():
    now = datetime(2026, 12, 9, 12, tzinfo=UTC)
    after = claimed(BudgetRecord().at(now), now, left_in_batches(3, 0.5))
    assert after.reserved == {}


def test_a_change_whose_reply_is_lost_reserves_once():
    now = datetime(2026, 12, 9, 12, tzinfo=UTC)
    limit = LimitRecord(usd=5.0)
    lease = LeaseRecord(run_id="r", limit=limit, usd=1.0, tokens=0, until=now + timedelta(minutes=1), number=1)
    change = left_in_batches(3, 0.5)
    held = replace(change, wish=replace(change.wish, held=Allowance(0.1), kept=Allowance(0.1)))
    once = claimed(BudgetRecord(limit=limit, leases={"me": lease}).at(now), now, held)
    assert once.leases["me"].number == 2
    assert claimed(once, now, held) == once
