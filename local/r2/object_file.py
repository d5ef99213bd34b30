"""What survives a restart of the object store: every object with its properties, in one SQLite file.

moto works in memory; this file is written with each change and read at the start. Not kept are checksums that a client
sent, and multipart uploads that were not completed, which R2 drops after seven days.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic_core import from_json, to_json

from llmdo.settings.private import make_database

_SCHEMA = """
CREATE TABLE IF NOT EXISTS buckets (name TEXT PRIMARY KEY);
CREATE TABLE IF NOT EXISTS objects (
    bucket TEXT NOT NULL, key TEXT NOT NULL, etag TEXT NOT NULL, modified REAL NOT NULL, headers TEXT NOT NULL,
    body BLOB NOT NULL, PRIMARY KEY (bucket, key)) WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True)
class Stored:
    """One object; ``etag`` without quotes, ``headers`` with its metadata and content type, time in UTC."""

    bucket: str
    key: str
    etag: str
    modified: datetime
    headers: Mapping[str, str]
    body: bytes


class ObjectFile:
    """The file, for one thread at a time."""

    def __init__(self, path: Path) -> None:
        make_database(path)
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._db.executescript(f"PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; {_SCHEMA}")

    def begin(self) -> None:
        """Keeps what is written from now on for ``close``, which is faster than an object at a time."""
        self._db.execute("BEGIN")

    def close(self) -> None:
        """Closes the file."""
        if self._db.in_transaction:
            self._db.execute("COMMIT")
        self._db.close()

    def buckets(self) -> list[str]:
        """The names of all buckets."""
        return [name for (name,) in self._db.execute("SELECT name FROM buckets ORDER BY name")]

    def objects(self) -> Iterator[Stored]:
        """All objects."""
        for bucket, key, etag, modified, headers, body in self._db.execute(
            "SELECT bucket, key, etag, modified, headers, body FROM objects"
        ):
            yield Stored(bucket, key, etag, datetime.fromtimestamp(modified, UTC), from_json(headers), body)

    def add_bucket(self, name: str) -> None:
        """Remembers a bucket."""
        self._db.execute("INSERT OR IGNORE INTO buckets VALUES (?)", (name,))

    def remove_bucket(self, name: str) -> None:
        """Forgets an empty bucket."""
        self._db.execute("DELETE FROM buckets WHERE name = ?", (name,))

    def save(self, stored: Stored) -> None:
        """Writes an object, or replaces it."""
        row = (stored.bucket, stored.key, stored.etag, stored.modified.timestamp(), to_json(stored.headers).decode())
        self._db.execute("INSERT OR REPLACE INTO objects VALUES (?, ?, ?, ?, ?, ?)", (*row, stored.body))

    def remove(self, bucket: str, key: str) -> None:
        """Forgets an object."""
        self._db.execute("DELETE FROM objects WHERE bucket = ? AND key = ?", (bucket, key))
