"""Messages of Anthropic's API as our answers. Pure functions.

Source: platform.claude.com/docs/en/api/messages, and the types of Anthropic's own client.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pydantic_core import from_json, to_json

from llmdo.backends.anthropic.requests import JSON_TOOL, tool_answer
from llmdo.backends.errors import BadReply
from llmdo.backends.finish_reasons import finish_error, finish_of, finish_warning
from llmdo.backends.http.reply_json import amount, excerpt, mapping
from llmdo.backends.openai.completion_body import completion_body
from llmdo.backends.openai.messages import as_text, tool_calls
from llmdo.backends.openai.shapes import answering_model, warnings_of
from llmdo.backends.responses import ChatResponse, RawResponse
from llmdo.backends.usage import Usage

# What a ChatResponse has of its own, or says nothing, of a message.
_READ = frozenset({"content", "model", "role", "stop_reason", "type"})
# What a block holds that is all read; any other block, or one that holds more, is kept as it came.
_PLAIN = {"text": {"type", "text"}, "tool_use": {"type", "id", "name", "input"}}


def read_message(body: Any, model: str) -> ChatResponse:
    """Reads a message. Raises ContentFiltered, Retryable where the answer failed, and BadReply for what is none."""
    fields = mapping(body)
    blocks = fields.get("content")
    if not isinstance(blocks, list):
        raise BadReply(
            f"{model} sent a reply that is not a message ({excerpt(body)}): check that ANTHROPIC_BASE_URL is that of a "
            "service with Anthropic's API"
        )
    reason = fields.get("stop_reason")
    words = as_text(mapping(fields.get("stop_details")).get("explanation")) or ""
    if (failed := finish_error(reason, model, words)) is not None:
        raise failed
    response = _said([block for block in blocks if isinstance(block, dict)], fields)
    usage = read_message_usage(fields.get("usage"))
    answered, substituted = answering_model(body, model.removesuffix("-latest"))
    response = replace(response, finish_reason=finish_of(reason), usage=usage, model=answered)
    odd = finish_warning(reason)
    warnings = (*((odd,) if odd else ()), *warnings_of(response, usage.output_tokens, response.finish_reason))
    return replace(response, warnings=(*warnings, *substituted))


def _said(blocks: list[dict[str, Any]], fields: Mapping[str, Any]) -> ChatResponse:
    texts, thoughts = _texts(blocks, "text", "text"), _texts(blocks, "thinking", "thinking")
    calls = [
        {"id": block.get("id"), "function": {"name": block.get("name"), "arguments": block.get("input")}}
        for block in blocks
        if block.get("type") == "tool_use"
    ]
    message: dict[str, Any] = {}
    if not all(_is_plain(block) for block in blocks):
        message["content_parts"] = blocks
    kept = {name: value for name, value in fields.items() if name not in _READ and value is not None}
    return ChatResponse(
        text="".join(texts) or None,
        finish_reason=None,
        usage=Usage(),
        model="",
        reasoning="".join(thoughts) or None,
        tool_calls=tool_calls(calls),
        body={**kept, "choices": [{"index": 0, "message": message}]},
    )


def _texts(blocks: list[dict[str, Any]], kind: str, name: str) -> list[str]:
    return [as_text(block.get(name)) or "" for block in blocks if block.get("type") == kind]


def _is_plain(block: Mapping[str, Any]) -> bool:
    held = {name for name, value in block.items() if value is not None}
    return held <= _PLAIN.get(str(block.get("type")), set())


def without_tool(response: ChatResponse) -> ChatResponse:
    """The answer that came by JSON_TOOL, as text; one of another kind as it is."""
    ours = [call for call in response.tool_calls if call["function"]["name"] == JSON_TOOL]
    if not ours:
        return response
    text = to_json(tool_answer(from_json(ours[0]["function"]["arguments"]))).decode()
    others = tuple(call for call in response.tool_calls if call not in ours)
    finish = "stop" if response.finish_reason == "tool_calls" and not others else response.finish_reason
    return replace(response, text=text, tool_calls=others, finish_reason=finish)


def raw_response(response: ChatResponse, request_id: str) -> RawResponse:
    """The answer to a request that was written for this API: a chat.completion, with the blocks as they came."""
    return RawResponse(
        result=completion_body(response, request_id),
        usage=response.usage,
        model=response.model,
        request_id=response.request_id,
        warnings=response.warnings,
    )


def read_message_usage(given: Any) -> Usage:
    """Tokens: our input includes those that were read from the cache, and those that were written to it."""
    usage = mapping(given)
    read, written = _count(usage, "cache_read_input_tokens"), _count(usage, "cache_creation_input_tokens")
    return Usage(
        input_tokens=_count(usage, "input_tokens") + read + written,
        output_tokens=_count(usage, "output_tokens"),
        cached_tokens=read,
        cache_write_tokens=written,
        reasoning_tokens=_count(mapping(usage.get("output_tokens_details")), "thinking_tokens"),
    )


def _count(fields: Mapping[str, Any], name: str) -> int:
    return int(amount(fields.get(name)) or 0)
