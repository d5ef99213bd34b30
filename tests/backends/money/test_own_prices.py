"""Prices that the user names."""

from __future__ import annotations

import pytest

from llmdo.backends.money.own_prices import own_price, own_prices
from llmdo.backends.money.prices import Prices, cost_usd
from llmdo.backends.responses import ModelInfo, Models, Price
from llmdo.backends.usage import Usage


def test_the_first_pattern_that_matches_holds_and_the_model_that_answered_goes_first():
    prices = own_prices({"openai/a": {"input": 1}, "openai/*": {"input": 2, "output": 3}, "@cf/x/y": {"request": 0.5}})
    assert own_price(prices, "openai", ["a"]).input == 1.0
    assert own_price(prices, "openai", ["a-2026", "a"]).input == 2.0
    assert own_price(prices, "workers-ai", ["@cf/x/y"]).request == 0.5
    assert own_price(prices, "braintrust", ["a"]) is None
    assert own_price(prices, "openai", ["b"]).source == "--price-file"


def test_rates_above_a_number_of_tokens_keep_what_they_do_not_name():
    ((_, price),) = own_prices({"p/m": {"input": 1, "output": 2, "above": [{"tokens": 100, "input": 3}]}})
    assert cost_usd(Usage(100, 10), price) == pytest.approx((100 * 1 + 10 * 2) / 1e6)
    assert cost_usd(Usage(101, 10), price) == pytest.approx((101 * 3 + 10 * 2) / 1e6)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "names no model"),
        ({"gpt-4o": {"input": 1}}, "write openai/gpt-4o"),
        ({"p/m": 3}, "must be an object"),
        ({"p/m": {}}, "neither input nor output"),
        ({"p/m": {"inputs": 1}}, "no rate 'inputs'"),
        ({"p/m": {"input": "0.15"}}, "must be a number"),
        ({"p/m": {"input": True}}, "must be a number"),
        ({"p/m": {"input": -1}}, "must be a number"),
        ({"p/m": {"input": float("nan")}}, "must be a number"),
        ({"p/m": {"input": 1, "above": {}}}, "must be a list"),
        ({"p/m": {"input": 1, "above": [{"input": 2}]}}, "needs tokens"),
        ({"p/m": {"input": 1, "above": [3]}}, "needs tokens"),
        ({"p/m": {"input": 1, "above": [{"tokens": 1, "imput": 2}]}}, "no rate 'imput'"),
    ],
)
def test_what_is_wrong_is_said_with_the_models_name(given, said):
    with pytest.raises(ValueError, match=said):
        own_prices(given)


def test_what_the_user_says_holds_then_the_list_then_what_is_published(monkeypatch):
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    listed = Models((ModelInfo("openai/gpt-4o", price=Price(7.0, 8.0)), ModelInfo("openai/gpt-4o-mini")))
    prices = Prices(lambda provider: listed, own_prices({"openai/gpt-5": {"input": 9}}))
    assert prices.of("openai", "gpt-5").source == "--price-file"
    assert (prices.of("openai", "gpt-4o").input, prices.of("openai", "gpt-4o").source) == (7.0, "the list of openai")
    assert prices.of("openai", "gpt-4o-mini").source.startswith("genai-prices")
    assert prices.of("openai", "no-such-model") is None
    assert prices.cost_of("openai", "gpt-4o", "gpt-4o-2024", Usage(1_000_000, 0)) == 7.0
    assert set(prices.used()) == {"openai/gpt-4o"}


@pytest.mark.parametrize(
    ("usage", "usd"),
    [
        (Usage(1000, 100, 400, cache_write_tokens=300), 300 * 1 + 400 * 0.1 + 300 * 1.25 + 100 * 4),
        (Usage(1000, 100, 0, 60), 1000 * 1 + 40 * 4 + 60 * 8),
        (Usage(1000, 100, input_audio_tokens=200, output_audio_tokens=50), 800 + 200 * 10 + 50 * 4 + 50 * 20),
        (Usage(0, 0, 500), 500 * 0.1),
        (Usage(10, 0, 500), 10 * 1 + 500 * 0.1),  # counted beside the input
    ],
)
def test_parts_of_the_tokens_cost_what_their_own_rates_say(usage, usd):
    price = Price(1.0, 4.0, 0.1, cache_write=1.25, reasoning=8.0, input_audio=10.0, output_audio=20.0, request=0.01)
    assert cost_usd(usage, price) == pytest.approx(usd / 1e6 + 0.01)
