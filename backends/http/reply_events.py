"""Replies as events: streams that were asked for, and those that come in place of one JSON reply."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from llmdo.backends.http.client import Call, Incoming, Transport, stream_bytes
from llmdo.backends.http.network_errors import network_errors
from llmdo.backends.http.reply_json import without_preamble
from llmdo.backends.http.sse import read_events

STREAM = "text/event-stream"
_FIELDS = (b"data:", b"event:", b"id:", b"retry:")


@asynccontextmanager
async def open_events(
    transport: Transport, call: Call, model: str
) -> AsyncIterator[tuple[Incoming, AsyncIterator[str] | None]]:
    """The head of a reply, and the data of each event; of one that is not a stream, the whole reply and None.

    Some servers, and some models, ignore that a stream was asked for.
    """
    async with AsyncExitStack() as stack:
        with network_errors(call.url):
            incoming = await stack.enter_async_context(transport.open(call))
            is_stream = incoming.head.ok and incoming.head.content_type == STREAM
            head = incoming.head if is_stream else await incoming.read()
        yield head, read_events(stream_bytes(incoming, model)) if is_stream else None


def stray_events(incoming: Incoming) -> AsyncIterator[str] | None:
    """The data of each event of a whole reply that is a stream; None where it is none, as its content shows."""
    if not incoming.ok:
        return None
    content = without_preamble(incoming.content)
    if content.startswith(_FIELDS):
        return read_events(_pieces(content))
    if not content.startswith(b"{") or b"\n" not in content:
        return None
    lines = [line.strip() for line in content.split(b"\n") if line.strip()]
    is_json_lines = len(lines) > 1 and all(line.startswith(b"{") and line.endswith(b"}") for line in lines)
    return _lines(lines) if is_json_lines else None


async def _pieces(content: bytes) -> AsyncIterator[bytes]:
    yield content


async def _lines(lines: list[bytes]) -> AsyncIterator[str]:
    for line in lines:
        yield line.decode("utf-8", "surrogateescape")
