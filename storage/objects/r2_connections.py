"""Connections of urllib3's pool that write a request at once, and read a reply that is wanted whole by themselves.

urllib3 finds a connection, connects, does TLS and proxies, and sorts errors. What it and ``http.client`` make of each
head and body besides takes two thirds of a call's CPU time. Replies whose body is streamed go their usual way.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from http.client import BadStatusLine, HTTPException, IncompleteRead, LineTooLong, RemoteDisconnected
from io import BufferedReader
from typing import Any

from urllib3 import BaseHTTPResponse
from urllib3.connection import HTTPConnection, HTTPSConnection

_MOST_LINE, _MOST_HEADERS = 65_536, 100  # as http.client has it: bytes of a line, and lines
_AT_ONCE = 1 << 16  # bytes of a body that are copied behind its head
_ALWAYS = {"accept-encoding": "identity", "user-agent": "llmdo"}


class WholeReply:
    """A reply whose body was read; as far as it is used, like urllib3's.

    Attributes:
        headers: names in lower case; of equal ones the values, joined by ", ".
    """

    version_string = "HTTP/1.1"
    length_remaining = 0

    def __init__(self, status: int, reason: str, headers: Mapping[str, str], data: bytes) -> None:
        self.status, self.reason, self.headers, self.data = status, reason, headers, data

    def read(self) -> bytes:
        """The body."""
        return self.data

    def stream(self, amt: int, decode_content: bool = False) -> Iterator[bytes]:  # noqa: ARG002  urllib3's
        """The body, in one piece."""
        if self.data:
            yield self.data

    def close(self) -> None:
        """There is nothing to close."""


R2Reply = BaseHTTPResponse | WholeReply


class _Connection(HTTPConnection):
    """See the module. ``request`` and ``getresponse`` raise what those of urllib3 raise."""

    _asked = ""  # method of a request whose reply is wanted whole

    def request(  # type: ignore[override]  # of its arguments, only these are given
        self, method: str, url: str, body: bytes | None = None, headers: Mapping[str, str] | None = None, **how: Any
    ) -> None:
        given = _ALWAYS | dict(headers or {})
        if not how["preload_content"]:
            super().request(method, url, body=body, headers=given, **how)
            return
        body = body or b""
        if body or method in ("PUT", "POST"):
            given["content-length"] = str(len(body))
        lines = [f"{method} {url} HTTP/1.1", *[f"{name}: {value}" for name, value in given.items()]]
        if any("\n" in line or "\r" in line for line in lines):
            raise ValueError("a header holds a line break: correct the settings that it is made of")
        head = "\r\n".join([*lines, "\r\n"]).encode("latin-1")
        if self.sock is None:
            self.connect()
        self._asked = method
        if len(body) <= _AT_ONCE:
            self.sock.sendall(head + body)
        else:
            self.sock.sendall(head)
            self.sock.sendall(body)

    def getresponse(self) -> R2Reply:  # type: ignore[override]
        method, self._asked = self._asked, ""
        if not method:
            return super().getresponse()
        self.sock.settimeout(self.timeout)
        with self.sock.makefile("rb") as file:
            version, status, reason, headers = _head(file)
            length = headers.get("content-length", "")
            lasts = version != b"HTTP/1.0" and "close" not in headers.get("connection", "").lower()
            if method == "HEAD" or status in (204, 304):
                data = b""
            elif headers.get("transfer-encoding", "").lower() == "chunked":
                data = b"".join(_chunks(file))
            elif length.isascii() and length.isdigit():
                data = _exactly(file, int(length))
            else:
                data, lasts = file.read(), False
        if not lasts:
            self.close()
        return WholeReply(status, reason, headers, data)


class _SecureConnection(_Connection, HTTPSConnection):
    pass


def connection_class(*, secure: bool) -> type[HTTPConnection]:
    """What a pool makes its connections of."""
    return _SecureConnection if secure else _Connection


def _head(file: BufferedReader) -> tuple[bytes, int, str, dict[str, str]]:
    """Version, status, reason and headers of the final reply; those before it (100, 103) say nothing."""
    while True:
        line = _line(file)
        version, _, rest = line.partition(b" ")
        code, _, reason = rest.partition(b" ")
        if not version.startswith(b"HTTP/1.") or not (code.isdigit() and len(code) == 3):
            raise BadStatusLine(line.decode("latin-1"))
        headers = _headers(file)
        if not code.startswith(b"1"):
            return version, int(code), reason.decode("latin-1"), headers


def _headers(file: BufferedReader) -> dict[str, str]:
    found: dict[str, str] = {}
    for _ in range(_MOST_HEADERS + 1):
        line = _line(file).decode("latin-1")
        if not line:
            return found
        name, _, value = line.partition(":")
        name, value = name.strip().lower(), value.strip()
        found[name] = f"{found[name]}, {value}" if name in found else value
    raise HTTPException(f"got more than {_MOST_HEADERS} headers")


def _chunks(file: BufferedReader) -> Iterator[bytes]:
    while True:
        size = _line(file).partition(b";")[0].strip()
        try:
            length = int(size, 16)
        except ValueError:
            raise IncompleteRead(size) from None
        if not length:
            _headers(file)  # those that may come behind the body
            return
        yield _exactly(file, length)
        _line(file)


def _exactly(file: BufferedReader, length: int) -> bytes:
    data = file.read(length) if length else b""
    if len(data) != length:
        raise IncompleteRead(data, length - len(data))
    return data


def _line(file: BufferedReader) -> bytes:
    line = file.readline(_MOST_LINE + 1)
    if len(line) > _MOST_LINE:
        raise LineTooLong("header line")
    if not line.endswith(b"\n"):
        raise RemoteDisconnected("the connection was closed before the end of a reply's head")
    return line.rstrip(b"\r\n")
