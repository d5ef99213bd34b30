"""Job records: the files in progress. One object a file version under ``_open/``, removed once it has a manifest."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llmdo.storage.errors import AlreadyExists, ObjectChanged, ObjectNotFound
from llmdo.storage.objects.local import is_by_time
from llmdo.storage.objects.store import R2_SCHEME, ObjectStore
from llmdo.storage.output.manifests import FormatName
from llmdo.storage.runs.runs import Owner

JOBS = "_open/"


class JobRecord(BaseModel):
    """One file version in progress, and everything that is needed to continue it without the queue.

    ``notification`` is the whole message that announced it; ``configuration`` the fingerprint of model, prompt and
    parameters; ``run_id`` the run that works on it, or empty; ``nonce`` names what asked for the file, the same when it
    asks again; ``opened_at`` ISO 8601 in UTC. ``failures`` counts failed attempts to open the file, and ``problem``
    says why the last one failed; a ``dead`` record is in the dead letters, and a sweep ignores it. ``format`` names
    the file's format if its key's ending does not decide it, else it is "".
    """

    model_config = ConfigDict(frozen=True)

    version: Literal[1] = 1
    store_url: str
    key: str
    etag: str
    size: int = Field(ge=0, lt=1 << 63)
    format: FormatName | Literal[""] = ""
    notification: dict[str, Any]
    configuration: str
    run_id: Owner
    nonce: str = Field(default_factory=lambda: uuid.uuid4().hex)
    opened_at: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="milliseconds"))
    failures: int = Field(default=0, ge=0, lt=1 << 31)
    problem: str = ""
    dead: bool = False


@dataclass(frozen=True, slots=True)
class Claim:
    """The result of a claim: the record that counts now, and the one that it replaced, if any."""

    record: JobRecord
    before: JobRecord | None = None


@dataclass(frozen=True, slots=True)
class Jobs:
    """The job records of one output prefix (with '/' at its end, or empty)."""

    store: ObjectStore
    prefix: str

    def claim(self, record: JobRecord, is_alive: Callable[[str], bool]) -> Claim:
        """Writes the record, or takes over one whose owner is dead according to ``is_alive``, or that cannot be read.

        The nonce of the resulting record says whose the file is: this claim's, another run's, or another claim's of
        this run. Failures are carried over, unless the file ended in the dead letters. Raises StorageError.
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
                    # A PUT that was retried after a lost reply finds its own record, by the nonce.
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
        """Frees a file for other runs, unless the record is another claim's by now. Raises StorageError."""
        key = self._key(record)
        try:
            found, etag = self.store.read(key)
            there = _read(found)
            if there is None or there.nonce == record.nonce:
                self.store.put_if_match(key, record.model_copy(update={"run_id": ""}).model_dump_json().encode(), etag)
        except (ObjectChanged, ObjectNotFound):
            return

    def read(self, record_key: tuple[str, str, str]) -> JobRecord | None:
        """The record of (store_url, key, etag), or None if there is none that can be read."""
        try:
            return _read(self.store.read(self.prefix + JOBS + record_name(*record_key))[0])
        except ObjectNotFound:
            return None

    def remove(self, record_key: tuple[str, str, str]) -> None:
        """Removes the record of (store_url, key, etag), if there is one."""
        self.store.delete(self.prefix + JOBS + record_name(*record_key))

    def remove_many(self, record_keys: Sequence[tuple[str, str, str]]) -> None:
        """Removes the records of up to 1,000 files, as ``remove`` does, with one operation where the store can."""
        self.store.delete_many([self.prefix + JOBS + record_name(*record_key) for record_key in record_keys])

    def sweep(self, known: Container[str] = ()) -> Iterator[JobRecord | ValueError]:
        """Every record of the output: the files that some run has started and none has finished.

        One that cannot be read is yielded as a ValueError that names it, so that the others still count. Records with a
        ``known`` name (``record_name``) are not read.
        """
        for info in self.store.list(self.prefix + JOBS):
            if info.key.removeprefix(self.prefix + JOBS) in known:
                continue
            found = self.read_at(info.key)
            if found is not None:
                yield found

    def read_at(self, key: str) -> JobRecord | ValueError | None:
        """The record that is there, or what is wrong with it; None if it is gone."""
        try:
            body, _ = self.store.read(key)
            return JobRecord.model_validate_json(body)
        except ObjectNotFound:
            return None
        except ValidationError:
            return ValueError(
                f"{self.store.url}/{key} is not a job record that this version can read: move it away, and send the "
                "file again"
            )

    def are_there(self) -> bool:
        """Whether any file is in progress."""
        return next(self.store.versions(self.prefix + JOBS), None) is not None

    def _key(self, record: JobRecord) -> str:
        return self.prefix + JOBS + record_name(record.store_url, record.key, record.etag)


def record_name(store_url: str, key: str, etag: str) -> str:
    """``<sha256 of the three>.json``; for a version by content without the folder, as for its shards."""
    if not store_url.startswith(R2_SCHEME) and not is_by_time(etag):
        store_url = ""
    return hashlib.sha256("\n".join((store_url, key, etag)).encode()).hexdigest() + ".json"


def _read(body: bytes) -> JobRecord | None:
    try:
        return JobRecord.model_validate_json(body)
    except ValidationError:
        return None
