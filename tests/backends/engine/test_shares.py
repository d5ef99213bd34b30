"""Several processes share one limit by demand: used, refused, and how the parts follow. On a fake clock."""

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmdo.backends.limits.pace import Pace
from llmdo.backends.limits.rates import Rates
from llmdo.backends.limits.shares import Demand, Share, deal_shares
from tests.backends.engine.limited import Bucket
from tests.backends.engine.sharing import keep_busy_by_demand

MODEL = ("fake", "m")
WINDOW = 64
# All are busy; then the first two; then the third, and the fourth a little; then all again.
PHASES = ((60, (1, 1, 1, 1)), (120, (1, 1, 0, 0)), (180, (0, 0, 1, 0.05)), (240, (1, 1, 1, 1)))


def changing(at, now):
    return next((parts[at] for until, parts in PHASES if now < until), 0)


def parts_of(shared, rate):
    """Each process's part of the rate, in each phase, without its first 10 s."""
    return [[answered / rate for answered in shared.answered_per_s(until - 50, until)] for until, _ in PHASES]


@pytest.mark.fast("0", "1")
@pytest.mark.parametrize("seed", range(10))
def test_four_processes_share_what_is_learned_of_40_a_second_as_their_demand_changes(seed):
    shared = keep_busy_by_demand(Bucket(lambda now: 40), 240, changing, seed)
    parts = parts_of(shared, 40)
    assert min(sum(phase) for phase in parts) >= 0.95
    assert shared.refused_part <= 0.05
    assert shared.most <= WINDOW
    for at in (0, 3):
        assert all(0.2 <= part <= 0.3 for part in parts[at])
    assert min(parts[1][:2]) >= 0.4 and max(parts[1][2:]) <= 0.1
    assert parts[2][2] >= 0.75 and max(parts[2][:2]) <= 0.1


def test_without_dealing_the_same_processes_leave_a_part_unused_when_some_have_nothing_to_do():
    shared = keep_busy_by_demand(Bucket(lambda now: 40), 240, changing, 1, deal=False)
    assert min(sum(phase) for phase in parts_of(shared, 40)) < 0.95


@pytest.mark.parametrize("seed", range(3))
def test_of_a_rate_that_is_set_each_gets_what_it_can_use_and_nothing_is_refused(seed):
    shared = keep_busy_by_demand(Bucket(lambda now: 41), 240, changing, seed, rates=Rates(rpm=2400 / 4))
    parts = parts_of(shared, 40)
    assert min(sum(phase) for phase in parts) >= 0.95
    assert shared.refused_part <= 0.001
    assert min(parts[1][:2]) >= 0.4 and parts[2][2] >= 0.75


@pytest.mark.parametrize("seed", range(3))
def test_of_a_few_calls_a_second_one_process_makes_all_as_long_as_it_has_some(seed):
    alone = keep_busy_by_demand(Bucket(lambda now: 4), 240, changing, seed)
    apart = keep_busy_by_demand(Bucket(lambda now: 4), 240, changing, seed, deal=False)
    assert alone.refused_part <= 0.1 < 0.2 <= apart.refused_part
    assert sum(alone.answered_per_s(10, 240)) >= 0.95 * 4
    last = [windows for now, windows in alone.windows if now > 10]
    assert sum(sum(size > 0 for size in windows) == 1 for windows in last) >= 0.9 * len(last)
    callers = {windows.index(max(windows)) for now, windows in alone.windows if now > 20}
    assert len(callers) > 1  # the first had nothing left to do


@pytest.mark.parametrize("seed", range(3))
def test_the_pace_of_a_service_that_allows_more_again_grows_also_where_several_begin_to_share_it(seed):
    shared = keep_busy_by_demand(Bucket(lambda now: 5 if now < 60 else 10_000), 240, lambda at, now: 1, seed)
    first, last = (sum(shared.answered_per_s(*times)) for times in ((40, 60), (220, 240)))
    assert first >= 0.9 * 5
    assert last >= 250  # calls of 0.2 s, 64 at once: from 15/s on all four make some


@pytest.mark.parametrize("seed", range(3))
def test_a_window_without_any_other_limit_follows_demand_and_is_never_exceeded(seed):
    shared = keep_busy_by_demand(Bucket(lambda now: 10_000), 240, changing, seed)
    assert shared.most <= WINDOW
    assert all(sum(windows) <= WINDOW and min(windows) >= 1 for _, windows in shared.windows)
    full = WINDOW / 0.2  # a call takes 0.2 s on average
    parts = parts_of(shared, full)
    assert min(sum(phase) for phase in parts) >= 0.85
    assert min(parts[1][:2]) >= 0.4 and parts[2][2] >= 0.7


demands = st.builds(Demand, window=st.just(0), in_flight=st.integers(0, 30), waiting=st.integers(0, 200))


@given(st.integers(1, 100), st.lists(demands, min_size=1, max_size=12))
def test_windows_add_up_and_each_process_can_call(window, given):
    # They hold their windows of before, of which no more calls are in flight.
    before = deal_shares(window, [replace(one, in_flight=0) for one in given])
    held = [
        replace(one, window=share.window, in_flight=min(one.in_flight, share.window))
        for one, share in zip(given, before, strict=True)
    ]
    first = deal_shares(window, held)
    occupied = [max(one.window, share.window) for one, share in zip(held, first, strict=True)]
    assert sum(occupied) <= window
    ended = [replace(one, window=share.window, in_flight=0) for one, share in zip(held, first, strict=True)]
    last = [share.window for share in deal_shares(window, ended)]
    assert sum(last) == window
    if window >= len(given):
        assert min(last) >= 1
    busy = [one.waiting for one in ended]
    order = sorted(range(len(busy)), key=busy.__getitem__)
    assert all(last[a] <= last[b] for a, b in pairwise(order) if busy[a] < busy[b])


callers = st.builds(
    Demand,
    window=st.integers(0, 30),
    in_flight=st.integers(0, 30),
    waiting=st.integers(0, 200),
    paces=st.fixed_dictionaries({MODEL: st.none() | st.floats(0.1, 1e3)}),
)


@given(st.integers(1, 100), st.lists(callers, min_size=1, max_size=12))
def test_no_pace_is_lost_while_the_calls_of_some_have_not_ended(window, given):
    learned = sum(per_s for one in given if one.window and (per_s := one.paces.get(MODEL)) is not None)
    shares = deal_shares(window, given)
    if learned and any(share.paces for share in shares):
        assert sum(share.paces.get(MODEL, 0.0) for share in shares) == pytest.approx(learned)


def test_one_that_is_about_to_call_takes_no_pace_from_the_one_that_calls():
    calling, other = Demand(16, 16, 32, {MODEL: 15.2}, {MODEL: None}), Demand(0, 0, 16, {MODEL: None}, {MODEL: None})
    first, second = deal_shares(16, [calling, other])
    assert (first.window, first.paces[MODEL], second) == (12, pytest.approx(15.2), Share(0))
    first, second = deal_shares(16, [replace(calling, window=12, in_flight=12), other])
    assert (first.window, second.window) == (11, 4)
    assert (first.paces[MODEL], second.paces[MODEL]) == (pytest.approx(15.2 * 11 / 16), pytest.approx(15.2 * 5 / 16))


def test_a_pace_that_was_taken_over_is_reported_so_that_it_can_be_shared_again():
    pace = Pace()
    assert pace.per_s is None
    pace.share(5.0, None)
    assert pace.per_s == 5.0


def test_a_place_is_given_on_only_when_its_call_has_ended():
    busy, idle = Demand(window=5, in_flight=5, waiting=50), Demand(window=5, in_flight=5, waiting=0)
    assert [share.window for share in deal_shares(10, [busy, replace(idle, in_flight=0)])] == [5, 1]
    assert [share.window for share in deal_shares(10, [busy, replace(idle, window=1, in_flight=3)])] == [7, 1]
    assert [share.window for share in deal_shares(10, [busy, replace(idle, window=1, in_flight=0)])] == [9, 1]


def test_what_is_learned_is_dealt_by_demand_and_belongs_to_those_who_call():
    fast = Demand(8, 8, 90, {MODEL: 30.0}, {MODEL: None})
    slow = Demand(8, 8, 0, {MODEL: 10.0}, {MODEL: None})
    first, second = deal_shares(16, [fast, slow])
    assert (first.window, second.window) == (8, 2)
    assert (first.paces[MODEL], second.paces[MODEL]) == (40.0 * 14 / 16, 40.0 * 2 / 16)
    one, other = deal_shares(16, [replace(fast, paces={MODEL: 6.0}), replace(slow, paces={MODEL: 3.0})])
    assert (one, other) == (Share(8, 2.0, {MODEL: 9.0}), Share(0))
    one, other = deal_shares(16, [replace(fast, paces={MODEL: 9.0}), replace(slow, window=0, in_flight=0)])
    assert (one, other) == (Share(16, 2.0, {MODEL: 9.0}), Share(0))
