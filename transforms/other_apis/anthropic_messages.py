"""Messages of Anthropic's API as messages of a chat. Source: platform.claude.com/docs/en/api/messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic_core import to_json

from llmdo.backends.errors import short
from llmdo.transforms.other_apis.translation import (
    Untranslatable,
    WarnOf,
    content_from,
    data_url,
    fields_at,
    file_part,
    image_part,
    items_at,
    kind_at,
    shown_beside,
    text_at,
    text_part,
    tool_call,
    warn_of_others,
)

_ROLES = ("user", "assistant", "system")
_THOUGHTS = frozenset({"thinking", "redacted_thinking"})


def system_message(given: object, warn: WarnOf) -> dict[str, Any]:
    """The instructions: text, or blocks of text. Raises Untranslatable."""
    return {"role": "system", "content": _content(given, "system", warn)}


def chat_messages(given: object, warn: WarnOf) -> list[dict[str, Any]]:
    """The turns; the results of tools are messages of their own. Raises Untranslatable."""
    messages: list[dict[str, Any]] = []
    for at, turn in enumerate(items_at(given, "messages")):
        messages += _turn(turn, f"messages.{at}", warn)
    return messages


def _turn(given: object, place: str, warn: WarnOf) -> list[dict[str, Any]]:
    turn = fields_at(given, place)
    role = turn.get("role")
    if role not in _ROLES:
        said = short(role) if isinstance(role, str) else "absent or not a string"
        raise Untranslatable(f"{place}.role is {said}: write one of {', '.join(_ROLES)}")
    warn_of_others(turn, ("role", "content"), warn)
    content = turn.get("content")
    if isinstance(content, str):
        return [{"role": role, "content": content}]
    parts: list[dict[str, Any]] = []
    calls: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    thought = False
    for number, given_block in enumerate(items_at(content, f"{place}.content")):
        inner = f"{place}.content.{number}"
        block = fields_at(given_block, inner)
        kind = kind_at(block, inner)
        if kind in _THOUGHTS:
            warn("thinking of an earlier answer was left out: only the model that thought it can read it")
            thought = True
        elif kind == "tool_use":
            calls.append(_call(block, inner, warn))
        elif kind == "tool_result":
            results.append(_result(block, inner, warn))
        else:
            parts += _parts(block, kind, inner, warn)
    parts = [*shown_beside(results, warn), *parts]
    if not parts and not calls and (results or thought):
        return results
    message: dict[str, Any] = {"role": role, "content": content_from(parts)}
    if calls:
        message |= {"content": message["content"] or None, "tool_calls": calls}
    return [*results, message]


def _content(given: object, place: str, warn: WarnOf) -> str | list[dict[str, Any]]:
    if isinstance(given, str):
        return given
    parts: list[dict[str, Any]] = []
    for at, each in enumerate(items_at(given, place)):
        block = fields_at(each, f"{place}.{at}")
        parts += _parts(block, kind_at(block, f"{place}.{at}"), f"{place}.{at}", warn)
    return content_from(parts)


def _parts(block: Mapping[str, Any], kind: str, place: str, warn: WarnOf) -> list[dict[str, Any]]:
    """A block of content as parts."""
    if kind == "text":
        warn_of_others(block, ("type", "text"), warn)
        return [text_part(text_at(block.get("text"), f"{place}.text"))]
    if kind == "image":
        warn_of_others(block, ("type", "source"), warn)
        return [_image(fields_at(block.get("source"), f"{place}.source"), f"{place}.source")]
    if kind == "document":
        warn_of_others(block, ("type", "source", "title", "context"), warn)
        return _document(block, place, warn)
    if kind == "search_result":
        warn_of_others(block, ("type", "source", "title", "content"), warn)
        found = _content(block.get("content"), f"{place}.content", warn)
        head = _head(block, ("title", "source"), place)
        return [*head, *([text_part(found)] if isinstance(found, str) else found)]
    raise Untranslatable(
        f"{place} is of the type {short(kind)}, which only Anthropic's API knows: write text, image, document, "
        "tool_use or tool_result"
    )


def _image(source: Mapping[str, Any], place: str) -> dict[str, Any]:
    match source.get("type"):
        case "base64":
            media_type = text_at(source.get("media_type"), f"{place}.media_type")
            return image_part(data_url(media_type, text_at(source.get("data"), f"{place}.data"), place))
        case "url":
            return image_part(text_at(source.get("url"), f"{place}.url"))
    raise _elsewhere(place)


def _document(block: Mapping[str, Any], place: str, warn: WarnOf) -> list[dict[str, Any]]:
    source = fields_at(block.get("source"), f"{place}.source")
    inner = f"{place}.source"
    kind = source.get("type")
    if kind == "text":
        text = text_at(source.get("data"), f"{inner}.data")
        return [*_head(block, ("title", "context"), place), text_part(text)]
    if kind == "content":
        held = _content(source.get("content"), f"{inner}.content", warn)
        parts = [text_part(held)] if isinstance(held, str) else held
        return [*_head(block, ("title", "context"), place), *parts]
    name = text_at(block.get("title") or "document.pdf", f"{place}.title")
    if kind == "base64":
        media_type = text_at(source.get("media_type"), f"{inner}.media_type")
        url = data_url(media_type, text_at(source.get("data"), f"{inner}.data"), inner)
        return [*_head(block, ("context",), place), file_part(name, url)]
    if kind == "url" and str(source.get("url")).startswith("r2://"):
        return [*_head(block, ("context",), place), file_part(name, str(source["url"]))]
    if kind == "url":
        raise Untranslatable(f"{inner} is a URL, by which a chat takes no document: give base64, or r2://BUCKET/KEY")
    raise _elsewhere(inner)


def _head(block: Mapping[str, Any], names: tuple[str, ...], place: str) -> list[dict[str, Any]]:
    """What stands above a document's text."""
    lines = [text_at(block[name], f"{place}.{name}") for name in names if block.get(name)]
    return [text_part("\n".join(lines))] if lines else []


def _elsewhere(place: str) -> Untranslatable:
    return Untranslatable(f"{place} is of a type that only Anthropic can read, such as a file kept there: give base64")


def _call(block: Mapping[str, Any], place: str, warn: WarnOf) -> dict[str, Any]:
    warn_of_others(block, ("type", "id", "name", "input", "caller"), warn)
    name = text_at(block.get("name"), f"{place}.name")
    given = fields_at(block.get("input") or {}, f"{place}.input")
    return tool_call(text_at(block.get("id"), f"{place}.id"), name, to_json(given).decode())


def _result(block: Mapping[str, Any], place: str, warn: WarnOf) -> dict[str, Any]:
    warn_of_others(block, ("type", "tool_use_id", "content"), warn)
    content = _content(block.get("content") or "", f"{place}.content", warn)
    about = text_at(block.get("tool_use_id"), f"{place}.tool_use_id")
    return {"role": "tool", "tool_call_id": about, "content": content}
