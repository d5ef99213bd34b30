"""HTTP as all providers use it, and what its failures mean.

By aiohttp: httpx costs 0.4 ms of CPU more a call even on aiohttp's connections, and on its own pool, which does work
for every open connection on every call, 11 ms at 64 connections.
"""

from __future__ import annotations

import io
import os
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any, BinaryIO, Protocol

import aiohttp
from yarl import URL

from llmdo.backends.errors import (
    BadReply,
    StopRun,
    StreamError,
    Unauthorized,
)
from llmdo.backends.http.base_url import shown_url, without_route
from llmdo.backends.http.content_coding import ACCEPTED, UnreadableCoding, decoded, is_plain
from llmdo.backends.http.network_errors import PROXY_WANTS_KEY, refused_by_proxy
from llmdo.backends.http.posts import Posts
from llmdo.backends.http.resolver import Resolver
from llmdo.backends.limits.retry import CALL_TIMEOUT_S
from llmdo.settings.network import ca_file, proxy_for, tls_context

CONNECT_TIMEOUT_S = 10.0
IDLE_S = 15.0  # a kept connection is closed before usual servers and proxies close it (60 s), else a POST meets its end
# Bytes of a line of a reply's head, and its lines: services send much about policies and limits there.
_LIMITS: dict[str, Any] = {"max_line_size": 256 << 10, "max_field_size": 256 << 10, "max_headers": 1024}
_MOST_REDIRECTS = 3
MOST_REPLY = 64 << 20  # bytes of a reply, decompressed: 256 vectors of the longest kind have 20 MB
_LARGE = 1 << 20  # from here on aiohttp wants a file: it writes bytes at one go
_SLOWEST = 50_000  # bytes a second by which a file goes out: the wait for its reply is as much longer


@dataclass(frozen=True, slots=True)
class Call:
    """One HTTP request. ``url`` is sent as it is written; ``headers`` hold the key.

    ``file``: an open file that is sent, from its start, in the place of ``content``; it is never in memory whole.
    ``most``: bytes of the reply, decompressed, that are read; by default MOST_REPLY.
    """

    method: str
    url: URL
    headers: Mapping[str, str] = field(repr=False)
    content: bytes = field(default=b"", repr=False)
    file: BinaryIO | None = field(default=None, repr=False)
    most: int | None = None


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
    """Carries calls. Raises what ``network_errors`` understands, and ModelError; tries nothing again."""

    async def send(self, call: Call) -> Incoming:
        """The whole reply."""

    def open(self, call: Call) -> AbstractAsyncContextManager[Opened]:
        """The reply as it comes."""

    async def aclose(self) -> None:
        """Closes the connections."""


class Network:
    """See Transport. For one service, the one at ``base_url``; proxies and certificates: see llmdo.settings.network.

    A call follows a 307 or 308 to the same host; any other redirect is a StopRun, since the key is
    for this host. ``timeout_s``: how long a service may be silent. Raises Unauthorized for a proxy or for certificates
    that cannot be used.
    """

    def __init__(self, base_url: str, timeout_s: float = CALL_TIMEOUT_S) -> None:
        self._timeout_s = timeout_s
        self._opened: aiohttp.ClientSession | None = None
        self._posts: Posts | None = None
        try:
            self._proxy = proxy_for(base_url)
            self._tls: ssl.SSLContext | bool = tls_context() if ca_file() else True
        except ValueError as error:
            raise Unauthorized(str(error)) from error

    async def send(self, call: Call) -> Incoming:
        """See Transport."""
        if call.method == "POST" and not self._proxy and call.file is None:
            return await self._post(call)
        async with self.open(call) as opened:
            return await opened.read()

    @asynccontextmanager
    async def open(self, call: Call) -> AsyncIterator[Opened]:
        """See Transport."""
        async with self._request(call) as reply:
            pieces = _body(reply.url, reply.status, reply.headers, reply.content.iter_any(), call.most)
            yield Opened(Incoming(reply.status, reply.headers), pieces)

    async def aclose(self) -> None:
        """See Transport."""
        if self._opened:
            await self._opened.close()

    async def _post(self, call: Call) -> Incoming:
        if self._posts is None:
            self._posts = Posts(self._session(), _LIMITS)
        url = call.url
        for redirects in range(_MOST_REDIRECTS + 1):
            read = partial(_whole, url)
            status, headers, content = await self._posts.send(url, call.headers, call.content, read)
            target = _target(status, headers, url, redirects)
            if target is None:
                break
            url = target
        return Incoming(status, headers, content)

    @asynccontextmanager
    async def _request(self, call: Call) -> AsyncIterator[aiohttp.ClientResponse]:
        url, how = call.url, self._how(call)
        for redirects in range(_MOST_REDIRECTS + 1):
            async with self._session().request(
                call.method, url, headers=call.headers, data=_data(call), allow_redirects=False, **how
            ) as reply:
                if reply.status == PROXY_WANTS_KEY and self._proxy:
                    raise refused_by_proxy()
                target = _target(reply.status, reply.headers, url, redirects)
                if target is None:
                    yield reply
                    return
            url = target

    def _how(self, call: Call) -> dict[str, Any]:
        if call.file is None:
            return {}
        going_out_s = os.fstat(call.file.fileno()).st_size / _SLOWEST
        return {
            "timeout": aiohttp.ClientTimeout(sock_connect=CONNECT_TIMEOUT_S, sock_read=self._timeout_s + going_out_s)
        }

    def _session(self) -> aiohttp.ClientSession:
        if self._opened is None:  # not before: it belongs to the loop that it is opened on
            self._opened = aiohttp.ClientSession(
                # Without a limit: the engine's window is the limit.
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_S, ssl=self._tls, resolver=Resolver()),
                # total: the engine's own.
                timeout=aiohttp.ClientTimeout(sock_connect=CONNECT_TIMEOUT_S, sock_read=self._timeout_s),
                # No API needs cookies, and looking for them is a fifth of a call's CPU time.
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"accept-encoding": ACCEPTED},
                auto_decompress=False,
                proxy=self._proxy,
                **_LIMITS,
            )
        return self._opened


def _data(call: Call) -> Any:
    """What aiohttp sends, and closes then."""
    if call.file is not None:
        call.file.seek(0)
        return os.fdopen(os.dup(call.file.fileno()), "rb")
    return (io.BytesIO(call.content) if len(call.content) >= _LARGE else call.content) or None


def _target(status: int, headers: Mapping[str, str], url: URL, redirects: int) -> URL | None:
    """Where a reply redirects its call, the ``redirects``-th time; None for any other reply. Raises StopRun."""
    if not 300 <= status < 400 or not (location := headers.get("location")):
        return None
    try:
        target = url.join(URL(location, encoded=True))
    except ValueError:
        return None
    if target.host and (redirects == _MOST_REDIRECTS or not _may_follow(status, url, target)):
        raise _redirected(status, url, target)
    return target if target.host else None


def _may_follow(status: int, url: URL, target: URL) -> bool:
    """Whether the same call, with its key, may be made there; after 301 and 302 clients ask without the body."""
    return status in (307, 308) and target.origin() in (url.origin(), _secured(url).origin())


def _secured(url: URL) -> URL:
    return url.with_scheme("https").with_port(None) if url.scheme == "http" and url.is_default_port() else url


def _redirected(status: int, url: URL, target: URL) -> StopRun:
    where = shown_url(target)
    said = f"{url.host} redirects to {where} (HTTP {status}), where no key is sent unasked"
    return StopRun(
        f"{said}: set the base URL to {without_route(where)} if that is the service, else check the URL and any proxy",
        status=status,
    )


async def _whole(url: URL, status: int, headers: Mapping[str, str], content: aiohttp.StreamReader) -> bytes:
    """A body, decompressed; see _body."""
    pieces: AsyncIterator[bytes] = content.iter_any()
    if content.is_eof() and content.total_bytes <= MOST_REPLY:
        whole = content.read_nowait()
        if is_plain(whole, headers.get("content-encoding", "")):
            return whole
        pieces = _one(whole)
    return b"".join([piece async for piece in _body(url, status, headers, pieces)])


async def _one(piece: bytes) -> AsyncIterator[bytes]:
    yield piece


async def _body(
    url: URL, status: int, headers: Mapping[str, str], pieces: AsyncIterator[bytes], most: int | None = None
) -> AsyncIterator[bytes]:
    """The pieces of a body, decompressed. Raises BadReply for one without an end, and StopRun for an answer in a coding
    that was not requested; a refusal in such a coding has no words.
    """
    size, most = 0, most or MOST_REPLY
    try:
        async for piece in decoded(pieces, headers.get("content-encoding", "")):
            size += len(piece)
            if size > most:
                raise BadReply(f"the reply has over {most >> 20} MiB, and is not read to its end: ask for less")
            yield piece
    except UnreadableCoding as error:
        if 200 <= status < 300:
            raise StopRun(
                f"{url.host} compresses its replies as {error}, which was not requested and cannot be read: "
                "switch that off at the service, or at the proxy before it"
            ) from error


async def stream_bytes(incoming: Opened, model: str) -> AsyncIterator[bytes]:
    """The bytes of an opened reply. Raises StreamError where the connection breaks."""
    try:
        async for chunk in incoming.pieces:
            yield chunk
    except (aiohttp.ClientError, OSError) as error:
        raise StreamError(f"{model}: the stream broke off ({error}): ask again") from error


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
