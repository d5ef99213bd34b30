"""Processes that share a service's limits on a fake clock: shares are dealt every half second by what they report."""

import asyncio
import random
from dataclasses import replace

from llmdo.backends.engine.jobs import Job, Reservation
from llmdo.backends.limits.shares import Share, deal_shares
from tests.backends.engine.limited import REQUEST, Service, dispatch
from tests.backends.fake_clock import run

EVERY_S, LAG_S = 0.5, 0.05  # between reports; until a message arrives, at most


class Shared:
    """What became of ``len(services)`` processes.

    Attributes:
        windows: the windows that were dealt, at each time.
        most: calls in flight together, at most.
    """

    def __init__(self, policy, processes, seed):
        self.random = random.Random(seed)
        self.services = [Service(policy, self.latency) for _ in range(processes)]
        self.windows = []
        self.most = 0

    def latency(self):
        self.most = max(self.most, sum(service.in_flight for service in self.services))
        return 0.2 * self.random.lognormvariate(-0.125, 0.5)

    def answered_per_s(self, start, stop):
        """Of each process."""
        return [service.answered_per_s(start, stop) for service in self.services]

    @property
    def refused_part(self):
        return sum(len(one.refused) for one in self.services) / sum(len(one.starts) for one in self.services)


def keep_busy_by_demand(policy, seconds, demand, seed, *, processes=4, window=64, deal=True, **settings):
    """Keeps ``demand(process, now) * 2 * window`` jobs in each process."""
    shared = Shared(policy, processes, seed)

    async def scenario():
        loop = asyncio.get_running_loop()
        begin = loop.time()
        works = [
            _process(shared, at, begin, demand, 2 * window, window // processes, settings) for at in range(processes)
        ]
        tasks = [loop.create_task(_fill(works))]
        if deal:
            tasks.append(loop.create_task(_deal(shared, begin, [work for work, _ in works], window)))
        await asyncio.sleep(seconds)
        for task in tasks:
            task.cancel()
        for work, _ in works:
            await work.cancel()

    run(scenario())
    return shared


def _process(shared, at, begin, demand, most, window, settings):
    loop, held = asyncio.get_running_loop(), 0
    shared.services[at].begin = begin

    def free(_):
        nonlocal held
        held -= 1
        loop.call_soon(fill)

    def fill():
        nonlocal held
        while held < int(most * demand(at, loop.time() - begin)):
            held += 1
            work.add([Job("fake", REQUEST, lambda *_: None, Reservation(1))])

    work = dispatch(shared.services[at], loop, free, window=window, seed=shared.random.random(), **settings)
    return work, fill


async def _fill(works):
    while True:
        for _, fill in works:
            fill()
        await asyncio.sleep(0.1)


async def _deal(shared, begin, works, window):
    loop, sent = asyncio.get_running_loop(), [Share(window // len(works))] * len(works)
    while True:
        await asyncio.sleep(EVERY_S)
        reports = [work.demand() for work in works]
        await asyncio.sleep(shared.random.random() * LAG_S)
        known = zip(reports, sent, strict=True)
        sent = deal_shares(window, [replace(one, window=max(one.window, before.window)) for one, before in known])
        shared.windows.append((loop.time() - begin, [share.window for share in sent]))
        await asyncio.sleep(shared.random.random() * LAG_S)
        for work, share in zip(works, sent, strict=True):
            work.set_share(share)
