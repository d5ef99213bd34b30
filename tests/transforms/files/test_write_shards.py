import hashlib
import json
import time
from pathlib import Path

import apache_beam as beam
import pytest
from apache_beam.io.restriction_trackers import OffsetRange, OffsetRestrictionTracker
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing.test_pipeline import TestPipeline
from apache_beam.testing.util import assert_that, equal_to
from apache_beam.transforms.core import RestrictionProvider
from apache_beam.utils.timestamp import Duration
from hypothesis import given
from hypothesis import strategies as st

from llmdo.runners.prism.binary import find_prism
from llmdo.runners.prism.runner import prism_arguments, running_prism
from llmdo.storage.objects.local import LocalStore
from llmdo.storage.objects.store import Location
from llmdo.storage.output.folders import list_folder
from llmdo.storage.output.intervals import Intervals
from llmdo.storage.output.manifests import ShardRecord, counted_shards
from llmdo.transforms.elements import Answer, Blank, Failure, FileVersion, KnownShard, Leftovers, Stale
from llmdo.transforms.files import write_shards
from llmdo.transforms.files.batching import Batching
from llmdo.transforms.files.folders import folder_of
from llmdo.transforms.files.write_shards import (
    SLOT_BYTES,
    WriteShards,
    keyed,
    length_of_slot,
    length_within,
    shard_key,
    write_batch,
)
from llmdo.transforms.run import Run

FILE = FileVersion("r2://bucket", "input/a.jsonl", "e1", 10_000)


def row(start, stop):
    return json.dumps({"source": {"offset": start, "length": stop - start}, "usage": {"input_tokens": 1}}).encode()


def answer(i, file=FILE):
    return Answer(file, 10 * i, 10 * i + 10, row(10 * i, 10 * i + 10), input_tokens=1, output_tokens=2)


def failure(i, file=FILE):
    error = json.dumps({"error": {"offset": 10 * i, "length": 10}}).encode()
    return Failure(file, 10 * i, 10 * i + 10, error)


@pytest.fixture
def output(tmp_path):
    return Location(str(tmp_path), "")


def test_answers_and_failures_go_to_different_objects_sorted_by_offset(output, tmp_path):
    (answers,) = write_batch(Run("run-1", output, "c"), [answer(3), answer(1), answer(2)])
    (errors,) = write_batch(Run("run-1", output, "c"), [failure(0)])
    folder = folder_of(output, FILE)
    assert answers.shard.name.startswith("shard-000000000010-")
    assert (answers.shard.tiles, answers.shard.lines) == ("10+30", 3)
    assert (answers.shard.input_tokens, answers.shard.output_tokens) == (3, 6)
    assert (tmp_path / folder / answers.shard.name).read_bytes() == b"".join(answer(i).row + b"\n" for i in (1, 2, 3))
    assert errors.shard.name.startswith("errors-000000000000-")


def test_a_shard_is_as_the_golden_file_says_to_the_byte(output, tmp_path):
    golden = (Path(__file__).parents[2] / "golden" / "answers.jsonl").read_bytes()
    rows = golden.splitlines()
    places = [json.loads(line)["source"] for line in rows]
    batch = [
        Answer(FILE, place["offset"], place["offset"] + place["length"], line)
        for place, line in zip(places, rows, strict=True)
    ]
    (written,) = write_batch(Run("run-1", output, "c"), reversed(batch))
    assert written.shard.name == f"shard-000000000000-{hashlib.sha256(golden).hexdigest()[:16]}.jsonl"
    assert (tmp_path / folder_of(output, FILE) / written.shard.name).read_bytes() == golden


def test_a_repeated_batch_writes_the_same_object(output, tmp_path):
    once = list(write_batch(Run("run-1", output, "c"), [answer(1), answer(2)]))
    again = list(write_batch(Run("run-1", output, "c"), [answer(2), answer(1)]))
    assert once == again
    assert len(list_folder(LocalStore(tmp_path), folder_of(output, FILE)).shards) == 1


def test_what_needs_no_shard_is_told_without_one(output, tmp_path):
    known = ShardRecord("shard-000000000000-aa.jsonl", "answers", "0+10", 1)
    left = Leftovers(FILE, ("shard-000000000009-bb.jsonl",))
    batch = [
        Blank(FILE, 20, 21),
        KnownShard(FILE, known),
        left,
        Stale(FILE, "gone", True),
        Blank(FILE, 30, 30, total=30),
    ]
    written = list(write_batch(Run("run-1", output, "c"), batch))
    assert [w.shard for w in written if w.shard] == [known]
    assert [(w.stale, w.gone) for w in written if w.stale] == [("gone", True)]
    assert [w.leftovers for w in written if w.leftovers] == [left.names]
    assert [(w.blanks, w.total) for w in written if w.blanks] == [(((20, 21), (30, 30)), 30)]
    assert list(tmp_path.iterdir()) == []


@given(st.integers(0, 1 << 40), st.integers(0, 1 << 40))
def test_lines_share_a_shard_only_within_one_stretch_of_one_file(a, b):
    one, two = Answer(FILE, a, a + 1, b""), Answer(FILE, b, b + 1, b"")
    assert (shard_key(one) == shard_key(two)) == (a // SLOT_BYTES == b // SLOT_BYTES)
    other = Answer(FileVersion("r2://bucket", "input/a.jsonl", "e2", 1), a, a + 1, b"")
    assert shard_key(one) != shard_key(other)
    assert shard_key(one) == shard_key(Failure(FILE, a, a + 1, b"")) == shard_key(Blank(FILE, a, a + 1))


def written_by_beam(output, outcomes, batching, expected):
    with TestPipeline(runner="FnApiRunner") as pipeline:
        counts = (
            pipeline
            | beam.Create(outcomes, reshuffle=False)
            | WriteShards(Run("run-1", output, "c"), batching)
            | beam.Map(lambda written: (written.shard.kind, written.shard.lines) if written.shard else written.total)
        )
        assert_that(counts, equal_to(expected))


@pytest.mark.parametrize(("lines", "sizes"), [(0, []), (1, [1]), (5, [5]), (25, [10, 10, 5])])
def test_every_line_is_written_also_when_no_batch_is_ever_full(output, lines, sizes, tmp_path):
    answers = [answer(i) for i in range(lines)]
    written_by_beam(output, answers, Batching(size=10, seconds=60), [("answers", size) for size in sizes])
    shards = [path.read_bytes() for path in tmp_path.rglob("shard-*.jsonl")]
    assert sorted(shard.count(b"\n") for shard in shards) == sorted(sizes)


def test_each_kind_fills_batches_of_its_own_also_when_they_alternate(output):
    outcomes = [
        one for i in range(0, 75, 3) for one in (answer(i), failure(i + 1), Blank(FILE, 10 * i + 20, 10 * i + 30))
    ]
    expected = [("answers", 10), ("answers", 10), ("answers", 5), ("errors", 10), ("errors", 10), ("errors", 5)]
    written_by_beam(output, outcomes, Batching(size=10, seconds=60), [*expected, None, None, None])


class _GivenAndWatched(beam.DoFn):
    """Gives outcomes, then waits in the same bundle until their shards cover the file; FOUND holds what was there."""

    def __init__(self, outcomes, output, lines):
        self.outcomes, self.output, self.lines = outcomes, output, lines

    def process(self, _):
        yield from self.outcomes
        folder, patience = folder_of(self.output, self.outcomes[-1].file), time.monotonic() + 60.0
        while True:
            store = LocalStore(Path(self.output.store_url))
            shards, _ = counted_shards(store, list_folder(store, folder).shards)
            FOUND[:] = sorted((shard.tiles, shard.lines) for shard in shards)
            if sum(shard.lines for shard in shards) == self.lines or time.monotonic() > patience:
                return
            time.sleep(0.01)


FOUND: list[tuple[str, int]] = []
BIG = FileVersion("r2://bucket", "big.jsonl", "e", 260)
PACKED = FileVersion("r2://bucket", "big.jsonl.gz", "e", 7)


def lines_of(file, spans):
    return [Answer(file, start, stop, row(start, stop)) for start, stop in spans]


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        # A line that reaches into the next slot, an end of a slot that is an end of a line, and no order.
        (
            lines_of(BIG, [(220, 260), (90, 130), (0, 90), (200, 220), (130, 200)]),
            [("0+130", 2), ("130+70", 1), ("200+60", 2)],
        ),
        # One line over a whole slot.
        (lines_of(BIG, [(0, 30), (30, 210), (210, 260)]), [("0+210", 2), ("210+50", 1)]),
        # What an earlier run wrote, over the ends of slots; the rest is the end of slot 0, and of slot 2.
        (
            [
                KnownShard(BIG, ShardRecord("shard-aa.jsonl", "answers", Intervals([(0, 80), (110, 240)]).encode(), 9)),
                *lines_of(BIG, [(80, 110), (240, 260)]),
            ],
            [("240+20", 1), ("80+30", 1)],
        ),
        # A compressed file's length is told at its end only.
        (
            [*lines_of(PACKED, [(0, 60), (60, 120), (120, 150)]), Blank(PACKED, 150, 150, total=150)],
            [("0+120", 2), ("120+30", 1)],
        ),
        ([*lines_of(PACKED, [(0, 60), (60, 100)]), Blank(PACKED, 100, 100, total=100)], [("0+100", 2)]),
    ],
)
def test_the_end_of_a_big_file_is_written_at_once_also_on_a_runner_whose_timers_fire_with_the_bundles_end(
    output, monkeypatch, outcomes, expected
):
    monkeypatch.setattr(write_shards, "SLOT_BYTES", 100)
    FOUND.clear()
    with TestPipeline(runner="FnApiRunner") as pipeline:
        (
            pipeline
            | beam.Impulse()
            | beam.ParDo(_GivenAndWatched(outcomes, output, sum(lines for _, lines in expected)))
            | WriteShards(Run("run-1", output, "c"), Batching(size=100, seconds=60))
        )
    assert expected == FOUND


@given(st.lists(st.integers(1, 250), min_size=1, max_size=12))
def test_slots_are_whole_when_all_lines_are_there_and_never_before(lengths):
    ends = [sum(lengths[: i + 1]) for i in range(len(lengths))]
    file = FileVersion("r2://bucket", "a.jsonl", "e", ends[-1])
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(write_shards, "SLOT_BYTES", 100)
        seen: dict[int, int] = {}
        for length, end in zip(lengths, ends, strict=True):
            for key, part in keyed(Answer(file, end - length, end, b"")):
                slot = int(key.rpartition("|")[2])
                assert seen.get(slot, 0) < length_of_slot(part, slot, -1) == min(100, ends[-1] - 100 * slot)
                seen[slot] = seen.get(slot, 0) + length_within(part, slot)
        assert seen == {slot: min(100, ends[-1] - 100 * slot) for slot in range(-(-ends[-1] // 100))}


# What came out, when; the same when the source ended; when it began. Beam would copy what a closure holds.
SEEN: list[tuple[str, float]] = []
AT_THE_END: list[set[str]] = []
GIVEN: list[float] = []


def _see(written):
    SEEN.append((written.file.key, time.monotonic()))
    return written


class _Given(beam.DoFn, RestrictionProvider):
    """Gives elements in one bundle, and then nothing, until all these names were seen or a minute is over."""

    END = 1 << 40

    def __init__(self, elements, names):
        self.elements, self.names = elements, names

    def initial_restriction(self, _):
        return OffsetRange(0, self.END)

    def create_tracker(self, restriction):
        return OffsetRestrictionTracker(restriction)

    def restriction_size(self, _, restriction):
        return 1

    def process(self, _, tracker=beam.DoFn.RestrictionParam()):
        start, seen = tracker.current_restriction().start, {name for name, _ in SEEN}
        if start == 0:
            GIVEN.append(time.monotonic())
            yield from self.elements
        elif seen >= self.names or time.monotonic() > GIVEN[0] + 60.0:
            AT_THE_END.append(seen)
            tracker.try_claim(self.END)
            return
        tracker.try_claim(start)
        tracker.defer_remainder(Duration(0.1))


def written_while_the_source_goes_on(output, outcomes, names, seconds):
    """What is seen before the source ends, and after how many seconds each."""
    for kept in (SEEN, AT_THE_END, GIVEN):
        kept.clear()
    with running_prism(find_prism(None)) as prism:
        pipeline = beam.Pipeline(options=PipelineOptions(prism_arguments(prism)))
        (
            pipeline
            | beam.Impulse()
            | beam.ParDo(_Given(outcomes, names))
            | WriteShards(Run("run-1", output, "c"), Batching(size=100, seconds=seconds))
            | beam.Map(_see)
        )
        pipeline.run().wait_until_finish()
    (there,) = AT_THE_END
    return there, {name: at - GIVEN[0] for name, at in reversed(SEEN)}


@pytest.mark.prism
def test_a_file_that_is_whole_is_written_at_once(output):
    whole = FileVersion("r2://bucket", "whole.jsonl", "e", 20)
    packed = FileVersion("r2://bucket", "packed.jsonl.gz", "e", 7)
    known = FileVersion("r2://bucket", "known.jsonl", "e", 20)
    outcomes = [
        *(answer(0, whole), Failure(whole, 10, 20, failure(1).row)),
        *(answer(0, packed), Blank(packed, 10, 10, total=10)),
        *(KnownShard(known, ShardRecord("shard-000000000000-aa.jsonl", "answers", "0+10", 1)), answer(1, known)),
    ]
    names = {file.key for file in (whole, packed, known)}
    there, _ = written_while_the_source_goes_on(output, outcomes, names, seconds=600.0)
    assert there == names


@pytest.mark.prism
def test_a_file_that_is_not_whole_is_written_when_its_time_is_over(output):
    half = FileVersion("r2://bucket", "half.jsonl", "e", 20)
    there, after = written_while_the_source_goes_on(output, [answer(0, half)], {half.key}, seconds=1.0)
    assert there == {half.key}
    assert after[half.key] > 0.9
