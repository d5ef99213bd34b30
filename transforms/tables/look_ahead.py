"""A stream of bytes of which some are looked at before they are taken."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

BOM = b"\xef\xbb\xbf"
# Lines are made for one block at a time, so that a chunk of very short lines is not all objects at once. Bytes.
BLOCK = 64 << 10


class LookAhead:
    """The rest of a stream: ``buffer`` is in memory and begins at offset ``at``; it ``ended`` if nothing follows it."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._pieces = _pieces(chunks)
        self.buffer = b""
        self.at = 0
        self.ended = False

    def more(self, size: int) -> None:
        """Adds at least ``size`` bytes to the buffer, or what there is."""
        added, length = [self.buffer], 0
        while length < size and not self.ended:
            piece = next(self._pieces, None)
            if piece is None:
                self.ended = True
            else:
                added.append(piece)
                length += len(piece)
        self.buffer = b"".join(added)

    def take(self, size: int) -> None:
        """Removes the buffer's first bytes."""
        self.buffer = self.buffer[size:]
        self.at += size

    def pass_to(self, offset: int | None) -> None:
        """Removes everything in front of an offset that is not behind the stream's end; None is that end."""
        while offset is None or self.at + len(self.buffer) < offset:
            if self.ended:
                offset = self.at + len(self.buffer)
                break
            self.take(len(self.buffer))
            self.more(1)
        self.take(offset - self.at)


def _pieces(chunks: Iterable[bytes]) -> Iterator[bytes]:
    for chunk in chunks:
        for i in range(0, len(chunk), BLOCK):
            yield chunk[i : i + BLOCK]
