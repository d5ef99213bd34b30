"""The records of an output's batches: one small object each, ``OUTPUT/_batches/NONCE.json``."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass

from pydantic import TypeAdapter

from llmdo.backends.lanes.records import BatchRecord
from llmdo.storage.errors import ObjectNotFound
from llmdo.storage.objects.opening import open_store
from llmdo.storage.objects.store import Location, ObjectStore

BATCHES = "_batches/"
_RECORD = TypeAdapter(BatchRecord)
_log = logging.getLogger(__name__)


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
