"""Workers AI's results, in all their shapes, as our responses. Pure functions; the bodies are parsed JSON.

Text generation answers in one of three shapes, by model: native ``{"response": …}``, OpenAI's chat completion
``{"choices": […]}`` and OpenAI's Responses ``{"output": […]}``; with or without the envelope ``{"result": …}``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pydantic_core

from backends.errors import BadReply, ContentFiltered
from backends.ir import ChatResponse, FinishReason, Usage
from backends.workers_ai_errors import PROVIDER

FINISH_REASONS: Mapping[str, FinishReason] = {
    "stop": "stop",
    "eos": "stop",
    "end_turn": "stop",
    "completed": "stop",
    "length": "length",
    "max_tokens": "length",
    "max_output_tokens": "length",
    "model_length": "length",
    "tool_calls": "tool_calls",
    "tool-calls": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
    "error": "error",
}


@dataclass(frozen=True, slots=True)
class Reply:
    """What a call brought: the result without its envelope, and what its headers say."""

    result: Any
    request_id: str | None = None
    neurons: float | None = None


def unwrap(body: Any) -> Any:
    """The result inside Cloudflare's envelope, or the body itself where there is no envelope."""
    return body["result"] if isinstance(body, dict) and "result" in body and "success" in body else body


def read_chat(reply: Reply, model: str, max_tokens: int) -> ChatResponse:
    """Reads any shape of text generation. ``max_tokens``: what was sent, to tell a cut answer from a whole one.

    Raises ContentFiltered, and BadReply for anything that is none of the shapes.
    """
    result = reply.result
    response = _shape(result) if isinstance(result, dict) else None
    if response is None:
        raise BadReply(
            f"{model} sent a reply that is no answer of a chat model ({_excerpt(result)}): "
            "name a text generation model, or send this model's own input",
            request_id=reply.request_id,
            provider=PROVIDER,
        )
    if response.finish_reason == "content_filter":
        raise ContentFiltered(
            f"{model}: the filter withheld the answer (finish reason content_filter): change the prompt",
            request_id=reply.request_id,
            provider=PROVIDER,
        )
    usage = read_usage(result, reply.neurons)
    finish = response.finish_reason
    if finish is None and usage.output_tokens >= max_tokens:
        finish = "length"  # the native shape has no finish reason
    named = result.get("model")
    answered = named if isinstance(named, str) and named else model
    return replace(
        response,
        finish_reason=finish,
        usage=usage,
        model=answered,
        request_id=reply.request_id,
        warnings=tuple(_warnings(response, finish, model, answered, max_tokens)),
    )


def read_vectors(reply: Reply, model: str, count: int) -> tuple[tuple[float, ...], ...]:
    """Reads ``{"data": [[…], …]}``, or OpenAI's ``{"data": [{"embedding": […]}, …]}``; one vector for each of ``count``
    texts. Raises BadReply.
    """
    result = reply.result
    rows = _mapping(result).get("data") or _mapping(result).get("response")
    vectors = []
    for row in rows if isinstance(rows, list) else []:
        numbers = row.get("embedding") if isinstance(row, dict) else row
        if isinstance(numbers, list) and numbers and all(isinstance(x, int | float) for x in numbers):
            vectors.append(tuple(map(float, numbers)))
    if len(vectors) != count:
        raise BadReply(
            f"{model} sent {len(vectors)} vectors for {count} texts ({_excerpt(result)}): name an embedding model",
            request_id=reply.request_id,
            provider=PROVIDER,
        )
    return tuple(vectors)


def read_usage(result: Any, neurons: float | None) -> Usage:
    """Reads ``usage`` by either naming; ``neurons`` from the header where the body has none."""
    usage = _mapping(_mapping(result).get("usage"))
    input_details = _mapping(usage.get("prompt_tokens_details") or usage.get("input_tokens_details"))
    output_details = _mapping(usage.get("completion_tokens_details") or usage.get("output_tokens_details"))
    in_body = usage.get("neurons")
    return Usage(
        input_tokens=_count(usage.get("prompt_tokens", usage.get("input_tokens"))),
        output_tokens=_count(usage.get("completion_tokens", usage.get("output_tokens"))),
        cached_tokens=_count(input_details.get("cached_tokens")),
        reasoning_tokens=_count(output_details.get("reasoning_tokens")),
        neurons=float(in_body) if isinstance(in_body, int | float) else neurons,
    )


def as_text(value: Any) -> str | None:
    """A model's output as text: parts joined, an object (JSON mode) or a number as JSON, null as None."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(isinstance(part, dict) and "text" in part for part in value):
        return "".join(as_text(part["text"]) or "" for part in value)
    return pydantic_core.to_json(value).decode()


def tool_calls(calls: Any) -> tuple[Mapping[str, Any], ...]:
    """Tool calls in OpenAI's shape, from that shape or from the native flat one with an object for arguments."""
    listed = calls if isinstance(calls, list) else []
    return tuple(_tool_call(call, index) for index, call in enumerate(listed) if isinstance(call, dict))


def _shape(result: Mapping[str, Any]) -> ChatResponse | None:
    if isinstance(result.get("choices"), list) and result["choices"]:
        return _chat_completion(_mapping(result["choices"][0]), result)
    if isinstance(result.get("output"), list):
        return _responses(result)
    return _native(result) if "response" in result else None


def _native(result: Mapping[str, Any]) -> ChatResponse:
    calls = tool_calls(result.get("tool_calls"))
    finish = FINISH_REASONS.get(str(result.get("finish_reason")))
    return _response(as_text(result["response"]), finish or ("tool_calls" if calls else None), calls)


def _chat_completion(choice: Mapping[str, Any], result: Mapping[str, Any]) -> ChatResponse:
    message = _mapping(choice.get("message"))
    text = as_text(message.get("content")) or as_text(choice.get("text")) or as_text(result.get("response"))
    reasoning = as_text(message.get("reasoning_content")) or as_text(message.get("reasoning"))
    finish = FINISH_REASONS.get(str(choice.get("finish_reason")))
    return _response(text, finish, tool_calls(message.get("tool_calls")), reasoning)


def _responses(result: Mapping[str, Any]) -> ChatResponse:
    items = [item for item in result["output"] if isinstance(item, dict)]
    said = [_parts(item) for item in items if item.get("type") == "message"]
    thought = [_parts(item) for item in items if item.get("type") == "reasoning"]
    calls = tool_calls([item for item in items if item.get("type") == "function_call"])
    reason = _mapping(result.get("incomplete_details")).get("reason") or result.get("status") or "completed"
    finish = "tool_calls" if calls and reason == "completed" else FINISH_REASONS.get(str(reason))
    return _response("".join(said) or as_text(result.get("output_text")), finish, calls, "".join(thought))


def _parts(item: Mapping[str, Any]) -> str:
    parts = item.get("content") or item.get("summary") or []
    return parts if isinstance(parts, str) else "".join(str(_mapping(part).get("text") or "") for part in parts)


def _response(
    text: str | None,
    finish: FinishReason | None,
    calls: tuple[Mapping[str, Any], ...],
    reasoning: str | None = None,
) -> ChatResponse:
    # No words are no answer where the model called tools, or spent its tokens on reasoning.
    text = None if not text and (calls or reasoning) else text
    return ChatResponse(
        text=text, finish_reason=finish, usage=Usage(), model="", reasoning=reasoning or None, tool_calls=calls
    )


def _tool_call(call: Mapping[str, Any], index: int) -> Mapping[str, Any]:
    function = _mapping(call.get("function")) or call
    arguments = function.get("arguments")
    text = arguments if isinstance(arguments, str) else pydantic_core.to_json(arguments or {}).decode()
    return {
        "id": call.get("call_id") or call.get("id") or f"call_{index}",
        "type": "function",
        "function": {"name": str(function.get("name") or ""), "arguments": text},
    }


def _warnings(
    response: ChatResponse, finish: FinishReason | None, asked: str, answered: str, max_tokens: int
) -> Iterator[str]:
    if finish == "length" and response.text is None and response.reasoning:
        yield f"all {max_tokens} tokens went into reasoning: raise max_tokens"
    elif finish == "length":
        yield f"the answer is cut off at {max_tokens} tokens: raise max_tokens"
    elif response.text is None and not response.tool_calls:
        yield "the model sent no text"
    if answered != asked:
        yield f"{answered} answered instead of {asked}"


def _mapping(value: Any) -> Mapping[str, Any]:
    """The value where it is an object; whatever else stands there says nothing."""
    return value if isinstance(value, dict) else {}


def _count(value: Any) -> int:
    return int(value) if isinstance(value, int | float) else 0


def _excerpt(value: Any) -> str:
    return pydantic_core.to_json(value).decode()[:200]
