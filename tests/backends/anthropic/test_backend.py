"""Anthropic's replies, streams, refusals and lists, and what is asked when."""

import asyncio
import json

import httpx
import pytest

from llmdo.backends.anthropic.backend import Anthropic
from llmdo.backends.errors import (
    BadReply,
    ContentFiltered,
    InvalidRequest,
    Overloaded,
    QuotaExhausted,
    RateLimited,
    Retryable,
    StreamError,
    Unauthorized,
)
from llmdo.backends.requests import ChatRequest, Message, RawRequest
from llmdo.backends.streams import collected
from llmdo.backends.usage import Usage
from llmdo.settings.environment import MissingSettings, anthropic_access
from llmdo.transforms.answers.rows import response_body
from tests.backends.anthropic.service import ACCESS, MODEL, error, message, streamed
from tests.backends.conformance import event_stream
from tests.backends.wire import Wire

NOW = 1_800_000_000.0
TEXT = {"type": "text", "text": "Paris"}
THOUGHT = {"type": "thinking", "thinking": "hm", "signature": "sig"}
USE = {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"a": "b" * 9}}
CACHED = {
    "input_tokens": 3,
    "cache_read_input_tokens": 4,
    "cache_creation_input_tokens": 5,
    "output_tokens": 6,
    "output_tokens_details": {"thinking_tokens": 2},
}
LONG = "You answer in one word. " * 400


def call(act, *replies):
    """What comes of ``act`` with a backend whose calls get these replies in turn, and the requests."""
    sent = []

    def answer(request):
        sent.append(request)
        reply = replies[min(len(sent), len(replies)) - 1]
        return reply(request) if callable(reply) else reply

    async def scenario():
        backend = Anthropic(ACCESS, Wire(answer), clock=lambda: NOW)
        try:
            return await act(backend)
        finally:
            await backend.aclose()

    return asyncio.run(scenario()), sent


def reply(*blocks, **more):
    return httpx.Response(200, json=message(*blocks, **more), headers={"request-id": "req_7"})


def ask(*replies, system="", model=MODEL, **parameters):
    messages = (*((Message("system", system),) if system else ()), Message("user", "?"))
    request = ChatRequest(model, messages, parameters)
    return call(lambda backend: backend.execute(request), *replies)


def stream(body):
    request = ChatRequest(MODEL, (Message("user", "?"),))
    return call(lambda backend: collected(backend.execute_stream(request), MODEL), event_stream(body))[0]


def test_a_message_is_read_whole_and_nothing_of_it_is_lost():
    response, sent = ask(reply(THOUGHT, TEXT, USE, stop="tool_use", usage=CACHED, container={"id": "c"}))
    assert (response.text, response.reasoning, response.finish_reason) == ("Paris", "hm", "tool_calls")
    assert response.usage == Usage(12, 6, 4, 2, cache_write_tokens=5)
    assert (response.request_id, response.model, response.warnings) == ("req_7", MODEL, ())
    body = response_body(response, "r")
    assert body["choices"][0]["message"]["content_parts"] == [THOUGHT, TEXT, USE]
    assert (body["id"], body["container"], body["object"]) == ("msg_1", {"id": "c"}, "chat.completion")
    assert body["usage"] == {**CACHED, "prompt_tokens": 12, "completion_tokens": 6, "total_tokens": 18}
    assert sent[0].headers["x-api-key"] == ACCESS.key
    assert sent[0].headers["anthropic-version"] == "2023-06-01"
    assert str(sent[0].url) == "https://api.anthropic.com/v1/messages"


def test_a_stream_brings_the_same_as_a_whole_reply():
    whole = message(THOUGHT, TEXT, USE, stop="tool_use", usage=CACHED)
    response, there = stream(streamed(whole)), ask(reply(THOUGHT, TEXT, USE, stop="tool_use", usage=CACHED))[0]
    for name in ("text", "reasoning", "tool_calls", "finish_reason", "usage", "model", "warnings"):
        assert getattr(response, name) == getattr(there, name), name
    assert response.details["content_parts"] == [THOUGHT, TEXT, USE]


@pytest.mark.parametrize(
    ("stop", "finish", "warned"),
    [
        ("max_tokens", "length", "raise max_tokens"),
        ("stop_sequence", "stop", None),
        ("model_context_window_exceeded", "length", "raise max_tokens"),
        ("pause_turn", "pause_turn", "pause_turn"),
    ],
)
def test_how_an_answer_ended_is_told(stop, finish, warned):
    response, _ = ask(reply(TEXT, stop=stop))
    assert response.finish_reason == finish
    assert bool(warned) == bool(response.warnings)
    assert not warned or warned in response.warnings[0]


def test_a_refusal_is_the_lines_error_and_is_paid_for():
    details = {"type": "refusal", "category": "cyber", "explanation": "No malware."}
    with pytest.raises(ContentFiltered, match="refusal") as caught:
        ask(reply(stop="refusal", stop_details=details, usage=CACHED))
    assert caught.value.usage == Usage(12, 6, 4, 2, cache_write_tokens=5)
    with pytest.raises(ContentFiltered):
        stream(streamed(message(stop="refusal")))


@pytest.mark.parametrize(
    ("status", "kind", "said", "expected"),
    [
        (400, "invalid_request_error", "Your credit balance is too low to access the Anthropic API.", QuotaExhausted),
        (400, "invalid_request_error", "You have reached your specified API usage limits.", QuotaExhausted),
        (402, "billing_error", "Payment required", QuotaExhausted),
        (403, "permission_error", "Your API key does not have permission", Unauthorized),
        (429, "rate_limit_error", "This request would exceed your rate limit", RateLimited),
        (500, "api_error", "Internal server error", Overloaded),
        (529, "overloaded_error", "Overloaded", Overloaded),
        (200, "overloaded_error", "Overloaded", Overloaded),
        (200, "api_error", "Internal server error", Overloaded),
        (200, "invalid_request_error", "Your credit balance is too low to access the Anthropic API.", QuotaExhausted),
    ],
)
def test_a_refusal_means_the_same_whole_or_in_a_stream(status, kind, said, expected):
    body = error(status, kind, said)[1]
    with pytest.raises(expected):
        ask(httpx.Response(status, json=body))
    first = streamed(message(TEXT)).partition(b"event: message_delta")[0]
    with pytest.raises(expected) as caught:
        stream(first + f"event: error\ndata: {json.dumps(body)}\n\n".encode())
    assert caught.value.lost or not issubclass(expected, Retryable)


def test_a_limit_that_is_used_up_names_its_wait():
    headers = {
        "anthropic-ratelimit-requests-remaining": "0",
        "anthropic-ratelimit-requests-reset": "2027-01-15T08:00:30Z",  # half a minute after NOW
        "anthropic-ratelimit-tokens-remaining": "5",
        "anthropic-ratelimit-tokens-reset": "2027-01-15T09:00:00Z",
    }
    with pytest.raises(RateLimited) as caught:
        ask(httpx.Response(429, json=error(429, "rate_limit_error")[1], headers=headers))
    assert caught.value.retry_after == 30


def test_a_spending_limit_of_the_contract_stops_the_run():
    body = error(429, "rate_limit_error")[1]
    body["error"]["details"] = {"error_code": "contract_spend_limit_reached"}
    with pytest.raises(QuotaExhausted):
        ask(httpx.Response(429, json=body))


def test_a_tools_input_that_is_no_json_is_a_broken_stream():
    body = streamed(message(USE, stop="tool_use")).replace(b'bbb\\"}', b"")
    with pytest.raises(StreamError, match="not JSON"):
        stream(body)


SCHEMA = {"type": "object", "properties": {"yes": {"type": "boolean"}}, "required": ["yes"]}
WANTED = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}


def test_a_schema_that_the_service_refuses_is_asked_for_in_words_from_then_on():
    refused = httpx.Response(400, json=error(400, "invalid_request_error", "schema is too complex")[1])

    def answer(request):
        return refused if "output_config" in json.loads(request.content) else reply({**TEXT, "text": '{"yes": true}'})

    async def twice(backend):
        request = ChatRequest(MODEL, (Message("user", "?"),), {"response_format": WANTED})
        return [await backend.execute(request) for _ in range(2)]

    responses, sent = call(twice, answer)
    assert [response.text for response in responses] == ['{"yes": true}'] * 2
    assert len(sent) == 3
    with pytest.raises(InvalidRequest, match="schema is too complex"):
        ask(
            refused,
            httpx.Response(400, json=error(400, "invalid_request_error", "no image")[1]),
            response_format=WANTED,
        )


def test_an_older_model_gives_json_by_a_tool():
    use = {"type": "tool_use", "id": "t", "name": "json_answer", "input": {"answer": {"yes": True}}}
    response, _ = ask(reply(use, stop="tool_use"), model="claude-3-haiku-20240307", response_format=WANTED)
    assert (json.loads(response.text), response.tool_calls) == ({"yes": True}, ())
    assert response.finish_reason == "stop"


def test_an_answer_that_does_not_fit_is_shown_to_the_model_once():
    good, bad = ({**TEXT, "text": text} for text in ('{"yes": true}', '{"yes": 1}'))
    response, sent = ask(reply(bad), reply(good), response_format=WANTED)
    assert response.text == '{"yes": true}'
    assert [turn["role"] for turn in json.loads(sent[1].content)["messages"]] == ["user", "assistant", "user"]


def marks(sent):
    return [json.loads(request.content).get("system") for request in sent]


def test_a_shared_beginning_is_marked_from_its_second_time_on():
    async def act(backend):
        for number in range(3):
            messages = (Message("system", LONG), Message("user", str(number)))
            await backend.execute(ChatRequest(MODEL, messages))
        await backend.execute(ChatRequest(MODEL, (Message("system", LONG + "!"), Message("user", "?"))))

    marked = [{"type": "text", "text": LONG, "cache_control": {"type": "ephemeral"}}]
    assert marks(call(act, reply(TEXT))[1]) == [LONG, marked, marked, LONG + "!"]


@pytest.mark.parametrize(
    ("system", "parameters", "part"),
    [
        ("short", {}, {}),
        (LONG, {"cache_control": False}, {}),
        (LONG, {}, {"cache_control": {"type": "ephemeral"}}),
    ],
)
def test_a_short_beginning_or_one_with_marks_of_its_own_is_left_as_it_is(system, parameters, part):
    async def act(backend):
        for _ in range(2):
            messages = (Message("system", system), Message("user", ({**TEXT, **part},)))
            await backend.execute(ChatRequest(MODEL, messages, parameters))

    assert marks(call(act, reply(TEXT))[1]) == [system, system]


def test_instructions_with_a_mark_of_their_own_get_no_other():
    own = {"type": "text", "text": LONG, "cache_control": {"type": "ephemeral", "ttl": "1h"}}

    async def act(backend):
        for _ in range(2):
            messages = (Message("system", (own, {"type": "text", "text": "more"})), Message("user", "?"))
            await backend.execute(ChatRequest(MODEL, messages))

    assert marks(call(act, reply(TEXT))[1]) == [[own, {"type": "text", "text": "more"}]] * 2


def test_tools_alone_are_marked_at_the_last_one():
    tools = [{"type": "function", "function": {"name": name, "description": LONG}} for name in "ab"]

    async def act(backend):
        for _ in range(2):
            await backend.execute(ChatRequest(MODEL, (Message("user", "?"),), {"tools": tools}))

    first, second = (json.loads(request.content)["tools"] for request in call(act, reply(TEXT))[1])
    assert [("cache_control" in tool) for tool in (*first, *second)] == [False, False, False, True]


def test_a_request_of_this_api_loses_nothing_and_is_answered_as_a_chat():
    given = {
        "max_tokens": 9,
        "thinking": {"type": "enabled", "budget_tokens": 1024},
        "tools": [{"type": "web_search_20250305", "name": "web_search"}],
        "messages": [{"role": "user", "content": [{**TEXT, "cache_control": {"type": "ephemeral"}}]}],
    }
    request = RawRequest(MODEL, {**given, "betas": ["x-1", "y-2"]}, "r", path="messages")
    response, sent = call(lambda backend: backend.run(request), reply(THOUGHT, TEXT))
    assert json.loads(sent[0].content) == {**given, "model": MODEL}
    assert sent[0].headers["anthropic-beta"] == "x-1,y-2"
    message_ = response.result["choices"][0]["message"]
    assert (message_["content"], message_["content_parts"]) == ("Paris", [THOUGHT, TEXT])
    assert (response.usage.output_tokens, response.request_id) == (7, "req_7")


def test_a_request_of_this_api_with_a_schema_is_checked():
    form = {"format": {"type": "json_schema", "schema": SCHEMA}}
    request = RawRequest(
        MODEL, {"messages": [{"role": "user", "content": "?"}], "output_config": form}, "r", "messages"
    )
    good, bad = ({**TEXT, "text": text} for text in ('{"yes": true}', "nothing"))
    response, sent = call(lambda backend: backend.run(request), reply(bad), reply(good))
    assert response.result["choices"][0]["message"]["content"] == '{"yes": true}'
    assert len(json.loads(sent[1].content)["messages"]) == 3
    with pytest.raises(BadReply, match="also when asked again"):
        call(lambda backend: backend.run(request), reply(bad))


def test_all_pages_of_the_list_of_models_are_read():
    first = {"id": "claude-a", "retires_at": "2027-01-02T00:00:00Z", "capabilities": {"batch": {"supported": True}}}
    pages = [
        httpx.Response(200, json={"data": [first], "has_more": True, "last_id": "claude-a"}),
        httpx.Response(200, json={"data": [{"id": "claude-b"}], "has_more": False, "last_id": "claude-b"}),
    ]
    models, sent = call(lambda backend: backend.list_models(), *pages)
    assert [model.name for model in models] == ["anthropic/claude-a", "anthropic/claude-b"]
    assert (models[0].deprecated, models[0].capabilities) == ("2027-01-02", {"tools", "batch"})
    assert [dict(request.url.params) for request in sent] == [
        {"limit": "1000"},
        {"limit": "1000", "after_id": "claude-a"},
    ]


def test_what_is_no_list_or_no_message_is_named():
    with pytest.raises(BadReply, match="ANTHROPIC_BASE_URL"):
        call(lambda backend: backend.list_models(), httpx.Response(200, json={"data": 1}))
    with pytest.raises(BadReply, match="not a message"):
        ask(httpx.Response(200, json={"choices": [{"message": {"content": "x"}}]}))


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("", "https://api.anthropic.com"),
        ("http://127.0.0.1:1/anthropic/", "http://127.0.0.1:1/anthropic"),
        ("https://proxy.example/v1", "https://proxy.example"),
        ("https://proxy.example/v1/messages", "https://proxy.example"),
    ],
)
def test_the_base_url_is_that_of_anthropics_client_or_has_v1(monkeypatch, url, found):
    monkeypatch.setenv("ANTHROPIC_BASE_URL", url)
    monkeypatch.setenv("ANTHROPIC_API_KEY", "k")
    assert anthropic_access().base_url == found
    monkeypatch.delenv("ANTHROPIC_API_KEY")
    if url:
        assert anthropic_access().key == ""
    else:
        with pytest.raises(MissingSettings, match="ANTHROPIC_API_KEY"):
            anthropic_access()
