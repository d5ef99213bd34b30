"""R2's event notifications: what a queue message says, and whether it is about an input file.

Source: developers.cloudflare.com/r2/buckets/event-notifications.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llmdo.storage.objects.store import Location

_CREATING = frozenset({"PutObject", "CopyObject", "CompleteMultipartUpload"})


@dataclass(frozen=True, slots=True)
class ObjectCreated:
    """An object was written, or overwritten; by now it may be another version, or gone.

    Attributes:
        key: literal, as R2 stores it; event notifications do not URL-encode.
        etag: without quotes; None if the event has none.
        size: bytes; None if the event has none.
        body: the whole notification.
    """

    bucket: str
    key: str
    etag: str | None
    size: int | None
    body: Mapping[str, Any]


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


def parse_notification(body: object) -> ObjectCreated | None:
    """The new object of a decoded message body; None for a deletion, and for anything else that a queue may hold."""
    try:
        event = _Event.model_validate(body)
    except ValidationError:
        return None
    if not isinstance(body, Mapping) or event.action not in _CREATING:
        return None
    etag = (event.object.etag or "").strip('"') or None
    return ObjectCreated(event.bucket, event.object.key, etag, event.object.size, body)


def is_hidden(below: str) -> bool:
    """Whether a path, relative to the folder that was named, has a part that begins with a dot."""
    return any(part.startswith(".") for part in below.split("/") if part not in {".", ".."})


def is_input(event: ObjectCreated, prefix: str, suffixes: Sequence[str], output: Location) -> bool:
    """Whether an object is an input file: below ``prefix``, not hidden, with one of the ``suffixes`` in any case.

    A key below ``output`` is never an input: shards cause events too, and answering them would never end.
    """
    folder = output.key.rstrip("/")
    in_output = event.bucket == output.bucket and (not folder or event.key.startswith(f"{folder}/"))
    named = event.key.startswith(prefix) and event.key.lower().endswith(tuple(suffixes))
    return named and not in_output and not is_hidden(event.key.removeprefix(prefix))
