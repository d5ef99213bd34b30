import random

import pytest

from llmdo.backends.errors import CallTimeout, InvalidRequest, Overloaded, QuotaExhausted, RateLimited
from llmdo.backends.limits.retry import THREE_TRIES, Retry, is_throttled, set_instant


def waits(retry, error, tries):
    return [retry.wait_s(error, tries, random.Random(seed)) for seed in range(200)]


def test_waits_grow_twofold_up_to_the_cap_and_differ_from_call_to_call():
    retry = Retry(attempts=20, base_s=0.5, cap_s=30.0)
    for tries, bound in [(1, 0.5), (2, 1.0), (3, 2.0), (7, 30.0), (15, 30.0)]:
        found = waits(retry, Overloaded("busy"), tries)
        assert bound / 2 <= min(found) < max(found) <= bound
        assert len(set(found)) > 100


def test_three_tries_are_made_in_all():
    assert THREE_TRIES.wait_s(Overloaded("busy"), 2, random.Random(0)) is not None
    assert THREE_TRIES.wait_s(Overloaded("busy"), 3, random.Random(0)) is None


def test_a_try_that_ended_at_our_own_limit_of_time_is_paid_twice_at_most():
    ours, theirs = CallTimeout("no answer within 600 s"), CallTimeout("took too long", status=504)
    assert THREE_TRIES.wait_s(ours, 1, random.Random(0)) is not None
    assert THREE_TRIES.wait_s(ours, 2, random.Random(0)) is None
    assert Retry(attempts=1).wait_s(ours, 1, random.Random(0)) is None
    assert THREE_TRIES.wait_s(theirs, 2, random.Random(0)) is not None


@pytest.mark.parametrize("kind", [InvalidRequest, QuotaExhausted])
def test_what_cannot_go_away_is_not_tried_again(kind):
    assert THREE_TRIES.wait_s(kind("no"), 1, random.Random(0)) is None


def test_retry_after_is_kept_even_above_our_cap_and_spread():
    found = waits(Retry(cap_s=2.0), Overloaded("busy", retry_after=60.0), 1)
    assert 60.0 <= min(found) < max(found) <= 60.5


def test_our_own_wait_counts_where_it_is_longer_than_retry_after():
    assert min(waits(Retry(attempts=9), Overloaded("busy", retry_after=0.1), 6)) >= 8.0


def test_a_service_that_asks_for_very_long_is_not_waited_for():
    error = Overloaded("down", retry_after=THREE_TRIES.deadline_s + 1)
    assert THREE_TRIES.wait_s(error, 1, random.Random(0)) is None


def test_one_switch_makes_waits_instant_and_leaves_the_number_of_tries():
    set_instant(True)
    try:
        assert THREE_TRIES.wait_s(Overloaded("busy", retry_after=60.0), 2, random.Random(0)) == 0.0
        assert THREE_TRIES.wait_s(Overloaded("busy"), 3, random.Random(0)) is None
    finally:
        set_instant(False)
    assert THREE_TRIES.wait_s(Overloaded("busy"), 1, random.Random(0)) > 0


@pytest.mark.parametrize(
    ("error", "refused"),
    [
        (Overloaded("full", status=429, code=3040), True),
        (Overloaded("full", code=3040), True),
        (RateLimited("slow down"), True),
        (Overloaded("failed", status=500), False),
        (Overloaded("busy"), False),
        (CallTimeout("slow"), False),
        (QuotaExhausted("used", status=429), False),
    ],
)
def test_a_service_that_has_too_many_calls_refuses_and_one_that_breaks_fails(error, refused):
    assert is_throttled(error) is refused


def test_refused_calls_have_tries_of_their_own():
    refused = RateLimited("slow down")
    assert THREE_TRIES.wait_s(refused, 19, random.Random(0)) is not None
    assert THREE_TRIES.wait_s(refused, 20, random.Random(0)) is None


def test_no_wait_ends_after_the_deadline():
    retry = Retry(deadline_s=60.0)
    error = RateLimited("slow down", retry_after=10.0)
    assert retry.wait_s(error, 1, random.Random(0), spent_s=45.0) is not None
    assert retry.wait_s(error, 1, random.Random(0), spent_s=55.0) is None
