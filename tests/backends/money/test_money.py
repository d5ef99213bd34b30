import subprocess
import sys
import threading
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmdo.backends.errors import (
    BadReply,
    BudgetSpent,
    CallTimeout,
    Overloaded,
    PriceUnknown,
    RateLimited,
    StreamError,
    Unauthorized,
)
from llmdo.backends.money.estimates import Estimates
from llmdo.backends.money.limits import NO_LIMITS, Limits
from llmdo.backends.money.money import Budget
from llmdo.backends.money.prices import NEURON_USD, Prices, cost_usd
from llmdo.backends.money.spent import Spent
from llmdo.backends.requests import ChatRequest, Message
from llmdo.backends.responses import ChatResponse, ModelInfo, Models, Price
from llmdo.backends.usage import Usage

CHEAP = Price(0.29, 2.25)
CACHED = Price(1.0, 2.0, 0.1)


@pytest.mark.parametrize(
    ("usage", "price", "usd"),
    [
        (Usage(1_000_000, 1_000_000), CHEAP, 2.54),
        (Usage(1_000_000, 0), Price(0.0118), 0.0118),
        (Usage(1000, 10, cached_tokens=900), CACHED, (100 * 1.0 + 900 * 0.1 + 10 * 2.0) / 1e6),
        (Usage(1000, 10, cached_tokens=900), CHEAP, (1000 * 0.29 + 10 * 2.25) / 1e6),
        (Usage(1, 0), Price(0.0118), 1.18e-8),
        (Usage(0, 0), Price(0.0, 0.0, 0.0), 0.0),
        (Usage(0, 0), CHEAP, None),  # the provider told nothing
        (Usage(5, 5), None, None),
        (Usage(5, 5), Price(0.0118), None),  # what the output costs is not said
        (Usage(5, 5), Price(0.5, unit="audio minute"), None),
        (Usage(5, 5, neurons=1000.0), None, 0.011),
        (Usage(0, 0, neurons=1000.0), CHEAP, 0.011),
        (Usage(5, 5, neurons=1000.0), Price(0.5, unit="audio minute"), 0.011),
        (Usage(1_000_000, 0, neurons=1.0), CHEAP, 0.29),
        # More cached tokens than input: they were reported beside it.
        (Usage(100, 10, cached_tokens=900), CACHED, (100 * 1.0 + 900 * 0.1 + 10 * 2.0) / 1e6),
        (Usage(0, 0, cached_tokens=900), CACHED, 900 * 0.1 / 1e6),
        (Usage(100, 0, cached_tokens=900), Price(1.0, 2.0), 1000 * 1.0 / 1e6),
    ],
)
def test_a_cost_is_tokens_at_their_price_else_neurons_else_unknown(usage, price, usd):
    assert cost_usd(usage, price) == (None if usd is None else pytest.approx(usd, abs=1e-12))


@given(
    st.integers(1, 10**9),
    st.integers(0, 10**9),
    st.integers(0, 10**9),
    st.floats(0, 100),
    st.none() | st.floats(0, 100),
)
def test_no_cost_is_negative(tokens, output, cached, dollars, cached_dollars):
    assert cost_usd(Usage(tokens, output, cached), Price(dollars, dollars, cached_dollars)) >= 0


def test_cached_tokens_beside_the_input_are_warned_of_once_for_a_model(caplog):
    prices, _ = listing(m=CACHED, other=CACHED)
    for model in ("m", "m", "other"):
        prices.cost_of("p", model, model, Usage(100, 0, cached_tokens=900))
    prices.cost_of("p", "m", "m", Usage(100, 0, cached_tokens=100))
    assert [message.partition(":")[0] for message in caplog.messages] == ["p/m", "p/other"]
    assert "more cached tokens (900) than tokens of input (100)" in caplog.text


def test_a_thousand_neurons_cost_one_cent_and_a_tenth():
    assert pytest.approx(0.011) == 1000 * NEURON_USD


def listing(**prices):
    calls = []

    def list_of(provider):
        calls.append(provider)
        return Models(tuple(ModelInfo(f"{provider}/{name}", price=price) for name, price in prices.items()))

    return Prices(list_of), calls


def chat(text="x", model="m", **parameters):
    return ChatRequest(model, (Message("user", text),), parameters)


def answer(used=(10, 5), model="m", neurons=None):
    return ChatResponse("x", "stop", Usage(*used, neurons=neurons), model)


def test_a_list_is_read_once_however_many_ask():
    prices, calls = listing(m=CHEAP)
    found = []
    threads = [threading.Thread(target=lambda: found.append(prices.of("p", "m"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ([(price.input, price.output) for price in found], calls) == ([(CHEAP.input, CHEAP.output)] * 8, ["p"])
    assert {price.source for price in found} == {"the list of p"}


def test_the_price_is_that_of_the_model_that_answered_where_it_has_one():
    prices, _ = listing(asked=CHEAP, dear=Price(100.0, 100.0))
    assert prices.cost("p", "asked", answer((1_000_000, 0), "dear")) == 100.0
    assert prices.cost("p", "asked", answer((1_000_000, 0), "asked-2026-01")) == 0.29


def test_models_in_this_process_are_free_and_nobody_is_asked():
    prices, calls = listing()
    assert prices.cost("local", "smollm2", answer()) == 0.0
    prices.ask("local")
    assert calls == []


def test_a_list_that_fails_is_warned_of_once_and_costs_stay_unknown(caplog):
    def refuse(provider):
        raise Unauthorized("the token is wrong")

    prices = Prices(refuse)
    for _ in range(3):
        assert prices.cost("p", "m", answer()) is None
    assert caplog.text.count("prices cannot be read") == 1
    assert "the token is wrong" in caplog.text
    assert caplog.text.count("its cost is not known") == 1


def test_a_model_without_a_price_is_warned_of_once_and_neurons_stand_in_for_it(caplog):
    prices, _ = listing(m=None)
    assert prices.cost("p", "m", answer(neurons=1000.0)) == 0.011
    assert caplog.text == ""
    assert [prices.cost("p", "m", answer()) for _ in range(2)] == [None, None]
    assert caplog.text.count("p/m: nobody publishes its price") == 1


def test_what_was_spent_is_counted_with_failed_tries_and_without_waiting_for_prices():
    gate = threading.Event()

    def slow(provider):
        gate.wait(60)
        return Models((ModelInfo("p/m", price=Price(1.0, 1.0)),))

    budget = Budget(prices=Prices(slow))
    for reply in (answer((10, 5)), RateLimited("slower"), answer((1, 0), neurons=2.0)):
        assert budget.before("p", chat()) is None
        budget.after("p", chat(), reply)
    assert budget.spent() == Spent(2, 11, 5, 2.0, None, 2)
    gate.set()
    budget.prices.of("p", "m")
    assert budget.spent() == Spent(2, 11, 5, 2.0, 16e-6, 0)


def test_what_a_failed_call_used_is_spent_like_an_answer():
    prices, _ = listing(m=Price(1.0, 1.0))
    prices.of("p", "m")
    for limits in (NO_LIMITS, Limits(max_tokens=10_000)):
        budget = Budget(limits, prices)
        for ended in (BadReply("no JSON", usage=Usage(10, 5)), Unauthorized("no")):
            assert budget.before("p", chat()) is None
            budget.after("p", chat(), ended)
        assert budget.spent() == Spent(1, 10, 5, None, 15e-6, 0)


def test_a_sum_with_an_unknown_part_says_so():
    prices, _ = listing(m=Price(1.0, 1.0), free=None)
    budget = Budget(prices=prices)
    prices.of("p", "m")
    for model in ("m", "free"):
        budget.before("p", chat(model=model))
        budget.after("p", chat(model=model), answer((10, 0), model))
    assert budget.spent() == Spent(2, 20, 0, None, 10e-6, 1)


def test_the_error_says_what_was_spent_and_the_remedy():
    prices, _ = listing(m=Price(1.0, 1.0))
    budget = Budget(Limits(max_tokens=3000), prices)
    budget.prices.of("p", "m")
    request = chat(max_tokens=1000)
    assert budget.before("p", request) is None
    budget.after("p", request, answer((1500, 900)))
    error = budget.before("p", request)
    assert isinstance(error, BudgetSpent)
    assert "2,400 tokens" in error.message
    assert "max_tokens_total=3000" in error.message
    assert "run the same pipeline again to resume" in error.message


def test_a_model_without_a_price_is_unusable_where_there_is_a_limit_of_cost():
    prices, _ = listing(m=None)
    error = Budget(Limits(max_cost_usd=1.0), prices).before("p", chat())
    assert isinstance(error, PriceUnknown)
    assert "p/m: its price is not known, so" in error.message and "max_tokens_total=" in error.message


def test_a_list_that_cannot_be_read_says_so_where_there_is_a_limit_of_cost():
    def refuse(provider):
        raise Unauthorized("the token is wrong")

    budget = Budget(Limits(max_cost_usd=1.0), Prices(refuse))
    error = budget.before("p", chat())
    assert isinstance(error, PriceUnknown)
    assert "its price is not known (the token is wrong), so max_cost= cannot be guaranteed" in error.message
    assert not budget.can_wait()


@pytest.mark.parametrize("limits", [Limits(max_cost_usd=1.0), Limits(max_tokens=5), NO_LIMITS])
def test_prices_are_pending_only_for_a_limit_of_cost_and_until_the_list_is_there(limits):
    gate = threading.Event()

    def slow(provider):
        gate.wait(60)
        return Models((ModelInfo("p/m", price=CHEAP),))

    budget = Budget(limits, Prices(slow))
    pending = budget.pending("p")
    assert (pending is not None) == (limits.max_cost_usd is not None)
    assert budget.pending("local") is None
    gate.set()
    budget.prices.of("p", "m")
    assert budget.pending("p") is None


@pytest.mark.parametrize("made", [True, False])
def test_a_call_that_was_refused_or_not_made_gives_back_what_it_reserved(made):
    prices, _ = listing(m=Price(1.0, 1.0))
    budget = Budget(Limits(max_tokens=1100), prices)
    request = chat(max_tokens=1000)
    for _ in range(5):
        assert budget.before("p", request) is None
        assert isinstance(budget.before("p", chat(max_tokens=1000)), BudgetSpent)
        assert budget.can_wait()
        if made:
            budget.after("p", request, RateLimited("slower", status=429))
        else:
            budget.give_back(request)
        assert not budget.can_wait()
    assert budget.spent() == Spent()


@pytest.mark.parametrize("ended", [None, CallTimeout("no answer"), Overloaded("failed", status=500)])
def test_a_lost_call_counts_as_possibly_spent_with_all_that_it_may_have_used(ended):
    prices, _ = listing(m=Price(1.0, 2.0))
    budget, request = Budget(Limits(max_tokens=2200), prices), chat(max_tokens=1000)
    prices.of("p", "m")  # a thread reads the list; without it the cost is not known
    for _ in range(2):
        assert budget.before("p", request) is None
        budget.after("p", request, ended)
    most = Estimates().most(request)
    given = 2 * most.input_tokens
    assert budget.spent() == Spent(
        lost_calls=2, lost_input_tokens=given, lost_output_tokens=2000, lost_cost_usd=(given + 4000) / 1e6
    )
    error = budget.before("p", request)
    assert isinstance(error, BudgetSpent)
    assert f"perhaps ${(given + 4000) / 1e6:.6g} and {given + 2000:,} more by 2 calls whose replies" in error.message


def test_a_limit_of_cost_holds_for_what_was_lost_too():
    prices, _ = listing(m=Price(1.0, 1.0))
    budget, request = Budget(Limits(max_cost_usd=2120e-6), prices), chat(max_tokens=1000)
    assert budget.before("p", request) is None
    budget.after("p", request, StreamError("broke off"))
    assert budget.before("p", request) is None
    budget.after("p", request, answer((10, 5)))
    assert isinstance(budget.before("p", chat(max_tokens=1030)), BudgetSpent)
    assert budget.before("p", request) is None


def test_without_limits_lost_calls_are_counted_by_estimate_and_at_no_cost_where_nobody_tells():
    prices, _ = listing(m=Price(1.0, 1.0), free=None)
    budget = Budget(prices=prices)
    for model in ("m", "free"):
        budget.before("p", chat(model=model, max_tokens=7))
        prices.of("p", "m")
        budget.after("p", chat(model=model, max_tokens=7), None)
        spent = budget.spent()
        assert (spent.lost_cost_usd is None) == (model == "free")
    assert (spent.calls, spent.lost_calls, spent.lost_output_tokens, spent.cost_usd) == (0, 2, 14, 0.0)


def test_a_call_that_is_lost_on_the_way_to_its_next_try_keeps_its_reservation():
    prices, _ = listing(m=Price(1.0, 1.0))
    budget, request = Budget(Limits(max_tokens=10_000), prices), chat(max_tokens=100)
    budget.before("p", request)
    budget.lose("p", request)
    assert budget.can_wait()
    budget.after("p", request, answer((10, 5)))
    assert not budget.can_wait()
    assert (budget.spent().calls, budget.spent().lost_calls, budget.spent().lost_output_tokens) == (1, 1, 100)


REQUESTS = st.lists(
    st.tuples(st.text(max_size=400), st.integers(1, 500), st.floats(0, 1), st.floats(0, 1), st.integers(0, 2)),
    min_size=1,
    max_size=200,
)


@settings(max_examples=60)
@given(REQUESTS, st.integers(1, 30_000), st.floats(1e-6, 0.02), st.data())
def test_a_budget_is_never_passed_with_64_calls_in_flight(requests, max_tokens, max_cost, data):
    """Stands for an engine: starts calls until the budget refuses or 64 are in flight, and ends them in any order.

    Of three calls one is answered, one is refused, and of one the answer is lost, and billed.
    """
    price = Price(0.4, 2.0)
    prices, _ = listing(m=price)
    budget = Budget(Limits(max_cost, max_tokens), prices)
    waiting, in_flight, spent_tokens, spent_usd, stopped = list(requests), [], 0, 0.0, None
    while waiting or in_flight:
        while waiting and len(in_flight) < 64 and stopped is None:
            text, limit, *how = waiting[-1]
            request = chat(text, max_tokens=limit)
            stopped = budget.before("p", request)
            if stopped is None:
                waiting.pop()
                in_flight.append((request, limit, how))
        if not in_flight:
            break
        request, limit, (used_in, used_out, way) = in_flight.pop(data.draw(st.integers(0, len(in_flight) - 1)))
        text = request.messages[0].content
        if way == 1:
            budget.after("p", request, RateLimited("slower"))
            continue
        used = Usage(round(used_in * (len(text.encode()) // 4 + 40)), round(used_out * limit))
        budget.after("p", request, StreamError("lost") if way else ChatResponse("x", "stop", used, "m"))
        spent_tokens += used.input_tokens + used.output_tokens
        spent_usd += cost_usd(used, price) or 0.0
        assert spent_tokens <= max_tokens
        assert spent_usd <= max_cost + 1e-9
    assert isinstance(stopped, BudgetSpent) == bool(waiting)
    assert not budget.can_wait()
    spent = budget.spent()
    told, lost = spent.input_tokens + spent.output_tokens, spent.lost_input_tokens + spent.lost_output_tokens
    assert told <= spent_tokens <= told + lost <= max_tokens
    cost = spent.cost_usd or 0.0  # nobody knows that of no tokens
    assert cost - 1e-9 <= spent_usd <= cost + spent.lost_cost_usd + 1e-9
    assert cost + spent.lost_cost_usd <= max_cost + 1e-9


def test_a_model_that_is_switched_off_is_warned_of_once(caplog):
    old = ModelInfo("p/old", deprecated="2020-01-31")
    prices = Prices(lambda provider: Models((old, ModelInfo("p/new"))))
    said = "old is deprecated since 2020-01-31: name another model"
    assert [prices.ending("p", "old"), prices.ending("p", "old"), prices.ending("p", "new")] == [said, said, None]
    assert caplog.messages == [said]


def test_an_answer_from_a_gateways_cache_costs_nothing():
    prices, _ = listing(m=Price(1.0, 2.0))
    hit = replace(answer(neurons=3.0), details={"cache_status": "HIT"})
    assert (prices.cost("p", "m", answer()), prices.cost("p", "m", hit)) == (20e-6, 0.0)
    assert prices.cost("p", "m", answer(), hit, answer()) == 40e-6
    budget = Budget(Limits(max_cost_usd=40e-6), prices)
    for one in (hit, replace(hit, details={"cache_status": "MISS"})):
        request = chat()
        budget.before("p", request)
        budget.after("p", request, one)
    spent = budget.spent()
    assert (spent.calls, spent.cost_usd, spent.unpriced, spent.neurons) == (2, 20e-6, 0, 3.0)


ENDING = """
import time
from llmdo.backends.money.prices import Prices
from llmdo.backends.responses import Models

def read(provider):
    time.sleep(%s)
    print("read", flush=True)
    return Models((), 0.0)

Prices(read).ask("p")
"""


@pytest.mark.parametrize(("takes_s", "said"), [("0.5", "read\n"), ("1e6", "")])
def test_the_end_of_a_process_waits_a_moment_for_lists_that_are_being_read(takes_s, said):
    command = [sys.executable, "-c", ENDING % takes_s]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, said, "")
