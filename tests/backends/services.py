"""Stand-ins for the services behind the providers, in the shapes of their documentation, and the table of subjects."""

from __future__ import annotations

import json
from typing import Any

import httpx

from llmdo.backends.errors import (
    ContentFiltered,
    ContextOverflow,
    InvalidRequest,
    ModelError,
    ModelNotFound,
    Overloaded,
    QuotaExhausted,
    RateLimited,
    Unauthorized,
)
from llmdo.backends.llama_cpp.backend import CHAT_MODEL, EMBEDDING_MODEL, LlamaCpp
from llmdo.backends.openai.backend import OpenAI, Service
from llmdo.backends.openai.braintrust import service as braintrust_service
from llmdo.backends.openai.requests import OPENAI_DIALECT
from llmdo.backends.workers_ai.backend import WorkersAI
from llmdo.local.ai.echo import Echo
from llmdo.settings.environment import BraintrustAccess, CloudflareAccount
from tests.backends.anthropic.service import SUBJECT as ANTHROPIC
from tests.backends.conformance import ANSWER, SECRET, USAGE, Subject, event_stream, events
from tests.local.ai.tasks import MODELS

WORDS = [ANSWER[start : start + 6] for start in range(0, len(ANSWER), 6)]
ARGUMENTS = '{"city": "Paris"}'
HEADERS = {"authorization": f"Bearer {SECRET}"}
OPENAI_STREAM = events(
    {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]},
    *({"choices": [{"index": 0, "delta": {"content": word}, "finish_reason": None}]} for word in WORDS),
    {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
    {"choices": [], "usage": USAGE},
)
NATIVE_STREAM = events(*({"response": word} for word in WORDS), {"response": "", "usage": USAGE})


def openai_shape(call: httpx.Request) -> httpx.Response:
    """OpenAI's API, and the OpenAI route of Workers AI."""
    if call.method == "GET":
        if call.url.path.endswith("/search"):
            return native_shape(call)
        return httpx.Response(200, json={"object": "list", "data": [{"id": "gpt-4o", "object": "model"}]})
    body = json.loads(call.content)
    if call.url.path.endswith("/embeddings"):
        rows = [{"index": i, "embedding": vector(text)} for i, text in enumerate(body["input"])]
        return httpx.Response(200, json={"data": rows[::-1], "model": body["model"], "usage": {"prompt_tokens": 4}})
    if not call.url.path.endswith("/chat/completions"):
        return native_shape(call)
    head = {"id": "chatcmpl-1", "model": body["model"]}
    if body.get("tool_choice") == "required":
        return openai_tools(body, head)
    text = '{"yes": true}' if "response_format" in body else ANSWER
    if body.get("stream"):
        json_mode = events({"choices": [{"delta": {"content": text}, "finish_reason": "stop"}]})
        return event_stream(OPENAI_STREAM if text == ANSWER else json_mode)
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return httpx.Response(200, json={**head, "choices": [choice], "usage": USAGE})


def openai_tools(body: dict[str, Any], head: dict[str, Any]) -> httpx.Response:
    """A tool call, whole or in pieces."""
    function = {"name": body["tools"][0]["function"]["name"], "arguments": ARGUMENTS}
    whole = {"id": "call_1", "type": "function", "function": function}
    if not body.get("stream"):
        message = {"role": "assistant", "content": None, "tool_calls": [whole]}
        return httpx.Response(200, json={**head, "choices": [{"message": message, "finish_reason": "tool_calls"}]})
    deltas: list[dict[str, Any]] = [{"index": 0, **whole, "function": {**function, "arguments": ""}}]
    deltas += [{"index": 0, "function": {"arguments": letter}} for letter in ARGUMENTS]
    pieces = [{"choices": [{"delta": {"tool_calls": [delta]}, "finish_reason": None}]} for delta in deltas]
    return event_stream(events(*pieces, {"choices": [{"delta": {}, "finish_reason": "tool_calls"}]}))


def native_shape(call: httpx.Request) -> httpx.Response:
    """Workers AI's own API."""
    if call.method == "GET":
        names = ("@cf/meta/llama-3.3-70b-instruct-fp8-fast", "@cf/google/gemma-4-26b-a4b-it")
        return cloudflare([{"name": name, "task": {"name": "Text Generation"}, "properties": []} for name in names])
    body = json.loads(call.content)
    if "text" in body:
        vectors = [vector(text) for text in body["text"]]
        return cloudflare({"shape": [len(vectors), 3], "data": vectors, "usage": {"prompt_tokens": 4}})
    if body.get("tool_choice") == "required":
        flat = {"name": body["tools"][0]["function"]["name"], "arguments": json.loads(ARGUMENTS)}
        if body.get("stream"):
            return event_stream(events({"response": "", "tool_calls": [flat], "usage": USAGE}))
        return cloudflare({"response": None, "tool_calls": [flat], "usage": USAGE})
    if body.get("stream"):
        return event_stream(NATIVE_STREAM)
    return cloudflare({"response": {"yes": True} if "response_format" in body else ANSWER, "usage": USAGE})


def cloudflare(result: Any) -> httpx.Response:
    """A result in Cloudflare's envelope."""
    return httpx.Response(200, json={"result": result, "success": True, "errors": [], "messages": []})


def vector(text: str) -> list[float]:
    """A short vector that tells texts apart."""
    return [float(len(text)), float(len(text.split())), 1.0]


def openai_error(status: int, code: str | None, message: str = "said") -> tuple[int, Any]:
    """An error in OpenAI's words."""
    return status, {"error": {"message": f"{message} {SECRET}", "type": "x", "param": None, "code": code}}


def cloudflare_error(status: int, code: int, message: str = "said") -> tuple[int, Any]:
    """An error in Cloudflare's words."""
    error = {"code": code, "message": f"AiError: {code}: {message} {SECRET}"}
    return status, {"result": None, "success": False, "errors": [error], "messages": []}


OPENAI_REFUSALS: dict[type[ModelError], tuple[int, Any]] = {
    Unauthorized: openai_error(401, "invalid_api_key"),
    QuotaExhausted: openai_error(429, "insufficient_quota"),
    RateLimited: openai_error(429, "rate_limit_exceeded"),
    Overloaded: openai_error(503, None, "overloaded"),
    ContextOverflow: openai_error(400, "context_length_exceeded"),
    ContentFiltered: openai_error(400, "content_filter"),
    InvalidRequest: openai_error(400, "invalid_value"),
    ModelNotFound: openai_error(404, "model_not_found"),
}
CLOUDFLARE_REFUSALS: dict[type[ModelError], tuple[int, Any]] = {
    Unauthorized: cloudflare_error(401, 10000),
    QuotaExhausted: cloudflare_error(429, 4006),
    RateLimited: cloudflare_error(429, 3021),
    Overloaded: cloudflare_error(429, 3040),
    ContextOverflow: cloudflare_error(413, 3006),
    ContentFiltered: cloudflare_error(400, 3030),
    InvalidRequest: cloudflare_error(400, 5004),
    ModelNotFound: cloudflare_error(400, 5007),
}
ACCOUNT = CloudflareAccount("0" * 32, SECRET)
ROWS = {row.name: row for row in MODELS}

SUBJECTS = (
    Subject(
        "workers-ai, native",
        "@cf/meta/llama-3.3-70b-instruct-fp8-fast",
        "@cf/baai/bge-m3",
        lambda transport: WorkersAI(ACCOUNT, transport=transport, clock=lambda: 0.0),
        native_shape,
        NATIVE_STREAM,
        cloudflare_error(429, 3040)[1],
        CLOUDFLARE_REFUSALS,
    ),
    Subject(
        "workers-ai, OpenAI's shape",
        "@cf/google/gemma-4-26b-a4b-it",
        "@cf/baai/bge-m3",
        lambda transport: WorkersAI(ACCOUNT, transport=transport, clock=lambda: 0.0),
        openai_shape,
        OPENAI_STREAM,
        cloudflare_error(429, 3040)[1],
        CLOUDFLARE_REFUSALS,
    ),
    Subject(
        "openai",
        "gpt-4o",
        "text-embedding-3-small",
        lambda transport: OpenAI(
            Service("openai", "https://api.openai.com/v1", HEADERS, "OPENAI_API_KEY", OPENAI_DIALECT, is_openai=True),
            transport,
        ),
        openai_shape,
        OPENAI_STREAM,
        openai_error(503, "server_error")[1],
        OPENAI_REFUSALS,
    ),
    Subject(
        "openai, another server",
        "gpt-4o",
        "nomic-embed-text",
        lambda transport: OpenAI(Service("openai", "http://127.0.0.1:1/v1", HEADERS, "OPENAI_API_KEY"), transport),
        openai_shape,
        OPENAI_STREAM,
        openai_error(503, "server_error")[1],
        OPENAI_REFUSALS,
    ),
    Subject(
        "braintrust",
        "gpt-4o",
        "text-embedding-3-small",
        lambda transport: OpenAI(braintrust_service(BraintrustAccess("p", SECRET)), transport),
        openai_shape,
        OPENAI_STREAM,
        openai_error(503, "server_error")[1],
        OPENAI_REFUSALS,
    ),
    ANTHROPIC,
    Subject("echo", "@cf/echo/chat", "@cf/echo/embed", lambda _: Echo(ROWS)),
)
EMBEDDED = Subject("local", CHAT_MODEL, EMBEDDING_MODEL, lambda _: LlamaCpp())
