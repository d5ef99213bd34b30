"""The ledger: paid answers, kept as soon as they arrive, so that after a kill only calls in flight are repeated.

It does not know models. Keys are sha256 digests in hexadecimal; values are bytes, in practice JSON of up to some MB.
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
    """Warns of entries that cannot be read, once for each ``problem``."""

    def __init__(self) -> None:
        self._warned: set[str] = set()

    def warn(self, where: str, problem: str) -> None:
        """Warns of the first entry with this problem."""
        if problem not in self._warned:
            self._warned.add(problem)
            _log.warning("%s: %s; its call is made again (others like it are not reported)", where, problem)


class Ledger(Protocol):
    """Paid answers. Used and closed on one asyncio loop; many processes may share a ledger."""

    async def get(self, key: str) -> bytes | None:
        """The value of exactly this key. An entry that cannot be read counts as missing, with a warning.

        Raises LedgerError if the ledger as a whole cannot be read: a miss would be paid again.
        """

    async def put(self, key: str, value: bytes, patience_s: float = 0.0) -> None:
        """Keeps a value, which is durable when this returns. Raises LedgerError.

        It may wait up to ``patience_s`` seconds for other puts to share a commit, if more are to be expected.

        A readable value that the key already has stays: it may have been delivered. An entry that ``get`` found damaged
        is replaced. A cancelled put may or may not be kept.
        """

    async def aclose(self) -> None:
        """Keeps what was put so far, then closes files and ends threads. May be called more than once."""


@dataclass(frozen=True, slots=True)
class Pruned:
    """What a prune removed: the number of entries and their bytes."""

    entries: int
    bytes: int


def check_key(key: str) -> str:
    """The key itself. Raises ValueError unless it is a sha256 in lower-case hexadecimal."""
    if not _KEY.fullmatch(key):
        raise ValueError(f"{key!r} is not a key of a ledger: give a sha256 as 64 lower-case hexadecimal digits")
    return key


def checksum(key: str, value: bytes) -> int:
    """CRC-32 over key and value, so that a value under another key does not pass either."""
    return zlib.crc32(value, zlib.crc32(key.encode()))
