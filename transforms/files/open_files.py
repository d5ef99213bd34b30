"""Opens files: writes the job record, acks the message, and finds what earlier shards hold."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

import apache_beam as beam
from apache_beam.pvalue import PCollection
from pydantic_core import to_json

from llmdo.storage.errors import AccessDenied, BucketNotFound, InvalidLocation, ObjectChanged, ObjectNotFound
from llmdo.storage.objects.opening import open_store
from llmdo.storage.objects.versions import current_version
from llmdo.storage.output.folders import FolderListing, FolderListings
from llmdo.storage.output.intervals import Intervals
from llmdo.storage.output.jobs import Claim, JobRecord, Jobs, record_name
from llmdo.storage.output.manifests import Manifest, ShardRecord, counted_shards, read_manifest
from llmdo.storage.runs.runs import owner_of, run_of
from llmdo.transforms.acks import acks_of
from llmdo.transforms.elements import FileVersion, KnownShard, Leftovers, Notice, Opened, OpenFile, Settled
from llmdo.transforms.files.folders import as_begun, folder_of
from llmdo.transforms.files.reopening import has_readable, reopen
from llmdo.transforms.files.settled_messages import remove_told
from llmdo.transforms.kinds.inside import look_inside
from llmdo.transforms.lines.reading import UNREADABLE
from llmdo.transforms.outages import patiently
from llmdo.transforms.run import Run
from llmdo.transforms.side_by_side import SideBySide
from llmdo.transforms.tables.needed_columns import ANY_COLUMNS, NeededColumns

_log = logging.getLogger(__name__)

# A message whose file is open is acked after this long, when its bundle ends, or once there are enough for one call. Of
# a process that is killed before, the queue delivers it again, five minutes later. Seconds.
_ACK_WITHIN = 0.25
# Opening takes three calls one after another, the other steps one or two of each file.
OPENED_AT_ONCE = 32
# A file of at most this size travels from step to step with its notice. Bytes.
SMALL_BYTES = 16 << 10
# A file that fails to open this many times becomes a dead letter.
TRIES = 3


class CannotOpen(Exception):
    """This file cannot be opened; others may be."""


@dataclass(eq=False)  # not frozen: Beam writes hints and labels into its transforms
class OpenFiles(beam.PTransform):
    """Turns notices into files to read and the shards that count already.

    A version that another run works on, or that has a manifest, is not opened again; its message is acked. Otherwise
    the job record is written before the message is acked. What fails to open three times goes to ``OUTPUT/_dead/``.

    Args:
        run: what its run shares, which the steps given by ``llmdo.run_graph`` have already.
        queue: id of the queue that the messages are from.
        max_line_bytes: a finished file is opened again for lines that were too long earlier and now fit this limit.
        needed: which columns a table must have; one without them ends as stale.
    """

    run: Run
    queue: str | None = None
    max_line_bytes: int = 0
    needed: NeededColumns = ANY_COLUMNS

    def expand(self, notices: PCollection[Notice | tuple[Notice, ...]]) -> PCollection[Opened]:
        """Notice, or those that were pulled together → Opened."""
        work = partial(open_and_ack, queue=self.queue, max_line_bytes=self.max_line_bytes, needed=self.needed)
        opened = notices | "Write job records" >> beam.ParDo(SideBySide(self.run, work, OPENED_AT_ONCE))
        if self.queue is not None:
            opened = opened | "Ack messages" >> beam.ParDo(_AckAll(self.run, self.queue))
        return opened


@dataclass(frozen=True, slots=True)
class Opening:
    """The outcome of a notice: what to read, and whether its message can be acked."""

    elements: tuple[Opened, ...] = ()
    ack: bool = True


def open_and_ack(
    run: Run, notice: Notice, queue: str | None, max_line_bytes: int, needed: NeededColumns
) -> Sequence[Opened]:
    """What is to be read of a file. Its message waits for nothing behind this step, where calls may be slow."""
    opening = patiently(run.state, lambda: open_file(run, notice, max_line_bytes, needed))
    if opening.ack and notice.lease_id is not None and queue is not None:
        acks_of(run.state, queue).add([notice.lease_id], within_s=_ACK_WITHIN)
    return opening.elements


def open_file(run: Run, notice: Notice, max_line_bytes: int = 0, needed: NeededColumns = ANY_COLUMNS) -> Opening:
    """Claims one file version; nothing to read if it is done, stale, or being worked on already. Raises StorageError.

    What a message announces is nearly always new, so the manifest is looked for only once the file is claimed, in the
    listing of its folder. A listing of inputs, and records that were left behind, name finished files as well: there
    the manifest is read first.
    """
    if run.state.over:  # what remains of a failed pipeline opens nothing
        return Opening(ack=False)
    jobs, owner = run.jobs, owner_of(run.run_id, notice.attempt)
    file = as_begun(run.output, notice.file)
    if notice.lease_id is None:
        with suppress(ValueError):  # one that cannot be read is reported by the claim
            manifest = read_manifest(run.store, folder_of(run.output, file))
            if manifest is not None:
                left = bool(run.notify) and jobs.read((file.store_url, file.key, file.etag)) is not None
                if done := _done_before(run, file, manifest, max_line_bytes, left=left):
                    return done
    claim = jobs.claim(
        JobRecord(
            store_url=file.store_url,
            key=file.key,
            etag=file.etag,
            size=file.size,
            format=file.format,
            notification=dict(notice.body),
            configuration=run.configuration,
            run_id=owner,
            nonce=notice.nonce,
        ),
        lambda other: run.state.is_held(other, run.run_id, notice.attempt),
    )
    if claim.record.nonce != notice.nonce:
        other = run_of(claim.record.run_id)
        if other != run.run_id:
            run.state.report_elsewhere(file, other)
        return Opening()
    try:
        listings = run.state.shared(FolderListings, lambda: FolderListings(run.store), run.output.store_url)
        listed = listings.of(folder_of(run.output, file))
        if listed.manifest:
            if done := _done_meanwhile(run, file, max_line_bytes, left=claim.before is not None):
                return done
            listed = listings.of(folder_of(run.output, file))
        file = replace(file, opening=notice.nonce, resumed=claim.before is not None, opened_at=time.time())
        return Opening(tuple(_claimed(run, claim, file, listed, needed)))
    except CannotOpen as error:
        _fail(run, jobs, claim.record, str(error))
        return Opening()


def _done_before(run: Run, file: FileVersion, manifest: Manifest, max_line_bytes: int, *, left: bool) -> Opening | None:
    """The outcome of a notice whose file has a manifest; None if lines of it can be read that could not before.

    ``left``: a run that died between the manifest and the removal of the file's record may not have told of it.
    """
    if manifest.configuration != run.configuration:
        run.state.report_undone(file.id, "it was answered by another configuration: use another --output")
        return Opening(ack=False)
    if has_readable(run.store, folder_of(run.output, file), manifest, max_line_bytes):
        return None
    done = Settled(file, "done", manifest.answered, manifest.failed, cost=manifest.cost)
    if left:
        remove_told(run, [done])
    else:
        run.jobs.remove((file.store_url, file.key, file.etag))
    run.state.settle(replace(done, reason="was done before"))
    return Opening()


def _done_meanwhile(run: Run, file: FileVersion, max_line_bytes: int, *, left: bool) -> Opening | None:
    """As ``_done_before``, for a file that this run has claimed; opens it again for lines that can be read now.

    Raises CannotOpen for a manifest that cannot be read.
    """
    folder = folder_of(run.output, file)
    try:
        manifest = read_manifest(run.store, folder)
    except ValueError as error:
        raise CannotOpen(str(error)) from error
    if manifest is None:
        return None
    done = _done_before(run, file, manifest, max_line_bytes, left=left)
    if done is None:
        reopen(run.store, folder, max_line_bytes)
    elif not done.ack:
        run.jobs.remove((file.store_url, file.key, file.etag))  # the claim was in vain
    return done


def _claimed(
    run: Run, claim: Claim, file: FileVersion, listed: FolderListing, needed: NeededColumns
) -> Iterator[Opened]:
    """What is left to do for a file that this run has claimed. Raises CannotOpen and StorageError."""
    try:
        file, content = _look_at(file)
    except (ObjectNotFound, ObjectChanged) as error:
        _settle_unread(run, file, str(error))
        return
    shards, leftovers = counted_shards(run.store, listed.shards)
    try:
        file = look_inside(file, content, needed, checked=not shards)
    except UNREADABLE as error:
        _settle_unread(run, file, str(error))
        return
    if shards and claim.before is not None and claim.before.configuration != claim.record.configuration:
        raise CannotOpen("it holds answers of another configuration: use another --output")
    run.state.open(file)
    yield from _elements(run, file, shards, leftovers, content)


def _settle_unread(run: Run, file: FileVersion, reason: str) -> None:
    """Ends a file as stale before a line of it was read."""
    settled = Settled(file, "stale", reason=reason)
    remove_told(run, [settled])
    run.state.settle(settled)


def _elements(
    run: Run, file: FileVersion, shards: Sequence[ShardRecord], leftovers: Sequence[str], content: bytes | None
) -> Iterator[Opened]:
    covered = covered_by(shards)
    run.state.add_done(
        file,
        sum(stop - start for start, stop in covered.spans),
        answered_before=sum(shard.lines for shard in shards if shard.kind == "answers"),
        failed_before=sum(shard.lines for shard in shards if shard.kind == "errors"),
    )
    if leftovers:
        yield Leftovers(file, tuple(leftovers))
    for shard in shards:
        yield KnownShard(file, shard)
    gaps = gaps_of(file, covered)
    if gaps:
        yield OpenFile(file, gaps, content)


def _look_at(file: FileVersion) -> tuple[FileVersion, bytes | None]:
    """The version as it exists, and its content if it is small: reading it costs no more than a look.

    Raises ObjectNotFound, ObjectChanged, CannotOpen where the file's own place refuses, and StorageError.
    """
    store, name = open_store(file.store_url), f"{file.store_url}/{file.key}"
    try:
        if 0 < file.size <= SMALL_BYTES:
            content = b"".join(store.stream(file.key, file.etag, 0, SMALL_BYTES))
            if len(content) == file.size:
                return file, content
        there = current_version(file.store_url, file.key, file.etag)
    except (AccessDenied, BucketNotFound, InvalidLocation) as error:
        raise CannotOpen(str(error)) from error
    if there.etag != file.etag:
        raise ObjectChanged(f"{name} was overwritten before it was read: the new version is a file of its own")
    return replace(file, size=there.size), None


def _fail(run: Run, jobs: Jobs, record: JobRecord, problem: str) -> None:
    """Records that an attempt to open failed; the sweep tries again, until the file becomes a dead letter."""
    failures = record.failures + 1
    dead = failures >= TRIES
    record = record.model_copy(update={"failures": failures, "problem": problem, "dead": dead})
    name = record_name(record.store_url, record.key, record.etag)
    if dead:
        letter = {"reason": problem, "tries": failures, "message": record.notification, "file": record.model_dump()}
        jobs.store.put(f"{run.output.key}_dead/{name}", to_json(letter))
    jobs.release(record)
    then = f"kept in {run.output.key}_dead/{name}" if dead else f"try {failures} of {TRIES}"
    _log.warning("%s/%s cannot be opened (%s): %s", record.store_url, record.key, then, problem)
    run.state.report_undone(f"{record.store_url}/{record.key}@{record.etag}", f"{problem} ({then})")


def covered_by(shards: Iterable[ShardRecord]) -> Intervals:
    """What of a file is in its shards."""
    return Intervals(span for shard in shards for span in Intervals.decode(shard.tiles).spans)


def gaps_of(file: FileVersion, covered: Intervals) -> tuple[tuple[int, int | None], ...]:
    """The ranges that are in no shard; where the length of a file is not known, the last one is open."""
    if file.length is None:
        end = covered.spans[-1][1] if len(covered) else 0
        return (*covered.gaps(end), (end, None))
    return tuple(covered.gaps(file.length)) if file.length else ((0, 0),)


class _AckAll(beam.DoFn):
    """Acks the messages of a bundle's files at its end.

    In a process that may end with its bundle, that ends when they are acked, or the queue has failed.
    """

    def __init__(self, run: Run, queue: str) -> None:
        self.run = run
        self.queue = queue

    def process(self, element: Opened) -> Iterator[Opened]:
        yield element

    def finish_bundle(self) -> None:
        acks = acks_of(self.run.state, self.queue)
        if self.run.remote:
            acks.flush()
        else:
            acks.hurry()
