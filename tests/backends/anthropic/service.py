"""A stand-in for Anthropic's API, in the shapes of its documentation, and its row in the table of subjects."""

from __future__ import annotations

import json
from typing import Any

import httpx

from llmdo.backends.anthropic.backend import Anthropic
from llmdo.backends.errors import (
    ContextOverflow,
    InvalidRequest,
    ModelError,
    ModelNotFound,
    Overloaded,
    QuotaExhausted,
    RateLimited,
    Unauthorized,
)
from llmdo.settings.environment import AnthropicAccess
from tests.backends.conformance import ANSWER, SECRET, Subject, event_stream

MODEL = "claude-sonnet-4-5"
USAGE = {"input_tokens": 12, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0, "output_tokens": 7}
ACCESS = AnthropicAccess("https://api.anthropic.com", SECRET)


def message(*blocks: dict[str, Any], stop: str = "end_turn", **more: Any) -> dict[str, Any]:
    """A whole reply."""
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": MODEL,
        "content": list(blocks),
        "stop_reason": stop,
        "stop_sequence": None,
        "usage": USAGE,
        **more,
    }


def streamed(whole: dict[str, Any], size: int = 6) -> bytes:
    """The events of a message; texts, thoughts and inputs come in pieces."""
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": {**whole, "content": [], "stop_reason": None}},
        {"type": "ping"},
    ]
    for index, block in enumerate(whole["content"]):
        events += [{**event, "index": index} for event in _block_events(block, size)]
    delta = {"stop_reason": whole["stop_reason"], "stop_sequence": whole["stop_sequence"]}
    usage = {"output_tokens": whole["usage"]["output_tokens"]}
    events += [{"type": "message_delta", "delta": delta, "usage": usage}, {"type": "message_stop"}]
    lines = (f"event: {event['type']}\ndata: {json.dumps(event, ensure_ascii=False)}\n\n" for event in events)
    return "".join(lines).encode()


def _block_events(block: dict[str, Any], size: int) -> list[dict[str, Any]]:
    kind = block["type"]
    whole = json.dumps(block["input"]) if kind == "tool_use" else block[kind]
    empty = {**block, **({"input": {}} if kind == "tool_use" else {kind: ""})}
    empty.pop("signature", None)
    delta, name = ("input_json_delta", "partial_json") if kind == "tool_use" else (f"{kind}_delta", kind)
    pieces = [whole[at : at + size] for at in range(0, len(whole), size)]
    deltas = [{"type": delta, name: piece} for piece in pieces]
    deltas += [{"type": "signature_delta", "signature": block["signature"]}] if "signature" in block else []
    return [
        {"type": "content_block_start", "content_block": empty},
        *({"type": "content_block_delta", "delta": one} for one in deltas),
        {"type": "content_block_stop"},
    ]


def answer(call: httpx.Request) -> httpx.Response:
    """The API, when all is well."""
    if call.method == "GET":
        entry = {"id": MODEL, "type": "model", "display_name": "Claude Sonnet 4.5", "max_input_tokens": 200_000}
        return httpx.Response(200, json={"data": [entry], "has_more": False, "first_id": MODEL, "last_id": MODEL})
    body = json.loads(call.content)
    assert body["max_tokens"] > 0
    if body.get("tool_choice", {}).get("type") == "any":
        use = {"type": "tool_use", "id": "toolu_1", "name": body["tools"][0]["name"], "input": {"city": "Paris"}}
        whole = message(use, stop="tool_use")
    else:
        text = '{"yes": true}' if "format" in body.get("output_config", {}) else ANSWER
        whole = message({"type": "text", "text": text})
    return event_stream(streamed(whole)) if body.get("stream") else httpx.Response(200, json=whole)


def error(status: int, kind: str, said: str = "said") -> tuple[int, Any]:
    """An error in Anthropic's words."""
    return status, {"type": "error", "error": {"type": kind, "message": f"{said} {SECRET}"}, "request_id": "req_1"}


REFUSALS: dict[type[ModelError], tuple[int, Any]] = {
    Unauthorized: error(401, "authentication_error", "invalid x-api-key"),
    QuotaExhausted: error(400, "invalid_request_error", "Your credit balance is too low to access the Anthropic API."),
    RateLimited: error(429, "rate_limit_error"),
    Overloaded: error(529, "overloaded_error", "Overloaded"),
    ContextOverflow: error(413, "request_too_large"),
    InvalidRequest: error(400, "invalid_request_error", "messages.0.content: Input should be a valid list"),
    ModelNotFound: error(404, "not_found_error", "model: no-such-model"),
}
SUBJECT = Subject(
    "anthropic",
    MODEL,
    "",
    lambda transport: Anthropic(ACCESS, transport, clock=lambda: 0.0),
    answer,
    streamed(message({"type": "text", "text": ANSWER})),
    error(529, "overloaded_error", "Overloaded")[1],
    REFUSALS,
)
