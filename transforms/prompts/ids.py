"""What a line calls itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic_core import to_json


def ids_of(document: Mapping[str, Any]) -> tuple[Any, str | None]:
    """A line's ``id`` as it stands there, and its ``custom_id`` as text, as OpenAI's API has it.

    Each stands for the other where that is missing or null; both are None where both are.

    >>> ids_of({"id": 7}), ids_of({"custom_id": "a", "id": None})
    ((7, '7'), ('a', 'a'))
    """
    own, custom = document.get("id"), document.get("custom_id")
    named = own if custom is None else custom
    text = named if named is None or isinstance(named, str) else to_json(named).decode()
    return (custom if own is None else own), text
