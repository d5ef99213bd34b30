from llmdo.backends.errors import Overloaded
from llmdo.backends.limits.breaker import Breaker
from llmdo.backends.limits.concurrency_limit import START, ConcurrencyLimit
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


def test_a_window_that_begins_at_its_ceiling_is_cut_and_grows_again_as_any_other():
    window = ConcurrencyLimit(100, start=100)
    window.grow()
    assert window.size == 100
    window.cut()
    assert window.size == 80
    window.grow()
    assert window.size == 80 + 1 / 80
    for _ in range(10_000):
        window.grow()
    assert window.size == 100


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


def test_a_refusal_while_the_window_is_full_cuts_it_wherever_it_began():
    throttle = Throttle(50, NO_RATES, Breaker("m"), start=50)
    calls, now = in_flight(throttle, 50)
    assert is_throttled(REFUSAL)
    throttle.ended(calls[-1], None, REFUSAL, now + 0.1)
    assert throttle.window == 40
    for call in calls[:20]:
        throttle.ended(call, ANSWER, None, now + 1.0)
    assert (throttle.window, throttle.opens_at() < float("inf")) == (40, True)
