"""Opens and prunes the ledger that a URL names."""

from __future__ import annotations

import time
from pathlib import Path

from llmdo.settings.environment import whole_path
from llmdo.settings.private import own_folder
from llmdo.storage.errors import InvalidLocation, LedgerError, ObjectNotFound
from llmdo.storage.ledger.database import prune_database
from llmdo.storage.ledger.ledger import NO_LEDGER, SQLITE_SCHEME, Ledger, Pruned
from llmdo.storage.ledger.objects import MARKER, ObjectLedger, prune_objects
from llmdo.storage.ledger.sqlite import SqliteLedger
from llmdo.storage.objects.opening import open_store
from llmdo.storage.objects.store import R2_SCHEME, ObjectStore, locate

_REMEDY = "name sqlite:///PATH, r2://BUCKET/PREFIX/, a folder, or none"
_DATABASE_SUFFIXES = (".sqlite", ".sqlite3", ".db")


def open_ledger(url: str) -> Ledger | None:
    """Opens or creates a ledger; blocks for some ms, or up to 20 s while another program locks it.

    ``sqlite:///PATH`` is a database (four slashes for an absolute path), for processes of one machine;
    ``r2://BUCKET/PREFIX/`` or a local folder keeps one object an answer, for any number of machines; ``none`` is None.
    Raises LedgerError if it cannot be read and written, before anything is paid for, and MissingSettings for r2://
    without credentials.
    """
    if url == NO_LEDGER:
        return None
    if url.startswith("sqlite:"):
        return SqliteLedger(_database(url))
    return ObjectLedger(*_place(url))


def is_ledger(url: str) -> bool:
    """Whether a run has begun this ledger. Raises LedgerError for a name that no ledger has, and StorageError."""
    if url == NO_LEDGER:
        return False
    if url.startswith("sqlite:"):
        return _database(url).is_file()
    store, prefix = _place(url)
    try:
        store.stat(prefix + MARKER)
    except ObjectNotFound:
        return False
    return True


def prune_ledger(url: str, older_than_s: float) -> Pruned:
    """Removes entries that were kept at least ``older_than_s`` seconds ago, also while runs use the ledger.

    Removes nothing else. Raises LedgerError, also if there is no ledger, and MissingSettings.
    """
    if not older_than_s >= 0:
        raise LedgerError(f"{older_than_s} s is not an age; name 0 s or more")
    if url == NO_LEDGER:
        raise LedgerError("none is not a ledger; name the one that the run had")
    before = time.time() - older_than_s
    if url.startswith("sqlite:"):
        return prune_database(_database(url), before)
    return prune_objects(*_place(url), before)


def _database(url: str) -> Path:
    path = url.removeprefix(SQLITE_SCHEME)
    if path == url or not path.strip("/"):
        raise LedgerError(f"{url}: names no file; write sqlite:///PATH, with four slashes for an absolute path")
    return whole_path(path)


def _place(url: str) -> tuple[ObjectStore, str]:
    """The store of a ledger's objects, and the prefix there, which is empty or ends in '/'."""
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
    folder = Path(where.store_url)
    if not where.bucket and (folder / MARKER).exists():  # earlier versions let others read it
        own_folder(folder)
    prefix = where.key.strip("/")
    return open_store(where.store_url, private=True), f"{prefix}/" if prefix else ""
