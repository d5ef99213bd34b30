"""The rows of a file that is done, in the order of its source."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from operator import itemgetter
from typing import Any, NamedTuple, TypeVar

import orjson

from llmdo.storage.errors import StorageError
from llmdo.storage.objects.store import R2_SCHEME, ObjectStore
from llmdo.storage.output.manifests import Manifest, ShardKind, manifest_folders, read_manifest

# R2 answers in tens of milliseconds, so this number of objects is read ahead of the one that is needed.
_AHEAD = 4
_KINDS: frozenset[ShardKind] = frozenset(("answers", "errors"))

# Where an answer's row says what it is about. Within a text quotes are escaped, so this is a field; elsewhere in a row
# it may be a field of the user's or of the provider's, too.
_SOURCE = b'"source":{"key":"'
_PLACE = re.compile(rb'"source":\{"key":"[^"\\]*","etag":"[^"\\]*","offset":(\d+),"length":(\d+)[,}]')

_START = itemgetter(0)

AnyRow = TypeVar("AnyRow", bound="OutputRow | ParsedRow")
T = TypeVar("T")
R = TypeVar("R")


class OutputRow(NamedTuple):
    """A row as it stands in a shard, without its line break, and the bytes of the source that it is about."""

    start: int
    stop: int
    kind: ShardKind
    line: bytes


class ParsedRow(NamedTuple):
    """An OutputRow with its JSON, in which whole numbers of more than 64 bits are floats."""

    start: int
    stop: int
    kind: ShardKind
    line: bytes
    document: dict[str, Any]


def done_files(store: ObjectStore, prefix: str) -> Iterator[tuple[str, Manifest]]:
    """Folder and manifest of each file that is done, in the order of their keys. Raises StorageError."""

    def read(folder: str) -> tuple[str, Manifest | None]:
        try:
            return folder, read_manifest(store, folder)
        except ValueError as error:
            raise StorageError(f"{error}; llmdo verify says what else is wrong") from None

    for folder, manifest in _ahead(store, read, manifest_folders(store, prefix)):
        if manifest is not None:
            yield folder, manifest


def rows_in_order(
    store: ObjectStore, folder: str, manifest: Manifest, kinds: frozenset[ShardKind] = _KINDS
) -> Iterator[OutputRow]:
    """Every row of these kinds, by offset; in memory are the rows of the shards that overlap at one place.

    Raises StorageError, also for a row that cannot be read.
    """
    return _in_order(store, folder, manifest, kinds, _rows)


def parsed_rows_in_order(
    store: ObjectStore, folder: str, manifest: Manifest, kinds: frozenset[ShardKind] = _KINDS
) -> Iterator[ParsedRow]:
    """The same with each row's JSON."""
    return _in_order(store, folder, manifest, kinds, _parsed_rows)


def _in_order(
    store: ObjectStore,
    folder: str,
    manifest: Manifest,
    kinds: frozenset[ShardKind],
    read: Callable[[list[bytes], ShardKind], Iterator[AnyRow]],
) -> Iterator[AnyRow]:
    waiting: list[AnyRow] = []  # by offset
    shards = sorted((shard for shard in manifest.shards if shard.kind in kinds), key=lambda shard: shard.first)
    for shard, body in _ahead(store, lambda shard: (shard, store.read(folder + shard.name)[0]), shards):
        if waiting and waiting[-1].start < shard.first:
            yield from waiting
            waiting = []
        elif waiting:
            ready = bisect_left(waiting, shard.first, key=_START)
            yield from waiting[:ready]
            del waiting[:ready]
        try:
            waiting += read(body.splitlines(), shard.kind)
        except (ValueError, KeyError, TypeError):
            name = f"{store.url}/{folder}{shard.name}"
            raise StorageError(f"{name} has a row that cannot be read: llmdo verify says what is wrong") from None
        waiting.sort(key=_START)  # rows of a shard are sorted, so this merges them
    yield from waiting


def _rows(lines: list[bytes], kind: ShardKind) -> Iterator[OutputRow]:
    place = _answer_place if kind == "answers" else _error_place
    for line in lines:
        start, length = place(line)
        yield OutputRow(start, start + length, kind, line)


def _parsed_rows(lines: list[bytes], kind: ShardKind) -> Iterator[ParsedRow]:
    about = "source" if kind == "answers" else "error"
    for line in lines:
        document = orjson.loads(line)
        place = document[about]
        start = place["offset"]
        yield ParsedRow(start, start + place["length"], kind, line, document)


def _answer_place(line: bytes) -> tuple[int, int]:
    """Offset and length; a row is only parsed if it is not certain where they are."""
    at = line.find(_SOURCE)
    found = _PLACE.match(line, at) if at >= 0 else None
    if found is None or not line.startswith(b'{"id":') or line.find(_SOURCE, found.end()) >= 0:
        place = orjson.loads(line)["source"]
        return int(place["offset"]), int(place["length"])
    return int(found[1]), int(found[2])


def _error_place(line: bytes) -> tuple[int, int]:
    place = orjson.loads(line)["error"]
    return int(place["offset"]), int(place["length"])


def _ahead(store: ObjectStore, read: Callable[[T], R], things: Iterable[T]) -> Iterator[R]:
    """What is read of each thing, in order.

    A local file is read when it is its turn: that takes less than to hand it from one thread to another.
    """
    if not store.url.startswith(R2_SCHEME):
        yield from map(read, things)
        return
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(_AHEAD, thread_name_prefix="llmdo-reads") as reads:
        try:
            for thing in things:
                waiting.append(reads.submit(read, thing))
                if len(waiting) > _AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for one in waiting:
                one.cancel()
