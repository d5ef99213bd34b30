"""The files of batches: written as a form to be uploaded, and read line by line. Neither is ever in memory whole."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping
from contextlib import aclosing
from typing import Any, BinaryIO

from llmdo.backends.errors import BadReply
from llmdo.backends.http.client import Call, Transport
from llmdo.backends.http.network_errors import network_errors
from llmdo.backends.http.reply_json import read_json
from llmdo.backends.openai.replies import ReplyReader

_AT_ONCE = 256  # lines that are written before others get a turn
LONGEST_LINE = 64 << 20  # bytes of an answer; what is longer is left out


async def write_form(file: BinaryIO, fields: Mapping[str, str], name: str, lines: Iterable[bytes]) -> str:
    """Writes an upload's whole form into a file; returns its content type."""
    boundary = secrets.token_hex(16)
    for field, value in fields.items():
        file.write(f'--{boundary}\r\nContent-Disposition: form-data; name="{field}"\r\n\r\n{value}\r\n'.encode())
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n'
    file.write(f"{head}Content-Type: application/jsonl\r\n\r\n".encode())
    for number, line in enumerate(lines):
        file.write(line + b"\n")
        if number % _AT_ONCE == 0:
            await asyncio.sleep(0)
    file.write(f"\r\n--{boundary}--\r\n".encode())
    file.flush()
    return f"multipart/form-data; boundary={boundary}"


async def read_file_rows(pieces: AsyncIterator[bytes]) -> AsyncGenerator[Mapping[str, object] | None, None]:
    """The JSON objects of a file's lines; None for a line that is not one: the last one of a file that was cut off."""
    held: list[bytes] = []
    size = 0
    async for piece in pieces:
        *ends, rest = piece.split(b"\n")
        for end in ends:
            if (line := b"".join((*held, end))).strip():
                yield _row(line) if size + len(end) <= LONGEST_LINE else None
            held, size = [], 0
        if size <= LONGEST_LINE:
            held.append(rest)
        size += len(rest)
    if (line := b"".join(held)).strip():
        yield _row(line) if size <= LONGEST_LINE else None


async def fetch_rows(
    transport: Transport, call: Call, root: str, reader: ReplyReader, model: str
) -> AsyncGenerator[Mapping[str, Any] | None, None]:
    """See read_file_rows. Raises the ModelError of a reply that is none."""
    with network_errors(root):
        async with transport.open(call) as opened:
            if not opened.head.ok:
                reader.read(await opened.read(), model, lambda _: None)
            async with aclosing(read_file_rows(opened.pieces)) as rows:
                async for row in rows:
                    yield row


def _row(line: bytes) -> Mapping[str, object] | None:
    try:
        row = read_json(line)
    except (ValueError, BadReply):
        return None
    return row if isinstance(row, dict) else None
