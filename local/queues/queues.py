"""Queues in one SQLite file: leases, attempts, delays, retries, dead letters.

A message is leased until its visibility timeout. An ack removes it even after that, unless it has been delivered again.
The delivery whose number reaches the consumer's ``max_retries`` is the last one: after it the message is moved to the
dead letter queue, which is created on demand, or deleted
(developers.cloudflare.com/queues/configuration/pull-consumers). A queue without a consumer has no such limit.
"""

from __future__ import annotations

import base64
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from llmdo.settings.private import make_database

ContentType = Literal["json", "text", "bytes"]
RETENTION_S = 345_600  # four days: developers.cloudflare.com/queues/platform/limits

_SCHEMA = """
CREATE TABLE IF NOT EXISTS queues (
    queue_id TEXT PRIMARY KEY, name TEXT UNIQUE NOT NULL, created_ms INTEGER NOT NULL, modified_ms INTEGER NOT NULL,
    delivery_delay INTEGER NOT NULL, delivery_paused INTEGER NOT NULL, retention_s INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS consumers (
    consumer_id TEXT PRIMARY KEY, queue_id TEXT UNIQUE NOT NULL REFERENCES queues ON DELETE CASCADE,
    created_ms INTEGER NOT NULL, dead_letter_queue TEXT NOT NULL, batch_size INTEGER NOT NULL,
    max_retries INTEGER NOT NULL, retry_delay INTEGER NOT NULL, visibility_timeout_ms INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS messages (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL,
    queue_id TEXT NOT NULL REFERENCES queues ON DELETE CASCADE,
    body BLOB NOT NULL, content_type TEXT NOT NULL, created_ms INTEGER NOT NULL, visible_ms INTEGER NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0, lease_id TEXT);
CREATE INDEX IF NOT EXISTS messages_by_time ON messages (queue_id, visible_ms);
CREATE INDEX IF NOT EXISTS messages_by_age ON messages (queue_id, created_ms);
CREATE INDEX IF NOT EXISTS messages_by_attempts ON messages (queue_id, attempts) WHERE attempts > 0;
CREATE INDEX IF NOT EXISTS messages_by_lease ON messages (lease_id) WHERE lease_id IS NOT NULL;
"""


@dataclass(frozen=True, slots=True)
class Queue:
    """A row of the table: delay and retention in seconds, times in ms since 1970."""

    queue_id: str
    name: str
    created_ms: int
    modified_ms: int
    delivery_delay: int = 0
    delivery_paused: bool = False
    message_retention_period: int = RETENTION_S


@dataclass(frozen=True, slots=True)
class PullConsumer:
    """A row of the table: the HTTP pull consumer of a queue. Without one, these defaults hold."""

    consumer_id: str = ""
    queue_id: str = ""
    created_ms: int = 0
    dead_letter_queue: str = ""  # its name
    batch_size: int = 5
    max_retries: int = 3
    retry_delay: int = 0
    visibility_timeout_ms: int = 30_000


@dataclass(frozen=True, slots=True)
class NewMessage:
    """A message to push; ``delay_seconds`` None takes the queue's own delay."""

    body: bytes
    content_type: ContentType = "json"
    delay_seconds: int | None = None


@dataclass(frozen=True, slots=True)
class LeasedMessage:
    """A message as it was delivered."""

    lease_id: str
    id: str
    body: bytes
    content_type: ContentType
    created_ms: int
    attempts: int

    @property
    def wire_body(self) -> str:
        """The body as the API sends it: text as it is, JSON and bytes in base64."""
        return self.body.decode() if self.content_type == "text" else base64.b64encode(self.body).decode()


@dataclass(frozen=True, slots=True)
class SettledLeases:
    """What became of acknowledgements; ``warnings`` by lease id."""

    acknowledged: int
    retried: int
    warnings: dict[str, str]


class Queues:
    """All queues of a data directory. For one thread at a time; ``clock`` returns seconds since 1970."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        make_database(path)
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        # With WAL a killed server loses nothing; a power cut could, which does not matter in a local stand-in.
        self._db.executescript(f"PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; PRAGMA foreign_keys=ON; {_SCHEMA}")

    def close(self) -> None:
        """Closes the file."""
        self._db.close()

    @property
    def database(self) -> sqlite3.Connection:
        """The open database, for the notification rules that live beside the queues."""
        return self._db

    def create(self, name: str) -> Queue:
        """A new queue. Raises ValueError if the name is taken."""
        now = self._now()
        queue = Queue(secrets.token_hex(16), name, now, now)
        try:
            self._db.execute("INSERT INTO queues VALUES (?, ?, ?, ?, ?, ?, ?)", astuple(queue))
        except sqlite3.IntegrityError as error:
            raise ValueError(name) from error
        return queue

    def ensure(self, name: str) -> Queue:
        """The queue of this name, created if need be."""
        return self.by_name(name) or self.create(name)

    def queues(self) -> list[Queue]:
        """All queues, the oldest first."""
        return [Queue(*row) for row in self._db.execute("SELECT * FROM queues ORDER BY created_ms, name")]

    def by_id(self, queue_id: str) -> Queue | None:
        """The queue of this id."""
        return next((queue for queue in self.queues() if queue.queue_id == queue_id), None)

    def by_name(self, name: str) -> Queue | None:
        """The queue of this name."""
        return next((queue for queue in self.queues() if queue.name == name), None)

    def update(self, queue: Queue, settings: Mapping[str, Any]) -> Queue:
        """Changes the fields of ``settings``."""
        new = replace(queue, modified_ms=self._now(), **settings)
        self._db.execute(
            "UPDATE queues SET modified_ms = ?, delivery_delay = ?, delivery_paused = ?, retention_s = ?"
            " WHERE queue_id = ?",
            (*astuple(new)[3:], new.queue_id),
        )
        return new

    def delete(self, queue: Queue) -> None:
        """Removes a queue with its consumer and messages."""
        self._db.execute("DELETE FROM queues WHERE queue_id = ?", (queue.queue_id,))

    def consumer(self, queue: Queue) -> PullConsumer | None:
        """The queue's HTTP pull consumer."""
        row = self._db.execute("SELECT * FROM consumers WHERE queue_id = ?", (queue.queue_id,)).fetchone()
        return PullConsumer(*row) if row else None

    def set_consumer(self, queue: Queue, dead_letter_queue: str, settings: Mapping[str, Any]) -> PullConsumer:
        """Creates the queue's consumer and dead letter queue, or changes the consumer's fields of ``settings``."""
        old = self.consumer(queue) or PullConsumer(secrets.token_hex(16), queue.queue_id, self._now())
        if dead_letter_queue:
            self.ensure(dead_letter_queue)
        new = replace(old, dead_letter_queue=dead_letter_queue, **settings)
        self._db.execute("INSERT OR REPLACE INTO consumers VALUES (?, ?, ?, ?, ?, ?, ?, ?)", astuple(new))
        return new

    def delete_consumer(self, queue: Queue) -> None:
        """Removes the queue's consumer."""
        self._db.execute("DELETE FROM consumers WHERE queue_id = ?", (queue.queue_id,))

    def push(self, queue: Queue, messages: Iterable[NewMessage]) -> None:
        """Adds messages, all or none."""
        now = self._now()
        with self._transaction():
            self._db.executemany(
                "INSERT INTO messages (id, queue_id, body, content_type, created_ms, visible_ms)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                (
                    (
                        secrets.token_hex(16),
                        queue.queue_id,
                        m.body,
                        m.content_type,
                        now,
                        now + 1000 * (queue.delivery_delay if m.delay_seconds is None else m.delay_seconds),
                    )
                    for m in messages
                ),
            )

    def pull(self, queue: Queue, batch_size: int, visibility_timeout_ms: int) -> list[LeasedMessage]:
        """Leases up to ``batch_size`` visible messages, the oldest first. Does not wait."""
        now = self._now()
        with self._transaction():
            self._sweep(now)
            rows = self._db.execute(
                "SELECT sequence, id, body, content_type, created_ms, attempts + 1 FROM messages"
                " WHERE queue_id = ? AND visible_ms <= ? ORDER BY visible_ms, sequence LIMIT ?",
                (queue.queue_id, now, batch_size),
            ).fetchall()
            leased = [(sequence, LeasedMessage(secrets.token_urlsafe(24), *rest)) for sequence, *rest in rows]
            self._db.executemany(
                "UPDATE messages SET attempts = ?, lease_id = ?, visible_ms = ? WHERE sequence = ?",
                ((m.attempts, m.lease_id, now + visibility_timeout_ms, sequence) for sequence, m in leased),
            )
        return [message for _, message in leased]

    def settle(self, queue: Queue, acks: Iterable[str], retries: Iterable[tuple[str, int | None]]) -> SettledLeases:
        """Removes acknowledged messages and returns others after a delay in seconds; None: the consumer's delay.

        An expired lease counts until the message is delivered again.
        """
        now, warnings = self._now(), dict[str, str]()
        consumer = self.consumer(queue) or PullConsumer()

        def change(statement: str, lease_id: str, *values: int) -> int:
            where = "WHERE lease_id = ? AND queue_id = ?"
            changed = self._db.execute(f"{statement} {where}", (*values, lease_id, queue.queue_id)).rowcount
            if not changed:
                warnings[lease_id] = "lease is not known, or the message was delivered again"
            return changed

        with self._transaction():
            acknowledged = sum(change("DELETE FROM messages", lease_id) for lease_id in acks)
            retried = sum(
                change(
                    "UPDATE messages SET visible_ms = ?, lease_id = NULL",
                    lease_id,
                    now + 1000 * (consumer.retry_delay if delay is None else delay),
                )
                for lease_id, delay in retries
            )
            self._sweep(now)
        return SettledLeases(acknowledged, retried, warnings)

    def backlog(self, queue: Queue) -> dict[str, int]:
        """Counts what is not acknowledged yet, including leased and delayed messages, by the API's names."""
        self._sweep(self._now())
        row = self._db.execute(
            "SELECT count(*), coalesce(sum(length(body)), 0), coalesce(min(created_ms), 0) FROM messages"
            " WHERE queue_id = ?",
            (queue.queue_id,),
        ).fetchone()
        return dict(zip(("backlog_count", "backlog_bytes", "oldest_message_timestamp_ms"), row, strict=True))

    def _sweep(self, now: int) -> None:
        """Moves exhausted messages to their dead letter queues or deletes them, as it does expired ones."""
        for queue in self.queues():
            self._db.execute(
                "DELETE FROM messages WHERE queue_id = ? AND created_ms <= ?",
                (queue.queue_id, now - 1000 * queue.message_retention_period),
            )
            consumer = self.consumer(queue)
            if consumer is None:
                continue
            exhausted = self._db.execute(
                "SELECT sequence FROM messages WHERE queue_id = ? AND attempts > 0 AND attempts >= ?"
                " AND (lease_id IS NULL OR visible_ms <= ?)",
                (queue.queue_id, consumer.max_retries, now),
            ).fetchall()
            for (sequence,) in exhausted:
                self._bury(sequence, consumer.dead_letter_queue, now)

    def _bury(self, sequence: int, dead_letter_queue: str, now: int) -> None:
        if dead_letter_queue:
            self._db.execute(
                "INSERT INTO messages (id, queue_id, body, content_type, created_ms, visible_ms)"
                " SELECT id, ?, body, content_type, ?, ? FROM messages WHERE sequence = ?",
                (self.ensure(dead_letter_queue).queue_id, now, now, sequence),
            )
        self._db.execute("DELETE FROM messages WHERE sequence = ?", (sequence,))

    def _transaction(self) -> AbstractContextManager[sqlite3.Connection]:
        self._db.execute("BEGIN IMMEDIATE")
        return self._db  # commits, or rolls back on an error

    def _now(self) -> int:
        return int(self._clock() * 1000)
