"""Answers and prompts as text to read: JSON is indented, vectors are summed up, control characters are shown."""

from __future__ import annotations

import base64
import math
import struct
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import orjson

from llmdo.transforms.prompts.templates import MissingField, fill_in

SHOWN_CHARACTERS = 6_000  # characters of a text that are shown
_VECTORS, _NUMBERS, _LONG_LIST = 3, 6, 32
# Those that reorder what follows. ZWJ and ZWNJ are needed to write words and emoji.
_REORDERING = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff")


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a prompt or an answer.

    Attributes:
        label: such as ``user`` or ``reasoning``; "" for the answer itself.
        code: whether it is JSON.
        cut: characters that are left out at its end.
    """

    label: str
    text: str
    code: bool = False
    cut: int = 0


def part(label: str, value: object) -> Part:
    """A text, or anything else as JSON; text that is JSON is indented."""
    text, code = value if isinstance(value, str) else _pretty(value), not isinstance(value, str)
    if not code and len(text) <= 1 << 20 and text.lstrip()[:1] in ("{", "["):
        with suppress(ValueError):
            text, code = _pretty(orjson.loads(text)), True
    return Part(label, visible(text[:SHOWN_CHARACTERS]), code, max(0, len(text) - SHOWN_CHARACTERS))


def visible(text: str) -> str:
    """A text whose control characters, and those that reorder others, are shown by their numbers.

    >>> visible('a' + chr(27) + '[31mb' + chr(0x202e))
    'a⟨U+001B⟩[31mb⟨U+202E⟩'
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        f"⟨U+{ord(c):04X}⟩" if c in _REORDERING or (unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t") else c
        for c in text.replace("\r\n", "\n")
    )


def answer_parts(body: object) -> list[Part]:
    """What an answer says, whatever kind of body it is."""
    if not isinstance(body, dict):
        return [part("", body)]
    if isinstance(body.get("choices"), list):
        return list(_choices(body["choices"]))
    if isinstance(body.get("data"), list) and body.get("object") == "list":
        return list(_vectors(body["data"]))
    if isinstance(body.get("output"), list):
        return list(_items(body["output"])) or [part("", body)]
    return [part("", _shortened(body))]


def _choices(choices: list[Any]) -> Iterator[Part]:
    for number, choice in enumerate(choices[:8]):
        which = f"choice {number + 1}" if len(choices) > 1 else ""
        if not isinstance(choice, dict):
            continue
        message = choice.get("message")
        if not isinstance(message, dict):
            yield part(which, choice.get("text", choice))
            continue
        if reasoning := message.get("reasoning_content"):
            yield part(f"{which} reasoning".strip(), reasoning)
        for name, label in (
            ("content", ""),
            ("refusal", "refusal"),
            ("tool_calls", "tool calls"),
            ("images", "images"),
        ):
            if value := message.get(name):
                yield part(f"{which} {label}".strip(), value if isinstance(value, str) else _shortened(value))


def _vectors(items: list[Any]) -> Iterator[Part]:
    for item in items[:_VECTORS]:
        if isinstance(item, dict):
            which = f"vector {item.get('index', 0)}" if len(items) > 1 else "vector"
            yield Part(which, _vector_text(item))
    if len(items) > _VECTORS:
        yield Part("", f"… and {len(items) - _VECTORS:,} more vectors")


def _vector_text(item: Mapping[str, Any]) -> str:
    numbers = item.get("embedding")
    if isinstance(numbers, str):
        try:
            body = base64.b64decode(numbers, validate=True)
            numbers = list(struct.unpack(f"<{len(body) // 4}f", body[: len(body) // 4 * 4]))
        except ValueError:
            return "not a vector: neither numbers nor base64"
    if not isinstance(numbers, list):
        error = item.get("error")
        return visible(f"none: {error.get('message') if isinstance(error, dict) else 'no numbers'}")
    known = [number for number in numbers if isinstance(number, int | float)]
    norm = math.sqrt(sum(number * number for number in known))
    first = ", ".join(f"{number:.4g}" for number in known[:_NUMBERS])
    return f"{len(numbers):,} numbers, length {norm:.4g}: [{first}{', …' if len(numbers) > _NUMBERS else ''}]"


def _items(items: list[Any]) -> Iterator[Part]:
    """Of a body of /v1/responses."""
    for item in items[:16]:
        if not isinstance(item, dict):
            continue
        contents = item.get("content")
        texts = [one.get("text") for one in contents if isinstance(one, dict)] if isinstance(contents, list) else []
        said = "\n".join(text for text in texts if isinstance(text, str))
        kind = str(item.get("type", ""))
        yield part("" if kind == "message" else kind, said or _shortened(item))


def prompt_parts(line: object, template: str, system: str) -> list[Part]:
    """What a line asks, filled into the run's template if it has one."""
    if not isinstance(line, dict):
        return [part("line", line)]
    body = line.get("body") if isinstance(line.get("body"), dict) else line
    fields = {**line, **body} if isinstance(body, dict) else line
    found = [part("system", _filled(system, fields))] if system and "system" not in fields else []
    if template:
        return [*found, part("user", _filled(template, fields))]
    if "system" in fields and isinstance(fields["system"], str):
        found.append(part("system", fields["system"]))
    messages = fields.get("messages")
    if isinstance(messages, list):
        for message in messages[:64]:
            if isinstance(message, dict):
                found.append(part(visible(str(message.get("role", "")))[:40], message.get("content", message)))
        return found
    for name in ("prompt", "text", "input"):
        if fields.get(name) is not None:
            return [*found, part("user" if name == "prompt" else name, fields[name])]
    return [*found, part("line", line)]


def _filled(template: str, fields: Mapping[str, Any]) -> str:
    try:
        return fill_in(template, fields)
    except MissingField:
        return template


def _shortened(value: Any, depth: int = 0) -> Any:
    """Long lists of numbers, and long base64, are cut: a person does not read them."""
    if depth > 12:
        return "…"
    if isinstance(value, dict):
        return {name: _shortened(one, depth + 1) for name, one in value.items()}
    if isinstance(value, list):
        some = [_shortened(one, depth + 1) for one in value[:_LONG_LIST]]
        return some if len(value) <= _LONG_LIST else [*some, f"… and {len(value) - _LONG_LIST:,} more"]
    if isinstance(value, str) and len(value) > SHOWN_CHARACTERS:
        return value[:SHOWN_CHARACTERS] + "…"
    return value


def _pretty(value: object) -> str:
    try:
        return orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()
    except (TypeError, ValueError):  # nested too deeply, or half a surrogate pair
        return str(value)
