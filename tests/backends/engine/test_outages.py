"""The engine while its service is away, and with refusals that may be a line's own, on a fake clock."""

import asyncio
import random
from collections import Counter

import pytest

from llmdo.backends.connections import Connections
from llmdo.backends.engine.dispatch import Dispatcher
from llmdo.backends.engine.jobs import Job, Reservation
from llmdo.backends.engine.settings import CallSettings
from llmdo.backends.engine.verdicts import AFTER_ANSWERS, BEFORE_ANSWERS
from llmdo.backends.errors import (
    AccountBlocked,
    BadReply,
    BudgetSpent,
    CallTimeout,
    ConnectionFailed,
    ContextOverflow,
    InvalidRequest,
    LimitReached,
    ModelNotFound,
    Overloaded,
    ProviderUnusable,
    RateLimited,
    RequestRefused,
    ServiceAway,
    StopRun,
    Unauthorized,
    WrongService,
)
from llmdo.backends.limits.retry import Retry
from llmdo.backends.money.limits import Limits
from llmdo.backends.money.money import Budget
from llmdo.backends.money.prices import Prices
from llmdo.backends.openai.errors import refusal
from llmdo.backends.requests import ChatRequest, EmbedRequest, Message
from llmdo.backends.responses import ChatResponse, EmbedResponse, Models
from llmdo.backends.usage import Usage
from tests.backends.fake_clock import run

PATIENCE_S = 600.0


class Service:
    """Stands for a provider: ``script(number of the line, seconds since the begin)`` answers, or gives an error."""

    name = "fake"

    def __init__(self, script, latency_s=0.2):
        self.script, self.latency_s = script, latency_s
        self.begin = None
        self.calls, self.times = [], []

    async def execute(self, request):
        loop = asyncio.get_running_loop()
        self.begin = loop.time() if self.begin is None else self.begin
        number, at = int(request.request_id), loop.time() - self.begin
        self.calls.append(number)
        self.times.append(at)
        error = self.script(number, at)
        await asyncio.sleep(0.005 if error else self.latency_s)
        if error:
            raise error
        return ChatResponse("x", "stop", Usage(1, 1), request.model)


NOBODY = (lambda place: None, lambda place: None, lambda jobs: None)  # takes jobs in


def answer(
    service, lines, *, window=64, patience_s=PATIENCE_S, own=None, before=False, retry=None, models=(), budget=None
):
    """What became of each line, by its number, with the loop's seconds; all are submitted at once."""
    models = dict(models)

    async def scenario():
        loop, done, ready = asyncio.get_running_loop(), {}, asyncio.Event()

        settings = CallSettings(
            window,
            retry=retry or Retry(),
            call_timeout_s=180.0,
            budget=budget,
            patience_s=patience_s,
            answered_before=lambda: before,
        )
        work = Dispatcher(loop, Connections(lambda _: service, own), settings, None, *NOBODY)
        work._random = random.Random(1)

        def deliver(number):
            def note(_, each):
                done.setdefault(number, []).append((each, loop.time() - begin))
                if len(done) == lines:
                    ready.set()

            return note

        begin = loop.time()
        for number in range(lines):
            request = ChatRequest(models.get(number, "m"), (Message("user", "x"),), {}, str(number))
            work.add([Job("fake", request, deliver(number), Reservation(1))])
        await ready.wait()
        stopped = work.stopped
        await work.cancel()
        assert all(len(each) == 1 for each in done.values())
        return {number: each[0][0] for number, each in done.items()}, work, stopped, loop.time() - begin

    return run(scenario())


def kinds(done):
    return Counter(type(each.error) for each in done.values())


def refused(status=403, kind=Unauthorized, code=None):
    return kind("may not do this", status=status, code=code, about="unclear")


# Refusals.


@pytest.mark.parametrize("window", [1, 4, 64])
@pytest.mark.parametrize("bad", [{0}, {7}, {299}, {0, 1, 2, 3}, {5, 80, 81, 82, 250, 299}])
@pytest.mark.parametrize(("status", "kind"), [(403, Unauthorized), (404, ModelNotFound)])
def test_lines_that_are_refused_among_others_that_are_answered_end_alone(window, bad, status, kind):
    service = Service(lambda number, at: refused(status, kind) if number in bad else None)
    done, _, stopped, _ = answer(service, 300, window=window)
    assert stopped is None
    assert {number for number, each in done.items() if each.error} == bad
    assert all(type(done[number].error) is RequestRefused for number in bad)
    assert len(service.calls) == 300  # none was made again


def test_refusals_that_come_faster_than_the_first_answers_stop_nothing():
    service = Service(lambda number, at: refused() if number % 3 == 0 else None, latency_s=30.0)
    done, _, stopped, _ = answer(service, 60)
    assert stopped is None
    assert kinds(done) == {type(None): 40, RequestRefused: 20}


@pytest.mark.parametrize("window", [1, 64])
@pytest.mark.parametrize("status", [401, 402, 403, 451])
def test_a_key_that_every_line_is_refused_with_stops_the_run_and_burns_none(window, status):
    service = Service(lambda number, at: refused(status))
    done, _, stopped, _ = answer(service, 300, window=window)
    assert isinstance(stopped, Unauthorized)
    assert stopped.status == status
    assert kinds(done) == {Unauthorized: 300}  # the line stays open
    assert len(service.calls) == BEFORE_ANSWERS if window == 1 else len(service.calls) <= 20


def test_a_key_that_is_revoked_in_the_middle_stops_the_run_and_burns_no_line():
    service = Service(lambda number, at: refused() if at > 3.0 else None)
    done, _, stopped, _ = answer(service, 2000, window=16)
    assert isinstance(stopped, Unauthorized)
    assert set(kinds(done)) == {type(None), Unauthorized}
    assert sum(at > 3.0 for at in service.times) <= AFTER_ANSWERS + 2 * 16


def test_the_only_line_that_is_refused_stops_the_run_unless_earlier_ones_had_answers():
    def alone(status, before):
        done, _, stopped, took_s = answer(Service(lambda number, at: refused(status)), 1, before=before)
        assert took_s < 2.0
        return stopped is not None, type(done[0].error)

    assert alone(403, before=False) == (True, Unauthorized)
    assert alone(403, before=True) == (False, RequestRefused)
    assert alone(401, before=True) == (True, Unauthorized)


def test_a_refusal_that_is_about_the_account_for_certain_stops_at_once():
    error = Unauthorized("wrong key", status=401, code="invalid_api_key")
    service = Service(lambda number, at: error if number == 0 else None)
    done, _, stopped, _ = answer(service, 50, window=1)
    assert stopped is error
    assert (len(service.calls), kinds(done)) == (1, {Unauthorized: 50})


@pytest.mark.parametrize("window", [1, 16])
@pytest.mark.parametrize("before", [False, True])
def test_words_that_speak_of_the_model_or_the_key_are_of_the_line_where_others_are_answered(window, before):
    errors = {
        50: ModelNotFound("not open to you", status=403),
        90: ModelNotFound("no such model", status=404, code="model_not_found"),
        130: Unauthorized("this key may not", status=403, code="permission_denied", about="account"),
    }
    done, _, stopped, _ = answer(Service(lambda number, at: errors.get(number)), 300, window=window, before=before)
    assert stopped is None
    assert {number: type(each.error) for number, each in done.items() if each.error} == dict.fromkeys(
        errors, RequestRefused
    )


def test_words_that_speak_of_the_model_stop_nothing_also_where_they_come_before_the_first_answer():
    error = ModelNotFound("not open to you", status=403, about="account")
    service = Service(lambda number, at: error if number in (0, 1, 2) else None)
    done, _, stopped, _ = answer(service, 100, window=16)
    assert stopped is None
    assert kinds(done) == {type(None): 97, RequestRefused: 3}
    done, *_ = answer(Service(lambda number, at: error), 100, window=1)
    assert kinds(done) == {ModelNotFound: 100}


@pytest.mark.parametrize(("before", "kind"), [(True, RequestRefused), (False, Unauthorized)])
def test_a_few_refusals_in_a_row_stop_nothing_where_earlier_runs_had_answers(before, kind):
    done, _, stopped, _ = answer(Service(lambda number, at: refused()), AFTER_ANSWERS - 1, window=1, before=before)
    assert (stopped is None) is before
    assert kinds(done) == {kind: AFTER_ANSWERS - 1}
    assert isinstance(answer(Service(lambda number, at: refused()), 300, before=before)[2], Unauthorized)


def test_a_model_that_is_gone_ends_the_only_line_that_is_left_and_a_closed_account_leaves_it_open():
    def alone(error):
        done, _, stopped, _ = answer(Service(lambda number, at: error), 1, before=True)
        return stopped is not None, type(done[0].error)

    assert alone(ModelNotFound("gone", status=404, code="model_not_found")) == (False, RequestRefused)
    assert alone(AccountBlocked("suspended", status=403)) == (True, AccountBlocked)


def test_a_model_that_is_switched_off_in_the_middle_burns_no_line():
    error = ModelNotFound("gone", status=404, code="model_not_found")
    service = Service(lambda number, at: error if at > 3.0 else None)
    done, _, stopped, _ = answer(service, 2000, window=16)
    assert set(kinds(done)) == {type(None), ModelNotFound}  # Infer stops where it is the run's own
    assert stopped is None
    assert sum(at > 3.0 for at in service.times) >= AFTER_ANSWERS


def test_a_model_that_only_some_lines_name_ends_them_and_no_others():
    service = Service(lambda number, at: refused(404, ModelNotFound) if number % 2 else None)
    done, _, stopped, _ = answer(service, 100, models=dict.fromkeys(range(1, 100, 2), "gone"))
    assert stopped is None
    assert kinds(done) == {type(None): 50, ModelNotFound: 50}  # Infer stops where it is the run's own


def test_another_provider_that_refuses_every_line_does_not_end_the_run():
    done, _, stopped, _ = answer(Service(lambda number, at: refused()), 50, own=frozenset({"openai"}))
    assert stopped is None
    assert kinds(done) == {ProviderUnusable: 50}


@pytest.mark.parametrize("error", [InvalidRequest("no", status=405), InvalidRequest("no", status=501), BadReply("?")])
def test_what_is_no_api_stops_the_run_and_burns_no_line(error):
    service = Service(lambda number, at: error)
    done, _, stopped, _ = answer(service, 50)
    assert isinstance(stopped, WrongService)
    assert kinds(done) == {WrongService: 50}
    done, _, stopped, _ = answer(Service(lambda number, at: error if number < 20 and at > 0.1 else None), 50, window=1)
    assert stopped is None  # after an answer it is the line's own


def test_held_lines_are_delivered_when_the_engine_stops_or_closes():
    async def scenario():
        loop, done = asyncio.get_running_loop(), []
        service = Service(lambda number, at: refused())
        for end in (lambda work: work.stop(StopRun("over")), lambda work: work.deliver_left((), StopRun("closed"))):
            work = Dispatcher(loop, Connections(lambda _: service), CallSettings(4), None, *NOBODY)
            request = ChatRequest("m", (Message("user", "x"),), {}, "0")
            work.add([Job("fake", request, lambda _, each: done.append(each.error.message), Reservation(1))])
            await asyncio.sleep(0.1)
            assert service.calls
            end(work)
            await work.cancel()
        return done

    assert run(scenario()) == ["over", "closed"]


def test_an_array_that_is_refused_alone_comes_apart_instead_of_stopping_the_run():
    class Embeds(Service):
        async def embed(self, request):
            self.calls.append(request.texts)
            if "bad" in request.texts:
                raise refused()
            return EmbedResponse(tuple((1.0,) for _ in request.texts), Usage(1), request.model)

    async def scenario():
        loop, done, ready = asyncio.get_running_loop(), {}, asyncio.Event()
        service = Embeds(None)
        work = Dispatcher(loop, Connections(lambda _: service), CallSettings(4), None, *NOBODY)

        def deliver(index, each):
            done[index] = each.error
            if len(done) == 100:
                ready.set()

        texts = tuple("bad" if number == 37 else str(number) for number in range(100))
        work.add([Job("fake", EmbedRequest("m", texts), deliver, Reservation(100), apart=True)])
        await ready.wait()
        await work.cancel()
        return done, work.stopped, len(service.calls)

    done, stopped, calls = run(scenario())
    assert stopped is None
    assert {index: type(error) for index, error in done.items() if error} == {37: RequestRefused}
    assert calls <= 15


# Outages.

AWAY = {
    "loading": Overloaded("loading", status=503, code="unavailable_error"),
    "refused": ConnectionFailed("refused", lost=False),
    "reset": ConnectionFailed("reset"),
    "bad gateway": Overloaded("bad gateway", status=502),
    "timeout": CallTimeout("slow"),
}


@pytest.mark.parametrize("window", [1, 6, 64])
@pytest.mark.parametrize("kind", AWAY)
def test_an_outage_costs_tens_of_calls_and_no_line(kind, window):
    service = Service(lambda number, at: AWAY[kind] if 5.0 < at < 25.0 else None)
    lines = 40 * window
    done, work, stopped, _ = answer(service, lines, window=window, retry=Retry(cap_s=2.0))
    assert stopped is None
    assert kinds(done) == {type(None): lines}
    assert sum(5.0 < at < 25.0 for at in service.times) <= window + 20
    (limits,) = work.limits()
    assert 15.0 < limits.away_s < 40.0
    assert limits.away is None
    if window == 64:
        ahead = [at for at in service.times if at > 25.0]
        assert sum(at < ahead[0] + 0.25 for at in ahead) <= 30  # they begin slowly again


@pytest.mark.parametrize("lines", [1, 2, 100])
@pytest.mark.parametrize("kind", ["loading", "refused"])
def test_a_service_that_is_away_from_the_beginning_is_waited_for_and_then_given_up(kind, lines):
    service = Service(lambda number, at: AWAY[kind] if at < 100.0 else None)
    done, *_ = answer(service, lines)
    assert kinds(done) == {type(None): lines}
    service = Service(lambda number, at: AWAY[kind])
    done, _, stopped, took_s = answer(service, lines)
    assert stopped is None  # Infer stops the run
    assert kinds(done) == {ServiceAway: lines}
    assert "(patience_s=)" in done[0].error.message
    assert PATIENCE_S <= took_s <= PATIENCE_S + 1
    assert len(service.calls) <= min(lines, 20) + 20


def test_without_an_end_of_patience_the_service_is_asked_once_a_minute():
    service = Service(lambda number, at: AWAY["refused"] if at < 86_400 else None)
    done, *_ = answer(service, 50, patience_s=float("inf"))
    assert kinds(done) == {type(None): 50}
    assert len(service.calls) <= 20 + 50 + 86_400 / 60 + 10


def test_retry_after_is_kept_while_the_service_is_away():
    error = Overloaded("maintenance", status=503, retry_after=300.0)
    service = Service(lambda number, at: error if at < 290.0 else None)
    done, *_ = answer(service, 50)
    assert kinds(done) == {type(None): 50}
    assert not [at for at in service.times if 1.0 < at < 299.0]


@pytest.mark.parametrize("window", [1, 6, 64])
def test_a_proxy_that_asks_its_dead_servers_only_now_and_then_is_away_as_they_are(window):
    """As LiteLLM's: each failure is followed by some seconds in which it answers 429 by itself."""
    cooling = {"message": "No deployments available for selected model", "type": "all_deployments_in_cooldown"}
    cools_until = 0.0

    def script(number, at):
        nonlocal cools_until
        if at < cools_until:
            headers = {"retry-after": str(round(cools_until - at, 3))}
            return refusal(429, headers, {"error": cooling}, "m", "openai", "OPENAI_API_KEY", 0.0)
        cools_until = at + 5.0
        return Overloaded("connection error", status=500)

    done, *_ = answer(Service(script), 100, window=window)
    assert kinds(done) == {ServiceAway: 100}
    done, *_ = answer(Service(lambda number, at: script(number, at) if 5.0 < at < 100.0 else None), 1000, window=window)
    assert kinds(done) == {type(None): 1000}


@pytest.mark.parametrize("kind", ["reset", "bad gateway", "timeout"])
def test_a_line_that_fails_again_and_again_among_answers_ends_as_its_own_error(kind):
    error = AWAY[kind]
    service = Service(lambda number, at: error if number == 20 else None)
    done, work, stopped, took_s = answer(service, 400)
    assert stopped is None
    assert type(done[20].error) is type(error)
    assert kinds(done) == {type(None): 399, type(error): 1}
    assert service.calls.count(20) == (2 if kind == "timeout" else 3)
    assert work.limits()[0].away_s == 0
    assert took_s < 20


def test_answers_that_fail_within_a_reply_with_tokens_are_no_outage():
    broken = Overloaded("the upstream went away", status=502, usage=Usage(9, 4))
    done, work, *_ = answer(Service(lambda number, at: broken), 50)
    assert kinds(done) == {Overloaded: 50}
    assert work.limits()[0].away_s == 0


class Feeding:
    """Jobs of an engine that holds at most ``room`` of them, and more while it looks further."""

    def __init__(self, lines, room):
        self.left, self.room, self.further, self.taken = list(range(lines)), room, 0, 0

    def more(self, begin):
        while self.left and self.taken < self.room + self.further:
            self.taken += 1
            begin(self.left.pop(0))


def answer_fed(service, lines, *, window, patience_s=PATIENCE_S):
    """Like ``answer``, where no more than ``2 * window`` jobs are taken in ahead, as the engine has it."""

    async def scenario():
        loop, done, ready = asyncio.get_running_loop(), {}, asyncio.Event()
        feeding = Feeding(lines, 2 * window)

        def begin(number):
            def note(_, each):
                done[number] = each
                if len(done) == lines:
                    ready.set()

            request = ChatRequest("m", (Message("user", "x"),), {}, str(number))
            work.add([Job("fake", request, note, Reservation(1))])

        def free(place):
            feeding.taken -= 1
            loop.call_soon(feeding.more, begin)

        def look_further(jobs):
            feeding.further = jobs
            loop.call_soon(feeding.more, begin)

        settings = CallSettings(window, call_timeout_s=180.0, patience_s=patience_s)
        work = Dispatcher(loop, Connections(lambda _: service), settings, None, free, lambda place: None, look_further)
        work._random = random.Random(1)
        feeding.more(begin)
        await ready.wait()
        await work.cancel()
        return done, work

    return run(scenario())


@pytest.mark.parametrize("window", [1, 4, 16, 64])
@pytest.mark.parametrize("bad", [range(150, 250), range(100), range(40, 43)])
@pytest.mark.parametrize("kind", ["reset", "bad gateway"])
def test_lines_that_stand_together_and_fail_each_time_stop_nothing_and_end_as_their_own_errors(kind, bad, window):
    service = Service(lambda number, at: AWAY[kind] if number in bad else None)
    done, work = answer_fed(service, 1000, window=window)
    assert {number for number, each in done.items() if each.error} == set(bad)
    assert kinds(done) == {type(None): 1000 - len(bad), type(AWAY[kind]): len(bad)}
    assert work.stopped is None
    assert max(Counter(service.calls).values()) <= 6
    assert work.limits()[0].away_s <= 200


def test_the_model_that_is_away_does_not_keep_another_one_waiting():
    service = Service(lambda number, at: AWAY["refused"] if number < 10 and at < 50 else None)
    done, _, _, took_s = answer(service, 200, models=dict.fromkeys(range(10), "other"))
    assert kinds(done) == {type(None): 200}
    assert max(at for at, number in zip(service.times, service.calls, strict=True) if number >= 10) < 5.0
    assert took_s > 50


# Retry-After.


def test_a_service_that_asks_to_wait_for_longer_than_a_request_may_take_is_left_at_once():
    error = RateLimited("daily", status=429, retry_after=35_000.0, until=123.0)
    service = Service(lambda number, at: error if number % 2 else None)
    done, _, stopped, took_s = answer(service, 300, models=dict.fromkeys(range(1, 300, 2), "day"))
    assert stopped is None  # Infer stops where it is the run's model
    assert kinds(done) == {type(None): 150, LimitReached: 150}
    assert {done[number].error.until for number in range(1, 300, 2)} == {123.0}
    assert sum(number % 2 for number in service.calls) <= 20
    assert took_s < 10.0


def test_retry_after_up_to_the_deadline_is_waited_for():
    error = RateLimited("minute", status=429, retry_after=1700.0)
    service = Service(lambda number, at: error if at < 1.0 else None)
    done, *_ = answer(service, 5)
    assert kinds(done) == {type(None): 5}
    assert not [at for at in service.times if 1.0 < at < 1699.0]


def test_a_line_that_is_too_large_slows_nobody_down():
    service = Service(lambda number, at: ContextOverflow("too large", status=413) if number % 5 == 0 else None)
    done, work, _, _ = answer(service, 500)
    assert kinds(done) == {type(None): 400, ContextOverflow: 100}
    (limits,) = work.limits()
    assert (limits.refused, limits.per_s, limits.throttled_s) == (0, None, pytest.approx(0, abs=1.0))
    assert len(service.calls) == 500


# With a budget.


@pytest.mark.parametrize("kind", ["bad gateway", "timeout", "reset", "refused"])
def test_a_call_that_looks_whether_the_service_is_back_counts_and_never_passes_the_budget(kind):
    most = 60_000
    budget = Budget(Limits(max_tokens=most), Prices(lambda provider: Models(())))
    service = Service(lambda number, at: AWAY[kind] if at > 2.0 else None)
    done, _, stopped, seconds = answer(service, 600, window=4, patience_s=10_000.0, budget=budget)
    spent = budget.spent()
    assert spent.input_tokens + spent.output_tokens + spent.lost_input_tokens + spent.lost_output_tokens <= most
    asked = len(service.calls)
    if kind == "refused":  # nothing was sent, so that nothing is paid: the patience ends it
        assert (spent.lost_calls, seconds > 10_000.0) == (0, True)
    else:
        assert spent.calls + spent.lost_calls == asked
        assert isinstance(stopped, BudgetSpent)
        assert seconds < 10_000.0
    assert kinds(done)[type(None)] == spent.calls > 0
