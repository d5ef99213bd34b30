"""Prices of genai-prices, as Price: the same cost as genai-prices' own arithmetic for every model that it knows."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from genai_prices import Usage as TheirUsage
from genai_prices.data_snapshot import get_snapshot
from hypothesis import given, settings
from hypothesis import strategies as st

from llmdo.backends.money.prices import cost_usd
from llmdo.backends.money.published import published_price
from llmdo.backends.usage import Usage

NOW = datetime(2026, 11, 2, 12, 30, tzinfo=UTC)
# Rates that a call by text and sound can be billed by; a model with others is left out.
OURS = {
    *("input_mtok", "output_mtok", "cache_read_mtok", "cache_write_mtok", "input_audio_mtok", "output_audio_mtok"),
    *("output_reasoning_mtok", "requests_kcount"),
}
MODELS = [
    (provider.id, model.id)
    for provider in get_snapshot().providers
    for model in provider.models
    if (rates := {name for name, rate in vars(model.get_prices(NOW)).items() if rate is not None})
    and rates & {"input_mtok", "output_mtok"}
]


def theirs(provider: str, model: str, usage: Usage) -> float:
    found = get_snapshot().calc(
        TheirUsage(
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
            cache_read_tokens=usage.cached_tokens,
            cache_write_tokens=usage.cache_write_tokens,
        ),
        model,
        provider,
        None,
        NOW,
        None,
    )
    return float(found.total_price)


@given(
    which=st.sampled_from(MODELS),
    plain=st.integers(1, 600_000),
    cached=st.integers(0, 300_000),
    written=st.integers(0, 300_000),
    output=st.integers(0, 60_000),
)
@settings(max_examples=500, deadline=None)
def test_a_usage_costs_what_the_package_says(which, plain, cached, written, output):
    provider, model = which
    price = published_price(provider, model, now=NOW.timestamp())
    if price is None:  # an id that the package itself does not find
        with pytest.raises(LookupError):
            theirs(provider, model, Usage(1))
        return
    if price.input is None or (output and price.output is None):
        return  # the package takes what has no rate for free
    usage = Usage(plain + cached + written, output, cached, cache_write_tokens=written)
    assert cost_usd(usage, price) == pytest.approx(theirs(provider, model, usage), abs=1e-9)


@pytest.mark.parametrize(
    ("publisher", "model", "url", "usd"),
    [
        ("openai", "gpt-4o-mini", "", (0.15, 0.6)),
        (None, "gpt-4o-mini", "https://api.openai.com/v1", (0.15, 0.6)),
        (None, "gpt-4o-mini-2024-07-18", "https://api.openai.com/v1", (0.15, 0.6)),
        (None, "llama-3.3-70b-versatile", "https://api.groq.com/openai/v1", (0.59, 0.79)),
        (None, "gpt-4o-mini", "https://gateway.ai.cloudflare.com/v1/acc/my-gateway/openai", (0.15, 0.6)),
        (None, "openai/gpt-4o-mini", "https://gateway.ai.cloudflare.com/v1/acc/my-gateway/compat", (0.15, 0.6)),
        (None, "gpt-4o-mini", "", (0.15, 0.6)),  # whoever passes it on
        ("cloudflare", "@cf/meta/llama-3.3-70b-instruct-fp8-fast", "", (0.293, 2.253)),
    ],
)
def test_a_price_is_found_by_publisher_or_by_address(publisher, model, url, usd):
    price = published_price(publisher, model, url, now=NOW.timestamp())
    assert (price.input, price.output) == usd
    assert price.source.startswith("genai-prices ")


@pytest.mark.parametrize(
    ("model", "url"),
    [
        ("gpt-4o-mini", "http://127.0.0.1:11434/v1"),  # a server of one's own has no price, whatever its model's name
        ("gpt-4o-mini", "https://api.openai.com.example.org/v1"),
        ("no-such-model", "https://api.openai.com/v1"),
        ("whisper-1", "https://api.openai.com/v1"),  # paid by the minute
        ("", "https://api.openai.com/v1"),
        ("gpt-4o-mini", "not a url"),
    ],
)
def test_where_nobody_publishes_a_price_there_is_none(model, url):
    assert published_price(None, model, url) is None


def test_other_lanes_have_other_prices():
    now = NOW.timestamp()
    plain = published_price("openai", "gpt-5.6-sol", now=now)
    flex = published_price("openai", "gpt-5.6-sol", context={"service_tier": "flex"}, now=now)
    batch = published_price("openai", "gpt-5.6-sol", context={"processing": "batch"}, now=now)
    assert flex.input == batch.input == pytest.approx(plain.input / 2)
    assert flex.cache_write == pytest.approx(1.25 * flex.input)


def test_a_price_from_a_date_on_holds_from_that_date():
    before, after = (
        published_price("openai", "gpt-5.6-sol", now=datetime(2026, month, 1, tzinfo=UTC).timestamp()).input
        for month in (8, 9)
    )
    assert (before, after) == (5.0, 4.0)


def test_long_inputs_cost_more_from_their_first_token_on():
    price = published_price("openai", "gpt-5.6-sol", now=NOW.timestamp())
    ((tokens, above),) = price.above
    assert above.input > price.input
    short, long = (cost_usd(Usage(count, 0), price) for count in (tokens, tokens + 1))
    assert short == pytest.approx(tokens * price.input / 1e6)
    assert long == pytest.approx((tokens + 1) * above.input / 1e6)


def test_the_release_that_is_tested_has_a_date():
    assert published_price("openai", "gpt-4o-mini").date.startswith("202")
