"""Lanes: what a call was billed as, and what a budget reserves for one that asks for a lane."""

from __future__ import annotations

import pickle

import pytest

from llmdo.backends.errors import BudgetSpent, CallTimeout, Retryable
from llmdo.backends.money.estimates import Estimates
from llmdo.backends.money.lanes import _FACTORS, asked_lane, asked_window, billed_lane, discounted, times
from llmdo.backends.money.limits import Limits
from llmdo.backends.money.money import Budget
from llmdo.backends.money.own_prices import own_prices
from llmdo.backends.money.prices import Prices, cost_usd
from llmdo.backends.requests import ChatRequest, Message, RawRequest
from llmdo.backends.responses import ChatResponse, EmbedResponse, Models, Price, RawResponse
from llmdo.backends.usage import Usage

MODEL = "gpt-5"
LIST, FLEX, PRIORITY = (1.25, 10), (0.625, 5), (2.5, 20)


@pytest.fixture(autouse=True)
def at_openai(monkeypatch):
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


def chat(**parameters):
    return ChatRequest(MODEL, (Message("user", "why?"),), {"max_tokens": 100, **parameters})


def said(**body):
    return ChatResponse("so", "stop", Usage(1000, 100), MODEL, body=body)


def usd(rates, given=1000, output=100):
    return pytest.approx((given * rates[0] + output * rates[1]) / 1e6)


def prices(own=()):
    return Prices(lambda _: Models(()), own)


@pytest.mark.parametrize(
    ("tier", "lane"),
    [
        ("flex", "flex"),
        ("priority", "priority"),
        ("fast", "priority"),
        ("default", ""),
        ("auto", ""),
        ("on_demand", ""),
        (None, ""),
        (7, ""),
        ({}, ""),
    ],
)
def test_what_the_reply_names_decides_whatever_was_asked_for(tier, lane):
    assert billed_lane(said(service_tier=tier)) == lane


def test_a_reply_that_names_no_tier_was_billed_at_list_price():
    assert billed_lane(said()) == ""


def test_a_streamed_answer_and_a_response_name_it_too():
    streamed = ChatResponse("so", "stop", Usage(), MODEL, details={"service_tier": "flex"})
    assert billed_lane(streamed) == "flex"
    assert billed_lane(RawResponse({"service_tier": "priority"}, Usage(), MODEL)) == "priority"
    assert billed_lane(RawResponse({"usage": {"service_tier": "batch"}}, Usage(), MODEL)) == "batch"
    assert billed_lane(RawResponse("text", Usage(), MODEL)) == ""
    assert billed_lane(EmbedResponse(((1.0,),), Usage(), "e")) == ""


@pytest.mark.parametrize("window", ["2h", "8h"])
def test_a_window_is_the_runs_and_a_lines_own_tier_overrides_it(window):
    for tier in ("default", "flex", "auto"):
        assert asked_window(RawRequest(MODEL, {"service_tier": tier}, path="responses"), window) == ""
        assert asked_window(chat(service_tier=tier), window) == ""
    assert asked_window(chat(), window) == asked_window(RawRequest(MODEL, {"input": "a"}), window) == window
    assert asked_window(chat(), "flex") == asked_window(chat(), "") == ""
    assert asked_lane(chat()) == ""


def test_answers_of_several_lanes_cost_what_each_one_does():
    list_price, flex = said(), said()
    flex.lane = "flex"
    book = prices()
    assert book.cost("openai", MODEL, list_price) == usd(LIST)
    assert book.cost("openai", MODEL, flex) == usd(FLEX)
    assert book.cost("openai", MODEL, list_price, flex) == usd((LIST[0] + FLEX[0], LIST[1] + FLEX[1]))
    used = book.used()
    assert (used["openai/gpt-5"].input, used["openai/gpt-5 (flex)"].input) == (1.25, 0.625)


def test_a_budget_counts_a_call_by_what_it_was_billed_as():
    budget = Budget(Limits(max_cost_usd=1.0), prices())
    request, answer = chat(service_tier="flex"), said(service_tier="flex")
    answer.lane = "flex"
    assert budget.before("openai", request) is None
    budget.after("openai", request, answer)
    assert budget.spent().cost_usd == usd(FLEX)


def test_what_an_item_of_a_batch_used_without_an_answer_costs_what_the_batch_does():
    budget, request = Budget(Limits(), prices()), chat()
    error = Retryable("the answer does not fit", usage=Usage(1000, 100))
    error.lane = "batch"
    budget.after("openai", request, pickle.loads(pickle.dumps(error)))
    budget.prices.ask("openai").result()
    assert budget.spent().cost_usd == usd(FLEX)


@pytest.mark.parametrize(("tier", "rates"), [(None, LIST), ("flex", LIST), ("priority", PRIORITY), ("fast", PRIORITY)])
def test_a_call_reserves_the_most_that_its_lane_may_be_billed_as(tier, rates):
    request = chat(service_tier=tier)
    most = Estimates().most(request)
    need = (most.input_tokens * rates[0] + most.output_tokens * rates[1]) / 1e6
    assert Budget(Limits(max_cost_usd=need * 1.001), prices()).before("openai", request) is None
    short = Budget(Limits(max_cost_usd=need * 0.999), prices())
    assert isinstance(short.before("openai", request), BudgetSpent)
    lost = Budget(Limits(max_cost_usd=1.0), prices())
    lost.before("openai", request)
    lost.after("openai", request, CallTimeout("late"))
    assert lost.spent().lost_cost_usd == pytest.approx(need)


def test_a_lane_of_ones_own_price_is_named_there_or_costs_as_much():
    given = {"openai/gpt-5": {"input": 4, "output": 8, "lanes": {"batch": 0.25, "flex": {"input": 3}}}}
    book = prices(own_prices(given))
    for lane, expected in (("batch", (1, 2)), ("flex", (3, 8)), ("", (4, 8)), ("2h", (4, 8))):
        assert book.cost_of("openai", MODEL, MODEL, Usage(1000, 100), lane) == usd(expected)


def test_a_factor_of_ones_own_price_holds_for_long_inputs_but_not_for_the_calls_own_part():
    tiers = {"input": 4, "output": 8, "request": 0.01, "above": [{"tokens": 100, "input": 6}], "lanes": {"8h": 0.5}}
    ((_, price),) = own_prices({"p/m": tiers})
    assert cost_usd(Usage(200, 10), dict(price.lanes)["8h"]) == pytest.approx((200 * 3 + 10 * 4) / 1e6 + 0.01)


@pytest.mark.parametrize(
    ("lanes", "said"),
    [
        ([], "must be an object"),
        ({"slow": 0.5}, "some of batch, flex"),
        ({"batch": "half"}, "batch must be a number"),
        ({"batch": -1}, "batch must be a number"),
        ({"batch": {"inputs": 1}}, "no rate 'inputs'"),
    ],
)
def test_a_lane_that_is_wrong_is_said_with_the_models_name(lanes, said):
    with pytest.raises(ValueError, match=f"p/m.*{said}"):
        own_prices({"p/m": {"input": 1, "lanes": lanes}})


# A million tokens of input at $2, of which a quarter is read from the cache at $0.5, and half a million of output at
# $8: 0.75 * 2 + 0.25 * 0.5 + 0.5 * 8 = 5.625. Then what each provider says of its lane.
@pytest.mark.parametrize(
    ("publisher", "lane", "published"),
    [
        ("openai", "batch", 5.625 * (1 - 0.50)),  # "50% cost discount compared to synchronous APIs"
        ("openai", "flex", 5.625 * (1 - 0.50)),  # "Batch API rates"
        ("openai", "2h", 5.625 * (1 - 0.30)),
        ("openai", "8h", 5.625 * (1 - 0.40)),
        ("anthropic", "batch", 5.625 * (1 - 0.50)),  # "a 50% discount on both input and output tokens"
        ("groq", "batch", 1.0 * 1.0 + 0.5 * 4.0),  # its discount and that of cached tokens do not stack
        ("mistral", "batch", 5.625 * (1 - 0.50)),
    ],
)
def test_each_lane_costs_what_its_provider_publishes(publisher, lane, published):
    less = discounted(Price(2.0, 8.0, cached_input=0.5), publisher, lane)
    assert cost_usd(Usage(1_000_000, 500_000, cached_tokens=250_000), less) == pytest.approx(published)
    assert less.date and less.source


def test_every_published_lane_is_in_the_table_above_and_others_have_no_factor():
    pinned = test_each_lane_costs_what_its_provider_publishes.pytestmark[0].args[1]
    assert {(publisher, lane) for publisher, lane, _ in pinned} == set(_FACTORS)
    for unknown in (("groq", "flex"), ("x-ai", "batch"), ("openai", "priority"), ("anthropic", "flex")):
        assert discounted(Price(2.0, 8.0), *unknown) is None


def test_a_lanes_factor_is_of_all_rates_but_what_a_call_costs_besides():
    price = Price(
        *(2.0, 8.0),
        cached_input=1.0,
        cache_write=3.0,
        input_audio=4.0,
        reasoning=6.0,
        output_audio=10.0,
        request=0.01,
        cache_write_1h=5.0,
        above=((1000, Price(20.0, 80.0)),),
    )
    half = times(price, 0.5)
    assert (half.input, half.output, half.cached_input, half.cache_write) == (1.0, 4.0, 0.5, 1.5)
    assert (half.input_audio, half.reasoning, half.output_audio, half.cache_write_1h) == (2.0, 3.0, 5.0, 2.5)
    assert half.request == 0.01
    ((tokens, above),) = half.above
    assert (tokens, above.input, above.output) == (1000, 10.0, 40.0)
