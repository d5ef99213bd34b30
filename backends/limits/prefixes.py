"""Beginnings that many requests share, and that services keep in their caches: instructions, tools, a schema.

What has such a beginning is sent with a key that leads it to where the cache is, and the first call goes ahead alone:
else all calls in flight would write the cache, at up to 1.25 times the input's price, and none would read it.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from itertools import takewhile
from typing import Any

from pydantic_core import to_json

from llmdo.backends.limits.sizes import CHARACTERS_A_TOKEN
from llmdo.backends.requests import ChatRequest, RawRequest, Request

# Tokens of the shortest beginning that OpenAI caches: developers.openai.com/api/docs/guides/prompt-caching.
CACHED_FROM = 1024
_SYSTEM = frozenset({"system", "developer"})
_MOST = 1024  # beginnings that are remembered
# Providers whose backend marks only what has come before: there the second call writes the cache.
_SECOND_WRITES = frozenset({"anthropic"})


def prefix_key(request: Request) -> str:
    """Names what a request begins with, for its model; "" where that is shorter than caches keep."""
    if isinstance(request, ChatRequest):
        turns = takewhile(lambda message: message.role in _SYSTEM, request.messages)
        system: list[Any] = [message.content for message in turns]
        around = [request.parameters.get(name) for name in ("tools", "functions", "response_format")]
    elif isinstance(request, RawRequest) and request.path == "responses":
        given = request.input.get("input")
        items = takewhile(_is_system, given if isinstance(given, list) else ())
        system = [request.input.get("instructions"), *items]
        around = [request.input.get(name) for name in ("tools", "text")]
    else:
        return ""
    if not any(system) and not any(around):
        return ""
    try:
        shared = to_json([request.model, around, system])
    except ValueError:  # the call will say so
        return ""
    return hashlib.sha256(shared).hexdigest()[:32] if len(shared) >= CACHED_FROM * CHARACTERS_A_TOKEN else ""


def _is_system(item: Any) -> bool:
    return isinstance(item, Mapping) and item.get("role") in _SYSTEM


class FirstAhead:
    """Holds calls back while the first one with the same long beginning is made; used on one event loop.

    However that one ends, the others are let go. A call that somebody listens to is not held back.

    Args:
        pays: whether a provider's model is known to cache, and to charge less for it over two calls. It may block.
    """

    def __init__(self, pays: Callable[[str, str], bool]) -> None:
        self._pays = pays
        self._known: dict[tuple[str, str], asyncio.Future[bool]] = {}
        self._seen: OrderedDict[tuple[str, str], int] = OrderedDict()
        self._ahead: dict[tuple[str, str], asyncio.Event] = {}
        self._leaders: dict[int, asyncio.Event] = {}  # by the request's id(): it lives as long as its call

    async def wait(self, provider: str, request: Request) -> None:
        """Returns when the call may be made; call ``ended`` then, however it ends."""
        if (isinstance(request, ChatRequest) and request.listen is not None) or not (key := prefix_key(request)):
            return
        if not await self._saves(provider, request.model):
            return
        beginning = provider, key
        number = self._seen[beginning] = self._seen.pop(beginning, -1) + 1
        if len(self._seen) > _MOST:
            self._ahead.pop(self._seen.popitem(last=False)[0], None)
        if number == (provider in _SECOND_WRITES):
            self._ahead[beginning] = self._leaders[id(request)] = asyncio.Event()
        elif (first := self._ahead.get(beginning)) is not None:
            await first.wait()

    def ended(self, request: Request) -> None:
        """Lets the others go if this call was ahead."""
        first = self._leaders.pop(id(request), None)
        if first is not None:
            first.set()

    async def _saves(self, provider: str, model: str) -> bool:
        asked = self._known.get((provider, model))
        if asked is None:
            asked = asyncio.ensure_future(asyncio.to_thread(self._pays, provider, model))
            self._known[provider, model] = asked
        return asked.result() if asked.done() else await asyncio.shield(asked)
