"""R2's event notifications: what a queue message contains, and whether it is about an input file.

Source: developers.cloudflare.com/r2/buckets/event-notifications.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llmdo.storage.field_problems import first_problem
from llmdo.storage.objects.store import Location

_CREATING = frozenset({"PutObject", "CopyObject", "CompleteMultipartUpload"})
_DELETING = frozenset({"DeleteObject", "LifecycleDeletion"})


@dataclass(frozen=True, slots=True)
class ObjectCreated:
    """An object was written, or overwritten; by now it may be another version, or gone.

    Attributes:
        key: literal, as R2 stores it; event notifications do not URL-encode.
        etag: without quotes; None where the event has none.
        size: bytes; None where the event has none.
        body: the whole notification.
    """

    bucket: str
    key: str
    etag: str | None
    size: int | None
    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ObjectDeleted:
    """An object was deleted, by a request or by a lifecycle rule."""

    bucket: str
    key: str
    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class NotAnEvent:
    """A message that says nothing of an object; ``reason`` completes "passed over: …"."""

    reason: str


class _Object(BaseModel):
    key: str = Field(min_length=1)
    size: int | None = Field(default=None, ge=0)
    etag: str | None = Field(default=None, alias="eTag")


class _Event(BaseModel):
    # eventTime, account and copySource are not read: early notifications had none, and times are only hints.
    model_config = ConfigDict(extra="ignore")

    action: str
    bucket: str = Field(min_length=1)
    object: _Object


def parse_notification(body: object) -> ObjectCreated | ObjectDeleted | NotAnEvent:
    """Reads a decoded message body; anything may stand in a queue, so nothing raises."""
    if not isinstance(body, Mapping):
        return NotAnEvent(f"the body is {type(body).__name__}, not a JSON object")
    if "action" not in body and "type" in body and "source" in body:
        return NotAnEvent(f"{body['type']!r} is an event subscription's message, not an event of an object")
    try:
        event = _Event.model_validate(dict(body))
    except ValidationError as error:
        return NotAnEvent(f"not an event of an R2 object: {first_problem(error)}")
    if event.action in _DELETING:
        return ObjectDeleted(event.bucket, event.object.key, body)
    if event.action not in _CREATING:
        return NotAnEvent(f"the action {event.action!r} creates no object")
    etag = (event.object.etag or "").strip('"') or None
    return ObjectCreated(event.bucket, event.object.key, etag, event.object.size, body)


def is_hidden(below: str) -> bool:
    """Whether a path below the folder that was named has a part that begins with a dot."""
    return any(part.startswith(".") for part in below.split("/") if part not in {".", ".."})


def why_passed_over(event: ObjectCreated, prefix: str, suffixes: Sequence[str], output: Location) -> str | None:
    """None for an input file; else why it is skipped. No ``suffixes`` allow every key.

    A key below ``output`` is never wanted: shards fire events too, and answering them would never end.
    """
    folder = output.key.rstrip("/")
    if event.bucket == output.bucket and (not folder or event.key.startswith(f"{folder}/")):
        return f"{event.key!r} lies in the output, {output.store_url}/{folder}"
    if is_hidden(event.key.removeprefix(prefix)):
        return f"{event.key!r} is hidden"
    if not event.key.startswith(prefix):
        return f"{event.key!r} does not begin with {prefix!r}"
    if suffixes and not event.key.lower().endswith(tuple(suffix.lower() for suffix in suffixes)):
        return f"{event.key!r} does not end with {' or '.join(map(repr, suffixes))}"
    return None
