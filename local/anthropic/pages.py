"""Lists as Anthropic pages them: ``after_id`` or ``before_id``, at most ``limit``."""

from __future__ import annotations

from typing import Any

from llmdo.local.wire import AnthropicRefused, HttpCall

_MOST, _USUAL = 1000, 20


def id_page(objects: list[Any], call: HttpCall) -> dict[str, Any]:
    """The page that a call asks for, of objects in their order. Raises AnthropicRefused."""
    limit = call.parameter("limit") or str(_USUAL)
    after, before = call.parameter("after_id"), call.parameter("before_id")
    if not limit.isdecimal() or not 1 <= int(limit) <= _MOST:
        raise AnthropicRefused(400, f"limit: Input should be from 1 to {_MOST}")
    if after and before:
        raise AnthropicRefused(400, "Only one of after_id and before_id can be given")
    ids = [one["id"] for one in objects]
    if (cursor := after or before) and cursor not in ids:
        raise AnthropicRefused(400, f"{'after_id' if after else 'before_id'}: no object has the id {cursor}")
    if before:
        end = ids.index(before)
        start = max(0, end - int(limit))
        more = start > 0
    else:
        start = ids.index(after) + 1 if after else 0
        end = start + int(limit)
        more = end < len(objects)
    shown = objects[start:end]
    first, last = (shown[0]["id"], shown[-1]["id"]) if shown else (None, None)
    return {"data": shown, "has_more": more, "first_id": first, "last_id": last}
