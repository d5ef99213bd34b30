"""Says that a file is done: when the tiles of its shards cover it, the manifest is written and the job record goes."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import apache_beam as beam
from apache_beam.coders import PickleCoder, StrUtf8Coder, VarIntCoder
from apache_beam.pvalue import PCollection
from apache_beam.transforms.userstate import BagStateSpec, ReadModifyWriteStateSpec

from storage.errors import ObjectNotFound
from storage.intervals import Intervals
from storage.jobs import Jobs
from storage.manifests import Manifest, ManifestShard, ShardRecord, write_manifest
from storage.objects import Location, open_store
from transforms.elements import FileVersion, Settled, Written
from transforms.run_state import run_state
from transforms.shards import folder_of

_log = logging.getLogger(__name__)


@dataclass(eq=False)  # not frozen: Beam writes hints and labels into its transforms
class SettleFiles(beam.PTransform):
    """Merges the tiles of each file version; when they cover it, writes its manifest and removes its job record.

    Emits one Settled for each file that is done or stale. A file with a part missing stays open: its job record tells
    the next run. State for each open file: its merged tiles, usually few, and one entry a shard.
    """

    output: Location
    configuration: str
    run_id: str

    def expand(self, written: PCollection[Written]) -> PCollection[Settled]:
        """Written → Settled."""
        return (
            written
            | "Key by file version" >> beam.Map(_keyed).with_output_types(tuple[str, Written])
            | "Merge tiles" >> beam.ParDo(_Settle(self.output, self.configuration, self.run_id))
        )


def _keyed(written: Written) -> tuple[str, Written]:
    return written.file.work_id, written


@dataclass(frozen=True, slots=True)
class Finished:
    """Everything known of a file whose tiles cover it; ``length`` in uncompressed bytes.

    ``leftovers`` are shards of its folder that were there when it was opened, or that this run wrote, and do not count.
    """

    file: FileVersion
    length: int
    blank: int
    shards: tuple[ShardRecord, ...]
    leftovers: frozenset[str] = frozenset()


def merge(covered: Intervals, written: Written) -> bool:
    """Adds the tiles of ``written``; False, and nothing added, when one of them is covered already."""
    spans = [*written.blanks, *(Intervals.decode(written.shard.tiles).spans if written.shard else ())]
    if any(covered.overlaps(*span) for span in spans):
        return False
    for span in spans:
        covered.add(*span)
    return True


def settle(output: Location, configuration: str, run_id: str, finished: Finished) -> Settled:
    """Writes the manifest, or reads the one of whoever was first, then removes the job record.

    Whoever was first also deletes the leftovers: only it knows which shards count.
    """
    file, shards = finished.file, sorted(finished.shards, key=lambda shard: shard.first)
    store, folder = open_store(output.store_url), folder_of(output, file)
    ours = Manifest(
        bucket=file.bucket,
        key=file.key,
        etag=file.etag,
        size=file.size,
        length=finished.length,
        configuration=configuration,
        run_id=run_id,
        created_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
        answered=_lines(shards, "answers"),
        failed=_lines(shards, "errors"),
        blank=finished.blank,
        input_tokens=sum(shard.input_tokens for shard in shards),
        output_tokens=sum(shard.output_tokens for shard in shards),
        shards=tuple(ManifestShard(name=s.name, kind=s.kind, lines=s.lines, tiles=s.tiles) for s in shards),
    )
    manifest = write_manifest(store, folder, ours)
    if manifest == ours:
        for name in finished.leftovers.difference(shard.name for shard in manifest.shards):
            store.delete(folder + name)
    Jobs(store, output.key).remove((file.store_url, file.key, file.etag))
    return Settled(file, "done", manifest.answered, manifest.failed)


def settle_stale(output: Location, file: FileVersion, reason: str, gone: bool) -> Settled:
    """Removes the job record of a file version that ends without a manifest.

    Where a version that was ``gone`` is back by now, its record is freed instead, and the next sweep takes it up.
    """
    jobs = Jobs(open_store(output.store_url), output.key)
    name = (file.store_url, file.key, file.etag)
    record = jobs.read(name)
    if record is not None and record.nonce == file.opening:
        if gone and _is_there(file):
            jobs.release(record)
        else:
            jobs.remove(name)
    return Settled(file, "stale", reason=reason)


def _is_there(file: FileVersion) -> bool:
    try:
        return open_store(file.store_url).stat(file.key).etag == file.etag
    except ObjectNotFound:
        return False


def _lines(shards: Iterable[ShardRecord], kind: str) -> int:
    return sum(shard.lines for shard in shards if shard.kind == kind)


class _Settle(beam.DoFn):
    TILES = ReadModifyWriteStateSpec("tiles", StrUtf8Coder())
    SHARDS = BagStateSpec("shards", PickleCoder())
    LEFTOVERS = BagStateSpec("leftovers", StrUtf8Coder())
    BLANK = ReadModifyWriteStateSpec("blank", VarIntCoder())
    LENGTH = ReadModifyWriteStateSpec("length", VarIntCoder())
    OVER = ReadModifyWriteStateSpec("over", VarIntCoder())  # settled or stale: what still comes is dropped

    def __init__(self, output: Location, configuration: str, run_id: str) -> None:
        self.output = output
        self.configuration = configuration
        self.run_id = run_id

    def process(
        self,
        element: tuple[str, Written],
        tiles: Any = beam.DoFn.StateParam(TILES),
        shards: Any = beam.DoFn.StateParam(SHARDS),
        leftovers: Any = beam.DoFn.StateParam(LEFTOVERS),
        blank: Any = beam.DoFn.StateParam(BLANK),
        length: Any = beam.DoFn.StateParam(LENGTH),
        over: Any = beam.DoFn.StateParam(OVER),
    ) -> Iterator[Settled]:
        _, written = element
        if over.read():
            return
        if written.stale is not None:
            over.write(1)
            yield _told(settle_stale(self.output, written.file, written.stale, written.gone))
            return
        for name in written.leftovers:
            leftovers.add(name)
        covered = Intervals.decode(tiles.read() or "")
        if not merge(covered, written):
            if written.shard is not None:
                leftovers.add(written.shard.name)
            _log.warning("%s: a shard that covers lines of another one is not counted", written.file.id)
            return
        tiles.write(covered.encode())
        if written.shard is not None:
            shards.add(written.shard)
        lines = sum(start < stop for start, stop in written.blanks)  # an end mark is no line
        if lines:
            blank.write((blank.read() or 0) + lines)
            run_state().add(blank=lines)
        if written.total is not None:
            length.write(written.total)
        total = length.read() if written.file.compression else written.file.size
        if total is None or not covered.covers(total):
            return
        if total == 0 and written.total is None:
            return
        finished = Finished(written.file, total, blank.read() or 0, tuple(shards.read()), frozenset(leftovers.read()))
        over.write(1)
        for state in (tiles, shards, leftovers, blank, length):
            state.clear()
        yield _told(settle(self.output, self.configuration, self.run_id, finished))


def _told(settled: Settled) -> Settled:
    run_state().settle(settled)
    return settled
