"""The Messages API: a body as a chat, and an answer as a message, whole or as the events of a stream.

Shapes: the official client's types (``anthropic/types``) of 2026-11.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Any

from pydantic_core import from_json, to_json

from llmdo.backends.requests import ChatRequest, Message
from llmdo.backends.responses import ChatResponse, StreamChunk
from llmdo.backends.usage import Usage
from llmdo.local.ai.catalogue import LocalModel
from llmdo.local.wire import AnthropicRefused

_STOPS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


def chat_of(body: Mapping[str, Any], models: Mapping[str, LocalModel]) -> tuple[LocalModel, ChatRequest]:
    """The model of a body, and the chat that it asks for. Raises AnthropicRefused."""
    model = models.get(str(body.get("model")))
    if model is None:
        raise AnthropicRefused(404, f"model: {body.get('model')}")
    limit = body.get("max_tokens")
    if not isinstance(limit, int) or isinstance(limit, bool) or limit < 1:
        raise AnthropicRefused(400, "max_tokens: Field required, and a valid integer of at least 1")
    messages = _system(body.get("system")) + _turns(body.get("messages"))
    parameters: dict[str, Any] = {"max_tokens": limit}
    form = (body.get("output_config") or {}).get("format")
    if form:
        wanted = {"name": "answer", "schema": form.get("schema")}
        parameters["response_format"] = {"type": "json_schema", "json_schema": wanted}
    if body.get("tools"):
        parameters |= _tools(body["tools"], body.get("tool_choice") or {})
    return model, ChatRequest(model.serves, tuple(messages), parameters)


def _system(given: Any) -> list[Message]:
    text = _text(given, "system") if given else ""
    return [Message("system", text)] if text else []


def _turns(given: Any) -> list[Message]:
    if not isinstance(given, list) or not given:
        raise AnthropicRefused(400, "messages: at least one message is required")
    messages: list[Message] = []
    for number, turn in enumerate(given):
        place = f"messages.{number}"
        role = turn.get("role") if isinstance(turn, dict) else None
        if role not in ("user", "assistant"):
            raise AnthropicRefused(400, f"{place}.role: Input should be 'user' or 'assistant'")
        content = turn.get("content")
        if isinstance(content, str) and not content.strip():
            raise AnthropicRefused(400, f"{place}: all messages must have non-empty content")
        messages.append(Message(role, _text(content, f"{place}.content")))
    return messages


def _text(content: Any, place: str) -> str:
    """The texts of blocks, those of tools' results, too."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise AnthropicRefused(400, f"{place}: Input should be a valid string or list")
    texts = []
    for number, block in enumerate(content):
        if not isinstance(block, dict) or not isinstance(block.get("type"), str):
            raise AnthropicRefused(400, f"{place}.{number}.type: Field required")
        if block["type"] == "text" and not block.get("text"):
            raise AnthropicRefused(400, f"{place}.{number}: text content blocks must be non-empty")
        inner = block.get("content")
        texts.append(_text(inner, f"{place}.{number}.content") if inner else str(block.get("text") or ""))
    return "\n".join(filter(None, texts))


def _tools(given: Any, choice: Mapping[str, Any]) -> dict[str, Any]:
    functions = [{"name": tool.get("name"), "parameters": tool.get("input_schema")} for tool in given]
    wanted: Any = _CHOICES.get(str(choice.get("type")), "auto")
    if choice.get("type") == "tool":
        wanted = {"type": "function", "function": {"name": choice.get("name")}}
    tools = [{"type": "function", "function": function} for function in functions]
    return {"tools": tools, "tool_choice": wanted}


def message_json(answer: ChatResponse, model: LocalModel, tier: str = "standard") -> dict[str, Any]:
    """The ``message`` object."""
    blocks: list[dict[str, Any]] = [{"type": "text", "text": answer.text}] if answer.text else []
    blocks += [_use(call) for call in answer.tool_calls]
    return {
        **_head(model),
        "content": blocks,
        "stop_reason": _STOPS.get(str(answer.finish_reason), "end_turn"),
        "stop_sequence": None,
        "usage": usage_json(answer.usage, tier),
    }


def _head(model: LocalModel) -> dict[str, Any]:
    return {"id": f"msg_{secrets.token_hex(12)}", "type": "message", "role": "assistant", "model": model.name}


def _use(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call["function"]
    arguments = from_json(function["arguments"] or "{}")
    return {"type": "tool_use", "id": f"toolu_{secrets.token_hex(12)}", "name": function["name"], "input": arguments}


def usage_json(usage: Usage, tier: str) -> dict[str, Any]:
    """Tokens; nothing is cached here."""
    return {
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "service_tier": tier,
    }


async def message_events(chunks: AsyncIterator[StreamChunk], model: LocalModel) -> AsyncGenerator[bytes, None]:
    """The events of a stream. Raises what the chunks raise."""
    start: dict[str, Any] = {**_head(model), "content": [], "stop_reason": None, "stop_sequence": None}
    yield _event("message_start", message={**start, "usage": usage_json(Usage(0, 1), "standard")})
    yield _event("ping")
    index, opened = -1, False
    last = StreamChunk("done", finish_reason="stop", usage=Usage())
    async for chunk in chunks:
        if chunk.kind == "content":
            if not opened:
                index, opened = index + 1, True
                yield _event("content_block_start", index=index, content_block={"type": "text", "text": ""})
            yield _event("content_block_delta", index=index, delta={"type": "text_delta", "text": chunk.text})
        elif chunk.kind == "tool_use" and chunk.tool_call is not None:
            if opened:
                yield _event("content_block_stop", index=index)
            index, opened = index + 1, False
            use = _use(chunk.tool_call)
            delta = {"type": "input_json_delta", "partial_json": to_json(use["input"]).decode()}
            yield _event("content_block_start", index=index, content_block={**use, "input": {}})
            yield _event("content_block_delta", index=index, delta=delta)
            yield _event("content_block_stop", index=index)
        elif chunk.kind == "done":
            last = chunk
    if opened:
        yield _event("content_block_stop", index=index)
    ended: dict[str, Any] = {"stop_reason": _STOPS.get(str(last.finish_reason), "end_turn"), "stop_sequence": None}
    yield _event("message_delta", delta=ended, usage=usage_json(last.usage or Usage(), "standard"))
    yield _event("message_stop")


def _event(kind: str, **fields: Any) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (kind.encode(), to_json({"type": kind, **fields}))
