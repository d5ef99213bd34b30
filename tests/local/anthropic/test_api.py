from __future__ import annotations

from typing import Any

import anthropic
import httpx
import pytest

from tests.local.anthropic.batching import MODEL, client_of
from tests.local.cloudflare import Running

ASKED: Any = [{"role": "user", "content": "a b"}]
TOOL: Any = {
    "name": "weather",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


def test_messages_are_answered_by_the_official_client(cloudflare: Running) -> None:
    client = client_of(cloudflare)
    answer = client.messages.create(model=MODEL, max_tokens=50, messages=ASKED, system="s t u")
    (block,) = answer.content
    assert block.type == "text"
    assert (block.text, answer.stop_reason, answer.model, answer.type) == ("echo: a b", "end_turn", MODEL, "message")
    assert (answer.usage.input_tokens, answer.usage.output_tokens, answer.usage.service_tier) == (5, 3, "standard")
    cut = client.messages.create(model=MODEL, max_tokens=2, messages=ASKED)
    assert cut.stop_reason == "max_tokens"
    assert cloudflare.stats()["paid"]["calls"] == 2
    assert cloudflare.stats()["anthropic"] == {"calls": 2, "by_status": {"200": 2}}


def test_messages_are_streamed(cloudflare: Running) -> None:
    with client_of(cloudflare).messages.stream(model=MODEL, max_tokens=50, messages=ASKED) as stream:
        texts = [*stream.text_stream]
        whole = stream.get_final_message()
    assert (len(texts) > 1, "".join(texts)) == (True, "echo: a b")
    assert (whole.stop_reason, whole.usage.input_tokens, whole.usage.output_tokens) == ("end_turn", 2, 3)
    assert cloudflare.stats()["ai"]["in_flight"] == 0


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "weather"}])
def test_tools_are_called_whole_and_in_a_stream(cloudflare: Running, choice: Any) -> None:
    client = client_of(cloudflare)
    given: Any = {"model": MODEL, "max_tokens": 50, "messages": ASKED, "tools": [TOOL], "tool_choice": choice}
    answer = client.messages.create(**given)
    with client.messages.stream(**given) as stream:
        streamed = stream.get_final_message()
    for message in (answer, streamed):
        (use,) = message.content
        assert use.type == "tool_use"
        assert (use.name, use.input, message.stop_reason) == ("weather", {"city": "echo"}, "tool_use")
    turns: Any = [
        *ASKED,
        {"role": "assistant", "content": [block.to_dict() for block in answer.content]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "sun"}]},
    ]
    after = client.messages.create(model=MODEL, max_tokens=50, messages=turns)
    assert getattr(after.content[0], "text", None) == "echo: sun"


def test_an_answer_fits_its_schema(cloudflare: Running) -> None:
    schema: Any = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    answer = client_of(cloudflare).messages.create(
        model=MODEL,
        max_tokens=50,
        messages=ASKED,
        output_config={"format": {"type": "json_schema", "schema": schema}},
    )
    assert getattr(answer.content[0], "text", None) == '{"n":0}'


def test_models_are_listed_page_by_page(cloudflare: Running) -> None:
    client = client_of(cloudflare)
    names = [model.id for model in client.models.list(limit=2)]
    assert MODEL in names
    assert len(names) == len(set(names)) > 4
    page = client.models.list(limit=2, before_id=names[3])
    assert ([model.id for model in page.data], page.has_more) == (names[1:3], True)
    assert client.models.retrieve(MODEL).lifecycle == "active"
    with pytest.raises(anthropic.NotFoundError):
        client.models.retrieve("claude-none")
    for wrong in ({"limit": 0}, {"limit": 1001}, {"after_id": "claude-none"}):
        with pytest.raises(anthropic.BadRequestError):
            client.models.list(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"model": "claude-none"}, anthropic.NotFoundError),
        ({"max_tokens": 0}, anthropic.BadRequestError),
        ({"messages": []}, anthropic.BadRequestError),
        ({"messages": [{"role": "system", "content": "a"}]}, anthropic.BadRequestError),
        ({"messages": [{"role": "user", "content": ""}]}, anthropic.BadRequestError),
        ({"messages": [{"role": "user", "content": [{"text": "a"}]}]}, anthropic.BadRequestError),
        ({"messages": [{"role": "user", "content": "a " * 200_001}]}, anthropic.BadRequestError),
    ],
)
def test_what_is_no_request_is_refused_and_costs_nothing(cloudflare: Running, change: Any, kind: Any) -> None:
    given: Any = {"model": MODEL, "max_tokens": 50, "messages": ASKED, **change}
    with pytest.raises(kind) as refused:
        client_of(cloudflare).messages.create(**given)
    assert refused.value.body["type"] == "error"  # type: ignore[index]
    assert cloudflare.stats()["paid"]["calls"] == 0


def test_a_key_and_a_version_are_needed(cloudflare: Running) -> None:
    url = f"{cloudflare.env['LOCAL_ANTHROPIC_BASE_URL']}/v1/models"
    version = {"anthropic-version": "2023-06-01"}
    for headers, status in (({}, 401), ({"x-api-key": "k"}, 400), ({"x-api-key": "k", **version}, 200)):
        assert httpx.get(url, headers=headers, trust_env=False, timeout=60).status_code == status


@pytest.mark.parametrize(
    ("fault", "kind", "name"),
    [
        ({"status": 529}, anthropic.APIStatusError, "overloaded_error"),
        ({"status": 429, "retry_after": 7}, anthropic.RateLimitError, "rate_limit_error"),
        ({"status": 500}, anthropic.InternalServerError, "api_error"),
        ({"status": 402}, anthropic.APIStatusError, "billing_error"),
        ({"status": 400, "code": "credit_balance"}, anthropic.BadRequestError, "invalid_request_error"),
        ({"rate_per_s": 0.001}, anthropic.RateLimitError, "rate_limit_error"),
    ],
)
def test_faults_are_anthropics_own(cloudflare: Running, fault: Any, kind: Any, name: str) -> None:
    client = client_of(cloudflare)
    cloudflare.fault("anthropic", match="#messages.create", **fault)
    if "rate_per_s" in fault:
        client.messages.create(model=MODEL, max_tokens=50, messages=ASKED)
    with pytest.raises(kind) as refused:
        client.messages.create(model=MODEL, max_tokens=50, messages=ASKED)
    assert refused.value.body["error"]["type"] == name  # type: ignore[index]
    assert refused.value.response.headers.get("retry-after") == ("7" if "retry_after" in fault else None)
    assert client.models.list().data
    assert cloudflare.stats()["paid"]["calls"] == ("rate_per_s" in fault)


def test_a_lost_reply_is_paid_for(cloudflare: Running) -> None:
    cloudflare.fault("anthropic", match="#messages", drop=True, after=True, count=1)
    with pytest.raises(anthropic.APIConnectionError):
        client_of(cloudflare).messages.create(model=MODEL, max_tokens=50, messages=ASKED)
    assert cloudflare.stats()["paid"]["calls"] == 1
