"""Models of others by Cloudflare's own route, with one token: ``workers-ai/openai/…``, ``workers-ai/anthropic/…``."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest

from llmdo.backends.errors import ModelNotFound
from llmdo.backends.money.prices import Prices
from llmdo.backends.providers import lacks_model, published_rates, split_model
from llmdo.backends.requests import ChatRequest, Message, RawRequest
from llmdo.backends.responses import Models
from llmdo.backends.workers_ai.backend import WorkersAI
from llmdo.runners.cli.main import main
from llmdo.settings.environment import AiGateway, CloudflareAccount
from tests.backends.wire import Wire
from tests.integration.cloud import prompts

GPT, CLAUDE = "workers-ai/openai/gpt-5-mini", "workers-ai/anthropic/claude-haiku-4-5"
ACCOUNT = CloudflareAccount("acc", "the-token")
COMPLETION = {
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "so"}, "finish_reason": "stop"}],
    "model": "gpt-5-mini-2025-08-07",
    "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
}


@pytest.mark.parametrize("runner", ["direct"])
@pytest.mark.parametrize(("model", "rates"), [(GPT, (0.25, 2)), (CLAUDE, (1, 5))])
def test_a_file_is_answered_and_costs_what_the_models_owner_publishes(cloud, runner, model, rates):
    cloud.upload("a.jsonl", prompts(5))
    summary = cloud.run(model=model, runner=runner, max_cost=1.0)
    assert summary.exit_code == 0
    spent = summary.spent
    assert spent.calls == 5 and spent.neurons is None
    assert spent.cost_usd == pytest.approx((spent.input_tokens * rates[0] + spent.output_tokens * rates[1]) / 1e6)
    assert summary.as_json()["prices"][model]["source"].startswith("genai-prices ")
    cloud.check()


def test_lines_may_name_them_beside_cloudflares_own_and_responses_pass_as_they_are(cloud):
    lines = [
        {"prompt": "one", "model": GPT},
        {"prompt": "two"},
        {"custom_id": "r", "method": "POST", "url": "/v1/responses", "body": {"model": GPT, "input": "three"}},
    ]
    cloud.upload("a.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode())
    assert cloud.run(runner="direct").exit_code == 0
    rows = list(cloud.rows("a.jsonl"))
    assert sorted(row["model"] for row in rows) == [
        "workers-ai/@cf/meta/llama-3.3-70b-instruct-fp8-fast",
        *[GPT] * 2,
    ]
    (response,) = [row["response"]["body"] for row in rows if row.get("custom_id") == "r"]
    assert response["object"] == "response" and response["id"].startswith("resp_")


def test_a_dry_run_and_a_question_know_them(cloud, capsys, tmp_path):
    (tmp_path / "in.jsonl").write_bytes(prompts(3))
    out = str(tmp_path / "out")
    with pytest.raises(SystemExit) as left:
        main(["run", str(tmp_path / "in.jsonl"), "-o", out, "-m", GPT, "--dry-run", "--json"])
    plan = json.loads(capsys.readouterr().out)
    assert left.value.code == 0
    assert plan["cost_usd_at_most"] > 0 and "is not in its provider's list" not in json.dumps(plan)
    with pytest.raises(SystemExit):
        main(["ask", "a b", "--model", CLAUDE, "--json"])
    assert json.loads(capsys.readouterr().out)["model"] == "anthropic/claude-haiku-4-5"


def test_a_name_that_cloudflare_does_not_know_ends_as_its_own_error(cloud):
    cloud.upload("a.jsonl", b'{"prompt": "a", "model": "workers-ai/openai/gpt-none"}\n{"prompt": "b"}\n')
    assert cloud.run().exit_code == 3


def asked(gateway, request, reply=COMPLETION):
    sent = []

    def answer(call):
        sent.append(call)
        return httpx.Response(200, json=reply)

    backend = WorkersAI(ACCOUNT, Wire(answer), gateway=gateway)
    call = backend.execute(request) if isinstance(request, ChatRequest) else backend.run(request)
    return asyncio.run(call), sent


@pytest.mark.parametrize(
    ("gateway", "url", "header"),
    [
        (None, "https://api.cloudflare.com/client/v4/accounts/acc/ai/v1/chat/completions", None),
        (AiGateway("mine"), "https://api.cloudflare.com/client/v4/accounts/acc/ai/v1/chat/completions", "mine"),
        (
            AiGateway("https://gateway.ai.cloudflare.com/v1/acc/mine"),
            "https://gateway.ai.cloudflare.com/v1/acc/mine/compat/chat/completions",
            None,
        ),
    ],
)
def test_a_call_goes_to_the_accounts_route_by_the_gateway_that_is_named(gateway, url, header):
    request = ChatRequest("openai/gpt-5-mini", (Message("user", "why?"),), {"max_tokens": 7})
    response, (call,) = asked(gateway, request)
    assert (str(call.url), call.headers.get("cf-aig-gateway-id")) == (url, header)
    assert call.headers["authorization"] == "Bearer the-token"
    body = json.loads(call.content)
    assert (body["model"], body["max_completion_tokens"]) == ("openai/gpt-5-mini", 7)
    assert "max_tokens" not in body  # which this model refuses
    assert response.text == "so" and response.warnings == ()


def test_a_response_is_asked_for_at_its_route():
    body = {"object": "response", "id": "resp_1", "status": "completed", "output": [], "model": "gpt-5-mini"}
    request = RawRequest("openai/gpt-5-mini", {"input": "why?"}, path="responses")
    _, (call,) = asked(None, request, body | {"usage": {"input_tokens": 1, "output_tokens": 1}})
    assert str(call.url).endswith("/accounts/acc/ai/v1/responses")


@pytest.mark.parametrize(
    ("model", "usd"),
    [
        ("openai/gpt-4o-mini", 0.15),
        ("anthropic/claude-haiku-4-5", 1.0),
        ("google/gemini-2.5-flash", 0.3),
        ("google-ai-studio/gemini-2.5-flash", 0.3),
        ("xai/grok-4.3", 1.25),
        ("openai/gpt-none", None),
        ("nobody/gpt-4o-mini", None),
        ("@cf/openai/gpt-oss-20b", 0.2),
    ],
)
def test_the_price_is_that_of_the_models_owner(model, usd):
    price = Prices(lambda _: Models(())).of("workers-ai", model)
    assert (price and price.input) == usd


def test_their_names_are_taken_and_others_refused():
    assert split_model(GPT) == ("workers-ai", "openai/gpt-5-mini")
    assert not any(lacks_model("workers-ai", name) for name in ("openai/gpt-5", "google/x", "xai/grok-4.3", "@cf/a/b"))
    assert all(lacks_model("workers-ai", name) for name in ("gpt-5", "claude-opus-5", "meta-llama/Llama-3"))
    with pytest.raises(ModelNotFound):
        split_model("anthropics/claude")


def test_they_have_no_published_rate(monkeypatch):
    monkeypatch.setenv("CLOUDFLARE_ACCOUNT_ID", "0" * 32)
    monkeypatch.setenv("CLOUDFLARE_API_TOKEN", "token")
    monkeypatch.delenv("CLOUDFLARE_BASE_URL", raising=False)
    assert published_rates("workers-ai", "openai/gpt-5").rpm is None
    assert published_rates("workers-ai", "@cf/meta/llama-3.1-8b-instruct").rpm == 300
