"""Server-sent events (html.spec.whatwg.org, 9.2), as far as model APIs use them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

_PAUSE = 256  # lines after which the loop may do something else


async def read_events(chunks: AsyncIterator[bytes]) -> AsyncIterator[str]:
    """Yields the data of each event; comments and other fields are skipped.

    Lines are split at line feeds of the bytes: ``str.splitlines`` would also split at U+2028 inside JSON strings.
    A last event without the blank line after it counts, so that what came is judged by its content. Bytes that are not
    UTF-8 come as lone surrogates (PEP 383), so that ``read_json`` finds and reports them.
    """
    data: list[str] = []
    rest: list[bytes] = []  # the pieces of a line without an end: joined once, however many they are
    async for chunk in chunks:
        *lines, last = chunk.split(b"\n")
        if lines:
            lines[0] = b"".join([*rest, lines[0]])
            rest.clear()
        rest.append(last)
        for number, line in enumerate(lines):
            if number % _PAUSE == _PAUSE - 1:
                await asyncio.sleep(0)
            text = line.removesuffix(b"\r")
            if text.startswith(b"data:"):
                data.append(_value(text))
            elif not text and data:
                yield "\n".join(data)
                data.clear()
    if (text := b"".join(rest)).startswith(b"data:"):
        data.append(_value(text))
    if data:
        yield "\n".join(data)


def _value(line: bytes) -> str:
    return line.removeprefix(b"data:").removeprefix(b" ").decode("utf-8", "surrogateescape")
