"""The engine against services that have limits, on a fake clock: goodput, refusals, and how they are found again."""

import asyncio
import random
from collections import Counter

import pytest

from llmdo.backends.engine.jobs import Job, Reservation
from llmdo.backends.errors import CallTimeout, InvalidRequest, Overloaded, QuotaExhausted, RateLimited
from llmdo.backends.limits.rates import Rates
from llmdo.backends.limits.retry import Retry
from llmdo.backends.requests import ChatRequest, EmbedRequest, Message
from llmdo.backends.responses import EmbedResponse
from llmdo.backends.usage import Usage
from tests.backends.engine.limited import (
    Bucket,
    Capacity,
    Capricious,
    Service,
    dispatch,
    keep_busy,
    keep_busy_together,
)
from tests.backends.fake_clock import run


def answer_all(service, requests, **settings):
    """Runs requests until all are delivered; returns (seconds since the begin, Done) of each, as they ended."""

    async def scenario():
        loop, done, ready = asyncio.get_running_loop(), [], asyncio.Event()
        begin = loop.time()

        def deliver(_, each):
            done.append((loop.time() - begin, each))
            if len(done) == len(requests):
                ready.set()

        work = dispatch(service, loop, lambda place: None, **settings)
        work.add([Job("fake", request, deliver, Reservation(1)) for request in requests])
        await ready.wait()
        return work, done

    return run(scenario())


def chats(count):
    return [ChatRequest("m", (), request_id=str(n)) for n in range(count)]


@pytest.mark.parametrize(("rate", "half"), [(5, 90), (20, 60), (100, 40)])
@pytest.mark.parametrize("refuses_s", [0.005, 0.1])
def test_what_the_service_admits_is_used_and_found_again_within_10_s_when_it_halves(rate, half, refuses_s):
    service = Service(Bucket(lambda now: rate if now < half else rate / 2), refuses_s=refuses_s)
    keep_busy(service, 2 * half)
    assert service.answered_per_s(10, half) >= 0.98 * rate
    assert service.answered_per_s(half + 10, 2 * half) >= 0.98 * rate / 2
    assert service.refused_part <= (0.03 if refuses_s < 0.1 else 0.06)


def test_a_fixed_window_is_refused_far_more_often():
    service = Service(Bucket(lambda now: 20))
    keep_busy(service, 60, fixed=True)
    assert service.refused_part > 0.1


@pytest.mark.parametrize(("rate", "deep_s"), [(20, 0.1), (47, 0.1), (100, 0.1), (20, 10), (300, 1)])
def test_the_depth_of_the_bucket_does_not_matter(rate, deep_s):
    service = Service(Bucket(lambda now: rate, deep_s))
    keep_busy(service, 120)
    assert service.answered_per_s(20, 120) >= (0.95 if deep_s < 1 else 0.98) * rate
    assert service.refused_part <= 0.03


@pytest.mark.parametrize("rate", [23, 40])
def test_a_rate_that_is_four_times_as_high_is_found_within_10_s(rate):
    service = Service(Bucket(lambda now: rate if now < 60 else 4 * rate))
    keep_busy(service, 120)
    assert service.answered_per_s(70, 80) >= 0.95 * 4 * rate
    assert service.answered_per_s(80, 120) >= 0.98 * 4 * rate
    assert service.refused_part <= 0.03


@pytest.mark.parametrize("varies", [False, True], ids=["equal calls", "calls of any length"])
@pytest.mark.parametrize("most", [2, 3, 6, 10, 40])
def test_a_service_that_runs_few_calls_at_once_is_kept_busy(most, varies):
    length = random.Random(7)
    service = Service(Capacity(most), lambda: 0.2 * length.lognormvariate(-0.125, 0.5) if varies else 0.2)
    (limits,) = keep_busy(service, 120).limits()
    assert service.answered_per_s(20, 120) >= 0.95 * most / 0.2
    assert service.refused_part <= 0.03
    # Once the window is known to be the limit, refusals no longer lower the pace.
    assert sum(change.reason.startswith("Overloaded") for change in limits.changes) <= 20
    assert limits.window in (most, most + 1)


def test_a_service_that_runs_more_calls_at_once_than_before_is_kept_busy_again():
    policy = Capacity(10)
    service = Service(policy)
    grown = []

    def latency():
        if not grown and asyncio.get_running_loop().time() - service.begin > 60:
            grown.append(True)
            policy.left += 30
        return 0.2

    service.latency = latency
    keep_busy(service, 120)
    assert service.answered_per_s(20, 60) >= 0.95 * 10 / 0.2
    assert service.answered_per_s(75, 120) >= 0.95 * 40 / 0.2


@pytest.mark.fast("0.01-64-1", "0.2-64-1", "0.4-12-1")
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize(
    ("part", "window"), [(0.003, 64), *((part, window) for part in (0.01, 0.05, 0.2, 0.4) for window in (12, 64, 256))]
)
def test_refusals_by_chance_cost_no_more_than_themselves(part, window, seed):
    service = Service(Capricious(part, seed))
    seconds = 60 if window > 64 else 120
    keep_busy(service, seconds, window=window, seed=seed)
    assert service.answered_per_s(20, seconds) >= 0.9 * (1 - part) * window / 0.2


def test_refusals_by_chance_that_are_rare_are_known_before_they_have_cost_much():
    service = Service(Capricious(0.01, 5))
    keep_busy(service, 40, seed=5)
    assert service.answered_per_s(10, 40) >= 0.9 * 0.99 * 64 / 0.2


@pytest.mark.parametrize(
    "error",
    [
        lambda: RateLimited("slow down", status=429),
        lambda: RateLimited("too many", status=429, code=3021),
        lambda: Overloaded("full", status=429, code=3040),
    ],
    ids=["429", "3021", "3040"],
)
def test_refusals_by_chance_are_known_whatever_their_code(error):
    service = Service(Capricious(0.2, 3), error=error)
    keep_busy(service, 60)
    assert service.answered_per_s(20, 60) >= 0.9 * 0.8 * 64 / 0.2


@pytest.mark.parametrize(("part", "rate", "seed"), [(0.05, 40, 4), (0.05, 100, 4), (0.05, 40, 15)])
def test_a_rate_is_used_though_calls_are_refused_by_chance_too(part, rate, seed):
    service = Service(Capricious(part, seed, Bucket(lambda now: rate)))
    keep_busy(service, 120, seed=seed)
    assert service.answered_per_s(20, 120) >= 0.98 * rate
    assert service.refused_part <= part + 0.1


def test_when_a_rate_follows_refusals_by_chance_they_are_not_forgiven_for_ever():
    chance, bucket = Capricious(0.2, 5), Bucket(lambda now: 40)
    service = Service(chance)
    service.policy.admits = lambda now: chance.random.random() >= 0.2 if now < 60 else bucket.admits(now)
    keep_busy(service, 180)
    assert service.answered_per_s(20, 60) >= 0.9 * 0.8 * 64 / 0.2
    assert service.answered_per_s(80, 180) >= 0.98 * 40
    late = [moment for moment in service.refused if moment > 120]
    assert len(late) <= 0.05 * sum(moment > 120 for moment in service.starts)


def test_a_storm_of_refusals_by_chance_is_outlived():
    chance = Capricious(0.2, 6)
    service = Service(chance)
    service.policy.admits = lambda now: not 40 < now < 80 or chance.random.random() >= 0.2
    keep_busy(service, 120)
    assert service.answered_per_s(10, 40) >= 0.99 * 64 / 0.2
    assert service.answered_per_s(50, 80) >= 0.9 * 0.8 * 64 / 0.2
    assert service.answered_per_s(90, 120) >= 0.99 * 64 / 0.2


@pytest.mark.parametrize("seed", [0, 5, 8, 18])
def test_callers_of_one_service_share_its_rate(seed):
    bucket = Bucket(lambda now: 40)
    services = [Service(bucket) for _ in range(4)]
    keep_busy_together(services, 240, seed)
    parts = [service.answered_per_s(60, 240) / 10 for service in services]
    assert sum(parts) >= 0.95 * 4
    assert all(0.8 <= part <= 1.25 for part in parts)
    assert sum(len(service.refused) for service in services) <= 0.05 * sum(len(service.starts) for service in services)


def test_without_refusals_the_window_doubles_to_its_ceiling_and_stays():
    service = Service(Bucket(lambda now: 1e9))
    work = keep_busy(service, 5, window=256)
    (limits,) = work.limits()
    assert (service.most, limits.window, limits.per_s, limits.refused) == (256, 256, None, 0)
    assert service.answered_per_s(2, 5) >= 0.99 * 256 / 0.2
    assert [change.window for change in limits.changes][-1] > 200
    assert limits.changes[0].window >= 20 * 1.25


def test_the_window_does_not_grow_while_it_is_not_used():
    service = Service(Bucket(lambda now: 1e9))
    work, done = answer_all(service, chats(10), window=256)
    assert work.limits()[0].window == 20
    assert len(done) == 10


def test_calls_in_flight_at_a_cut_do_not_cut_again():
    service = Service(Bucket(lambda now: 1e9 if now < 2 else 1e-9), refuses_s=0.2)
    work = keep_busy(service, 2.9)
    (limits,) = work.limits()
    assert limits.refused > 30
    cuts = [change for change in limits.changes if change.reason.startswith("Overloaded")]
    assert 1 <= len(cuts) <= 3


def test_every_change_tells_its_reason():
    service = Service(Bucket(lambda now: 20))
    changes = keep_busy(service, 30).limits()[0].changes
    assert {change.reason for change in changes} <= {
        "Overloaded (code 3040)",
        "the window was full of calls that were answered",
    }
    refused = [change for change in changes if change.pause_s]
    assert refused
    assert all(change.per_s and change.pause_s < 1 for change in refused)


def test_retry_after_is_kept_by_all_calls_of_the_model():
    service = Service(Bucket(lambda now: 1e9 if now < 1 or now > 1.5 else 1e-9))
    service.error = lambda: RateLimited("slow down", status=429, retry_after=30.0)
    work = keep_busy(service, 60)
    first = service.refused[0]
    late = [start for start in service.starts if first + 0.001 < start < first + 29.9]
    assert late == []
    assert [start for start in service.starts if start > first + 30]
    assert max(change.pause_s for change in work.limits()[0].changes) == 30.0
    assert 25 < work.stats().throttled_s < 40


@pytest.mark.parametrize("error", [Overloaded("failed", status=500), CallTimeout("slow")])
def test_failures_of_the_service_stop_the_growth_and_cut_nothing(error):
    service = Service(Bucket(lambda now: 1e-9 if 0.5 < now < 0.55 else 1e9), error=lambda: error)
    work = keep_busy(service, 4, window=500)
    stats, (limits,) = work.stats(), work.limits()
    assert stats.retried[type(error).__name__] > 0
    assert limits.refused == 0
    assert 20 < limits.window < 500  # neither cut nor grown
    assert keep_busy(Service(Bucket(lambda now: 1e9)), 4, window=500).limits()[0].window == 500


def test_a_service_that_refuses_everything_is_asked_ever_more_rarely():
    service = Service(Bucket(lambda now: 1e-9))
    keep_busy(service, 120)
    assert len(service.starts) <= 30
    assert max(b - a for a, b in zip(service.starts, service.starts[1:], strict=False)) >= 10


def test_a_refused_call_is_tried_20_times_and_a_failed_one_three_times():
    refusing = Service(Bucket(lambda now: 1e-9))
    refusing.policy.left = 0
    _, done = answer_all(refusing, chats(1), retry=Retry())
    assert (type(done[0][1].error), done[0][1].attempts) == (Overloaded, 20)
    failing = Service(refusing.policy, error=lambda: Overloaded("failed", status=502))
    _, done = answer_all(failing, chats(1), retry=Retry())
    assert done[0][1].attempts == 3


def test_refusals_use_up_no_tries_of_failures():
    errors = [Overloaded("full", code=3040)] * 5 + [Overloaded("failed", status=500)] * 2
    service = Service(Bucket(lambda now: 1e9))
    service.policy.admits = lambda now: not errors
    service.error = errors.pop
    _, done = answer_all(service, chats(1), retry=Retry())
    assert (done[0][1].error, done[0][1].attempts) == (None, 8)


def test_a_call_that_waits_for_its_next_try_leaves_its_place_in_the_window_to_others():
    errors = [CallTimeout("slow")]
    service = Service(Bucket(lambda now: 1e9), latency=lambda: 0.01)
    service.policy.admits = lambda now: not errors
    service.error = errors.pop
    _, done = answer_all(service, chats(21), window=1, retry=Retry(base_s=2.0))
    assert [each.attempts for _, each in done] == [1] * 20 + [2]
    assert done[19][0] < 1.0
    assert service.starts[-1] - service.refused[0] >= 1.0


def test_a_call_that_takes_too_long_is_cancelled_and_tried_again():
    cancelled = []

    class Slow(Service):
        async def execute(self, request):
            try:
                return await super().execute(request)
            except asyncio.CancelledError:
                cancelled.append(len(self.starts))
                raise

    waits = [0.0, 3600.0]
    service = Slow(Bucket(lambda now: 1e9), latency=waits.pop)
    _, done = answer_all(service, chats(1), retry=Retry(), call_timeout_s=0.05)
    assert (done[0][1].response.text, done[0][1].attempts, cancelled) == ("x", 2, [1])


def test_waiting_for_a_slot_of_an_embedded_model_is_not_part_of_the_call():
    service = Service(Bucket(lambda now: 1e9), latency=lambda: 0.05)
    service.slots = 1
    _, done = answer_all(service, chats(10), window=10, call_timeout_s=0.06)
    assert {each.attempts for _, each in done} == {1}
    assert service.most == 1


def test_no_try_begins_after_the_deadline():
    service = Service(Bucket(lambda now: 1e-9))
    service.policy.left = 0
    _, done = answer_all(service, chats(1), retry=Retry(deadline_s=20.0))
    assert type(done[0][1].error) is Overloaded
    assert service.starts[-1] <= 20.0
    assert done[0][1].attempts < 20


def test_a_request_rate_is_never_passed():
    service = Service(Bucket(lambda now: 5.1, deep_s=0.4))  # 300 a minute, and a burst of two
    keep_busy(service, 120, rates=Rates(rpm=300))
    assert service.refused == []
    assert service.answered_per_s(10, 120) >= 0.98 * 5


def test_a_token_rate_is_kept_by_what_calls_really_use():
    service = Service(Bucket(lambda now: 1e9))
    request = ChatRequest("m", (Message("user", "x" * 400),), {"max_tokens": 1000})  # estimated at 1,100, used are 15
    keep_busy(service, 120, request=request, rates=Rates(tpm=9000))
    assert service.answered_per_s(30, 120) * 15 * 60 == pytest.approx(9000, rel=0.05)
    assert sum(start < 0.2 for start in service.starts) == 1  # before anything was measured


def test_a_request_larger_than_the_rate_of_a_minute_waits_for_nothing_but_its_turn():
    service = Service(Bucket(lambda now: 1e9))
    request = ChatRequest("m", (Message("user", "x" * 400_000),), {"max_tokens": 10})
    _, done = answer_all(service, [request], rates=Rates(tpm=1000))
    assert done[0][0] < 1.0


def test_a_fixed_window_is_neither_paced_nor_cut_and_still_keeps_to_rates():
    service = Service(Bucket(lambda now: 1e9))
    work = keep_busy(service, 10, window=100, fixed=True)
    assert service.starts[99] == 0.0
    assert (service.most, work.limits()[0].changes) == (100, ())
    service = Service(Bucket(lambda now: 1e9))
    keep_busy(service, 60, fixed=True, rates=Rates(rpm=600))
    assert service.answered_per_s(0, 60) == pytest.approx(10, rel=0.02)


def test_a_model_that_is_held_back_does_not_hold_back_another():
    class Two(Service):
        async def execute(self, request):
            if request.model == "slow":
                raise Overloaded("full", code=3040)
            return await super().execute(request)

    service = Two(Bucket(lambda now: 1e9))
    requests = [ChatRequest("slow", ()) if n % 2 else ChatRequest("m", ()) for n in range(200)]
    work, done = answer_all(service, requests, retry=Retry(refusals=3), window=64)
    answered = [moment for moment, each in done if each.response]
    assert len(answered) == 100
    assert max(answered) < 2.0
    assert done[-1][0] > 10
    limits = {each.model: each for each in work.limits()}
    assert (limits["m"].calls, limits["m"].window >= 20) == (100, True)


def test_the_reports_say_how_long_calls_were_held_back():
    service = Service(Bucket(lambda now: 1e9), latency=lambda: 0.3)
    work, _ = answer_all(service, chats(10), rates=Rates(rpm=60))
    stats, (limits,) = work.stats(), work.limits()
    assert stats.throttled_s == pytest.approx(9, rel=0.05)
    assert limits.waited_s == pytest.approx(45, rel=0.05)
    assert stats.calls == limits.calls == 10


def test_nothing_is_called_throttled_while_the_window_is_full():
    service = Service(Bucket(lambda now: 1e9))
    assert keep_busy(service, 10, fixed=True).stats().throttled_s == 0.0


def test_the_daily_allowance_ends_the_run_with_the_calls_in_flight():
    class Daily(Service):
        async def execute(self, request):
            if request.request_id == "500":
                raise QuotaExhausted("used up", until=86_400.0)
            return await super().execute(request)

    service = Daily(Bucket(lambda now: 1e9))
    _, done = answer_all(service, chats(1000))
    kinds = Counter(type(each.error) for _, each in done)
    assert len(service.starts) <= 499 + 64
    assert kinds == {type(None): len(service.starts), QuotaExhausted: 1000 - len(service.starts)}
    assert {each.error.until for _, each in done if each.error} == {86_400.0}
    assert sum(each.attempts for _, each in done) == len(service.starts) + 1


def test_an_array_with_one_invalid_text_costs_at_most_15_calls_and_one_failure():
    class Embeds(Service):
        async def embed(self, request):
            self.starts.append(len(request.texts))
            if "bad" in request.texts:
                raise InvalidRequest("a text does not fit")
            return EmbedResponse(tuple((1.0,) for _ in request.texts), Usage(len(request.texts)), request.model)

    async def scenario():
        loop, done, ready = asyncio.get_running_loop(), {}, asyncio.Event()

        def deliver(index, each):
            done[index] = each
            if len(done) == 100:
                ready.set()

        work = dispatch(service, loop, lambda place: None)
        texts = tuple("bad" if n == 37 else f"text {n}" for n in range(100))
        work.add([Job("fake", EmbedRequest("m", texts), deliver, Reservation(100), apart=True)])
        await ready.wait()
        return done

    service = Embeds(None)
    done = run(scenario())
    assert [index for index, each in done.items() if each.error] == [37]
    assert len(service.starts) <= 15
