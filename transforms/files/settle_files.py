"""Settles files: when the tiles of its shards cover a file, its manifest is written and its job record removed."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

import apache_beam as beam
from apache_beam.coders import PickleCoder
from apache_beam.pvalue import PCollection
from apache_beam.transforms.userstate import BagStateSpec, ReadModifyWriteStateSpec

from llmdo.storage.errors import ObjectNotFound
from llmdo.storage.objects.versions import current_version
from llmdo.storage.output.costs import total
from llmdo.storage.output.intervals import Intervals
from llmdo.storage.output.manifests import Manifest, ManifestShard, ShardRecord, write_manifest
from llmdo.storage.output.receipts import receipt_of
from llmdo.transforms.elements import FileVersion, Settled, Written
from llmdo.transforms.files.folders import folder_of
from llmdo.transforms.files.settled_messages import remove_told
from llmdo.transforms.members import ReportSettled
from llmdo.transforms.outages import patiently
from llmdo.transforms.run import Run
from llmdo.transforms.side_by_side import SideBySide

_log = logging.getLogger(__name__)

# A job record is removed this long after its file's manifest, or when there are enough for one call.
_REMOVE_AFTER_S, _RECORDS_AT_ONCE = 2.0, 100


@dataclass(eq=False)  # not frozen: Beam writes hints and labels into its transforms
class SettleFiles(beam.PTransform):
    """Merges the tiles of each file version; when they cover it, writes its manifest and removes its job record.

    Records are removed several at a time: with the next file that is done 2 s later, at the latest with the bundle. Of
    a run that dies before, the next one finds records of files with a manifest, and removes them.

    Emits one Settled for each file that is done or stale. A file with a part missing stays open: its job record tells
    the next run. State for each open file: its merged tiles, usually few, and one entry a shard.

    Args:
        run: what its run shares, which the steps given by ``llmdo.run_graph`` have already.
    """

    run: Run

    def expand(self, written: PCollection[Written]) -> PCollection[Settled]:
        """Written → Settled."""
        settled = (
            written
            | "Key by file version" >> beam.Map(_keyed).with_output_types(tuple[str, Written])
            | "Merge tiles" >> beam.ParDo(_Merge(self.run)).with_output_types(Concluded)
            | "Write manifests" >> beam.ParDo(SideBySide(self.run, conclude)).with_output_types(Settled)
            | "Remove job records" >> beam.ParDo(_RemoveRecords(self.run)).with_output_types(Settled)
        )
        return settled | "Tell" >> beam.ParDo(ReportSettled(self.run)) if self.run.remote else settled


def _keyed(written: Written) -> tuple[str, Written]:
    return written.file.work_id, written


@dataclass(frozen=True, slots=True)
class Finished:
    """Everything known of a file whose tiles cover it; ``length`` is where its positions end.

    ``leftovers`` are shards of its folder that were there when it was opened, or that this run wrote, and do not count.
    """

    file: FileVersion
    length: int
    blank: int
    shards: tuple[ShardRecord, ...]
    leftovers: frozenset[str] = frozenset()


Concluded = Finished | Written  # a Written with the reason why its file is stale


def conclude(run: Run, concluded: Concluded) -> Iterator[Settled]:
    """Settles a file that is whole, or stale."""
    if isinstance(concluded, Finished):
        settled = settle(run, concluded)
    else:
        stale = partial(settle_stale, run, concluded.file, concluded.stale or "", concluded.gone)
        settled = patiently(run.state, stale)
    run.state.settle(settled)
    yield settled


def merge(covered: Intervals, written: Written) -> bool:
    """Adds the tiles of ``written``; returns False, and adds nothing, if one of them is covered already."""
    spans = [*written.blanks, *(Intervals.decode(written.shard.tiles).spans if written.shard else ())]
    if any(covered.overlaps(*span) for span in spans):
        return False
    for span in spans:
        covered.add(*span)
    return True


def settle(run: Run, finished: Finished) -> Settled:
    """Writes the manifest, or reads that of whoever was first; the job record may be removed then.

    Whoever was first also deletes the leftovers: only it knows which shards count.
    """
    file, shards = finished.file, sorted(finished.shards, key=lambda shard: shard.first)
    store, folder = run.store, folder_of(run.output, file)
    cost, answered = total(shard.cost for shard in shards), _lines(shards, "answers")
    ours = Manifest(
        bucket=file.bucket,
        folder="" if file.bucket else file.store_url,
        key=file.key,
        etag=file.etag,
        size=file.size,
        length=finished.length,
        format=file.kind.name,
        unit=file.kind.unit,
        configuration=run.configuration,
        run_id=run.run_id,
        created_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
        answered=answered,
        failed=_lines(shards, "errors"),
        blank=finished.blank,
        input_tokens=sum(shard.input_tokens for shard in shards),
        output_tokens=sum(shard.output_tokens for shard in shards),
        cost_usd=cost.usd,
        unpriced=cost.unpriced,
        neurons=cost.neurons,
        receipt=receipt_of(cost, answered),
        shards=tuple(ManifestShard(name=s.name, kind=s.kind, lines=s.lines, tiles=s.tiles) for s in shards),
    )
    manifest = patiently(run.state, lambda: write_manifest(store, folder, ours))
    if manifest == ours:
        for name in finished.leftovers.difference(shard.name for shard in manifest.shards):
            patiently(run.state, partial(store.delete, folder + name))
    return Settled(file, "done", manifest.answered, manifest.failed, cost=manifest.cost)


def settle_stale(run: Run, file: FileVersion, reason: str, gone: bool) -> Settled:
    """Removes the job record of a file version that ends without a manifest.

    Where a version that was ``gone`` is back by now, its record is freed instead, and the next sweep takes it up.
    """
    jobs, settled = run.jobs, Settled(file, "stale", reason=reason)
    record = jobs.read((file.store_url, file.key, file.etag))
    if record is not None and record.nonce == file.opening:
        if gone and _is_there(file):
            jobs.release(record)
        else:
            remove_told(run, [settled])
    return settled


def _is_there(file: FileVersion) -> bool:
    try:
        return current_version(file.store_url, file.key, file.etag).etag == file.etag
    except ObjectNotFound:
        return False


def _lines(shards: Iterable[ShardRecord], kind: str) -> int:
    return sum(shard.lines for shard in shards if shard.kind == kind)


class _RemoveRecords(beam.DoFn):
    """Tells of files that have their manifest, where somebody wants to know, and removes their job records."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def start_bundle(self) -> None:
        self._done: list[Settled] = []
        self._remove_at = float("inf")

    def process(self, settled: Settled) -> Iterator[Settled]:
        if settled.status == "done":
            self._done.append(settled)
            self._remove_at = min(self._remove_at, time.monotonic() + _REMOVE_AFTER_S)
        yield settled
        if len(self._done) >= _RECORDS_AT_ONCE or time.monotonic() > self._remove_at:
            self._remove()

    def finish_bundle(self) -> None:
        self._remove()

    def _remove(self) -> None:
        if self._done:
            patiently(self._run.state, lambda: remove_told(self._run, self._done))
        self._done, self._remove_at = [], float("inf")


@dataclass(frozen=True, slots=True)
class _Merged:
    """What is known of a file so far, in one value, since each cell of state is a round trip to the runner.

    Attributes:
        tiles: what is covered (``Intervals.encode``).
        kept: how many shards are in the bag.
        blank: lines that hold no prompt.
        length: where its positions end, once that is known.
        over: settled or stale: what still comes is dropped.
    """

    tiles: str = ""
    kept: int = 0
    leftovers: frozenset[str] = frozenset()
    blank: int = 0
    length: int | None = None
    over: bool = False


class _Merge(beam.DoFn):
    MERGED = ReadModifyWriteStateSpec("merged", PickleCoder())
    SHARDS = BagStateSpec("shards", PickleCoder())

    def __init__(self, run: Run) -> None:
        self._run = run

    def process(
        self,
        element: tuple[str, Written],
        merged: Any = beam.DoFn.StateParam(MERGED),
        shards: Any = beam.DoFn.StateParam(SHARDS),
    ) -> Iterator[Concluded]:
        _, written = element
        before: _Merged = merged.read() or _Merged()
        if before.over:
            return
        if written.stale is not None:
            merged.write(_Merged(over=True))
            yield written
            return
        after, finished = _add(self._run, before, written)
        if finished is not None:
            found = [*(shards.read() if before.kept else ()), *([written.shard] if written.shard else ())]
            yield replace(finished, shards=tuple(found))
            shards.clear()
        elif after.kept > before.kept:
            shards.add(written.shard)
        merged.write(after)


def _add(run: Run, before: _Merged, written: Written) -> tuple[_Merged, Finished | None]:
    """What is known with ``written`` added; a Finished, still without its shards, if that covers the file."""
    leftovers = before.leftovers.union(written.leftovers)
    covered = Intervals.decode(before.tiles)
    if not merge(covered, written):
        _log.warning("%s: a shard that covers lines of another one is not counted", written.file.id)
        return replace(before, leftovers=leftovers.union([written.shard.name] if written.shard else ())), None
    # An end mark is not a line.
    lines = sum(start < stop for start, stop in written.blanks) - written.between
    run.state.add(blank=lines)
    after = _Merged(
        covered.encode(),
        before.kept + (written.shard is not None),
        leftovers,
        before.blank + lines,
        before.length if written.total is None else written.total,
    )
    total = after.length if written.file.length is None else written.file.length
    if total is None or not covered.covers(total) or (total == 0 and written.total is None):
        return after, None
    return _Merged(over=True), Finished(written.file, total, after.blank, (), leftovers)
