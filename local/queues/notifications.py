"""R2 event notifications: which events of which objects go to which queue, and the messages themselves.

Shapes: developers.cloudflare.com/r2/buckets/event-notifications and, for the configuration, wrangler's notification.ts.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any, Literal

from pydantic_core import from_json, to_json

from llmdo.local.queues.queues import NewMessage, Queue, Queues
from llmdo.local.settings import QUEUE
from llmdo.local.wire import timestamp

Action = Literal["PutObject", "CopyObject", "CompleteMultipartUpload", "DeleteObject", "LifecycleDeletion"]
CREATE_ACTIONS: tuple[Action, ...] = ("PutObject", "CompleteMultipartUpload", "CopyObject")
ACTIONS: tuple[Action, ...] = (*CREATE_ACTIONS, "DeleteObject", "LifecycleDeletion")
MAX_RULES = 100  # for a bucket: same page
# Stands for every bucket that has no configuration of its own.
ANY_BUCKET = "*"
DEFAULT_RULES = (("input/", ".jsonl"), ("input/", ".jsonl.gz"))


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to an object. Deletions have neither size nor etag; only copies have a source."""

    action: Action
    bucket: str
    key: str
    size: int | None = None
    etag: str | None = None
    source: tuple[str, str] | None = None  # bucket and key

    def message(self, account_id: str, at: float) -> dict[str, Any]:
        """The body of the queue message; ``at``: seconds since 1970."""
        thing: dict[str, Any] = {"key": self.key}
        if self.size is not None:
            thing |= {"size": self.size, "eTag": self.etag}
        body: dict[str, Any] = {
            "account": account_id,
            "action": self.action,
            "bucket": self.bucket,
            "object": thing,
            "eventTime": timestamp(int(at * 1000)),
        }
        if self.source:
            body["copySource"] = {"bucket": self.source[0], "object": self.source[1]}
        return body


@dataclass(frozen=True, slots=True)
class Rule:
    """Events of these actions on keys with this prefix and suffix go to one queue."""

    actions: tuple[Action, ...]
    rule_id: str
    bucket: str
    queue_id: str
    prefix: str
    suffix: str
    description: str
    created_ms: int

    def fits(self, event: Event) -> bool:
        """Whether this rule sends the event on."""
        return event.action in self.actions and event.key.startswith(self.prefix) and event.key.endswith(self.suffix)

    def overlaps(self, other: Rule) -> bool:
        """Whether one event could fit both."""
        prefixes = self.prefix.startswith(other.prefix) or other.prefix.startswith(self.prefix)
        suffixes = self.suffix.endswith(other.suffix) or other.suffix.endswith(self.suffix)
        return prefixes and suffixes and not set(self.actions).isdisjoint(other.actions)


class RuleConflict(Exception):
    """A rule overlaps another one of its bucket, or is one too many."""


class Rules:
    """The rules of all buckets, kept beside the queues."""

    def __init__(self, queues: Queues) -> None:
        self._queues = queues
        self._db = queues.database
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS rules (rule_id TEXT PRIMARY KEY, bucket TEXT NOT NULL,"
            " queue_id TEXT NOT NULL REFERENCES queues ON DELETE CASCADE, prefix TEXT NOT NULL, suffix TEXT NOT NULL,"
            " actions TEXT NOT NULL, description TEXT NOT NULL, created_ms INTEGER NOT NULL)"
        )
        self._all = self._load()

    def set_defaults(self) -> None:
        """Sends new JSONL files below input/, in any bucket, to the default queue, unless that is set already."""
        if not self._of(ANY_BUCKET):
            rules = [{"prefix": p, "suffix": s, "actions": CREATE_ACTIONS} for p, s in DEFAULT_RULES]
            self.add(ANY_BUCKET, self._queues.ensure(QUEUE), rules, at=0)

    def add(self, bucket: str, queue: Queue, rules: list[dict[str, Any]], at: float) -> None:
        """Adds rules to a bucket, all or none. Raises RuleConflict."""
        own = self._of(bucket)
        for given in rules:
            rule = Rule(
                tuple(given["actions"]),
                secrets.token_hex(16),
                bucket,
                queue.queue_id,
                given.get("prefix") or "",
                given.get("suffix") or "",
                given.get("description") or "",
                int(at * 1000),
            )
            if any(rule.overlaps(other) for other in own):
                raise RuleConflict(
                    f"a rule of bucket {bucket} covers some of the same events: give rules prefixes or suffixes apart"
                )
            own.append(rule)
        if len(own) > MAX_RULES:
            raise RuleConflict(f"bucket {bucket} would have more than {MAX_RULES} rules")
        known = {rule.rule_id for rule in self._all}
        self._db.executemany(
            "INSERT INTO rules VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                (r.rule_id, bucket, r.queue_id, r.prefix, r.suffix, to_json(r.actions), r.description, r.created_ms)
                for r in own
                if r.rule_id not in known
            ),
        )
        self._all = self._load()

    def remove(self, bucket: str, queue: Queue, rule_ids: list[str] | None) -> int:
        """Removes these rules of a bucket for a queue, or all of them; returns how many there were."""
        gone = [
            (rule.rule_id,)
            for rule in self._of(bucket)
            if rule.queue_id == queue.queue_id and (rule_ids is None or rule.rule_id in rule_ids)
        ]
        self._db.executemany("DELETE FROM rules WHERE rule_id = ?", gone)
        self._all = self._load()
        return len(gone)

    def of(self, bucket: str) -> list[Rule]:
        """The rules that hold for a bucket: its own, or else those for any bucket."""
        return self._of(bucket) or self._of(ANY_BUCKET)

    def publish(self, event: Event, account_id: str, at: float) -> None:
        """Puts the event into the queues whose rules it fits."""
        for rule in self.of(event.bucket):
            queue = self._queues.by_id(rule.queue_id) if rule.fits(event) else None
            if queue:
                self._queues.push(queue, [NewMessage(to_json(event.message(account_id, at)))])

    def _of(self, bucket: str) -> list[Rule]:
        return [rule for rule in self._all if rule.bucket == bucket]

    def _load(self) -> list[Rule]:
        rows = self._db.execute(
            "SELECT actions, rule_id, bucket, queue_id, prefix, suffix, description, created_ms FROM rules"
        )
        return [Rule(tuple(from_json(actions)), *rest) for actions, *rest in rows]
