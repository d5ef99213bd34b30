"""The ledger: answers that were paid for, kept the moment they arrive, so that a kill repeats only calls in flight.

It knows nothing of models. Keys are sha256 digests in hexadecimal, values are bytes, in practice JSON of up to some MB.
"""

from __future__ import annotations

import logging
import re
import time
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from llmdo.settings.environment import whole_path
from llmdo.settings.private import own_folder
from llmdo.storage.errors import InvalidLocation, LedgerError
from llmdo.storage.objects.store import R2_SCHEME, ObjectStore, locate, open_store

SQLITE_SCHEME = "sqlite:///"
NO_LEDGER = "none"
_REMEDY = "name sqlite:///PATH, r2://BUCKET/PREFIX/, a folder, or none"

_KEY = re.compile(r"[0-9a-f]{64}")
_DATABASE_SUFFIXES = (".sqlite", ".sqlite3", ".db")

_log = logging.getLogger(__name__)


class Counts:
    """What a ledger has done since it was opened. Its loop's thread counts; any thread may read.

    Attributes:
        hits: gets that found a value; ``misses``: those that found none, the unreadable ones included.
        unreadable: entries that were there, but damaged or not to be understood.
        stored: puts that returned.
        commits: transactions, or requests to write, that they took: fewer where puts were grouped.
    """

    def __init__(self) -> None:
        self.hits = self.misses = self.unreadable = self.stored = self.commits = 0
        self._told: set[str] = set()

    def cannot_read(self, where: str, problem: str) -> None:
        """Counts a miss, and warns of the first one of each ``problem``."""
        self.misses += 1
        self.unreadable += 1
        if problem not in self._told:
            self._told.add(problem)
            _log.warning("%s: %s; its call is made again (more of this kind are only counted)", where, problem)


class Ledger(Protocol):
    """Answers already paid for. Used from one asyncio loop, the one it is closed from; many processes may share it."""

    counts: Counts

    async def get(self, key: str) -> bytes | None:
        """The value of exactly this key. An entry that cannot be read is a miss, counted and warned of.

        Raises LedgerError when the ledger as a whole does not answer: a miss would then be paid again.
        """

    async def put(self, key: str, value: bytes, patience_s: float = 0.0) -> None:
        """Keeps a value; it is durable when this returns. Raises LedgerError.

        Where others are to be expected within ``patience_s`` it may wait so long, to be kept together with them.

        Where the key has a readable value already, that one stays: it may have been delivered. An entry that ``get``
        found damaged is replaced. A put that is cancelled may be kept or not.
        """

    async def aclose(self) -> None:
        """Keeps what was put so far, then lets go of files and threads. Can be called again."""


@dataclass(frozen=True, slots=True)
class Pruned:
    """What a prune removed: how many entries, and the bytes that they took."""

    entries: int
    bytes: int


def open_ledger(url: str) -> Ledger | None:
    """Opens a ledger, or makes a new one; blocks for some ms, and up to 20 s where another program locks it.

    ``sqlite:///PATH`` is a database (four slashes for an absolute path), for processes of one machine;
    ``r2://BUCKET/PREFIX/`` or a local folder keeps one object an answer, for any number of machines; ``none`` is None.
    Raises LedgerError when it cannot be read and written, before anything was paid; MissingSettings for r2:// without
    credentials.
    """
    if url == NO_LEDGER:
        return None
    if url.startswith("sqlite:"):
        from llmdo.storage.ledger.sqlite import SqliteLedger  # noqa: PLC0415  the two ledgers import this module

        return SqliteLedger(_database(url))
    from llmdo.storage.ledger.objects import ObjectLedger  # noqa: PLC0415  see above

    return ObjectLedger(*_place(url))


def prune(url: str, older_than_s: float) -> Pruned:
    """Removes the entries that were kept at least ``older_than_s`` seconds ago; runs may go on meanwhile.

    Nothing but entries of a ledger is removed. Raises LedgerError, also where there is no ledger, and MissingSettings.
    """
    if not older_than_s >= 0:
        raise LedgerError(f"{older_than_s} s is no age; name one of 0 s or more")
    if url == NO_LEDGER:
        raise LedgerError("none is no ledger that could be pruned; name the one that the run had")
    before = time.time() - older_than_s
    if url.startswith("sqlite:"):
        from llmdo.storage.ledger.database import prune_database  # noqa: PLC0415  see open_ledger

        return prune_database(_database(url), before)
    from llmdo.storage.ledger.objects import prune_objects  # noqa: PLC0415  see open_ledger

    return prune_objects(*_place(url), before)


def check_key(key: str) -> str:
    """The key itself. Raises ValueError where it is no sha256 in lower-case hexadecimal."""
    if not _KEY.fullmatch(key):
        raise ValueError(f"{key!r} is no key of a ledger: give a sha256 as 64 lower-case hexadecimal digits")
    return key


def checksum(key: str, value: bytes) -> int:
    """CRC-32 over key and value, so that a value under another's key does not pass either."""
    return zlib.crc32(value, zlib.crc32(key.encode()))


def _database(url: str) -> Path:
    path = url.removeprefix(SQLITE_SCHEME)
    if path == url or not path.strip("/"):
        raise LedgerError(f"{url}: names no file; write sqlite:///PATH, with four slashes for an absolute path")
    return whole_path(path)


def _place(url: str) -> tuple[ObjectStore, str]:
    """Where objects are kept, and the prefix there, which is empty or ends in '/'."""
    if not url:
        raise LedgerError(f"the ledger has no name; {_REMEDY}")
    if not url.startswith(R2_SCHEME) and url.endswith(_DATABASE_SUFFIXES):
        raise LedgerError(f"{url}: a ledger of objects is a folder; for a database write {SQLITE_SCHEME}{url}")
    scheme, colon, _ = url.partition("://")
    if colon and scheme + colon != R2_SCHEME:
        raise LedgerError(f"{url}: a ledger cannot be kept at {scheme}://; {_REMEDY}")
    try:
        where = locate(url)
    except InvalidLocation as error:
        raise LedgerError(f"{error}; as a ledger, {_REMEDY}") from error
    from llmdo.storage.ledger.objects import MARKER  # noqa: PLC0415  see open_ledger

    folder = Path(where.store_url)
    if not where.bucket and (folder / MARKER).exists():  # an earlier version may have made it
        own_folder(folder)
    prefix = where.key.strip("/")
    return open_store(where.store_url, private=True), f"{prefix}/" if prefix else ""
