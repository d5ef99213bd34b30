"""POST requests, written straight to the connections of an aiohttp session.

aiohttp finds the host, connects, does TLS, keeps connections and parses replies. What it makes for each request besides
(a request, a writer, a task that writes, a response) is a quarter of the engine's CPU time, and of no use for a body
that is there as a whole.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.client_reqrep import ConnectionKey
from aiohttp.http import HttpProcessingError, RawResponseMessage
from yarl import URL

_HEADS = 256  # that are remembered: there are as many as models, unless each call has headers of its own
_SWITCHING = 101

# Reads a body, by the status and headers of its reply.
ReadBody = Callable[[int, Mapping[str, str], aiohttp.StreamReader], Awaitable[bytes]]


class Posts:
    """Posts by the connections of a session without a proxy; follows no redirect, and tries nothing again.

    Args:
        session: its connector, its timeouts and its headers are used.
        limits: of a reply's head, as ClientSession takes them.
    """

    def __init__(self, session: aiohttp.ClientSession, limits: Mapping[str, Any]) -> None:
        assert session.connector is not None  # noqa: S101  it is open
        self._session, self._connector = session, session.connector
        self._limits = limits
        self._heads: dict[tuple[Any, ...], tuple[aiohttp.ClientRequest, bytes]] = {}

    async def send(
        self, url: URL, headers: Mapping[str, str], content: bytes, read: ReadBody
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Status, headers, and what ``read`` makes of the body. Raises what ClientSession.post raises."""
        request, head = self._head(url, headers)
        connection = await self._connect(request)
        try:
            protocol = connection.protocol
            assert protocol is not None  # noqa: S101  it was just connected
            protocol.set_response_params(
                read_until_eof=True, auto_decompress=False, read_timeout=self._session.timeout.sock_read, **self._limits
            )
            transport = protocol.transport
            if transport is None or transport.is_closing():
                raise aiohttp.ClientConnectionResetError("Cannot write to closing transport")
            transport.write(b"%scontent-length: %d\r\n\r\n%s" % (head, len(content), content))
            protocol.start_timeout()
            message, body = await _reply(protocol, request)
            found = await read(message.code, message.headers, body)
        except BaseException:
            connection.close()
            raise
        if transport.get_write_buffer_size():  # the reply did not wait for the whole request
            connection.close()
        connection.release()
        return message.code, message.headers, found

    async def _connect(self, request: aiohttp.ClientRequest) -> aiohttp.connector.Connection:
        try:
            return await self._connector.connect(request, [], self._session.timeout)
        except TimeoutError as error:
            raise aiohttp.ConnectionTimeoutError(f"Connection timeout to host {request.url}") from error

    def _head(self, url: URL, headers: Mapping[str, str]) -> tuple[aiohttp.ClientRequest, bytes]:
        """What aiohttp would send, up to the length; and the request by which its connector finds a connection."""
        key = (url, *headers.items())
        found = self._heads.get(key)
        if found is None:
            own = {**self._session.headers, **headers}
            request = _Request("POST", url, headers=own, loop=asyncio.get_running_loop(), session=self._session)
            request.headers.popall("content-length", None)
            lines = [
                f"POST {url.raw_path_qs} HTTP/1.1",
                *(f"{name}: {value}" for name, value in request.headers.items()),
            ]
            if any(mark in line for line in lines for mark in "\r\n\0"):
                raise ValueError("a header holds a line break: correct the settings that it is made of")
            if len(self._heads) >= _HEADS:
                self._heads.clear()
            found = self._heads[key] = request, "".join(f"{line}\r\n" for line in lines).encode()
        return found


class _Request(aiohttp.ClientRequest):
    """One that asks for a connection many times."""

    @functools.cached_property
    def connection_key(self) -> ConnectionKey:
        """Of aiohttp's, which makes it each time."""
        return super().connection_key


async def _reply(
    protocol: ResponseHandler, request: aiohttp.ClientRequest
) -> tuple[RawResponseMessage, aiohttp.StreamReader]:
    """The final reply; those before it (102, 103) say nothing."""
    while True:
        try:
            message, body = await protocol.read()
        except HttpProcessingError as error:
            raise aiohttp.ClientResponseError(
                request.request_info, (), status=error.code, message=error.message, headers=error.headers
            ) from error
        if not 100 <= message.code < 200 or message.code == _SWITCHING:
            return message, body
