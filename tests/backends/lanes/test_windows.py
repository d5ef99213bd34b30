"""Answers in the background, on a fake clock: asked for by calls, followed by looks, and what happens in between."""

from __future__ import annotations

import asyncio
from itertools import count

import pytest

from llmdo.backends.connections import Connections
from llmdo.backends.engine.dispatch import Dispatcher
from llmdo.backends.engine.engine import Engine
from llmdo.backends.engine.jobs import Job, Reservation
from llmdo.backends.engine.recall import Recall
from llmdo.backends.engine.settings import CallSettings
from llmdo.backends.errors import (
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    RateLimited,
    Unauthorized,
    WaitsInBatch,
)
from llmdo.backends.lanes.windows import named, response_of, window_of
from llmdo.backends.limits.rates import Rates
from llmdo.backends.limits.retry import Retry
from llmdo.backends.money.limits import Limits
from llmdo.backends.money.money import Budget
from llmdo.backends.money.prices import Prices
from llmdo.backends.requests import ChatRequest, EmbedRequest, Message
from llmdo.backends.responses import BatchState, ChatResponse, EmbedResponse, Models
from llmdo.backends.usage import Usage
from tests.backends.fake_clock import run
from tests.fakes.ledger import MemoryLedger, MemoryRecords
from tests.fakes.mortal import Mortal

LINES, HOUR = 4, 3600.0


class World(Mortal):
    """A provider and a ledger that outlive processes; at its ``at``-th point the process stands still.

    Attributes:
        takes_s: until an answer in the background is there.
        refuse: errors of the next calls for the background; ``problem``: what background_problem says.
        fails: the error that each answer is; ``at_once``: ``begin`` answers itself.
        begun: requests by the name of their answer; ``since``: when; ``cancelled``: names.
        calls: ids of requests that were called; ``looks``: times of all looks; ``most``: calls for names at a time.
    """

    name = "openai"

    def __init__(self, at=None, takes_s=60.0):
        super().__init__(at)
        self.takes_s = takes_s
        self.refuse, self.problem, self.fails, self.at_once = [], "", None, False
        self.begun, self.since, self.cancelled = {}, {}, set()
        self.calls, self.looks, self.most, self.now = [], [], 0, 0
        self.ledger, self.records = MemoryLedger(), MemoryRecords()

    async def submit_batch(self, model, requests, nonce):
        raise AssertionError("nothing is handed over in a batch")

    async def find_batch(self, model, nonce, count, since):
        raise AssertionError("nothing is looked for")

    async def execute(self, request):
        await self.point()
        self.calls.append(request.request_id)
        return answer_to(request)

    async def embed(self, request):
        return EmbedResponse(tuple((1.0,) for _ in request.texts), Usage(1), request.model)

    def background_problem(self, request):
        return self.problem

    async def begin(self, request, window):
        await self.point()
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(1.0)
        self.now -= 1
        if self.refuse:
            raise self.refuse.pop(0)
        if self.at_once:
            return answer_to(request)
        name = named(window, f"resp_{len(self.begun)}")
        self.begun[name], self.since[name] = request, asyncio.get_running_loop().time()
        await self.point()
        return name

    async def poll_batch(self, model, batch, requests, places):
        now = asyncio.get_running_loop().time()
        self.looks.append(now)
        if batch in self.cancelled:
            return BatchState(self._results())
        if now < self.since[batch] + self.takes_s:
            return BatchState(None)
        answer = self.fails or answer_to(self.begun[batch])
        answer.lane = window_of(batch)
        return BatchState(self._results(answer))

    async def _results(self, *answers):
        for answer in answers:
            yield 0, answer

    async def cancel_batch(self, model, batch):
        self.cancelled.add(batch)


class Points(MemoryLedger):
    """The ledger of a world, with a point before and after each put."""

    def __init__(self, world):
        super().__init__()
        self.world, self.kept = world, world.ledger.kept

    async def put(self, key, value, patience_s):
        await self.world.point()
        await super().put(key, value, patience_s)
        await self.world.point()


def answer_to(request):
    return ChatResponse(f"re: {request.messages[0].content}", "stop", Usage(2, 1), request.model)


def chat(number, **parameters):
    return ChatRequest("m", (Message("user", f"text {number}"),), parameters, f"id-{number}")


@pytest.fixture(autouse=True)
def _no_threads(monkeypatch):
    async def inline(call, *args):
        return call(*args)

    monkeypatch.setattr(asyncio, "to_thread", inline)


def loop_time():
    return asyncio.get_running_loop().time()


async def process(
    world, seconds=10 * HOUR, requests=None, lane="2h", stop_after=None, ended=lambda key: None, **settings
):
    """Runs one process for so long at most; returns how each line ended, by its request id."""
    done = {}
    requests = requests or [chat(number) for number in range(LINES)]
    how = CallSettings(**{"window": 64, "lane": lane, "batches": world.records, **settings})
    recall = Recall(Points(world), "same-line")
    work = Dispatcher(asyncio.get_running_loop(), Connections(lambda _: world), how, recall, *[lambda _: None] * 3)
    for request in requests:

        def deliver(_, one, key=request.request_id):
            assert key not in done
            done[key] = one
            ended(key)

        work.add([Job("openai", request, deliver, Reservation(1))])
    end = asyncio.get_running_loop().time() + (stop_after or seconds)
    while len(done) < len(requests) and not world.dead and asyncio.get_running_loop().time() < end:  # noqa: ASYNC110 - on a fake clock
        await asyncio.sleep(0.5)
    if stop_after:
        work.stop(Unauthorized("stopped"))
        while len(done) < len(requests):  # noqa: ASYNC110 - on a fake clock
            await asyncio.sleep(0.5)
    await work.cancel()
    return done


def texts(done):
    return {key: one.response and one.response.text for key, one in done.items()}


ALL = {f"id-{number}": f"re: text {number}" for number in range(LINES)}


def test_each_line_is_asked_once_in_the_window_and_its_answer_fetched():
    world = World(takes_s=HOUR)
    done = run(process(world))
    assert texts(done) == ALL
    assert {one.response.lane for one in done.values()} == {"2h"}
    assert {one.attempts for one in done.values()} == {1}
    assert (world.calls, len(world.begun), world.cancelled) == ([], LINES, set())


def test_names_are_of_their_window_and_batches_have_none():
    assert [window_of(name) for name in ("2h:resp_1", "8h:a:b", "batch_1", "3h:resp", "2h", "")] == [
        "2h",
        "8h",
        *[""] * 4,
    ]
    assert response_of(named("8h", "a:b")) == "a:b"


def test_a_place_in_the_window_is_free_as_soon_as_the_service_has_the_request():
    world = World(takes_s=HOUR)
    requests = [chat(number) for number in range(40)]
    done = run(process(world, requests=requests, window=2))
    assert len(texts(done)) == 40
    assert world.most <= 2
    assert max(world.since.values()) - min(world.since.values()) < 120.0


def test_lines_are_taken_in_while_others_wait_for_their_answers():
    world = World(takes_s=HOUR)
    engine = Engine(CallSettings(2, lane="2h"), lambda _: world, Recall(MemoryLedger(), "same-line"))
    try:
        taken = [engine.submit("openai", chat(number), lambda _: None, wait=False) for number in range(50)]
        assert all(taken)
    finally:
        engine.close()


def test_a_process_that_dies_at_any_point_asks_again_only_for_what_it_did_not_know_the_name_of():
    for at in count(1):
        world = World(at)
        run(process(world, window=1))
        if not world.dead:
            break
        world.dead, world.at = False, None
        known = set(world.begun)
        assert texts(run(process(world, lane="" if at % 2 else "8h"))) == ALL
        asked = [request.request_id for request in world.begun.values()] + world.calls
        assert set(asked) == set(ALL)
        assert len(asked) <= LINES + 1, at  # the window is one call
        assert len(known) <= LINES
    assert at > 4 * LINES


def test_what_is_not_answered_in_its_window_is_ended_and_called_at_list_price():
    world = World(takes_s=24 * HOUR)
    done = run(process(world, 20 * HOUR, retry=Retry(deadline_s=60.0)))
    assert texts(done) == ALL
    assert sorted(world.calls) == sorted(ALL)
    assert world.cancelled == set(world.begun)
    assert {one.response.warnings for one in done.values()} == {
        ("asked at list price: it was not answered in the background",)
    }


def test_an_answer_that_is_there_when_its_end_is_asked_for_is_taken():
    world = World(takes_s=24 * HOUR)

    async def refuse(model, batch):
        world.takes_s = 0.0  # it was made in this moment
        raise InvalidRequest("Cannot cancel a response that is completed", status=400)

    world.cancel_batch = refuse
    done = run(process(world, 20 * HOUR))
    assert texts(done) == ALL
    assert (world.calls, len(world.begun)) == ([], LINES)
    assert {one.response.lane for one in done.values()} == {"2h"}


@pytest.mark.parametrize(
    "refused",
    [
        InvalidRequest("Invalid value for background_options.completion_window", status=400),
        InvalidRequest("Background mode is not supported for this model", status=400),
        ModelNotFound("no such route", status=404),
    ],
)
def test_a_model_without_windows_is_asked_once_and_then_called(refused):
    world = World()
    world.refuse = [refused]
    done = run(process(world, window=1))
    assert texts(done) == ALL
    assert (world.begun, sorted(world.calls)) == ({}, sorted(ALL))
    assert {one.response.warnings for one in done.values()} == {
        ("asked at list price: m is not answered in the background (2h)",)
    }


def test_another_refusal_is_the_lines_own():
    world = World()
    world.refuse = [InvalidRequest("the prompt is too long", status=400)]
    done = run(process(world, window=1))
    errors = [one.error for one in done.values() if one.error]
    assert [type(error) for error in errors] == [InvalidRequest]
    assert (world.calls, len(world.begun)) == ([], LINES - 1)


def test_a_refusal_that_may_be_everybodys_is_the_lines_own_as_soon_as_others_were_taken_in():
    world = World(takes_s=HOUR)
    world.refuse = [Unauthorized("a rule of the firewall", status=403, about="unclear")]
    times = {}

    async def watched():
        began = asyncio.get_running_loop().time()
        return await process(world, window=1, ended=lambda key: times.setdefault(key, loop_time() - began))

    done = run(watched())
    (refused,) = [key for key, one in done.items() if one.error]
    assert len(texts(done)) == LINES
    assert times[refused] < 600.0 < HOUR <= min(at for key, at in times.items() if key != refused)


def test_calls_that_are_refused_for_want_of_room_are_made_again_in_the_window():
    world = World()
    world.refuse = [RateLimited("slow down", status=429), Overloaded("busy", status=503)]
    done = run(process(world))
    assert texts(done) == ALL
    assert (world.calls, len(world.begun)) == ([], LINES)
    assert sorted(one.attempts for one in done.values()) == [1, 1, 2, 2]


def test_a_service_that_answers_at_once_is_believed():
    world = World()
    world.at_once = True
    done = run(process(world))
    assert texts(done) == ALL
    assert (world.looks, world.calls) == ([], [])


def test_what_has_no_place_in_the_background_is_called_and_says_so():
    world = World()
    world.problem = "/v1/responses has no 'stop'"
    done = run(process(world))
    assert sorted(world.calls) == sorted(ALL)
    assert {one.response.warnings for one in done.values()} == {("asked at list price: /v1/responses has no 'stop'",)}


@pytest.mark.parametrize("own", ["flex", "default"])
def test_a_line_decides_for_itself(own):
    world = World()
    done = run(process(world, requests=[chat(0, service_tier=own)]))
    assert texts(done) == {"id-0": ALL["id-0"]}
    assert (world.begun, world.calls) == ({}, ["id-0"])
    assert done["id-0"].response.warnings == ()


def test_texts_to_embed_are_called():
    world = World()
    done = run(process(world, requests=[EmbedRequest("e", ("a", "b"), request_id="id-0")]))
    assert len(done["id-0"].response.vectors) == 2


@pytest.mark.parametrize("how", [{"detached": True}, {"stop_after": 600.0}])
def test_what_is_left_stays_open_and_any_later_run_fetches_it(how):
    world = World(takes_s=HOUR)
    done = run(process(world, **how))
    assert {type(one.error) for one in done.values()} == {WaitsInBatch}
    untils = [one.error.until for one in done.values()]
    assert max(untils) - min(untils) < 60.0
    world.takes_s = 0.0
    again = run(process(world, lane="", mode="sync"))
    assert texts(again) == ALL
    assert {one.response.lane for one in again.values()} == {"2h"}
    assert (world.calls, len(world.begun)) == ([], LINES)


def test_an_answer_that_failed_in_the_background_is_asked_for_by_a_call():
    world = World(takes_s=1.5 * HOUR)  # longer than a call is tried for
    world.fails = Overloaded("the model failed", status=500, lost=False)
    done = run(process(world, requests=[chat(0)]))
    assert texts(done) == {"id-0": ALL["id-0"]}
    assert (len(world.begun), world.calls) == (1, ["id-0"])


def test_of_two_runs_with_one_ledger_the_faster_ones_name_holds():
    world = World(takes_s=HOUR)

    async def both():
        return await asyncio.gather(process(world), process(world))

    first, second = run(both())
    assert texts(first) == texts(second) == ALL
    assert world.calls == []
    assert len(world.cancelled) == len(world.begun) - LINES


def test_what_is_out_counts_in_the_budget_at_its_most_and_then_at_the_price_of_its_window(monkeypatch):
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    world = World(takes_s=HOUR)
    budget = Budget(Limits(max_cost_usd=1.0), Prices(lambda _: Models(())))
    budget.prices.ask("openai").result()
    request = ChatRequest("gpt-5", (Message("user", "text 0"),), {"max_tokens": 100}, "id-0")
    run(process(world, requests=[request], budget=budget))
    assert budget.spent().cost_usd == pytest.approx(0.7 * (2 * 1.25 + 10) / 1e6)


def test_looks_take_a_part_of_the_calls_a_minute_at_most():
    world = World(takes_s=2 * HOUR)
    requests = [chat(number) for number in range(240)]
    done = run(process(world, requests=requests, rates=Rates(60.0, None)))
    assert len(texts(done)) == 240
    begun = max(world.since.values())
    later = [at for at in world.looks if begun + 1200.0 < at < begun + 4800.0]
    assert 0 < len(later) <= 3600 * 0.25 * 1.5  # a wait is half of its time at least
