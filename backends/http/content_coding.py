"""Takes the compression off replies, also off those whose Content-Encoding is missing or wrong.

Not by aiohttp, which takes an unknown coding for a broken connection: the call would be paid again and again.
"""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator, Callable, Iterator

import aiohttp
import zstandard

ACCEPTED = "gzip, deflate"  # what is asked for; zstd is read too
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_HEAD = 4  # bytes by which a coding is recognised
_UNREADABLE = frozenset({"br", "compress", "x-compress", "dcb", "dcz"})
_STEP = 1 << 20  # bytes that one step of zlib may give
# zstandard cannot limit a step's output; this many bytes of input give at most 16 MiB.
_ZSTD_INPUT = 512
_ZSTD_WINDOW = 8 << 20  # RFC 9659

_Decode = Callable[[bytes], Iterator[bytes]]


class UnreadableCoding(ValueError):
    """A body has a coding that cannot be taken off; the message is its name."""


def is_plain(body: bytes, codings: str) -> bool:
    """Whether a whole body is as it was written, so that ``decoded`` would not change it."""
    return codings in ("", "identity") and not body.startswith((_GZIP, _ZSTD))


def decoded(pieces: AsyncIterator[bytes], codings: str) -> AsyncIterator[bytes]:
    """The pieces of a body without its ``codings``, a Content-Encoding header, or "" where there is none.

    Raises UnreadableCoding, and aiohttp.ClientPayloadError for damaged data.
    """
    for coding in reversed(codings.lower().split(",")):
        pieces = _without(coding.strip(), pieces)
    return pieces


async def _without(coding: str, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    head = b""
    async for piece in pieces:
        head += piece
        if len(head) >= _HEAD:
            break
    decode = _decoder(coding, head[:_HEAD])
    if decode is None:
        yield head
        async for piece in pieces:
            yield piece
        return
    try:
        for content in decode(head):
            yield content
        async for piece in pieces:
            for content in decode(piece):
                yield content
    except (zlib.error, zstandard.ZstdError) as error:
        raise aiohttp.ClientPayloadError(f"the compressed reply is damaged: {error}") from error


def _decoder(coding: str, head: bytes) -> _Decode | None:
    """What reads a body that begins with ``head``; None for one that is not compressed, whatever its header says."""
    if head.startswith(_GZIP):
        return _zlib(31)
    if head.startswith(_ZSTD):
        return _zstd()
    if coding not in ("deflate", *_UNREADABLE) or _is_text(head):
        return None
    if coding == "deflate":  # some servers leave zlib's header out
        return _zlib(15 if head[0] & 15 == 8 and int.from_bytes(head[:2]) % 31 == 0 else -15)
    raise UnreadableCoding(coding)


def _is_text(head: bytes) -> bool:
    return all(32 <= byte < 127 or byte in b"\t\r\n" for byte in head)


def _zlib(wbits: int) -> _Decode:
    codec = zlib.decompressobj(wbits)

    def decode(piece: bytes) -> Iterator[bytes]:
        nonlocal codec
        while piece:
            if codec.eof:  # another member; anything else is padding
                if not piece.startswith(_GZIP):
                    return
                codec = zlib.decompressobj(wbits)
            yield codec.decompress(piece, _STEP)
            piece = codec.unused_data if codec.eof else codec.unconsumed_tail

    return decode


def _zstd() -> _Decode:
    codec = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
    frame = codec.decompressobj()

    def decode(piece: bytes) -> Iterator[bytes]:
        nonlocal frame
        for at in range(0, len(piece), _ZSTD_INPUT):
            rest = piece[at : at + _ZSTD_INPUT]
            while rest:
                yield frame.decompress(rest)
                rest = frame.unused_data if frame.eof else b""
                if frame.eof:
                    frame = codec.decompressobj()

    return decode
