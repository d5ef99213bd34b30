"""What a run costs at a service that tells no prices."""

from __future__ import annotations

import json

import pytest

from llmdo.backends.errors import short
from llmdo.pipelines.usage import UsageError
from llmdo.settings import environment
from tests.integration.openai_service import MODEL, answer, serving


@pytest.fixture
def service(monkeypatch):
    with serving() as service:
        monkeypatch.setenv("OPENAI_BASE_URL", service.url)
        yield service


def lines(tmp_path, count):
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"p{at}"}) + "\n" for at in range(count)))
    return path


def test_a_server_of_ones_own_has_the_price_that_the_user_names(service, tmp_path):
    prices = {"openai/small": {"input": 100, "output": 1000}}
    summary = answer(lines(tmp_path, 3), output=tmp_path / "out", price_file=prices, max_cost=1.0, max_tokens=10)
    # Each call reports 2 tokens in and 1 out.
    assert summary.spent.cost_usd == pytest.approx(3 * (2 * 100 + 1000) / 1e6)
    assert summary.exit_code == 0
    said = summary.as_json()["prices"]["openai/small"]
    assert (said["input"], said["output"], said["source"]) == (100.0, 1000.0, "--price-file")


def test_without_one_a_budget_in_dollars_is_refused_with_the_remedy(service, tmp_path):
    with pytest.raises(UsageError, match="--price-file"):
        answer(lines(tmp_path, 1), output=tmp_path / "out", max_cost=1.0)
    assert service.asked() == []


def test_a_budget_in_dollars_stops_a_run_at_openai_by_published_prices(service, tmp_path, monkeypatch):
    # The stand-in is at this address: what is asked of OpenAI's own is not.
    monkeypatch.setattr("llmdo.backends.providers.openai_base_url", lambda: environment.OPENAI_API)
    summary = answer(
        lines(tmp_path, 200),
        output=tmp_path / "out",
        model="openai/gpt-4o-mini",
        max_cost=0.000_05,
        concurrency=4,
        max_tokens=10,
    )
    assert summary.exit_code == 1 and "--max-cost" in summary.problem, short(summary.problem)
    assert 0 < summary.spent.cost_usd <= 0.000_05
    assert summary.spent.cost_usd == pytest.approx(summary.spent.calls * (2 * 0.15 + 0.6) / 1e6)
    said = summary.as_json()["prices"]["openai/gpt-4o-mini"]
    assert said["source"].startswith("genai-prices ") and said["date"] >= "2026-11-10"


def test_processes_count_by_the_same_prices(service, tmp_path):
    prices = {"openai/*": {"input": 100, "output": 1000}}
    summary = answer(lines(tmp_path, 8), output=tmp_path / "out", price_file=prices, processes=2)
    assert summary.spent.cost_usd == pytest.approx(8 * (2 * 100 + 1000) / 1e6)
    assert summary.as_json()["prices"][MODEL]["source"] == "--price-file"
