"""Job records: what is in work. One object a file version under ``_open/``, removed when its manifest exists."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llmdo.storage.errors import AlreadyExists, ObjectChanged, ObjectNotFound
from llmdo.storage.objects.local import is_by_time
from llmdo.storage.objects.store import R2_SCHEME, ObjectStore
from llmdo.storage.runs.runs import Owner

FOLDER = "_open/"


class JobRecord(BaseModel):
    """One file version that is in work, and all that is needed to go on with it without the queue.

    ``notification`` is the whole message that announced it; ``configuration`` the fingerprint of model, prompt and
    parameters; ``run_id`` the run that works on it, empty when nobody does; ``opened_at`` ISO 8601 in UTC.
    ``failures`` counts the tries to open the file that failed, ``problem`` says why the last one did; a ``dead`` one is
    in the dead letters, and is not swept up again.
    """

    model_config = ConfigDict(frozen=True)

    version: Literal[1] = 1
    store_url: str
    key: str
    etag: str
    size: int = Field(ge=0, lt=1 << 63)
    notification: dict[str, Any]
    configuration: str
    run_id: Owner
    nonce: str
    opened_at: str
    failures: int = Field(default=0, ge=0, lt=1 << 31)
    problem: str = ""
    dead: bool = False


@dataclass(frozen=True, slots=True)
class Claim:
    """What a claim found: the record that counts now, and the one that it replaced, if any."""

    record: JobRecord
    before: JobRecord | None = None


@dataclass(frozen=True, slots=True)
class Jobs:
    """The job records of one output prefix (with '/' at its end, or empty)."""

    store: ObjectStore
    prefix: str

    def claim(self, record: JobRecord, is_alive: Callable[[str], bool]) -> Claim:
        """Writes the record, or takes over one whose owner ``is_alive`` denies, or that cannot be read.

        The nonce of the result's record tells whose the file is: this claim's own, or that of another run, or of
        another claim of this run. Failures are carried on, unless they ended in the dead letters. Raises StorageError.
        """
        key, ours = self._key(record), record.run_id
        while True:
            before: JobRecord | None = None
            try:
                self.store.put_if_absent(key, record.model_dump_json().encode())
            except AlreadyExists:
                try:
                    found, etag = self.store.read(key)
                    before = _read(found)
                    # A repeated PUT whose first reply was lost finds its own record, by the nonce.
                    if before is not None and before.nonce == record.nonce:
                        return Claim(before)
                    if before is not None and before.run_id and (before.run_id == ours or is_alive(before.run_id)):
                        return Claim(before)
                    if before is not None and not before.dead:
                        record = record.model_copy(update={"failures": before.failures, "problem": before.problem})
                    self.store.put_if_match(key, record.model_dump_json().encode(), etag)
                except (ObjectChanged, ObjectNotFound):
                    continue
            return Claim(record, before)

    def release(self, record: JobRecord) -> None:
        """Writes what is known of a file that nobody works on now, unless the record is another claim's by now.

        Raises StorageError.
        """
        key = self._key(record)
        try:
            found, etag = self.store.read(key)
            there = _read(found)
            if there is None or there.nonce == record.nonce:
                self.store.put_if_match(key, record.model_copy(update={"run_id": ""}).model_dump_json().encode(), etag)
        except (ObjectChanged, ObjectNotFound):
            return

    def read(self, record_key: tuple[str, str, str]) -> JobRecord | None:
        """The record of (store_url, key, etag), or None where there is none that can be read."""
        try:
            return _read(self.store.read(self.prefix + FOLDER + record_name(*record_key))[0])
        except ObjectNotFound:
            return None

    def remove(self, record_key: tuple[str, str, str]) -> None:
        """Removes the record of (store_url, key, etag); nothing happens where none is."""
        self.store.delete(self.prefix + FOLDER + record_name(*record_key))

    def sweep(self, known: Container[str] = ()) -> Iterator[JobRecord | ValueError]:
        """Every record of the output: the files that some run began and none has finished.

        One that cannot be read comes as a ValueError that names it, so that the others still count. Those with a
        ``known`` name (``record_name``) are not read.
        """
        for info in self.store.list(self.prefix + FOLDER):
            if info.key.removeprefix(self.prefix + FOLDER) in known:
                continue
            try:
                body, _ = self.store.read(info.key)
                yield JobRecord.model_validate_json(body)
            except ObjectNotFound:
                continue
            except ValidationError:
                yield ValueError(
                    f"{self.store.url}/{info.key} is not a job record that this version can read: move it away, and "
                    "send the file again"
                )

    def _key(self, record: JobRecord) -> str:
        return self.prefix + FOLDER + record_name(record.store_url, record.key, record.etag)


def record_name(store_url: str, key: str, etag: str) -> str:
    """``<sha256 of the three>.json``; a local version by content is the same in every folder, as its shards are."""
    if not store_url.startswith(R2_SCHEME) and not is_by_time(etag):
        store_url = ""
    return hashlib.sha256("\n".join((store_url, key, etag)).encode()).hexdigest() + ".json"


def new_record(
    store_url: str,
    key: str,
    etag: str,
    size: int,
    *,
    notification: dict[str, Any],
    configuration: str,
    run_id: str,
    nonce: str = "",
) -> JobRecord:
    """A record of now; ``nonce`` names what asked for the file, the same when it asks again (else a fresh one)."""
    return JobRecord(
        store_url=store_url,
        key=key,
        etag=etag,
        size=size,
        notification=notification,
        configuration=configuration,
        run_id=run_id,
        nonce=nonce or uuid.uuid4().hex,
        opened_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
    )


def _read(body: bytes) -> JobRecord | None:
    try:
        return JobRecord.model_validate_json(body)
    except ValidationError:
        return None
