"""The engine with a budget: limits are kept with a full window, and a run does not stop while calls may leave room."""

import asyncio
import random
import threading

import pytest

from llmdo.backends.engine.engine import Engine
from llmdo.backends.engine.scheduler import Scheduler
from llmdo.backends.engine.settings import CallSettings
from llmdo.backends.errors import BadReply, BudgetSpent, CallTimeout, Overloaded, PriceUnknown, StopRun
from llmdo.backends.limits.retry import set_instant
from llmdo.backends.money.estimates import Estimates
from llmdo.backends.money.limits import Limits
from llmdo.backends.money.money import Budget
from llmdo.backends.money.prices import Prices
from llmdo.backends.money.spent import Spent
from llmdo.backends.requests import ChatRequest, Message
from llmdo.backends.responses import ChatResponse, ModelInfo, Models, Price
from llmdo.backends.usage import Usage

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
            raise Overloaded("busy", status=503)
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
    engine = Engine(CallSettings(window, budget=budget), lambda name: provider)
    done, room = [], threading.Semaphore(0)

    def deliver(outcome):
        done.append(outcome)
        room.release()

    for i in range(requests):
        request = ChatRequest("m", (Message("user", "x"),), {"max_tokens": MOST}, str(i))
        engine.submit("fake", request, deliver)
    for _ in range(requests):
        assert room.acquire(timeout=60)
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


def test_what_failed_calls_used_counts_in_the_budget():
    class Wrong(Provider):
        async def execute(self, request):
            raise BadReply("the answer is no JSON", usage=Usage(10, 5))

    listed = Models((ModelInfo("fake/m", price=Price(1.0, 1.0)),))
    budget, delivered = Budget(Limits(max_tokens=1_000_000), Prices(lambda name: listed)), threading.Semaphore(0)
    engine = Engine(CallSettings(4, budget=budget), lambda name: Wrong(1.0))
    for i in range(3):
        request = ChatRequest("m", (Message("user", "x"),), {}, str(i))
        engine.submit("fake", request, lambda outcome: delivered.release())
    for _ in range(3):
        assert delivered.acquire(timeout=60)
    engine.close()
    spent = budget.spent()
    assert (spent.calls, spent.input_tokens, spent.output_tokens) == (3, 30, 15)


def test_calls_that_are_cancelled_may_be_billed_and_hold_nobody_back():
    listed = Models((ModelInfo("fake/m", price=Price(1.0, 1.0)),))
    budget, begun = Budget(Limits(max_tokens=1_000_000), Prices(lambda name: listed)), threading.Semaphore(0)

    class Slow(Provider):
        async def execute(self, request):
            begun.release()
            await asyncio.sleep(60)

    engine = Engine(CallSettings(4, budget=budget), lambda name: Slow(1.0))
    for i in range(4):
        engine.submit("fake", ChatRequest("m", (Message("user", "x"),), {}, str(i)), lambda outcome: None)
    for _ in range(4):
        assert begun.acquire(timeout=60)
    engine.close()
    assert not budget.can_wait()
    spent, most = budget.spent(), Estimates().most(ChatRequest("m", (Message("user", "x"),)))
    assert (spent.calls, spent.lost_calls) == (0, 4)
    assert (spent.lost_input_tokens, spent.lost_output_tokens) == (4 * most.input_tokens, 4 * most.output_tokens)


def test_a_call_that_is_cancelled_before_it_begins_is_not_billed():
    """Its turn has come, and its task did not run yet when the engine is closed."""
    listed = Models((ModelInfo("fake/m", price=Price(1.0, 1.0)),))
    budget = Budget(Limits(max_tokens=1_000_000), Prices(lambda name: listed))

    async def scenario():
        loop = asyncio.get_running_loop()
        scheduler = Scheduler(loop, CallSettings(1, budget=budget), pytest.fail)
        first, second = (ChatRequest("m", (Message("user", text),)) for text in "ab")
        call = await scheduler.take("fake", first, again=False)
        task = loop.create_task(scheduler.take("fake", second, again=False))
        await asyncio.sleep(0)
        budget.give_back(first)
        scheduler.give_back("fake", call, None, None)
        scheduler.start()
        assert budget.can_wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(scenario())
    assert not budget.can_wait()
    assert budget.spent() == Spent()


@pytest.mark.parametrize("limits", [Limits(max_tokens=1000), Limits(max_cost_usd=0.001)])
def test_lost_replies_count_against_the_limit_although_nobody_told_what_they_used(limits):
    class Silent(Provider):
        async def execute(self, request):
            self.calls += 1
            await asyncio.sleep(0)
            raise CallTimeout("no answer")

    listed = Models((ModelInfo("fake/m", price=Price(1.0, 1.0)),))
    provider, budget, ended = Silent(1.0), Budget(limits, Prices(lambda name: listed)), threading.Semaphore(0)
    engine = Engine(CallSettings(4, budget=budget), lambda name: provider)
    errors = []
    for i in range(10):
        request = ChatRequest("m", (Message("user", "x"),), {"max_tokens": MOST}, str(i))
        engine.submit("fake", request, lambda done: (errors.append(done.error), ended.release()))
    for _ in range(10):
        assert ended.acquire(timeout=60)
    engine.close()
    budget.prices.ask("fake").result(60)  # a thread reads the list, and spent does not wait for it
    spent = budget.spent()
    assert {type(error) for error in errors} == {CallTimeout, BudgetSpent} or {type(e) for e in errors} == {BudgetSpent}
    assert provider.calls == spent.lost_calls == 1000 // (MOST + 49)  # input is estimated at 49
    assert spent.lost_cost_usd == pytest.approx((spent.lost_input_tokens + spent.lost_output_tokens) / 1e6)


class Priced:
    """Stands for providers of which one gives its list of prices when the gate is opened."""

    def __init__(self, late):
        self.late = late
        self.gate = threading.Event()
        self.done = []
        self.room = threading.Semaphore(0)
        self.budget = Budget(Limits(max_cost_usd=1.0), Prices(self._list))
        self.engine = Engine(CallSettings(8, budget=self.budget), lambda name: Provider(0.5))

    def _list(self, provider):
        if provider == "late":
            assert self.gate.wait(60)
            if isinstance(self.late, Exception):
                raise self.late
        return Models((ModelInfo(f"{provider}/m", price=Price(1.0, 1.0)),))

    def submit(self, provider, count):
        for i in range(1, 1 + count):
            request = ChatRequest("m", (Message("user", "x"),), {"max_tokens": MOST}, str(i))
            self.engine.submit(provider, request, lambda outcome: self._deliver(provider, outcome))

    def _deliver(self, provider, outcome):
        self.done.append((provider, type(outcome.error)))
        self.room.release()

    def wait(self, count):
        for _ in range(count):
            assert self.room.acquire(timeout=60), "the loop waits for a list of prices"
        return self.done


@pytest.fixture
def priced(request):
    found = Priced(request.param)
    yield found
    found.gate.set()
    found.engine.close()


@pytest.mark.parametrize("priced", [None], indirect=True)
def test_calls_whose_prices_are_being_read_wait_and_others_go_on(priced):
    priced.submit("late", 4)
    priced.submit("quick", 20)
    priced.submit("late", 4)
    assert priced.wait(20) == [("quick", type(None))] * 20
    assert priced.engine.stats().in_flight == 0
    priced.gate.set()
    assert priced.wait(8)[20:] == [("late", type(None))] * 8
    assert priced.budget.spent().calls == 28


@pytest.mark.parametrize("priced", [Overloaded("no list")], indirect=True)
def test_calls_whose_prices_cannot_be_read_end_and_others_go_on(priced):
    priced.submit("late", 3)
    priced.gate.set()
    assert priced.wait(3) == [("late", PriceUnknown)] * 3
    priced.submit("quick", 5)
    assert priced.wait(5)[3:] == [("quick", type(None))] * 5
    assert priced.engine.stopped is None
    assert priced.engine.stats().in_flight == 0


@pytest.mark.parametrize("priced", [None], indirect=True)
def test_an_engine_can_be_stopped_and_closed_while_prices_are_read(priced):
    priced.submit("late", 3)
    priced.submit("quick", 1)
    priced.wait(1)
    priced.engine.stop(StopRun("enough"))
    assert priced.wait(3)[1:] == [("late", StopRun)] * 3
    priced.engine.close()
    priced.gate.set()  # the list comes to a loop that is closed
    assert priced.budget.prices.of("late", "m").input == 1.0
    assert not priced.budget.can_wait()
