"""Requests and replies byte by byte, against a server that sends what a test wants."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator

import pytest
from urllib3 import HTTPConnectionPool, Retry
from urllib3.exceptions import HTTPError

from llmdo.storage.objects.r2_connections import R2Reply, connection_class

OK = b"HTTP/1.1 200 OK\r\nETag: "
WHOLE = OK + b'"e"\r\nContent-Length: 5\r\n\r\nhello'


class Script:
    """Sends the next reply after each request; None closes the connection without one."""

    def __init__(self) -> None:
        self.replies: list[bytes | None] = []
        self.heads: list[bytes] = []
        self.bodies: list[bytes] = []
        self.connections = 0
        self.closes = False  # each connection after its first reply
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            with connection, connection.makefile("rb") as file:
                while self._answer(connection, file.readline, file.read):
                    pass

    def _answer(self, connection: socket.socket, line: Callable[[], bytes], read: Callable[[int], bytes]) -> bool:
        head = b"".join(iter(line, b"\r\n")) if (first := line()) else b""
        if not first:
            return False
        head = first + head
        length = next((int(part.split(b":")[1]) for part in head.split(b"\r\n") if b"content-length" in part), 0)
        self.heads.append(head)
        self.bodies.append(read(length))
        reply = self.replies.pop(0)
        if reply is None:
            return False
        for piece in (reply[:-4], reply[-4:]):
            connection.sendall(piece)
            threading.Event().wait(0.01)  # so that the second one comes by itself
        return not self.closes

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def script() -> Iterator[Script]:
    made = Script()
    yield made
    made.close()


@pytest.fixture
def ask(script: Script) -> Iterator[Callable[..., R2Reply]]:
    pool = HTTPConnectionPool("127.0.0.1", script.port)
    pool.ConnectionCls = connection_class(secure=False)

    def call(method: str = "GET", body: bytes = b"", *, streamed: bool = False, **headers: str) -> R2Reply:
        given = {"host": "r2.test", **headers}
        how = {"preload_content": not streamed, "decode_content": False, "redirect": False}
        reply: R2Reply = pool.urlopen(method, "/bucket/key", body, given, retries=Retry(total=False), **how)
        return reply

    yield call
    pool.close()


BODIES = {
    "length": WHOLE,
    "no reason": b'HTTP/1.1 200\r\nETag:"e"\r\ncontent-length:5\r\n\r\nhello',
    "chunks": OK + b'"e"\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nhel\r\n002\r\nlo\r\n0\r\n\r\n',
    "chunks and a trailer": OK + b'"e"\r\nTransfer-Encoding: Chunked\r\n\r\n5\r\nhello\r\n0\r\nx: y\r\n\r\n',
    "early hints": b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n" + WHOLE,
    "continue": b"HTTP/1.1 100 Continue\r\n\r\n" + WHOLE,
}
ENDING = {
    "to its end": OK + b'"e"\r\n\r\nhello',
    "closing": OK + b'"e"\r\nconnection: Close\r\ncontent-length: 5\r\n\r\nhello',
    "of HTTP/1.0": b'HTTP/1.0 200 OK\r\netag: "e"\r\nContent-Length: 5\r\n\r\nhello',
}


@pytest.mark.parametrize("reply", BODIES.values(), ids=BODIES)
def test_a_body_is_read_as_its_head_says_and_the_connection_is_used_again(script, ask, reply):
    for _ in range(2):
        script.replies.append(reply)
        found = ask()
        assert (found.status, found.headers["etag"], found.data) == (200, '"e"', b"hello")
    assert script.connections == 1


@pytest.mark.parametrize("reply", ENDING.values(), ids=ENDING)
def test_a_connection_that_ends_with_its_reply_is_replaced(script, ask, reply):
    script.closes = True
    for number in (1, 2):
        script.replies.append(reply)
        assert ask().data == b"hello"
        assert script.connections == number


@pytest.mark.parametrize(
    ("method", "reply"),
    [
        ("HEAD", OK + b'"e"\r\nContent-Length: 5\r\n\r\n'),
        ("DELETE", b'HTTP/1.1 204 No Content\r\netag: "e"\r\n\r\n'),
        ("GET", b'HTTP/1.1 304 Not Modified\r\netag: "e"\r\nContent-Length: 5\r\n\r\n'),
    ],
)
def test_a_reply_without_a_body_waits_for_none(script, ask, method, reply):
    for _ in range(2):
        script.replies.append(reply)
        assert ask(method).data == b""
    assert script.connections == 1


TORN = {
    "nothing": None,
    "half of a status": b"HTTP/1.1 20",
    "no HTTP": b"SSH-2.0-server\r\n\r\nhello",
    "no number": b"HTTP/1.1 fine OK\r\n\r\nhello",
    "half of a head": OK + b'"e"\r\ncontent-len',
    "half of a body": WHOLE[:-1],
    "half of a chunk": OK + b'"e"\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel',
    "a chunk without a size": OK + b'"e"\r\nTransfer-Encoding: chunked\r\n\r\nfive\r\nhello\r\n0\r\n',
    "no last chunk": OK + b'"e"\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n',
    "a line without end": OK + b"e" * 70_000,
    "headers without end": OK + b'"e"\r\n' + b"a: b\r\n" * 1_000,
}


@pytest.mark.parametrize("reply", TORN.values(), ids=TORN)
def test_a_torn_reply_is_urllib3s_error_and_the_next_call_gets_its_own(script, ask, reply):
    script.closes = True
    script.replies.append(reply)
    with pytest.raises(HTTPError):
        ask()
    script.replies.append(WHOLE)
    assert ask().data == b"hello"


def test_what_is_sent_is_one_head_and_the_body(script, ask):
    large = bytes(range(256)) * 1024
    for body in (b"hello", b"", large):
        script.replies.append(WHOLE)
        ask("PUT", body, authorization="signed")
    script.replies.append(WHOLE)
    ask()
    assert script.bodies == [b"hello", b"", large, b""]
    lines = script.heads[0].split(b"\r\n")
    assert lines[0] == b"PUT /bucket/key HTTP/1.1"
    assert {b"host: r2.test", b"authorization: signed", b"content-length: 5"} < {*lines}
    assert b"content-length: 0" in script.heads[1]
    assert b"content-length" not in script.heads[3]


def test_equal_headers_are_one_value_and_names_are_in_lower_case(script, ask):
    script.replies.append(OK + b'"e"\r\nX-A: 1\r\nx-a:2\r\ncontent-length: 0\r\n\r\n')
    assert ask().headers["x-a"] == "1, 2"


def test_a_header_cannot_hold_another_one(script, ask):
    with pytest.raises(ValueError, match="line break"):
        ask("PUT", b"", **{"x-amz-meta-a": "b\r\nx-amz-acl: public-read"})
    assert script.heads == []


def test_streamed_and_whole_replies_take_turns_on_one_connection(script, ask):
    for streamed in (False, True, False, True):
        script.replies.append(WHOLE)
        reply = ask(streamed=streamed)
        assert b"".join(reply.stream(2, decode_content=False)) == b"hello"
        assert reply.headers["etag"] == '"e"'
    assert script.connections == 1
    assert all(b"host: r2.test" in head for head in script.heads)
