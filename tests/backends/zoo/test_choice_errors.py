"""Errors within a choice of a reply or a stream of HTTP status 200, as OpenRouter sends them: their code decides."""

import asyncio
import json

import httpx
import pytest

from llmdo.backends.errors import (
    CallTimeout,
    ContentFiltered,
    ContextOverflow,
    InvalidRequest,
    ModelError,
    Overloaded,
    QuotaExhausted,
    RateLimited,
    Retryable,
    Unauthorized,
)
from llmdo.backends.openai.backend import OpenAI, Service
from llmdo.backends.requests import ChatRequest, Message, RawRequest
from llmdo.backends.usage import Usage
from llmdo.backends.workers_ai.backend import WorkersAI
from llmdo.settings.environment import CloudflareAccount
from tests.backends.conformance import event_stream, events
from tests.backends.wire import Wire

USAGE = {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}
NATIVE = "@cf/meta/llama-3.3-70b-instruct-fp8-fast"
# The choice's error → the class, whom it is about, seconds to wait.
ERRORS = [
    ({"code": 502, "message": "The upstream went away"}, Overloaded, "unclear", None),
    ({"code": 503, "message": "No instance is free"}, Overloaded, "unclear", None),
    ({"code": 504, "message": "The upstream idled"}, CallTimeout, "unclear", None),
    ({"code": 429, "message": "Slow down, try again in 7s"}, RateLimited, "unclear", 7.0),
    ({"code": "429", "message": "x", "metadata": {"headers": {"Retry-After": "4"}}}, RateLimited, "unclear", 4.0),
    ({"code": 403, "message": "Flagged", "metadata": {"reasons": ["hate"]}}, ContentFiltered, "line", None),
    ({"code": 403, "message": "No"}, Unauthorized, "unclear", None),
    ({"code": 402, "message": "Insufficient credits"}, QuotaExhausted, "account", None),
    ({"code": 400, "message": "The picture is broken"}, InvalidRequest, "line", None),
    ({"code": 413, "message": "Too much"}, ContextOverflow, "line", None),
    ({"code": "content_filter", "message": "withheld"}, ContentFiltered, "line", None),
    ({"code": "rate_limit_exceeded", "message": "x"}, RateLimited, "unclear", None),
    ({"code": "context_length_exceeded", "message": "x"}, ContextOverflow, "line", None),
    # Nothing is known of these: the answer failed, and may succeed.
    ({"code": 1, "message": "x"}, Retryable, "unclear", None),
    ({"message": "The upstream broke the answer off"}, Retryable, "unclear", None),
    ("boom", Retryable, "unclear", None),
]


def backend(provider, reply):
    if provider == "openai":
        return OpenAI(Service("openai", "http://127.0.0.1:8000/v1", {}, "OPENAI_API_KEY"), Wire(lambda _: reply))
    account = CloudflareAccount("a" * 32, "token", "http://127.0.0.1:8000/client/v4")
    return WorkersAI(account, Wire(lambda _: reply))


def whole(provider, choice, kind="chat.completion"):
    body = {"object": kind, "model": "m", "choices": [choice], "usage": USAGE}
    return httpx.Response(200, json=body if provider == "openai" else {"result": body, "success": True})


def error_of(model, ask):
    async def scenario():
        try:
            await ask(model)
        finally:
            await model.aclose()

    with pytest.raises(ModelError) as caught:
        asyncio.run(scenario())
    return caught.value


def check(error, expected, about, wait):
    assert type(error) is expected, error
    assert (error.about, error.retry_after, error.usage) == (about, wait, Usage(9, 4))


@pytest.mark.parametrize("provider", ["openai", "workers-ai"])
@pytest.mark.parametrize("finish", ["error", "stop", None])
@pytest.mark.parametrize(("said", "expected", "about", "wait"), ERRORS)
def test_the_error_of_a_choice_is_what_its_code_says_as_a_status(provider, finish, said, expected, about, wait):
    choice = {"index": 0, "message": {"role": "assistant", "content": "Ha"}, "finish_reason": finish, "error": said}
    request = ChatRequest("m" if provider == "openai" else NATIVE, (Message("user", "?"),))
    error = error_of(backend(provider, whole(provider, choice)), lambda model: model.execute(request))
    check(error, expected, about, wait)
    assert (said if isinstance(said, str) else said["message"]) in error.message


@pytest.mark.parametrize("provider", ["openai", "workers-ai"])
@pytest.mark.parametrize("asked_for", [False, True])
@pytest.mark.parametrize(("said", "expected", "about", "wait"), ERRORS)
def test_so_is_the_error_of_a_streams_choice_with_the_usage_that_comes_after_it(
    provider, asked_for, said, expected, about, wait
):
    body = events(
        {"model": "m", "choices": [{"index": 0, "delta": {"content": "Ha"}, "finish_reason": None}]},
        {"choices": [{"index": 0, "delta": {"content": ""}, "finish_reason": "error", "error": said}]},
        {"choices": [], "usage": USAGE},
    )
    request = ChatRequest("m" if provider == "openai" else NATIVE, (Message("user", "?"),))

    async def ask(model):
        if not asked_for:
            await model.execute(request)
        async for _ in model.execute_stream(request):
            pass

    check(error_of(backend(provider, event_stream(body)), ask), expected, about, wait)


@pytest.mark.parametrize(("said", "expected", "about", "wait"), ERRORS)
def test_so_is_the_error_of_a_completion_that_is_passed_on(said, expected, about, wait):
    choice = {"index": 0, "text": "Ha", "finish_reason": "error", "error": said}
    request = RawRequest("m", {"prompt": "?"}, path="completions")
    reply = whole("openai", choice, "text_completion")
    check(error_of(backend("openai", reply), lambda model: model.run(request)), expected, about, wait)


@pytest.mark.parametrize("provider", ["openai", "workers-ai"])
@pytest.mark.parametrize("lines", [False, True])
def test_text_of_a_stream_that_is_not_unicode_is_replaced_with_a_warning_once(provider, lines):
    chunks = [
        json.dumps({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]}, ensure_ascii=False)
        for text in ("Caf\xe9 ", "ol\xe9")
    ]
    chunks += [json.dumps({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})]
    body = "".join(f"{one}\n" if lines else f"data: {one}\n\n" for one in chunks).encode("latin-1")
    request = ChatRequest("m" if provider == "openai" else NATIVE, (Message("user", "?"),))
    reply = httpx.Response(200, content=body, headers={"content-type": "text/event-stream"})
    answer = asyncio.run(backend(provider, reply).execute(request))
    assert answer.text == "Caf\ufffd ol\ufffd"
    assert sum("U+FFFD" in one for one in answer.warnings) == 1
