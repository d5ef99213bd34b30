"""Writes answers and failures as JSONL objects."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import apache_beam as beam
from apache_beam.pvalue import PCollection

from storage.manifests import Kind, file_folder, put_shard
from storage.objects import Location, open_store
from transforms.elements import Answer, Blank, Failure, FileVersion, KnownShard, Leftovers, Outcome, Stale, Written
from transforms.run_state import run_state

# A file's lines go to one key for each this many bytes of it, so that workers can write shards of a big file at once.
SLOT_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Batching:
    """A shard is written when it has ``size`` lines, or ``seconds`` after its first line came."""

    size: int = 100
    seconds: float = 60.0


@dataclass(eq=False)  # not frozen: Beam writes hints and labels into its transforms
class WriteShards(beam.PTransform):
    """Writes outcomes as JSONL objects of at most ``size`` lines, or what has come after ``seconds``.

    Answers and failures go to different shards; each shard's metadata holds the tiles of the source that it covers.
    A retried bundle may write other shards for the same lines: the manifest, not the listing, says which ones count.
    Emits what was written, and what needs no shard: blanks, stale files, known shards.
    """

    output: Location
    configuration: str
    batching: Batching = Batching()

    def expand(self, outcomes: PCollection[Outcome]) -> PCollection[Written]:
        """Outcome → Written."""
        return (
            outcomes
            | "Key by file" >> beam.Map(_keyed).with_output_types(tuple[str, Outcome])
            | "Batch" >> beam.GroupIntoBatches(self.batching.size, self.batching.seconds)
            | "Put" >> beam.ParDo(_PutShard(self.output, self.configuration))
        )


def _keyed(outcome: Outcome) -> tuple[str, Outcome]:
    return shard_key(outcome), outcome


def shard_key(outcome: Outcome) -> str:
    """Outcomes with the same key may share a shard: one file, one kind, one stretch of the file."""
    match outcome:
        case Answer():
            return f"{outcome.file.work_id}|answers|{outcome.start // SLOT_BYTES}"
        case Failure():
            return f"{outcome.file.work_id}|errors|{outcome.start // SLOT_BYTES}"
        case _:
            return f"{outcome.file.work_id}|rest"


def folder_of(output: Location, file: FileVersion) -> str:
    """The folder of a file version's shards in the output's store."""
    return file_folder(output.key, file.bucket, file.key, file.etag)


def write_batch(output: Location, configuration: str, batch: Iterable[Outcome]) -> Iterator[Written]:
    """Writes one batch of outcomes that share a ``shard_key``."""
    rows: list[Answer | Failure] = []
    blanks: list[Blank] = []
    for outcome in batch:
        match outcome:
            case Answer() | Failure():
                rows.append(outcome)
            case Blank():
                blanks.append(outcome)
            case KnownShard():
                yield Written(outcome.file, shard=outcome.shard)
            case Leftovers():
                yield Written(outcome.file, leftovers=outcome.names)
            case Stale():
                yield Written(outcome.file, stale=outcome.reason, gone=outcome.gone)
    if blanks:
        total = next((blank.total for blank in blanks if blank.total is not None), None)
        yield Written(blanks[0].file, blanks=tuple((b.start, b.stop) for b in blanks), total=total)
    if not rows:
        return
    file = rows[0].file
    kind: Kind = "answers" if isinstance(rows[0], Answer) else "errors"
    answers = [row for row in rows if isinstance(row, Answer)]
    shard = put_shard(
        open_store(output.store_url),
        folder_of(output, file),
        kind,
        [(row.start, row.stop, row.row) for row in rows],
        configuration=configuration,
        input_tokens=sum(row.input_tokens for row in answers),
        output_tokens=sum(row.output_tokens for row in answers),
    )
    run_state().add(shards=1)
    yield Written(file, shard=shard)


class _PutShard(beam.DoFn):
    def __init__(self, output: Location, configuration: str) -> None:
        self.output = output
        self.configuration = configuration

    def process(self, batch: tuple[str, Iterable[Outcome]]) -> Iterator[Written]:
        yield from write_batch(self.output, self.configuration, batch[1])
