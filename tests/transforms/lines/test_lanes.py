"""The decisions of a self-checkpoint, with an own clock."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmdo.transforms.lines.lanes import FAST_S, MAX_GROUP, RETRY, SLOW_S, Lanes, ReadingTurn, end_of_turn, next_group
from tests.fakes.clocks import Clock

T = 30.0


@pytest.fixture
def clock() -> Clock:
    return Clock(1000.0)


def somebody_reads(lanes: Lanes, clock: Clock, after: float = 0.0) -> None:
    """Another bundle whose turn begins ``after`` s from now, and is not over when one that begins now is."""
    clock.now += after
    assert ReadingTurn(lanes, 4, T, clock).wait(fresh=False) is None
    clock.now -= after


def test_fresh_ranges_of_a_bundle_are_dealt_to_the_lanes_in_turn_and_read_nothing(clock: Clock) -> None:
    lanes = Lanes()
    turn = ReadingTurn(lanes, 4, T, clock)
    assert [turn.wait(fresh=True) for _ in range(6)] == [0.0, 0.25, 0.5, 0.75, 0.0, 0.25]
    assert turn.rest() is None  # its time has not begun
    assert ReadingTurn(lanes, 1, T, clock).wait(fresh=False) is None  # nor has it taken a lane


def test_the_first_fresh_range_of_a_bundle_does_not_wait(clock: Clock) -> None:
    assert ReadingTurn(Lanes(), 4, T, clock).wait(fresh=True) == 0.0


def test_lanes_lie_closer_together_than_a_short_turn(clock: Clock) -> None:
    turn = ReadingTurn(Lanes(), 4, 0.4, clock)
    assert [turn.wait(fresh=True) for _ in range(4)] == pytest.approx([0.0, 0.1, 0.2, 0.3])


def test_time_counts_from_the_bundles_first_read(clock: Clock) -> None:
    lanes = Lanes()
    turn = ReadingTurn(lanes, 4, T, clock)
    clock.now += 100
    assert turn.wait(fresh=False) is None
    somebody_reads(lanes, clock, after=T / 2)
    clock.now += T - 0.1
    assert turn.rest() is None
    assert turn.wait(fresh=False) is None
    clock.now += 0.2
    assert turn.rest() == 0.0


def test_when_time_is_up_waiting_ranges_defer_at_once(clock: Clock) -> None:
    lanes = Lanes()
    turn = ReadingTurn(lanes, 4, T, clock)
    assert turn.wait(fresh=False) is None
    somebody_reads(lanes, clock, after=T / 2)
    clock.now += T
    assert [turn.wait(fresh=False) for _ in range(3)] == [0.0, 0.0, 0.0]


def test_a_fifth_bundle_waits_until_a_lane_is_free(clock: Clock) -> None:
    lanes = Lanes()
    turns = [ReadingTurn(lanes, 4, T, clock) for _ in range(5)]
    assert [turn.wait(fresh=False) for turn in turns] == [None, None, None, None, RETRY]
    assert turns[4].wait(fresh=False) == RETRY
    turns[2].finish()
    assert turns[4].wait(fresh=False) is None


def test_a_bundle_that_never_ends_keeps_its_lane_no_longer_than_its_turn(clock: Clock) -> None:
    lanes = Lanes()
    dead, waiting = ReadingTurn(lanes, 1, T, clock), ReadingTurn(lanes, 1, T, clock)
    assert dead.wait(fresh=False) is None
    clock.now += T - 1
    assert waiting.wait(fresh=False) == RETRY
    clock.now += 1
    assert waiting.wait(fresh=False) is None


def test_a_small_range_is_read_at_once_though_all_lanes_are_taken_by_large_ones(clock: Clock) -> None:
    lanes = Lanes()
    assert [ReadingTurn(lanes, 4, T, clock).wait(fresh=False) for _ in range(4)] == [None] * 4
    first, second = ReadingTurn(lanes, 4, T, clock), ReadingTurn(lanes, 4, T, clock)
    assert first.wait(fresh=True, small=True) is None
    assert second.wait(fresh=True, small=True) == RETRY  # one lane more, not any number
    first.finish()
    assert second.wait(fresh=False, small=True) is None


def test_a_large_range_never_takes_the_lane_that_is_for_small_ones(clock: Clock) -> None:
    lanes = Lanes()
    assert [ReadingTurn(lanes, 2, T, clock).wait(fresh=False) for _ in range(3)] == [None, None, RETRY]


def test_a_small_range_behind_a_large_one_is_begun_when_the_turn_ends(clock: Clock) -> None:
    lanes = Lanes()
    turn = ReadingTurn(lanes, 4, T, clock)
    assert turn.wait(fresh=False) is None
    somebody_reads(lanes, clock, after=T / 2)
    clock.now += T
    assert turn.rest() == 0.0  # the large one is deferred, and may be in front again
    assert turn.wait(fresh=False) == 0.0
    assert turn.wait(fresh=True, small=True) is None
    clock.now += T / 4  # small ones keep coming: the bundle has to end all the same
    assert turn.wait(fresh=False, small=True) == 0.0


def test_a_lane_is_given_back_once(clock: Clock) -> None:
    lanes = Lanes()
    first, second = ReadingTurn(lanes, 1, T, clock), ReadingTurn(lanes, 1, T, clock)
    assert first.wait(fresh=False) is None
    first.finish()
    assert second.wait(fresh=False) is None
    first.finish()
    assert ReadingTurn(lanes, 1, T, clock).wait(fresh=False) == RETRY


def test_whoever_was_refused_comes_before_those_whose_turn_is_over(clock: Clock) -> None:
    lanes = Lanes()
    reading, waiting = ReadingTurn(lanes, 1, T, clock), ReadingTurn(lanes, 1, T, clock)
    assert reading.wait(fresh=False) is None
    clock.now += T - RETRY / 2
    assert waiting.wait(fresh=False) == RETRY
    clock.now += RETRY / 2
    rest = reading.rest()
    assert rest is not None
    assert rest > RETRY
    clock.now += 2 * T  # the one that waited does not any more
    assert reading.rest() == 0.0


def test_a_turn_goes_on_while_nobody_else_reads(clock: Clock) -> None:
    lanes = Lanes()
    somebody_reads(lanes, clock)
    clock.now += T  # whoever that was waits for its last calls
    begun = ReadingTurn(lanes, 4, T, clock)
    assert begun.wait(fresh=False) is None
    clock.now += T
    assert begun.rest() is None
    assert begun.wait(fresh=False) is None
    somebody_reads(lanes, clock)
    assert begun.rest() == 0.0


def test_a_turn_that_goes_on_alone_keeps_no_lane_from_others_and_ends_at_twice_its_length(clock: Clock) -> None:
    lanes = Lanes()
    reading, other = ReadingTurn(lanes, 1, T, clock), ReadingTurn(lanes, 1, T, clock)
    assert reading.wait(fresh=False) is None
    clock.now += 1.9 * T
    assert reading.rest() is None
    clock.now += 0.2 * T
    assert reading.rest() == 0.0
    assert other.wait(fresh=False) is None


def test_the_ends_of_four_turns_are_a_quarter_apart() -> None:
    ends: list[float] = []
    for _ in range(4):
        ends.append(end_of_turn(1000.0, T, ends))
    assert ends[0] == 1000 + T
    assert [b - a for a, b in pairwise(sorted(ends))] == pytest.approx([T / 4] * 3)


def test_turns_keep_their_distance_from_round_to_round() -> None:
    ends = {0: 1007.5, 1: 1015.0, 2: 1022.5, 3: 1030.0}
    for _ in range(40):
        lane, end = min(ends.items(), key=lambda item: item[1])
        others = [other for name, other in ends.items() if name != lane]
        ends[lane] = end_of_turn(end + 3.0, T, others)  # it drained for 3 s
        assert ends[lane] - (end + 3.0) == pytest.approx(T - 3.0)


@given(
    now=st.floats(0, 1e6),
    seconds=st.floats(0.5, 600),
    others=st.lists(st.floats(-2, 2), max_size=8),
)
def test_a_turn_is_never_short_nor_much_too_long(now: float, seconds: float, others: list[float]) -> None:
    ends = [now + seconds * other for other in others]
    length = end_of_turn(now, seconds, ends) - now
    assert seconds / (4 * len(ends) + 4) < length < 1.5 * seconds


def test_groups_grow_while_the_steps_behind_are_fast_and_shrink_when_they_are_slow() -> None:
    sizes = [1]
    for _ in range(10):
        sizes.append(next_group(sizes[-1], FAST_S / 2))
    assert sizes == [1, 2, 4, 8, 16, 32, 64, 64, 64, 64, 64]
    assert next_group(48, (FAST_S + SLOW_S) / 2) == 48
    assert [next_group(n, SLOW_S * 2) for n in (64, 3, 1)] == [32, 1, 1]


def test_a_slow_step_behind_is_soon_given_groups_that_take_less_than_a_second() -> None:
    size, each = MAX_GROUP, 0.1
    for _ in range(int(math.log2(MAX_GROUP))):
        size = next_group(size, size * each)
    assert size * each < 1.0
