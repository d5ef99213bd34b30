"""Fifty replies, and what their providers' published arithmetic makes of them, written out by hand.

Rates are dollars for a million tokens as the named page had them on the row's date; tokens are those of the reply.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from types import SimpleNamespace
from typing import Any

import pytest

from llmdo.backends.money import published
from llmdo.backends.money.prices import Prices
from llmdo.backends.openai.shapes import read_usage
from llmdo.backends.responses import Models
from llmdo.backends.usage import Usage

M = 1e6
OPENAI = "https://api.openai.com/v1"
GROQ, TOGETHER = "https://api.groq.com/openai/v1", "https://api.together.xyz/v1"
MISTRAL, DEEPSEEK = "https://api.mistral.ai/v1", "https://api.deepseek.com/v1"
XAI, GEMINI = "https://api.x.ai/v1", "https://generativelanguage.googleapis.com/v1beta/openai"
CLAUDE = "https://api.anthropic.com/v1"
GATEWAY = "https://gateway.ai.cloudflare.com/v1/account/gateway"
# The pages that have the rates.
OPENAI_PRICES = "developers.openai.com/api/docs/pricing"
OPENAI_WINDOWS = "developers.openai.com/api/docs/guides/flex-processing: 2 h 30 %, 8 h 40 % below Standard"
CLAUDE_PRICES = "platform.claude.com/docs/en/about-claude/pricing"
GEMINI_PRICES = "ai.google.dev/gemini-api/docs/pricing"
GROQ_PRICES, TOGETHER_PRICES = "console.groq.com/docs/models", "www.together.ai/pricing"
MISTRAL_PRICES, XAI_PRICES = "mistral.ai/pricing/api", "docs.x.ai/docs/models"
DEEPSEEK_PRICES = "api-docs.deepseek.com/quick_start/pricing"
CLOUDFLARE_PRICES = "developers.cloudflare.com/workers-ai/platform/pricing"


def chat(given: int, output: int, **more: Any) -> dict[str, Any]:
    """``usage`` of a chat completion; ``more`` by its names, those of the details too."""
    inputs = {name: more.pop(name) for name in ("cached_tokens", "cache_write_tokens") if name in more}
    inputs |= {"audio_tokens": more.pop("heard")} if "heard" in more else {}
    outputs = {"reasoning_tokens": more.pop("thought")} if "thought" in more else {}
    outputs |= {"audio_tokens": more.pop("spoken")} if "spoken" in more else {}
    body = {"prompt_tokens": given, "completion_tokens": output, "total_tokens": given + output, **more}
    return body | {"prompt_tokens_details": inputs, "completion_tokens_details": outputs}


def response(given: int, output: int, cached: int = 0, written: int = 0, thought: int = 0) -> dict[str, Any]:
    """``usage`` of a response of the Responses API."""
    return {
        "input_tokens": given,
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": written},
        "output_tokens": output,
        "output_tokens_details": {"reasoning_tokens": thought},
        "total_tokens": given + output,
    }


@dataclass(frozen=True)
class Row:
    """``usd``: the arithmetic; ``provider``: llmdo's name, ``openai`` for whatever answers at ``url``."""

    model: str
    usage: Any
    usd: float
    page: str
    url: str = OPENAI
    lane: str = ""
    at: str = "2026-11-20T12:00:00+00:00"
    provider: str = "openai"


AUGUST, SEPTEMBER, MAY = "2026-08-01T12:00:00+00:00", "2026-09-01T12:00:00+00:00", "2026-05-01T12:00:00+00:00"
ROWS = [
    # OpenAI: list prices, cached reads, writes, reasoning, long inputs, sound, dates.
    Row("gpt-4o-mini", chat(120_000, 30_000), (120_000 * 0.15 + 30_000 * 0.6) / M, OPENAI_PRICES),
    Row(
        "gpt-4o-2024-08-06",
        chat(50_000, 9_000, cached_tokens=40_960),
        (9_040 * 2.5 + 40_960 * 1.25 + 9_000 * 10) / M,
        OPENAI_PRICES,
    ),
    Row("gpt-4.1", response(70_000, 8_000, 64_000), (6_000 * 2 + 64_000 * 0.5 + 8_000 * 8) / M, OPENAI_PRICES),
    Row("gpt-5", chat(21_000, 17_000, thought=15_500), (21_000 * 1.25 + 17_000 * 10) / M, OPENAI_PRICES),
    Row("gpt-5-nano", chat(999_937, 77_777), (999_937 * 0.05 + 77_777 * 0.4) / M, OPENAI_PRICES),
    Row("o3", response(33_000, 12_000, 0, 0, 11_000), (33_000 * 2 + 12_000 * 8) / M, OPENAI_PRICES),
    Row(
        "gpt-5.6-sol",
        chat(90_000, 4_000, cached_tokens=30_000, cache_write_tokens=50_000),
        (10_000 * 4 + 30_000 * 0.4 + 50_000 * 4 * 1.25 + 4_000 * 20) / M,
        OPENAI_PRICES,
    ),
    Row("gpt-5.6-sol", chat(90_000, 4_000), (90_000 * 5 + 4_000 * 30) / M, OPENAI_PRICES, at=AUGUST),
    Row("gpt-5.6-sol", chat(90_000, 4_000), (90_000 * 4 + 4_000 * 20) / M, OPENAI_PRICES, at=SEPTEMBER),
    Row("gpt-5.4", response(272_000, 1_000), (272_000 * 2.5 + 1_000 * 15) / M, OPENAI_PRICES),
    Row("gpt-5.4", response(272_001, 1_000), (272_001 * 2.5 * 2 + 1_000 * 15 * 1.5) / M, OPENAI_PRICES),
    Row(
        "gpt-6.1-sol",
        response(300_000, 20_000, 200_000, 90_000),
        (10_000 * 4 + 200_000 * 0.2 + 90_000 * 5 + 20_000 * 15) / M,
        OPENAI_PRICES,
    ),
    Row(
        "gpt-audio",
        chat(40_000, 6_000, heard=36_000, spoken=5_000),
        (4_000 * 2.5 + 36_000 * 32 + 1_000 * 10 + 5_000 * 64) / M,
        OPENAI_PRICES,
    ),
    Row(
        "text-embedding-3-small", {"prompt_tokens": 800_000, "total_tokens": 800_000}, 800_000 * 0.02 / M, OPENAI_PRICES
    ),
    # OpenAI: batch, flex, priority, windows.
    Row("gpt-4o-mini", chat(120_000, 30_000), (120_000 * 0.075 + 30_000 * 0.3) / M, OPENAI_PRICES, lane="batch"),
    Row(
        "gpt-4o",
        chat(50_000, 9_000, cached_tokens=40_960),  # the Batch table has no rate for cached input of this model
        (9_040 * 2.5 / 2 + 40_960 * 1.25 + 9_000 * 10 / 2) / M,
        OPENAI_PRICES,
        lane="batch",
    ),
    Row(
        "gpt-5",
        response(80_000, 6_000, 60_000),
        (20_000 * 0.625 + 60_000 * 0.0625 + 6_000 * 5) / M,
        OPENAI_PRICES,
        lane="batch",
    ),
    Row(
        "gpt-4o-mini",
        chat(120_000, 30_000),
        (120_000 * 0.15 + 30_000 * 0.6) / 2 / M,
        OPENAI_PRICES,
        lane="batch",
        at=MAY,
    ),
    Row(
        "gpt-5.4",
        chat(300_000, 9_000, cached_tokens=100_000),
        (200_000 * 2.5 + 100_000 * 0.25 + 9_000 * 11.25) / M,
        OPENAI_PRICES,
        lane="batch",
    ),
    Row(
        "gpt-5-mini",
        chat(64_000, 12_000, cached_tokens=32_000, thought=9_000),
        (32_000 * 0.125 + 32_000 * 0.0125 + 12_000 * 1) / M,
        OPENAI_PRICES,
        lane="flex",
    ),
    Row(
        "o4-mini",
        chat(20_000, 8_000, cached_tokens=10_000),
        (10_000 * 0.55 + 10_000 * 0.138 + 8_000 * 2.2) / M,
        OPENAI_PRICES,
        lane="flex",
    ),
    Row(
        "gpt-5.6-luna",
        response(50_000, 5_000, 20_000, 20_000),
        (10_000 * 0.1 + 20_000 * 0.01 + 20_000 * 0.125 + 5_000 * 0.6) / M,
        OPENAI_PRICES,
        lane="flex",
    ),
    Row("gpt-5.5", chat(40_000, 7_000), (40_000 * 12.5 + 7_000 * 75) / M, OPENAI_PRICES, lane="priority"),
    Row("gpt-4.1", chat(40_000, 7_000), (40_000 * 3.5 + 7_000 * 14) / M, OPENAI_PRICES, lane="priority"),
    Row(
        "gpt-6-sol",
        response(100_000, 30_000, 40_000, 50_000),
        (10_000 * 2 + 40_000 * 0.2 + 50_000 * 2.5 + 30_000 * 10) * (1 - 0.30) / M,
        OPENAI_WINDOWS,
        lane="2h",
    ),
    Row(
        "gpt-6.1-sol",
        response(100_000, 30_000),
        (100_000 * 2 + 30_000 * 10) * (1 - 0.40) / M,
        OPENAI_WINDOWS,
        lane="8h",
    ),
    Row(
        "gpt-6-sol",
        response(280_000, 3_000),
        (280_000 * 4 + 3_000 * 15) * (1 - 0.40) / M,
        OPENAI_WINDOWS,
        lane="8h",
    ),
    # Anthropic: input without the cache, reads at a tenth, writes at 1.25 (5 minutes) and 2 (an hour), batches at half.
    Row(
        "claude-haiku-4-5",
        Usage(70_000, 5_000, 40_000, cache_write_tokens=20_000),
        (10_000 * 1 + 40_000 * 0.1 + 20_000 * 1.25 + 5_000 * 5) / M,
        CLAUDE_PRICES,
        CLAUDE,
    ),
    Row(
        "claude-haiku-4-5",
        Usage(70_000, 5_000, 40_000, cache_write_tokens=20_000, cache_write_1h_tokens=12_000),
        (10_000 * 1 + 40_000 * 0.1 + 8_000 * 1.25 + 12_000 * 2 + 5_000 * 5) / M,
        CLAUDE_PRICES,
        CLAUDE,
    ),
    Row(
        "claude-sonnet-4-5",
        Usage(30_000, 5_000, cache_write_tokens=30_000, cache_write_1h_tokens=30_000),
        (30_000 * 3 * 2 + 5_000 * 15) / 2 / M,
        CLAUDE_PRICES,
        CLAUDE,
        lane="batch",
    ),
    Row("claude-sonnet-4-5", Usage(210_000, 1_000), (210_000 * 6 + 1_000 * 22.5) / M, CLAUDE_PRICES, CLAUDE),
    Row(
        "claude-opus-5-5",
        Usage(90_000, 2_000, 80_000),
        (10_000 * 4 + 80_000 * 4 * 0.05 + 2_000 * 20) / M,
        CLAUDE_PRICES,
        CLAUDE,
    ),
    Row("claude-haiku-5-5", Usage(100_001, 4_000), (100_001 * 0.5 + 4_000 * 2.5) / M, CLAUDE_PRICES, CLAUDE),
    Row(
        "claude-haiku-5-5",
        Usage(100_001, 4_000),
        (100_001 * 0.5 + 4_000 * 2.5) / 2 / M,
        CLAUDE_PRICES,
        CLAUDE,
        lane="batch",
    ),
    Row(
        "claude-opus-5",
        Usage(12_000, 3_000),
        (12_000 * 5 + 3_000 * 25) / 2 / M,
        CLAUDE_PRICES,
        CLAUDE,
        lane="batch",
        at=SEPTEMBER,
    ),
    # Gemini: all tokens of a prompt above 200,000 cost more, and batches halve all but cached input.
    Row("gemini-2.5-pro", chat(200_000, 2_000), (200_000 * 1.25 + 2_000 * 10) / M, GEMINI_PRICES, GEMINI),
    Row("gemini-2.5-pro", chat(200_001, 2_000), (200_001 * 2.5 + 2_000 * 15) / M, GEMINI_PRICES, GEMINI),
    Row(
        "gemini-3.1-pro-preview",
        chat(250_000, 4_000, cached_tokens=100_000),
        (150_000 * 2 + 100_000 * 0.4 + 4_000 * 9) / M,
        GEMINI_PRICES,
        GEMINI,
        lane="batch",
    ),
    Row(
        "gemini-2.5-flash",
        chat(64_000, 3_000, heard=60_000),
        (4_000 * 0.3 + 60_000 * 1 + 3_000 * 2.5) / M,
        GEMINI_PRICES,
        GEMINI,
    ),
    # Services with OpenAI's API.
    Row("llama-3.3-70b-versatile", chat(45_000, 15_000), (45_000 * 0.59 + 15_000 * 0.79) / M, GROQ_PRICES, GROQ),
    Row(
        "moonshotai/kimi-k2-instruct",
        chat(45_000, 15_000, cached_tokens=20_000),  # the same, by what is published for all models
        (45_000 * 1 / 2 + 15_000 * 3 / 2) / M,
        "console.groq.com/docs/batch",
        GROQ,
        lane="batch",
    ),
    Row(
        "openai/gpt-oss-120b",
        chat(45_000, 15_000, cached_tokens=20_000),  # caching does not add to the batch's discount
        (45_000 * 0.15 / 2 + 15_000 * 0.6 / 2) / M,
        "console.groq.com/docs/batch",
        GROQ,
        lane="batch",
    ),
    Row(
        "llama-3.3-70b-versatile",
        chat(45_000, 15_000),
        (45_000 * 0.59 + 15_000 * 0.79) / M,
        "console.groq.com/docs/flex-processing: at on-demand rates",
        GROQ,
        lane="flex",
    ),
    Row("meta-llama/Llama-3.3-70B-Instruct-Turbo", chat(50_000, 9_000), 59_000 * 0.88 / M, TOGETHER_PRICES, TOGETHER),
    Row(
        "zai-org/GLM-5.3",
        chat(50_000, 9_000, cached_tokens=30_000),
        (20_000 * 1.4 + 30_000 * 0.26 + 9_000 * 4.4) / M,
        TOGETHER_PRICES,
        TOGETHER,
    ),
    Row(
        "mistral-large-2512",
        chat(30_000, 6_000, cached_tokens=10_000),
        (20_000 * 0.5 + 10_000 * 0.05 + 6_000 * 1.5) / M,
        MISTRAL_PRICES,
        MISTRAL,
    ),
    Row(
        "mistral-large-2512",
        chat(30_000, 6_000),
        (30_000 * 0.5 + 6_000 * 1.5) / 2 / M,
        MISTRAL_PRICES,
        MISTRAL,
        lane="batch",
    ),
    Row(
        "deepseek-v4-pro",  # off-peak; hits as its own fields have them
        chat(80_000, 5_000, prompt_cache_hit_tokens=60_000, prompt_cache_miss_tokens=20_000),
        (20_000 * 0.66 + 60_000 * 0.022 + 5_000 * 1.98) / M,
        DEEPSEEK_PRICES,
        DEEPSEEK,
    ),
    Row(
        "deepseek-v4-pro",
        chat(80_000, 5_000),
        (80_000 * 1.32 + 5_000 * 3.96) / M,
        DEEPSEEK_PRICES,
        DEEPSEEK,
        at="2026-11-20T02:30:00+00:00",
    ),
    Row(
        "grok-4.3",  # reasoning is not part of completion_tokens there
        {**chat(20_000, 3_000, thought=2_000), "total_tokens": 25_000},
        (20_000 * 1.25 + (3_000 + 2_000) * 2.5) / M,
        XAI_PRICES,
        XAI,
    ),
    Row("grok-4.3", chat(200_000, 3_000), (200_000 * 2.5 + 3_000 * 5) / M, f"{XAI_PRICES}: from 200,000 on", XAI),
    Row(
        "grok-4.3",
        chat(50_000, 3_000),
        (50_000 * 1.25 + 3_000 * 2.5) * 0.8 / M,
        f"{XAI_PRICES}: batch 20 % less",
        XAI,
        lane="batch",
    ),
    # Cloudflare, its gateway's addresses, and Braintrust, which passes prices on.
    Row(
        "@cf/meta/llama-3.3-70b-instruct-fp8-fast",
        chat(60_000, 9_000),
        (60_000 * 0.293 + 9_000 * 2.253) / M,
        CLOUDFLARE_PRICES,
        provider="workers-ai",
    ),
    Row(
        "@cf/zai-org/glm-5.2",
        chat(60_000, 9_000, cached_tokens=50_000),
        (10_000 * 1.4 + 50_000 * 0.26 + 9_000 * 4.4) / M,
        CLOUDFLARE_PRICES,
        provider="workers-ai",
    ),
    Row(
        "@cf/black-forest-labs/flux-1-schnell",
        {"neurons": 4_321.5},
        4_321.5 * 0.011 / 1000,
        CLOUDFLARE_PRICES,
        provider="workers-ai",
    ),
    Row(
        "@cf/zai-org/glm-5.2",
        chat(60_000, 9_000),
        (60_000 * 1.4 + 9_000 * 4.4) / M,
        f"{CLOUDFLARE_PRICES}: no other for batches",
        provider="workers-ai",
        lane="batch",
    ),
    Row("gpt-4o-mini", chat(120_000, 30_000), (120_000 * 0.15 + 30_000 * 0.6) / M, OPENAI_PRICES, f"{GATEWAY}/openai"),
    Row("anthropic/claude-haiku-4-5", chat(9_000, 900), (9_000 * 1 + 900 * 5) / M, CLAUDE_PRICES, f"{GATEWAY}/compat"),
    Row(
        "gpt-5-mini",
        chat(64_000, 12_000),
        (64_000 * 0.125 + 12_000 * 1) / M,
        OPENAI_PRICES,
        provider="braintrust",
        lane="flex",
    ),
    Row("claude-opus-5-5", chat(10_000, 2_000), (10_000 * 4 + 2_000 * 20) / M, CLAUDE_PRICES, provider="braintrust"),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.provider}-{row.model}-{row.lane or 'list'}")
def test_a_usage_costs_what_its_provider_publishes(row, monkeypatch):
    at = datetime.fromisoformat(row.at).timestamp()
    monkeypatch.setattr(published, "time", SimpleNamespace(time=lambda: at))
    monkeypatch.setenv("OPENAI_BASE_URL", row.url)
    usage = row.usage if isinstance(row.usage, Usage) else read_usage({"usage": row.usage})
    cost = Prices(lambda _: Models(())).cost_of(row.provider, row.model, row.model, usage, row.lane)
    assert cost == pytest.approx(row.usd, rel=1e-9)


def test_there_are_fifty_and_all_kinds_among_them():
    assert len(ROWS) >= 50
    assert {row.lane for row in ROWS} == {"", "batch", "flex", "priority", "2h", "8h"}
    assert {row.provider for row in ROWS} == {"openai", "workers-ai", "braintrust"}
