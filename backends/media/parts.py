"""Where a request may name pictures, sounds and files, and how their bytes stand there instead.

Parts are those of OpenAI's chats and responses: ``image_url``, ``input_audio`` and ``file``; ``input_image`` and
``input_file``; ``audio_url`` and ``video_url``, which servers like vLLM know; and Anthropic's ``image`` and
``document``. A Workers AI model's own input has ``image`` and ``audio``. Pure functions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from llmdo.backends.media.errors import MediaUnusable
from llmdo.backends.media.kinds import Kind, Medium
from llmdo.backends.requests import ChatRequest, MediaReference, RawRequest, Request

Path = tuple[str, ...]
# The type of a part: what it holds, and the fields in which a reference may stand.
_PARTS: Mapping[str, tuple[Medium, tuple[Path, ...]]] = {
    "image_url": ("image", (("image_url",), ("image_url", "url"))),
    "input_image": ("image", (("image_url",), ("image_url", "url"))),
    "input_audio": ("audio", (("input_audio", "data"), ("input_audio", "url"))),
    "audio_url": ("audio", (("audio_url",), ("audio_url", "url"))),
    "video_url": ("video", (("video_url",), ("video_url", "url"))),
    "file": ("file", (("file", "file_data"), ("file", "url"), ("file", "file_url"))),
    "input_file": ("file", (("file_data",), ("url",), ("file_url",))),
    "image": ("image", (("source", "url"),)),
    "document": ("file", (("source", "url"),)),
}
_OWN: tuple[tuple[str, Medium], ...] = (("image", "image"), ("audio", "audio"))
_BESIDE = "image"  # beside the prompt of an older vision model of Workers AI
# Routes whose bodies have no parts.
_WITHOUT = frozenset({"embeddings", "completions", "moderations"})
_ADDRESSES = ("url", "file_url")  # fields that hold an address and never the bytes
_SAMPLES = {"image": "image/png", "audio": "audio/wav", "video": "video/mp4", "file": "application/pdf"}
_SAMPLE = "data:application/octet-stream;base64,AAAA"
_LONGEST_NAME = 200  # characters of a name in a sentence


@dataclass(frozen=True, slots=True)
class Encoded:
    """A picture, a sound or a file as it is sent: ``data:TYPE;base64,…``."""

    kind: Kind
    data_url: str

    @property
    def base64(self) -> str:
        """The bytes alone."""
        return self.data_url.partition(",")[2]


# Gets what stands in a field, what it is used as, and whether the field may hold base64 as well; returns what is to
# stand there.
Rename = Callable[[str, Medium, bool], str]


def renamed(request: Request, rename: Rename) -> Request:
    """The request with other names in it; the same one where none changes. Raises what ``rename`` raises."""
    if _is_text(request):
        return request

    def change(part: Mapping[str, Any], medium: Medium, path: Path) -> Mapping[str, Any]:
        found = _get(part, path)
        if not isinstance(found, str):
            return part
        new = rename(found, medium, path[-1] in ("data", "file_data", "image", "audio"))
        return part if new is found else _set(part, path, new)

    return _changed(request, change)


def references_in(request: Request) -> list[MediaReference]:
    """All references in a request, in their order, each as often as it stands there."""
    found: list[MediaReference] = []
    if _is_text(request):
        return found

    def change(part: Mapping[str, Any], _: Medium, path: Path) -> Mapping[str, Any]:
        there = _get(part, path)
        if isinstance(there, MediaReference):
            found.append(there)
        return part

    _changed(request, change)
    return found


def with_bytes(request: Request, encoded: Callable[[MediaReference], Encoded]) -> Request:
    """The request with bytes in the place of references. Raises MediaUnusable where these are of another kind."""

    def change(part: Mapping[str, Any], medium: Medium, path: Path) -> Mapping[str, Any]:
        there = _get(part, path)
        if not isinstance(there, MediaReference):
            return part
        given = encoded(there)
        if not given.kind.serves_as(medium):
            raise MediaUnusable(f"{shown_name(there.place)} is {given.kind.mime}, and the line uses it as {medium}")
        return _filled(part, path, there, given)

    return _changed(request, change)


def with_samples(request: Request) -> Request:
    """The request with a few bytes in the place of each reference, to see what a backend makes of it."""
    return with_bytes(request, lambda reference: Encoded(Kind(_SAMPLES[reference.medium]), _SAMPLE))


def shown_name(name: str) -> str:
    """A reference as it stands in an error's sentence: the query of a URL may be a signature, and is left out."""
    text = name.partition("?")[0] if "://" in name and not name.startswith("r2://") else name
    text = "".join(char if char.isprintable() else "�" for char in text)
    return text if len(text) <= _LONGEST_NAME else f"{text[:_LONGEST_NAME]}…"


def _filled(part: Mapping[str, Any], path: Path, name: MediaReference, given: Encoded) -> Mapping[str, Any]:
    """A part with its bytes, as services take them."""
    kind = part.get("type")
    if path[0] == "source":
        return {**part, "source": {"type": "base64", "media_type": given.kind.mime, "data": given.base64}}
    if kind == "input_image" or path[0] in ("image", "audio"):
        return {**part, path[0]: given.data_url}
    if kind in ("image_url", "audio_url", "video_url"):
        inner = part[path[0]] if isinstance(part[path[0]], Mapping) else {}
        return {**part, path[0]: {**inner, "url": given.data_url}}
    holder = part if kind == "input_file" else part[path[0]]
    rest = {field: value for field, value in holder.items() if field not in _ADDRESSES}
    if kind == "input_audio":
        return {**part, "input_audio": {**rest, "data": given.base64, "format": given.kind.format}}
    own = {"filename": name.place.partition("?")[0].rpartition("/")[2] or "file"}
    whole = {**own, **rest, "file_data": given.data_url}
    return whole if kind == "input_file" else {**part, "file": whole}


def _is_text(request: Request) -> bool:
    """Whether a request is a chat without any part, as most are: a cheap look."""
    if not isinstance(request, ChatRequest):
        return False
    for one in request.messages:  # a loop of its own takes a third of the time of any()
        if isinstance(one.content, tuple):
            return False
    return _BESIDE not in request.parameters


# Gets a part, what it holds, and one of the fields in which that may stand.
_Change = Callable[[Mapping[str, Any], Medium, Path], Mapping[str, Any]]


def _changed(request: Request, change: _Change) -> Request:
    if isinstance(request, ChatRequest):
        messages = [
            replace(one, content=_part_of(one.content, change)) if isinstance(one.content, tuple) else one
            for one in request.messages
        ]
        parameters = request.parameters
        if _BESIDE in parameters:
            parameters = change(parameters, "image", (_BESIDE,))
        alike = all(new.content is old.content for new, old in zip(messages, request.messages, strict=True))
        if alike and parameters is request.parameters:
            return request
        return replace(request, messages=tuple(messages), parameters=parameters)
    if not isinstance(request, RawRequest) or request.path in _WITHOUT:
        return request
    given: Mapping[str, Any] = _part_of(request.input, change)
    if not request.path:
        for field, medium in _OWN:
            given = change(given, medium, (field,))
    return request if given is request.input else replace(request, input=given)


def _part_of(value: Any, change: _Change) -> Any:
    """A value with its parts changed, however deep they stand; the same one where none is."""
    if isinstance(value, Mapping):
        new = _each(value, change)
        kind = value.get("type")
        medium, paths = _PARTS.get(kind, ("file", ())) if isinstance(kind, str) else ("file", ())
        for path in paths:
            new = change(new, medium, path)
        return new
    if isinstance(value, list | tuple):
        if value and isinstance(value[0], int | float):  # tokens or bytes: there may be millions
            return value
        parts = [_part_of(one, change) for one in value]
        return value if all(new is old for new, old in zip(parts, value, strict=True)) else type(value)(parts)
    return value


def _each(value: Mapping[str, Any], change: _Change) -> Mapping[str, Any]:
    parts = {name: _part_of(one, change) for name, one in value.items() if isinstance(one, Mapping | list | tuple)}
    return value if all(new is value[name] for name, new in parts.items()) else {**value, **parts}


def _get(part: Any, path: Path) -> Any:
    for name in path:
        if not isinstance(part, Mapping):
            return None
        part = part.get(name)
    return part


def _set(part: Mapping[str, Any], path: Path, value: str) -> Mapping[str, Any]:
    return {**part, path[0]: value if len(path) == 1 else _set(part[path[0]], path[1:], value)}
