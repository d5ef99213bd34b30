"""Files are dealt out in stretches that cover their gaps, no faster than they are read, and all comes back."""

from __future__ import annotations

from collections import deque
from itertools import pairwise

import apache_beam as beam
import pytest
from apache_beam.testing.test_pipeline import TestPipeline
from apache_beam.testing.util import assert_that, equal_to
from hypothesis import given
from hypothesis import strategies as st

from llmdo.storage.objects.store import Location
from llmdo.storage.output.manifests import ShardRecord
from llmdo.transforms.elements import FileVersion, KnownShard, Leftovers, OpenFile, Written
from llmdo.transforms.lines.deal import SMALLEST_STRETCH, STRETCHES_EACH, Deal, Dealing, next_stop
from llmdo.transforms.lines.reading import NO_END, Reading
from llmdo.transforms.run import Run
from tests.states import run_state

RUN = Run("run-1", Location("out", ""))
PLAIN = Reading()
SHARD = ShardRecord("shard-000000000000-aa.jsonl", "answers", "0+10", 1)


class Sheets:
    """A dealer with room for two stretches; what was dealt first comes back when it is asked for more."""

    most = 2

    def __init__(self):
        self.dealt, self._open, self.most_open = [], deque(), 0

    def offer(self, element, start, stop):
        if len(self._open) == 2:
            return False
        self.dealt.append((element.file.key, element.gaps, start, stop))
        self._open.append(Written(element.file, blanks=((start, stop),)))
        self.most_open = max(self.most_open, len(self._open))
        return True

    def take(self, seconds):
        return [self._open.popleft()] if seconds and self._open else []

    @property
    def busy(self):
        return bool(self._open)


class Failing(Sheets):
    def take(self, seconds):
        raise RuntimeError("two workers died")


def dealt(elements, dealer, expected=None, reading=PLAIN):
    run_state().shared(Dealing, lambda: Dealing(dealer))
    with TestPipeline(runner="FnApiRunner") as pipeline:
        written = pipeline | beam.Create(elements, reshuffle=False) | Deal(reading, RUN)
        if expected is not None:
            assert_that(written, equal_to(expected))


def file(key, size):
    return FileVersion("r2://bucket", key, "e1", size, "nonce")


@given(st.integers(0, 1 << 40), st.integers(1, 1 << 40), st.integers(1, 1 << 23), st.integers(1, 64))
def test_stretches_of_a_gap_follow_each_other_to_its_end_and_shrink_to_the_smallest(start, length, most, processes):
    last, steps, stop = start + length, 0, start
    before = None
    while stop < last and steps < 200:
        begin, stop = stop, next_stop(stop, last, most, processes)
        assert begin < stop <= last
        size = stop - begin
        assert size <= max(most, SMALLEST_STRETCH)
        assert stop == last or size >= SMALLEST_STRETCH
        assert before is None or size <= before
        # Nobody has more than a part of what is left while others have nothing.
        assert size <= max(SMALLEST_STRETCH, (last - begin) // (STRETCHES_EACH * processes))
        before, steps = size, steps + 1


def test_all_gaps_are_dealt_out_no_faster_than_there_is_room_and_everything_comes_back():
    big, packed, empty = file("big", 1 << 20), file("a.gz", 100), file("empty", 0)
    elements = [
        KnownShard(big, SHARD),
        Leftovers(big, ("torn",)),
        OpenFile(big, ((10, 200_000), (300_000, 1 << 20))),
        OpenFile(packed, ((0, 5), (9, None))),
        OpenFile(empty, ((0, 0),), b""),
    ]
    dealer = Sheets()
    run_state().shared(Dealing, lambda: Dealing(dealer))
    with TestPipeline(runner="FnApiRunner") as pipeline:
        pipeline | beam.Create(elements, reshuffle=False) | Deal(Reading(range_bytes=100_000), RUN)
    parts = [(key, gaps, start, stop) for key, gaps, start, stop in dealer.dealt if key == "big"]
    for gap in ((10, 200_000), (300_000, 1 << 20)):
        own = [(start, stop) for _, gaps, start, stop in parts if gaps == (gap,)]
        assert (own[0][0], own[-1][1]) == gap
        assert all(one[1] == other[0] for one, other in pairwise(own))
        assert len(own) > 1
    assert [one for one in dealer.dealt if one[0] != "big"] == [
        ("a.gz", ((0, 5), (9, None)), 0, NO_END),
        ("empty", ((0, 0),), 0, NO_END),
    ]
    assert dealer.most_open == 2


def test_what_is_dealt_and_what_passes_by_is_emitted():
    big = file("big", 200_000)
    expected = [
        Written(big, shard=SHARD),
        Written(big, leftovers=("torn",)),
        *(
            Written(big, blanks=((start, min(start + SMALLEST_STRETCH, 200_000)),))
            for start in range(0, 200_000, SMALLEST_STRETCH)
        ),
    ]
    dealt([KnownShard(big, SHARD), Leftovers(big, ("torn",)), OpenFile(big, ((0, 200_000),))], Sheets(), expected)


def test_a_file_that_is_too_large_is_one_stretch():
    dealer = Sheets()
    dealt([OpenFile(file("big", 1 << 30), ((0, 1 << 30),))], dealer, reading=Reading(max_file_bytes=1 << 20))
    assert [stretch[2:] for stretch in dealer.dealt] == [(0, NO_END)]


def test_a_run_that_stops_deals_no_more_and_waits_for_what_is_out():
    dealer = Sheets()
    offer = dealer.offer

    def stopping(element, start, stop):
        run_state().stop("enough")
        return offer(element, start, stop)

    dealer.offer = stopping
    big = file("big", 1 << 20)
    dealt([OpenFile(big, ((0, 1 << 20),))], dealer, [Written(big, blanks=((0, 131_072),))])
    assert len(dealer.dealt) == 1


def test_what_the_dealer_raises_fails_the_pipeline():
    with pytest.raises(RuntimeError, match="two workers died"):
        dealt([OpenFile(file("big", 100), ((0, 100),))], Failing())
