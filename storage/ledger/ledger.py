"""The ledger: answers that were paid for, kept the moment they arrive, so that a kill repeats only calls in flight.

It does not know models. Keys are sha256 digests in hexadecimal, values are bytes, in practice JSON of up to some MB.
"""

from __future__ import annotations

import logging
import re
import zlib
from dataclasses import dataclass
from typing import Protocol

SQLITE_SCHEME = "sqlite:///"
NO_LEDGER = "none"

_KEY = re.compile(r"[0-9a-f]{64}")

_log = logging.getLogger(__name__)


class DamageLog:
    """Warns of entries that are there but cannot be read, once for each ``problem``."""

    def __init__(self) -> None:
        self._warned: set[str] = set()

    def warn(self, where: str, problem: str) -> None:
        """Warns of the first entry with this problem."""
        if problem not in self._warned:
            self._warned.add(problem)
            _log.warning("%s: %s; its call is made again (more of this kind are not reported)", where, problem)


class Ledger(Protocol):
    """Answers already paid for. Used from one asyncio loop, the one it is closed from; many processes may share it."""

    async def get(self, key: str) -> bytes | None:
        """The value of exactly this key. An entry that cannot be read is a miss, with a warning.

        Raises LedgerError when the ledger as a whole does not answer: a miss would then be paid again.
        """

    async def put(self, key: str, value: bytes, patience_s: float = 0.0) -> None:
        """Keeps a value; it is durable when this returns. Raises LedgerError.

        It may wait up to ``patience_s`` seconds to be kept together with others, if more are to be expected.

        Where the key has a readable value already, that one stays: it may have been delivered. An entry that ``get``
        found damaged is replaced. A put that is cancelled may be kept or not.
        """

    async def aclose(self) -> None:
        """Keeps what was put so far, then closes files and ends threads. May be called again."""


@dataclass(frozen=True, slots=True)
class Pruned:
    """What a prune removed: how many entries, and the bytes that they took."""

    entries: int
    bytes: int


def check_key(key: str) -> str:
    """The key itself. Raises ValueError unless it is a sha256 in lower-case hexadecimal."""
    if not _KEY.fullmatch(key):
        raise ValueError(f"{key!r} is not a key of a ledger: give a sha256 as 64 lower-case hexadecimal digits")
    return key


def checksum(key: str, value: bytes) -> int:
    """CRC-32 over key and value, so that a value under another's key does not pass either."""
    return zlib.crc32(value, zlib.crc32(key.encode()))
