from hypothesis import given
from hypothesis import strategies as st

from llmdo.backends.lanes.cancel_times import CAUTIOUS_S, longest_cancel

times = st.lists(st.floats(0.1, 3000.0), max_size=60)


def test_before_any_is_known_the_published_time_counts_and_few_are_trusted_less_than_many():
    assert longest_cancel([]) == CAUTIOUS_S
    assert longest_cancel([20.0] * 30) < longest_cancel([20.0] * 3) < longest_cancel([20.0]) < CAUTIOUS_S


@given(settled=times, waiting=times)
def test_no_cancel_that_was_seen_took_longer_than_is_expected(settled, waiting):
    expected = longest_cancel(settled, waiting)
    assert expected >= max([0.0, *settled[-50:], *waiting])
    assert longest_cancel(settled) <= max(CAUTIOUS_S, *settled, 0.0)
