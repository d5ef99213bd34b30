"""Answers in JSON mode: whether one keeps to its ``response_format``, and what to ask when it does not.

No provider's JSON mode is a promise, so every answer is checked here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pydantic_core import from_json

from backends.ir import ChatRequest, ChatResponse, Message, Usage
from backends.json_schema import problem_of

_FENCE = re.compile(r"\s*```(?:json)?[ \t]*\n(.*?)\n?[ \t]*```\s*", re.DOTALL | re.IGNORECASE)
_QUOTED = 4000  # characters of a wrong answer that are shown to the model again


def wants_json(response_format: Any) -> bool:
    """Whether a request's ``response_format`` asks for JSON."""
    return isinstance(response_format, Mapping) and response_format.get("type") in ("json_object", "json_schema")


def without_fence(response: ChatResponse) -> ChatResponse:
    """The answer without the Markdown fence that some models put around JSON, and with a warning for it."""
    fenced = _FENCE.fullmatch(response.text or "")
    if not fenced:
        return response
    return replace(response, text=fenced[1], warnings=(*response.warnings, "a code fence around the JSON was removed"))


def problem_of_answer(response: ChatResponse, response_format: Any) -> str | None:
    """What is wrong with an answer, in a clause; None where it fits, calls tools, or where no JSON was asked for."""
    if not wants_json(response_format) or response.tool_calls:
        return None
    if response.finish_reason == "length":
        return f"the JSON is cut off at {response.usage.output_tokens} tokens: raise max_tokens"
    try:
        value = from_json(response.text or "")
    except ValueError as error:
        return f"the answer is no JSON ({error})"
    if response_format["type"] == "json_object" and not isinstance(value, dict):
        return "the answer is JSON but no object"
    problem = problem_of(value, schema_of(response_format))
    return f"the answer does not fit the JSON schema: {problem}" if problem else None


def schema_of(response_format: Mapping[str, Any]) -> Any:
    """The JSON Schema, bare or in OpenAI's wrapper ``{"name", "schema", "strict"}``; True, which all fits, without."""
    given = response_format.get("json_schema", True)
    wrapped = isinstance(given, dict) and isinstance(given.get("schema"), dict)
    return given["schema"] if wrapped else given


def asked_again(request: ChatRequest, response: ChatResponse, problem: str) -> ChatRequest:
    """The conversation with the wrong answer, and what is wrong with it."""
    said = Message("assistant", (response.text or "")[:_QUOTED])
    text = f"This cannot be used: {problem}. Answer again, with nothing but JSON that fits."
    return replace(request, messages=(*request.messages, said, Message("user", text)))


def added(one: Usage, other: Usage) -> Usage:
    """The usage of both."""
    neurons = [part.neurons for part in (one, other) if part.neurons is not None]
    return Usage(
        one.input_tokens + other.input_tokens,
        one.output_tokens + other.output_tokens,
        one.cached_tokens + other.cached_tokens,
        one.reasoning_tokens + other.reasoning_tokens,
        sum(neurons) if neurons else None,
    )
