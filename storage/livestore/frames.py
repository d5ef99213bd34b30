"""The frames of LiveStore's sync protocol: what a client writes, and what it reads.

Source: livestorejs/livestore at v0.4.0, packages/@livestore/sync-cf/src, and the frames that its 0.4.0 and 0.4.0-dev.22
exchange: Effect RPC, one JSON message in each text frame. Numbers are those of the log: an event's number is its
parent's plus one, and 0 is the start.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llmdo.storage.field_problems import first_problem

# Exactly these bytes are answered by Cloudflare's runtime without waking the Durable Object.
PING = '{"_tag":"Ping"}'
# Events and bytes of a push, at most; the backend's chunks keep to the same limits.
MOST_EVENTS, MOST_BYTES = 100, 900_000
# The backend accepts an event of more than 900,000 bytes and can then send nothing of its store to anybody.
MOST_EVENT_BYTES = 850_000
_ERROR = re.compile(r"[A-Za-z.]{0,60}Error")
# About what an event has besides its arguments. Bytes.
ENVELOPE_BYTES = 300


class BadFrame(ValueError):
    """A frame that is not part of the protocol."""


@dataclass(frozen=True, slots=True)
class Cursor:
    """A place in a log: everything up to ``number`` is known. ``backend`` identifies the log."""

    backend: str
    number: int


@dataclass(frozen=True, slots=True)
class NewEvent:
    """An event to be pushed."""

    name: str
    args: Mapping[str, Any]

    @property
    def size(self) -> int:
        """In a frame, in bytes, at most."""
        return len(encoded(self.args).encode()) + ENVELOPE_BYTES


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """An event of the log.

    Attributes:
        client: who pushed it.
        stored: when the backend stored it, by the backend's clock; when it came, if the backend does not say. Unix
            time in seconds.
    """

    name: str
    args: Mapping[str, Any]
    number: int
    parent: int
    client: str
    session: str
    stored: float

    @property
    def envelope(self) -> dict[str, Any]:
        """The event as LiveStore writes it."""
        return {
            "name": self.name,
            "args": dict(self.args),
            "seqNum": self.number,
            "parentSeqNum": self.parent,
            "clientId": self.client,
            "sessionId": self.session,
        }


@dataclass(frozen=True, slots=True)
class Chunk:
    """Events of a pull. ``more``: stored ones follow, once it is acknowledged."""

    request: str
    backend: str
    events: tuple[StoredEvent, ...]
    more: bool


@dataclass(frozen=True, slots=True)
class Refusal:
    """An error of the backend.

    Attributes:
        text: the backend's own words, which may repeat what it was sent, and so the payload (see StorePlace.shown).
        head: the number of the log's last event, if the error says it.
    """

    kind: str
    text: str
    head: int | None = None


@dataclass(frozen=True, slots=True)
class Exit:
    """The end of a request; without refusals it succeeded."""

    request: str
    refusals: tuple[Refusal, ...] = ()


@dataclass(frozen=True, slots=True)
class Pong:
    """The answer to PING."""


@dataclass(frozen=True, slots=True)
class Defect:
    """The backend could not read a frame, or failed outside of any request. ``text``: as in Refusal."""

    text: str


Frame = Chunk | Exit | Pong | Defect


def encoded(value: object) -> str:
    """As compact JSON. Raises ValueError for what JSON cannot hold."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def pull(request: str, store: str, payload: object, after: Cursor | None) -> str:
    """Asks for the events after a place, and for those that are stored from then on."""
    cursor: dict[str, Any] = {"_tag": "None"}
    if after is not None:
        cursor = {"_tag": "Some", "value": {"backendId": after.backend, "eventSequenceNumber": after.number}}
    return _request(request, "SyncWsRpc.Pull", {**_store(store, payload), "live": True, "cursor": cursor})


def push(request: str, store: str, payload: object, head: Cursor, events: Sequence[NewEvent], who: Author) -> str:
    """Appends events if ``head`` is the log's head."""
    batch = [
        {
            "name": event.name,
            "args": event.args,
            "seqNum": number + 1,
            "parentSeqNum": number,
            "clientId": who.client,
            "sessionId": who.session,
        }
        for number, event in enumerate(events, head.number)
    ]
    fields = {**_store(store, payload), "batch": batch, "backendId": {"_tag": "Some", "value": head.backend}}
    return _request(request, "SyncWsRpc.Push", fields)


def ack(request: str) -> str:
    """Acknowledges a chunk: the backend sends the next one."""
    return encoded({"_tag": "Ack", "requestId": request})


@dataclass(frozen=True, slots=True)
class Author:
    """Who pushes: names of ``[A-Za-z0-9_-]``."""

    client: str
    session: str


def read_frames(text: str) -> list[Frame]:
    """The messages of a frame. Raises BadFrame."""
    try:
        found = json.loads(text)
        return [_frame(one) for one in (found if isinstance(found, list) else [found])]
    except BadFrame:
        raise
    except ValueError as error:
        raise BadFrame(f"a frame that is not JSON: {error}") from None
    except RecursionError:
        raise BadFrame("a frame that is nested too deeply") from None


class _Encoded(BaseModel):
    model_config = ConfigDict(extra="ignore")

    name: str
    args: dict[str, Any] = {}
    number: int = Field(alias="seqNum")
    parent: int = Field(alias="parentSeqNum")
    client: str = Field("", alias="clientId")
    session: str = Field("", alias="sessionId")


class _Item(BaseModel):
    event: _Encoded = Field(alias="eventEncoded")
    metadata: Any = None


class _PageInfo(BaseModel):
    tag: str = Field(alias="_tag")


class _Page(BaseModel):
    batch: list[_Item]
    page: _PageInfo = Field(alias="pageInfo")
    backend: str = Field(alias="backendId")


def _frame(message: Any) -> Frame:
    match message:
        case {"_tag": "Pong"}:
            return Pong()
        case {"_tag": "Chunk", "requestId": request, "values": [*values]}:
            return _chunk(str(request), values)
        case {"_tag": "Exit", "requestId": request, "exit": {"_tag": "Success"}}:
            return Exit(str(request))
        case {"_tag": "Exit", "requestId": request, "exit": {"_tag": "Failure", **rest}}:
            refusals = tuple(_refusals(rest.get("cause")))
            return Exit(str(request), refusals or (Refusal("an unknown error", ""),))
        case {"_tag": "Defect", **rest}:
            return Defect(str(rest.get("defect")))
    raise BadFrame("a frame of an unknown form")


def _chunk(request: str, values: list[Any]) -> Chunk:
    events: list[StoredEvent] = []
    backend, more = "", False
    for value in values:
        try:
            page = _Page.model_validate(value)
        except ValidationError as error:
            raise BadFrame(f"a chunk that cannot be read: {first_problem(error)}") from None
        backend, more = page.backend, page.page.tag != "NoMore"
        events += [_stored(item) for item in page.batch]
    return Chunk(request, backend, tuple(events), more)


def _stored(item: _Item) -> StoredEvent:
    event, stored = item.event, time.time()
    match item.metadata:
        case {"_tag": "Some", "value": {"createdAt": str(text)}}:
            try:
                at = datetime.fromisoformat(text)
                stored = (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
            except ValueError:
                pass
    return StoredEvent(event.name, event.args, event.number, event.parent, event.client, event.session, stored)


def _refusals(cause: Any) -> Iterator[Refusal]:
    """All errors in an Effect cause: a tree of causes in 0.4.0, with errors inside errors in 0.4.0-dev.22, and a list
    in the release to come.
    """
    if isinstance(cause, list):
        for one in cause:
            yield from _refusals(one)
        return
    if not isinstance(cause, dict):
        return
    kind = cause.get("_tag") or cause.get("name") or ""
    if kind == "Die":
        yield Refusal("Die", str(cause.get("defect")))
    elif kind == "Interrupt":
        yield Refusal("Interrupt", "interrupted")
    elif isinstance(kind, str) and _ERROR.fullmatch(kind):
        head = cause.get("minimumExpectedNum")
        yield Refusal(kind, _words(cause), head if isinstance(head, int) else None)
    for name in ("error", "cause", "left", "right"):
        yield from _refusals(cause.get(name))


def _words(error: Mapping[str, Any]) -> str:
    """What an error says, but not what it repeats of the request."""
    said = (error.get(name) for name in ("message", "note", "cause"))
    return next((text for text in said if isinstance(text, str)), "")


def _request(request: str, tag: str, payload: Mapping[str, Any]) -> str:
    # The id is a string of decimal digits: any other ends the connection's handler, which nobody notices.
    return encoded({"_tag": "Request", "id": request, "tag": tag, "payload": payload, "headers": []})


def _store(store: str, payload: object) -> dict[str, Any]:
    return {"storeId": store} if payload is None else {"storeId": store, "payload": payload}
