"""R2 event notifications: which events of which objects go to which queue, and their messages.

Shapes: developers.cloudflare.com/r2/buckets/event-notifications and, for the configuration, wrangler's notification.ts.
"""

from __future__ import annotations

import secrets
from dataclasses import astuple, dataclass, replace
from typing import Any, Literal

from pydantic_core import from_json, to_json

from llmdo.local.queues.queues import NewMessage, Queue, Queues
from llmdo.local.settings import QUEUE
from llmdo.local.wire import Refused, timestamp

Action = Literal["PutObject", "CopyObject", "CompleteMultipartUpload", "DeleteObject", "LifecycleDeletion"]
CREATE_ACTIONS: tuple[Action, ...] = ("PutObject", "CompleteMultipartUpload", "CopyObject")
ACTIONS: tuple[Action, ...] = (*CREATE_ACTIONS, "DeleteObject", "LifecycleDeletion")
_MAX_RULES = 100  # for a bucket: same page
_CONFLICT = (409, 11020)  # wrangler expects the status; the code beside it is not documented
ANY_BUCKET = "*"  # every bucket that has no rules of its own
DEFAULT_RULES = tuple(
    ("input/", suffix) for suffix in (".jsonl", ".jsonl.gz", ".csv", ".csv.gz", ".tsv", ".json", ".parquet", ".pq")
)


@dataclass(frozen=True, slots=True)
class ObjectEvent:
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
    """A row of the table: events of these actions on keys with this prefix and suffix go to one queue."""

    rule_id: str
    bucket: str
    queue_id: str
    prefix: str
    suffix: str
    actions: tuple[Action, ...]
    description: str
    created_ms: int

    def fits(self, event: ObjectEvent) -> bool:
        """Whether this rule sends the event on."""
        return event.action in self.actions and event.key.startswith(self.prefix) and event.key.endswith(self.suffix)

    def overlaps(self, other: Rule) -> bool:
        """Whether one event could fit both."""
        prefixes = self.prefix.startswith(other.prefix) or other.prefix.startswith(self.prefix)
        suffixes = self.suffix.endswith(other.suffix) or other.suffix.endswith(self.suffix)
        return prefixes and suffixes and not set(self.actions).isdisjoint(other.actions)


class Rules:
    """The rules of all buckets, in the queues' database."""

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
            more = {"actions": CREATE_ACTIONS, "description": ""}
            rules = [{"prefix": prefix, "suffix": suffix, **more} for prefix, suffix in DEFAULT_RULES]
            self.add(ANY_BUCKET, self._queues.ensure(QUEUE), rules, at=0)

    def add(self, bucket: str, queue: Queue, rules: list[dict[str, Any]], at: float) -> None:
        """Adds rules to a bucket, all or none. Raises Refused if one overlaps another, or there are too many."""
        own, new = self._of(bucket), list[Rule]()
        for given in rules:
            rule = Rule(secrets.token_hex(16), bucket, queue.queue_id, created_ms=int(at * 1000), **given)
            if any(rule.overlaps(other) for other in (*own, *new)):
                message = (
                    f"a rule of bucket {bucket} covers some of the same events: make prefixes or suffixes disjoint"
                )
                raise Refused(*_CONFLICT, message)
            new.append(rule)
        if len(own) + len(new) > _MAX_RULES:
            raise Refused(*_CONFLICT, f"bucket {bucket} would have more than {_MAX_RULES} rules")
        self._db.executemany(
            "INSERT INTO rules VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            ((*astuple(rule)[:5], to_json(rule.actions), rule.description, rule.created_ms) for rule in new),
        )
        self._all = self._load()

    def remove(self, bucket: str, queue: Queue, rule_ids: list[str] | None) -> None:
        """Removes these rules of a bucket for a queue, or all of them."""
        gone = [
            (rule.rule_id,)
            for rule in self._of(bucket)
            if rule.queue_id == queue.queue_id and (rule_ids is None or rule.rule_id in rule_ids)
        ]
        self._db.executemany("DELETE FROM rules WHERE rule_id = ?", gone)
        self._all = self._load()

    def of(self, bucket: str) -> list[Rule]:
        """The rules that apply to a bucket: its own, or else those for any bucket."""
        return self._of(bucket) or self._of(ANY_BUCKET)

    def publish(self, event: ObjectEvent, account_id: str, at: float) -> None:
        """Puts the event into the queues whose rules it fits."""
        for rule in self.of(event.bucket):
            queue = self._queues.by_id(rule.queue_id) if rule.fits(event) else None
            if queue:
                self._queues.push(queue, [NewMessage(to_json(event.message(account_id, at)))])

    def _of(self, bucket: str) -> list[Rule]:
        return [rule for rule in self._all if rule.bucket == bucket]

    def _load(self) -> list[Rule]:
        rows = self._db.execute("SELECT * FROM rules")
        return [replace(Rule(*row), actions=tuple(from_json(row[5]))) for row in rows]
