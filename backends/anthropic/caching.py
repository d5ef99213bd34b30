"""Marks the beginning that many requests share, tools and instructions, so that the service keeps it in its cache.

Source: platform.claude.com/docs/en/build-with-claude/prompt-caching: what is written costs 1.25 times as much as other
input, what is read a tenth. So a beginning is marked once it has come a second time, and only where it is long enough
for the service to keep it. What a request marks by itself is left as it is.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from pydantic_core import to_json

from llmdo.backends.anthropic.models import traits_of
from llmdo.backends.limits.sizes import CHARACTERS_A_TOKEN

_MOST = 1024  # beginnings that are remembered
_MARK = {"cache_control": {"type": "ephemeral"}}
_MARKED = b'"cache_control"'


class SharedPrefixes:
    """The beginnings of the requests that one backend has sent."""

    def __init__(self) -> None:
        self._seen: OrderedDict[bytes, None] = OrderedDict()

    def marked(self, body: dict[str, Any], parameters: Mapping[str, Any]) -> dict[str, Any]:
        """The body of a request, with a mark where its beginning has come before.

        ``parameters``: where they have ``cache_control``, for all of the request or false, nothing else is marked.
        """
        if parameters.get("cache_control") is not None:
            return body
        shared = _prefix(body)
        if shared is None:
            return body
        key = hashlib.sha256(shared).digest()
        known = key in self._seen
        self._seen[key] = None
        self._seen.move_to_end(key)
        if len(self._seen) > _MOST:
            self._seen.popitem(last=False)
        return _with_mark(body) if known else body


def _prefix(body: Mapping[str, Any]) -> bytes | None:
    """What stands before the messages; None where it is too short for the cache, or something is marked already."""
    system, tools = body.get("system"), body.get("tools")
    if not system and not tools:
        return None
    shared = to_json([body["model"], tools, system])
    if len(shared) < traits_of(body["model"]).cached_from * CHARACTERS_A_TOKEN:
        return None
    return None if _MARKED in shared or _MARKED in to_json(body["messages"]) else shared


def _with_mark(body: dict[str, Any]) -> dict[str, Any]:
    if not (system := body.get("system")):
        *others, last = body["tools"]
        return {**body, "tools": [*others, {**last, **_MARK}]}
    *blocks, end = system if isinstance(system, list) else [{"type": "text", "text": system}]
    return {**body, "system": [*blocks, {**end, **_MARK}]}
