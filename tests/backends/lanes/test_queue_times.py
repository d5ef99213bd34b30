import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmdo.backends.lanes.queue_times import QueueTimes

DAY = 86_400.0


def test_before_anything_is_measured_the_published_window_is_the_scale():
    day, hour = QueueTimes(DAY), QueueTimes(DAY / 24)
    assert day.chance(DAY) > 0.9
    assert 0.5 < day.chance(DAY / 24) < 0.8
    assert day.chance(DAY / 24) == pytest.approx(hour.chance(DAY / 24 / 24))


def test_measured_times_outweigh_the_guess():
    late = QueueTimes(DAY, (3000.0,) * 20)
    assert late.chance(2900.0) < 0.1
    assert late.chance(3100.0) > 0.9


def test_a_batch_that_has_waited_longer_than_any_other_is_not_expected_any_more():
    times = QueueTimes(DAY, tuple(range(100, 400, 10)))
    assert times.chance(100.0, waited_s=400.0) < 0.3 < times.chance(100.0, waited_s=300.0)


def test_batches_that_did_not_come_back_lower_the_chance():
    returned = (600.0,) * 10
    assert QueueTimes(DAY, returned, (900.0,) * 10).chance(700.0) < QueueTimes(DAY, returned).chance(700.0)
    # But not by what they had no time for.
    assert QueueTimes(DAY, returned, (10.0,) * 10).chance(700.0) == pytest.approx(
        QueueTimes(DAY, returned).chance(700.0), abs=0.05
    )


times = st.lists(st.floats(0, 1e6), max_size=60).map(tuple)


@given(window_s=st.floats(1, 1e6), returned=times, unreturned=times, waited=st.floats(0, 1e6), more=st.floats(0, 1e6))
def test_a_chance_is_one_and_grows_with_the_time(window_s, returned, unreturned, waited, more):
    known = QueueTimes(window_s, returned, unreturned)
    assert 0.0 <= known.chance(100.0, waited) <= known.chance(100.0 + more, waited) <= 1.0
    assert known.chance(0.0, waited) == 0.0
