"""Gemini's schemas, a part of OpenAPI's, as JSON Schemas. Source: ai.google.dev/api/caching#Schema."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmdo.transforms.other_apis.gemini_contents import camel
from llmdo.transforms.other_apis.translation import fields_at, items_at

# Counts may be written as text, as JSON has numbers of 64 bits.
_DIGITS = 19
_COUNTS = frozenset("maxItems minItems maxProperties minProperties maxLength minLength".split())
# Keywords that hold a schema, several by their names, and several in a row.
_INNER = frozenset({"items", "additionalProperties", "not"})
_NAMED = {"properties": "properties", "defs": "$defs", "$defs": "$defs"}
_LISTED = frozenset({"anyOf", "oneOf", "allOf", "prefixItems"})
# What JSON Schema says otherwise.
_WRITTEN_ELSE = frozenset({"type", "nullable", "propertyOrdering"})


def json_schema(given: object, place: str) -> dict[str, Any]:
    """A schema with types in capitals, ``nullable`` and so on; other keywords stay. Raises Untranslatable.

    >>> json_schema({"type": "OBJECT", "properties": {"a": {"type": "STRING", "nullable": True}}}, "schema")
    {'type': 'object', 'properties': {'a': {'type': ['string', 'null']}}}
    """
    schema = camel(fields_at(given, place))
    made: dict[str, Any] = {}
    if schema.get("type", "TYPE_UNSPECIFIED") != "TYPE_UNSPECIFIED":
        made["type"] = _type(schema["type"], nullable=schema.get("nullable") is True)
    for name, value in schema.items():
        inner = f"{place}.{name}"
        if name in _COUNTS:
            written = isinstance(value, str) and value.isdecimal() and len(value) <= _DIGITS
            made[name] = int(value) if written else value
        elif name in _INNER and isinstance(value, dict):
            made[name] = json_schema(value, inner)
        elif name in _NAMED:
            named = fields_at(value, inner).items()
            made[_NAMED[name]] = {key: json_schema(one, f"{inner}.{key}") for key, one in named}
        elif name in _LISTED:
            listed = enumerate(items_at(value, inner))
            made[name] = [json_schema(one, f"{inner}.{at}") for at, one in listed]
        elif name in ("ref", "$ref"):
            made["$ref"] = str(value).replace("#/defs/", "#/$defs/")
        elif name == "example":
            made["examples"] = [value]
        elif name not in _WRITTEN_ELSE:
            made[name] = value
    made = _in_order(made, schema.get("propertyOrdering"))
    return _with_null(made) if schema.get("nullable") is True else made


def _in_order(schema: dict[str, Any], wanted: object) -> dict[str, Any]:
    """Models write the properties of an answer in the order of its schema."""
    properties = schema.get("properties")
    if properties is None or not isinstance(wanted, list):
        return schema
    first = [name for name in wanted if isinstance(name, str) and name in properties]
    return {**schema, "properties": {name: properties[name] for name in dict.fromkeys((*first, *properties))}}


def _type(given: Any, *, nullable: bool) -> Any:
    if isinstance(given, list):
        return [str(one).lower() for one in given]
    name = str(given).lower()
    return [name, "null"] if nullable and name != "null" else name


def _with_null(schema: Mapping[str, Any]) -> dict[str, Any]:
    """What may be null by ``nullable`` may be so by its other keywords, too."""
    made = dict(schema)
    if isinstance(made.get("enum"), list) and None not in made["enum"]:
        made["enum"] = [*made["enum"], None]
    if "anyOf" in made and "type" not in made:
        made["anyOf"] = [*made["anyOf"], {"type": "null"}]
    return made
