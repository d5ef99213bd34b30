"""A stand-in for the network: calls go to a handler that speaks httpx's requests and responses."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import httpx

from llmdo.backends.http.client import Call, Incoming, Opened


class Wire:
    """See Transport. What the handler raises is raised to the caller: aiohttp's exceptions, as a network would."""

    def __init__(self, handler: Callable[[httpx.Request], httpx.Response]) -> None:
        self._handler = handler

    async def send(self, call: Call) -> Incoming:
        async with self.open(call) as opened:
            return await opened.read()

    @asynccontextmanager
    async def open(self, call: Call) -> AsyncIterator[Opened]:
        content = call.content
        if call.file is not None:
            call.file.seek(0)
            content = call.file.read()
        request = httpx.Request(call.method, str(call.url), headers=dict(call.headers), content=content)
        response = self._handler(request)
        try:
            yield Opened(Incoming(response.status_code, response.headers), response.aiter_bytes())
        finally:
            await response.aclose()

    async def aclose(self) -> None:
        pass
