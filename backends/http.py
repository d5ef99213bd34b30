"""The HTTP client that all providers use, and what its failures mean.

httpx's API on aiohttp's transport: httpx's own connection pool does work for every open connection on every call, which
costs 11 ms of CPU a call at 64 connections; this transport costs 0.45 ms.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

import aiohttp
import httpx
from httpx_aiohttp import HttpxAiohttpClient

from backends.errors import CallTimeout, ConnectionFailed, StopRun

CONNECTIONS = 512  # above any sensible --concurrency, so that only the engine's window limits
CONNECT_TIMEOUT_S = 10.0
# Workers AI ends a long generation itself after 120 to 240 s; the official SDK's 60 s is too short for big models.
READ_TIMEOUT_S = 180.0
IDLE_S = 15.0  # a kept connection is closed before usual servers and proxies close it (60 s), else a POST meets its end


class _NoCookies(httpx.Cookies):
    def extract_cookies(self, response: httpx.Response) -> None:
        """Keeps none: no API needs them, and looking for them is a fifth of a call's CPU time."""


class _Client(HttpxAiohttpClient):
    @property  # type: ignore[misc] # httpx's has a setter; nobody sets this one
    def cookies(self) -> httpx.Cookies:
        """Always empty."""
        return _NO_COOKIES


_NO_COOKIES = _NoCookies()


def open_client(headers: Mapping[str, str], transport: httpx.AsyncBaseTransport | None = None) -> httpx.AsyncClient:
    """A client without retries of its own; honours HTTPS_PROXY. ``transport`` replaces the network in tests."""
    return _Client(
        headers=dict(headers),
        transport=transport,
        timeout=httpx.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S, pool=None),
        limits=httpx.Limits(max_connections=CONNECTIONS, keepalive_expiry=IDLE_S),
    )


def check_url(provider: str, url: str) -> None:
    """Raises StopRun where a base URL cannot be called at all."""
    try:
        parts = httpx.URL(url)
        usable = parts.scheme in ("http", "https") and bool(parts.host)
    except httpx.InvalidURL:
        usable = False
    if not usable:
        raise StopRun(f"{url!r} is no http:// or https:// URL: correct the base URL", provider=provider)


@contextmanager
def network_errors(provider: str, url: str) -> Iterator[None]:
    """Turns what httpx and aiohttp raise into CallTimeout or ConnectionFailed."""
    try:
        yield
    except httpx.ConnectTimeout as error:
        # httpx-aiohttp raises this for a connection that broke, too.
        raise ConnectionFailed(_sentence(url, "could not be reached", error), provider=provider) from error
    except httpx.TimeoutException as error:
        text = f"{_host(url)} sent nothing for {READ_TIMEOUT_S:.0f} s: ask for fewer tokens, or stream"
        raise CallTimeout(text, provider=provider) from error
    except (httpx.RequestError, aiohttp.ClientError, OSError) as error:
        # aiohttp.ClientError: httpx-aiohttp lets some through, such as a reply that is no HTTP.
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


def _host(url: str) -> str:
    return urlsplit(url).hostname or url


def _sentence(url: str, what: str, error: Exception) -> str:
    detail = str(error) or type(error).__name__
    return f"{_host(url)} {what} ({detail[:200]}): check the network and the base URL if it stays so"
