"""Contents of Gemini's API as messages of a chat. Source: ai.google.dev/api/caching#Content.

Its fields have names such as inlineData; the official client for Python also writes inline_data.
"""

from __future__ import annotations

import base64
import re
from collections import defaultdict, deque
from collections.abc import Mapping
from functools import lru_cache
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
    shown_beside,
    sound_part,
    text_at,
    text_part,
    tool_call,
    warn_of_others,
)

_ROLES = {None: "user", "user": "user", "model": "assistant", "function": "user", "tool": "user"}
_SNAKE = re.compile(r"(?<=[a-z0-9])_([a-z0-9])")
# Kinds of parts that hold what a chat can hold.
_DATA = ("text", "inlineData", "fileData", "functionCall", "functionResponse")
_URL_SAFE = str.maketrans("-_", "+/")
# Places that only Google's servers can read.
_AT_GOOGLE = re.compile(
    r"gs://|files/|https://generativelanguage\.googleapis\.com/|https?://(?:www\.)?(?:youtube\.|youtu\.be)"
)


def camel(given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields by their names in JSON, without those that are null; what is in them stays as it is."""
    return {_camel(name): value for name, value in given.items() if value is not None}


@lru_cache(maxsize=512)
def _camel(name: str) -> str:
    return _SNAKE.sub(lambda match: match[1].upper(), name) if len(name) < 80 else name


class Contents:
    """Reads the turns of one request. It keeps the calls of functions, whose answers often name only the function."""

    def __init__(self, warn: WarnOf) -> None:
        self._warn = warn
        self._calls = 0
        self._waiting: defaultdict[str, deque[str]] = defaultdict(deque)

    def messages(self, given: object) -> list[dict[str, Any]]:
        """The messages of all turns. Raises Untranslatable."""
        if isinstance(given, str):
            return [{"role": "user", "content": given}]
        turns = [given] if isinstance(given, dict) else items_at(given, "contents")
        messages: list[dict[str, Any]] = []
        for at, turn in enumerate(turns):
            messages += self._turn(fields_at(turn, f"contents.{at}"), f"contents.{at}")
        return messages

    def system(self, given: object) -> str | list[dict[str, Any]]:
        """The instructions, as the content of a message. Raises Untranslatable."""
        if isinstance(given, str):
            return given
        return content_from(self._parts(camel(fields_at(given, "systemInstruction")), "systemInstruction"))

    def _turn(self, turn: Mapping[str, Any], place: str) -> list[dict[str, Any]]:
        role = turn.get("role")
        if not (role is None or isinstance(role, str)) or role not in _ROLES:
            raise Untranslatable(f"{place}.role is {short(str(role))}: write user or model")
        warn_of_others(turn, ("role", "parts"), self._warn)
        calls: list[dict[str, Any]] = []
        results: list[dict[str, Any]] = []
        parts = self._parts(turn, place, calls, results)
        parts = [*shown_beside(results, self._warn), *parts]
        if not parts and not calls:
            return results
        message: dict[str, Any] = {"role": _ROLES[role], "content": content_from(parts)}
        if calls:
            message |= {"content": message["content"] or None, "tool_calls": calls}
        return [*results, message]

    def _parts(
        self,
        turn: Mapping[str, Any],
        place: str,
        calls: list[dict[str, Any]] | None = None,
        results: list[dict[str, Any]] | None = None,
    ) -> list[dict[str, Any]]:
        """The parts that a message may hold; calls and answers of functions go to their lists, if there are any."""
        given = turn.get("parts")
        listed = [given] if isinstance(given, dict | str) else items_at(given, f"{place}.parts")
        parts: list[dict[str, Any]] = []
        for at, each in enumerate(listed):
            inner = f"{place}.parts.{at}"
            part = camel({"text": each} if isinstance(each, str) else fields_at(each, inner))
            kind = next((name for name in _DATA if name in part), None)
            if kind is None:
                raise Untranslatable(
                    f"{inner} ({short(', '.join(part))[1:-1]}) is nothing that a chat can hold: give text, inlineData "
                    "with an image, a sound or a PDF, functionCall or functionResponse"
                )
            warn_of_others(part, (kind, "thought"), self._warn)
            if part.get("thought"):
                self._warn("thoughts of an earlier answer were left out: only the model that thought them needs them")
            elif kind == "functionCall" and calls is not None:
                calls.append(self._call(camel(fields_at(part[kind], f"{inner}.{kind}")), f"{inner}.{kind}"))
            elif kind == "functionResponse" and results is not None:
                results.append(self._result(camel(fields_at(part[kind], f"{inner}.{kind}")), f"{inner}.{kind}"))
            else:
                parts.append(_held(part[kind], kind, f"{inner}.{kind}"))
        return parts

    def _call(self, call: Mapping[str, Any], place: str) -> dict[str, Any]:
        warn_of_others(call, ("id", "name", "args"), self._warn)
        name = text_at(call.get("name"), f"{place}.name")
        identity = text_at(call.get("id") or f"call_{self._calls}", f"{place}.id")
        self._calls += 1
        self._waiting[name].append(identity)
        return tool_call(identity, name, to_json(fields_at(call.get("args", {}), f"{place}.args")).decode())

    def _result(self, result: Mapping[str, Any], place: str) -> dict[str, Any]:
        warn_of_others(result, ("id", "name", "response", "parts"), self._warn)
        name = text_at(result.get("name"), f"{place}.name")
        waiting, identity = self._waiting[name], result.get("id")
        if isinstance(identity, str) and identity in waiting:
            waiting.remove(identity)
        elif waiting:
            identity = waiting.popleft()
        else:
            raise Untranslatable(f"{place} answers {short(name)}, which no functionCall before it calls: add the call")
        said = to_json(result.get("response", {})).decode()
        shown = self._parts(result, place) if result.get("parts") else []
        return {"role": "tool", "tool_call_id": identity, "content": [text_part(said), *shown] if shown else said}


def _held(given: object, kind: str, place: str) -> dict[str, Any]:
    if kind == "text":
        return text_part(text_at(given, place))
    if kind in ("functionCall", "functionResponse"):
        raise Untranslatable(f"{place} does not belong here: a function is called and answered in contents")
    data = camel(fields_at(given, place))
    media_type = text_at(data.get("mimeType", ""), f"{place}.mimeType")
    name = text_at(data.get("displayName") or "file.pdf", f"{place}.displayName")
    if kind == "fileData":
        return _referenced(text_at(data.get("fileUri"), f"{place}.fileUri"), media_type, name, place)
    content = text_at(data.get("data"), f"{place}.data").translate(_URL_SAFE)
    content += "=" * (-len(content) % 4)
    if media_type.startswith("image/"):
        return image_part(data_url(media_type, content, place))
    if media_type.startswith("audio/"):
        return sound_part(media_type, content)
    if media_type == "application/pdf":
        return file_part(name, data_url(media_type, content, place))
    if media_type.startswith("text/") or media_type == "application/json":
        try:
            return text_part(base64.b64decode(content, validate=True).decode())
        except ValueError:
            raise Untranslatable(f"{place}.data is not text in base64: encode it again, or give it as text") from None
    raise _no_such_media(place, media_type)


def _referenced(url: str, media_type: str, name: str, place: str) -> dict[str, Any]:
    if not _AT_GOOGLE.match(url):
        if media_type.startswith("image/"):
            return image_part(url)
        if media_type == "application/pdf" and url.startswith("r2://"):
            return file_part(name, url)
        if media_type.startswith("audio/") and url.startswith("r2://"):
            return sound_part(media_type, url)
    if media_type.startswith(("image/", "audio/")) or media_type == "application/pdf":
        raise Untranslatable(
            f"{place}.fileUri {short(url)} cannot be read from here: give inlineData, or r2://BUCKET/KEY"
        )
    raise _no_such_media(place, media_type)


def _no_such_media(place: str, media_type: str) -> Untranslatable:
    said = short(media_type) if media_type else "without a mimeType"
    return Untranslatable(f"{place} is {said}: a chat takes images, sounds, PDFs and text, so give one of these")
