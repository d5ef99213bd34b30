"""The records of an output's batches: one small object each, ``OUTPUT/_batches/NONCE.json``."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import cache

from pydantic import TypeAdapter

from llmdo.backends.lanes.records import BatchRecord
from llmdo.storage.errors import ObjectNotFound, StorageError
from llmdo.storage.objects.opening import open_store
from llmdo.storage.objects.store import Location, ObjectStore
from llmdo.storage.output.jobs import JobRecord, Jobs
from llmdo.storage.runs.runs import seen_runs

BATCHES = "_batches/"
_RECORD = TypeAdapter(BatchRecord)
_log = logging.getLogger(__name__)


def is_awaited(batch: BatchRecord, in_work: Collection[str]) -> bool:
    """Whether a file of ``in_work`` (places of files) can have lines in a batch.

    Its lines may never come again: the file was changed, or removed, after they were handed over.
    """
    named = sum(batch.files.values())
    if 0 < named < batch.lines:  # not all of its files are
        return len(in_work) > 0
    return not named or any(place in batch.files for place in in_work)


def awaited_in(output: Location, run_id: str) -> Callable[[BatchRecord], bool]:
    """Whether anybody waits for a batch when a run has ended its work: by the files that are still open in the output.

    While another run lives, every batch is awaited; so it is where that cannot be read. Looked at when first asked.
    """
    store = open_store(output.store_url)

    @cache
    def in_work() -> frozenset[str] | None:
        try:
            if any(run.alive and run.beat.run_id != run_id for run in seen_runs(store, output.key)):
                return None
            found = list(Jobs(store, output.key).sweep())
        except StorageError:
            return None
        known = [one for one in found if isinstance(one, JobRecord)]
        return frozenset(f"{one.store_url}/{one.key}" for one in known) if len(known) == len(found) else None

    def awaited(batch: BatchRecord) -> bool:
        places = in_work()
        return places is None or is_awaited(batch, places)

    return awaited


@dataclass(frozen=True, slots=True)
class OutputBatches:
    """See BatchRecords. ``ledger``: where this run keeps its pointers, for people."""

    output: Location
    ledger: str = ""

    @property
    def place(self) -> str:
        """The common beginning of all names."""
        return "/".join(filter(None, (self.output.store_url, self.output.key.strip("/"), BATCHES)))

    def keep(self, record: BatchRecord) -> None:
        """See BatchRecords."""
        self._store.put(self._key(record.nonce), _RECORD.dump_json(record))

    def find(self, nonce: str) -> BatchRecord | None:
        """See BatchRecords."""
        return self._read(self._key(nonce))

    def open(self) -> list[BatchRecord]:
        """See BatchRecords."""
        return [record for record in self.all() if not record.ended_at]

    def all(self) -> Iterator[BatchRecord]:
        """Those of batches that have ended, too; one that cannot be read is left out with a warning."""
        for info in self._store.list(self.output.key + BATCHES):
            if (record := self._read(info.key)) is not None:
                yield record

    @property
    def _store(self) -> ObjectStore:
        return open_store(self.output.store_url)

    def _key(self, nonce: str) -> str:
        return f"{self.output.key}{BATCHES}{nonce}.json"

    def _read(self, key: str) -> BatchRecord | None:
        try:
            return _RECORD.validate_json(self._store.read(key)[0])
        except ObjectNotFound:
            return None
        except ValueError:
            _log.warning("%s/%s is not a record of a batch that this version can read", self._store.url, key)
            return None
