"""One file of an output: its manifest, its shards, and its source line by line beside them."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from pydantic_core import to_json

from llmdo.runners.inspecting.oracle import (
    DAMAGED,
    ShardRow,
    SourceLine,
    UnreadableRow,
    differs,
    is_blank,
    parse_row,
)
from llmdo.runners.inspecting.oracle_tables import BETWEEN, lines_of_source
from llmdo.runners.inspecting.repeated_ids import RepeatedIds
from llmdo.storage.errors import ObjectChanged, ObjectNotFound, StorageError
from llmdo.storage.objects.opening import open_store
from llmdo.storage.objects.store import R2_SCHEME, Location, ObjectStore
from llmdo.storage.objects.versions import current_version
from llmdo.storage.output.intervals import Intervals
from llmdo.storage.output.jobs import JobRecord
from llmdo.storage.output.manifests import (
    MANIFEST_NAME,
    Manifest,
    ManifestShard,
    file_folder,
    read_manifest,
    shard_name,
)
from llmdo.transforms.elements import FileVersion
from llmdo.transforms.unreadable import CorruptData

# R2 answers in tens of milliseconds, so reads overlap: this many files at once, and this many shards ahead in each.
FILES_AT_ONCE = 4
SHARDS_AHEAD = 4
# Differences kept of each file: one shifted offset would make one for each line.
DIFFERENCES_KEPT = 20

FileId = tuple[str, str, str]  # bucket, key, etag


def identity(file: FileVersion | JobRecord | Manifest) -> FileId:
    """What a manifest, a job record and a listed file have in common."""
    bucket = file.bucket if isinstance(file, Manifest) else Location(file.store_url, "").bucket
    return bucket, file.key, file.etag


@dataclass(slots=True)
class FileReport:
    """One file's part of a Verification; ``more`` differences were found and not kept."""

    identity: FileId = ("", "", "")
    compared: bool = False
    answered: int = 0
    failed: int = 0
    blank: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    differences: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    more: int = 0


@dataclass
class FileCheck:
    """Checks the manifest in ``folder``, below the output ``prefix``.

    ``sources`` are the files that the user named; ``reads`` fetches shards ahead.
    """

    store: ObjectStore
    prefix: str
    folder: str
    sources: Mapping[FileId, FileVersion]
    reads: ThreadPoolExecutor
    report: FileReport = field(default_factory=FileReport)
    ids: RepeatedIds = field(default_factory=RepeatedIds)

    def run(self) -> FileReport:
        """Reports everything that differs, and raises for none of it. Raises StorageError."""
        self.name = f"{self.store.url}/{self.folder}"
        try:
            manifest = read_manifest(self.store, self.folder)
        except ValueError as error:
            self._differs(str(error))
            return self.report
        if manifest is None:  # removed since it was listed
            self.report.notes.append(f"{self.name}{MANIFEST_NAME} is gone: it was removed just now")
            return self.report
        self.report.identity = identity(manifest)
        self.report.blank = manifest.blank
        self.name = f"{R2_SCHEME}{manifest.bucket}/{manifest.key}" if manifest.bucket else manifest.key
        named = (self.prefix, manifest.bucket, manifest.key, manifest.etag)
        if self.folder not in {file_folder(*named), file_folder(*named, hashed=True)}:
            self._differs(f"its manifest is in the folder of another file, {self.folder}")
        self._check_listing(manifest)
        self._check_rows(self._rows(manifest), manifest)
        self._note_ids()
        self._check_sums(manifest)
        if self.report.more:
            self.report.differences.append(f"{self.name}: and {self.report.more:,} more")
        return self.report

    def _check_rows(self, rows: Iterator[ShardRow], manifest: Manifest) -> None:
        source = self._source(manifest)
        if source is None:
            self._check_gaps(rows, manifest)
            return
        try:
            self._compare(rows, source, manifest)
            self.report.compared = True
        except (ObjectNotFound, ObjectChanged) as error:
            self.report.notes.append(f"{self.name} was not compared with its source to the end: {error}")
        except (*DAMAGED, CorruptData) as error:
            self._differs(f"its source cannot be read: {error}")
        for _ in rows:  # what is left of them still counts in the sums
            pass

    def _differs(self, what: str) -> None:
        if len(self.report.differences) < DIFFERENCES_KEPT:
            self.report.differences.append(f"{self.name}: {what}")
        else:
            self.report.more += 1

    def _check_listing(self, manifest: Manifest) -> None:
        named = {shard.name for shard in manifest.shards}
        if len(named) < len(manifest.shards):
            self._differs("its manifest names a shard twice")
        there = (info.key.removeprefix(self.folder) for info in self.store.list(self.folder))
        foreign = sum(1 for name in there if "/" not in name and name not in named and name != MANIFEST_NAME)
        if foreign:
            self.report.notes.append(f"{self.name}: {foreign} shards are not in the manifest and do not count")
        if list(manifest.shards) != sorted(manifest.shards, key=_first):
            self._differs("its manifest's shards are not in the order of their first line")

    # Rows, merged over the shards

    def _rows(self, manifest: Manifest) -> Iterator[ShardRow]:
        """Every row of every shard in the order of offsets; a shard is taken when the merge reaches its first line."""
        heap: list[tuple[int, int, int, ShardRow]] = []
        number = 0
        for shard, rows in self._shards(sorted(manifest.shards, key=_first)):
            while heap and heap[0][0] < _first(shard):
                yield self._taken(heapq.heappop(heap)[3], manifest)
            for row in rows:
                number += 1
                heapq.heappush(heap, (row.start, row.stop, number, row))
        while heap:
            yield self._taken(heapq.heappop(heap)[3], manifest)

    def _taken(self, row: ShardRow, manifest: Manifest) -> ShardRow:
        name = row.document.get("custom_id") or row.document.get("id")
        if name is not None and name != f"{manifest.key}:{row.start}":
            self.ids.add(name if isinstance(name, str) else to_json(name).decode())
        return row

    def _note_ids(self) -> None:
        if note := self.ids.note(self.name):
            self.report.notes.append(note)

    def _shards(self, shards: Iterable[ManifestShard]) -> Iterator[tuple[ManifestShard, list[ShardRow]]]:
        waiting: deque[tuple[ManifestShard, Future[bytes | None]]] = deque()
        for shard in shards:
            waiting.append((shard, self.reads.submit(self._body, shard.name)))
            if len(waiting) > SHARDS_AHEAD:
                yield self._parsed(*waiting.popleft())
        while waiting:
            yield self._parsed(*waiting.popleft())

    def _body(self, name: str) -> bytes | None:
        try:
            return self.store.read(self.folder + name)[0]
        except ObjectNotFound:
            return None

    def _parsed(self, shard: ManifestShard, read: Future[bytes | None]) -> tuple[ManifestShard, list[ShardRow]]:
        body = read.result()
        if body is None:
            self._differs(f"{shard.name} is in the manifest and not in the output")
            return shard, []
        if shard_name(shard.kind, _first(shard), body) != shard.name:
            self._differs(f"{shard.name} does not hold what was written under its name, or is of another kind")
        rows = []
        for number, line in enumerate(body.split(b"\n")[:-1] if body.endswith(b"\n") else body.split(b"\n"), 1):
            try:
                rows.append(parse_row(line, shard.kind, shard.name))
            except UnreadableRow as error:
                self._differs(f"line {number} of {shard.name} {error}")
        self._check_shard(shard, rows)
        return shard, rows

    def _check_shard(self, shard: ManifestShard, rows: list[ShardRow]) -> None:
        if len(rows) != shard.lines:
            self._differs(f"{shard.name} has {len(rows)} rows, and the manifest says {shard.lines}")
        if rows and min(row.start for row in rows) != _first(shard):
            self._differs(f"{shard.name} begins at offset {min(row.start for row in rows)}, unlike its name")
        for row in rows:
            if row.key is not None and (row.key, row.etag) != self.report.identity[1:]:
                self._differs(f"offset {row.start} in {shard.name} is of another file, {row.key} {row.etag}")
        try:
            said = Intervals.decode(shard.tiles)
            if Intervals((row.start, row.stop) for row in rows) != said:
                self._differs(f"{shard.name} covers other bytes than the manifest says ({said.encode()})")
        except ValueError as error:
            self._differs(f"{shard.name}: {error}")
        self.report.input_tokens += sum(row.input_tokens for row in rows)
        self.report.output_tokens += sum(row.output_tokens for row in rows)
        if shard.kind == "answers":
            self.report.answered += len(rows)
        else:
            self.report.failed += len(rows)

    # The source, line by line beside the rows

    def _source(self, manifest: Manifest) -> Iterator[SourceLine] | None:
        """The source's lines; None, with a note, if this version of it cannot be read."""
        file = self.sources.get(self.report.identity)
        if file is None and not manifest.bucket:
            self.report.notes.append(f"{self.name} was not compared with its source: name this version with --input")
            return None
        store = open_store(file.store_url if file else R2_SCHEME + manifest.bucket)
        try:
            info = current_version(store.url, manifest.key, manifest.etag)
        except StorageError as error:
            self.report.notes.append(f"{self.name} was not compared with its source: {error}")
            return None
        if info.etag != manifest.etag:
            self.report.notes.append(f"{self.name} was not compared with its source, which has changed since")
            return None
        if info.size != manifest.size:
            self._differs(f"its source has {info.size} bytes, and the manifest says {manifest.size}")
        source = FileVersion(store.url, manifest.key, manifest.etag, info.size, format=manifest.format)
        return lines_of_source(source)

    def _compare(self, rows: Iterator[ShardRow], lines: Iterator[SourceLine], manifest: Manifest) -> None:
        row = next(rows, None)
        blank = length = 0
        for line in lines:
            length = line.stop
            while row is not None and row.start < line.start:
                self._differs(f"offset {row.start} in {row.shard}: no line begins there")
                row = next(rows, None)
            if row is None or row.start != line.start:
                if line.between:
                    pass
                elif is_blank(line):
                    blank += 1
                else:
                    self._differs(f"offset {line.start}: this line is in no shard")
                continue
            for problem in differs(row, line, manifest.key):
                self._differs(f"offset {row.start} in {row.shard}: {problem}")
            first, row = row, next(rows, None)
            while row is not None and row.start == line.start:
                self._differs(f"offset {row.start}: this line is in {first.shard} and again in {row.shard}")
                row = next(rows, None)
        while row is not None:
            self._differs(f"offset {row.start} in {row.shard}: no line begins there")
            row = next(rows, None)
        self._check_blank(manifest, blank, length)

    def _check_blank(self, manifest: Manifest, blank: int, length: int) -> None:
        self.report.blank = blank
        if blank != manifest.blank:
            self._differs(f"its source has {blank} blank lines, and the manifest says {manifest.blank}")
        if length != manifest.length:
            self._differs(
                f"its source has {length} {manifest.unit}s of content, and the manifest says {manifest.length}"
            )

    def _check_gaps(self, rows: Iterator[ShardRow], manifest: Manifest) -> None:
        """Without the source: rows do not overlap, and what they leave out can be the blank lines."""
        at = gaps = uncovered = 0
        for row in rows:
            if row.start < at:
                self._differs(f"offset {row.start} in {row.shard}: another row has this line, or a part of it")
            elif row.start > at:
                gaps, uncovered = gaps + 1, uncovered + row.start - at
            at = max(at, row.stop)
        if at > manifest.length:
            self._differs(
                f"its rows go to offset {at}, and the manifest says that it has {manifest.length} {manifest.unit}s"
            )
        elif at < manifest.length:
            gaps, uncovered = gaps + 1, uncovered + manifest.length - at
        least = 0 if manifest.format in BETWEEN else gaps
        if not least <= manifest.blank <= uncovered:
            self._differs(
                f"no row has {uncovered} bytes in {gaps} places, and the manifest says {manifest.blank} blank lines"
            )

    def _check_sums(self, manifest: Manifest) -> None:
        for name in ("answered", "failed", "input_tokens", "output_tokens"):
            found, said = getattr(self.report, name), getattr(manifest, name)
            if found != said:
                self._differs(f"{name.replace('_', ' ')}: {found} in the shards, {said} in the manifest")


def _first(shard: ManifestShard) -> int:
    """The offset in a shard's name; -1 if it has none."""
    offset = shard.name.partition("-")[2].partition("-")[0]
    return int(offset) if offset.isdigit() else -1
