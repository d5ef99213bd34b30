import pytest

from llmdo.backends.errors import Overloaded
from llmdo.backends.limits.breaker import Breaker
from llmdo.backends.limits.concurrency_limit import ALIKE, HELD_ANSWERS, START, ConcurrencyLimit
from llmdo.backends.limits.rates import NO_RATES
from llmdo.backends.limits.retry import is_throttled
from llmdo.backends.limits.throttle import Throttle
from llmdo.backends.requests import ChatRequest
from llmdo.backends.responses import ChatResponse
from llmdo.backends.usage import Usage

REQUEST = ChatRequest("m", ())
ANSWER = ChatResponse("x", "stop", Usage(1, 1), "m")
REFUSAL = Overloaded("full", code=3040)


def test_a_window_begins_where_it_is_told_and_never_above_its_ceiling():
    assert ConcurrencyLimit(256).size == START
    assert ConcurrencyLimit(256, start=256).size == 256
    assert ConcurrencyLimit(10, start=256).size == ConcurrencyLimit(10).size == 10
    assert ConcurrencyLimit(256, start=30, fixed=True).size == 256


def test_a_window_doubles_in_each_round_of_answers_up_to_its_ceiling():
    window = ConcurrencyLimit(100)
    for _ in range(START):
        window.grow()
    assert window.size == 2 * START
    for _ in range(200):
        window.grow()
    assert window.size == 100


def test_refusals_with_the_same_number_of_others_each_time_say_how_many_calls_the_service_runs():
    window = ConcurrencyLimit(100, start=100)
    assert [window.refused(10) for _ in range(ALIKE)] == [False] * (ALIKE - 1) + [True]
    assert window.size == 10
    assert window.explains(10)


@pytest.mark.parametrize("others", [[10, 10, 11, 10], [0, 0, 0, 0], [10, 10, 10]])
def test_refusals_with_other_numbers_or_no_others_say_nothing(others):
    window = ConcurrencyLimit(100, start=100)
    assert not any(window.refused(number) for number in others)
    assert window.size == 100


@pytest.mark.parametrize(("others", "in_company", "known"), [(11, False, False), (10, False, True), (10, True, False)])
def test_a_call_that_is_admitted_beside_more_others_shows_that_their_number_is_no_limit(others, in_company, known):
    window = ConcurrencyLimit(100, start=100)
    for _ in range(ALIKE - 1):
        window.refused(10)
    window.admitted(others, in_company=in_company)
    assert window.refused(10) is known


def test_one_call_more_is_tried_after_some_answers_and_then_as_many_as_are_answered():
    window = ConcurrencyLimit(100, start=100)
    for _ in range(ALIKE):
        window.refused(10)
    for _ in range(HELD_ANSWERS + 1):
        window.grow()
    assert int(window.size) == 11
    assert window.explains(10)
    assert window.size == 10
    for _ in range(2 * HELD_ANSWERS + 1 + 100):
        window.grow()
    assert window.size == 100


def test_a_refusal_with_fewer_others_shows_that_it_was_something_else_and_more_evidence_is_needed_next_time():
    window = ConcurrencyLimit(100, start=100)
    for _ in range(ALIKE):
        window.refused(10)
    assert not window.explains(9)
    assert not window.explains(10)
    assert [window.refused(10) for _ in range(2 * ALIKE)] == [False] * (2 * ALIKE - 1) + [True]


def in_flight(throttle, most):
    """Calls that are started one after the other until no more may be, or ``most`` are."""
    calls, now = [], 0.0
    while len(calls) < most and (opens_at := throttle.opens_at()) != float("inf"):
        now = max(now, opens_at)
        calls.append(throttle.started(REQUEST, now))
    return calls, now


def test_at_first_so_many_calls_may_be_in_flight_as_the_throttle_is_told():
    assert len(in_flight(Throttle(256, NO_RATES, Breaker("m")), 300)[0]) == START
    calls, took_s = in_flight(Throttle(256, NO_RATES, Breaker("m"), start=256), 300)
    assert len(calls) == 256
    assert took_s > 0.3  # the pace of the first calls is the same


def test_a_refusal_lowers_the_pace_and_not_the_window():
    throttle = Throttle(50, NO_RATES, Breaker("m"), start=50)
    calls, now = in_flight(throttle, 50)
    assert is_throttled(REFUSAL)
    throttle.ended(calls[-1], None, REFUSAL, now + 0.1)
    assert throttle.window == 50
    for call in calls[:20]:
        throttle.ended(call, ANSWER, None, now + 1.0)
    assert now + 0.1 < throttle.opens_at() < now + 2.0


def test_another_ceiling_leaves_a_window_as_large_as_it_was():
    window = ConcurrencyLimit(8)
    sizes = []
    for ceiling in (4, 16, 0, 100):
        window.cap(ceiling)
        sizes.append(window.size)
    assert sizes == [4, 16, 0, START]
    for _ in range(50):
        window.grow()
    window.cap(1)
    window.cap(100)
    assert window.size == START + 50
    assert [window.refused(6) for _ in range(ALIKE)] == [False] * (ALIKE - 1) + [True]
    window.cap(3)
    assert window.size == 3
    window.cap(100)
    assert window.size == 6
