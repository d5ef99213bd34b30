"""Workers' shares follow what they have to do, and never add up to more than the run may use."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import asdict, replace

import pytest

from llmdo.backends.limits.shares import Demand, Share
from llmdo.backends.money.spent import Spent
from llmdo.runners.workers.shared_limits import NEEDED_DEALS, SharedLimits
from llmdo.runners.workers.wire import WorkerReport
from llmdo.runners.workers.worker_process import WorkerProcess
from llmdo.storage.runs.members import MemberReport

MODEL = ("openai", "m")


class Simulated:
    """A worker whose messages, both ways, arrive later; calls start as soon as it has room, and end by chance."""

    def __init__(self, share, rng, jobs):
        self.rng, self.jobs = rng, jobs
        self.window = self.in_flight = 0
        self.share, self.ready = share, False
        self.coming, self.going = deque(), deque()
        self.process = WorkerProcess(None, self, share)

    def send(self, share):
        self.coming.append(share)

    def step(self):
        if self.coming and self.rng.random() < 0.5:
            self.share = self.coming.popleft()
        self.ready = self.ready or self.rng.random() < 0.2
        if not self.ready:
            return
        self.window = self.share.window
        self.in_flight -= sum(self.rng.random() < 0.3 for _ in range(self.in_flight))
        started = max(0, min(self.window - self.in_flight, self.jobs))
        self.in_flight += started
        self.jobs -= started
        self.going.append(Demand(self.window, self.in_flight, self.jobs, {MODEL: None}, {MODEL: None}))
        while len(self.going) > self.rng.randrange(3):
            self.process.report = report(self.going.popleft())


def report(demand):
    return WorkerReport(MemberReport(counts={}, spent=asdict(Spent())), 0, 0, (), demand)


@pytest.mark.parametrize("seed", range(20))
def test_windows_never_add_up_to_more_than_the_runs_and_all_of_it_is_used(seed):
    rng = random.Random(seed)
    window, most = rng.randrange(4, 200), rng.randrange(2, 5)
    limits, workers = SharedLimits(window, most), []
    for step in range(400):
        if len(workers) < most and rng.random() < 0.1:
            workers.append(Simulated(limits.first([one.process for one in workers]), rng, jobs=10**6))
        for one in workers:
            one.step()
        if step % 3 == 0:
            limits.deal([one.process for one in workers])
        assert sum(one.in_flight for one in workers) <= window
        assert sum(one.share.window for one in workers if one.ready) <= window
    assert window - most <= sum(one.window for one in workers) <= window
    # One that has nothing left to do leaves its part to the others.
    workers[0].jobs = 0
    for _ in range(400):
        for one in workers:
            one.step()
        limits.deal([one.process for one in workers])
        assert sum(one.in_flight for one in workers) <= window
    assert workers[0].window == 1
    assert window - most <= sum(one.window for one in workers) <= window


def test_the_first_worker_begins_with_an_equal_part_and_soon_has_all_if_it_stays_alone():
    limits, sent = SharedLimits(10, 4), []
    share = limits.first([])
    assert share == Share(3)
    worker = WorkerProcess(None, type("Channel", (), {"send": sent.append})(), share)
    limits.deal([worker])
    assert sent == [Share(10, part=4.0)]  # of four equal parts of the rates
    assert limits.first([worker]) == Share(0)
    worker.report = report(Demand(10, 10, 90, {MODEL: None}, {MODEL: 2.5}))
    limits.deal([worker])
    assert sent == [Share(10, part=4.0)]


def test_a_share_is_not_changed_again_before_the_worker_has_it():
    limits, sent = SharedLimits(10, 2), []
    channel = type("Channel", (), {"send": sent.append})()
    one, other = WorkerProcess(None, channel, Share(10, part=2.0)), WorkerProcess(None, channel, Share(0))
    busy = Demand(10, 10, 90, {MODEL: None}, {MODEL: None})
    one.report, other.report = report(busy), report(replace(busy, window=0, in_flight=0))
    limits.deal([one, other])
    assert sent == [Share(5)]  # by what they have to do: 100 and 90, and each has one place anyway
    limits.deal([one, other])
    assert len(sent) == 1
    one.report = report(replace(busy, window=5, in_flight=8))
    limits.deal([one, other])
    assert other.share.window == 2  # three calls too many of the first have not ended


def test_workers_keep_to_the_rates_of_the_run_together_however_many_there_are():
    limits = SharedLimits(100, 4)
    sent = {}

    class Channel:
        def __init__(self, name):
            self.send = lambda share: sent.update({name: share})

    workers = [WorkerProcess(None, Channel(name), Share(25)) for name in "abc"]
    for worker in workers:
        worker.report = report(Demand(25, 25, 100, {MODEL: None}, {MODEL: 25.0}))
    limits.deal(workers)
    assert sum(share.part for share in sent.values()) == pytest.approx(4.0)


class Silent:
    """A channel that keeps what is sent."""

    def __init__(self):
        self.sent = []

    def send(self, message):
        self.sent.append(message)


def test_where_few_calls_are_allowed_workers_that_make_none_are_soon_needless():
    limits, few = SharedLimits(16, 2), {MODEL: 2.5}
    caller, other = (WorkerProcess(None, Silent(), Share(8, part=1.0)) for _ in range(2))
    caller.report = report(Demand(8, 8, 30, {MODEL: None}, few))
    other.report = report(Demand(8, 8, 20, {MODEL: None}, few))
    limits.deal([caller, other])
    assert limits.few_calls
    assert (caller.share.window, other.share.window) == (8, 0)  # its calls are still in flight
    for in_flight in (5, 0):
        other.report = report(Demand(0, in_flight, 20, {MODEL: None}, few))
        for _ in range(NEEDED_DEALS - 1):
            limits.deal([caller, other])
            assert limits.needless([caller, other]) == []
    limits.deal([caller, other])
    assert limits.needless([caller, other]) == [other]
    caller.leaving = True  # nobody else would be left
    assert limits.needless([caller, other]) == []


def test_few_calls_remain_few_until_there_are_clearly_more():
    limits, learned = SharedLimits(16, 2), [9.0, 12.0, 16.0, 12.0, 9.0]
    caller, found = WorkerProcess(None, Silent(), Share(8)), []
    for per_s in learned:
        caller.report = report(Demand(16, 16, 30, {MODEL: per_s}))
        limits.deal([caller])
        found.append(limits.few_calls)
    assert found == [True, True, False, False, True]
    limits.deal([])
    assert not limits.few_calls
