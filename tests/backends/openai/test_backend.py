import asyncio
import json
import pickle

import httpx
import pytest

from llmdo.backends.errors import (
    AccountBlocked,
    BadReply,
    CallTimeout,
    ConnectionFailed,
    ContentFiltered,
    ContextOverflow,
    InvalidRequest,
    ModelNotFound,
    ModelRetired,
    Overloaded,
    QuotaExhausted,
    RateLimited,
    Retryable,
    StopRun,
    Unauthorized,
)
from llmdo.backends.openai.backend import OpenAI, Service, open_backend
from llmdo.backends.openai.braintrust import service as braintrust
from llmdo.backends.openai.requests import OPENAI_DIALECT
from llmdo.backends.requests import ChatRequest, EmbedRequest, Message, RawRequest
from llmdo.backends.responses import Price
from llmdo.backends.usage import Usage
from llmdo.settings.environment import BraintrustAccess, MissingSettings
from llmdo.transforms.answers.rows import response_body
from tests.backends.wire import Wire

KEY = "sk-hush-hush-hush"
HEADERS = {"authorization": f"Bearer {KEY}"}
ITSELF = Service("openai", "https://api.openai.com/v1", HEADERS, "OPENAI_API_KEY", OPENAI_DIALECT, is_openai=True)
SERVER = Service("openai", "http://127.0.0.1:8000/v1", {}, "OPENAI_API_KEY")
NOW = 1_800_000_000.0
SAYS = {"role": "assistant", "content": "Paris"}
USAGE = {
    "prompt_tokens": 9,
    "completion_tokens": 3,
    "prompt_tokens_details": {"cached_tokens": 4},
    "completion_tokens_details": {"reasoning_tokens": 1},
}


def completion(message=SAYS, finish="stop", model="gpt-4o-2024-08-06", **more):
    choice = {"index": 0, "message": message, "finish_reason": finish}
    return httpx.Response(200, json={"object": "chat.completion", "model": model, "choices": [choice], **more})


def failed(status, code=None, message="said", kind="invalid_request_error", headers=None):
    error = {"message": message, "type": kind, "param": None, "code": code}
    return httpx.Response(status, json={"error": error}, headers=headers)


def call(method, *arguments, reply, service=ITSELF):
    """What a call gives, and what it sent."""
    sent = []

    def answer(request):
        sent.append(request)
        return reply

    async def scenario():
        backend = OpenAI(service, Wire(answer), clock=lambda: NOW)
        try:
            return await getattr(backend, method)(*arguments)
        finally:
            await backend.aclose()

    return asyncio.run(scenario()), sent[0]


def ask(reply, service=ITSELF, model="gpt-4o", **parameters):
    request = ChatRequest(model, (Message("user", "Capital of France?"),), parameters, "line-1")
    response, sent = call("execute", request, reply=reply, service=service)
    return response, json.loads(sent.content)


def test_a_completion_is_read_whole():
    request = ChatRequest("gpt-4o", (Message("user", "?"),), {}, "line-1")
    reply = completion(usage=USAGE, headers=None)
    reply.headers["x-request-id"] = "req_1"
    response, sent = call("execute", request, reply=reply)
    assert (response.text, response.finish_reason, response.model) == ("Paris", "stop", "gpt-4o-2024-08-06")
    assert response.usage == Usage(9, 3, 4, 1)
    assert (response.request_id, response.warnings) == ("req_1", ())
    assert str(sent.url) == "https://api.openai.com/v1/chat/completions"
    assert sent.headers["authorization"] == f"Bearer {KEY}"
    assert sent.headers["x-client-request-id"] == "line-1"


def test_another_server_gets_no_key_where_none_is_set_and_no_header_of_openais():
    request = ChatRequest("m", (Message("user", "?"),), {}, "line-1")
    _, sent = call("execute", request, reply=completion(model="m"), service=SERVER)
    assert "authorization" not in sent.headers
    assert "x-client-request-id" not in sent.headers


def test_braintrust_gets_the_headers_of_its_proxy_and_tells_what_it_did():
    service = braintrust(BraintrustAccess("project-1", KEY))
    reply = completion()
    reply.headers["x-bt-cached"] = "HIT"
    request = ChatRequest("gpt-4o", (Message("user", "?"),), {"temperature": 0.7, "max_tokens": 1000})
    response, sent = call("execute", request, reply=reply, service=service)
    assert str(sent.url) == "https://api.braintrust.dev/v1/proxy/chat/completions"
    assert sent.headers["Authorization"] == f"Bearer {KEY}"
    assert sent.headers["x-bt-parent"] == "project_id:project-1"
    assert json.loads(sent.content) == {
        "model": "gpt-4o",
        "messages": [{"role": "user", "content": "?"}],
        "temperature": 0.7,
        "max_tokens": 1000,
    }
    assert response.details == {"cache_status": "HIT"}
    _, asked = call("health", reply=httpx.Response(200, json={"id": "project-1"}), service=service)
    assert str(asked.url) == "https://api.braintrust.dev/v1/project/project-1"


@pytest.mark.parametrize(
    ("service", "model", "given", "sent", "warned"),
    [
        (ITSELF, "gpt-4o", {"max_tokens": 5}, {"max_completion_tokens": 5}, []),
        (SERVER, "llama", {"max_completion_tokens": 5}, {"max_completion_tokens": 5}, []),
        (SERVER, "llama", {"max_completion_tokens": 5, "max_tokens": 5}, {"max_tokens": 5}, []),
        (SERVER, "llama", {"max_tokens": -1}, {}, []),
        (ITSELF, "gpt-4o", {"max_tokens": -1.0, "max_completion_tokens": None}, {}, []),
        (SERVER, "llama", {"max_tokens": 100.0}, {"max_tokens": 100}, []),
        (SERVER, "o3-mini", {"max_tokens": 5}, {"max_completion_tokens": 5}, []),
        (SERVER, "openai/gpt-5.1", {"max_tokens": 5}, {"max_completion_tokens": 5}, []),
        (SERVER, "gpt-oss-20b", {"max_tokens": 5}, {"max_tokens": 5}, []),
        (ITSELF, "gpt-4o", {"top_k": 4, "seed": 0}, {"seed": 0}, ["top_k was left out"]),
        (SERVER, "llama", {"top_k": 4, "chat_template_kwargs": {}}, {"top_k": 4, "chat_template_kwargs": {}}, []),
        (SERVER, "llama", {"lora": "x", "raw": False}, {}, ["lora was left out"]),
        (ITSELF, "gpt-4o", {"temperature": 5}, {"temperature": 2.0}, ["temperature was changed from 5 to 2.0"]),
        (ITSELF, "gpt-4o", {"n": 3}, {"n": 3}, []),
        (ITSELF, "gpt-4o", {"n": 1, "top_k": None, "stream": True}, {}, ["stream was left out"]),
        (
            ITSELF,
            "gpt-4o",
            {"tools": [{"name": "f", "parameters": {}}]},
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]},
            [],
        ),
        (
            ITSELF,
            "gpt-4o",
            {"functions": [{"name": "f"}]},
            {"tools": [{"type": "function", "function": {"name": "f"}}]},
            [],
        ),
        *(
            (
                ITSELF,
                "gpt-4o",
                {"functions": [{"name": "f"}], "function_call": call},
                {"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": choice},
                [],
            )
            for call, choice in (("none", "none"), ({"name": "f"}, {"type": "function", "function": {"name": "f"}}))
        ),
        (ITSELF, "gpt-4o", {"function_call": "auto", "tool_choice": "none"}, {"tool_choice": "none"}, []),
        (
            ITSELF,
            "gpt-4o",
            {"response_format": {"type": "json_schema", "json_schema": {"type": "object"}}},
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "answer", "schema": {"type": "object"}},
                }
            },
            [],
        ),
        (
            ITSELF,
            "gpt-4o",
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {}, "strict": True}}},
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {}, "strict": True}}},
            [],
        ),
    ],
)
def test_parameters_reach_the_service_by_its_names_or_a_warning_says_that_they_do_not(
    service, model, given, sent, warned
):
    says = {"role": "assistant", "content": "{}"} if "response_format" in given else SAYS
    response, body = ask(completion(says, model=model), service, model, **given)
    assert {k: v for k, v in body.items() if k not in ("model", "messages")} == sent
    assert len(response.warnings) == len(warned)
    assert all(said.startswith(start) for said, start in zip(response.warnings, warned, strict=True))


def test_messages_go_as_they_are_with_parts_and_tool_calls():
    call_ = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    parts = ({"type": "text", "text": "What?"}, {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}})
    messages = (
        Message("user", parts),
        Message("assistant", None, {"tool_calls": [call_]}),
        Message("tool", "4", {"tool_call_id": "c"}),
    )
    _, sent = call("execute", ChatRequest("gpt-4o", messages), reply=completion())
    assert json.loads(sent.content)["messages"] == [
        {"role": "user", "content": list(parts)},
        {"role": "assistant", "content": None, "tool_calls": [call_]},
        {"role": "tool", "content": "4", "tool_call_id": "c"},
    ]


TOOL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}


@pytest.mark.parametrize(
    ("reply", "text", "finish", "warned"),
    [
        (completion(finish="length", usage={"completion_tokens": 7}), "Paris", "length", "cut off at 7 tokens"),
        (completion({"content": None, "tool_calls": [TOOL]}, "tool_calls"), None, "tool_calls", None),
        (completion({"content": None, "function_call": TOOL["function"]}, "function_call"), None, "tool_calls", None),
        (completion({"content": None, "refusal": "No."}), "No.", "stop", "the model refused"),
        (completion({"content": "", "reasoning_content": "hm"}, "length"), None, "length", "went into reasoning"),
        (completion({"content": ""}), None, "stop", "sent no text"),
        (
            completion({"content": [{"type": "text", "text": "Pa"}, {"type": "text", "text": "ris"}]}),
            "Paris",
            "stop",
            None,
        ),
        (completion(model="gpt-4o-mini"), "Paris", "stop", "gpt-4o-mini answered instead of gpt-4o"),
        (completion(model="gpt-4o"), "Paris", "stop", None),
        (completion(usage={"prompt_tokens": -1, "completion_tokens": "many"}), "Paris", "stop", None),
    ],
)
def test_answers_of_all_kinds_are_read(reply, text, finish, warned):
    response, _ = ask(reply)
    assert (response.text, response.finish_reason) == (text, finish)
    assert (warned is None and not response.warnings) or warned in response.warnings[0]


@pytest.mark.parametrize("service", [ITSELF, SERVER])
def test_all_answers_that_were_asked_for_are_in_the_body(service):
    choices = [
        {"index": number, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
        for number, (text, finish) in enumerate([("Paris", "stop"), ("Lyon", "stop"), ("Pa", "length")])
    ]
    answer, asked = ask(completion(None, choices=choices, usage=USAGE), service, n=3)
    assert asked["n"] == 3
    body = response_body(answer, "r")
    assert [choice["message"]["content"] for choice in body["choices"]] == ["Paris", "Lyon", "Pa"]
    assert (answer.text, answer.usage.output_tokens) == ("Paris", 3)
    assert answer.warnings == ("choice 2: the answer is cut off: raise max_tokens",)


def test_an_answer_in_json_is_one():
    answer, asked = ask(completion({"content": "{}"}), n=3, response_format={"type": "json_object"})
    assert "n" not in asked
    assert "n was left out: a request has one answer" in answer.warnings


def test_probabilities_are_kept():
    reply = completion()
    body = reply.json()
    body["choices"][0]["logprobs"] = {"content": [{"token": "Paris", "logprob": -0.1}]}
    response, _ = ask(httpx.Response(200, json=body), logprobs=True)
    assert response.body["choices"][0]["logprobs"]["content"][0]["token"] == "Paris"


@pytest.mark.parametrize(
    ("reply", "kind", "says"),
    [
        (failed(400, "context_length_exceeded"), ContextOverflow, "shorten the prompt"),
        (failed(400, None, "This model's maximum context length is 8192 tokens."), ContextOverflow, "8192"),
        (failed(400, 400, "the request exceeds", "exceed_context_size_error"), ContextOverflow, "shorten"),
        (failed(429, "insufficient_quota", "You exceeded your current quota"), QuotaExhausted, "credit"),
        (failed(429, "rate_limit_exceeded", "Rate limit reached. Please try again in 6m0s."), RateLimited, "minute"),
        (
            failed(429, "rate_limit_exceeded", "Request too large for gpt-4o on tokens per min"),
            ContextOverflow,
            "alone",
        ),
        (failed(429, "rate_limit_exceeded", "reached on requests per day (RPD): Limit 200"), QuotaExhausted, "day"),
        (failed(400, "content_filter"), ContentFiltered, "change the prompt"),
        (
            httpx.Response(
                400, json={"error": {"code": "400", "innererror": {"code": "ResponsibleAIPolicyViolation"}}}
            ),
            ContentFiltered,
            "filter",
        ),
        (failed(404, "model_not_found", "The model `gpt-x` does not exist"), ModelNotFound, "llmdo models openai"),
        (failed(404, None, "The model `gpt-3` has been deprecated"), ModelRetired, "switched off"),
        (
            httpx.Response(404, json={"error": {"message": 'model "m" not found, try pulling it first'}}),
            ModelNotFound,
            "pulling",
        ),
        (failed(401, "invalid_api_key"), Unauthorized, "OPENAI_API_KEY"),
        (failed(403, "unsupported_country_region_territory"), AccountBlocked, "support"),
        (failed(400, "unsupported_parameter", "Unsupported parameter: 'temperature'"), InvalidRequest, "temperature"),
        (failed(422, None, "bad"), InvalidRequest, "bad"),
        (httpx.Response(422, json={"detail": [{"msg": "x"}]}), InvalidRequest, "422"),
        (failed(500, None, "server_error", "server_error"), Overloaded, "try later"),
        (failed(503, "slow_down"), RateLimited, "concurrency"),
        (failed(503, 503, "Loading model", "unavailable_error"), Overloaded, "loading"),
        (failed(501, 501, "no embeddings", "not_supported_error"), InvalidRequest, "no embeddings"),
        (httpx.Response(502, html="<html><h1>502</h1> Bad Gateway</html>"), Overloaded, "502 Bad Gateway"),
        (httpx.Response(524, text="timeout"), CallTimeout, "524"),
        (httpx.Response(302, headers={"location": "/login"}), BadReply, "base URL"),
        (httpx.Response(200, html="<html>Please log in</html>"), ConnectionFailed, "text/html.*says 'Please log in'"),
        (
            httpx.Response(200, content=b'{"choi', headers={"content-type": "application/json"}),
            ConnectionFailed,
            "6 bytes",
        ),
        (httpx.Response(200, json={"error": {"message": "busy", "code": 429}}), RateLimited, "busy"),
        (httpx.Response(200, json={"object": "error", "message": "no", "code": 404}), ModelNotFound, "no"),
        (httpx.Response(200, json={"error": "odd"}), BadReply, "odd"),
        (httpx.Response(200, json={"ok": True}), BadReply, "not a chat completion"),
        (httpx.Response(200, json=[]), BadReply, "not a chat completion"),
        (httpx.Response(200, content=b"null"), BadReply, "not a chat completion"),
        (httpx.Response(400, json="plain words"), InvalidRequest, "plain words"),
        (completion(finish="content_filter"), ContentFiltered, "filter"),
        (
            httpx.Response(400, json={"success": False, "errors": [{"code": 5007, "message": "No such model x"}]}),
            ModelNotFound,
            "No such model x",
        ),
        (
            httpx.Response(429, json={"errors": [{"code": 4006, "message": "used up your daily free allocation"}]}),
            QuotaExhausted,
            "day",
        ),
        (httpx.Response(200, json={"success": False, "errors": []}), BadReply, "not documented"),
    ],
)
def test_each_refusal_is_the_class_that_says_what_to_do(reply, kind, says):
    with pytest.raises(kind, match=says) as caught:
        ask(reply)
    assert type(caught.value) is kind
    assert caught.value.provider == "openai"
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), vars(again)) == (kind, vars(caught.value))


FAILED = {"object": "response", "status": "failed", "error": {"message": "why"}, "usage": USAGE}


@pytest.mark.parametrize(
    ("method", "request_", "body"),
    [
        ("execute", ChatRequest("gpt-4o", (Message("user", "Hi"),)), {"choices": [], "usage": USAGE}),
        ("execute", ChatRequest("gpt-4o", (Message("user", "Hi"),)), {"output": [], "usage": USAGE}),
        ("embed", EmbedRequest("text-embedding-3-small", ("a",)), {"data": [], "usage": USAGE}),
        ("run", RawRequest("gpt-4o", {"input": "Hi"}, path="responses"), FAILED),
    ],
    ids=["without a choice", "no completion", "without a vector", "failed"],
)
def test_the_error_of_a_reply_knows_its_call_and_what_it_used(method, request_, body):
    with pytest.raises((BadReply, Retryable)) as caught:
        call(method, request_, reply=httpx.Response(200, json=body, headers={"x-request-id": "r-1"}))
    error = caught.value
    assert (error.provider, error.request_id, error.usage) == ("openai", "r-1", Usage(9, 3, 4, 1))


@pytest.mark.parametrize(
    ("headers", "message", "wait"),
    [
        ({"retry-after": "7"}, "", 7.0),
        ({"retry-after-ms": "1500", "retry-after": "7"}, "", 1.5),
        (
            {
                "x-ratelimit-remaining-requests": "9",
                "x-ratelimit-reset-requests": "1h",
                "x-ratelimit-remaining-tokens": "0",
                "x-ratelimit-reset-tokens": "6m0s",
            },
            "",
            360.0,
        ),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "120ms"}, "", 0.12),
        ({}, "Please try again in 20s.", 20.0),
        ({}, "Please try again in 1m2.5s. Visit …", 62.5),
        ({"retry-after": "soon"}, "later", None),
    ],
)
def test_what_a_service_asks_to_wait_is_found_where_it_stands(headers, message, wait):
    with pytest.raises(RateLimited) as caught:
        ask(failed(429, "rate_limit_exceeded", message, headers=headers))
    assert caught.value.retry_after == (None if wait is None else pytest.approx(wait))


def test_a_used_up_day_says_when_it_comes_back():
    with pytest.raises(QuotaExhausted) as caught:
        ask(failed(429, "rate_limit_exceeded", "requests per day (RPD): try again in 7m12s."))
    assert caught.value.until == NOW + 432


def test_vectors_come_in_the_order_of_the_texts_whatever_the_order_of_the_reply():
    rows = [{"index": 1, "embedding": [0, 1]}, {"index": 0, "embedding": [1, 0]}]
    reply = httpx.Response(200, json={"data": rows, "model": "text-embedding-3-small", "usage": {"prompt_tokens": 4}})
    request = EmbedRequest("text-embedding-3-small", ("a", "b"), {"dimensions": 2, "pooling": "cls"})
    response, sent = call("embed", request, reply=reply)
    assert response.vectors == ((1.0, 0.0), (0.0, 1.0))
    assert response.usage == Usage(4)
    assert response.warnings == ("pooling was left out: text-embedding-3-small cannot use it",)
    assert json.loads(sent.content) == {
        "model": "text-embedding-3-small",
        "input": ["a", "b"],
        "encoding_format": "base64",
        "dimensions": 2,
    }


def encodings(reply, *requests):
    """The encodings that were asked for, and what the requests' ends were."""
    asked, ended = [], []

    def answer(request):
        asked.append(json.loads(request.content)["encoding_format"])
        return reply(asked[-1])

    async def scenario():
        backend = OpenAI(SERVER, Wire(answer), clock=lambda: NOW)
        for request in requests:
            try:
                ended.append((await backend.embed(request)).vectors)
            except InvalidRequest as error:
                ended.append(error.message)

    asyncio.run(scenario())
    return asked, ended


def embedded(vector):
    return httpx.Response(200, json={"data": [{"index": 0, "embedding": vector}]})


TEXT = EmbedRequest("e", ("a",))


def test_a_service_that_packs_vectors_is_always_asked_to():
    asked, ended = encodings(lambda _: embedded("AAAAPwAAAMA="), TEXT, TEXT)
    assert (asked, ended) == (["base64", "base64"], [((0.5, -2.0),)] * 2)


def test_a_service_that_ignores_the_encoding_is_asked_for_numbers_from_then_on():
    asked, ended = encodings(lambda _: embedded([0.5]), TEXT, TEXT)
    assert (asked, ended) == (["base64", "float"], [((0.5,),)] * 2)


@pytest.mark.parametrize("refusal", [failed(400), failed(422), failed(501, message="encoding_format is not supported")])
def test_a_model_that_refuses_the_encoding_is_asked_for_numbers_once_and_for_all(refusal):
    other = EmbedRequest("other", ("a",))
    asked, ended = encodings(lambda how: refusal if how == "base64" else embedded([0.5]), TEXT, TEXT, other)
    assert asked == ["base64", "float", "float", "base64", "float"]
    assert ended == [((0.5,),)] * 3


def test_a_text_that_is_refused_says_nothing_about_the_encoding():
    replies = iter([failed(400), failed(400, message="empty text"), embedded("AAAAPw=="), failed(400)])
    asked, ended = encodings(lambda _: next(replies), TEXT, TEXT, TEXT)
    assert asked == ["base64", "float", "base64", "base64"]
    assert "empty text" in ended[0] and ended[1] == ((0.5,),) and isinstance(ended[2], str)


@pytest.mark.parametrize("own", ["base64", "float", "int8"])
def test_an_encoding_of_the_users_own_is_sent_as_it_is(own):
    asked, ended = encodings(lambda _: embedded([1]), EmbedRequest("e", ("a",), {"encoding_format": own}))
    assert (asked, ended) == ([own], [((1.0,),)])


@pytest.mark.parametrize(
    "data",
    [[], [{"embedding": [1]}], [{"index": 0, "embedding": [1]}, {"index": 0, "embedding": [2]}], None, [1, 2],
     [{"index": 0, "embedding": "AAAA"}, {"index": 1, "embedding": []}]],
)  # fmt: skip
def test_vectors_that_do_not_fit_the_texts_are_refused(data):
    with pytest.raises(BadReply, match="for 2 texts"):
        call("embed", EmbedRequest("e", ("a", "b")), reply=httpx.Response(200, json={"data": data}))


@pytest.mark.parametrize(
    ("model", "most"),
    [
        ("text-embedding-3-large", 256),
        ("nomic-embed-text:latest", 256),
        ("BAAI/bge-m3", 256),
        ("all-minilm-l6", 256),
        ("intfloat/e5-mistral-7b", 256),
        ("gpt-4o", 1),
        ("bge-reranker-base", 1),
        ("qwen2.5-7b", 1),
    ],
)
def test_an_embedding_model_is_known_by_its_name(model, most):
    assert OpenAI(SERVER).max_texts(model) == most


def test_an_openai_embedding_line_with_an_array_is_passed_on():
    body = {"object": "list", "data": [], "model": "e", "usage": {"prompt_tokens": 2}}
    response, sent = call(
        "run", RawRequest("e", {"input": ["a", "b"]}, path="embeddings"), reply=httpx.Response(200, json=body)
    )
    assert (response.result, response.usage) == (body, Usage(2))
    assert sent.url.path == "/v1/embeddings"
    with pytest.raises(InvalidRequest, match="source_lang"):
        call("run", RawRequest("m", {"text": "a", "source_lang": "en"}), reply=httpx.Response(200))


@pytest.mark.parametrize("path", ["completions", "responses", "embeddings"])
def test_the_body_of_a_route_without_a_form_of_ours_is_passed_on_as_it_is(path):
    body = {"input": "hi", "prompt": ["a", "b"], "max_output_tokens": -1, "metadata": {"k": "v"}}
    reply = {"id": "r1", "object": "anything", "error": None, "usage": {"input_tokens": 3, "output_tokens": 2}}
    response, sent = call("run", RawRequest("m", body, path=path), reply=httpx.Response(200, json=reply))
    assert (sent.url.path, json.loads(sent.content)) == (f"/v1/{path}", {**body, "model": "m"})
    assert (response.result, response.usage) == (reply, Usage(3, 2))


def test_models_are_listed_with_what_the_server_tells():
    entries = [
        {"id": "gpt-4-0613", "object": "model", "owned_by": "openai", "shutdown_date": "2026-06-01"},
        {"id": "llama", "max_model_len": 8192},
        {"id": "gguf", "meta": {"n_ctx_train": 2048}},
        {
            "id": "vendor/m",
            "context_length": 128_000,
            "pricing": {"prompt": "0.0000025", "completion": "0.00001", "input_cache_read": "0.00000125"},
            "supported_parameters": ["tools", "structured_outputs", "seed"],
            "architecture": {"input_modalities": ["text", "image"]},
        },
        {"no": "id"},
    ]
    models, sent = call("list_models", reply=httpx.Response(200, json={"object": "list", "data": entries}))
    assert str(sent.url) == "https://api.openai.com/v1/models"
    assert [m.name for m in models] == ["openai/gpt-4-0613", "openai/llama", "openai/gguf", "openai/vendor/m"]
    assert [m.context_tokens for m in models] == [None, 8192, 2048, 128_000]
    assert models[0].deprecated == "2026-06-01"
    assert models[3].price == Price(2.5, 10.0, 1.25)
    assert models[3].capabilities == {"tools", "json", "vision"}
    with pytest.raises(BadReply, match="no list"):
        call("list_models", reply=httpx.Response(200, json={"data": "none"}))


def test_the_environment_says_which_service_it_is(monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(MissingSettings, match="OPENAI_API_KEY is not set"):
        open_backend()
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/v1/")
    assert open_backend()._service == Service("openai", "http://127.0.0.1:1/v1", {}, "OPENAI_API_KEY")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", "")
    assert open_backend()._service == ITSELF
    assert KEY not in repr(open_backend()._service)
    monkeypatch.setenv("OPENAI_BASE_URL", "localhost:8000")
    with pytest.raises(StopRun, match="not an http:// or https:// URL"):
        open_backend()
