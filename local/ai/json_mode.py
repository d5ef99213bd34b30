"""JSON answers and tool calls of the echo: the smallest value that fits the schema."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from pydantic_core import to_json

from llmdo.backends.requests import ChatRequest
from llmdo.backends.responses import ChatResponse

_DEPTH = 8  # for schemas that contain themselves
_PARTS = 10_000  # of a value: a short schema can require billions


def as_asked(request: ChatRequest, answer: ChatResponse) -> ChatResponse:
    """The answer, as a tool call if one is required, or as JSON if ``response_format`` asks for it."""
    tool = _forced(request.parameters)
    if tool is not None:
        function = {"name": str(tool.get("name")), "arguments": to_json(smallest(tool.get("parameters"))).decode()}
        call = {"id": "call_0", "type": "function", "function": function}
        return replace(answer, text=None, tool_calls=(call,), finish_reason="tool_calls")
    given = request.parameters.get("response_format")
    wanted: Mapping[str, Any] = given if isinstance(given, dict) else {}
    kind = wanted.get("type")
    if kind == "json_schema":
        wrapped = wanted.get("json_schema") or {}
        text = to_json(smallest(wrapped.get("schema", wrapped))).decode()
        return replace(answer, text=text, finish_reason="stop")
    if kind == "json_object":
        return replace(answer, text=to_json({"echo": answer.text}).decode(), finish_reason="stop")
    return answer


def smallest(schema: Any, depth: int = 0, left: Iterator[int] | None = None) -> Any:
    """The smallest value that fits a schema of types, properties, items, enum, const and anyOf.

    ``left`` counts its parts; beyond _PARTS the rest is omitted.
    """
    left = iter(range(_PARTS)) if left is None else left
    if not isinstance(schema, dict) or depth > _DEPTH:
        return None
    for fixed in (schema.get("const"), *(schema.get("enum") or ())[:1]):
        if fixed is not None:
            return fixed
    for choice in (schema.get("anyOf") or schema.get("oneOf") or ())[:1]:
        return smallest(choice, depth + 1, left)
    kind = schema.get("type", "object")
    kind = kind[0] if isinstance(kind, list) and kind else kind
    if kind == "object":
        properties: Mapping[str, Any] = schema.get("properties") or {}
        names = dict.fromkeys(schema.get("required", properties))
        return {name: smallest(properties.get(name), depth + 1, left) for name, _ in zip(names, left, strict=False)}
    if kind == "array":
        least = schema.get("minItems") or 0
        return [smallest(schema.get("items"), depth + 1, left) for _, _ in zip(range(least), left, strict=False)]
    low = schema.get("minimum") or 0
    return {"string": "echo", "number": low, "integer": low, "boolean": True}.get(str(kind))


def _forced(parameters: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The function that must be called: the named one, or the first if any will do."""
    choice = parameters.get("tool_choice")
    named = choice.get("function", {}).get("name") if isinstance(choice, dict) else None
    functions = [tool.get("function") or tool for tool in parameters.get("tools") or () if isinstance(tool, dict)]
    fitting = [one for one in functions if choice == "required" or (named and one.get("name") == named)]
    return fitting[0] if fitting else None
