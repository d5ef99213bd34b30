"""Server-sent events (html.spec.whatwg.org, 9.2), as far as model APIs use them."""

from __future__ import annotations

from collections.abc import AsyncIterator


async def read_events(chunks: AsyncIterator[bytes]) -> AsyncIterator[str]:
    """Yields the data of each event; comments and other fields are passed over.

    Lines are split at line feeds of the bytes: ``str.splitlines`` would also split at U+2028 inside JSON strings.
    A last event without the blank line after it counts, so that what came is judged by its content.
    """
    data: list[str] = []
    rest = b""
    async for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            text = line.removesuffix(b"\r")
            if text.startswith(b"data:"):
                data.append(_value(text))
            elif not text and data:
                yield "\n".join(data)
                data.clear()
    if rest.startswith(b"data:"):
        data.append(_value(rest))
    if data:
        yield "\n".join(data)


def _value(line: bytes) -> str:
    return line.removeprefix(b"data:").removeprefix(b" ").decode("utf-8", "replace")
