"""Streams that nobody asked for: server-sent events, or JSON lines, in the place of one JSON reply."""

from __future__ import annotations

from collections.abc import AsyncIterator

from llmdo.backends.http.client import Incoming
from llmdo.backends.http.reply_json import without_preamble
from llmdo.backends.http.sse import read_events

_FIELDS = (b"data:", b"event:", b"id:", b"retry:")


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
