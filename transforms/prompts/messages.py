"""Parses the messages of a line; each fault gets a sentence that says what to write."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast, get_args

from llmdo.backends.errors import short
from llmdo.backends.requests import Message, Role
from llmdo.transforms.lines.broken_json import kind_of
from llmdo.transforms.prompts.line_json import BadLine

_ROLES = get_args(Role)
_EMPTY = "there is nothing to answer: the prompt or the messages are empty"


def read_messages(given: object, name: str = "messages") -> list[Message]:
    """Parses an array of messages in OpenAI's format; ``name`` is the field that holds it.

    Any order of roles is accepted: instructions alone, the start of an answer at the end, the same role twice in a row.
    Raises BadLine for the first fault.
    """
    try:
        if not isinstance(given, list):
            raise _Wrong("its top", f"it must be an array of objects with role and content, not {kind_of(given)}")
        messages = [_message(message, str(at)) for at, message in enumerate(given)]
    except _Wrong as wrong:
        place, what = wrong.args
        raise BadLine(f"{name!r} is wrong at {place}: {what}") from None
    check_says_something(messages)
    return messages


def check_says_something(messages: list[Message]) -> None:
    """Raises BadLine for messages without any content."""
    if not any(_says_something(message) for message in messages):
        raise BadLine(_EMPTY)


def are_messages(value: object) -> bool:
    """Whether a value looks like a conversation: an array of objects which all have a role."""
    return isinstance(value, list) and bool(value) and all(isinstance(one, dict) and "role" in one for one in value)


class _Wrong(Exception):
    """A fault in the messages; the arguments are its place, such as 0.content.1, and a description."""


def _message(given: object, place: str) -> Message:
    if not isinstance(given, dict):
        raise _Wrong(place, f"it must be an object with role and content, not {kind_of(given)}")
    role, calls = given.get("role"), given.get("tool_calls")
    if role not in _ROLES:
        found = f"{short(role)} is not a role" if isinstance(role, str) else f"it is {kind_of(role)}"
        raise _Wrong(f"{place}.role", f"{found}: write one of {', '.join(_ROLES)}")
    if calls is not None and not isinstance(calls, list):
        raise _Wrong(f"{place}.tool_calls", f"it must be an array, not {kind_of(calls)}")
    extra = {name: value for name, value in given.items() if name not in ("role", "content")}
    return Message(cast(Role, role), _content(given.get("content"), f"{place}.content"), extra)


def _content(given: object, place: str) -> str | tuple[Mapping[str, Any], ...] | None:
    """Text, or parts; a string among parts becomes a text part, since services only accept objects."""
    if given is None or isinstance(given, str):
        return given
    if not isinstance(given, list):
        raise _Wrong(place, f"it must be a string or an array of parts, not {kind_of(given)}")
    return tuple(_part(part, f"{place}.{at}") for at, part in enumerate(given))


def _part(given: object, place: str) -> Mapping[str, Any]:
    if isinstance(given, str):
        return {"type": "text", "text": given}
    if isinstance(given, dict):
        return given
    example = '{"type": "text", "text": …}'
    raise _Wrong(place, f"it must be a string or a part such as {example}, not {kind_of(given)}")


def _says_something(message: Message) -> bool:
    content = message.content
    if content.strip() if isinstance(content, str) else content:
        return True
    return any(value for name, value in message.extra.items() if name != "name")
