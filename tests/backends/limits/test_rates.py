import math

import pytest

from llmdo.backends.limits.breaker import Breaker
from llmdo.backends.limits.rates import MODEST_OUTPUT, NO_RATES, SLACK_S, Meter, Rates, Tokens
from llmdo.backends.limits.throttle import Throttle
from llmdo.backends.providers import published_rates
from llmdo.backends.requests import ChatRequest, EmbedRequest, Message, RawRequest
from llmdo.backends.usage import Usage


@pytest.fixture
def account(monkeypatch):
    monkeypatch.setenv("CLOUDFLARE_ACCOUNT_ID", "0" * 32)
    monkeypatch.setenv("CLOUDFLARE_API_TOKEN", "token")
    monkeypatch.delenv("CLOUDFLARE_BASE_URL", raising=False)


@pytest.mark.parametrize(
    ("model", "rpm"),
    [
        ("@cf/meta/llama-3.3-70b-instruct-fp8-fast", 300),
        ("@cf/openai/gpt-oss-20b", 300),
        ("@cf/moonshotai/kimi-k2.6", 20),
        ("@cf/moonshotai/kimi-k2.5", 20),
        ("@cf/moonshotai/kimi-k2.7-code", 20),
        ("@cf/zai-org/glm-5.2", 20),
        ("@cf/zai-org/glm-5.3-flash", 300),  # nothing is published of its own: its task's
        ("@cf/zai-org/glm-4.7-flash", 300),
        ("@cf/baai/bge-m3", 3000),
        ("@cf/baai/bge-large-en-v1.5", 1500),
        ("@cf/qwen/qwen3-embedding-0.6b", 3000),
        ("@cf/google/embeddinggemma-300m", 3000),
        ("@cf/baai/bge-reranker-base", 2000),
        ("@cf/huggingface/distilbert-sst-2-int8", 2000),
        ("@cf/meta/m2m100-1.2b", 720),
        ("@cf/openai/whisper-large-v3-turbo", 720),
        ("@cf/llava-hf/llava-1.5-7b-hf", 720),
        ("@cf/facebook/bart-large-cnn", 1500),
        ("@cf/black-forest-labs/flux-1-schnell", 720),
        ("@cf/microsoft/resnet-50", 3000),
    ],
)
def test_workers_ai_publishes_a_rate_for_each_task(account, model, rpm):
    assert published_rates("workers-ai", model) == Rates(rpm=rpm)


def test_no_rate_is_published_by_other_providers_or_holds_at_another_base_url(account, monkeypatch):
    assert published_rates("openai", "gpt-4o") == NO_RATES
    monkeypatch.setenv("CLOUDFLARE_BASE_URL", "http://127.0.0.1:1/client/v4")
    assert published_rates("workers-ai", "@cf/baai/bge-m3") == NO_RATES
    monkeypatch.delenv("CLOUDFLARE_API_TOKEN")
    assert published_rates("workers-ai", "@cf/baai/bge-m3") == NO_RATES


def test_what_a_caller_sets_goes_before_what_is_published_and_is_shared_by_the_workers():
    published = Rates(rpm=300)
    assert Rates(tpm=1000).or_else(published) == Rates(300, 1000)
    assert Rates(rpm=60).or_else(published) == Rates(60)
    assert Rates(rpm=math.inf).or_else(published).shared_by(4) == Rates(math.inf)
    assert Rates(300, 1000).shared_by(4) == Rates(75, 250)
    assert NO_RATES.shared_by(4) == NO_RATES


def test_an_infinite_rate_holds_nothing_back():
    throttle = Throttle(10, Rates(math.inf, math.inf), Breaker("m"), fixed=True)
    for _ in range(9):
        throttle.started(ChatRequest("m", ()), 0.0)
    assert throttle.opens_at() <= 0.0


def test_a_meter_keeps_its_rate_over_any_time_and_makes_up_for_a_late_start():
    meter, now, starts = Meter(10.0), 0.0, []
    for n in range(1000):
        now = max(now, meter.opens_at) + (0.03 if n % 7 == 0 else 0.0)
        starts.append(now)
        meter.spend(1.0, now)
    assert starts[-1] == pytest.approx(99.9, abs=0.2)
    assert min(b - a for a, b in zip(starts, starts[10:], strict=False)) >= 1.0 - SLACK_S - 1e-9


def test_an_idle_meter_saves_nothing_up():
    meter = Meter(10.0)
    meter.spend(1.0, 0.0)
    meter.spend(1.0, 100.0)
    assert meter.opens_at == pytest.approx(100.1 - SLACK_S)


def test_tokens_are_guessed_from_characters_and_the_limit_until_answers_tell():
    tokens = Tokens()
    plain = ChatRequest("m", (Message("user", "x" * 400), Message("system", None)))
    limited = ChatRequest("m", plain.messages, {"max_completion_tokens": 50})
    assert tokens.estimate(plain) == 100 + MODEST_OUTPUT
    assert tokens.estimate(limited) == 100 + 50
    tokens.measured(plain, Usage(input_tokens=200, output_tokens=20))
    assert tokens.estimate(plain) == 200 + 20
    assert tokens.estimate(limited) == 200 + 20


def test_pictures_are_no_characters_and_texts_of_arrays_and_of_raw_inputs_are():
    parts = ({"type": "text", "text": "x" * 40}, {"type": "image_url", "image_url": {"url": "data:" + "x" * 9000}})
    tokens = Tokens()
    assert tokens.estimate(ChatRequest("m", (Message("user", parts),), {"max_tokens": 1})) < 20
    assert tokens.estimate(EmbedRequest("m", ("x" * 40, "y" * 40))) == 20
    assert tokens.estimate(RawRequest("m", {"text": "x" * 40, "target_lang": "de", "n": 5})) == pytest.approx(10.5)
