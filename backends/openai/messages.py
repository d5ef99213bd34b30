"""What a model said, in OpenAI's shape: text, reasoning and tool calls of a message. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import pydantic_core

from llmdo.backends.streams import MOST_CALLS, too_many_calls

_TEXTS = frozenset({"text", "output_text"})
_THOUGHTS = frozenset({"thinking", "reasoning"})


class Content(NamedTuple):
    """A message's content: ``parts`` where text and reasoning are not all that it holds."""

    text: str | None
    reasoning: str | None = None
    parts: list[Any] | None = None


def read_content(value: Any) -> Content:
    """The content of a message: text, or parts as OpenAI, Mistral and Anthropic write them."""
    if not (isinstance(value, list) and value and all(_is_part(part) for part in value)):
        return Content(as_text(value))
    texts, thoughts, plain = [], [], True
    for part in value:
        kind = "text" if isinstance(part, str) else part.get("type", "text")
        if isinstance(part, str):
            texts.append(part)
        elif kind in _TEXTS and "text" in part:
            texts.append(as_text(part["text"]) or "")
            plain = plain and part.keys() <= {"type", "text"}
        elif kind in _THOUGHTS:
            thoughts.append(_thought(part))
            plain = plain and part.keys() <= {"type", "thinking", "text"}
        else:
            plain = False
    return Content("".join(texts) or None, "".join(thoughts) or None, None if plain else value)


def as_text(value: Any) -> str | None:
    """A model's output as text: parts joined, an object (JSON mode) or a number as JSON, null as None."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(isinstance(part, dict) and "text" in part for part in value):
        return "".join(as_text(part["text"]) or "" for part in value)
    return pydantic_core.to_json(value).decode()


def tool_calls(calls: Any) -> tuple[Mapping[str, Any], ...]:
    """Tool calls in OpenAI's shape, with all that they hold, also from a flat one with an object for arguments.

    Raises BadReply for more than MOST_CALLS.
    """
    listed = calls if isinstance(calls, list) else []
    if len(listed) > MOST_CALLS:
        raise too_many_calls(len(listed))
    return tuple(_tool_call(call, index) for index, call in enumerate(listed) if isinstance(call, dict))


def _is_part(part: Any) -> bool:
    return isinstance(part, dict) and (isinstance(part.get("type"), str) or "text" in part)


def _thought(part: Mapping[str, Any]) -> str:
    inner = part.get("thinking", part.get("text"))
    return read_content(inner).text or "" if isinstance(inner, list) else as_text(inner) or ""


def _tool_call(call: Mapping[str, Any], index: int) -> Mapping[str, Any]:
    identity = call.get("call_id") or call.get("id") or f"call_{index}"
    function = call.get("function")
    if isinstance(function, dict):
        return {**call, "id": identity, "type": "function", "function": _function(function)}
    if "name" in call and call.get("type") in (None, "function", "function_call"):  # flat: native, or of Responses
        named = _function({"name": call["name"], "arguments": call.get("arguments")})
        return {"id": identity, "type": "function", "function": named}
    if call.get("type") == "custom_tool_call":  # of Responses
        return {"id": identity, "type": "custom", "custom": {name: call.get(name) for name in ("name", "input")}}
    return {**call, "id": identity}  # a custom one, or what came later than these lines


def _function(function: Mapping[str, Any]) -> Mapping[str, Any]:
    arguments = function.get("arguments")
    text = arguments if isinstance(arguments, str) else pydantic_core.to_json(arguments or {}).decode()
    return {**function, "name": str(function.get("name") or ""), "arguments": text}
