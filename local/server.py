"""Cloudflare on this machine, in one process: R2, event notifications, Queues, Workers AI, and faults on demand.
Beside it, OpenAI and Anthropic.

It listens on 127.0.0.1 only and demands the credentials that it wrote to DIR/env. Objects, queues and credentials
survive a restart. The server is aiohttp's, because a lost or cut reply needs access to the connection.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any

from aiohttp import web
from multidict import CIMultiDict

from llmdo.backends.errors import ModelError
from llmdo.local.app import Cloudflare, check_model
from llmdo.local.openai.files import UPLOADS
from llmdo.local.settings import (
    ANTHROPIC_BASE,
    HOST,
    OPENAI_BASE,
    CannotServe,
    credentials,
    environment,
    write_environment,
)
from llmdo.local.wire import HttpCall, HttpReply

SHUTDOWN_S = 0.5  # for calls in flight; a terminal or a supervisor expects the end within two seconds
# R2 takes 8,192 bytes of metadata, possibly in one header, and keys of 1,024 bytes, three times that when encoded.
_LIMITS: dict[str, Any] = {"max_field_size": 32_768, "max_line_size": 32_768, "auto_decompress": False}


async def _handle(request: web.BaseRequest, app: Cloudflare) -> web.StreamResponse:
    if request.headers.get("Expect", "").lower() == "100-continue" and request.transport:
        # R2 itself never sends it, which costs boto3 with its defaults a second for each PUT.
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    path, _, query = request.raw_path.partition("?")
    stream = request.content if path == UPLOADS else None
    body = await request.content.read() if request.body_exists and stream is None else b""
    reply = await app.answer(HttpCall(request.method, path, query, request.headers, body, stream))
    headers = CIMultiDict({"Server": "cloudflare", **reply.headers})
    if reply.pieces:
        return await _stream(request, reply, reply.pieces, headers)
    if reply.ending == "whole" or (reply.ending == "truncate" and request.method == "HEAD"):
        return web.Response(status=reply.status, body=reply.body, headers=headers)
    if reply.ending == "truncate":
        headers["Content-Length"] = str(len(reply.body))
        cut = web.StreamResponse(status=reply.status, headers=headers)
        await cut.prepare(request)
        await cut.write(reply.body[: len(reply.body) // 2])
    return _hang_up(request)


async def _stream(
    request: web.BaseRequest, reply: HttpReply, pieces: AsyncGenerator[bytes, None], headers: CIMultiDict[str]
) -> web.StreamResponse:
    response = web.StreamResponse(status=reply.status, headers=headers)
    if "Content-Length" not in headers:
        response.enable_chunked_encoding()
    async with aclosing(pieces):
        if reply.ending != "whole":
            whole = b"".join([piece async for piece in pieces])
        if reply.ending == "drop":
            return _hang_up(request)
        await response.prepare(request)
        if reply.ending == "truncate":
            await response.write(whole[: len(whole) // 2])
            if "Content-Length" in headers:
                return _hang_up(request)
        else:
            try:
                async for piece in pieces:
                    await response.write(piece)
            except (ModelError, ConnectionError):  # the model failed, or the client is gone
                return _hang_up(request)
    await response.write_eof()
    return response


def _hang_up(request: web.BaseRequest) -> web.Response:
    if request.transport:
        request.transport.close()
    return web.Response(status=503)  # goes nowhere


def serve(data: Path, port: int, model: str) -> None:
    """Serves until SIGTERM or SIGINT; writes DIR/env once it is ready. Port 0: a free one. Raises CannotServe.

    ``model``: ``local/smollm2-135m-instruct``, or ``echo``, the stand-in for tests.
    """

    def announce(url: str, _: Mapping[str, str]) -> None:
        print(  # noqa: T201  whoever started it waits for this line
            f"Cloudflare on this machine at {url} (model: {model}); in another shell: source {data / 'env'}\n"
            f"OpenAI on this machine at {url}{OPENAI_BASE} (any key)\n"
            f"Anthropic on this machine at {url}{ANTHROPIC_BASE} (any key)",
            flush=True,
        )

    async def until_signal() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await serve_until(stop, data, port, model, time.time, announce)

    check_model(model)  # not on the loop: fetching the weights takes a while, and SIGTERM ends that
    asyncio.run(until_signal())


async def serve_until(
    stop: asyncio.Event,
    data: Path,
    port: int,
    model: str,
    clock: Callable[[], float],
    announce: Callable[[str, Mapping[str, str]], None],
) -> None:
    """Serves until ``stop`` is set; passes the URL and the clients' variables to ``announce`` once it is ready.

    ``clock`` returns the queues' seconds since 1970. Raises CannotServe.
    """
    own = credentials(data)
    env_file = data / "env"
    env_file.unlink(missing_ok=True)  # a killed server's would release a waiting script too early
    app = Cloudflare(data, own, model, clock)
    try:
        http = web.Server(lambda request: _handle(request, app), access_log=None, **_LIMITS)
        try:
            listener = await asyncio.get_running_loop().create_server(http, HOST, port, backlog=1024)
        except OSError as error:
            raise CannotServe(
                f"port {port} on {HOST} is not free: choose another --port, or 0 for a free one"
            ) from error
        url = f"http://{HOST}:{listener.sockets[0].getsockname()[1]}"
        variables = environment(own, url)
        write_environment(data, variables)
        announce(url, variables)
        await stop.wait()
        env_file.unlink(missing_ok=True)
        listener.close()
        http.pre_shutdown()
        await http.shutdown(SHUTDOWN_S)
        # Calls that are still being answered use the services that are closed next.
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
    finally:
        await app.aclose()
