"""Cloudflare Queues over HTTP: pull, ack, push, and how often to ask.

Source: developers.cloudflare.com/queues/configuration/pull-consumers and /queues/platform/limits. Calls block: one
puller is enough for a queue's notifications.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, TypeVar

import httpx
from pydantic import AliasPath, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import to_json

from llmdo.settings.environment import CloudflareAccount
from llmdo.storage.errors import QueueError, QueueNotFound
from llmdo.storage.field_problems import first_problem
from llmdo.storage.queues.api import QueueApi
from llmdo.storage.queues.bodies import decode_body

MAX_BATCH = 100  # messages in a pull or push; leases in an ack, where the limit is not documented
_OVERHEAD_BYTES = 100  # about what Queues adds to a message
MAX_MESSAGE_BYTES = 128_000 - _OVERHEAD_BYTES
_MAX_PUSH_BYTES = 256_000
# Enough to write 100 job records. After a crash, messages without a record are delivered again after this time.
_VISIBILITY_TIMEOUT_S = 120.0
_TRIES = 4

_log = logging.getLogger(__name__)
M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class QueueMessage:
    """One leased message.

    Attributes:
        id: may be another at the next delivery.
        lease_id: what ``settle`` takes.
        attempts: deliveries so far, including this one.
        body: the decoded body; if not ``decodable``, the same as ``raw``.
        raw: the body as it came in the reply.
        timestamp_ms: when it was sent, in ms since 1970; 0 if unknown.
    """

    id: str
    lease_id: str
    attempts: int
    body: Any
    content_type: str
    decodable: bool
    raw: Any
    timestamp_ms: int = 0


@dataclass(frozen=True, slots=True)
class Pulled:
    """One pull; ``backlog`` is about how many messages are not acked yet, including leased ones, or None."""

    messages: tuple[QueueMessage, ...]
    backlog: int | None


class Consumer(BaseModel):
    """Who takes a queue's messages: ``type`` is "http_pull" or "worker"; None means unknown."""

    model_config = ConfigDict(frozen=True, populate_by_name=True)

    type: str = ""
    dead_letter_queue: str | None = None
    max_retries: int | None = Field(default=None, validation_alias=AliasPath("settings", "max_retries"))


class _Message(BaseModel):
    id: str | None = None
    lease_id: str
    attempts: float | None = None
    body: Any = None
    timestamp_ms: Any = None
    metadata: dict[str, Any] | None = None


class _Pull(BaseModel):
    message_backlog_count: float | None = None
    messages: list[Any] | None = None


class _Ack(BaseModel):
    acked: float | None = Field(default=None, alias="ackCount")
    warnings: dict[str, Any] | list[Any] | None = None


class _Metrics(BaseModel):
    backlog_count: float = 0
    oldest_message_timestamp_ms: float = 0


@dataclass(frozen=True, slots=True)
class Backlog:
    """About how many messages are not acked yet, including leased ones; since when, in Unix seconds, if it is known."""

    messages: int
    oldest_at: float | None


class _Queue(BaseModel):
    queue_id: str
    queue_name: str


def find_queue(account: CloudflareAccount, id_or_name: str, transport: httpx.BaseTransport | None = None) -> str:
    """A queue's id. 32 hexadecimal characters are an id and not looked up. Raises QueueNotFound and QueueError."""
    if re.fullmatch(r"[0-9a-fA-F]{32}", id_or_name):
        return id_or_name
    what = f"look up queue {id_or_name!r}"
    names: list[str] = []
    with QueueApi(account, transport, time.sleep) as api:
        for page in count(1):
            reply = api.call("GET", "/queues", what, params={"page": page, "per_page": 100}, tries=_TRIES)
            queues = [_checked(_Queue, queue, what) for queue in reply.result or ()]
            for queue in queues:
                if queue.queue_name == id_or_name:
                    return queue.queue_id
            fresh = [queue.queue_name for queue in queues if queue.queue_name not in names]
            names += fresh
            if not fresh or page >= (reply.result_info or {}).get("total_pages", page + 1):
                break
    there = f"the account has {', '.join(sorted(names)[:10])}" if names else "the account has none"
    raise QueueNotFound(f"{what}: there is no queue of this name, {there}; create it, or correct the name", 404)


class QueueClient(QueueApi):
    """One queue over HTTP. Thread-safe; close it, or use it in a ``with``.

    Methods raise QueueError: QueueNotFound and QueueUnauthorized end a run; for others, see
    ``llmdo.storage.errors.is_passing``. Only calls that may be repeated without harm are retried here.
    """

    def __init__(
        self,
        account: CloudflareAccount,
        queue_id: str,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        super().__init__(account, transport, sleep)
        self.queue_id = queue_id

    def pull(self, batch_size: int = MAX_BATCH, visibility_timeout_s: float = _VISIBILITY_TIMEOUT_S) -> Pulled:
        """Leases up to ``batch_size`` messages; returns at once, even with none.

        Never retried here: a pull whose reply was lost has leased its messages, and each lease counts towards the
        queue's max_retries. Messages without a lease id are skipped.
        """
        what = f"pull from queue {self.queue_id}"
        # Not "visibility_timeout", which some examples still have.
        body = {"batch_size": batch_size, "visibility_timeout_ms": round(visibility_timeout_s * 1000)}
        reply = self._call("POST", "/messages/pull", what, body=body, tries=1)
        result = _checked(_Pull, reply or {}, what)
        messages = tuple(_messages(result.messages or ()))
        backlog = result.message_backlog_count
        return Pulled(messages, None if backlog is None else int(backlog))

    def settle(self, leases: Sequence[str], *, tries: int = _TRIES) -> None:
        """Acks leases, 100 in a call; logs how many the queue did not take.

        Each call is tried up to ``tries`` times while it fails transiently: acking twice does no harm.
        """
        what = f"ack to queue {self.queue_id}"
        missing, warnings = 0, list[str]()
        for at in range(0, len(leases), MAX_BATCH):
            acks = [{"lease_id": lease} for lease in leases[at : at + MAX_BATCH]]
            reply = self._call("POST", "/messages/ack", what, body={"acks": acks, "retries": []}, tries=tries)
            ack = _checked(_Ack, reply or {}, what)
            found = _warnings(ack.warnings or [])
            warnings += found
            # Without a count each warning stands for one lease.
            missing += min(len(found), len(acks)) if ack.acked is None else max(0, len(acks) - int(ack.acked))
        if missing or warnings:
            _log.warning(
                "%s: %d of %d leases were not settled; their messages will be delivered again. %s",
                what,
                missing,
                len(leases),
                "; ".join(warnings[:3]),
            )

    def push_many(self, bodies: Iterable[Any]) -> None:
        """Sends messages, 100 or 256 KB a call: a str as text, any other value as JSON. A retry may send some twice."""
        what = f"push to queue {self.queue_id}"
        for batch in _batches(_outgoing(what, body) for body in bodies):
            self._call("POST", "/messages/batch", what, body={"messages": batch}, tries=_TRIES)

    def backlog(self) -> int:
        """About how many messages are not acked yet, including leased ones."""
        return self.backlog_now().messages

    def backlog_now(self) -> Backlog:
        """The same, and how old the oldest one is."""
        what = f"metrics of queue {self.queue_id}"
        found = _checked(_Metrics, self._call("GET", "/metrics", what, tries=_TRIES) or {}, what)
        return Backlog(int(found.backlog_count), found.oldest_message_timestamp_ms / 1000 or None)

    def consumers(self) -> tuple[Consumer, ...]:
        """Who takes this queue's messages. Pulling needs one of type "http_pull"."""
        what = f"consumers of queue {self.queue_id}"
        return tuple(
            _checked(Consumer, item, what) for item in self._call("GET", "/consumers", what, tries=_TRIES) or ()
        )

    def _call(self, method: str, path: str, what: str, *, body: Any = None, tries: int) -> Any:
        return self.call(method, f"/queues/{self.queue_id}{path}", what, body=body, tries=tries).result


class Pacer:
    """How long to wait before the next pull: not at all after a full batch, longer while the queue is idle.

    An idle queue is pulled once a second (or every ``poll_seconds``, if that is longer), because each empty pull is
    billed as a read. The API would allow 5,000 messages a second and queue. It only computes; the caller waits.
    """

    def __init__(self, poll_seconds: float) -> None:
        self._poll = poll_seconds
        self._slowest = max(poll_seconds, 1.0)
        self._idle = 0

    def wait(self, messages: int, batch_size: int = MAX_BATCH) -> float:
        """Seconds to wait after a pull that returned this number of messages."""
        self._idle = 0 if messages else self._idle + 1
        if messages >= batch_size:
            return 0.0
        return min(self._poll * 2.0 ** min(max(0, self._idle - 1), 10), self._slowest)


def _messages(found: Iterable[Any]) -> Iterator[QueueMessage]:
    for item in found:
        try:
            message = _Message.model_validate(item)
        except ValidationError as error:
            _log.warning("skipped a message without a usable lease: %s", first_problem(error))
            continue
        content_type = str((message.metadata or {}).get("CF-Content-Type") or "json").lower()
        body, decodable = decode_body(message.body, content_type)
        attempts = int(message.attempts or 1)
        sent_ms = int(message.timestamp_ms) if isinstance(message.timestamp_ms, int | float) else 0
        yield QueueMessage(
            message.id or "", message.lease_id, attempts, body, content_type, decodable, message.body, sent_ms
        )


def _warnings(given: dict[str, Any] | list[Any]) -> list[str]:
    if isinstance(given, dict):
        return [f"{lease[:16]}…: {text}" for lease, text in given.items()]
    return [str(text) for text in given]


def _outgoing(what: str, body: Any) -> dict[str, Any]:
    size = len(to_json(body))
    if size > MAX_MESSAGE_BYTES:
        raise QueueError(f"{what}: a message of {size} bytes is over 128 KB; put it into the bucket and send its key")
    return {"body": body, "content_type": "text" if isinstance(body, str) else "json"}


def _batches(messages: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    batch: list[dict[str, Any]] = []
    size = 0
    for message in messages:
        weight = len(to_json(message)) + _OVERHEAD_BYTES
        if batch and (len(batch) == MAX_BATCH or size + weight > _MAX_PUSH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(message)
        size += weight
    if batch:
        yield batch


def _checked(model: type[M], value: Any, what: str) -> M:
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise QueueError(
            f"{what}: the reply is not as documented, {first_problem(error)}; update llmdo", 200
        ) from error
