"""Several processes share a budget: their messages are delayed, calls end at random, and processes die."""

from __future__ import annotations

import heapq
import random
import threading
from collections import deque
from dataclasses import dataclass, field
from itertools import count
from queue import SimpleQueue

import pytest

from llmdo.backends.engine.engine import Engine
from llmdo.backends.engine.settings import CallSettings
from llmdo.backends.errors import BudgetSpent
from llmdo.backends.money.grants import Allowance, Ask, Denial, Grant, Grants, Reclaim, Return
from llmdo.backends.money.limits import Limits
from llmdo.backends.money.money import Budget
from llmdo.backends.money.prices import Prices
from llmdo.backends.money.purse import Purse, used_of
from llmdo.backends.money.spent import Spent
from llmdo.backends.requests import ChatRequest, Message
from llmdo.backends.responses import ChatResponse, ModelInfo, Models, Price
from llmdo.backends.usage import Usage

LISTED = Models((ModelInfo("fake/m", price=Price(1.0, 1.0)),))  # a dollar for a million tokens
PRICES = Prices(lambda name: LISTED)
PRICES.ask("fake").result(10)
LEAST = 49  # tokens of input that a request without a text is estimated at


def request(most, name):
    return ChatRequest("m", (Message("user", "x"),), {"max_tokens": most}, str(name))


@dataclass
class Child:
    """A process with calls to make: ``window`` at once, each of up to ``most`` tokens of output."""

    number: int
    budget: Budget
    window: int
    waiting: deque[int]
    in_flight: dict[int, int] = field(default_factory=dict)  # what each will use
    made: int = 0
    used: int = 0  # as the service counts it
    dead: bool = False
    stopped: BudgetSpent | None = None


class Simulated:
    """Some processes, a purse, and messages that take up to 50 ms each, in the order in which they were sent."""

    def __init__(self, seed, limits, children=4, calls=400, delay=0.05, part=1.0):
        self.random = random.Random(seed)
        self.limits, self.delay, self.part = limits, delay, part
        self.now, self.events, self.serial = 0.0, [], count()
        self.purse, self.children, self.last = Purse(limits), [], {}
        self.spent_by_dead = self.messages = 0
        for _ in range(children):
            self.add(calls)

    def add(self, calls):
        number = len(self.children)
        grants = Grants(lambda message: self.send(("up", number), message), lambda: self.now)
        budget = Budget(self.limits, PRICES, grants)
        lengths = deque(self.random.choice((20, 100, 400)) for _ in range(calls))
        self.children.append(Child(number, budget, self.random.choice((1, 8, 64)), lengths))
        self.purse.join(number)
        self.at(self.random.random(), self.start, self.children[-1])

    def at(self, delay, act, *args):
        heapq.heappush(self.events, (self.now + delay, next(self.serial), act, args))

    def send(self, way, message):
        self.messages += 1
        arrives = max(self.now + self.random.random() * self.delay, self.last.get(way, 0.0))
        self.last[way] = arrives
        self.at(arrives - self.now, self.arrive, way, message)

    def arrive(self, way, message):
        direction, number = way
        child = self.children[number]
        if child.dead:
            return
        if direction == "up":
            self.answer(self.purse.receive(number, message))
        else:
            child.budget.receive(message)
            self.start(child)

    def answer(self, messages):
        for number, message in messages:
            self.send(("down", number), message)

    def start(self, child):
        while child.waiting and not child.dead and not child.stopped and len(child.in_flight) < child.window:
            asked = request(child.waiting[0], child.made)
            error = child.budget.before("fake", asked)
            if error:
                if not child.budget.can_wait():
                    certain = self.used - sum(sum(other.in_flight.values()) for other in self.children)
                    assert self.most - certain < LEAST + child.waiting[0] + self.purse.lost.tokens
                    child.stopped = error
                return
            tokens = LEAST + child.waiting.popleft()
            used = max(1, round(tokens * self.part * self.random.random()))
            child.used += used
            child.in_flight[child.made] = used
            child.made += 1
            self.at(self.random.random() * 2, self.end, child, asked, used)

    def end(self, child, asked, used):
        if not child.dead:
            del child.in_flight[int(asked.request_id)]
            child.budget.after("fake", asked, ChatResponse("x", "stop", Usage(used), "m"))
            self.start(child)

    def kill(self, child):
        child.dead = True
        child.in_flight.clear()
        self.answer(self.purse.leave(child.number, child.budget.spent(), died=True))

    def run(self, until=float("inf")):
        """All that happens; at each moment no more is spent than the limit."""
        while self.events and self.events[0][0] <= until:
            self.now, _, act, args = heapq.heappop(self.events)
            act(*args)
            assert self.used <= self.most

    @property
    def used(self):
        return sum(child.used for child in self.children)

    @property
    def most(self):
        return round((self.limits.max_cost_usd or 0) * 1e6) or self.limits.max_tokens


@pytest.mark.parametrize("part", [1.0, 0.1])
@pytest.mark.parametrize("limits", [Limits(max_tokens=40_000), Limits(max_cost_usd=0.04)])
@pytest.mark.parametrize("seed", range(20))
def test_four_processes_never_exceed_the_limit_and_use_all_of_it(seed, limits, part):
    world = Simulated(seed, limits, calls=3000, part=part)
    world.run()
    assert all(child.stopped or not child.waiting for child in world.children)
    assert any(child.stopped for child in world.children)
    left = [LEAST + child.waiting[0] for child in world.children if child.waiting]
    assert world.most - world.used < min(left) + 1  # not even the shortest waiting call fits
    assert "are spent, and max_" in str(next(child.stopped for child in world.children if child.stopped))
    spent = sum((used_of(child.budget.spent(), limits) for child in world.children), Allowance())
    assert spent.tokens + spent.usd * 1e6 == pytest.approx(world.used)


@pytest.mark.parametrize("seed", range(20))
def test_what_a_dead_process_held_counts_as_lost_and_the_others_use_the_rest(seed):
    world = Simulated(seed, Limits(max_tokens=40_000), calls=3000)
    world.run(until=world.random.uniform(0.5, 3.0))
    dead = world.children[world.random.randrange(4)]
    reported = dead.budget.spent().input_tokens
    world.kill(dead)
    assert dead.used <= reported + world.purse.lost.tokens
    world.add(1000)  # its successor
    world.run()
    assert all(child.stopped or child.dead or not child.waiting for child in world.children)
    unknown = world.purse.lost.tokens - (dead.used - reported)
    left = [LEAST + child.waiting[0] for child in world.children if child.waiting and not child.dead]
    assert world.most - world.used - unknown < min(left) + 1


@pytest.mark.parametrize("seed", range(20))
def test_nothing_is_denied_while_the_limit_has_room_for_all_calls(seed):
    world = Simulated(seed, Limits(max_tokens=150_000), calls=200, part=0.1)  # they reserve 178,000 together
    world.run()
    assert [child.made for child in world.children] == [200] * 4
    assert not any(child.stopped for child in world.children)


def test_a_process_asks_once_for_a_second_and_not_for_each_call():
    world = Simulated(1, Limits(max_tokens=10_000_000), children=2, calls=20_000)
    world.run()
    assert sum(child.made for child in world.children) == 40_000
    assert world.messages < 40_000 / 20


def test_a_process_that_ended_well_leaves_what_it_did_not_use():
    purse = Purse(Limits(max_tokens=1000))
    purse.join(1)
    purse.join(2)
    assert purse.receive(1, Ask(Allowance(tokens=400), Allowance(tokens=400), True)) == [
        (1, Grant(Allowance(tokens=400)))
    ]
    assert purse.receive(2, Ask(Allowance(tokens=900), Allowance(tokens=900), True)) == [(1, Reclaim())]
    answers = purse.leave(1, Spent(input_tokens=60, lost_output_tokens=40), died=False)
    assert answers == [(2, Grant(Allowance(tokens=900)))]
    assert (purse.rest.tokens, purse.lost) == (0, Allowance())


def test_a_return_that_crosses_a_grant_does_not_make_the_process_empty():
    purse = Purse(Limits(max_tokens=1000))
    for number in (1, 2):
        purse.join(number)
    ask = Ask(Allowance(tokens=100), Allowance(tokens=100), True)
    purse.receive(1, ask)
    assert purse.receive(2, Ask(Allowance(tokens=950), Allowance(tokens=950), True)) == [(1, Reclaim())]
    # On its way when the return is sent: so 1 may make a call after it.
    assert purse.receive(1, ask) == [(1, Grant(Allowance(tokens=100))), (1, Reclaim())]
    assert purse.receive(1, Return(Allowance(tokens=100), 1, False)) == []
    assert purse.receive(1, Return(Allowance(tokens=0), 2, True)) == []
    (((number, denial),)) = purse.receive(1, Return(Allowance(tokens=40), 2, False))
    assert (number, type(denial), denial.least) == (2, Denial, Allowance(tokens=950))
    assert denial.reason.startswith("60 tokens are spent, and max_tokens_total=1000 could be exceeded")


def test_after_a_denial_a_smaller_call_may_still_be_asked_for():
    sent = []
    budget = Budget(Limits(max_tokens=1000), PRICES, Grants(sent.append, lambda: 0.0))
    assert isinstance(budget.before("fake", request(500, 1)), BudgetSpent) and budget.can_wait()
    budget.receive(Denial(Allowance(tokens=549), "too little is left"))
    assert str(budget.before("fake", request(500, 1))) == "too little is left"
    assert not budget.can_wait()
    assert isinstance(budget.before("fake", request(50, 2)), BudgetSpent) and budget.can_wait()
    assert [ask.least.tokens for ask in sent] == [549, 99]


def test_what_calls_used_beyond_their_estimates_is_asked_for_with_the_next_one():
    sent = []
    budget = Budget(Limits(max_tokens=1000), PRICES, Grants(sent.append, lambda: 0.0))
    first = request(50, 1)
    budget.before("fake", first)
    budget.receive(Grant(Allowance(tokens=99)))
    assert budget.before("fake", first) is None
    budget.after("fake", first, ChatResponse("x", "stop", Usage(150), "m"))
    budget.before("fake", request(50, 2))
    assert sent[-1].waiting and sent[-1].least.tokens >= 51 + 99


class Slow:
    """Stands for a provider whose calls take a moment."""

    name = "fake"

    def __init__(self):
        self.calls = 0

    async def execute(self, asked):
        self.calls += 1
        return ChatResponse("x", "stop", Usage(LEAST + 100), "m")

    async def aclose(self):
        pass


def test_engines_wait_for_grants_and_stop_when_these_are_denied():
    """Two engines with threads of their own, and a purse in a third."""
    limits, inbox = Limits(max_tokens=100 * (LEAST + 100)), SimpleQueue()
    purse, budgets, engines, provider = Purse(limits), [], [], Slow()
    for number in range(2):
        purse.join(number)
        grants = Grants(lambda message, number=number: inbox.put((number, message)))
        budgets.append(Budget(limits, PRICES, grants))
        engines.append(Engine(CallSettings(16, budget=budgets[-1]), lambda name: provider))

    def serve():
        while (item := inbox.get()) is not None:
            for number, message in purse.receive(*item):
                budgets[number].receive(message)

    thread = threading.Thread(target=serve)
    thread.start()
    done, ended = [], threading.Semaphore(0)

    def deliver(outcome):
        done.append(outcome.error)
        ended.release()

    for i in range(200):
        engines[i % 2].submit("fake", request(100, i), deliver)
    for _ in range(200):
        assert ended.acquire(timeout=60)
    for engine in engines:
        engine.close()
    inbox.put(None)
    thread.join()
    assert provider.calls == done.count(None) == 100
    assert {type(error) for error in done if error} == {BudgetSpent}
