"""A deadline kept by the engine, on a fake clock: what is handed over, what comes back, what is called in time."""

import asyncio
import time

import pytest

from llmdo.backends.backend import BatchLimits
from llmdo.backends.connections import Connections
from llmdo.backends.engine.dispatch import Dispatcher
from llmdo.backends.engine.jobs import Job, Reservation
from llmdo.backends.engine.recall import Recall
from llmdo.backends.engine.settings import CallSettings
from llmdo.backends.errors import InvalidRequest
from llmdo.backends.lanes.ready_by import ReadyBy
from llmdo.backends.lanes.records import BatchRecord
from llmdo.backends.money.money import Budget
from llmdo.backends.money.own_prices import own_prices
from llmdo.backends.money.prices import Prices
from llmdo.backends.requests import ChatRequest, Message
from llmdo.backends.responses import BatchState, ChatResponse
from llmdo.backends.usage import Usage
from tests.backends.fake_clock import run
from tests.fakes.ledger import MemoryLedger, MemoryRecords

HOUR = 3600.0
# A million of a token's price, so that a call costs 1 and a line of a batch 0.5.
PRICES = own_prices({"fake/m": {"input": 1e6, "output": 0, "lanes": {"batch": {"input": 5e5, "output": 0}}}})


class Provider:
    """``queue_s(n)``: how long the n-th batch takes; a cancelled one settles after ``settle_s``, in ``part``.

    ``settle_s`` None: batches cannot be cancelled.
    """

    name = "fake"

    def __init__(self, queue_s, settle_s=300.0, part=0.0, latency_s=2.0, items=50_000):
        self.queue_s, self.settle_s, self.part, self.latency_s, self.items = queue_s, settle_s, part, latency_s, items
        self.batches, self.ends, self.called, self.cancels = [], [], [], []

    def now(self):
        return asyncio.get_running_loop().time()

    async def execute(self, request):
        self.called.append(request.request_id)
        await asyncio.sleep(self.latency_s)
        return ChatResponse("called", "stop", Usage(1), request.model)

    async def list_models(self):
        return []

    def takes_batches(self, model):
        return True

    def batch_limits(self, model):
        return BatchLimits(self.items, 10_000_000, 24 * HOUR, finds=False)

    async def batch_share(self, request):
        return 1e-6

    async def submit_batch(self, model, requests, nonce):
        self.ends.append((self.now() + self.queue_s(len(self.batches)), 1.0))
        self.batches.append(list(requests))
        return f"batch-{len(self.batches) - 1}"

    async def poll_batch(self, model, batch, requests, places):
        number = int(batch.removeprefix("batch-"))
        end, part = self.ends[number]
        if self.now() < end:
            return BatchState(None)
        return BatchState(self._results(places, part * len(self.batches[number])))

    async def _results(self, places, most):
        for position, place in enumerate(places):
            if place.number < most:
                yield position, ChatResponse("from the batch", "stop", Usage(1), "m")

    async def find_batch(self, model, nonce, count, since):
        return None

    async def cancel_batch(self, model, batch):
        if self.settle_s is None:
            raise InvalidRequest("there is no way to")
        number = int(batch.removeprefix("batch-"))
        self.cancels.append(self.now())
        if self.now() + self.settle_s < self.ends[number][0]:
            self.ends[number] = self.now() + self.settle_s, self.part

    async def aclose(self):
        pass


class Played:
    """What a run of ``lines`` requests with ``ready_s`` seconds did, and cost in list prices of a line."""

    def __init__(self, provider, lines, ready_s=8 * HOUR, settle_all=0.0, before=(), cancels=()):
        self.ended, self.texts = {}, []
        self.records, self.planned = MemoryRecords(), {}
        for number, queue_s in enumerate(before):
            self.records.keep(
                BatchRecord(f"{number}", "fake", "m", 9, 1.0, "b", ended_at=9.0, answered=9, queue_s=queue_s)
            )
        for number, cancel_s in enumerate(cancels):
            self.records.keep(
                BatchRecord(f"cancelled {number}", "fake", "m", 9, 1.0, "b", ended_at=9.0, cancel_s=cancel_s)
            )
        self.budget = Budget(prices=Prices(own=PRICES))
        self.budget.prices.ask("fake").result()  # not by a thread that the fake clock does not know
        run(self._play(provider, lines, ready_s, settle_all))
        self.late = [at for at in self.ended.values() if at > ready_s]
        self.cost = self.budget.spent().cost_usd
        self.called, self.batched = self.texts.count("called"), self.texts.count("from the batch")

    @property
    def receipt(self):
        """Calls and cost by the way that they went, and what was saved and paid for the rescue."""
        receipt = self.budget.receipt()
        ways = {way: (one.calls, one.usd, one.list_usd) for way, one in receipt.ways.items()}
        assert sum(usd for _, usd, _ in ways.values()) == receipt.usd == self.cost
        return ways, receipt.saved_usd, receipt.rescue_usd

    async def _play(self, provider, lines, ready_s, settle_all):
        loop = asyncio.get_running_loop()
        now, begun = time.time(), loop.time()
        ready_by = ReadyBy(now + ready_s, now)
        settings = CallSettings(
            64, mode="batch", budget=self.budget, ready_by=ready_by, batches=self.records if self.records.kept else None
        )
        recall = Recall(MemoryLedger(), "same-line")
        work = Dispatcher(loop, Connections(lambda _: provider, None), settings, recall, *[lambda _: None] * 3)

        def deliver(number, done):
            assert number not in self.ended, "delivered twice"
            assert done.error is None
            self.ended[number] = loop.time() - begun
            self.texts.append(done.response.text)

        requests = [ChatRequest("m", (Message("user", f"text {n}"),), request_id=f"id-{n}") for n in range(lines)]
        work.add(
            Job("fake", one, lambda _, done, n=n: deliver(n, done), Reservation(1)) for n, one in enumerate(requests)
        )
        while len(self.ended) < lines:
            await asyncio.sleep(1.0)
            self.planned |= dict.fromkeys(work.stats().rescues.values(), now)
        await asyncio.sleep(settle_all)
        await work.cancel()


def test_what_comes_back_in_time_is_paid_at_the_price_of_batches():
    provider = Provider(lambda _: HOUR)
    played = Played(provider, 1000)
    assert played.batched == 990  # every hundredth is called at once, so that it is known how fast calls are
    assert played.called == 10
    assert played.cost == 10 + 990 * 0.5
    assert played.receipt == ({"list": (10, 10, 10), "batch": (990, 495, 990)}, 495, 0)
    assert provider.cancels == []
    assert max(played.ended.values()) < HOUR + 120


def test_what_never_comes_back_is_cancelled_in_time_and_called_once():
    provider = Provider(lambda _: 1e9)
    played = Played(provider, 1000)
    assert not played.late
    assert played.called == played.cost == 1000
    assert played.receipt == ({"list": (10, 10, 10), "rescued": (990, 990, 990)}, 0, 495)
    assert min(played.ended[n] for n in range(90)) > 7 * HOUR  # as late as that, since it may have come back
    assert len(provider.cancels) == len(provider.batches) == 1
    # What was said of it beforehand was done: by the last look, it is cancelled, and called once that has had its time.
    (cancel_at, call_at), begun = list(played.planned.items())[-1]
    assert 7 * HOUR < cancel_at - begun < call_at - begun < 8 * HOUR
    assert min(played.ended[n] for n in range(90)) <= call_at - begun


def test_what_a_cancelled_batch_has_answered_is_taken_and_only_the_rest_is_called():
    provider = Provider(lambda _: 1e9, part=0.6)
    played = Played(provider, 1000)
    assert not played.late
    assert played.batched == 594
    assert played.called == 406
    assert played.cost == 406 + 594 * 0.5
    ways = {"list": (10, 10, 10), "rescued": (396, 396, 396), "batch": (594, 297, 594)}
    assert played.receipt == (ways, 297, 198)


def test_a_late_answer_to_a_line_that_was_called_is_spent_and_no_second_answer():
    """The cancel does not settle before the calls must start."""
    provider = Provider(lambda _: 8.1 * HOUR, settle_s=1e9)
    played = Played(provider, 1000, settle_all=2 * HOUR)
    assert not played.late
    assert played.called == 1000
    assert played.batched == 0
    assert played.cost == 1000 + 990 * 0.5
    ways = {"list": (10, 10, 10), "rescued": (990, 990, 990), "late": (990, 495, 990)}
    assert played.receipt == (ways, -495, 990)  # a rescued call cost half more than a batch, and then that came, too


def test_a_batch_that_cannot_be_cancelled_is_called_in_time_all_the_same():
    provider = Provider(lambda _: 1e9, settle_s=None)
    played = Played(provider, 500)
    assert not played.late
    assert played.called == 500
    spent = played.budget.spent()
    assert (spent.cost_usd, spent.lost_calls) == (500, 495)  # the batch may be billed, and is not awaited


def test_of_many_batches_only_those_that_are_late_are_given_up():
    provider = Provider(lambda number: [HOUR, 1e9, 2 * HOUR, 1e9][number], items=500)
    played = Played(provider, 2000)
    assert not played.late
    assert len(provider.batches) == 4
    assert len(provider.cancels) == 2
    assert played.batched == sum(len(provider.batches[number]) for number in (0, 2))
    assert played.cost == 2000 - 0.5 * played.batched


@pytest.mark.parametrize("lines", [1, 50])
def test_a_few_lines_are_handed_over_too_and_called_in_time(lines):
    assert Played(Provider(lambda _: HOUR), lines).cost == lines * 0.5
    played = Played(Provider(lambda _: 1e9), lines)
    assert not played.late
    assert played.cost == lines


def test_too_little_time_lets_all_be_called_at_once():
    provider = Provider(lambda _: HOUR)
    played = Played(provider, 300, ready_s=120.0)
    assert not played.late
    assert played.called == 300
    assert provider.batches == []


def test_a_lane_that_saves_nothing_is_not_taken(monkeypatch):
    monkeypatch.setattr(f"{__name__}.PRICES", own_prices({"fake/m": {"input": 1e6, "output": 0}}))
    provider = Provider(lambda _: HOUR)
    assert Played(provider, 200).called == 200
    assert provider.batches == []


@pytest.mark.parametrize(("before", "handed_over"), [((60.0,) * 30, True), ((7 * HOUR,) * 30, False)])
def test_how_long_batches_of_earlier_runs_took_decides_whether_there_is_time_for_one(monkeypatch, before, handed_over):
    async def inline(work, *given):  # the fake clock knows no threads
        return work(*given)

    monkeypatch.setattr(asyncio, "to_thread", inline)
    provider = Provider(lambda _: 60.0)
    played = Played(provider, 1000, ready_s=1800.0, before=before)
    assert not played.late
    assert (played.batched > 0) == bool(provider.batches) == handed_over


def test_a_cancel_is_sent_later_where_those_of_earlier_runs_were_quick(monkeypatch):
    async def inline(work, *given):  # the fake clock knows no threads
        return work(*given)

    monkeypatch.setattr(asyncio, "to_thread", inline)
    cancels = []
    for before in ((600.0,) * 20, (20.0,) * 20):
        provider = Provider(lambda _: 1e9, settle_s=20.0)
        played = Played(provider, 50, ready_s=1800.0, cancels=before)
        assert not played.late
        assert (played.called, played.cost) == (50, 50)
        cancels += provider.cancels  # each loop begins at the same time
        (record,) = [one for one in played.records.all() if one.handed_over_at]
        assert 20.0 <= record.cancel_s < 20.0 + 10.0  # polls are a few seconds apart
        assert (record.queue_s, record.answered) == (0.0, 0)
    assert cancels[1] - cancels[0] == pytest.approx(600.0 - 23.0, abs=20.0)


@pytest.mark.parametrize("open_still", [True, False])
def test_a_batch_whose_cancel_an_earlier_run_has_sent_tells_nothing_about_queue_times(monkeypatch, open_still):
    async def inline(work, *given):  # the fake clock knows no threads
        return work(*given)

    monkeypatch.setattr(asyncio, "to_thread", inline)
    provider, ledger, records = Provider(lambda _: 1e9, settle_s=300.0, part=1.0), MemoryLedger(), MemoryRecords()

    async def process(ready_by, enough, mode):
        done = []
        settings = CallSettings(64, mode=mode, ready_by=ready_by, batches=records)
        recall = Recall(ledger, "same-line")
        loop = asyncio.get_running_loop()
        work = Dispatcher(loop, Connections(lambda _: provider, None), settings, recall, *[lambda _: None] * 3)
        for number in range(9):
            request = ChatRequest("m", (Message("user", f"text {number}"),), request_id=f"id-{number}")
            work.add([Job("fake", request, lambda _, one: done.append(one), Reservation(1))])
        while not enough(done):  # noqa: ASYNC110 - on a fake clock
            await asyncio.sleep(1.0)
        await work.cancel()
        return [one.response.text for one in done if one.response]

    async def both():
        loop, wall = asyncio.get_running_loop(), time.time()
        monkeypatch.setattr(time, "time", lambda: wall + loop.time())  # of both processes
        now = time.time()
        cancelled = lambda _: [one for one in records.all() if one.cancelled_at]  # noqa: E731
        assert await process(ReadyBy(now + 1800.0, now), cancelled, "batch") == []
        (begun,) = records.all()
        assert begun.ended_at == 0
        await asyncio.sleep(0.0 if open_still else 400.0)
        assert await process(None, lambda done: len(done) == 9, "sync") == ["from the batch"] * 9
        (record,) = records.all()
        assert record.cancelled_at == begun.cancelled_at
        return record

    record = run(both())
    assert (record.answered, record.queue_s, record.ended_at > 0) == (9, 0.0, True)
    assert record.cancel_s == (pytest.approx(300.0, abs=65.0) if open_still else 0.0)
    assert len(provider.cancels) == 1


def test_what_a_batch_has_answered_so_far_counts_in_whether_it_is_worth_waiting_for(monkeypatch):
    """Cancels never settle in time here, so that a batch is given up early only for what it has answered already."""
    seen = []
    moves = ReadyBy.moves
    monkeypatch.setattr(
        ReadyBy,
        "moves",
        lambda self, now, out, *more: seen.extend(one.answered for one in out) or moves(self, now, out, *more),
    )

    class Reports(Provider):
        async def poll_batch(self, model, batch, requests, places):
            state = await super().poll_batch(model, batch, requests, places)
            return BatchState(None, 3 * len(self.batches[0]) // 4) if state.results is None else state

    played = Played(Reports(lambda _: HOUR), 80)
    assert not played.late
    assert played.batched == 80
    assert set(seen) == {0.0, 0.75}
