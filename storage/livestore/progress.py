"""How far a store was read: one object beside the store's log of chats."""

from __future__ import annotations

import uuid
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from llmdo.storage.errors import AlreadyExists, ObjectNotFound, StorageError
from llmdo.storage.livestore.frames import Cursor
from llmdo.storage.objects.store import ObjectStore

CURSOR_NAME = "_cursor.json"


class StoreProgress(BaseModel):
    """What ``_cursor.json`` holds.

    Attributes:
        log: identifies the log of chats, for instances that share it.
        since: messages created earlier are not answered; Unix time in seconds.
        backend: the event log's id; "" before its first event was read.
        number: of its last event that need not be read again.
    """

    model_config = ConfigDict(frozen=True)

    version: Literal[1] = 1
    log: str
    since: float
    backend: str = ""
    number: int = 0

    @property
    def cursor(self) -> Cursor | None:
        """Where to begin; None for the start."""
        return Cursor(self.backend, self.number) if self.backend else None


def begin_progress(store: ObjectStore, prefix: str, since: float | None, now: float) -> tuple[StoreProgress, bool]:
    """The progress that is there, or a new one, and whether it is new.

    ``since`` is what the user asks for; without it, what was asked for first, or ``now``. If it is earlier than before,
    the store is read from its start. Raises StorageError.
    """
    key, first = prefix + CURSOR_NAME, StoreProgress(log=uuid.uuid4().hex[:8], since=now if since is None else since)
    try:
        store.put_if_absent(key, first.model_dump_json().encode())
        return first, True
    except AlreadyExists:
        found = _read(store, key)
    if since is None or since == found.since:
        return found, False
    again = {"backend": "", "number": 0} if since < found.since else {}
    changed = found.model_copy(update={"since": since, **again})
    store.put(key, changed.model_dump_json().encode())
    return changed, False


def write_progress(store: ObjectStore, prefix: str, progress: StoreProgress) -> None:
    """Keeps it. An older one does no harm: its events are read again. Raises StorageError."""
    store.put(prefix + CURSOR_NAME, progress.model_dump_json().encode())


def _read(store: ObjectStore, key: str) -> StoreProgress:
    try:
        return StoreProgress.model_validate_json(store.read(key)[0])
    except ObjectNotFound as error:
        raise StorageError(f"{store.url}/{key} was removed a moment ago: start again") from error
    except ValidationError:
        raise StorageError(
            f"{store.url}/{key} is not a cursor: remove it, and the store is read as if for the first time"
        ) from None
