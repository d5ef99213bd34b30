"""The policy by itself, on a clock of the test."""

import math
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmdo.backends.lanes.queue_times import QueueTimes
from llmdo.backends.lanes.ready_by import GroupOut, Lane, ReadyBy
from llmdo.backends.limits.call_speed import CallSpeed
from tests.backends.lanes.histories import BATCH_WINDOW_S, FACTOR, histories

HOUR = 3600.0
QUICK = CallSpeed(64, 1000, 1.0, 2.0)
LANE = Lane("batch", FACTOR, QueueTimes(BATCH_WINDOW_S))
AT_NIGHT = ReadyBy(8 * HOUR, 0.0)


def paid(played):
    """Paid for a line and least for a line, in list prices; a history with more lines does not count for more."""
    costs = [(one.paid / one.lines, one.hindsight / one.lines) for one in played]
    return statistics.fmean(cost for cost, _ in costs), statistics.fmean(least for _, least in costs)


def test_of_200_histories_none_is_late_and_together_they_cost_5_percent_more_than_hindsight_at_most():
    played = [history.play() for history in histories(200)]
    assert [one.seed for one in played if one.late_s > 0] == []
    cost, least = paid(played)
    over = sorted(one.paid / one.hindsight for one in played)
    quantiles = {f"{part:.0%}": round(over[int(part * (len(over) - 1))], 3) for part in (0.1, 0.5, 0.75, 0.9, 1)}
    print(f"paid {cost:.3f}, hindsight {least:.3f} of list price: {cost / least - 1:+.1%}; each {quantiles}")
    assert cost <= 1.05 * least
    assert least < 0.65  # there was something to save


@pytest.mark.slow
@pytest.mark.parametrize("drawn", [{"horizon_s": (300.0, 3600.0)}, {"most_load": 1.0}, {"most_load": 0.05}])
def test_short_times_and_heavy_loads_are_never_late_either(drawn):
    played = [history.play() for history in histories(200, **drawn)]
    assert [one.seed for one in played if one.late_s > 0] == []
    cost, least = paid(played)
    print(f"{drawn}: paid {cost:.3f}, hindsight {least:.3f} of list price: {cost / least - 1:+.1%}")
    assert cost <= 1.0  # no more than without batches


@pytest.mark.slow
def test_cancels_that_were_measured_save_where_there_is_little_time_and_make_nothing_late():
    costs = {}
    for cancels in (0, 1, 20):
        played = [history.play() for history in histories(100, horizon_s=(300.0, 3600.0), cancels=cancels)]
        assert [one.seed for one in played if one.late_s > 0] == []
        costs[cancels], least = paid(played)
    print({cancels: f"{cost / least - 1:+.1%}" for cancels, cost in costs.items()}, "over hindsight")
    assert least < costs[20] < costs[1] < costs[0]
    assert costs[20] - least < 0.6 * (costs[0] - least)


def test_much_time_lets_all_of_a_group_wait_and_no_time_lets_it_be_called():
    assert AT_NIGHT.hand_over(0.0, 10_000, 0, 0, [LANE], QUICK) == (LANE, 10_000)
    assert AT_NIGHT.hand_over(8 * HOUR - 60, 1, 0, 0, [LANE], QUICK) is None
    assert AT_NIGHT.hand_over(9 * HOUR, 10_000, 0, 0, [LANE], QUICK) is None


def test_measured_queue_times_decide_where_the_published_window_knows_less():
    soon = ReadyBy(900.0, 0.0)
    slow = Lane("batch", FACTOR, QueueTimes(BATCH_WINDOW_S, (7200.0,) * 20))
    quick = Lane("batch", FACTOR, QueueTimes(BATCH_WINDOW_S, (60.0,) * 20))
    assert soon.hand_over(0.0, 100, 0, 0, [slow], QUICK) is None
    assert soon.hand_over(0.0, 100, 0, 0, [quick], QUICK) == (quick, 100)


def test_a_lane_that_saves_nothing_is_not_taken_and_of_several_the_one_expected_to_be_cheapest():
    hours = Lane("8h", 0.6, QueueTimes(8 * HOUR, (4 * HOUR,) * 20))
    free = Lane("batch", 1.0, QueueTimes(300.0))
    assert AT_NIGHT.hand_over(0.0, 100, 0, 0, [free], QUICK) is None
    assert AT_NIGHT.hand_over(0.0, 100, 0, 0, [free, hours, LANE], QUICK) == (LANE, 100)
    slow = Lane("batch", FACTOR, QueueTimes(BATCH_WINDOW_S, (20 * HOUR,) * 20))
    assert AT_NIGHT.hand_over(0.0, 100, 0, 0, [slow, hours], QUICK) == (hours, 100)


def test_where_list_price_needs_nearly_all_the_time_the_last_lines_are_handed_over_while_the_first_are_called():
    lines = int(8 * HOUR * QUICK.per_s * 0.9)
    way = AT_NIGHT.hand_over(0.0, lines, 0, 0, [LANE], QUICK)
    assert way
    assert 0.3 * lines < way[1] < 0.98 * lines
    assert AT_NIGHT.moves(0.0, [GroupOut(LANE, way[1], 0.0)], lines - way[1], QUICK).call == ()


def test_a_batch_is_cancelled_in_time_for_the_cancel_and_called_when_it_has_not_settled():
    group = GroupOut(LANE, 64_000, 0.0)
    start = AT_NIGHT.latest_start(64_000, QUICK)
    early = AT_NIGHT.moves(start - 700, [group], 0, QUICK)
    assert (early.cancel, early.call, early.again_at) == ((), (), pytest.approx(start - 600))
    due = AT_NIGHT.moves(start - 600, [group], 0, QUICK)
    assert (due.cancel, due.call, due.again_at) == ((group,), (), pytest.approx(start))
    group.cancelled = True
    assert AT_NIGHT.moves(start - 1, [group], 0, QUICK).call == ()
    last = AT_NIGHT.moves(start, [group], 0, QUICK)
    assert (last.cancel, last.call) == ((), (group,))


def test_a_batch_that_is_about_to_come_back_is_not_cancelled_until_its_calls_must_start():
    sure = Lane("batch", FACTOR, QueueTimes(BATCH_WINDOW_S, tuple(7.5 * HOUR + 10 * i for i in range(40))))
    group = GroupOut(sure, 6400, 0.0)
    start = AT_NIGHT.latest_start(6400, QUICK)
    assert AT_NIGHT.moves(start - 500, [group], 0, QUICK).cancel == ()
    assert AT_NIGHT.moves(start, [group], 0, QUICK).cancel == (group,)
    group.answered = 1.0  # only its end is to come: what was answered is taken in any case
    assert AT_NIGHT.moves(start - 500, [group], 0, QUICK).cancel == (group,)


def test_of_several_batches_the_least_likely_is_given_up_first_and_the_others_later():
    old = GroupOut(Lane("batch", FACTOR, QueueTimes(BATCH_WINDOW_S, (600.0,) * 20)), 200_000, 0.0)
    new = GroupOut(old.lane, 200_000, 6.5 * HOUR)
    both = AT_NIGHT.latest_start(400_000, QUICK)
    moves = AT_NIGHT.moves(both, [new, old], 0, QUICK)
    assert moves.call == (old,)
    assert new not in moves.cancel


def test_nothing_that_is_out_is_given_up_while_calls_in_hand_keep_the_service_busy():
    group = GroupOut(LANE, 64_000, 0.0)
    start = AT_NIGHT.latest_start(64_010, QUICK)
    assert AT_NIGHT.moves(start, [group], 100_000, QUICK).cancel == ()
    assert AT_NIGHT.moves(start, [group], 10, QUICK).cancel == (group,)


@given(
    calls=st.integers(0, 10**7),
    answered=st.integers(0, 10**6),
    latency_s=st.floats(0, 600),
    window=st.integers(1, 4096),
    most_per_s=st.one_of(st.just(math.inf), st.floats(0.01, 1e4)),
)
def test_more_calls_take_longer_and_more_knowledge_needs_less_margin(calls, answered, latency_s, window, most_per_s):
    speed = CallSpeed(window, answered, latency_s, latency_s, most_per_s)
    wiser = CallSpeed(window, answered + 1000, latency_s, latency_s, most_per_s)
    assert calls / speed.per_s <= speed.seconds(calls) <= speed.seconds(calls + 1)
    assert wiser.seconds(calls) <= speed.seconds(calls)


@settings(max_examples=300)
@given(
    until=st.floats(30, 1e5),
    groups=st.lists(st.tuples(st.integers(1, 10**5), st.floats(0, 1), st.booleans()), max_size=8),
    in_hand=st.integers(0, 10**5),
    at=st.floats(0, 1.2),
    returned=st.lists(st.floats(1, 1e5), max_size=20),
)
def test_whoever_asks_again_when_told_finds_all_called_while_list_price_can_still_make_it(
    until, groups, in_hand, at, returned
):
    """No batch comes back, and no cancel settles: then each is called before the time that its calls need is short."""
    deadline, lane = ReadyBy(until, 0.0), Lane("batch", FACTOR, QueueTimes(BATCH_WINDOW_S, tuple(returned)))
    now = at * until
    out = [GroupOut(lane, lines, part * now, cancelled) for lines, part, cancelled in groups]
    for _ in range(1000):
        moves = deadline.moves(now, out, in_hand, QUICK)
        for group in moves.cancel:
            assert not group.cancelled
            group.cancelled = True
        for group in moves.call:
            out.remove(group)
            in_hand += group.lines
        if not out:
            break
        assert in_hand or now + sum(group.lines for group in out) / QUICK.per_s <= until
        assert moves.again_at > now
        in_hand = max(0, in_hand - math.ceil((moves.again_at - now) * QUICK.per_s))
        now = moves.again_at
    assert out == []
