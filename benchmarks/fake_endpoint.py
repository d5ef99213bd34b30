"""An endpoint in a process of its own that answers every POST like Workers AI, after a fixed or log-normal latency.

It stands in for the network and the model where only the caller is measured: it spends some 40 µs of CPU on a call, so
that on two cores the caller is the limit. Every body gets the same native answer; nothing is checked. GET /spans gives
the times of all calls answered since the last one; any other GET gives an empty list, of models for example.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

ANSWER = {
    "result": {
        "response": "Paris is the capital of France.",
        "usage": {"prompt_tokens": 24, "completion_tokens": 8, "total_tokens": 32},
    },
    "success": True,
    "errors": [],
    "messages": [],
}
_BODY = json.dumps(ANSWER).encode()
_REPLY = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s"
REPLY = _REPLY % (len(_BODY), _BODY)
_SEED = 64  # every run draws the same latencies

Span = tuple[float, float]


@contextlib.contextmanager
def fake_endpoint(latency_s: float, sigma: float = 0.0) -> Iterator[str]:
    """Starts the endpoint; yields its base URL. It ends with this process, whatever happens.

    With a ``sigma`` the latency is log-normal, and ``latency_s`` its mean.
    """
    command = [sys.executable, str(Path(__file__).resolve()), "--latency", str(latency_s), "--sigma", str(sigma)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdin
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.stdin.close()


def take_spans(url: str) -> list[Span]:
    """When each call answered since the last time was there, and when it was answered: seconds of time.monotonic()."""
    with urlopen(f"{url}/spans") as reply:
        return [(begin, end) for begin, end in json.load(reply)]


class _Answering(asyncio.Protocol):
    """HTTP/1.1 as far as the measured clients speak it: requests with a Content-Length, one after the other."""

    def __init__(self, draw: Callable[[], float], spans: list[Span]) -> None:
        self._draw = draw
        self._spans = spans
        self._loop = asyncio.get_running_loop()
        self._data = b""
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._data += data
        while (end := self._data.find(b"\r\n\r\n")) >= 0:
            length = 0
            for line in self._data[:end].lower().split(b"\r\n"):
                if line.startswith(b"content-length:"):
                    length = int(line.partition(b":")[2])
            if len(self._data) < end + 4 + length:
                return
            asked, self._data = self._data[:end], self._data[end + 4 + length :]
            if asked.startswith(b"GET "):
                self._tell(self._take_spans() if asked.startswith(b"GET /spans ") else {**ANSWER, "result": []})
            else:
                self._loop.call_later(self._draw(), self._reply, self._loop.time())

    def _take_spans(self) -> list[Span]:
        spans = self._spans.copy()
        self._spans.clear()
        return spans

    def _tell(self, what: object) -> None:
        body = json.dumps(what).encode()
        self._transport.write(_REPLY % (len(body), body))

    def _reply(self, begin: float) -> None:
        self._spans.append((begin, self._loop.time()))
        if not self._transport.is_closing():
            self._transport.write(REPLY)


async def _serve(latency_s: float, sigma: float) -> None:
    loop, chance, spans = asyncio.get_running_loop(), random.Random(_SEED), list[Span]()

    def draw() -> float:
        return latency_s * math.exp(chance.gauss(0, sigma) - sigma * sigma / 2) if sigma else latency_s

    server = await loop.create_server(lambda: _Answering(draw, spans), "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)  # ends when the parent closes it, or dies


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--latency", type=float, default=0.2)
    parser.add_argument("--sigma", type=float, default=0.0)
    chosen = parser.parse_args()
    asyncio.run(_serve(chosen.latency, chosen.sigma))
