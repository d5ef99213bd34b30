"""What goes over the wire, and what comes of each kind of reply; a Wire stands for the network."""

import asyncio
import base64
import json

import httpx
import pytest

from llmdo.backends.errors import (
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
from llmdo.backends.limits.sizes import DEFAULT_MAX_TOKENS
from llmdo.backends.listing import list_models
from llmdo.backends.requests import ChatRequest, EmbedRequest, Message, RawRequest
from llmdo.backends.usage import Usage
from llmdo.backends.workers_ai.backend import WorkersAI, open_backend
from llmdo.settings.environment import AiGateway, CloudflareAccount
from tests.backends.wire import Wire

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
        self.backend = WorkersAI(ACCOUNT, Wire(self.answer), clock=lambda: 0.0)

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


def test_no_limit_is_the_longest_answer_that_is_asked_for_and_is_warned_of():
    service = Service(ok({"response": "Hi"}))
    response = service.call("execute", ChatRequest(LLAMA, HELLO, {"max_tokens": -1}))
    assert service.body()["max_tokens"] == DEFAULT_MAX_TOKENS
    said = f"max_tokens -1 was left out: the answer has at most {DEFAULT_MAX_TOKENS} tokens unless max_tokens says more"
    assert response.warnings == (said,)


@pytest.mark.parametrize("limit", ["many", 0, -2, 1.5, True])
def test_a_limit_that_is_no_number_is_refused_before_the_call(limit):
    service = Service(ok({"response": "Hi"}))
    with pytest.raises(InvalidRequest, match="whole number"):
        service.call("execute", ChatRequest(LLAMA, HELLO, {"max_tokens": limit}))
    assert service.requests == []


@pytest.mark.parametrize(
    "model", ["@cf/../../queues", "a?b", "a#b", "a b", "", "/x", "a//b", "a/", "ä", "a%2Fb", "@cf/x\n", ".", "a/.."]
)
def test_a_name_that_would_lead_to_another_path_is_refused_before_the_call(model):
    service = Service(ok({"response": "Hi"}))
    for method, request in [("execute", ChatRequest(model, HELLO)), ("run", RawRequest(model, {}))]:
        with pytest.raises(ModelNotFound, match="not the name of a model"):
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
        (httpx.Response(200, html="<h1>Sign in to the network</h1>"), ConnectionFailed),
        (httpx.Response(200, content=b"", headers={"content-type": "text/plain"}), ConnectionFailed),
        (httpx.Response(200), ConnectionFailed),
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


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (refused(400, 5006), InvalidRequest),
        (httpx.Response(200, html="<h1>Sign in</h1>"), ConnectionFailed),
        (httpx.Response(200), ConnectionFailed),
    ],
)
def test_a_refused_raw_call_is_an_error(reply, kind):
    with pytest.raises(kind):
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
    asked = [{"page": str(n), "per_page": "50", "include_deprecated": "true"} for n in (1, 2, 3)]
    assert [dict(r.url.params) for r in service.requests] == asked
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


GEMMA = "@cf/google/gemma-4-26b-a4b-it"
UNKNOWN = "@cf/nobody/new-1"


def completion(content, finish="stop", **more):
    return httpx.Response(200, json={"choices": [{"message": {"content": content}, "finish_reason": finish}], **more})


def test_a_model_with_openais_input_is_called_by_the_openai_route():
    service = Service(completion("Hi"))
    parameters = {"stop": ["."], "response_format": {"type": "text"}, "tools": [{"name": "f"}]}
    assert service.call("execute", ChatRequest(GEMMA, HELLO, parameters)).text == "Hi"
    assert service.requests[0].url.path.endswith("/ai/v1/chat/completions")
    assert service.body() == {
        "model": GEMMA,
        "messages": [{"role": "user", "content": "Hello"}],
        "max_tokens": DEFAULT_MAX_TOKENS,
        "stop": ["."],
        "response_format": {"type": "text"},
        "tools": [{"type": "function", "function": {"name": "f"}}],
    }


@pytest.mark.parametrize(
    ("schema", "path"),
    [
        (
            ok({"input": {"anyOf": [{"oneOf": [{"properties": {"max_completion_tokens": {}}}]}]}}),
            "/v1/chat/completions",
        ),
        (ok({"input": {"oneOf": [{"properties": {"max_tokens": {}}}]}}), f"/run/{UNKNOWN}"),
        (ok(None), f"/run/{UNKNOWN}"),
        (refused(404, 5007), f"/run/{UNKNOWN}"),
    ],
)
def test_a_model_of_unknown_family_is_looked_up_once_where_its_shape_matters(schema, path):
    service = Service(schema, completion("Hi"))

    async def twice():
        request = ChatRequest(UNKNOWN, HELLO, {"stop": "."})
        return await asyncio.gather(service.backend.execute(request), service.backend.execute(request))

    asyncio.run(twice())
    first, *calls = service.requests
    assert (first.url.path.endswith("/ai/models/schema"), dict(first.url.params)) == (True, {"model": UNKNOWN})
    assert [call.url.path.endswith(f"/ai{path}") for call in calls] == [True, True]


def test_a_model_of_unknown_family_is_called_at_once_where_its_shape_does_not_matter():
    service = Service(ok({"response": "Hi"}))
    service.call("execute", ChatRequest(UNKNOWN, HELLO, {"temperature": 1, "max_tokens": 5}))
    assert [request.url.path.endswith(f"/ai/run/{UNKNOWN}") for request in service.requests] == [True]


def test_a_parameter_that_is_dropped_or_changed_is_warned_of():
    service = Service(ok({"response": "Hi"}))
    response = service.call("execute", ChatRequest(LLAMA, HELLO, {"stop": ["."], "top_k": 99, "seed": 7}))
    assert service.body() == {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2048, "top_k": 50,
                              "seed": 7}  # fmt: skip
    assert len(response.warnings) == 2
    assert f"stop was left out: {LLAMA} cannot use it" in response.warnings
    assert any(warning.startswith("top_k was changed from 99 to 50") for warning in response.warnings)


def test_an_embedding_parameter_of_another_model_is_dropped_with_a_warning():
    service = Service(ok({"data": [[1.0]]}))
    response = service.call("embed", EmbedRequest("@cf/qwen/qwen3-embedding-0.6b", ("a",), {"pooling": "cls"}))
    assert service.body() == {"text": ["a"]}
    assert response.warnings == ("pooling was left out: @cf/qwen/qwen3-embedding-0.6b cannot use it",)


def test_a_tool_that_must_be_called_and_was_not_is_warned_of():
    service = Service(ok({"response": "Hi"}))
    parameters = {"tools": [{"name": "f"}], "tool_choice": "required"}
    response = service.call("execute", ChatRequest(LLAMA, HELLO, parameters))
    assert response.warnings == ("tool_choice was required, and the model called no tool",)


@pytest.mark.parametrize(
    ("method", "request_"),
    [
        ("execute", ChatRequest(LLAMA, HELLO)),
        ("embed", EmbedRequest(LLAMA, ("a",))),
        ("run", RawRequest(LLAMA, {"text": "a"})),
    ],
)
def test_another_model_than_asked_is_warned_of_in_every_answer(method, request_):
    service = Service(ok({"model": "@cf/x/dearer", "response": "Hi", "data": [[1.0]]}))
    response = service.call(method, request_)
    assert response.model == "@cf/x/dearer"
    assert response.warnings == (f"model substituted: @cf/x/dearer answered instead of {LLAMA}",)


def test_a_model_that_does_not_chat_is_refused_before_the_call():
    service = Service(ok({}))
    with pytest.raises(InvalidRequest, match="own input"):
        service.call("execute", ChatRequest("@cf/black-forest-labs/flux-1-schnell", HELLO))
    assert service.requests == []


def test_a_deprecated_model_is_warned_of_once_the_list_is_known():
    entry = {"name": LLAMA, "properties": [{"property_id": "planned_deprecation_date", "value": "1970-01-01"}]}
    service = Service(ok([entry]), ok({"response": "Hi"}))
    (info,) = asyncio.run(service.backend.list_models())
    assert info.deprecated == "1970-01-01"
    response = service.call("execute", ChatRequest(LLAMA, HELLO))
    assert response.warnings == (f"{LLAMA} is deprecated since 1970-01-01: name another model",)


def test_the_list_in_the_cache_is_known_from_the_begin(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CLOUDFLARE_ACCOUNT_ID", ACCOUNT.account_id)
    monkeypatch.setenv("CLOUDFLARE_API_TOKEN", "token-value")
    assert not open_backend().takes_batches("@cf/old/one")
    entry = {"name": "@cf/old/one", "properties": [{"property_id": "async_queue", "value": "true"}]}
    asyncio.run(list_models(Service(ok([entry])).backend))
    assert open_backend().takes_batches("@cf/old/one")


def test_health_is_one_entry_of_the_list():
    service = Service(ok([]))
    asyncio.run(service.backend.health())
    assert dict(service.requests[0].url.params) == {"page": "1", "per_page": "1"}
    with pytest.raises(Unauthorized):
        asyncio.run(Service(refused(401, 10000)).backend.health())


JSON_SCHEMA = {"type": "object", "required": ["city"], "properties": {"city": {"type": "string"}}}
AS_JSON = {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": JSON_SCHEMA}}}


def said(text, tokens=3):
    return ok({"response": text, "usage": {"prompt_tokens": 5, "completion_tokens": tokens}})


@pytest.mark.parametrize("text", [{"city": "Paris"}, '{"city": "Paris"}', '```json\n{"city": "Paris"}\n```'])
def test_an_answer_in_json_mode_that_fits_is_taken_at_once(text):
    service = Service(said(text))
    response = service.call("execute", ChatRequest(LLAMA, HELLO, AS_JSON))
    assert json.loads(response.text) == {"city": "Paris"}
    assert service.body()["response_format"] == {"type": "json_schema", "json_schema": JSON_SCHEMA}
    assert len(service.requests) == 1


@pytest.mark.parametrize("model", [LLAMA, GEMMA])
def test_an_answer_in_json_mode_that_does_not_fit_is_shown_to_the_model_once(model):
    service = Service(said({"town": "Paris"}), said({"city": "Paris"}, tokens=4))
    response = service.call("execute", ChatRequest(model, HELLO, AS_JSON))
    assert json.loads(response.text) == {"city": "Paris"}
    assert response.usage == Usage(10, 7)
    assert len(response.warnings) == 1
    assert response.warnings[0].startswith("the model was asked twice, since the answer does not fit")
    assert [m["role"] for m in service.body(1)["messages"]] == ["user", "assistant", "user"]
    assert "$ lacks 'city'" in service.body(1)["messages"][2]["content"]


def test_an_answer_in_json_mode_that_never_fits_is_an_error_after_two_calls():
    service = Service(said("Paris"))
    with pytest.raises(BadReply, match=r"is not valid JSON.*also when asked again") as caught:
        service.call("execute", ChatRequest(LLAMA, HELLO, AS_JSON))
    assert (caught.value.code, len(service.requests)) == (5024, 2)
    assert caught.value.usage == Usage(10, 6)  # of both


def test_an_answer_in_json_mode_that_does_not_fit_is_paid_also_when_the_second_call_fails():
    service = Service(said("Paris"), refused(429, 3040))
    with pytest.raises(Overloaded) as caught:
        service.call("execute", ChatRequest(LLAMA, HELLO, AS_JSON))
    assert caught.value.usage == Usage(5, 3)


def test_an_answer_in_json_mode_that_is_cut_is_not_asked_for_again():
    service = Service(said('{"city": "Pa', tokens=9))
    with pytest.raises(BadReply, match="cut off at 9 tokens: raise max_tokens"):
        service.call("execute", ChatRequest(LLAMA, HELLO, {**AS_JSON, "max_tokens": 9}))
    assert len(service.requests) == 1


PIXEL = base64.b64encode(b"\x89PNG").decode()


@pytest.mark.parametrize(
    ("model", "given", "sent"),
    [
        ("@cf/openai/whisper", {"audio": PIXEL}, {"audio": [0x89, 0x50, 0x4E, 0x47]}),
        ("@cf/openai/whisper", {"audio": f"data:audio/wav;base64,{PIXEL}"}, {"audio": [0x89, 0x50, 0x4E, 0x47]}),
        ("@cf/openai/whisper", {"audio": [1, 2]}, {"audio": [1, 2]}),
        ("@cf/openai/whisper-large-v3-turbo", {"audio": PIXEL}, {"audio": PIXEL}),
        ("@cf/openai/whisper-large-v3-turbo", {"audio": f"data:audio/wav;base64,{PIXEL}"}, {"audio": PIXEL}),
        ("@cf/microsoft/resnet-50", {"image": PIXEL}, {"image": [0x89, 0x50, 0x4E, 0x47]}),
        ("@cf/baai/bge-reranker-base", {"query": "a", "contexts": [{"text": "b"}]},
         {"query": "a", "contexts": [{"text": "b"}]}),
    ],
)  # fmt: skip
def test_images_and_sounds_are_base64_in_a_line_and_what_the_model_takes_on_the_wire(model, given, sent):
    service = Service(ok({"text": "Hi"}))
    service.call("run", RawRequest(model, given))
    assert service.body() == sent


@pytest.mark.parametrize(("value", "words"), [("no base64!", "encode it again"), ("https://x/y.png", "takes no URL")])
def test_an_image_that_is_no_base64_is_refused_before_the_call(value, words):
    service = Service(ok({}))
    with pytest.raises(InvalidRequest, match=words):
        service.call("run", RawRequest("@cf/microsoft/resnet-50", {"image": value}))
    assert service.requests == []


def test_a_model_that_describes_images_takes_a_line_with_image_and_prompt():
    service = Service(ok({"description": "a cat"}))
    request = ChatRequest("@cf/llava-hf/llava-1.5-7b-hf", HELLO, {"image": PIXEL, "seed": 1})
    response = service.call("execute", request)
    assert service.body() == {"image": [0x89, 0x50, 0x4E, 0x47], "max_tokens": 2048, "prompt": "Hello"}
    assert response.text == "a cat"
    assert response.warnings == ("seed was left out: @cf/llava-hf/llava-1.5-7b-hf cannot use it",)


class TestByGateway:
    OK = ok({"response": "Hi"}, **{"cf-aig-cache-status": "HIT", "cf-aig-log-id": "log-1"})

    def service(self, *replies, name="mine", token=""):
        service = Service(*replies)
        transport = Wire(service.answer)
        service.backend = WorkersAI(ACCOUNT, transport, lambda: 0.0, AiGateway(name, token))
        return service

    def test_an_id_goes_as_a_header_to_the_usual_address(self):
        service = self.service(self.OK)
        service.call("execute", ChatRequest(LLAMA, HELLO, {}, "id-1"))
        (request,) = service.requests
        assert request.url.path == f"/client/v4/accounts/{'0' * 32}/ai/run"
        assert service.body()["model"] == LLAMA
        assert service.body()["input"]["messages"] == [{"role": "user", "content": "Hello"}]
        ours = {name: value for name, value in request.headers.items() if name.startswith("cf-aig-")}
        assert ours == {
            "cf-aig-gateway-id": "mine",
            "cf-aig-max-attempts": "1",
            "cf-aig-metadata": '{"request_id": "id-1"}',
        }

    def test_the_openai_route_takes_the_same_header(self):
        service = self.service(completion("Hi"))
        service.call("execute", ChatRequest(GEMMA, HELLO))
        assert service.requests[0].url.path.endswith("/ai/v1/chat/completions")
        assert service.requests[0].headers["cf-aig-gateway-id"] == "mine"

    @pytest.mark.parametrize(
        ("model", "path"), [(LLAMA, f"/workers-ai/run/{LLAMA}"), (GEMMA, "/workers-ai/v1/chat/completions")]
    )
    def test_a_gateways_own_url_is_called_as_a_provider(self, model, path):
        service = self.service(self.OK, name="https://gateway.ai.cloudflare.com/v1/acc/mine/", token="gate-token")
        service.call("execute", ChatRequest(model, HELLO))
        (request,) = service.requests
        assert str(request.url) == f"https://gateway.ai.cloudflare.com/v1/acc/mine{path}"
        assert request.headers["cf-aig-authorization"] == "Bearer gate-token"
        assert request.headers["authorization"] == "Bearer the-token"
        assert "cf-aig-gateway-id" not in request.headers

    @pytest.mark.parametrize(
        ("method", "request_"),
        [
            ("execute", ChatRequest(LLAMA, HELLO)),
            ("embed", EmbedRequest("@cf/baai/bge-m3", ("a",))),
            ("run", RawRequest("@cf/meta/m2m100-1.2b", {"text": "a"})),
        ],
    )
    def test_what_the_gateway_tells_is_kept(self, method, request_):
        headers = {"cf-aig-cache-status": "HIT", "cf-aig-log-id": "log-1"}
        response = self.service(ok({"response": "Hi", "data": [[1.0]]}, **headers)).call(method, request_)
        assert response.details == {"cache_status": "HIT", "log_id": "log-1"}

    def test_a_second_try_in_json_mode_is_not_from_the_cache(self):
        service = self.service(said("no"), said({"city": "Paris"}))
        service.call("execute", ChatRequest(LLAMA, HELLO, AS_JSON))
        assert [request.headers.get("cf-aig-skip-cache") for request in service.requests] == [None, "true"]

    def test_lists_and_batches_go_the_straight_way(self):
        service = self.service(ok([]), ok({"status": "queued", "request_id": "b"}))
        asyncio.run(service.backend.list_models())
        asyncio.run(service.backend.submit_batch(LLAMA, [ChatRequest(LLAMA, HELLO)]))
        assert not [name for request in service.requests for name in request.headers if name.startswith("cf-aig")]

    def test_its_refusal_is_known(self):
        body = {"success": False, "result": [], "error": [{"code": 2001, "message": "Please configure AI Gateway"}]}
        with pytest.raises(Unauthorized, match="check the gateway's id"):
            self.service(httpx.Response(400, json=body)).call("execute", ChatRequest(LLAMA, HELLO))

    def test_the_environment_names_it(self, monkeypatch):
        for name, value in [("CLOUDFLARE_ACCOUNT_ID", "a" * 32), ("CLOUDFLARE_API_TOKEN", "t"),
                            ("CLOUDFLARE_BASE_URL", "http://127.0.0.1:1"), ("LLMDO_GATEWAY", "http://127.0.0.1:2/v1/a/g"),
                            ("CLOUDFLARE_AI_GATEWAY_TOKEN", "secret-token")]:  # fmt: skip
            monkeypatch.setenv(name, value)
        backend = open_backend()
        with pytest.raises(ConnectionFailed) as caught:
            asyncio.run(backend.execute(ChatRequest(LLAMA, HELLO)))
        assert caught.value.message.startswith("127.0.0.1 could not be reached")
        assert "secret-token" not in str(caught.value)


@pytest.mark.parametrize("by_url", [False, True])
def test_the_host_that_cannot_be_reached_is_named(by_url):
    class Away:
        async def send(self, call):
            raise OSError("away")

        async def aclose(self):
            pass

    gateway = AiGateway("https://gateway.example/v1/a/g") if by_url else None
    backend = WorkersAI(ACCOUNT, Away(), gateway=gateway)
    with pytest.raises(ConnectionFailed, match="gateway.example" if by_url else "api.cloudflare.com"):
        asyncio.run(backend.execute(ChatRequest(LLAMA, HELLO)))
