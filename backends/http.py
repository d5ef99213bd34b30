"""HTTP as all providers use it, and what its failures mean.

By aiohttp: httpx costs 0.4 ms of CPU more a call even on aiohttp's connections, and on its own pool, which does work
for every open connection on every call, 11 ms at 64 connections.
"""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Protocol
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
from yarl import URL

from backends.errors import BadReply, CallTimeout, ConnectionFailed, StopRun

CONNECT_TIMEOUT_S = 10.0
# Workers AI ends a long generation itself after 120 to 240 s; the official SDK's 60 s is too short for big models.
READ_TIMEOUT_S = 180.0
IDLE_S = 15.0  # a kept connection is closed before usual servers and proxies close it (60 s), else a POST meets its end
MOST_REPLY = 64 << 20  # bytes of a reply, decompressed: 256 vectors of the longest kind have 20 MB
_LARGE = 1 << 20  # from here on aiohttp wants a file: it writes bytes at one go


@dataclass(frozen=True, slots=True)
class Call:
    """One HTTP request. ``url`` is sent as it is written; ``headers`` hold the key."""

    method: str
    url: URL
    headers: Mapping[str, str] = field(repr=False)
    content: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class Incoming:
    """An HTTP reply. ``headers`` are found by names in any case; ``content`` is the body, decompressed."""

    status: int
    headers: Mapping[str, str]
    content: bytes = b""

    @property
    def ok(self) -> bool:
        """Whether the status is 2xx."""
        return 200 <= self.status < 300

    @property
    def content_type(self) -> str:
        """The media type in lower case, without its parameters."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()


@dataclass(frozen=True, slots=True)
class Opened:
    """A reply whose body is still to come, in ``pieces``; the ``head`` has no content."""

    head: Incoming
    pieces: AsyncIterator[bytes]

    async def read(self) -> Incoming:
        """The reply with its whole body."""
        return Incoming(self.head.status, self.head.headers, b"".join([piece async for piece in self.pieces]))


class Transport(Protocol):
    """Carries calls. Raises what ``network_errors`` understands; follows no redirect, and tries nothing again."""

    async def send(self, call: Call) -> Incoming:
        """The whole reply."""

    def open(self, call: Call) -> AbstractAsyncContextManager[Opened]:
        """The reply as it comes."""

    async def aclose(self) -> None:
        """Closes the connections."""


class Network:
    """See Transport. For one service, the one at ``base_url``; goes by HTTPS_PROXY, HTTP_PROXY and NO_PROXY."""

    def __init__(self, base_url: str) -> None:
        self._proxy = _proxy_for(base_url)
        self._opened: aiohttp.ClientSession | None = None

    async def send(self, call: Call) -> Incoming:
        """See Transport."""
        async with self._request(call) as reply:
            pieces = _bounded(reply.content.iter_any())
            return Incoming(reply.status, reply.headers, b"".join([piece async for piece in pieces]))

    @asynccontextmanager
    async def open(self, call: Call) -> AsyncIterator[Opened]:
        """See Transport."""
        async with self._request(call) as reply:
            yield Opened(Incoming(reply.status, reply.headers), _bounded(reply.content.iter_any()))

    async def aclose(self) -> None:
        """See Transport."""
        if self._opened:
            await self._opened.close()

    def _request(self, call: Call) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        content = call.content
        return self._session().request(
            call.method,
            call.url,
            headers=call.headers,
            data=(io.BytesIO(content) if len(content) >= _LARGE else content) or None,
            allow_redirects=False,
        )

    def _session(self) -> aiohttp.ClientSession:
        if self._opened is None:  # not before: it belongs to the loop that it is opened on
            self._opened = aiohttp.ClientSession(
                # Without a limit: the engine's window is the limit.
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_S),
                # total: the engine's own.
                timeout=aiohttp.ClientTimeout(sock_connect=CONNECT_TIMEOUT_S, sock_read=READ_TIMEOUT_S),
                # No API needs cookies, and looking for them is a fifth of a call's CPU time.
                cookie_jar=aiohttp.DummyCookieJar(),
                proxy=self._proxy,
            )
        return self._opened


async def _bounded(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The pieces of a body. Raises BadReply for one without an end."""
    size = 0
    async for piece in pieces:
        size += len(piece)
        if size > MOST_REPLY:
            raise BadReply(f"the reply has over {MOST_REPLY >> 20} MiB, and is not read to its end: ask for less")
        yield piece


def check_url(provider: str, url: str) -> str:
    """The base URL in ASCII, without a slash at its end. Raises StopRun where it cannot be called at all."""
    try:
        parts = URL(url)
        if parts.scheme in ("http", "https") and parts.host:
            return str(parts).rstrip("/")
    except ValueError:
        pass
    raise StopRun(f"{url!r} is no http:// or https:// URL: correct the base URL", provider=provider)


@contextmanager
def network_errors(provider: str, url: URL | str) -> Iterator[None]:
    """Turns what aiohttp raises into CallTimeout or ConnectionFailed, which says whether anything was sent."""
    try:
        yield
    except (aiohttp.ConnectionTimeoutError, aiohttp.ClientConnectorError, aiohttp.ClientHttpProxyError) as error:
        raise ConnectionFailed(_sentence(url, "could not be reached", error), provider=provider, lost=False) from error
    except TimeoutError as error:
        text = f"{_host(url)} sent nothing for {READ_TIMEOUT_S:.0f} s: ask for fewer tokens, or stream"
        raise CallTimeout(text, provider=provider) from error
    except (aiohttp.ClientError, OSError) as error:
        raise ConnectionFailed(_sentence(url, "broke the connection off", error), provider=provider) from error


def retry_after_s(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds that Retry-After asks to wait, given as seconds or as an HTTP date (RFC 9110 10.2.3); None without one.

    ``now``: Unix time in seconds.
    """
    text = headers.get("retry-after", "").strip()
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        try:
            date = parsedate_to_datetime(text)
        except ValueError:
            return None
        seconds = (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - now
    return max(0.0, seconds) if seconds < float("inf") else None


def next_midnight_utc(now: float) -> float:
    """Unix time of the next 00:00 UTC after ``now``."""
    day = datetime.fromtimestamp(now, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return day.timestamp() + 86_400


def _proxy_for(url: str) -> str | None:
    parts = urlsplit(url)
    if not parts.hostname or proxy_bypass(parts.hostname):
        return None
    proxies = getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    return proxy if not proxy or "://" in proxy else f"http://{proxy}"


def _host(url: URL | str) -> str:
    return URL(url).host or str(url)


def _sentence(url: URL | str, what: str, error: Exception) -> str:
    detail = str(error) or type(error).__name__
    return f"{_host(url)} {what} ({detail[:200]}): check the network and the base URL if it stays so"
