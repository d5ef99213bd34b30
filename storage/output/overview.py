"""What an output holds, seen from outside: files by state, runs, errors. Reads only."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import NamedTuple

from pydantic import ValidationError

from llmdo.storage.errors import ObjectNotFound, StorageError
from llmdo.storage.objects.store import R2_SCHEME, ObjectInfo, ObjectStore
from llmdo.storage.output.costs import NOTHING, Cost, total
from llmdo.storage.output.error_classes import ERRORS_READ, ErrorClass, ErrorRow, count_errors, read_error_shards
from llmdo.storage.output.jobs import JOBS, JobRecord, Jobs
from llmdo.storage.output.manifests import MANIFEST_NAME, Manifest, counts_as_output, file_folder
from llmdo.storage.output.receipts import FileReceipt, receipt_of
from llmdo.storage.runs.runs import SeenRun, seen_runs

# R2 answers in tens of milliseconds, so this number of objects is read at once.
_READS = 32
# The pause between two listings of the whole output, in multiples of what the last one took; none if it took less than
# these seconds. Then, how many folders are listed in the meantime.
_PAUSE, _SHORT, _FOLDERS = 9.0, 0.5, 64
# The part of the time for reading that manifests have, before errors.
_FOR_MANIFESTS = 0.7
# A listing that takes longer than these seconds shortens the time for reading, but never below this part of it.
_IN_TIME, _AT_LEAST = 3.0, 0.4


@dataclass(frozen=True, slots=True)
class DoneFile:
    """What a manifest says, as far as it is summed up."""

    answered: int
    failed: int
    input_tokens: int
    output_tokens: int
    cost: Cost
    finished: datetime
    error_shards: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FileInWork:
    """A file in work.

    Attributes:
        lines, written: how many outcomes are in shards, and in how many of them.
    """

    record: JobRecord
    shards: int
    bytes_written: int


@dataclass(slots=True)
class Overview:
    """What was found.

    Attributes:
        files_done: all of them; ``read`` of their manifests are in the sums.
        bookkeeping: job records that cannot be read, one sentence each.
        errors_read: rows that ``errors`` are of.
    """

    files_done: int = 0
    read: int = 0
    answered: int = 0
    failed: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost: Cost = NOTHING
    last_hour: int = 0
    open: tuple[FileInWork, ...] = ()
    dead: tuple[JobRecord, ...] = ()
    runs: tuple[SeenRun, ...] = ()
    problems: tuple[str, ...] = ()
    errors: tuple[ErrorClass, ...] = ()
    errors_read: int = 0

    @property
    def receipt(self) -> FileReceipt | None:
        """Of the manifests that were read; None where all answers were paid at list price from the start."""
        return receipt_of(self.cost, self.answered)


class _Finished(NamedTuple):
    """A manifest as a listing shows it."""

    etag: str
    modified: datetime


@dataclass
class Observer:
    """Looks at an output, again and again. What has not changed since is read once.

    Where listing the whole output takes more than half a second, it is listed again once nine times as long has passed;
    looks before that list the folders of files in work, and of those that were, up to 64 of them.

    Args:
        seconds: how long manifests and errors are read in each look, less if listing took long; what is left is read
            in later ones.
    """

    store: ObjectStore
    prefix: str
    seconds: float = 5.0
    clock: Callable[[], float] = time.monotonic
    _finished: dict[str, _Finished] = field(default_factory=dict)
    _shards: dict[str, list[ObjectInfo]] = field(default_factory=dict)
    _records: dict[str, tuple[str, JobRecord | str]] = field(default_factory=dict)
    _done: dict[str, tuple[str, DoneFile | None]] = field(default_factory=dict)
    _errors: dict[str, list[ErrorRow]] = field(default_factory=dict)
    _list_at: float = 0.0

    def look(self) -> Overview:
        """Listings, the runs' heartbeats, and job records and manifests that are new. Raises StorageError."""
        with ThreadPoolExecutor(_READS, thread_name_prefix="llmdo-overview") as reads:
            begun = self.clock()
            if begun >= self._list_at:
                self._list_all(reads)
                took = self.clock() - begun
                self._list_at = begun + took * (1.0 + _PAUSE) if took > _SHORT else 0.0
            else:
                self._list_work(reads)
            late = self.clock() - begun - _IN_TIME
            seconds = max(self.seconds * _AT_LEAST, self.seconds - max(0.0, late))
            self._read_manifests(reads, seconds * _FOR_MANIFESTS)
            self._read_errors(reads, seconds * (1.0 - _FOR_MANIFESTS))
        found = self._sums()
        records = [record for _, record in self._records.values() if isinstance(record, JobRecord)]
        in_work = (self._in_work(record) for record in records if not record.dead)
        found.open = tuple(one for one in in_work if one is not None)
        found.dead = tuple(record for record in records if record.dead)
        found.problems = tuple(problem for _, problem in self._records.values() if isinstance(problem, str))
        found.runs = tuple(seen_runs(self.store, self.prefix))
        return found

    def _list_all(self, reads: ThreadPoolExecutor) -> None:
        finished: dict[str, _Finished] = {}
        shards: dict[str, list[ObjectInfo]] = {}
        records = []
        for info in self.store.list(self.prefix):
            folder, _, name = info.key.rpartition("/")
            if name == MANIFEST_NAME:
                finished[folder + "/"] = _Finished(info.etag, info.modified)
            elif folder + "/" not in finished and counts_as_output(info.key):
                shards.setdefault(folder + "/", []).append(info)
            elif info.key.startswith(self.prefix + JOBS):
                records.append(info)
        self._finished, self._shards = finished, shards
        self._read_records(records, reads)

    def _list_work(self, reads: ThreadPoolExecutor) -> None:
        before = self._folders_in_work()
        self._read_records(self.store.list(self.prefix + JOBS), reads)
        folders = [*dict.fromkeys([*before, *self._folders_in_work()])][:_FOLDERS]
        for folder, found in zip(folders, reads.map(self._listed, folders), strict=True):
            inside = [info for info in found if "/" not in info.key.removeprefix(folder)]
            self._shards[folder] = [info for info in inside if counts_as_output(info.key)]
            for info in inside:
                if info.key == folder + MANIFEST_NAME:
                    self._finished[folder] = _Finished(info.etag, info.modified)

    def _listed(self, folder: str) -> list[ObjectInfo]:
        return list(self.store.list(folder))

    def _folders_in_work(self) -> list[str]:
        """Those of files that were or are in work, without the folders that are seldom used."""
        records = (record for _, record in self._records.values())
        return [_folders_of(self.prefix, one)[0] for one in records if isinstance(one, JobRecord) and not one.dead]

    def _read_records(self, infos: Iterable[ObjectInfo], reads: ThreadPoolExecutor) -> None:
        there = {info.key: info.etag for info in infos}
        known = {key: kept for key, kept in self._records.items() if there.get(key) == kept[0]}
        new = [key for key in there if key not in known]
        for key, found in zip(new, reads.map(Jobs(self.store, self.prefix).read_at, new), strict=True):
            if found is not None:
                known[key] = there[key], found if isinstance(found, JobRecord) else str(found)
        self._records = {key: known[key] for key in there if key in known}

    def _read_manifests(self, reads: ThreadPoolExecutor, seconds: float) -> None:
        there = self._finished
        self._done = {at: kept for at, kept in self._done.items() if at in there and there[at].etag == kept[0]}
        left = (folder for folder in there if folder not in self._done)
        newest_first = sorted(left, key=lambda folder: there[folder].modified, reverse=True)
        end = time.monotonic() + seconds
        for start in range(0, len(newest_first), 8 * _READS):
            if start and time.monotonic() > end:
                return
            some = newest_first[start : start + 8 * _READS]
            for folder, known in zip(some, reads.map(self._manifest, some), strict=True):
                self._done[folder] = there[folder].etag, known

    def _manifest(self, folder: str) -> DoneFile | None:
        try:
            said = Manifest.model_validate_json(self.store.read(folder + MANIFEST_NAME)[0])
        except (ObjectNotFound, ValidationError):
            return None
        shards = tuple(folder + shard.name for shard in said.shards if shard.kind == "errors")
        finished = _time(said.created_at)
        tokens = said.input_tokens, said.output_tokens
        return DoneFile(said.answered, said.failed, *tokens, said.cost, finished, shards)

    def _sums(self) -> Overview:
        known = [one for _, one in self._done.values() if one is not None]
        hour_ago = time.time() - 3600.0
        return Overview(
            files_done=len(self._finished),
            read=len(known),
            answered=sum(one.answered for one in known),
            failed=sum(one.failed for one in known),
            input_tokens=sum(one.input_tokens for one in known),
            output_tokens=sum(one.output_tokens for one in known),
            cost=total(one.cost for one in known),
            last_hour=sum(one.answered + one.failed for one in known if one.finished.timestamp() > hour_ago),
            errors=count_errors(row for rows in self._errors.values() for row in rows),
            errors_read=sum(map(len, self._errors.values())),
        )

    def _read_errors(self, reads: ThreadPoolExecutor, seconds: float) -> None:
        there = {name for _, one in self._done.values() if one is not None for name in one.error_shards}
        self._errors = {name: rows for name, rows in self._errors.items() if name in there}
        room = ERRORS_READ - sum(map(len, self._errors.values()))
        wanted = [name for name in there if name not in self._errors]
        self._errors.update(read_error_shards(self.store, wanted, reads, room, seconds))

    def _in_work(self, record: JobRecord) -> FileInWork | None:
        """None for a file that is done, whose record is about to go."""
        folders = _folders_of(self.prefix, record)
        if any(folder in self._finished for folder in folders):
            return None
        shards = next((self._shards[folder] for folder in folders if self._shards.get(folder)), [])
        return FileInWork(record, len(shards), sum(info.size for info in shards))


def _folders_of(prefix: str, record: JobRecord) -> tuple[str, str]:
    """Where a file's shards are, or are if it is told from another one by a hash."""
    bucket = record.store_url.removeprefix(R2_SCHEME) if record.store_url.startswith(R2_SCHEME) else ""
    named = prefix, bucket, record.key, record.etag
    return file_folder(*named), file_folder(*named, hashed=True)


def _time(text: str) -> datetime:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return datetime.fromtimestamp(0, UTC)
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def check_there(store: ObjectStore, prefix: str) -> None:
    """Raises StorageError if nothing is there at all."""
    if next(iter(store.list(prefix)), None) is None:
        raise StorageError(f"{store.url}/{prefix} is empty: name the --output of a run")
