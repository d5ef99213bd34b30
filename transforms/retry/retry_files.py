"""Retries error lines of settled files, and merges the results into the files' manifests."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice

import apache_beam as beam
from apache_beam.pvalue import PCollection

from llmdo.storage.errors import ObjectNotFound
from llmdo.storage.objects.store import R2_SCHEME
from llmdo.storage.output.jobs import JobRecord, Jobs, record_name
from llmdo.storage.output.manifests import (
    MANIFEST_NAME,
    Manifest,
    ShardRecord,
    counts_as_output,
    manifest_folders,
    put_shard,
    read_manifest,
    read_manifest_version,
)
from llmdo.storage.output.merging import CannotMerge, merged, switch
from llmdo.transforms.elements import FileVersion, KnownShard, Leftovers, Line, Settled, Written
from llmdo.transforms.files.folders import folder_of
from llmdo.transforms.files.settled_messages import tell_settled
from llmdo.transforms.retry.error_lines import take_back
from llmdo.transforms.run import Run

# The records of files that are retried. Not beside those of open files: a run removes one whose file is settled.
RETRY_FOLDER = "_retry/"
_AT_ONCE = 16  # manifests that are read concurrently, one call each
# In a job record's notification: the version of the manifest that the retry started from, and may replace.
_MANIFEST = "manifest"

RetriedElement = Line | KnownShard | Leftovers


@dataclass(eq=False)  # not frozen: Beam writes hints and labels into its transforms
class FindErrors(beam.PTransform):
    """Emits the folder of each settled file that has error lines, or that a dead retry left unmerged."""

    run: Run

    def expand(self, root: beam.Pipeline) -> PCollection[str]:
        """Nothing → the folder in the output's store, ending in '/'."""
        return (
            root
            | "Start" >> beam.Impulse()
            | "Look" >> beam.FlatMap(lambda _, run: find_errors(run), self.run).with_output_types(str)
        )


@dataclass(eq=False)  # not frozen: Beam writes hints and labels into its transforms
class ReadErrors(beam.PTransform):
    """Claims each file, and emits the lines of its error shards that are to be retried; with ``everything``, all lines.

    Rows that are not retried go to a new error shard unchanged. The last element of a file names the objects to delete;
    without it, its manifest stays. A file that another living retry works on is skipped.
    """

    run: Run
    everything: bool = False

    def expand(self, folders: PCollection[str]) -> PCollection[RetriedElement]:
        """Folder → Line, KnownShard, Leftovers."""
        return folders | "Claim and read" >> beam.FlatMap(read_errors, self.run, self.everything)


@dataclass(eq=False)  # not frozen: Beam writes hints and labels into its transforms
class MergeFiles(beam.PTransform):
    """Replaces old shards in a file's manifest by new ones, if these are about the same lines.

    The manifest is switched with one write, and only if it is the version that the retry started from; then the old
    shards are deleted. Emits the merged files; all others stay as they were.
    """

    run: Run

    def expand(self, written: PCollection[Written]) -> PCollection[Settled]:
        """Written → Settled."""
        return (
            written
            | "Key by file" >> beam.Map(_keyed).with_output_types(tuple[str, Written])
            | "Collect" >> beam.GroupByKey()
            | "Take values" >> beam.Values()
            | "Switch manifests" >> beam.FlatMap(merge_file, self.run)
        )


def _keyed(written: Written) -> tuple[str, Written]:
    return written.file.work_id, written


def find_errors(run: Run) -> Iterator[str]:
    """The folders of manifests with error lines, and of those with a record of an earlier retry."""
    store = run.store
    claimed = {record_of(record) for record in retries(run).sweep() if isinstance(record, JobRecord)}
    folders = manifest_folders(store, run.output.key)
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="llmdo-find") as pool:
        while some := list(islice(folders, 4 * _AT_ONCE)):
            wanted = pool.map(partial(_is_wanted, run, claimed), some)
            yield from (folder for folder, is_wanted in zip(some, wanted, strict=True) if is_wanted)


def _is_wanted(run: Run, claimed: set[str], folder: str) -> bool:
    try:
        manifest = read_manifest(run.store, folder)
    except ValueError as error:
        run.state.report_undone(folder, str(error))
        return False
    return manifest is not None and (manifest.failed > 0 or record_of(file_of(manifest)) in claimed)


def retries(run: Run) -> Jobs:
    """The job records of files that are retried."""
    return Jobs(run.store, run.output.key + RETRY_FOLDER)


def record_of(of: FileVersion | JobRecord) -> str:
    """The name of a file version's job record."""
    return record_name(of.store_url, of.key, of.etag)


def file_of(manifest: Manifest, opening: str = "") -> FileVersion:
    """The file of a manifest; manifests of earlier versions do not name the folder of a local file."""
    store_url = R2_SCHEME + manifest.bucket if manifest.bucket else manifest.folder
    return FileVersion(
        store_url,
        manifest.key,
        manifest.etag,
        manifest.size,
        opening,
        resumed=True,
        opened_at=time.time(),
        format=manifest.format,
        end=manifest.length,
    )


@dataclass(frozen=True, slots=True)
class Claimed:
    """A file that this retry works on. ``uncounted`` are objects with a shard's name that the manifest does not list;
    ``abandoned``: an earlier retry died while it worked on the file.
    """

    file: FileVersion
    manifest: Manifest
    uncounted: tuple[str, ...]
    abandoned: bool


def claim_file(run: Run, folder: str) -> Claimed | None:
    """Claims the file of a folder; None if its manifest is gone, or another retry works on it.

    Raises StorageError, and ValueError for a manifest that cannot be read.
    """
    store, jobs = run.store, retries(run)
    while True:
        found = read_manifest_version(store, folder)
        if found is None:
            return None
        manifest, etag = found
        file = file_of(manifest)
        record = JobRecord(
            store_url=file.store_url,
            key=file.key,
            etag=file.etag,
            size=file.size,
            format=manifest.format,
            notification={_MANIFEST: etag},
            configuration=manifest.configuration,
            run_id=run.run_id,
        )
        claim = jobs.claim(record, run.state.is_alive)
        if claim.record.nonce != record.nonce:
            run.state.report_elsewhere(file, claim.record.run_id)
            return None
        if read_manifest_version(store, folder) != found:  # merged by another retry just before the claim
            _release(jobs, file)
            continue
        named = {shard.name for shard in manifest.shards}
        there = (info.key.removeprefix(folder) for info in store.list(folder))
        uncounted = (n for n in there if "/" not in n and n != MANIFEST_NAME and counts_as_output(n) and n not in named)
        return Claimed(file_of(manifest, record.nonce), manifest, tuple(uncounted), claim.before is not None)


def read_errors(folder: str, run: Run, everything: bool = False) -> Iterator[RetriedElement]:
    """See ReadErrors; for one file. Raises StorageError."""
    if run.state.stopping:
        return
    try:
        claimed = claim_file(run, folder)
    except ValueError as error:
        run.state.report_undone(folder, str(error))
        return
    if claimed is None:
        return
    file, manifest = claimed.file, claimed.manifest
    if manifest.configuration != run.configuration:
        run.state.report_undone(file.id, "it was answered by another configuration than its output's")
        _release(retries(run), file)
        return
    run.state.open(file)
    yield from _lines(run, folder, claimed, everything)


def _lines(run: Run, folder: str, claimed: Claimed, everything: bool) -> Iterator[RetriedElement]:
    store, file, manifest = run.store, claimed.file, claimed.manifest
    replaced: list[str] = []
    lines = size = 0
    for shard in manifest.shards:
        if shard.kind != "errors":
            continue
        try:
            rows = take_back(file, shard, store.read(folder + shard.name)[0], everything)
        except (ObjectNotFound, ValueError, KeyError, TypeError) as error:
            run.state.report_undone(f"{store.url}/{folder}{shard.name}", f"its lines cannot be taken back: {error}")
            continue
        if not rows.again:
            continue
        if rows.kept:
            kept = put_shard(store, folder, "errors", rows.kept, configuration=manifest.configuration)
            yield KnownShard(file, kept)
        replaced.append(shard.name)
        for line in rows.again:
            if run.state.stopping:
                yield Leftovers(file, ())  # so that the file is finished, unmerged
                return
            lines, size = lines + 1, size + line.stop - line.start
            yield line
    run.state.add(
        answered_before=manifest.answered,
        failed_before=manifest.failed - lines,
        bytes_done=file.stored(manifest.length - size),
    )
    if replaced or (claimed.abandoned and claimed.uncounted):
        yield Leftovers(file, (*replaced, *claimed.uncounted))
    else:
        settled = Settled(file, "done", manifest.answered, manifest.failed, cost=manifest.cost)
        run.state.settle(replace(settled, reason="nothing to try again"))
        # A retry that died may have switched the manifest and not told of it.
        if not claimed.abandoned or tell_settled(run, [settled]):
            _release(retries(run), file)


def merge_file(written: Iterable[Written], run: Run) -> Iterator[Settled]:
    """Switches one file's manifest, deletes what it no longer lists, and releases the file. Raises StorageError.

    A file is left as it is if not all of its lines have an outcome, or if its manifest was changed in the meantime.
    """
    written = list(written)
    file = written[0].file
    jobs = retries(run)
    record = jobs.read((file.store_url, file.key, file.etag))
    if record is None or record.nonce != file.opening or run.state.asleep():
        run.state.report_undone(file.id, "another retry may have taken it over: retry again to see what is left")
        return
    shards = {one.shard.name: one.shard for one in written if one.shard is not None}
    names = frozenset(name for one in written for name in one.leftovers)
    try:
        manifest = _merge(run, file, names, shards.values(), record.notification[_MANIFEST])
    except CannotMerge as error:
        run.state.report_undone(file.id, str(error))
    else:
        settled = Settled(file, "done", manifest.answered, manifest.failed, cost=manifest.cost)
        run.state.settle(settled)
        yield settled
        if not tell_settled(run, [settled]):
            return  # the next retry finds the record, and tells
    _release(jobs, file)


def _merge(run: Run, file: FileVersion, names: frozenset[str], shards: Iterable[ShardRecord], etag: str) -> Manifest:
    store, folder = run.store, folder_of(run.output, file)
    if not names:
        raise CannotMerge("it was not read to its end: run llmdo retry again to resume")
    found = read_manifest_version(store, folder)
    if found is None or found[1] != etag:
        raise CannotMerge("its manifest was changed meanwhile: retry again to see what is left")
    manifest = merged(found[0], names, shards, run.run_id)
    if not switch(store, folder, manifest, etag):
        raise CannotMerge("its manifest was changed meanwhile: retry again to see what is left")
    for name in names.difference(shard.name for shard in manifest.shards):
        if run.state.asleep():  # another retry may have written, and counted, an equal shard by now
            break
        store.delete(folder + name)
    return manifest


def _release(jobs: Jobs, file: FileVersion) -> None:
    jobs.remove((file.store_url, file.key, file.etag))
