"""The payload, a secret in a URL, is in no message, whatever a backend says and however a connection ends."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections import deque
from urllib.parse import quote

import pytest

from llmdo.storage.errors import AccessDenied, StorageError
from llmdo.storage.livestore import synced_store
from llmdo.storage.livestore.frames import NewEvent
from llmdo.storage.livestore.places import StorePlace
from llmdo.storage.livestore.stores import LiveStores
from tests.storage.livestore.fake_backend import FakeBackend

TOKEN = "hush-Hush/4711 100%+(secret)"
PAYLOAD = {"authToken": TOKEN, "nested": {"tokens": ["another-hush-token"]}, "kind": "s"}
SENT = quote(quote(json.dumps(PAYLOAD, separators=(",", ":")), safe="!~*'()"), safe="")


class RawServer:
    """Answers each HTTP request with bytes; ``{}`` in them is the request's target."""

    def __init__(self, *replies: bytes) -> None:
        self.replies = deque(replies)
        self.targets: list[bytes] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(30)
        self.port = self._server.sockets[0].getsockname()[1]
        self.url = f"ws://127.0.0.1:{self.port}"

    async def _start(self) -> asyncio.Server:
        return await asyncio.start_server(self._serve, "127.0.0.1", 0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        target = (await reader.readuntil(b"\r\n\r\n")).split(b" ")[1]
        self.targets.append(target)
        writer.write(self.replies[0].replace(b"{}", target))
        await writer.drain()
        writer.close()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._server.close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)


# A JSON value, and the same inside of a text.
ECHOES = {
    "as it is": (json.dumps(PAYLOAD), json.dumps(json.dumps(PAYLOAD))[1:-1]),
    "as text": (json.dumps(json.dumps(PAYLOAD)), json.dumps(json.dumps(PAYLOAD))[1:-1]),
    "as in the URL": (json.dumps(SENT), SENT),
    "its token": (json.dumps(TOKEN), json.dumps(TOKEN)[1:-1]),
}


class EchoingBackend(FakeBackend):
    """Says ``form``, with what it was sent in place of ``{}`` (a value) and ``<>`` (text): to a pull, or to a push."""

    def __init__(self, form: str, echo: str, *, to: str) -> None:
        value, text = ECHOES[echo]
        self.said, self.to = form.replace("{}", value).replace("<>", text), to
        super().__init__(payload=PAYLOAD)

    async def _pull(self, store, one, pull, cursor) -> None:
        if self.to == "pull":
            await self._echo(one, pull)
        else:
            await super()._pull(store, one, pull, cursor)

    async def _push(self, store, one, request, payload) -> None:
        await self._echo(one, request)

    async def _echo(self, one, request) -> None:
        self.counts["echoes"] += 1
        await one.socket.send_str(self.said.replace("{id}", request))


def shown(place: StorePlace, caplog, seen) -> str:
    """All that can be read of a store that is read and pushed to until ``seen`` says so."""
    caplog.set_level(logging.DEBUG)
    said = []
    stores = LiveStores([place], {place.store: "me"}, {}, lambda _, event: event, lambda _: None)
    try:
        push = stores.push(place.store, lambda: [NewEvent("Answer", {"id": "a"})])
        end = time.monotonic() + 55
        while not seen(stores, push):
            assert time.monotonic() < end
            try:
                stores.take(10, 0.05)
            except StorageError as error:
                said.append(f"{error} {error!r}")
            said.append(f"{stores.problem} {stores.problem!r}")
        if push.done():
            said.append(f"{push.exception()} {push.exception()!r}")
        said.append(repr([vars(stores), [vars(store) for store in stores._stores.values()]]))
    finally:
        stores.close()
    return caplog.text + "\n".join(said)


def check(text: str) -> None:
    """No part of a secret that one could guess the rest from."""
    for secret in (TOKEN, "another-hush-token"):
        for form in (secret, quote(secret, safe=""), quote(quote(secret, safe=""), safe="")):
            for at in range(len(form) - 11):
                assert form[at : at + 12] not in text, text


def problem_seen(stores, _):
    return stores.problem is not None


HTTP = {
    "another status": b"HTTP/1.1 500 {}\r\nX: {}\r\nConnection: close\r\n\r\n{}",
    "more than it says": b"HTTP/1.1 400 {}\r\nX: {}\r\nContent-Length: 2\r\n\r\n{}",
    "a page": b"HTTP/1.1 200 {}\r\nContent-Length: 0\r\nX: {}\r\n\r\n",
    "a redirect": b"HTTP/1.1 307 {}\r\nLocation: http://127.0.0.1:OTHER{}\r\nContent-Length: 0\r\n\r\n",
    "a redirect to itself": b"HTTP/1.1 301 Moved\r\nLocation: {}\r\nContent-Length: 0\r\n\r\n",
    "a redirect to nowhere": b"HTTP/1.1 302 Moved\r\nLocation: nope://{}\r\nContent-Length: 0\r\n\r\n",
    "no HTTP": b"{} {} {}\r\n\r\n",
    "a bad header": b"HTTP/1.1 200 OK\r\n{} {}\r\n\r\n",
    "no WebSocket": b"HTTP/1.1 101 {}\r\nUpgrade: {}\r\nConnection: upgrade\r\n\r\n",
    "a wrong key": b"HTTP/1.1 101 S\r\nUpgrade: websocket\r\nConnection: upgrade\r\nSec-WebSocket-Accept: {}\r\n\r\n",
    "nothing": b"",
    "half a reply": b"HTTP/1.1 101 {}",
}


@pytest.mark.parametrize("how", HTTP)
def test_no_reply_to_the_handshake_shows_the_payload_or_leads_it_elsewhere(how, caplog):
    other = RawServer(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    server = RawServer(HTTP[how].replace(b"OTHER", str(other.port).encode()))
    try:
        text = shown(StorePlace(server.url, "s", PAYLOAD), caplog, problem_seen)
    finally:
        server.stop()
        other.stop()
    assert SENT.encode() in server.targets[0] and other.targets == []
    assert f"store s at {server.url}: " in text
    check(text)


@pytest.mark.parametrize("status", [400, 401, 403])
def test_a_refusal_of_the_payload_is_said_without_it(status, caplog):
    server = RawServer(b"HTTP/1.1 %d {}\r\nX: {}\r\nConnection: close\r\n\r\n{}" % status)
    place = StorePlace(server.url, "s", PAYLOAD)
    try:
        text = shown(place, caplog, lambda _, push: push.done())
        with pytest.raises(AccessDenied, match=rf"HTTP {status}\): correct LIVESTORE_PAYLOAD"):
            _stores(place).take(1, 55.0)
    finally:
        server.stop()
    check(text)


def _stores(place):
    return LiveStores([place], {place.store: "me"}, {}, lambda _, event: event, lambda _: None)


FRAMES = {
    "an unknown error": '{"_tag":"Exit","requestId":"{id}","exit":{"_tag":"Failure","cause":{"_tag":"What","x":{}}}}',
    "no error": '{"_tag":"Exit","requestId":"{id}","exit":{"_tag":"Failure","payload":{}}}',
    "a death": '{"_tag":"Exit","requestId":"{id}","exit":{"_tag":"Failure","cause":{"_tag":"Die","defect":{}}}}',
    "its own words": '{"_tag":"Exit","requestId":"{id}","exit":{"_tag":"Failure","cause":{"_tag":"Fail","error":'
    '{"_tag":"UnknownError","payload":{},"note":"you sent <>","cause":{"name":"Error","message":"it was <>"}}}}}',
    "a name": '{"_tag":"Exit","requestId":"{id}","exit":{"_tag":"Failure","cause":{"_tag":"Fail","error":'
    '{"_tag":"<>Error","message":{}}}}}',
    "a defect": '{"_tag":"Defect","defect":{}}',
    "words of a defect": '{"_tag":"Defect","defect":"' + 290 * "x" + '<>"}',
    "an unknown frame": '{"_tag":"<>","x":{}}',
    "no JSON": "{",
    "an unreadable chunk": '{"_tag":"Chunk","requestId":"{id}","values":[{"batch":{},"pageInfo":{},"backendId":5}]}',
}


@pytest.mark.parametrize("echo", ECHOES)
@pytest.mark.parametrize("to", ["pull", "push"])
@pytest.mark.parametrize("how", FRAMES)
def test_no_frame_shows_the_payload(how, to, echo, caplog, monkeypatch):
    monkeypatch.setattr(synced_store, "REPLY_S", 0.5)
    monkeypatch.setattr(synced_store, "SILENCE_S", 0.2)
    monkeypatch.setattr(synced_store, "PULL_REPLY_S", 0.3)
    backend = EchoingBackend(FRAMES[how], echo, to=to)
    try:
        text = shown(
            StorePlace(backend.url, "s", PAYLOAD),
            caplog,
            lambda stores, push: backend.counts["echoes"] and (push.done() or stores.problem is not None),
        )
    finally:
        backend.stop()
    check(text)


def test_the_reason_of_a_close_shows_no_payload(caplog):
    backend = EchoingBackend("", "as text", to="pull")

    async def close(one, _):
        await one.socket.close(code=4000, message=TOKEN.encode())

    backend._echo = close
    try:
        text = shown(StorePlace(backend.url, "s", PAYLOAD), caplog, problem_seen)
    finally:
        backend.stop()
    assert "4000" in text
    check(text)


def test_no_unexpected_error_shows_the_payload(caplog, monkeypatch):
    def fail(*_):
        raise RuntimeError(f"about {SENT} and {TOKEN}")

    monkeypatch.setattr(synced_store.frames, "pull", fail)
    backend = FakeBackend(payload=PAYLOAD)
    try:
        text = shown(StorePlace(backend.url, "s", PAYLOAD), caplog, lambda _, push: push.done())
    finally:
        backend.stop()
    assert "store s: unexpected RuntimeError" in text
    check(text)
