"""OpenAI's chat shape, which many services speak: parsed JSON bodies as our responses. Pure functions.

Shapes: platform.openai.com/docs/api-reference, chat and embeddings. Read generously: servers that call themselves
compatible leave fields out, or send objects where OpenAI sends text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pydantic_core

from backends.errors import BadReply, ContentFiltered
from backends.ir import ChatResponse, FinishReason, Usage

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

# A dated snapshot, or a tag, of the model that was asked for is that model.
_SNAPSHOT = re.compile(r"(?:[-@](?:\d{4}-?\d{2}-?\d{2}|\d{4})|:latest|-latest)?")
MOST_CALLS = 1000  # tool calls of an answer: a thousand times what is usual
_EXCERPT = 200  # characters of a reply that go into an error's sentence


def read_completion(body: Any, model: str, provider: str, request_id: str | None) -> ChatResponse:
    """Reads a chat.completion. Raises ContentFiltered, and BadReply for anything that is none."""
    choice = first_choice(body)
    if choice is None:
        raise BadReply(
            f"{model} sent a reply that is no chat completion ({excerpt(body)}): "
            "check that the base URL ends before /chat/completions, and that the model chats",
            request_id=request_id,
            provider=provider,
        )
    response, usage = read_choice(choice), read_usage(body)
    if response.finish_reason == "content_filter":
        raise filtered(model, provider, request_id, usage)
    named = body.get("model")
    answered = named if isinstance(named, str) and named else model
    logprobs = choice.get("logprobs")
    return replace(
        response,
        usage=usage,
        model=answered,
        request_id=request_id,
        warnings=(*response.warnings, *answer_warnings(response, usage.output_tokens, model, answered)),
        details={"logprobs": logprobs} if logprobs else {},
    )


def first_choice(body: Any) -> Mapping[str, Any] | None:
    """The first of ``choices``, or None where there is none."""
    choices = mapping(body).get("choices")
    return choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else None


def read_choice(choice: Mapping[str, Any]) -> ChatResponse:
    """One choice: text, reasoning, tool calls and finish reason; usage, model and ids are the caller's to add."""
    message = mapping(choice.get("message"))
    text = as_text(message.get("content")) or as_text(choice.get("text"))
    refused = as_text(message.get("refusal"))
    calls = tool_calls(message.get("tool_calls") or _legacy(message.get("function_call")))
    reasoning = as_text(message.get("reasoning_content")) or as_text(message.get("reasoning"))
    return ChatResponse(
        text=text or refused or None,
        finish_reason=FINISH_REASONS.get(str(choice.get("finish_reason"))),
        usage=Usage(),
        model="",
        reasoning=reasoning or None,
        tool_calls=calls,
        warnings=("the model refused",) if refused and not text else (),
    )


def read_vectors(body: Any, model: str, count: int, provider: str, request_id: str | None) -> list[tuple[float, ...]]:
    """Reads ``{"data": [{"index", "embedding"}, …]}`` in the order of ``index``; one vector a text, of ``count`` texts,
    or BadReply.
    """
    rows = mapping(body).get("data")
    found: dict[int, tuple[float, ...]] = {}
    for position, row in enumerate(rows if isinstance(rows, list) else []):
        numbers, index = mapping(row).get("embedding"), mapping(row).get("index", position)
        if isinstance(numbers, list) and numbers and all(isinstance(x, int | float) for x in numbers):
            found[index if isinstance(index, int) else position] = tuple(map(float, numbers))
    if sorted(found) != list(range(count)):
        raise BadReply(
            f"{model} sent {len(found)} vectors for {count} texts ({excerpt(body)}): name an embedding model",
            request_id=request_id,
            provider=provider,
        )
    return [found[index] for index in range(count)]


def read_usage(result: Any, neurons: float | None = None) -> Usage:
    """Reads ``usage`` by either naming; ``neurons`` where the body has none."""
    usage = mapping(mapping(result).get("usage"))
    input_details = mapping(usage.get("prompt_tokens_details") or usage.get("input_tokens_details"))
    output_details = mapping(usage.get("completion_tokens_details") or usage.get("output_tokens_details"))
    in_body = amount(usage.get("neurons"))
    return Usage(
        input_tokens=_count(usage.get("prompt_tokens", usage.get("input_tokens"))),
        output_tokens=_count(usage.get("completion_tokens", usage.get("output_tokens"))),
        cached_tokens=_count(input_details.get("cached_tokens")),
        reasoning_tokens=_count(output_details.get("reasoning_tokens")),
        neurons=neurons if in_body is None else in_body,
    )


def as_text(value: Any) -> str | None:
    """A model's output as text: parts joined, an object (JSON mode) or a number as JSON, null as None."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(isinstance(part, dict) and "text" in part for part in value):
        return "".join(as_text(part["text"]) or "" for part in value)
    return pydantic_core.to_json(value).decode()


def tool_calls(calls: Any) -> tuple[Mapping[str, Any], ...]:
    """Tool calls in OpenAI's shape, from that shape or from a flat one with an object for arguments."""
    listed = calls if isinstance(calls, list) else []
    if len(listed) > MOST_CALLS:
        raise too_many_calls(len(listed))
    return tuple(_tool_call(call, index) for index, call in enumerate(listed) if isinstance(call, dict))


def too_many_calls(count: int) -> BadReply:
    """The error of an answer with more than MOST_CALLS."""
    return BadReply(f"the answer has {count:,} tool calls, and at most {MOST_CALLS:,} are read: offer fewer tools")


def answer_warnings(response: ChatResponse, tokens: int, asked: str, answered: str) -> Iterator[str]:
    """What is not as asked about an answer of ``tokens`` tokens, in sentences."""
    if response.finish_reason == "length" and response.text is None and response.reasoning:
        yield f"all {tokens} tokens went into reasoning: raise max_tokens"
    elif response.finish_reason == "length":
        yield f"the answer is cut off at {tokens} tokens: raise max_tokens"
    elif not response.text and not response.tool_calls:
        yield "the model sent no text"
    if not is_same_model(asked, answered):
        yield f"{answered} answered instead of {asked}"


def is_same_model(asked: str, answered: str) -> bool:
    """Whether a reply's model is the one asked for: ``gpt-4o-2024-08-06`` is a ``gpt-4o``, ``gpt-4o-mini`` is not."""
    asked, answered = asked.rpartition("/")[2].casefold(), answered.rpartition("/")[2].casefold()
    return answered.startswith(asked) and bool(_SNAPSHOT.fullmatch(answered, len(asked)))


def filtered(model: str, provider: str, request_id: str | None = None, usage: Usage | None = None) -> ContentFiltered:
    """The error of an answer with finish reason content_filter."""
    text = f"{model}: the filter withheld the answer (finish reason content_filter): change the prompt"
    return ContentFiltered(text, request_id=request_id, provider=provider, usage=usage)


def mapping(value: Any) -> Mapping[str, Any]:
    """The value where it is an object; whatever else stands there says nothing."""
    return value if isinstance(value, dict) else {}


def excerpt(value: Any) -> str:
    """The begin of a reply, for an error's sentence."""
    return pydantic_core.to_json(value).decode()[:_EXCERPT]


def _legacy(call: Any) -> list[Any]:
    return [call] if isinstance(call, dict) else []


def _tool_call(call: Mapping[str, Any], index: int) -> Mapping[str, Any]:
    function = mapping(call.get("function")) or call
    arguments = function.get("arguments")
    text = arguments if isinstance(arguments, str) else pydantic_core.to_json(arguments or {}).decode()
    return {
        "id": call.get("call_id") or call.get("id") or f"call_{index}",
        "type": "function",
        "function": {"name": str(function.get("name") or ""), "arguments": text},
    }


def amount(value: Any) -> float | None:
    """A number that something can cost; None for what cannot be: negative, infinite, not a number."""
    return float(value) if isinstance(value, int | float) and 0 <= value < 1e15 else None


def _count(value: Any) -> int:
    return int(amount(value) or 0)
