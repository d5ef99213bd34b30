"""What the translations share: readers of fields that say what is wrong, parts of messages, and what is left out."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from llmdo.backends.errors import short
from llmdo.transforms.lines.broken_json import kind_of

# Gets a sentence about what is left out, or changed.
WarnOf = Callable[[str], object]

_NO_PLACE = "a chat request has no place for it"
# What a data URL or a format of sound may be called; the rest of a media type is not for a URL.
_MEDIA_TYPE = re.compile(r"[\w.+-]{1,80}/[\w.+-]{1,80}")
# The formats of sound by OpenAI's names.
_SOUNDS = {"mpeg": "mp3", "x-wav": "wav", "wave": "wav", "vnd.wave": "wav", "x-flac": "flac"}


class Untranslatable(Exception):
    """A line cannot be asked as a chat, or is not as its API wants it; the argument is a sentence with the remedy."""


def fields_at(given: object, place: str) -> Mapping[str, Any]:
    """An object. Raises Untranslatable."""
    if not isinstance(given, dict):
        raise Untranslatable(f"{place} must be an object, not {kind_of(given)}")
    return given


def items_at(given: object, place: str) -> list[Any]:
    """An array. Raises Untranslatable."""
    if not isinstance(given, list):
        raise Untranslatable(f"{place} must be an array, not {kind_of(given)}")
    return given


def text_at(given: object, place: str) -> str:
    """A string. Raises Untranslatable."""
    if not isinstance(given, str):
        raise Untranslatable(f"{place} must be a string, not {kind_of(given)}")
    return given


def kind_at(given: Mapping[str, Any], place: str) -> str:
    """The ``type`` of an object. Raises Untranslatable."""
    return text_at(given.get("type"), f"{place}.type")


def warn_of_others(given: Mapping[str, Any], known: Iterable[str], warn: WarnOf, why: str = _NO_PLACE) -> None:
    """A sentence for each field beside ``known`` that asks for something."""
    for name in sorted(given.keys() - set(known)):
        if given[name] is not None and given[name] is not False and given[name] not in ([], {}, ""):
            warn(f"{short(name)[1:-1]} was left out: {why}")


def text_part(text: str) -> dict[str, Any]:
    """Text as a part of a message."""
    return {"type": "text", "text": text}


def image_part(url: str) -> dict[str, Any]:
    """An image as a part of a message."""
    return {"type": "image_url", "image_url": {"url": url}}


def file_part(name: str, url: str) -> dict[str, Any]:
    """A file as a part of a message."""
    return {"type": "file", "file": {"filename": name, "file_data": url}}


def sound_part(media_type: str, data: str) -> dict[str, Any]:
    """A sound as a part of a message."""
    form = media_type.partition("/")[2]
    return {"type": "input_audio", "input_audio": {"data": data, "format": _SOUNDS.get(form, form)}}


def data_url(media_type: str, data: str, place: str) -> str:
    """Base64 as a URL. Raises Untranslatable for what is not a media type."""
    if not _MEDIA_TYPE.fullmatch(media_type):
        raise Untranslatable(f"{place} has {short(media_type)} as its media type: write one such as image/png")
    return f"data:{media_type};base64,{data}"


def content_from(parts: list[dict[str, Any]]) -> str | list[dict[str, Any]]:
    """The content of a message: its only text, which every service takes, or its parts."""
    if not parts:
        return ""
    return parts[0]["text"] if len(parts) == 1 and parts[0]["type"] == "text" else parts


def shown_beside(results: list[dict[str, Any]], warn: WarnOf) -> list[dict[str, Any]]:
    """Takes images and files out of the contents of tools' answers, which hold only text in a chat."""
    shown: list[dict[str, Any]] = []
    for result in results:
        if isinstance(result["content"], list):
            shown += [part for part in result["content"] if part["type"] != "text"]
            result["content"] = content_from([part for part in result["content"] if part["type"] == "text"])
    if shown:
        warn("images and files of a tool's answer are in a message of the user behind it: a tool's answer is text")
    return shown


def tool_call(identity: str, name: str, arguments: str) -> dict[str, Any]:
    """A call of a function."""
    return {"id": identity, "type": "function", "function": {"name": name, "arguments": arguments}}
