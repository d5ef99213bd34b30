"""The local R2 behind a server that keeps what it saw, and on demand refuses, cuts and loses replies."""

import asyncio
import secrets
import threading
import types
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

import pytest

from llmdo.local.r2.objects import Objects
from llmdo.local.settings import Credentials
from llmdo.local.wire import HttpCall
from llmdo.settings.environment import r2_access
from llmdo.storage.objects.r2 import R2Store
from llmdo.storage.objects.r2_client import any_success, r2_client

CREDENTIALS = Credentials("0" * 32, "key-id-of-the-tests", "token-of-the-tests")


class Seen(NamedTuple):
    method: str
    path: str
    headers: dict[str, str]
    size: int
    client: tuple[str, int]


class _HTTP(ThreadingHTTPServer):
    def handle_error(self, request, client_address):
        """A client that leaves a reply half read is what some tests are about."""


class Server:
    def __init__(self, path):
        self.objects = Objects(path, CREDENTIALS, lambda event: None)
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = 1 << 16  # head and body in one packet

            def answer(self):
                server.handle(self)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = answer

            def log_message(self, *args):
                pass

        self.http = _HTTP(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        self.reset()

    def reset(self):
        self.seen: list[Seen] = []
        self.answers: deque[tuple[int, str]] = deque()  # status and body of the next replies, instead of R2's
        self.lose_replies = 0  # the number of next requests that are carried out without a reply
        self.cuts: deque[int] = deque()  # after how many bytes the bodies of the next GETs end
        self.at_cut = lambda: None

    def refuse(self, status, code, times=1, message="as the test wants"):
        self.answers.extend([(status, f"<Error><Code>{code}</Code><Message>{message}</Message></Error>")] * times)

    def handle(self, request):
        path, _, query = request.path.partition("?")
        body = request.rfile.read(int(request.headers.get("content-length", 0)))
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.seen.append(Seen(request.command, request.path, headers, len(body), request.client_address))
        if self.answers:
            status, text = self.answers.popleft()
            kind = "text/html" if text.startswith("<!DOCTYPE") else "application/xml"
            return self.send(request, status, {"content-type": kind}, text.encode())
        reply = asyncio.run(self.objects.answer(HttpCall(request.command, path, query, request.headers, body)))
        if self.lose_replies:
            self.lose_replies -= 1
            request.close_connection = True
            return None
        if request.command != "GET" or not self.cuts:
            return self.send(request, reply.status, reply.headers, reply.body)
        self.send(request, reply.status, reply.headers, reply.body, self.cuts.popleft())
        request.close_connection = True
        return self.at_cut()

    @staticmethod
    def send(request, status, headers, body, cut=None):
        request.send_response_only(status)
        own = {name.lower(): value for name, value in headers.items()}
        for name, value in {"content-length": str(len(body)), **own}.items():
            request.send_header(name, value)
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(body[:cut])


@pytest.fixture(scope="session")
def _server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("r2") / "objects.sqlite")
    yield server
    server.http.shutdown()
    server.http.server_close()
    server.objects.close()


@pytest.fixture
def server(_server, monkeypatch):
    """An R2 that the environment names, without a fault."""
    _server.reset()
    monkeypatch.setenv("R2_ENDPOINT_URL", _server.url)
    monkeypatch.setenv("R2_ACCESS_KEY_ID", CREDENTIALS.token_id)
    monkeypatch.setenv("R2_SECRET_ACCESS_KEY", CREDENTIALS.secret)
    return _server


@pytest.fixture
def bucket(server):
    """A new bucket's name."""
    name = f"bucket-{secrets.token_hex(4)}"
    r2_client(r2_access()).call(any_success, "PUT", name)
    server.seen.clear()
    return name


@pytest.fixture
def store(bucket):
    return R2Store.open(bucket)


@pytest.fixture
def waits(monkeypatch):
    """The seconds that would have been waited between tries."""
    waited = []
    for module in ("r2_client", "r2"):
        fake = types.SimpleNamespace(sleep=waited.append)
        monkeypatch.setattr(f"llmdo.storage.objects.{module}.time", fake)
    return waited
