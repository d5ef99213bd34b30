"""An endpoint in a process of its own that answers every POST like Workers AI, after a fixed latency.

It stands in for the network and the model where only the caller is measured: it spends some 40 µs of CPU on a call, so
that on two cores the caller is the limit. Every body gets the same native answer; nothing is checked.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
REPLY = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(_BODY), _BODY)


@contextlib.contextmanager
def fake_endpoint(latency_s: float) -> Iterator[str]:
    """Starts the endpoint; yields its base URL. It ends with this process, whatever happens."""
    command = [sys.executable, str(Path(__file__).resolve()), "--latency", str(latency_s)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdin
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.stdin.close()


class _Answering(asyncio.Protocol):
    """HTTP/1.1 as far as the measured clients speak it: requests with a Content-Length, one after the other."""

    def __init__(self, latency_s: float) -> None:
        self._latency_s = latency_s
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
            self._data = self._data[end + 4 + length :]
            self._loop.call_later(self._latency_s, self._reply)

    def _reply(self) -> None:
        if not self._transport.is_closing():
            self._transport.write(REPLY)


async def _serve(latency_s: float) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Answering(latency_s), "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)  # ends when the parent closes it, or dies


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--latency", type=float, default=0.2)
    asyncio.run(_serve(parser.parse_args().latency))
