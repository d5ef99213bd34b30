"""The ``input`` of a /v1/responses body as messages of a chat.

Source: platform.openai.com/docs/api-reference/responses/create. An item that a chat has no place for, and whose content
the answer depends on, is refused; reasoning of earlier turns is left out with a warning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import pydantic_core

from llmdo.backends.errors import InvalidRequest, short
from llmdo.backends.requests import Message, Role

_Part = Mapping[str, Any]
_ROLES = ("user", "assistant", "system", "developer")
_TEXTS = frozenset({"input_text", "output_text", "text"})
_FILE = ("filename", "file_data", "file_url")
# Items that only the service that made them can read.
_KEPT_THERE = frozenset({"item_reference", "compaction", "compaction_trigger"})


def read_items(given: object, warn: Callable[[str], object]) -> list[Message]:
    """The messages of an ``input``: a text, or an array of items. Raises InvalidRequest for the first fault."""
    if isinstance(given, str):
        return [Message("user", given)]
    if not isinstance(given, list):
        raise InvalidRequest("'input' must be a string or an array of items")
    messages: list[Message] = []
    for number, item in enumerate(given):
        _add(messages, {"role": "user", "content": item} if isinstance(item, str) else item, f"input.{number}", warn)
    return messages


def check_file_parts(messages: Iterable[Message]) -> None:
    """Raises InvalidRequest for a file that is named by its URL: in a chat no service fetches it."""
    for message in messages:
        for part in message.content if isinstance(message.content, tuple) else ():
            if part.get("type") == "file" and isinstance(part.get("file"), Mapping) and part["file"].get("file_url"):
                raise InvalidRequest(
                    "a chat cannot have input_file by file_url: give its bytes as a data: URI in file_data, or allow "
                    "its place with --media-from"
                )


def _add(messages: list[Message], item: Any, place: str, warn: Callable[[str], object]) -> None:
    if not isinstance(item, dict):
        raise InvalidRequest(f'{place} must be an object such as {{"role": "user", "content": …}}')
    kind = item.get("type") or "message"
    if kind == "message":
        messages.append(_message(item, place))
    elif kind in ("function_call", "custom_tool_call"):
        _add_call(messages, _call(item, kind))
    elif kind in ("function_call_output", "custom_tool_call_output"):
        content = _output(item.get("output"), f"{place}.output")
        messages.append(Message("tool", content, {"tool_call_id": str(item.get("call_id") or "")}))
    elif kind == "reasoning":
        warn(f"{place} was left out: a chat has no place for the reasoning of earlier turns")
    elif kind in _KEPT_THERE:
        raise InvalidRequest(f"{place}: a chat cannot have {kind}, which is kept by OpenAI: write the messages out")
    else:
        raise InvalidRequest(
            f"{place}: a chat cannot have items of the type {short(kind)}: leave the item out, or ask a service that "
            "has /v1/responses"
        )


def _message(item: Mapping[str, Any], place: str) -> Message:
    role = item.get("role")
    if role not in _ROLES:
        raise InvalidRequest(f"{place}.role is {short(role)}: write one of {', '.join(_ROLES)}")
    content = item.get("content")
    if content is None or isinstance(content, str):
        return Message(cast(Role, role), content)
    if not isinstance(content, list):
        raise InvalidRequest(f"{place}.content must be a string or an array of parts")
    parts = [_part(part, f"{place}.content.{number}") for number, part in enumerate(content)]
    if len(parts) == 1 or role == "assistant":  # many servers take an assistant's turn as text alone
        texts = [part["text"] for part in parts if part["type"] == "text"]
        if len(texts) == len(parts):
            return Message(cast(Role, role), "".join(texts))
    return Message(cast(Role, role), tuple(parts))


def _part(given: Any, place: str) -> _Part:
    """A part of a message as a chat has it."""
    if isinstance(given, str):
        return {"type": "text", "text": given}
    kind = given.get("type") if isinstance(given, dict) else None
    if kind in _TEXTS and isinstance(given.get("text"), str):
        return {"type": "text", "text": given["text"]}
    if kind == "refusal":
        return {"type": "text", "text": str(given.get("refusal") or "")}
    if kind == "input_image" and isinstance(url := given.get("image_url"), str):
        detail = {"detail": given["detail"]} if given.get("detail") else {}
        return {"type": "image_url", "image_url": {"url": url, **detail}}
    if kind == "input_audio":
        return {"type": "input_audio", "input_audio": given.get("input_audio")}
    if kind == "input_file" and any(isinstance(given.get(name), str) for name in ("file_data", "file_url")):
        return {"type": "file", "file": {name: given[name] for name in _FILE if given.get(name)}}
    if kind in ("input_image", "input_file"):
        by = "file_id" if given.get("file_id") else "nothing"
        data = "image_url" if kind == "input_image" else "file_data"
        raise InvalidRequest(f"{place}: a chat cannot have {kind} by {by}: give its bytes as a data: URI in {data}")
    what = short(kind) if isinstance(given, dict) else "no object"
    raise InvalidRequest(f"{place}: a chat cannot have a part of the type {what}: write it as input_text")


def _output(given: Any, place: str) -> str | tuple[_Part, ...]:
    """What a tool has said: text, since a chat's tool can say nothing else."""
    if isinstance(given, str):
        return given
    if not isinstance(given, list):
        return "" if given is None else pydantic_core.to_json(given).decode()
    parts = [_part(part, f"{place}.{number}") for number, part in enumerate(given)]
    odd = next((number for number, part in enumerate(parts) if part["type"] != "text"), None)
    if odd is not None:
        raise InvalidRequest(f"{place}.{odd}: in a chat a tool's output can only be text: put it into a user's message")
    return "".join(str(part["text"]) for part in parts)


def _call(item: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    identity = str(item.get("call_id") or item.get("id") or "")
    name = str(item.get("name") or "")
    if kind == "custom_tool_call":
        return {"id": identity, "type": "custom", "custom": {"name": name, "input": str(item.get("input") or "")}}
    arguments = item.get("arguments")
    text = arguments if isinstance(arguments, str) else pydantic_core.to_json(arguments or {}).decode()
    return {"id": identity, "type": "function", "function": {"name": name, "arguments": text}}


def _add_call(messages: list[Message], call: Mapping[str, Any]) -> None:
    """Calls that follow each other, or an assistant's words, are one turn."""
    if messages and messages[-1].role == "assistant":
        last = messages.pop()
        calls = [*last.extra.get("tool_calls", ()), call]
        messages.append(Message("assistant", last.content, {**last.extra, "tool_calls": calls}))
    else:
        messages.append(Message("assistant", None, {"tool_calls": [call]}))
