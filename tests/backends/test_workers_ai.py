"""What goes over the wire, and what comes of each kind of reply; httpx.MockTransport stands for the network."""

import asyncio
import base64
import json

import httpx
import pytest

from backends.errors import (
    BadReply,
    ConnectionFailed,
    ContextOverflow,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    RateLimited,
    StopRun,
    Unauthorized,
)
from backends.ir import ChatRequest, EmbedRequest, Message, RawRequest, Usage
from backends.workers_ai import DEFAULT_MAX_TOKENS, WorkersAI, chat_body, open_backend
from storage.environment import CloudflareAccount

ACCOUNT = CloudflareAccount("0" * 32, "the-token")
LLAMA = "@cf/meta/llama-3.3-70b-instruct-fp8-fast"
HELLO = (Message("user", "Hello"),)


def ok(result, **headers):
    body = {"result": result, "success": True, "errors": [], "messages": []}
    return httpx.Response(200, json=body, headers=headers)


def refused(status, code, message="said"):
    return httpx.Response(status, json={"success": False, "errors": [{"code": code, "message": message}]})


class Service:
    """Gives its replies one after the other, and keeps the requests."""

    def __init__(self, *replies):
        self.replies = list(replies)
        self.requests = []
        self.backend = WorkersAI(ACCOUNT, httpx.MockTransport(self.answer), clock=lambda: 0.0)

    def answer(self, request):
        self.requests.append(request)
        return self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]

    def body(self, index=0):
        return json.loads(self.requests[index].content)

    def call(self, method, request):
        return asyncio.run(getattr(self.backend, method)(request))


def test_a_chat_request_on_the_wire():
    service = Service(ok({"response": "Hi"}))
    service.call("execute", ChatRequest(LLAMA, HELLO, {"temperature": 0}))
    request = service.requests[0]
    assert request.method == "POST"
    assert request.url.raw_path == f"/client/v4/accounts/{'0' * 32}/ai/run/{LLAMA}".encode()  # not percent-encoded
    assert request.url.host == "api.cloudflare.com"
    assert request.headers["authorization"] == "Bearer the-token"
    assert request.headers["content-type"] == "application/json"
    assert service.body() == {
        "messages": [{"role": "user", "content": "Hello"}],
        "max_tokens": DEFAULT_MAX_TOKENS,
        "temperature": 0,
    }


@pytest.mark.parametrize(
    ("parameters", "sent"),
    [
        ({}, {"max_tokens": DEFAULT_MAX_TOKENS}),
        ({"max_tokens": 7}, {"max_tokens": 7}),
        ({"max_completion_tokens": 7}, {"max_tokens": 7}),
        ({"max_tokens": None}, {"max_tokens": DEFAULT_MAX_TOKENS}),
        ({"stream": True, "seed": 3}, {"max_tokens": DEFAULT_MAX_TOKENS, "seed": 3}),
        (
            {"response_format": {"type": "json_object"}},
            {"max_tokens": DEFAULT_MAX_TOKENS, "response_format": {"type": "json_object"}},
        ),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "n", "schema": {"type": "object"}, "strict": True},
                }
            },
            {
                "max_tokens": DEFAULT_MAX_TOKENS,
                "response_format": {"type": "json_schema", "json_schema": {"type": "object"}},
            },
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"type": "object"}}, "tools": [{"name": "f"}]},
            {
                "max_tokens": DEFAULT_MAX_TOKENS,
                "response_format": {"type": "json_schema", "json_schema": {"type": "object"}},
                "tools": [{"name": "f"}],
            },
        ),
    ],
)
def test_parameters_are_passed_and_a_limit_of_tokens_always_is(parameters, sent):
    body = chat_body(ChatRequest(LLAMA, HELLO, parameters))
    assert body.pop("messages") == [{"role": "user", "content": "Hello"}]
    assert body == sent


@pytest.mark.parametrize("limit", ["many", 0, -1, 1.5, True])
def test_a_limit_that_is_no_number_is_refused_before_the_call(limit):
    service = Service(ok({"response": "Hi"}))
    with pytest.raises(InvalidRequest, match="whole number"):
        service.call("execute", ChatRequest(LLAMA, HELLO, {"max_tokens": limit}))
    assert service.requests == []


def test_messages_keep_their_parts_and_extra_fields_and_never_have_null_content():
    parts = ({"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": "data:x"}})
    messages = (
        Message("user", parts),
        Message("assistant", None, {"tool_calls": [{"id": "1"}]}),
        Message("tool", "42", {"tool_call_id": "1"}),
    )
    assert chat_body(ChatRequest(LLAMA, messages))["messages"] == [
        {"role": "user", "content": list(parts)},
        {"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]},
        {"role": "tool", "content": "42", "tool_call_id": "1"},
    ]


@pytest.mark.parametrize(
    "model", ["@cf/../../queues", "a?b", "a#b", "a b", "", "/x", "a//b", "a/", "ä", "a%2Fb", "@cf/x\n", ".", "a/.."]
)
def test_a_name_that_would_lead_to_another_path_is_refused_before_the_call(model):
    service = Service(ok({"response": "Hi"}))
    for method, request in [("execute", ChatRequest(model, HELLO)), ("run", RawRequest(model, {}))]:
        with pytest.raises(ModelNotFound, match="no model's name"):
            service.call(method, request)
    assert service.requests == []


def test_an_answer_carries_the_calls_id_and_its_neurons():
    service = Service(ok({"response": "Hi", "usage": {"prompt_tokens": 1}}, **{"cf-ray": "r", "cf-ai-neurons": "1.98"}))
    response = service.call("execute", ChatRequest(LLAMA, HELLO))
    assert (response.text, response.request_id) == ("Hi", "r")
    assert response.usage == Usage(1, neurons=1.98)


def test_an_answer_without_an_envelope_is_read():
    service = Service(httpx.Response(200, json={"choices": [{"message": {"content": "Hi"}, "finish_reason": "stop"}]}))
    assert service.call("execute", ChatRequest(LLAMA, HELLO)).text == "Hi"


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (refused(429, 3040), Overloaded),
        (refused(200, 3040), Overloaded),
        (refused(400, 5007), ModelNotFound),
        (refused(401, 10000), Unauthorized),
        (httpx.Response(502, html="<h1>502 Bad gateway</h1>"), Overloaded),
        (httpx.Response(500, html="<title>Error 1101</title>"), Overloaded),
        (httpx.Response(403, html="Just a moment...", headers={"cf-mitigated": "challenge"}), StopRun),
        (httpx.Response(301, headers={"location": "https://elsewhere.example/"}), BadReply),
        (httpx.Response(200, html="<h1>Sign in to the network</h1>"), BadReply),
        (httpx.Response(200, content=b"", headers={"content-type": "text/plain"}), BadReply),
        (
            httpx.Response(200, content=b'{"result": {"resp', headers={"content-type": "application/json"}),
            ConnectionFailed,
        ),
        (httpx.Response(200, content=b"\xff\xfe", headers={"content-type": "application/json"}), ConnectionFailed),
        (httpx.Response(429, content=b"\xff\xfe"), RateLimited),
    ],
)
@pytest.mark.parametrize(
    ("method", "request_"),
    [
        ("execute", ChatRequest(LLAMA, HELLO)),
        ("embed", EmbedRequest("@cf/baai/bge-m3", ("a",))),
    ],
)
def test_whatever_comes_back_becomes_an_error_of_ours(reply, kind, method, request_):
    with pytest.raises(kind) as caught:
        Service(reply).call(method, request_)
    assert caught.value.provider == "workers-ai"
    assert "the-token" not in repr(vars(caught.value))


def test_the_default_limit_is_lowered_to_what_the_context_window_leaves():
    text = (
        "AiError: AiError: 5021: The estimated number of input and maximum output tokens (2148) "
        "exceeded this model context window limit (2048)."
    )
    service = Service(refused(400, 5021, text), ok({"response": "Hi"}))
    response = service.call("execute", ChatRequest("@cf/microsoft/phi-2", HELLO))
    assert [service.body(i)["max_tokens"] for i in range(2)] == [DEFAULT_MAX_TOKENS, DEFAULT_MAX_TOKENS - 100]
    assert response.text == "Hi"
    assert response.warnings == (f"max_tokens was lowered from {DEFAULT_MAX_TOKENS} to 1948 to fit the context window",)


@pytest.mark.parametrize(
    ("parameters", "numbers"),
    [({"max_tokens": 2048}, "(2148) … limit (2048)"), ({}, "(9000) … limit (2048)"), ({}, "")],
)
def test_a_prompt_that_leaves_no_room_is_refused_with_one_call(parameters, numbers):
    service = Service(refused(400, 5021, f"input and maximum output tokens {numbers}"))
    with pytest.raises(ContextOverflow):
        service.call("execute", ChatRequest(LLAMA, HELLO, parameters))
    assert len(service.requests) == 1


def test_an_embedding_on_the_wire_and_back():
    service = Service(ok({"shape": [2, 2], "data": [[1, 2], [3, 4]], "usage": {"prompt_tokens": 6}}))
    response = service.call("embed", EmbedRequest("@cf/baai/bge-m3", ("a", "b"), {"pooling": "cls"}))
    assert service.body() == {"text": ["a", "b"], "pooling": "cls"}
    assert service.requests[0].url.path.endswith("/ai/run/@cf/baai/bge-m3")
    assert response.vectors == ((1.0, 2.0), (3.0, 4.0))
    assert response.usage == Usage(6)


@pytest.mark.parametrize(
    ("model", "texts"),
    [
        ("@cf/baai/bge-m3", 100),
        ("@cf/baai/bge-large-en-v1.5", 100),
        ("@cf/google/embeddinggemma-300m", 100),
        ("@cf/qwen/qwen3-embedding-0.6b", 32),
        ("@cf/baai/bge-reranker-base", 1),
        ("@cf/meta/m2m100-1.2b", 1),
        ("@cf/meta/llama-3.3-70b-instruct-fp8-fast", 1),
    ],
)
def test_arrays_are_as_long_as_the_models_schema_allows(model, texts):
    assert WorkersAI(ACCOUNT).max_texts(model) == texts


@pytest.mark.parametrize(
    ("reply", "result"),
    [
        (ok([{"label": "POSITIVE", "score": 0.99}]), [{"label": "POSITIVE", "score": 0.99}]),
        (ok({"translated_text": "Bonjour"}), {"translated_text": "Bonjour"}),
        (httpx.Response(200, json={"description": "a cat"}), {"description": "a cat"}),
        (
            httpx.Response(200, content=b"\x89PNG", headers={"content-type": "image/png"}),
            {"content_type": "image/png", "base64": base64.b64encode(b"\x89PNG").decode()},
        ),
        (httpx.Response(200, text="WEBVTT"), "WEBVTT"),
    ],
)
def test_any_other_model_takes_its_own_input_and_gives_its_own_result(reply, result):
    service = Service(reply)
    sent = {"text": "Hello", "source_lang": "en", "target_lang": "fr"}
    response = service.call("run", RawRequest("@cf/meta/m2m100-1.2b", sent))
    assert service.body() == sent
    assert response.result == result


@pytest.mark.parametrize("reply", [refused(400, 5006), httpx.Response(200, html="<h1>Sign in</h1>")])
def test_a_refused_raw_call_is_an_error(reply):
    with pytest.raises((InvalidRequest, BadReply)):
        Service(reply).call("run", RawRequest("@cf/meta/m2m100-1.2b", {}))


def test_models_are_listed_until_a_page_is_not_full():
    def entry(number):
        return {
            "id": "uuid",
            "name": f"@cf/x/m{number}",
            "description": "d",
            "task": {"id": "i", "name": "Text Generation"},
            "properties": [
                {"property_id": "context_window", "value": "24000"},
                {"property_id": "beta", "value": "true"},
            ],
        }

    service = Service(ok([entry(n) for n in range(50)]), ok([entry(n) for n in range(50, 100)]), ok([entry(100)]))
    models = asyncio.run(service.backend.list_models())
    assert [m.name for m in models] == [f"workers-ai/@cf/x/m{n}" for n in range(101)]
    assert [dict(r.url.params) for r in service.requests] == [{"page": str(n), "per_page": "50"} for n in (1, 2, 3)]
    assert models[0].context_tokens == 24000
    assert (models[0].task, models[0].properties["beta"]) == ("Text Generation", "true")


def test_a_list_of_models_that_is_none_is_a_bad_reply():
    with pytest.raises(BadReply):
        asyncio.run(Service(ok({"models": []})).backend.list_models())


def test_the_environment_names_account_and_server(monkeypatch):
    monkeypatch.setenv("CLOUDFLARE_ACCOUNT_ID", "a" * 32)
    monkeypatch.setenv("CLOUDFLARE_API_TOKEN", "t")
    monkeypatch.setenv("CLOUDFLARE_BASE_URL", "http://127.0.0.1:1/client/v4/")
    backend = open_backend()
    with pytest.raises(ConnectionFailed, match=r"127\.0\.0\.1"):
        asyncio.run(backend.execute(ChatRequest(LLAMA, HELLO)))


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/v4", "127.0.0.1/v4", "http:///v4", "http://127.0.0.1:port/"])
def test_a_base_url_that_cannot_be_called_stops_the_run(url):
    with pytest.raises(StopRun, match="correct the base URL"):
        WorkersAI(CloudflareAccount("0" * 32, "t", url))


def test_an_input_that_is_no_json_is_refused_before_the_call():
    service = Service(ok({}))
    with pytest.raises(InvalidRequest, match="cannot be written as JSON"):
        service.call("run", RawRequest("@cf/x/y", {"a": "\ud800"}))
    assert service.requests == []
