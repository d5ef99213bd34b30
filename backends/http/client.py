"""HTTP as all providers use it, and what its failures mean.

By aiohttp: httpx costs 0.4 ms of CPU more a call even on aiohttp's connections, and on its own pool, which does work
for every open connection on every call, 11 ms at 64 connections.
"""

from __future__ import annotations

import io
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Protocol

import aiohttp
from yarl import URL

from llmdo.backends.errors import (
    BadReply,
    CallTimeout,
    ConnectionFailed,
    ModelError,
    StopRun,
    StreamError,
    Unauthorized,
)
from llmdo.backends.http.base_url import shown_url, without_route
from llmdo.backends.http.content_coding import ACCEPTED, UnreadableCoding, decoded
from llmdo.backends.http.resolver import Resolver
from llmdo.backends.limits.retry import CALL_TIMEOUT_S
from llmdo.settings.network import CA_REMEDY, ca_file, proxy_for, tls_context

CONNECT_TIMEOUT_S = 10.0
PROXY_WANTS_KEY = 407
IDLE_S = 15.0  # a kept connection is closed before usual servers and proxies close it (60 s), else a POST meets its end
# Bytes of a line of a reply's head, and its lines: services send much about policies and limits there.
_LONGEST_HEADER, _MOST_HEADERS = 256 << 10, 1024
_MOST_REDIRECTS = 3
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
        try:
            self._proxy = proxy_for(base_url)
            self._tls: ssl.SSLContext | bool = tls_context() if ca_file() else True
        except ValueError as error:
            raise Unauthorized(str(error)) from error

    async def send(self, call: Call) -> Incoming:
        """See Transport."""
        async with self._request(call) as reply:
            return Incoming(reply.status, reply.headers, b"".join([piece async for piece in _body(reply)]))

    @asynccontextmanager
    async def open(self, call: Call) -> AsyncIterator[Opened]:
        """See Transport."""
        async with self._request(call) as reply:
            yield Opened(Incoming(reply.status, reply.headers), _body(reply))

    async def aclose(self) -> None:
        """See Transport."""
        if self._opened:
            await self._opened.close()

    @asynccontextmanager
    async def _request(self, call: Call) -> AsyncIterator[aiohttp.ClientResponse]:
        content, url = call.content, call.url
        for redirects in range(_MOST_REDIRECTS + 1):
            body = (io.BytesIO(content) if len(content) >= _LARGE else content) or None
            async with self._session().request(
                call.method, url, headers=call.headers, data=body, allow_redirects=False
            ) as reply:
                if reply.status == PROXY_WANTS_KEY and self._proxy:
                    raise _refused_by_proxy()
                target = _redirect(reply, url)
                if target is None:
                    yield reply
                    return
                if redirects == _MOST_REDIRECTS or not _may_follow(reply.status, url, target):
                    raise _redirected(reply.status, url, target)
            url = target

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
                max_line_size=_LONGEST_HEADER,
                max_field_size=_LONGEST_HEADER,
                max_headers=_MOST_HEADERS,
            )
        return self._opened


def _redirect(reply: aiohttp.ClientResponse, url: URL) -> URL | None:
    """Where a reply sends its call; None for any other reply."""
    location = reply.headers.get("location", "")
    if not (300 <= reply.status < 400 and location):
        return None
    try:
        target = url.join(URL(location, encoded=True))
    except ValueError:
        return None
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


def _refused_by_proxy() -> Unauthorized:
    text = "the proxy wants a user and a password: write HTTPS_PROXY or HTTP_PROXY as http://USER:PASSWORD@HOST:PORT"
    return Unauthorized(text, status=PROXY_WANTS_KEY)


async def _body(reply: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """The pieces of a body, decompressed. Raises BadReply for one without an end, and StopRun for an answer in a coding
    that was not requested; a refusal in such a coding has no words.
    """
    size, codings = 0, reply.headers.get("content-encoding", "")
    try:
        async for piece in decoded(reply.content.iter_any(), codings):
            size += len(piece)
            if size > MOST_REPLY:
                raise BadReply(f"the reply has over {MOST_REPLY >> 20} MiB, and is not read to its end: ask for less")
            yield piece
    except UnreadableCoding as error:
        if 200 <= reply.status < 300:
            raise StopRun(
                f"{reply.url.host} compresses its replies as {error}, which was not requested and cannot be read: "
                "switch that off at the service, or at the proxy before it"
            ) from error


async def stream_bytes(incoming: Opened, model: str) -> AsyncIterator[bytes]:
    """The bytes of an opened reply. Raises StreamError where the connection breaks."""
    try:
        async for chunk in incoming.pieces:
            yield chunk
    except (aiohttp.ClientError, OSError) as error:
        raise StreamError(f"{model}: the stream broke off ({error}): ask again") from error


@contextmanager
def network_errors(url: URL | str) -> Iterator[None]:
    """Turns what aiohttp raises into CallTimeout or ConnectionFailed, which states whether anything was sent; and into
    StopRun where no call can get through: a certificate that is not trusted, a proxy that wants a password.
    """
    try:
        yield
    except aiohttp.ClientConnectorCertificateError as error:
        raise _untrusted(url, error) from error
    except aiohttp.ClientHttpProxyError as error:
        raise _not_by_proxy(url, error) from error
    except aiohttp.ClientProxyConnectionError as error:
        what = f"the proxy {error.host}:{error.port}, by which {_host(url)} is reached, does not answer"
        remedy = "correct HTTPS_PROXY, HTTP_PROXY or ALL_PROXY, or name the host in NO_PROXY"
        raise ConnectionFailed(f"{what} ({error.strerror}): {remedy}", lost=False) from error
    except (aiohttp.ConnectionTimeoutError, aiohttp.ClientConnectorError) as error:
        if "WRONG_VERSION_NUMBER" in str(error):
            text = f"{_host(url)} does not speak TLS there: write http:// in the base URL, or name another port"
            raise StopRun(text) from error
        raise ConnectionFailed(_sentence(url, "could not be reached", error), lost=False) from error
    except TimeoutError as error:
        text = (
            f"{_host(url)} sent nothing for as long as a call may take: raise --call-timeout, or ask for fewer tokens"
        )
        raise CallTimeout(text) from error
    except (aiohttp.ClientError, OSError) as error:
        # A kept connection that was closed meanwhile: the request did not go out whole, and cannot be billed.
        unsent = isinstance(error, aiohttp.ClientConnectionResetError) and "Cannot write" in str(error)
        text = _sentence(url, "broke the connection off", error)
        raise ConnectionFailed(text, lost=False if unsent else None) from error


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


def _untrusted(url: URL | str, error: aiohttp.ClientConnectorCertificateError) -> StopRun:
    inner = error.certificate_error
    why = getattr(inner, "verify_message", "") or str(inner)
    return StopRun(f"the certificate of {_host(url)} is not trusted ({why[:200]}): {CA_REMEDY}")


def _not_by_proxy(url: URL | str, error: aiohttp.ClientHttpProxyError) -> ModelError:
    if error.status == PROXY_WANTS_KEY:
        return _refused_by_proxy()
    text = f"the proxy does not connect to {_host(url)} (HTTP {error.status} {error.message[:200]})"
    remedy = "check that it may, or name the host in NO_PROXY"
    return ConnectionFailed(f"{text}: {remedy}", lost=False)


def _host(url: URL | str) -> str:
    return URL(url).host or str(url)


def _sentence(url: URL | str, what: str, error: Exception) -> str:
    detail = str(error) or type(error).__name__
    return f"{_host(url)} {what} ({detail[:200]}): check the network and the base URL if it stays so"
