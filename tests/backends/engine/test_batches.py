"""Requests handed over in batches, on a fake clock: which, when, paid once, and what becomes of those that fail."""

import asyncio
import logging
import threading
from itertools import pairwise

import pytest

from llmdo.backends.backend import BatchLimits
from llmdo.backends.connections import Connections
from llmdo.backends.engine.batches import LINGER_S, LONGEST_LINGER_S
from llmdo.backends.engine.dispatch import Dispatcher
from llmdo.backends.engine.jobs import Job, Reservation
from llmdo.backends.engine.recall import Recall
from llmdo.backends.engine.settings import CallSettings
from llmdo.backends.errors import (
    BadReply,
    BatchUnclear,
    ConnectionFailed,
    ContentFiltered,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    PlanRequired,
    ProviderUnusable,
    QuotaExhausted,
    RequestRefused,
    Retryable,
    StopRun,
    Unauthorized,
    WaitsInBatch,
)
from llmdo.backends.lanes.choice import AUTO_LEAST
from llmdo.backends.limits.retry import THREE_TRIES, Retry
from llmdo.backends.money.limits import Limits
from llmdo.backends.money.money import Budget
from llmdo.backends.money.prices import Prices
from llmdo.backends.money.spent import Spent
from llmdo.backends.requests import ChatRequest, EmbedRequest, Message, batch_places
from llmdo.backends.responses import BatchState, ChatResponse, EmbedResponse, ModelInfo, Models, Price
from llmdo.backends.usage import Usage
from tests.backends.fake_clock import run
from tests.fakes.ledger import MemoryLedger

WORK_S = 60.0  # that a batch takes
MAX_ITEMS = 1000


class Service:
    """Stands for a provider with batches. ``scripts``: ``submit(n)``, ``poll(n)`` of the n-th such call, and
    ``item(request)``, which may raise, or give the item's error.
    """

    name = "fake"

    def __init__(self, work_s=WORK_S, takes=True, listed=None, share=lambda request: 1e-6, **scripts):
        self.work_s, self.takes, self.listed, self.share = work_s, takes, listed, share
        self.scripts = scripts
        self.batches = {}  # requests and when they are done, by name
        self.called, self.submits, self.polls, self.lists = [], [], [], 0
        self.now = self.most = 0  # hand-overs and polls that are made
        self.polled = asyncio.Event()

    def _script(self, name, *given):
        script = self.scripts.get(name)
        return script(*given) if script else None

    async def execute(self, request):
        self.called.append(request.request_id)
        await asyncio.sleep(0.1)
        self._script("call", request)
        return answer_to(request)

    async def embed(self, request):
        self.called.append(request.texts)
        return EmbedResponse(((0.0,),) * len(request.texts), Usage(1), request.model)

    async def list_models(self):
        self.lists += 1
        if self.listed is None:
            raise Overloaded("no list")
        return [ModelInfo(f"fake/{name}", capabilities=frozenset(able)) for name, able in self.listed.items()]

    def takes_batches(self, model):
        return self.takes

    def batch_limits(self, model):
        return BatchLimits(MAX_ITEMS, 10_000_000, 0.0, finds=False)

    async def batch_share(self, request):
        return self.share(request)

    async def submit_batch(self, model, requests, nonce):
        now = asyncio.get_running_loop().time()
        self.submits.append((now, len(requests)))
        await self._busy(0.5)
        self._script("submit", len(self.submits))
        name = f"batch-{len(self.batches)}"
        self.batches[name] = now + self.work_s, list(requests)
        return name

    async def poll_batch(self, model, batch, requests, places):
        now = asyncio.get_running_loop().time()
        self.polls.append((now, batch, len(requests)))
        self.polled.set()
        await self._busy(0.1)
        self._script("poll", len(self.polls))
        if batch not in self.batches:
            raise InvalidRequest(f"no batch {batch}", status=404)
        done_at, handed_over = self.batches[batch]
        if now < done_at:
            return BatchState(None)
        known = batch_places(handed_over)
        for request, place in zip(requests, places, strict=True):
            assert known[place.number] == place
            assert handed_over[place.number].messages == request.messages
        return BatchState(self._results(requests))

    async def _results(self, requests):
        for number, request in enumerate(requests):
            yield number, self._script("item", request) or answer_to(request)

    async def find_batch(self, model, nonce, count, since):
        raise BatchUnclear("there is no list")

    async def cancel_batch(self, model, batch):
        raise InvalidRequest("there is no way to")

    async def aclose(self):
        pass

    async def _busy(self, seconds):
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(seconds)
        self.now -= 1

    @property
    def sizes(self):
        return [size for _, size in self.submits]


class Run:
    """One process: a dispatcher on the running loop, and what it delivered."""

    def __init__(
        self, service, *, mode="batch", ledger=None, reuse="same-line", retry=THREE_TRIES, budget=None, own=None
    ):
        self.loop = asyncio.get_running_loop()
        self.began = self.loop.time()
        self.done = {}
        self.at = {}
        recall = Recall(ledger, reuse) if ledger is not None else None

        settings = CallSettings(64, retry=retry, mode=mode, budget=budget, call_timeout_s=180.0)
        connections = Connections(lambda _: service, own)
        self.work = Dispatcher(self.loop, connections, settings, recall, *[lambda _: None] * 3)

    def add(self, *requests):
        self.work.add([Job("fake", request, self._deliver(request), Reservation(1)) for request in requests])

    def _deliver(self, request):
        def deliver(_, done):
            assert request.request_id not in self.done, "delivered twice"
            self.done[request.request_id] = done
            self.at[request.request_id] = self.loop.time() - self.began

        return deliver

    async def wait(self, count, seconds=10_000):
        async with asyncio.timeout(seconds):
            while len(self.done) < count:  # noqa: ASYNC110 - on a fake clock
                await asyncio.sleep(0.5)
        return self

    @property
    def stats(self):
        return self.work.stats()

    @property
    def errors(self):
        return [type(done.error) for done in self.done.values() if done.error]


def raises(error, only=lambda *given: True):
    def script(*given):
        if only(*given):
            raise error

    return script


def answer_to(request):
    return ChatResponse(f"re: {request.messages[0].content}", "stop", Usage(2, 1), request.model)


def chat(number, model="m", text=None):
    return ChatRequest(model, (Message("user", text or f"text {number}"),), {"max_tokens": 10}, f"id-{number}")


def chats(count, start=0, **more):
    return [chat(number, **more) for number in range(start, start + count)]


def all_of(service, requests, **settings):
    """Answers requests in one run."""

    async def scenario():
        process = Run(service, **settings)
        process.add(*requests)
        return await process.wait(len(requests))

    return run(scenario())


def warnings(caplog):
    """Those of the engine, its lanes and the ledger: another test's threads may have a last word, too."""
    found = [record for record in caplog.records if record.levelno == logging.WARNING]
    return [
        record.getMessage()
        for record in found
        if record.name.startswith(("llmdo.backends.engine", "llmdo.backends.kept", "llmdo.backends.lanes"))
    ]


# Which requests, and when.


def test_every_request_is_handed_over_in_batches_of_bounded_size_and_gets_its_own_answer():
    service = Service()

    async def scenario():
        process = Run(service)
        process.add(*chats(2 * MAX_ITEMS + 500))
        await asyncio.sleep(30)
        seen = set()  # a poll may be under way just now
        for _ in range(10):
            seen.add((process.stats.batched, process.stats.in_flight))
            await asyncio.sleep(0.05)
        assert (2500, 0) in seen
        return await process.wait(2500)

    process = run(scenario())
    assert sorted(service.sizes) == [500, 1000, 1000]
    assert service.called == []
    assert {key: done.response.text for key, done in process.done.items()} == {
        f"id-{number}": f"re: text {number}" for number in range(2500)
    }
    assert {done.attempts for done in process.done.values()} == {1}
    stats = process.stats
    assert (stats.batched, stats.in_flight) == (0, 0)
    answers = [done.response for done in process.done.values()]
    assert (len(answers), sum(answer.usage.input_tokens for answer in answers)) == (2500, 5000)
    assert stats.calls == len(service.submits) + len(service.polls)
    assert service.most <= 3


@pytest.mark.parametrize(
    ("count", "sizes"),
    [(AUTO_LEAST - 1, []), (AUTO_LEAST, [AUTO_LEAST]), (MAX_ITEMS + AUTO_LEAST - 1, [MAX_ITEMS])],
)
def test_auto_hands_over_where_there_are_many_and_calls_for_what_is_left(count, sizes):
    service = Service()
    process = all_of(service, chats(count), mode="auto")
    assert service.sizes == sizes
    assert len(service.called) == count - sum(sizes)
    assert process.errors == []


def test_sync_hands_nothing_over():
    service = Service()
    all_of(service, chats(2000), mode="sync")
    assert (service.submits, service.lists, len(service.called)) == ([], 0, 2000)


def test_a_group_is_handed_over_when_nobody_has_joined_for_a_while_and_at_last_anyway():
    service = Service()

    async def scenario():
        process = Run(service)
        process.add(chat(0))
        await asyncio.sleep(1.5)
        process.add(chat(1))
        await asyncio.sleep(10)
        for number in range(2, 42):
            process.add(chat(number))
            await asyncio.sleep(0.9 * LINGER_S)
        await process.wait(42)
        return process

    process = run(scenario())
    (first, size), (second, _), *_ = service.submits
    assert (round(first - process.began, 1), size) == (1.5 + LINGER_S, 2)
    assert round(second - process.began, 1) == 11.5 + LONGEST_LINGER_S


def test_groups_keep_below_the_providers_limit_of_bytes_and_what_alone_is_too_large_is_called():
    sizes = {"text 3": 1.01, "text 5": 1.0}
    service = Service(share=lambda request: sizes.get(request.messages[0].content, 0.3))
    process = all_of(service, chats(12))
    assert service.called == ["id-3"]
    assert sorted(service.sizes) == [1, 1, 3, 3, 3]
    assert process.errors == []


def test_what_cannot_even_be_written_is_called_so_that_its_own_error_is_seen():
    def share(request):
        if request.request_id == "id-1":
            raise InvalidRequest("no JSON")
        return 0.1

    service = Service(share=share, call=raises(InvalidRequest("no JSON")))
    process = all_of(service, chats(3))
    assert (service.called, service.sizes) == (["id-1"], [2])
    assert type(process.done["id-1"].error) is InvalidRequest


def test_models_have_groups_of_their_own():
    service = Service()
    all_of(service, [*chats(10, model="a"), *chats(5, 10, model="b")])
    assert sorted(service.sizes) == [5, 10]


def test_arrays_of_texts_are_called_as_they_are(caplog):
    service = Service()
    requests = [EmbedRequest("m", (f"text {n}",), request_id=str(n)) for n in range(3)]
    all_of(service, requests)
    assert (len(service.called), service.submits) == (3, [])
    assert len(warnings(caplog)) == 1


@pytest.mark.parametrize(("mode", "told"), [("batch", 1), ("auto", 0)])
def test_a_model_without_batches_is_called_and_that_is_said_once(mode, told, caplog):
    service = Service(takes=False)
    all_of(service, chats(600), mode=mode)
    assert (len(service.called), service.submits) == (600, [])
    assert [message for message in warnings(caplog) if "takes no batches" in message] == [
        "fake/m: it takes no batches, and its requests are called one by one"
    ] * told


@pytest.mark.parametrize(("able", "sizes"), [({"batch"}, [5]), (set(), [])])
def test_the_list_of_models_says_who_takes_batches_before_the_backend_does(able, sizes):
    service = Service(takes=not able, listed={"m": able, "another": {"batch"}})
    all_of(service, chats(5))
    assert (service.sizes, service.lists) == (sizes, 1)


def test_a_list_that_tells_of_no_batches_at_all_leaves_it_to_the_backend():
    service = Service(listed={"m": {"tools"}, "another": set()})
    all_of(service, chats(5))
    assert service.sizes == [5]


# What the provider says.


def test_groups_that_wait_while_the_first_one_is_refused_are_not_handed_over():
    service = Service(submit=raises(InvalidRequest("queueRequest is not supported")))
    process = all_of(service, chats(3 * MAX_ITEMS))
    assert (service.sizes, len(service.called), process.errors) == ([MAX_ITEMS], 3 * MAX_ITEMS, [])


def test_a_group_that_waits_for_another_ones_hand_over_lets_go_at_a_stop():
    async def scenario():
        process = Run(service)
        process.add(*chats(2 * MAX_ITEMS))
        await asyncio.sleep(0.3)
        process.work.stop(StopRun("enough"))
        await asyncio.sleep(0.05)
        return len(process.done), await process.wait(2 * MAX_ITEMS)

    service = Service()
    at_once, process = run(scenario())
    assert (at_once, len(process.errors), service.sizes) == (MAX_ITEMS, 2 * MAX_ITEMS, [MAX_ITEMS])


@pytest.mark.parametrize("error", [InvalidRequest("queueRequest is not supported"), BadReply("no request id")])
def test_a_model_that_refuses_a_batch_is_never_tried_again(error, caplog):
    service = Service(submit=raises(error))

    async def scenario():
        process = Run(service)
        process.add(*chats(5))
        await process.wait(5)
        process.add(*chats(5, 5))
        return await process.wait(10)

    process = run(scenario())
    assert (service.sizes, len(service.called), process.errors) == ([5], 10, [])
    assert sum("request by request from now on" in message for message in warnings(caplog)) == 1


def test_a_hand_over_that_fails_for_a_moment_is_tried_again():
    service = Service(submit=raises(Overloaded("full", status=429, code=3040), lambda n: n < 4))
    process = all_of(service, chats(5))
    assert (service.sizes, service.called, process.errors) == ([5] * 4, [], [])


@pytest.mark.parametrize(
    ("error", "tries"), [(Overloaded("down", status=500), 3), (Overloaded("full", status=429, code=3040), 20)]
)
def test_a_hand_over_that_always_fails_has_the_tries_of_a_call_and_then_each_is_called(error, tries, caplog):
    service = Service(submit=raises(error))
    process = all_of(service, chats(5))
    assert (len(service.submits), len(service.called), process.errors) == (tries, 5, [])
    assert {done.attempts for done in process.done.values()} == {1}
    assert sum("could not be handed over" in message for message in warnings(caplog)) == 1


def test_tries_that_are_refused_and_tries_that_fail_count_apart():
    errors = [Overloaded("full", status=429, code=3040)] * 3 + [Overloaded("down", status=500)] * 2

    def submit(n):
        if n <= len(errors):
            raise errors[n - 1]

    service = Service(submit=submit)
    process = all_of(service, chats(5))
    assert (service.sizes, service.called, process.errors) == ([5] * 6, [], [])


def test_polls_are_made_at_growing_intervals():
    service = Service(work_s=400)
    all_of(service, chats(5))
    times = [service.submits[0][0] + 0.5, *(at for at, *_ in service.polls)]
    waits = [later - sooner for sooner, later in pairwise(times)]
    for wait, most in zip(waits, [5, 10, 20, 40, *[60] * 20], strict=False):
        assert most / 2 <= wait <= most + 0.3
    assert len(waits) >= 8


def test_a_poll_that_fails_is_made_again_and_keeps_to_retry_after():
    service = Service(poll=raises(Overloaded("later", status=503, retry_after=100), lambda n: n < 3))
    process = all_of(service, chats(5))
    assert (service.called, process.errors, len(service.polls)) == ([], [], 3)
    (first, *_), (second, *_), _ = service.polls
    assert 50 <= second - first <= 101


def test_a_batch_that_nobody_knows_is_called_one_by_one(caplog):
    service = Service(poll=lambda n: service.batches.clear())
    process = all_of(service, chats(5))
    assert (len(service.called), process.errors, len(service.polls)) == (5, [], 1)
    assert sum("is not known" in message for message in warnings(caplog)) == 1


@pytest.mark.parametrize("broken", [False, True])
def test_after_its_deadline_a_batch_is_called_one_by_one(broken, caplog):
    service = Service(work_s=1e9, poll=raises(Overloaded("down", status=500)) if broken else None)
    process = all_of(service, chats(5), retry=Retry(deadline_s=600))
    assert (len(service.called), process.errors) == (5, [])
    assert all(600 <= seconds <= 670 for seconds in process.at.values())
    assert [message for message in warnings(caplog) if "batch-0" in message] == [
        "fake/m: batch batch-0 is not answered 600 s after it was sent: its requests are called one by one"
    ]


def test_items_that_are_lost_are_called_and_those_that_can_have_no_answer_are_failures_without_a_call():
    errors = {"text 1": Retryable("lost"), "text 2": ContentFiltered("flagged"), "text 3": Overloaded("full")}
    service = Service(item=lambda request: errors.get(request.messages[0].content))
    process = all_of(service, chats(6))
    assert sorted(service.called) == ["id-1", "id-3"]
    assert service.sizes == [6]
    assert process.errors == [ContentFiltered]
    assert {key: done.attempts for key, done in process.done.items()} == {
        "id-0": 1, "id-1": 2, "id-2": 1, "id-3": 2, "id-4": 1, "id-5": 1
    }  # fmt: skip
    assert process.stats.retried == {"Retryable": 1, "Overloaded": 1}


def test_a_surprise_in_a_poll_leaves_nobody_waiting():
    service = Service(poll=raises(ZeroDivisionError()))
    process = all_of(service, chats(5))
    assert (len(service.called), process.errors) == (5, [])


# Paid once.


def restarted(first, second, requests, *, ledger, after_s, again=None, **settings):
    """Kills a run ``after_s`` s after its begin, and answers the requests, or ``again``, in another one."""

    async def scenario():
        killed = Run(first, ledger=ledger, **settings)
        killed.add(*requests)
        await asyncio.sleep(after_s)
        await killed.work.cancel()
        assert asyncio.all_tasks() == {asyncio.current_task()}
        process = Run(second, ledger=ledger, **settings)
        process.add(*(again or requests))
        return killed, await process.wait(len(again or requests))

    return run(scenario())


@pytest.mark.parametrize("after_s", [LINGER_S + 0.6, 20.0])
@pytest.mark.parametrize("reuse", ["same-line", "same-request"])
def test_a_killed_run_is_gone_on_with_by_polling(after_s, reuse):
    service, ledger = Service(), MemoryLedger(0.01)
    killed, process = restarted(service, service, chats(1500), ledger=ledger, after_s=after_s, reuse=reuse)
    assert killed.done == {}
    assert sorted(service.sizes) == [500, 1000]
    assert (service.called, process.errors) == ([], [])
    assert {done.attempts for done in process.done.values()} == {1}
    last = {batch: size for _, batch, size in service.polls}
    assert sorted(last.values()) == [500, 1000]


def test_a_part_of_a_batch_is_polled_for_with_its_own_places():
    service, ledger = Service(work_s=5), MemoryLedger(0.01)
    requests = chats(100)
    _, process = restarted(service, service, requests, ledger=ledger, after_s=3, again=requests[:50:-7])
    assert (service.sizes, service.called, process.errors) == ([100], [], [])
    assert {size for _, _, size in service.polls} == {len(requests[:50:-7])}


@pytest.mark.parametrize("work_s", [0, WORK_S])
def test_members_that_come_while_others_are_polled_for_join_them(work_s):
    service, ledger = Service(work_s=work_s), MemoryLedger(0.01)

    async def scenario():
        killed = Run(service, ledger=ledger)
        killed.add(*chats(10))
        await asyncio.sleep(3)
        await killed.work.cancel()
        process = Run(service, ledger=ledger)
        process.add(*chats(5))
        await service.polled.wait()
        process.add(*chats(5, 5))
        return await process.wait(10)

    assert run(scenario()).errors == []
    assert (service.sizes, service.called) == ([10], [])
    assert [size for _, _, size in service.polls][-1] == (10 if work_s else 5)
    assert len({at for at, *_ in service.polls}) == len(service.polls) < 8


def test_auto_goes_on_with_few_requests_of_a_batch_too():
    service, ledger = Service(), MemoryLedger(0.01)
    requests = chats(AUTO_LEAST)
    restarted(service, service, requests, ledger=ledger, after_s=20, again=requests[:10], mode="auto")
    assert (service.sizes, service.called) == ([AUTO_LEAST], [])


def test_a_run_without_batches_polls_too_for_what_was_handed_over_and_calls_for_the_rest():
    service, ledger = Service(), MemoryLedger(0.01)

    async def scenario():
        killed = Run(service, ledger=ledger)
        killed.add(*chats(10))
        await asyncio.sleep(20)
        await killed.work.cancel()
        process = Run(service, ledger=ledger, mode="sync")
        process.add(*chats(15))
        return await process.wait(15)

    assert run(scenario()).errors == []
    assert service.sizes == [10]
    assert sorted(service.called) == [request.request_id for request in chats(5, 10)]


def test_a_run_without_batches_asks_once_whether_there_were_any():
    service, ledger = Service(), MemoryLedger(0.01)
    asked = []

    async def get(key, known=ledger.get):
        asked.append(key)
        return await known(key)

    ledger.get = get

    async def scenario():
        process = Run(service, ledger=ledger, mode="sync")
        process.add(*chats(10))
        await process.wait(10)

    run(scenario())
    assert len(service.called) == 10
    assert len(asked) == len(set(asked)) == 11  # each request's answer, and that


def test_members_that_come_late_are_polled_for_too():
    service, ledger = Service(), MemoryLedger(0.01)

    async def scenario():
        killed = Run(service, ledger=ledger)
        killed.add(*chats(10))
        await asyncio.sleep(5)
        await killed.work.cancel()
        process = Run(service, ledger=ledger)
        for number in range(10):
            process.add(chat(number))
            await asyncio.sleep(20)
        return await process.wait(10)

    process = run(scenario())
    assert (service.sizes, service.called, process.errors) == ([10], [], [])


def test_the_names_of_batches_are_kept_before_the_first_poll_and_answers_before_they_are_delivered():
    service, ledger = Service(work_s=0), MemoryLedger(0.01)

    async def scenario():
        process = Run(service, ledger=ledger)
        process.add(*chats(5))
        await service.polled.wait()
        assert len(ledger.kept) == 5 + 3  # the submission twice, and that there are some
        await process.wait(5)
        assert len(ledger.kept) == 5 + 3 + 5

    run(scenario())


def test_what_was_answered_is_neither_polled_for_nor_asked_again():
    service, ledger = Service(), MemoryLedger(0.01)
    all_of(service, chats(10), ledger=ledger)
    polls = len(service.polls)
    process = all_of(service, chats(10), ledger=ledger)
    assert (len(service.polls), service.sizes, service.called) == (polls, [10], [])
    assert {done.attempts for done in process.done.values()} == {0}


def test_a_deadline_holds_over_a_restart_but_the_batch_is_looked_at_first(monkeypatch):
    now = [1e9]
    monkeypatch.setattr("llmdo.backends.engine.batch_polls.time.time", lambda: now[0])

    async def scenario(service, later_s):
        ledger = MemoryLedger(0.01)
        killed = Run(service, ledger=ledger)
        killed.add(*chats(5))
        await asyncio.sleep(5)
        await killed.work.cancel()
        now[0] += later_s
        process = Run(service, ledger=ledger)
        process.add(*chats(5))
        return await process.wait(5)

    done = Service(work_s=0)
    process = run(scenario(done, 86_400))
    assert (done.sizes, done.called) == ([5], [])
    assert max(process.at.values()) < LINGER_S + 2
    stuck = Service(work_s=1e9)
    process = run(scenario(stuck, 1000))
    assert (stuck.sizes, len(stuck.called)) == ([5], 5)
    assert all(800 <= seconds <= 870 for seconds in process.at.values())


@pytest.mark.parametrize("error", [ContentFiltered("flagged"), QuotaExhausted("used up"), Retryable("lost")])
def test_what_failed_in_an_earlier_runs_batch_is_asked_again_by_a_call(error):
    ledger, service = MemoryLedger(0.01), Service(work_s=0, item=lambda request: error)
    _, process = restarted(service, service, chats(5), ledger=ledger, after_s=3)
    assert (service.sizes, len(service.called), process.errors) == ([5], 5, [])


def test_what_cannot_be_kept_is_not_handed_over_and_stops_the_run():
    service, ledger = Service(), MemoryLedger(0.01)
    ledger.put_error = OSError("the disk is full")
    process = all_of(service, chats(5), ledger=ledger)
    assert (service.sizes, service.polls, service.called) == ([], [], [])
    assert process.errors == [StopRun] * 5
    assert "the disk is full" in process.work.stopped.message


def test_a_name_that_cannot_be_read_is_no_name(caplog):
    ledger, service = MemoryLedger(0.01), Service(work_s=0)

    async def scenario():
        killed = Run(service, ledger=ledger)
        killed.add(chat(0))
        await asyncio.sleep(3)
        await killed.work.cancel()
        ledger.kept = dict.fromkeys(ledger.kept, b'{"batch": 1}')
        process = Run(service, ledger=ledger)
        process.add(chat(0))
        return await process.wait(1)

    assert run(scenario()).errors == []
    assert service.sizes == [1, 1]
    assert sum("cannot read" in message for message in warnings(caplog)) == 1


def test_without_a_ledger_it_is_said_once_that_nothing_is_gone_on_with(caplog):
    all_of(Service(), chats(2500))
    assert sum("without a ledger" in message for message in warnings(caplog)) == 1
    caplog.clear()
    all_of(Service(), chats(5), ledger=MemoryLedger(0.01))
    assert warnings(caplog) == []


def test_equal_requests_share_one_place_in_a_batch():
    service = Service()
    process = all_of(service, chats(6, text="the same"), ledger=MemoryLedger(0.01), reuse="same-request")
    assert (service.sizes, service.called) == ([1], [])
    assert {done.response.text for done in process.done.values()} == {"re: the same"}


# Stopped.


def stopped(service, after_s, *, ledger):
    """A run that is stopped ``after_s`` s after its begin, and one after it, on the same ledger."""

    async def scenario():
        first = Run(service, ledger=ledger)
        first.add(*chats(10))
        await asyncio.sleep(after_s)
        first.work.stop(StopRun("enough"))
        await asyncio.sleep(1)
        said, polls = dict(first.done), len(service.polls)
        await asyncio.sleep(1000)
        assert (len(service.polls), first.stats.batched) == (polls, 0)
        await first.work.cancel()
        second = Run(service, ledger=ledger)
        second.add(*chats(10))
        await second.wait(10)
        return said, second

    return run(scenario())


@pytest.mark.parametrize(
    ("after_s", "error"),
    [
        (1.0, StopRun),  # while it gathers: handed over by the second run alone
        (LINGER_S + 0.3, WaitsInBatch),  # while it is handed over: its name is kept all the same
        (20.0, WaitsInBatch),  # between polls
    ],
)
def test_a_stopped_run_lets_go_at_once_and_the_next_one_pays_nothing_again(after_s, error):
    service = Service()
    said, second = stopped(service, after_s, ledger=MemoryLedger(0.01))
    assert [type(done.error) for done in said.values()] == [error] * 10
    assert (len(service.submits), service.called, second.errors) == (1, [], [])


def test_answers_that_are_fetched_while_the_run_is_stopped_are_delivered():
    service = Service(work_s=0)

    async def scenario():
        process = Run(service, ledger=MemoryLedger(0.01))
        process.add(*chats(5))
        await service.polled.wait()
        process.work.stop(StopRun("enough"))
        return await process.wait(5)

    assert run(scenario()).errors == []


@pytest.mark.parametrize("where", ["submit", "poll"])
def test_an_error_that_stops_the_run_stops_it(where):
    service = Service(**{where: raises(QuotaExhausted("used up"))})
    process = all_of(service, chats(5))
    assert (process.errors, service.called) == ([QuotaExhausted] * 5, [])
    assert isinstance(process.work.stopped, QuotaExhausted)


# Refusals that may be about one line.

UNCLEAR = [
    Unauthorized("a firewall's page", status=403, about="unclear"),
    Unauthorized("no", status=401, about="unclear"),
    PlanRequired("pay", status=402, about="unclear"),
    ModelNotFound("no route", status=404, about="unclear"),
]
unclear = pytest.mark.parametrize("error", UNCLEAR, ids=lambda error: str(error.status))


@unclear
def test_a_batch_that_is_refused_for_one_of_its_lines_is_called_line_by_line_and_the_next_one_is_handed_over(error):
    bad = raises(error, lambda request: request.request_id == "id-1")
    service = Service(submit=raises(error, lambda n: n == 1), call=bad)

    async def scenario():
        process = Run(service)
        process.add(*chats(5))
        await process.wait(5)
        process.add(*chats(5, 5))
        return await process.wait(10)

    process = run(scenario())
    assert (service.sizes, sorted(service.called)) == ([5, 5], [f"id-{number}" for number in range(5)])
    assert process.work.stopped is None
    assert {key: type(done.error) for key, done in process.done.items() if done.error} == {"id-1": RequestRefused}


@unclear
def test_where_every_call_is_refused_as_its_batch_was_the_verdict_is_that_of_calls(error):
    service = Service(submit=raises(error), call=raises(error))
    process = all_of(service, chats(100))
    assert (service.sizes, process.errors) == ([100], [type(error)] * 100)
    if isinstance(error, StopRun):
        assert len(service.called) <= 64, "none of those that waited for the verdict is called"
        assert process.work.stopped is error


def test_a_line_that_alone_is_refused_beside_answered_batches_does_not_stop_the_run():
    share = {"text 3": 2.0}
    bad = raises(UNCLEAR[0])
    service = Service(share=lambda request: share.get(request.messages[0].content, 0.01), call=bad)
    process = all_of(service, chats(10))
    assert (service.called, process.errors, process.work.stopped) == (["id-3"], [RequestRefused], None)


@unclear
def test_items_that_are_refused_beside_answers_of_their_batch_are_their_own_errors_however_many(error):
    service = Service(item=lambda request: error if int(request.request_id[3:]) < 30 else None)
    process = all_of(service, chats(100), ledger=MemoryLedger(0.01))
    assert (service.called, process.errors, process.work.stopped) == ([], [RequestRefused] * 30, None)


@pytest.mark.parametrize("error", UNCLEAR[:3], ids=lambda error: str(error.status))
def test_a_poll_that_is_refused_for_a_while_pays_nothing_again(error):
    service = Service(poll=raises(error, lambda n: n < 5))
    process = all_of(service, chats(5), ledger=MemoryLedger(0.01))
    assert (service.sizes, service.called, process.errors, len(service.polls)) == ([5], [], [], 5)


def test_polls_that_are_always_refused_stop_the_run_and_a_later_one_fetches_the_answers():
    service, ledger = Service(poll=raises(UNCLEAR[0])), MemoryLedger(0.01)
    process = all_of(service, chats(5), ledger=ledger)
    assert (service.called, process.errors, len(service.polls)) == ([], [WaitsInBatch] * 5, 5)
    assert process.work.stopped is UNCLEAR[0]
    service.scripts.clear()
    later = all_of(service, chats(5), ledger=ledger)
    assert (service.sizes, service.called, later.errors) == ([5], [], [])


@pytest.mark.parametrize("where", ["submit", "poll"])
def test_a_provider_that_only_lines_name_refuses_their_batch_and_stops_nobody(where):
    service = Service(**{where: raises(Unauthorized("no key", status=401))})
    process = all_of(service, chats(5), own=frozenset({"another"}))
    assert (process.errors, service.called, process.work.stopped) == ([ProviderUnusable] * 5, [], None)


def test_an_item_that_stops_the_run_leaves_the_answers_beside_it():
    service = Service(item=lambda request: QuotaExhausted("used up") if request.request_id == "id-2" else None)
    process = all_of(service, chats(5), ledger=MemoryLedger(0.01))
    assert process.errors == [QuotaExhausted]
    assert isinstance(process.work.stopped, QuotaExhausted)


def test_a_request_that_is_looked_up_while_the_run_is_stopped_joins_nothing():
    async def scenario():
        process = Run(service, ledger=MemoryLedger(0.01))
        process.add(*chats(5))
        await asyncio.sleep(0.0015)
        process.work.stop(StopRun("enough"))
        await asyncio.sleep(0.1)
        return process.errors

    service = Service()
    assert run(scenario()) == [StopRun] * 5
    assert service.submits == []


def test_after_a_stop_nothing_is_handed_over():
    async def scenario():
        process = Run(service)
        process.work.stop(StopRun("enough"))
        process.add(*chats(5))
        return await process.wait(5)

    service = Service()
    assert run(scenario()).errors == [StopRun] * 5
    assert service.submits == []


# Money.


def budget_of(**limits):
    return Budget(Limits(**limits), Prices(lambda provider: Models((ModelInfo("fake/m", price=Price(1.0, 1.0)),))))


def test_answers_of_batches_are_spent():
    budget = budget_of()
    all_of(Service(), chats(10), budget=budget)
    assert (budget.spent().calls, budget.spent().input_tokens, budget.spent().output_tokens) == (10, 20, 10)


def test_only_what_the_budget_has_room_for_is_handed_over_and_it_is_never_passed():
    most = budget_of()._estimates.most(chat(0))
    room = 4 * (most.input_tokens + most.output_tokens)
    budget, service = budget_of(max_tokens=room), Service()
    process = all_of(service, chats(200), budget=budget)
    assert service.sizes == [4]
    spent = budget.spent()
    assert spent.input_tokens + spent.output_tokens <= room
    assert len(process.errors) == 200 - spent.calls
    assert spent.calls > 4  # what the batch did not use was given back


@pytest.mark.parametrize(
    ("where", "error", "lost"),
    [
        ("submit", Overloaded("down", status=500), 150),  # each of three tries may have handed them over
        ("submit", ConnectionFailed("broke off"), 150),
        ("submit", TimeoutError(), 100),  # two, at our own limit of time
        ("submit", BadReply("no name"), 50),
        ("submit", Overloaded("out of capacity", status=503), 0),
        ("submit", ConnectionFailed("not reached", lost=False), 0),
        ("submit", InvalidRequest("not for batches"), 0),
        ("poll", InvalidRequest("nobody knows it"), 50),
        ("item", Retryable("lost"), 50),
        ("item", Overloaded("out of capacity", code=3040), 0),
    ],
)
def test_what_fails_gives_back_what_it_reserved_or_counts_as_lost(where, error, lost):
    script = (lambda request: error) if where == "item" else raises(error)
    budget = budget_of(max_tokens=100_000)
    all_of(Service(**{where: script}), chats(50), budget=budget)
    assert not budget.can_wait()
    assert (budget.spent().calls, budget.spent().lost_calls) == (50, lost)


@pytest.mark.parametrize("after_s", [LINGER_S + 0.2, LINGER_S + 3.0])
def test_a_batch_that_is_sent_when_the_run_ends_may_be_billed(after_s):
    """Closed while it is handed over, and after."""
    budget = budget_of(max_tokens=100_000)

    async def scenario():
        process = Run(Service(), budget=budget)
        process.add(*chats(50))
        await asyncio.sleep(after_s)
        await process.work.cancel()

    run(scenario())
    assert not budget.can_wait()
    assert (budget.spent().calls, budget.spent().lost_calls) == (0, 50)


def test_what_was_gathered_and_not_handed_over_is_not_billed():
    budget = budget_of(max_tokens=100_000)

    async def scenario():
        process = Run(Service(), budget=budget)
        process.add(*chats(50))
        await asyncio.sleep(LINGER_S / 2)
        await process.work.cancel()

    run(scenario())
    assert budget.spent() == Spent()


def test_a_batch_that_an_earlier_run_has_handed_over_is_not_this_runs_loss():
    ledger, service, budget = MemoryLedger(0.01), Service(), budget_of(max_tokens=100_000)

    async def scenario():
        first = Run(service, ledger=ledger)
        first.add(*chats(50))
        await asyncio.sleep(LINGER_S + 3.0)
        await first.work.cancel()
        service.batches.clear()
        second = Run(service, ledger=ledger, budget=budget)
        second.add(*chats(50))
        await second.wait(50)

    run(scenario())
    assert len(service.called) == 50
    assert (budget.spent().calls, budget.spent().lost_calls) == (50, 0)


def test_a_batch_waits_for_prices_and_holds_nobody_up():
    gate = threading.Event()

    def list_of(provider):
        assert gate.wait(60)
        return Models((ModelInfo("fake/m", price=Price(1.0, 1.0)),))

    service, budget = Service(), Budget(Limits(max_cost_usd=1.0), Prices(list_of))

    async def scenario():
        process = Run(service, budget=budget)
        process.add(*chats(50))
        await asyncio.sleep(LINGER_S + 5.0)
        assert (service.submits, service.called, process.done) == ([], [], {})
        gate.set()
        budget.prices.of("fake", "m")
        return await process.wait(50)

    assert run(scenario()).errors == []
    assert (service.sizes, budget.spent().calls) == ([50], 50)


def test_a_run_that_is_stopped_waits_for_no_prices():
    gate = threading.Event()
    service, budget = Service(), Budget(Limits(max_cost_usd=1.0), Prices(lambda name: gate.wait(60) and Models(())))

    async def scenario():
        process = Run(service, budget=budget)
        process.add(*chats(50))
        await asyncio.sleep(LINGER_S + 5.0)
        process.work.stop(StopRun("enough"))
        return await process.wait(50)

    assert set(run(scenario()).errors) == {StopRun}
    assert budget.pending("fake")  # the list is still being read
    gate.set()
