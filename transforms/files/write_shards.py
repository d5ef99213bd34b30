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

from llmdo.backends.errors import EngineClosed
from llmdo.storage.output.costs import total
from llmdo.storage.output.intervals import Intervals, Span
from llmdo.storage.output.manifests import ShardKind, put_shard
from llmdo.transforms.elements import (
    Answer,
    Blank,
    Failure,
    FileVersion,
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

# A file's lines go to one key for each slot, about this many bytes of it, so that workers can write shards of a big
# file at once.
SLOT_BYTES = 64 << 20


@dataclass(eq=False)  # not frozen: Beam writes hints and labels into its transforms
class WriteShards(beam.PTransform):
    """Writes outcomes as JSONL objects of at most ``size`` lines, or what has come after ``seconds``.

    Answers and failures go to different shards; each shard's metadata holds the tiles of the source that it covers.
    When all of a file is there, or of a slot of a big one, what is left of it is written at once: the end of a file
    does not wait for ``seconds``.
    A retried bundle may write other shards for the same lines: the manifest, not the listing, says which ones count.
    Emits what was written, and what needs no shard: blanks, stale files, known shards.

    Args:
        run: what its run shares, which the steps given by ``llmdo.run_graph`` have already.
        batching: ``size``, lines, and ``seconds``.
    """

    run: Run
    batching: Batching = DEFAULT_BATCHING

    def expand(self, outcomes: PCollection[Outcome]) -> PCollection[Written]:
        """Outcome → Written."""
        return (
            outcomes
            | "Key by file" >> beam.FlatMap(keyed).with_output_types(tuple[str, Outcome | Covered])
            | "Batch" >> beam.ParDo(_Batch(self.batching)).with_output_types(list[Outcome])
            | "Put" >> beam.ParDo(SideBySide(self.run, write_batch))
        )


@dataclass(frozen=True, slots=True)
class Covered:
    """What an outcome of another slot covers of a slot."""

    file: FileVersion
    start: int
    stop: int


# Tuples: ``isinstance`` would build a union for each line.
_TILES = (Answer, Failure, Blank)
_RANGES = (*_TILES, Covered)


def keyed(outcome: Outcome) -> Iterator[tuple[str, Outcome | Covered]]:
    """An outcome with its ``shard_key``, and a Covered for each further slot that it reaches into."""
    own, size = _slot_of(outcome), slot_size(outcome.file)
    yield _key(outcome.file, own), outcome
    for start, stop in _spans(outcome):
        for slot in range(start // size, -(-stop // size)):
            if slot != own:
                begin = slot * size
                yield _key(outcome.file, slot), Covered(outcome.file, max(start, begin), min(stop, begin + size))


def slot_size(file: FileVersion) -> int:
    """How many of a file's positions are one slot."""
    return file.positions(SLOT_BYTES)


def shard_key(outcome: Outcome) -> str:
    """Outcomes with the same key may be written together: those of one slot of a file."""
    return _key(outcome.file, _slot_of(outcome))


def _key(file: FileVersion, slot: int) -> str:
    return f"{file.work_id}|{slot}"


def _slot_of(outcome: Outcome) -> int:
    return outcome.start // slot_size(outcome.file) if isinstance(outcome, _TILES) else 0


def _spans(outcome: Outcome | Covered) -> Sequence[Span]:
    """What an outcome covers of its file."""
    if isinstance(outcome, KnownShard):
        return Intervals.decode(outcome.shard.tiles).spans
    return ((outcome.start, outcome.stop),) if isinstance(outcome, _RANGES) else ()


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
        spans, between = tuple((b.start, b.stop) for b in blanks), sum(b.between for b in blanks)
        yield Written(blanks[0].file, blanks=spans, between=between, total=total)
    for kind, found in rows.items():
        if found:
            yield _put(run, kind, found)


def _put(run: Run, kind: ShardKind, rows: Sequence[Answer | Failure]) -> Written:
    if run.state.over:  # another run may work on the file by now
        raise EngineClosed(f"run {run.run_id} is over")
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


def part_of(outcome: Outcome | Covered) -> int:
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


def length_within(outcome: Outcome | Covered, slot: int) -> int:
    """How many positions of a slot an outcome covers."""
    size = slot_size(outcome.file)
    begin, length = slot * size, 0
    end = begin + size
    for start, stop in _spans(outcome):
        if start >= begin and stop <= end:
            length += stop - start
        else:
            length += max(0, min(stop, end) - max(start, begin))
    return length


def length_of_slot(outcome: Outcome | Covered, slot: int, known: int) -> int:
    """How many positions the slot has, or ``known`` if this outcome does not tell; -1 is "not known yet"."""
    most = slot_size(outcome.file)
    if isinstance(outcome, Blank) and outcome.total is not None:
        end = outcome.total
    elif (length := outcome.file.length) is None:
        return known
    else:
        end = length
    return min(end - slot * most, most)


class _Batch(beam.DoFn):
    """Beam's GroupIntoBatches does not know when a slot is whole, and keeps its last lines for ``seconds``."""

    WAITING = BagStateSpec("waiting", PickleCoder())
    # How many answers, errors and blanks wait; how many positions of the slot have arrived; how many there are, or -1.
    COUNTS = ReadModifyWriteStateSpec("counts", TupleCoder([VarIntCoder()] * 5))
    DUE = TimerSpec("due", TimeDomain.REAL_TIME)
    WINDOW_END = TimerSpec("window-end", TimeDomain.WATERMARK)

    def __init__(self, batching: Batching) -> None:
        self.batching = batching

    def process(
        self,
        element: tuple[str, Outcome | Covered],
        window: Any = beam.DoFn.WindowParam,
        waiting: Any = beam.DoFn.StateParam(WAITING),
        counts: Any = beam.DoFn.StateParam(COUNTS),
        due: Any = beam.DoFn.TimerParam(DUE),
        window_end: Any = beam.DoFn.TimerParam(WINDOW_END),
    ) -> Iterator[list[Outcome]]:
        key, outcome = element
        slot = int(key.rpartition("|")[2])
        *before, seen, total = counts.read() or (0, 0, 0, 0, -1)
        seen, total = seen + length_within(outcome, slot), length_of_slot(outcome, slot, total)
        part, parts = part_of(outcome), list(before)
        # Only the last slot of a file that is not divisible is told its length, by the end mark.
        whole, full = seen in (total, slot_size(outcome.file)), False
        added: list[Outcome] = []
        if isinstance(outcome, Covered):
            pass
        elif part == len(parts):
            yield [outcome]
        else:
            added = [outcome]
            parts[part] += 1
            full = parts[part] >= self.batching.size
        if whole or full:
            # A bag that is known to be empty is not read: that is a round trip to the runner.
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
        """``seconds`` have passed."""
        yield from self._all(waiting, counts)

    @on_timer(WINDOW_END)  # type: ignore[untyped-decorator]  # as above
    def is_over(
        self,
        waiting: Any = beam.DoFn.StateParam(WAITING),
        counts: Any = beam.DoFn.StateParam(COUNTS),
        due: Any = beam.DoFn.TimerParam(DUE),
    ) -> Iterator[list[Outcome]]:
        """Nothing more can arrive."""
        due.clear()  # or the runner waits for it
        yield from self._all(waiting, counts)

    def _all(self, waiting: Any, counts: Any) -> Iterator[list[Outcome]]:
        batch = list(waiting.read())
        if batch:
            yield batch
        waiting.clear()
        *_, seen, total = counts.read() or (0, -1)
        counts.write((0, 0, 0, seen, total))
