"""Opens files: writes the job record, acks the message, and finds what earlier shards hold."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
from apache_beam.coders import VarIntCoder
from apache_beam.pvalue import PCollection
from apache_beam.transforms.userstate import ReadModifyWriteStateSpec

from storage.environment import cloudflare_account
from storage.intervals import Intervals
from storage.jobs import Jobs, new_record
from storage.manifests import counted_shards, read_manifest
from storage.objects import Location, open_store
from storage.queues import QueueClient
from transforms.elements import FileVersion, KnownShard, Notice, OpenFile, Settled
from transforms.run_state import run_state
from transforms.shards import folder_of

# One call acks this many messages at most (developers.cloudflare.com/queues/platform/limits).
_ACKS_A_CALL = 100


@dataclass(eq=False)  # not frozen: Beam writes hints and labels into its transforms
class OpenFiles(beam.PTransform):
    """Turns notices into files to read and the shards that count already.

    Keyed by file version: a version that this run works on, or that has a manifest, is not opened again; its message
    is acked. Else the job record is written, then the message is acked, never the other way round.
    ``queue`` is the id of the queue that the messages are from.
    """

    output: Location
    configuration: str
    run_id: str
    queue: str | None = None

    def expand(self, notices: PCollection[Notice]) -> PCollection[OpenFile | KnownShard]:
        """Notice → OpenFile | KnownShard."""
        return (
            notices
            | "Key by file version" >> beam.Map(_keyed).with_output_types(tuple[str, Notice])
            | "Write job record" >> beam.ParDo(_Open(self.output, self.configuration, self.run_id, self.queue))
        )


def _keyed(notice: Notice) -> tuple[str, Notice]:
    return notice.file.id, notice


def open_file(output: Location, configuration: str, run_id: str, notice: Notice) -> list[OpenFile | KnownShard]:
    """Claims one file version; empty when its manifest is there, or another run that is alive works on it.

    After the return its message may be acked: the file has a record or a manifest.

    Raises ValueError for a manifest that cannot be read, and StorageError.
    """
    file, store = notice.file, open_store(output.store_url)
    folder = folder_of(output, file)
    manifest = read_manifest(store, folder)
    if manifest is not None:
        # A run that died between the manifest and the record's removal left a record that nobody needs.
        Jobs(store, output.key).remove((file.store_url, file.key, file.etag))
        run_state().settle(Settled(file, "done", manifest.answered, manifest.failed, "was done before"))
        return []
    record = new_record(
        file.store_url,
        file.key,
        file.etag,
        file.size,
        notification=dict(notice.body),
        configuration=configuration,
        run_id=run_id,
    )
    owner = Jobs(store, output.key).claim(record, run_state().is_alive)
    if owner is not None:
        run_state().leave_to(file, owner)
        return []
    run_state().open(file)
    shards = counted_shards(store, folder)
    covered = Intervals(span for shard in shards for span in Intervals.decode(shard.tiles).spans)
    run_state().add(
        answered=sum(shard.lines for shard in shards if shard.kind == "answers"),
        failed=sum(shard.lines for shard in shards if shard.kind == "errors"),
        bytes_done=sum(stop - start for start, stop in covered.spans),
    )
    known = [KnownShard(file, shard) for shard in shards]
    gaps = gaps_of(file, covered)
    return [*known, OpenFile(file, gaps)] if gaps else list(known)


def gaps_of(file: FileVersion, covered: Intervals) -> tuple[tuple[int, int | None], ...]:
    """The ranges that no shard holds; the last one of a compressed file is open, since its length is not known."""
    if file.compression:
        end = covered.spans[-1][1] if len(covered) else 0
        return (*covered.gaps(end), (end, None))
    return tuple(covered.gaps(file.size)) if file.size else ((0, 0),)


class _Open(beam.DoFn):
    SEEN = ReadModifyWriteStateSpec("seen", VarIntCoder())

    def __init__(self, output: Location, configuration: str, run_id: str, queue: str | None) -> None:
        self.output = output
        self.configuration = configuration
        self.run_id = run_id
        self.queue = queue

    def start_bundle(self) -> None:
        self._leases: list[str] = []

    def process(
        self,
        element: tuple[str, Notice],
        seen: Any = beam.DoFn.StateParam(SEEN),
    ) -> Iterator[OpenFile | KnownShard]:
        _, notice = element
        if not seen.read():
            try:
                opened = open_file(self.output, self.configuration, self.run_id, notice)
            except ValueError as error:
                run_state().leave(notice.file.id, str(error))  # not acked: it comes again when this is mended
                return
            seen.write(1)
            yield from opened
        if notice.lease_id is not None:
            self._leases.append(notice.lease_id)
            if len(self._leases) >= _ACKS_A_CALL:
                self._ack()

    def finish_bundle(self) -> None:
        self._ack()

    def _ack(self) -> None:
        if self._leases and self.queue is not None:
            QueueClient(cloudflare_account(), self.queue).settle(acks=self._leases)
        self._leases = []
