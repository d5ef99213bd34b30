"""The engine with a budget: limits are kept with a full window, and a run does not stop while calls may leave room."""

import asyncio
import random
import threading

import pytest

from backends.engine import Engine
from backends.errors import BadReply, BudgetSpent, Overloaded
from backends.ir import ChatRequest, ChatResponse, Message, ModelInfo, Models, Price, Usage
from backends.money import Budget, Limits, Prices
from backends.retry import set_instant

WINDOW = 64
MOST = 100  # tokens of an answer


class Provider:
    """Stands for a provider whose answers are mostly shorter than they may be; the first tries of some fail."""

    name = "fake"

    def __init__(self, fraction):
        self.fraction = fraction
        self.random = random.Random(7)
        self.failed = set()
        self.tokens = self.calls = 0

    async def execute(self, request):
        await asyncio.sleep(self.random.random() / 200)
        if int(request.request_id) % 5 == 0 and request.request_id not in self.failed:
            self.failed.add(request.request_id)
            raise Overloaded("busy")
        self.calls += 1
        used = Usage(10, round(MOST * self.fraction * self.random.random()))
        self.tokens += used.input_tokens + used.output_tokens
        return ChatResponse("x", "stop", used, "m")

    async def aclose(self):
        pass


@pytest.fixture(autouse=True)
def instant():
    set_instant(True)
    yield
    set_instant(False)


def run(limits, requests=300, fraction=1.0, window=WINDOW):
    """Submits requests until the engine has delivered all; gives provider, budget and errors."""
    listed = Models((ModelInfo("fake/m", price=Price(1.0, 1.0)),))
    provider, budget = Provider(fraction), Budget(limits, Prices(lambda name: listed))
    engine = Engine(window=window, connect=lambda name: provider, budget=budget)
    done, room = [], threading.Semaphore(0)

    def deliver(outcome):
        done.append(outcome)
        room.release()

    for i in range(requests):
        request = ChatRequest("m", (Message("user", "x"),), {"max_tokens": MOST}, str(i))
        engine.submit("fake", request, deliver)
    for _ in range(requests):
        assert room.acquire(timeout=30)
    engine.close()
    return provider, budget, [outcome.error for outcome in done if outcome.error]


@pytest.mark.parametrize("fraction", [0.05, 0.5, 1.0])
@pytest.mark.parametrize("limits", [Limits(max_tokens=4000), Limits(max_cost_usd=0.004), Limits(0.004, 3000)])
def test_no_limit_is_passed_and_it_is_used_up_to_one_call_at_its_longest(limits, fraction):
    provider, budget, errors = run(limits, fraction=fraction)
    limit = min(limits.max_tokens or 10**9, round((limits.max_cost_usd or 1.0) * 1e6))
    assert provider.tokens <= limit
    spent = budget.spent()
    assert (spent.calls, spent.input_tokens + spent.output_tokens) == (provider.calls, provider.tokens)
    if errors:
        assert {type(error) for error in errors} == {BudgetSpent}
        assert provider.tokens > limit - MOST - 60  # input is estimated at 49
        assert len(errors) == 300 - provider.calls
    else:
        assert provider.calls == 300


def test_a_window_that_reserves_more_than_there_is_waits_instead_of_stopping():
    """64 calls of 150 tokens at most do not fit into 4,000, and 100 of 15 each do."""
    provider, _, errors = run(Limits(max_tokens=4000), requests=100, fraction=0.1)
    assert (provider.calls, errors) == (100, [])


def test_one_call_that_is_too_long_stops_the_run_before_it_is_made():
    provider, _, errors = run(Limits(max_tokens=100), requests=10)
    assert provider.calls == 0
    assert {type(error) for error in errors} == {BudgetSpent}


def test_what_failed_calls_used_counts_in_the_budget_and_in_the_engines_totals():
    class Wrong(Provider):
        async def execute(self, request):
            raise BadReply("the answer is no JSON", usage=Usage(10, 5))

    listed = Models((ModelInfo("fake/m", price=Price(1.0, 1.0)),))
    budget, delivered = Budget(Limits(max_tokens=1_000_000), Prices(lambda name: listed)), threading.Semaphore(0)
    engine = Engine(window=4, connect=lambda name: Wrong(1.0), budget=budget)
    for i in range(3):
        request = ChatRequest("m", (Message("user", "x"),), {}, str(i))
        engine.submit("fake", request, lambda outcome: delivered.release())
    for _ in range(3):
        assert delivered.acquire(timeout=10)
    stats = engine.stats()
    engine.close()
    spent = budget.spent()
    assert (stats.failed, stats.input_tokens, stats.output_tokens) == (3, 30, 15)
    assert (spent.calls, spent.input_tokens, spent.output_tokens) == (3, 30, 15)


def test_calls_that_are_cancelled_give_back_what_they_reserved():
    listed = Models((ModelInfo("fake/m", price=Price(1.0, 1.0)),))
    budget, begun = Budget(Limits(max_tokens=1_000_000), Prices(lambda name: listed)), threading.Event()

    class Slow(Provider):
        async def execute(self, request):
            begun.set()
            await asyncio.sleep(60)

    engine = Engine(window=4, connect=lambda name: Slow(1.0), budget=budget)
    for i in range(4):
        engine.submit("fake", ChatRequest("m", (Message("user", "x"),), {}, str(i)), lambda outcome: None)
    assert begun.wait(10)
    engine.close()
    assert not budget.can_wait()
