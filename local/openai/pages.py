"""Lists as OpenAI pages them: ``after`` an id, at most ``limit``."""

from __future__ import annotations

from typing import Any

from llmdo.local.wire import HttpCall, OpenAIRefused


def cursor_page(objects: list[dict[str, Any]], call: HttpCall, default: int, most: int) -> dict[str, Any]:
    """The page that a call asks for, of objects in their order. Raises OpenAIRefused."""
    asked, after = call.parameter("limit") or str(default), call.parameter("after")
    if not asked.isdecimal() or not 1 <= int(asked) <= most:
        message = f"Invalid 'limit': expected an integer from 1 to {most}, but got {asked} instead."
        raise OpenAIRefused(400, message, "invalid_value", "limit")
    start = 0
    if after:
        ids = [one["id"] for one in objects]
        if after not in ids:
            raise OpenAIRefused(400, f"No object found with id '{after}'.", "invalid_value", "after")
        start = ids.index(after) + 1
    shown = objects[start : start + int(asked)]
    return {
        "object": "list",
        "data": shown,
        "first_id": shown[0]["id"] if shown else None,
        "last_id": shown[-1]["id"] if shown else None,
        "has_more": start + len(shown) < len(objects),
    }
