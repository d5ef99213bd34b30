"""The body of a pulled message: base64, JSON or text, by its content type or by what senders really do.

Source: developers.cloudflare.com/queues/configuration/pull-consumers, "Content types". Its sample contradicts its text
("json" bodies are base64, but the sample's is plain), so the header is tried first and the other readings after it.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any, NamedTuple

from pydantic_core import from_json


class Decoded(NamedTuple):
    """A body and whether it could be decoded; if not, it is as it came."""

    body: Any
    decodable: bool


def decode_body(raw: Any, content_type: str) -> Decoded:
    """Decodes a body as it came in the pull's reply. Never raises.

    ``json`` and unknown types become the JSON value; ``text`` becomes text and ``bytes`` bytes, unless they hold a JSON
    object or array; only Workers can read ``v8``. A JSON string that holds an object or array is decoded once more.
    """
    if content_type == "v8" or raw is None:
        return Decoded(raw, False)
    if not isinstance(raw, str):
        return Decoded(raw, True)
    if content_type == "text":
        return Decoded(_structure(raw, raw), True)
    data = _base64(raw)
    if content_type == "bytes" and data is not None:
        return Decoded(_structure(data, data), True)
    for text in (data, raw):
        value = None if text is None else _json(text)
        if value is not None:
            inner = value.body
            return Decoded(_structure(inner, inner) if isinstance(inner, str) else inner, True)
    return Decoded(raw, False)


def _structure(text: str | bytes, otherwise: Any) -> Any:
    """The JSON object or array that the text, or its base64, holds; else ``otherwise``."""
    for candidate in (text, _base64(text)):
        value = None if candidate is None else _json(candidate)
        if value is not None and isinstance(value.body, dict | list):
            return value.body
    return otherwise


def _json(text: str | bytes) -> Decoded | None:
    try:
        return Decoded(from_json(text), True)
    except ValueError:
        return None


def _base64(text: str | bytes) -> bytes | None:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
