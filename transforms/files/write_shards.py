"""Writes answers and failures as JSONL objects."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import apache_beam as beam
from apache_beam.coders import PickleCoder, TupleCoder, VarIntCoder
from apache_beam.pvalue import PCollection
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import BagStateSpec, ReadModifyWriteStateSpec, TimerSpec, on_timer

from llmdo.storage.output.costs import total
from llmdo.storage.output.intervals import Intervals
from llmdo.storage.output.manifests import ShardKind, put_shard
from llmdo.transforms.elements import (
    Answer,
    Blank,
    Failure,
    KnownShard,
    Leftovers,
    Outcome,
    Stale,
    Written,
)
from llmdo.transforms.files.batching import DEFAULT_BATCHING, Batching
from llmdo.transforms.files.folders import folder_of
from llmdo.transforms.outages import patiently
from llmdo.transforms.run import Run
from llmdo.transforms.side_by_side import SideBySide

# A file's lines go to one key for each this many bytes of it, so that workers can write shards of a big file at once.
SLOT_BYTES = 64 << 20


@dataclass(eq=False)  # not frozen: Beam writes hints and labels into its transforms
class WriteShards(beam.PTransform):
    """Writes outcomes as JSONL objects of at most ``size`` lines, or what has come after ``seconds``.

    Answers and failures go to different shards; each shard's metadata holds the tiles of the source that it covers.
    When all of a file is there, what is left of it is written at once: a small file does not wait for ``seconds``.
    A retried bundle may write other shards for the same lines: the manifest, not the listing, says which ones count.
    Emits what was written, and what needs no shard: blanks, stale files, known shards.
    """

    run: Run
    batching: Batching = DEFAULT_BATCHING

    def expand(self, outcomes: PCollection[Outcome]) -> PCollection[Written]:
        """Outcome → Written."""
        return (
            outcomes
            | "Key by file" >> beam.Map(_keyed).with_output_types(tuple[str, Outcome])
            | "Batch" >> beam.ParDo(_Batch(self.batching)).with_output_types(list[Outcome])
            | "Put" >> beam.ParDo(SideBySide(self.run, write_batch))
        )


def _keyed(outcome: Outcome) -> tuple[str, Outcome]:
    return shard_key(outcome), outcome


def shard_key(outcome: Outcome) -> str:
    """Outcomes with the same key may be written together: one file, one stretch of it."""
    start = outcome.start if isinstance(outcome, Answer | Failure | Blank) else 0
    return f"{outcome.file.work_id}|{start // SLOT_BYTES}"


def write_batch(run: Run, batch: Iterable[Outcome]) -> Iterator[Written]:
    """Writes one batch of outcomes that share a ``shard_key``: a shard of answers, one of errors, or both."""
    rows: dict[ShardKind, list[Answer | Failure]] = {"answers": [], "errors": []}
    blanks: list[Blank] = []
    for outcome in batch:
        match outcome:
            case Answer():
                rows["answers"].append(outcome)
            case Failure():
                rows["errors"].append(outcome)
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
    for kind, found in rows.items():
        if found:
            yield _put(run, kind, found)


def _put(run: Run, kind: ShardKind, rows: Sequence[Answer | Failure]) -> Written:
    file = rows[0].file
    answers = [row for row in rows if isinstance(row, Answer)]
    put = partial(
        put_shard,
        run.store,
        folder_of(run.output, file),
        kind,
        [(row.start, row.stop, row.row) for row in rows],
        configuration=run.configuration,
        input_tokens=sum(row.input_tokens for row in answers),
        output_tokens=sum(row.output_tokens for row in answers),
        cost=total(row.cost for row in answers),
    )
    shard = patiently(run.state, put)
    run.state.add(shards=1, lines_written=len(rows))
    return Written(file, shard=shard)


def part_of(outcome: Outcome) -> int:
    """0 for answers, 1 for errors, 2 for blanks: each fills batches of its own. None of these waits for others: 3."""
    match outcome:
        case Answer():
            return 0
        case Failure():
            return 1
        case Blank():
            return 2
        case _:
            return 3


def length_of(outcome: Outcome) -> int:
    """How many bytes of its file an outcome stands for."""
    if isinstance(outcome, KnownShard):
        return sum(stop - start for start, stop in Intervals.decode(outcome.shard.tiles).spans)
    return outcome.stop - outcome.start if isinstance(outcome, Answer | Failure | Blank) else 0


def length_of_file(outcome: Outcome, known: int) -> int:
    """How many bytes the file has, or ``known`` where this outcome does not tell; -1 is "not yet"."""
    if isinstance(outcome, Blank) and outcome.total is not None:
        return outcome.total
    return known if outcome.file.compression else outcome.file.size


class _Batch(beam.DoFn):
    """Beam's GroupIntoBatches does not know when a file is whole, and keeps its last lines for ``seconds``."""

    WAITING = BagStateSpec("waiting", PickleCoder())
    # How many answers, errors and blanks wait; how many bytes of the file came by; how many there are, or -1.
    COUNTS = ReadModifyWriteStateSpec("counts", TupleCoder([VarIntCoder()] * 5))
    DUE = TimerSpec("due", TimeDomain.REAL_TIME)
    WINDOW_END = TimerSpec("window-end", TimeDomain.WATERMARK)

    def __init__(self, batching: Batching) -> None:
        self.batching = batching

    def process(
        self,
        element: tuple[str, Outcome],
        window: Any = beam.DoFn.WindowParam,
        waiting: Any = beam.DoFn.StateParam(WAITING),
        counts: Any = beam.DoFn.StateParam(COUNTS),
        due: Any = beam.DoFn.TimerParam(DUE),
        window_end: Any = beam.DoFn.TimerParam(WINDOW_END),
    ) -> Iterator[list[Outcome]]:
        _, outcome = element
        *before, seen, total = counts.read() or (0, 0, 0, 0, -1)
        seen, total = seen + length_of(outcome), length_of_file(outcome, total)
        part, parts = part_of(outcome), list(before)
        whole, full, added = seen == total, False, [outcome]
        if part == len(parts):
            yield [outcome]
            added = []
        else:
            parts[part] += 1
            full = parts[part] >= self.batching.size
        if whole or full:
            # A bag that is known to be empty is not asked: that is a round trip to the runner.
            found = [*waiting.read(), *added] if any(before) else added
            if found:
                yield [other for other in found if whole or part_of(other) == part]
            waiting.clear()
            added = [other for other in found if not whole and part_of(other) != part]
            parts = [0 if whole or i == part else count for i, count in enumerate(parts)]
            if not any(parts):
                due.clear()
        elif added and not any(before):
            due.set(time.time() + self.batching.seconds)
            window_end.set(window.end)
        for other in added:
            waiting.add(other)
        counts.write((*parts, seen, total))

    @on_timer(DUE)  # type: ignore[untyped-decorator]  # Beam's decorators have no types
    def is_due(
        self,
        waiting: Any = beam.DoFn.StateParam(WAITING),
        counts: Any = beam.DoFn.StateParam(COUNTS),
    ) -> Iterator[list[Outcome]]:
        """``seconds`` are over."""
        yield from self._all(waiting, counts)

    @on_timer(WINDOW_END)  # type: ignore[untyped-decorator]  # as above
    def is_over(
        self,
        waiting: Any = beam.DoFn.StateParam(WAITING),
        counts: Any = beam.DoFn.StateParam(COUNTS),
        due: Any = beam.DoFn.TimerParam(DUE),
    ) -> Iterator[list[Outcome]]:
        """Nothing more can come."""
        due.clear()  # or the runner waits for it
        yield from self._all(waiting, counts)

    def _all(self, waiting: Any, counts: Any) -> Iterator[list[Outcome]]:
        batch = list(waiting.read())
        if batch:
            yield batch
        waiting.clear()
        *_, seen, total = counts.read() or (0, -1)
        counts.write((0, 0, 0, seen, total))
