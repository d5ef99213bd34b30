"""What an answer's body says: its text, why it ended, and its vectors."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any, NamedTuple

import orjson

from llmdo.runners.inspecting.export.reading import json_text

# Where Workers AI's own results have their text.
_TEXTS = ("response", "text", "translated_text", "summary", "description")


class SaidInBody(NamedTuple):
    """The parts of an answer; ``vectors`` is None for one that is no embedding."""

    text: str | None = None
    reason: str | None = None
    vectors: list[Any] | None = None


def said_in(body: Any) -> SaidInBody:
    """What a body says, whatever kind it is; what has no text is JSON."""
    if not isinstance(body, dict):
        return SaidInBody(_as_text(body))
    choices = body.get("choices")
    if isinstance(choices, list) and choices and isinstance(choices[0], dict):
        return _choice(choices[0])
    items = body.get("data")
    if body.get("object") == "list" and isinstance(items, list):
        return SaidInBody(vectors=[item.get("embedding") if isinstance(item, dict) else None for item in items])
    if isinstance(body.get("output"), list):
        return SaidInBody(_output_text(body["output"]) or json_text(body["output"]), _status(body))
    for name in _TEXTS:
        if isinstance(body.get(name), str):
            return SaidInBody(body[name])
    return SaidInBody(json_text(body))


def _choice(choice: Mapping[str, Any]) -> SaidInBody:
    message, reason = choice.get("message"), choice.get("finish_reason")
    reason = reason if reason is None or isinstance(reason, str) else json_text(reason)
    if not isinstance(message, dict):
        return SaidInBody(_as_text(choice.get("text")), reason)
    text = message.get("content")
    for name in ("refusal", "tool_calls"):
        if text is None:
            text = message.get(name) or None
    return SaidInBody(_as_text(text), reason)


def _output_text(items: list[Any]) -> str:
    """Of a body of /v1/responses."""
    parts = [
        part
        for item in items
        if isinstance(item, dict) and item.get("type") == "message" and isinstance(item.get("content"), list)
        for part in item["content"]
        if isinstance(part, dict)
    ]
    texts = [part.get("text", part.get("refusal")) for part in parts]
    return "".join(text for text in texts if isinstance(text, str))


def _status(body: Mapping[str, Any]) -> str | None:
    """OpenAI's word for why a response ended, by its status."""
    details = body.get("incomplete_details")
    why = details.get("reason") if isinstance(details, dict) else None
    if why == "max_output_tokens":
        return "length"
    status = why or body.get("status")
    return "stop" if status == "completed" else status if isinstance(status, str) else None


def _as_text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json_text(value)


def packed_vector(vector: Any) -> bytes | None:
    """A row's vector as 32-bit floats, the least significant byte first."""
    from llmdo.backends.openai.written_vectors import packed_numbers  # noqa: PLC0415  numpy, which texts do not need

    if isinstance(vector, str):
        return base64.b64decode(vector)
    return packed_numbers(vector) if isinstance(vector, list) else None


def vector_numbers(vector: Any) -> list[Any] | None:
    """A row's vector as numbers."""
    if isinstance(vector, str):
        from llmdo.backends.openai.written_vectors import shortest_json  # noqa: PLC0415  as above

        numbers: list[Any] = orjson.loads(shortest_json(base64.b64decode(vector)))
        return numbers
    return vector if isinstance(vector, list) else None
