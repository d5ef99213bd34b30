"""Answers in Workers AI's shapes: native, chat.completion, and as streams of server-sent events."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from typing import Any

from pydantic_core import from_json, to_json

from llmdo.backends.responses import ChatResponse, EmbedResponse, StreamChunk
from llmdo.backends.usage import Usage
from llmdo.local.ai.catalogue import LocalModel

DONE = b"data: [DONE]\n\n"


def usage_of(usage: Usage, model: LocalModel) -> dict[str, Any]:
    """Tokens by OpenAI's names, and neurons, which the real service reports without documenting them."""
    tokens = {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.input_tokens + usage.output_tokens,
    }
    return tokens | ({"neurons": model.neurons(usage.input_tokens, usage.output_tokens)} if model.is_own else {})


def native_chat(response: ChatResponse, model: LocalModel) -> dict[str, Any]:
    """``{"response", "usage"}``: this shape has no finish reason."""
    result: dict[str, Any] = {"response": response.text, "usage": usage_of(response.usage, model)}
    if response.tool_calls:
        result["tool_calls"] = [_flat(call) for call in response.tool_calls]
    elif _is_object(response.text):
        result["response"] = from_json(response.text or "")  # JSON mode
    return result


def chat_completion(response: ChatResponse, model: LocalModel) -> dict[str, Any]:
    """OpenAI's chat.completion."""
    message: dict[str, Any] = {"role": "assistant", "content": response.text}
    if response.tool_calls:
        message["tool_calls"] = [dict(call) for call in response.tool_calls]
    return {
        "id": _completion_id(),
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model.name,
        "choices": [{"index": 0, "message": message, "finish_reason": response.finish_reason, "logprobs": None}],
        "usage": usage_of(response.usage, model),
    }


def native_vectors(response: EmbedResponse, pooling: str) -> dict[str, Any]:
    """``{"shape", "data", "pooling"}``."""
    size = len(response.vectors[0]) if response.vectors else 0
    return {"shape": [len(response.vectors), size], "data": response.vectors, "pooling": pooling}


def openai_vectors(response: EmbedResponse, model: LocalModel) -> dict[str, Any]:
    """OpenAI's list of embeddings."""
    tokens = response.usage.input_tokens
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": vector}
            for index, vector in enumerate(response.vectors)
        ],
        "model": model.name,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


async def native_stream(chunks: AsyncIterator[StreamChunk], model: LocalModel) -> AsyncGenerator[bytes, None]:
    """``data: {"response": "…"}``, then one with the usage, then ``[DONE]``."""
    async for chunk in chunks:
        if chunk.kind == "content":
            yield _event({"response": chunk.text})
        elif chunk.kind == "tool_use" and chunk.tool_call:
            yield _event({"response": "", "tool_calls": [_flat(chunk.tool_call)]})
        elif chunk.kind == "done":
            yield _event({"response": "", "usage": usage_of(chunk.usage or Usage(), model)})
    yield DONE


async def openai_stream(
    chunks: AsyncIterator[StreamChunk],
    model: LocalModel,
    *,
    with_usage: bool,
    count: Callable[[Usage, LocalModel], dict[str, Any]] = usage_of,
) -> AsyncGenerator[bytes, None]:
    """chat.completion.chunk events: role, pieces of content, finish reason, usage if requested, ``[DONE]``."""
    head = {"id": _completion_id(), "object": "chat.completion.chunk", "created": int(time.time()), "model": model.name}
    calls = 0
    async for chunk in chunks:
        for delta in _deltas(chunk, calls):
            yield _event({**head, "choices": [{"index": 0, "delta": delta, "finish_reason": chunk.finish_reason}]})
        calls += chunk.kind == "tool_use"
        if chunk.kind == "done" and with_usage:
            yield _event({**head, "choices": [], "usage": count(chunk.usage or Usage(), model)})
    yield DONE


def _deltas(chunk: StreamChunk, calls: int) -> list[dict[str, Any]]:
    """OpenAI's deltas of a chunk that follows this number of tool calls; a call is split in two, as by the real one."""
    match chunk.kind:
        case "start":
            return [{"role": "assistant", "content": ""}]
        case "content":
            return [{"content": chunk.text}]
        case "tool_use" if chunk.tool_call:
            function = chunk.tool_call["function"]
            half = len(function["arguments"]) // 2
            first = {**function, "arguments": function["arguments"][:half]}
            rest = {"index": calls, "function": {"arguments": function["arguments"][half:]}}
            return [{"tool_calls": [{**chunk.tool_call, "index": calls, "function": first}]}, {"tool_calls": [rest]}]
        case "done":
            return [{}]
        case _:
            return []


def _flat(call: Mapping[str, Any]) -> dict[str, Any]:
    """A tool call as native models send it."""
    function = call["function"]
    return {"name": function["name"], "arguments": from_json(function["arguments"])}


def _is_object(text: str | None) -> bool:
    try:
        return isinstance(from_json(text or ""), dict)
    except ValueError:
        return False


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + to_json(value) + b"\n\n"


def _completion_id() -> str:
    return f"chatcmpl-{uuid.uuid4().hex}"
