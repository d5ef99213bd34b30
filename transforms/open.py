"""Opens files: writes the job record, acks the message, and finds what earlier shards hold."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import apache_beam as beam
from apache_beam.pvalue import PCollection
from apache_beam.utils.windowed_value import WindowedValue
from pydantic_core import to_json

from storage.environment import cloudflare_account
from storage.errors import AccessDenied, BucketNotFound, InvalidLocation, ObjectNotFound
from storage.intervals import Intervals
from storage.jobs import Claim, JobRecord, Jobs, new_record, record_name
from storage.manifests import ShardRecord, counted_shards, read_manifest
from storage.objects import Location, open_store
from storage.queues import QueueClient
from transforms.elements import FileVersion, KnownShard, Leftovers, Notice, Opened, OpenFile, Settled
from transforms.run_state import run_state
from transforms.shards import folder_of

_log = logging.getLogger(__name__)

# Opening is some calls of R2's API one after the other; so many files at the same time.
_AT_ONCE = 16
# One call acks this many messages at most (developers.cloudflare.com/queues/platform/limits).
_ACKS_A_CALL = 100
# A message whose file is open is acked after this long, or when there are enough for one call. Seconds.
_ACK_AFTER = 2.0
# A file that fails to open this many times goes to the dead letters.
TRIES = 3


class CannotOpen(Exception):
    """This file cannot be opened, whatever happens to the others."""


@dataclass(eq=False)  # not frozen: Beam writes hints and labels into its transforms
class OpenFiles(beam.PTransform):
    """Turns notices into files to read and the shards that count already.

    A version that somebody works on, or that has a manifest, is not opened again; its message is acked. Else the job
    record is written, then the message is acked, never the other way round. What fails to open three times goes to
    ``OUTPUT/_dead/``. ``queue`` is the id of the queue that the messages are from.
    """

    output: Location
    configuration: str
    run_id: str
    queue: str | None = None

    def expand(self, notices: PCollection[Notice]) -> PCollection[Opened]:
        """Notice → Opened."""
        return notices | "Write job record" >> beam.ParDo(
            _Open(self.output, self.configuration, self.run_id, self.queue)
        )


@dataclass(frozen=True, slots=True)
class Opening:
    """What became of a notice: what to read, and whether its message can go."""

    elements: tuple[Opened, ...] = ()
    ack: bool = True


def open_file(output: Location, configuration: str, run_id: str, notice: Notice) -> Opening:
    """Claims one file version; nothing to read when it is done, stale, or in work already. Raises StorageError."""
    presence = run_state().presence
    if presence is not None and presence.run_id != run_id:  # what is left of a pipeline that failed opens nothing
        return Opening(ack=False)
    file, store = notice.file, open_store(output.store_url)
    jobs, problem = Jobs(store, output.key), ""
    try:
        manifest = read_manifest(store, folder_of(output, file))
    except ValueError as error:
        manifest, problem = None, str(error)
    if manifest is not None:
        if manifest.configuration != configuration:
            run_state().leave(file.id, "it was answered by another configuration: use another --output")
            return Opening(ack=False)
        # A run that died between the manifest and the record's removal left a record that nobody needs.
        jobs.remove((file.store_url, file.key, file.etag))
        run_state().settle(Settled(file, "done", manifest.answered, manifest.failed, "was done before"))
        return Opening()
    claim = jobs.claim(
        new_record(
            file.store_url,
            file.key,
            file.etag,
            file.size,
            notification=dict(notice.body),
            configuration=configuration,
            run_id=run_id,
            nonce=notice.nonce,
        ),
        run_state().is_alive,
    )
    if claim.record.nonce != notice.nonce:
        if claim.record.run_id != run_id:
            run_state().leave_to(file, claim.record.run_id)
        return Opening()
    try:
        if problem:
            raise CannotOpen(problem)
        return Opening(tuple(_claimed(output, jobs, claim, replace(file, opening=notice.nonce))))
    except CannotOpen as error:
        _fail(output, jobs, claim.record, str(error))
        return Opening()


def _claimed(output: Location, jobs: Jobs, claim: Claim, file: FileVersion) -> Iterator[Opened]:
    """What there is to do for a file that is this run's. Raises CannotOpen and StorageError."""
    stale = _why_stale(file)
    if stale is not None:
        jobs.remove((file.store_url, file.key, file.etag))
        run_state().settle(Settled(file, "stale", reason=stale))
        return
    shards, leftovers = counted_shards(jobs.store, folder_of(output, file))
    if shards and claim.before is not None and claim.before.configuration != claim.record.configuration:
        raise CannotOpen("it holds answers of another configuration: use another --output")
    run_state().open(file)
    yield from _elements(file, shards, leftovers)


def _elements(file: FileVersion, shards: Sequence[ShardRecord], leftovers: Sequence[str]) -> Iterator[Opened]:
    covered = Intervals(span for shard in shards for span in Intervals.decode(shard.tiles).spans)
    run_state().add(
        answered_before=sum(shard.lines for shard in shards if shard.kind == "answers"),
        failed_before=sum(shard.lines for shard in shards if shard.kind == "errors"),
        bytes_done=sum(stop - start for start, stop in covered.spans),
    )
    if leftovers:
        yield Leftovers(file, tuple(leftovers))
    for shard in shards:
        yield KnownShard(file, shard)
    gaps = gaps_of(file, covered)
    if gaps:
        yield OpenFile(file, gaps)


def _why_stale(file: FileVersion) -> str | None:
    """Why this version is no more, or None. Raises CannotOpen where the file's own place refuses, and StorageError."""
    name = f"{file.store_url}/{file.key}"
    try:
        there = open_store(file.store_url).stat(file.key)
    except ObjectNotFound:
        return f"{name} is gone: it was deleted before it was read"
    except (AccessDenied, BucketNotFound, InvalidLocation) as error:
        raise CannotOpen(str(error)) from error
    if there.etag != file.etag:
        return f"{name} was overwritten before it was read: the new version is a file of its own"
    return None


def _fail(output: Location, jobs: Jobs, record: JobRecord, problem: str) -> None:
    """Writes down that a try to open failed; the sweep tries again, until the file goes to the dead letters."""
    failures = record.failures + 1
    dead = failures >= TRIES
    record = record.model_copy(update={"failures": failures, "problem": problem, "dead": dead})
    name = record_name(record.store_url, record.key, record.etag)
    if dead:
        letter = {"reason": problem, "tries": failures, "message": record.notification, "file": record.model_dump()}
        jobs.store.put(f"{output.key}_dead/{name}", to_json(letter))
    jobs.release(record)
    then = f"kept in {output.key}_dead/{name}" if dead else f"try {failures} of {TRIES}"
    _log.warning("%s/%s cannot be opened (%s): %s", record.store_url, record.key, then, problem)
    run_state().leave(f"{record.store_url}/{record.key}@{record.etag}", f"{problem} ({then})")


def gaps_of(file: FileVersion, covered: Intervals) -> tuple[tuple[int, int | None], ...]:
    """The ranges that no shard holds; the last one of a compressed file is open, since its length is not known."""
    if file.compression:
        end = covered.spans[-1][1] if len(covered) else 0
        return (*covered.gaps(end), (end, None))
    return tuple(covered.gaps(file.size)) if file.size else ((0, 0),)


class _Open(beam.DoFn):
    def __init__(self, output: Location, configuration: str, run_id: str, queue: str | None) -> None:
        self.output = output
        self.configuration = configuration
        self.run_id = run_id
        self.queue = queue

    def setup(self) -> None:
        self._pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="llmdo-open")

    def start_bundle(self) -> None:
        self._open: deque[tuple[Notice, WindowedValue, Future[Opening]]] = deque()
        self._leases: list[str] = []
        self._ack_at = float("inf")

    def process(
        self, notice: Notice, timestamp: Any = beam.DoFn.TimestampParam, window: Any = beam.DoFn.WindowParam
    ) -> Iterator[Any]:
        future = self._pool.submit(open_file, self.output, self.configuration, self.run_id, notice)
        self._open.append((notice, WindowedValue(None, timestamp, (window,)), future))
        while self._open and (self._open[0][2].done() or len(self._open) > _AT_ONCE):
            yield from self._opened()

    def finish_bundle(self) -> Iterator[Any]:
        while self._open:
            yield from self._opened()
        self._ack()

    def teardown(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _opened(self) -> Iterator[WindowedValue]:
        notice, context, future = self._open.popleft()
        opening = future.result()
        for element in opening.elements:
            yield context.with_value(element)
        if opening.ack and notice.lease_id is not None:
            self._leases.append(notice.lease_id)
            self._ack_at = min(self._ack_at, time.monotonic() + _ACK_AFTER)
        if len(self._leases) >= _ACKS_A_CALL or time.monotonic() > self._ack_at:
            self._ack()

    def _ack(self) -> None:
        if self._leases and self.queue is not None:
            with QueueClient(cloudflare_account(), self.queue) as client:
                client.settle(acks=self._leases)
        self._leases, self._ack_at = [], float("inf")
