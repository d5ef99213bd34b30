"""An endpoint in a process of its own that answers every POST after a fixed or log-normal latency: Workers AI's native
answer, or OpenAI's where a path ends in /chat/completions or /embeddings.

It stands in for the network and the model when only the caller is measured: it spends about 40 µs of CPU on a call, so
that on two cores the caller is the limit. Nothing is checked. The n-th POST takes the n-th of ``latencies``, whoever
sends it. GET /spans returns the times of all calls answered since the last one, GET /seen what the endpoint recorded
about them; any other GET returns an empty list, of models for example.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import json
import math
import random
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.request import ProxyHandler, build_opener

TEXT = "Paris is the capital of France."
USAGE = {"prompt_tokens": 24, "completion_tokens": 8, "total_tokens": 32}
ANSWER = {"result": {"response": TEXT, "usage": USAGE}, "success": True, "errors": [], "messages": []}
COMPLETION = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1_700_000_000,
    "model": "fake",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": TEXT}}],
    "usage": USAGE,
}
_SEED = 64  # every run draws the same latencies

Span = tuple[float, float]


def _http(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)


_REPLY, _COMPLETION = (_http(json.dumps(answer).encode()) for answer in (ANSWER, COMPLETION))
_VECTORS = 16  # different ones, which the texts get in turns
_NO_LENGTH = b"HTTP/1.1 411 Length Required\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


@dataclass(slots=True)
class Seen:
    """What the endpoint recorded about its calls.

    Attributes:
        most_in_flight: calls that waited for their answer at the same time.
        cpu_s: the endpoint's CPU seconds since the first call.
        late_s: seconds by which answers were later than their latency, in total.
    """

    most_in_flight: int = 0
    cpu_s: float = 0.0
    late_s: float = 0.0


def latencies(mean_s: float, sigma: float) -> Iterator[float]:
    """An endless series of latencies of an endpoint's calls, in seconds; always the same."""
    chance = random.Random(_SEED)
    while True:
        yield mean_s * math.exp(chance.gauss(0, sigma) - sigma * sigma / 2) if sigma else mean_s


@contextlib.contextmanager
def fake_endpoint(latency_s: float, sigma: float = 0.0, dimensions: int = 4, *, packs: bool = True) -> Iterator[str]:
    """Starts the endpoint; yields its base URL. It ends with this process, whatever happens.

    With a ``sigma`` the latency is log-normal, and ``latency_s`` its mean. ``dimensions``: those of its vectors;
    ``packs``: whether it heeds ``"encoding_format": "base64"``.
    """
    command = [sys.executable, str(Path(__file__).resolve()), "--latency", str(latency_s), "--sigma", str(sigma)]
    command += ["--dimensions", str(dimensions), *(() if packs else ("--numbers",))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdin
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.stdin.close()


def account_at(url: str) -> dict[str, str]:
    """The environment of an ``llmdo`` that calls the endpoint as Workers AI."""
    return {"CLOUDFLARE_ACCOUNT_ID": "0" * 32, "CLOUDFLARE_API_TOKEN": "token", "CLOUDFLARE_BASE_URL": url}


def take_spans(url: str) -> list[Span]:
    """When each call arrived and was answered, for those answered since the last time; seconds of time.monotonic()."""
    return [(begin, end) for begin, end in _get(f"{url}/spans")]


def seen(url: str) -> Seen:
    """What the endpoint recorded about all its calls so far."""
    return Seen(**_get(f"{url}/seen"))


def _get(url: str) -> Any:
    with build_opener(ProxyHandler({})).open(url) as reply:
        return json.load(reply)


class _Embedding:
    """Replies to /embeddings. Numbers are written as doubles, as Python's servers write the floats of a model."""

    def __init__(self, dimensions: int, *, packs: bool) -> None:
        chance = random.Random(_SEED)
        self._packs = packs
        self._rows: dict[bool, list[str]] = {False: [], True: []}
        for _ in range(_VECTORS):
            packed = struct.pack(f"<{dimensions}f", *(chance.gauss(0, 0.03) for _ in range(dimensions)))
            self._rows[True].append(f'"{base64.b64encode(packed).decode()}"')
            self._rows[False].append(json.dumps(struct.unpack(f"<{dimensions}f", packed)))

    def reply(self, body: bytes) -> bytes:
        asked = json.loads(body)
        texts, rows = asked["input"], self._rows[self._packs and asked.get("encoding_format") == "base64"]
        listed = ", ".join(
            f'{{"object": "embedding", "index": {number}, "embedding": {rows[number % _VECTORS]}}}'
            for number in range(len(texts))
        )
        usage = f'{{"prompt_tokens": {8 * len(texts)}, "total_tokens": {8 * len(texts)}}}'
        return _http(f'{{"object": "list", "data": [{listed}], "model": "embed", "usage": {usage}}}'.encode())


class _Notes:
    """The endpoint's memory, which all its connections share."""

    def __init__(self, waits: Iterator[float], embedding: _Embedding) -> None:
        self.waits = waits
        self.embedding = embedding
        self.spans: list[Span] = []
        self.in_flight = 0
        self.cpu_before: float | None = None
        self.seen = Seen()

    def begin(self) -> float:
        """A call has arrived; returns its latency."""
        if self.cpu_before is None:
            self.cpu_before = time.process_time()
        self.in_flight += 1
        self.seen.most_in_flight = max(self.seen.most_in_flight, self.in_flight)
        return next(self.waits)

    def end(self, begin: float, wait: float, now: float) -> None:
        """A call's latency is over."""
        self.in_flight -= 1
        self.spans.append((begin, now))
        self.seen.late_s += now - begin - wait

    def told(self, path: bytes) -> object:
        """The reply to a GET."""
        if path == b"/spans":
            spans, self.spans = self.spans, []
            return spans
        if path == b"/seen":
            self.seen.cpu_s = 0.0 if self.cpu_before is None else time.process_time() - self.cpu_before
            return asdict(self.seen)
        return {**ANSWER, "result": []}


class _Answering(asyncio.Protocol):
    """HTTP/1.1 as far as the measured clients speak it: requests with a Content-Length, one after the other."""

    def __init__(self, notes: _Notes) -> None:
        self._notes = notes
        self._loop = asyncio.get_running_loop()
        self._data = b""
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._data += data
        while (end := self._data.find(b"\r\n\r\n")) >= 0:
            head = self._data[:end].lower()
            method, path, _ = head.split(b" ", 2)
            length = head.partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0]
            if method != b"get" and not length:
                self._transport.write(_NO_LENGTH)
                self._transport.close()
                return
            size = end + 4 + int(length or 0)
            if len(self._data) < size:
                return
            body, self._data = self._data[end + 4 : size], self._data[size:]
            if method == b"get":
                self._transport.write(_http(json.dumps(self._notes.told(path)).encode()))
            else:
                if path.endswith(b"/embeddings"):
                    reply = self._notes.embedding.reply(body)
                else:
                    reply = _COMPLETION if path.endswith(b"/chat/completions") else _REPLY
                begin, wait = self._loop.time(), self._notes.begin()
                self._loop.call_at(begin + wait, self._answer, reply, begin, wait)

    def _answer(self, reply: bytes, begin: float, wait: float) -> None:
        self._notes.end(begin, wait, self._loop.time())
        if not self._transport.is_closing():
            self._transport.write(reply)


async def _serve(waits: Iterator[float], embedding: _Embedding) -> None:
    loop, notes = asyncio.get_running_loop(), _Notes(waits, embedding)
    server = await loop.create_server(lambda: _Answering(notes), "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)  # ends when the parent closes it, or dies


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--latency", type=float, default=0.2)
    parser.add_argument("--sigma", type=float, default=0.0)
    parser.add_argument("--dimensions", type=int, default=4)
    parser.add_argument("--numbers", action="store_true", help="send no base64")
    chosen = parser.parse_args()
    embedding = _Embedding(chosen.dimensions, packs=not chosen.numbers)
    asyncio.run(_serve(latencies(chosen.latency, chosen.sigma), embedding))
