"""Why lines failed: the error rows of an output, counted by class, with an example of each."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson

from llmdo.storage.errors import ObjectNotFound
from llmdo.storage.objects.store import ObjectStore
from llmdo.storage.output.manifests import read_manifest

# Rows of errors that are looked at; a million of the same kind teach nothing more.
ERRORS_READ = 20_000
# R2 answers in tens of milliseconds, so this number of objects is read at once.
_READS = 32
_EXAMPLE_CHARACTERS = 300


class ErrorRow(NamedTuple):
    """What is counted of an error row; ``code`` is the service's, its HTTP status where it has none, or ""."""

    name: str
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class ErrorClass:
    """Errors of a kind; ``count`` of those that were read."""

    name: str
    code: str
    count: int
    example: str

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {"class": self.name, "code": self.code or None, "count": self.count, "example": self.example}


def count_errors(rows: Iterable[ErrorRow]) -> tuple[ErrorClass, ...]:
    """The classes of some rows, the most frequent first."""
    kinds, examples = Counter[tuple[str, str]](), dict[tuple[str, str], str]()
    for name, code, message in rows:
        kinds[name, code] += 1
        examples.setdefault((name, code), message)
    return tuple(ErrorClass(*kind, count, examples[kind]) for kind, count in kinds.most_common())


def read_error_shards(
    store: ObjectStore, shards: Sequence[str], reads: Executor, most: int, seconds: float
) -> Iterator[tuple[str, list[ErrorRow]]]:
    """Each shard with its rows, until about ``most`` rows were read, or for that time. Raises StorageError."""
    end = time.monotonic() + seconds
    for start in range(0, len(shards), _READS):
        if most <= 0 or time.monotonic() > end:
            return
        asked = {reads.submit(_rows_of, store, name): name for name in shards[start : start + _READS]}
        for one in as_completed(asked):
            most -= len(one.result())
            yield asked[one], one.result()


def errors_of_files(store: ObjectStore, folders: Sequence[str], seconds: float = 5.0) -> tuple[ErrorClass, ...]:
    """The classes of the errors of some files, by the folders of their manifests. Raises StorageError."""
    end = time.monotonic() + seconds
    shards: list[str] = []
    with ThreadPoolExecutor(_READS, thread_name_prefix="llmdo-errors") as reads:
        for start in range(0, len(folders), _READS):
            if time.monotonic() > end:
                break
            for found in reads.map(lambda folder: _error_shards(store, folder), folders[start : start + _READS]):
                shards += found
        read = read_error_shards(store, shards, reads, ERRORS_READ, seconds)
        return count_errors(row for _, rows in read for row in rows)


def _error_shards(store: ObjectStore, folder: str) -> list[str]:
    try:
        manifest = read_manifest(store, folder)
    except ValueError:  # verify says what is wrong with it
        return []
    return [folder + shard.name for shard in manifest.shards if shard.kind == "errors"] if manifest else []


def _rows_of(store: ObjectStore, shard: str) -> list[ErrorRow]:
    try:
        return list(map(_kind_of, store.read(shard)[0].splitlines()))
    except ObjectNotFound:  # answered meanwhile by a retry
        return []


def _kind_of(line: bytes) -> ErrorRow:
    try:
        error: Any = orjson.loads(line)["error"]
        code = error.get("code") or error.get("status")
        message = str(error.get("message"))[:_EXAMPLE_CHARACTERS]
        return ErrorRow(str(error["class"]), "" if code is None else str(code), message)
    except (ValueError, KeyError, TypeError, AttributeError):
        return ErrorRow("unreadable", "", "a row that is not one of an error")
