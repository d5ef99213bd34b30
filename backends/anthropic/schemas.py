"""JSON Schemas as Anthropic's service takes them for answers: without the keywords that it does not know.

Source: platform.claude.com/docs/en/build-with-claude/structured-outputs, and what Anthropic's own client makes of a
schema. What is taken away stands in the description, and answers are checked against the whole schema.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic_core import to_json

_KEPT = frozenset("$ref allOf anyOf const description enum required title type".split())
_FORMATS = frozenset("date date-time duration email hostname ipv4 ipv6 time uri uuid".split())
_LISTS = ("anyOf", "allOf")
_SILENT = frozenset("$schema additionalProperties default examples nullable strict".split())
_NAMED = ("properties", "$defs", "definitions")


def native_schema(schema: Any) -> Any:
    """A schema that the service takes; None where there is none, since an object may have fields of any name."""
    try:
        return _native(schema)
    except LookupError:
        return None


def _native(schema: Any) -> Any:
    if not isinstance(schema, Mapping):
        return schema
    found: dict[str, Any] = {}
    others: dict[str, Any] = {}
    for name, value in schema.items():
        if name in _NAMED and isinstance(value, Mapping):
            found[name] = {key: _native(one) for key, one in value.items()}
        elif name in (*_LISTS, "oneOf") and isinstance(value, list):
            found["anyOf" if name == "oneOf" else name] = [_native(one) for one in value]
        elif name == "items" and isinstance(value, Mapping):
            found[name] = _native(value)
        elif name in _KEPT or (name == "format" and value in _FORMATS) or (name == "minItems" and value in (0, 1)):
            found[name] = value
        elif name not in _SILENT:
            others[name] = value
    kinds = found["type"] if isinstance(found.get("type"), list) else [found.get("type")]
    if "object" in kinds or "properties" in found:
        if schema.get("additionalProperties", not found.get("properties")):
            raise LookupError
        found["additionalProperties"] = False
    if schema.get("nullable") is True and "type" in found and "null" not in kinds:
        found["type"] = [*kinds, "null"]
    if others:
        limits = to_json(others, fallback=str).decode()
        found["description"] = f"{found['description']}\n\n{limits}" if found.get("description") else limits
    return found
