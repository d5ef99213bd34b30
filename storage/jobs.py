"""Job records: what is in work. One object a file version under ``_open/``, removed when its manifest exists."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from storage.errors import AlreadyExists, ObjectChanged, ObjectNotFound
from storage.objects import ObjectStore

FOLDER = "_open/"


class JobRecord(BaseModel):
    """One file version that is in work, and all that is needed to go on with it without the queue.

    ``notification`` is the whole message that announced it; ``configuration`` the fingerprint of model, prompt and
    parameters; ``run_id`` the run that works on it; ``opened_at`` ISO 8601 in UTC.
    """

    model_config = ConfigDict(frozen=True)

    version: Literal[1] = 1
    store_url: str
    key: str
    etag: str
    size: int
    notification: dict[str, Any]
    configuration: str
    run_id: str
    nonce: str
    opened_at: str


@dataclass(frozen=True, slots=True)
class Jobs:
    """The job records of one output prefix (with '/' at its end, or empty)."""

    store: ObjectStore
    prefix: str

    def claim(self, record: JobRecord, is_alive: Callable[[str], bool]) -> str | None:
        """Writes the record, or takes over one whose owner ``is_alive`` denies, or that cannot be read.

        Returns None when the record in the output names this run now, else the run that works on the file. Raises
        StorageError.
        """
        key, body = self._key(record), record.model_dump_json().encode()
        while True:
            try:
                self.store.put_if_absent(key, body)
            except AlreadyExists:
                try:
                    found, etag = self.store.read(key)
                    owner = _read(found)
                    # A repeated PUT whose first reply was lost finds its own record: the nonce tells.
                    if owner is not None and owner.nonce != record.nonce:
                        if owner.run_id != record.run_id and is_alive(owner.run_id):
                            return owner.run_id
                        owner = None
                    if owner is None:
                        self.store.put_if_match(key, body, etag)
                except (ObjectChanged, ObjectNotFound):
                    continue
            return None

    def remove(self, record_key: tuple[str, str, str]) -> None:
        """Removes the record of (store_url, key, etag); nothing happens where none is."""
        self.store.delete(self.prefix + FOLDER + record_name(*record_key))

    def sweep(self) -> Iterator[JobRecord | ValueError]:
        """Every record of the output: the files that some run began and none has finished.

        One that cannot be read comes as a ValueError that names it, so that the others still count.
        """
        for info in self.store.list(self.prefix + FOLDER):
            try:
                body, _ = self.store.read(info.key)
                yield JobRecord.model_validate_json(body)
            except ObjectNotFound:
                continue
            except ValidationError:
                yield ValueError(
                    f"{self.store.url}/{info.key} is no job record that this version can read: move it away, and "
                    "send the file again"
                )

    def _key(self, record: JobRecord) -> str:
        return self.prefix + FOLDER + record_name(record.store_url, record.key, record.etag)


def record_name(store_url: str, key: str, etag: str) -> str:
    """``<sha256 of the three>.json``."""
    return hashlib.sha256("\n".join((store_url, key, etag)).encode()).hexdigest() + ".json"


def new_record(
    store_url: str, key: str, etag: str, size: int, *, notification: dict[str, Any], configuration: str, run_id: str
) -> JobRecord:
    """A record of now, with a fresh nonce."""
    return JobRecord(
        store_url=store_url,
        key=key,
        etag=etag,
        size=size,
        notification=notification,
        configuration=configuration,
        run_id=run_id,
        nonce=uuid.uuid4().hex,
        opened_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
    )


def _read(body: bytes) -> JobRecord | None:
    try:
        return JobRecord.model_validate_json(body)
    except ValidationError:
        return None
