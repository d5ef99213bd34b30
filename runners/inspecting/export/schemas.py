"""What a JSON Schema says about answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

DEEPEST = 12  # levels of a schema that are looked at: one may refer to itself


def properties_of(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """The properties of the objects that a schema describes, by name; none for other answers."""
    found: Any = schema
    for _ in range(DEEPEST):
        if not isinstance(found, Mapping) or not isinstance(found.get("$ref"), str):
            break
        found = referred(found["$ref"], schema)
    properties = found.get("properties") if isinstance(found, Mapping) else None
    return properties if isinstance(properties, Mapping) else {}


def referred(reference: str, root: Mapping[str, Any]) -> Any:
    """What ``#/$defs/name`` names in a schema, or None."""
    found: Any = root
    for part in reference.removeprefix("#").strip("/").split("/"):
        if part:
            name = part.replace("~1", "/").replace("~0", "~")
            found = found.get(name) if isinstance(found, Mapping) else None
    return found
