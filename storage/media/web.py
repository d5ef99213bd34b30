"""Reads objects from web servers: exactly the address that is named, without redirects, within a bound of bytes."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import httpx

from llmdo.settings.network import CA_REMEDY, httpx_settings, is_untrusted
from llmdo.storage.errors import (
    AccessDenied,
    InvalidLocation,
    ObjectChanged,
    ObjectNotFound,
    StorageError,
    StorageUnavailable,
    TooManyBytes,
)

_TIMEOUT_S, _WHOLE_S = 30.0, 300.0  # without a byte, and of a whole reply
_HEADERS = {"accept-encoding": "identity", "user-agent": "llmdo"}
# Servers that do not do HEAD answer so.
_NO_HEAD = frozenset({400, 403, 405, 501})
_BY_CONTENT = "sha256-"


class WebObjects:
    """Objects at URLs. Thread-safe; a client for each origin, which is reached as settings of proxies say."""

    def __init__(self) -> None:
        self._clients: dict[str, httpx.Client] = {}
        self._lock = threading.Lock()

    def look(self, url: str, limit: int) -> tuple[str, int]:
        """The version that is there, and its size. Where no header tells them, all bytes are read, and none is kept.

        Raises ObjectNotFound, TooManyBytes and other StorageErrors.
        """
        with self._errors(url):
            reply = self._client(url).head(url, headers=_HEADERS)
        if reply.status_code not in _NO_HEAD:
            _check(url, reply)
            version, length = _version(reply.headers), _length(reply.headers)
            if version and length is not None:
                _check_size(url, length, limit)
                return version, length
        size, content = 0, hashlib.sha256()
        with self._get(url, limit) as (version, chunks):
            for chunk in () if version else chunks:
                size += len(chunk)
                content.update(chunk)
            return (version, limit) if version else (_BY_CONTENT + content.hexdigest(), size)

    def read(self, url: str, version: str, limit: int) -> bytes:
        """Exactly this version. Raises ObjectChanged, and as ``look``."""
        with self._get(url, limit) as (found, chunks):
            body = b"".join(chunks)
        if found != version and _BY_CONTENT + hashlib.sha256(body).hexdigest() != version:
            raise ObjectChanged(f"{_named(url)}: another version is there by now; read it again")
        return body

    @contextmanager
    def _get(self, url: str, limit: int) -> Iterator[tuple[str, Iterator[bytes]]]:
        """The version that a reply's headers name, or "", and its bytes as they come."""
        with self._errors(url), self._client(url).stream("GET", url, headers=_HEADERS) as reply:
            _check(url, reply)
            _check_size(url, _length(reply.headers) or 0, limit)
            yield _version(reply.headers), _bounded(url, reply, limit)

    def _client(self, url: str) -> httpx.Client:
        origin = "/".join(url.split("/")[:3])
        with self._lock:
            if origin not in self._clients:
                try:
                    settings = httpx_settings(url)
                except ValueError as error:
                    raise InvalidLocation(f"{_named(url)}: {error}") from error
                self._clients[origin] = httpx.Client(timeout=_TIMEOUT_S, follow_redirects=False, **settings)
            return self._clients[origin]

    @contextmanager
    def _errors(self, url: str) -> Iterator[None]:
        try:
            yield
        except (httpx.TransportError, OSError) as error:
            why = CA_REMEDY if is_untrusted(str(error)) else "check the network and the address"
            raise StorageUnavailable(f"{_named(url)}: cannot be reached; {why} ({type(error).__name__})") from error
        except (httpx.InvalidURL, httpx.HTTPError) as error:
            raise InvalidLocation(f"{_named(url)}: cannot be asked for ({type(error).__name__})") from error


def _check(url: str, reply: httpx.Response) -> None:
    """Raises StorageError unless the reply is the object."""
    status, name = reply.status_code, _named(url)
    if status == 200:
        if reply.headers.get("content-encoding", "identity") != "identity":
            raise StorageError(f"{name}: the server sends it compressed, unasked; serve it as it is")
        return
    if status in (404, 410):
        raise ObjectNotFound(f"{name}: there is nothing at this address; correct it")
    if status in (401, 403, 407):
        raise AccessDenied(f"{name}: the server refuses ({status}); serve it without a password")
    if 300 <= status < 400:
        raise StorageError(f"{name}: the server redirects ({status}), which is not followed; name the final address")
    if status in (408, 425, 429) or status >= 500:
        raise StorageUnavailable(f"{name}: the server answers {status}")
    raise StorageError(f"{name}: the server answers {status}; correct the address")


def _bounded(url: str, reply: httpx.Response, limit: int) -> Iterator[bytes]:
    size, end = 0, time.monotonic() + _WHOLE_S
    for chunk in reply.iter_raw():
        size += len(chunk)
        _check_size(url, size, limit)
        if time.monotonic() > end:
            raise StorageUnavailable(f"{_named(url)}: the reply took more than {_WHOLE_S:g} s")
        yield chunk


def _check_size(url: str, size: int, limit: int) -> None:
    if size > limit:
        raise TooManyBytes(f"{_named(url)}: {size:,} bytes or more")


def _version(headers: Mapping[str, str]) -> str:
    """What names the content: the etag, else the time of its last change with its length; "" without either."""
    if etag := headers.get("etag", ""):
        return etag
    changed, length = headers.get("last-modified", ""), headers.get("content-length", "")
    return f"{changed} {length}" if changed and length else ""


def _length(headers: Mapping[str, str]) -> int | None:
    length = headers.get("content-length", "")
    return int(length) if length.isdecimal() else None


def _named(url: str) -> str:
    return url.partition("?")[0]
