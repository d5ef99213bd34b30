"""Several processes that share one service's limit and know nothing of each other, on a fake clock: one engine each."""

from __future__ import annotations

import asyncio
import random

import pytest

from llmdo.backends.engine.jobs import Job, Reservation
from llmdo.backends.limits.rates import NO_RATES, Rates
from tests.backends.engine.limited import REQUEST, Bucket, Service, dispatch
from tests.backends.fake_clock import run

RATE, PROCESSES = 40.0, 4
SHARE = RATE / PROCESSES
MINUTE = 60.0


class Processes:
    """A process for each time in ``starts`` (seconds), all busy until the end, and what the service saw of each."""

    def __init__(self, policy, starts, seconds, *, ends=None, seed=0, rates=NO_RATES):
        self._draw = draw = random.Random(seed)
        self.services = [Service(policy, lambda: 0.2 * draw.lognormvariate(-0.125, 0.5)) for _ in starts]
        run(self._all(starts, ends or [seconds] * len(starts), rates))

    async def _all(self, starts, ends, rates):
        now = asyncio.get_running_loop().time()
        for service in self.services:
            service.begin = now
        each = zip(self.services, starts, ends, strict=True)
        await asyncio.gather(*(self._one(service, start, now + end, rates) for service, start, end in each))

    async def _one(self, service, start, end, rates):
        loop = asyncio.get_running_loop()
        await asyncio.sleep(start)

        def free(place):
            if loop.time() < end:
                loop.call_soon(lambda: work.add([job()]))

        def job():
            return Job("fake", REQUEST, lambda *_: None, Reservation(1))

        work = dispatch(service, loop, free, rates=rates)
        work._random.seed(self._draw.random())  # else the waits between tries differ from run to run
        work.add([job() for _ in range(128)])
        await asyncio.sleep(end - loop.time())
        await work.cancel()

    def shares(self, begin, end, of):
        """What each was answered a second, in parts of ``of``."""
        return [service.answered_per_s(begin, end) / of for service in self.services]

    @property
    def refused_part(self):
        """Of all calls."""
        return sum(len(each.refused) for each in self.services) / sum(len(each.starts) for each in self.services)


@pytest.mark.fast("0")
@pytest.mark.parametrize("seed", range(5))
def test_four_processes_on_one_bucket_use_it_up_and_none_gets_less_than_half_of_its_share(seed):
    draw = random.Random(seed)
    processes = Processes(Bucket(lambda now: RATE), [draw.random() for _ in range(PROCESSES)], 220, seed=seed)
    assert sum(processes.shares(20, 220, of=RATE)) >= 0.95
    for begin in (140, 180):
        shares = processes.shares(begin, begin + 40, of=SHARE)
        assert sum(shares) / PROCESSES >= 0.9, (begin, shares)
        assert min(shares) >= 0.5, (begin, shares)
    assert processes.refused_part <= 0.05


@pytest.mark.fast("0")
@pytest.mark.parametrize("seed", range(3))
def test_a_process_that_comes_late_gets_its_part_of_a_service_that_others_have_used_up(seed):
    processes = Processes(Bucket(lambda now: RATE), [0, 5, 10, 20], 6 * MINUTE, seed=seed)
    shares = processes.shares(5 * MINUTE, 6 * MINUTE, of=SHARE)
    assert sum(shares) / PROCESSES >= 0.9
    assert min(shares) >= 0.5, shares
    assert processes.refused_part <= 0.05


def test_what_a_process_that_ends_leaves_is_taken_by_the_others():
    processes = Processes(Bucket(lambda now: RATE), [0.0, 0.1], 4 * MINUTE, ends=[2 * MINUTE, 4 * MINUTE])
    ended, other = processes.shares(3 * MINUTE, 4 * MINUTE, of=RATE)
    assert (ended, other) == (0.0, pytest.approx(1.0, abs=0.05))


@pytest.mark.fast("5.0-4-0.4")
@pytest.mark.parametrize(("rate", "count", "refused"), [(5.0, 4, 0.4), (40.0, 8, 0.15)])
def test_more_processes_than_a_service_has_room_for_do_not_drive_each_other_into_refusals(rate, count, refused):
    processes = Processes(Bucket(lambda now: rate), [0.1 * n for n in range(count)], 5 * MINUTE)
    assert sum(processes.shares(MINUTE, 5 * MINUTE, of=rate)) >= 0.9
    assert processes.refused_part <= refused


def test_workers_that_divide_a_rate_are_refused_nothing_and_each_gets_its_part():
    of_each = Rates(rpm=60 * RATE).shared_by(PROCESSES)
    processes = Processes(Bucket(lambda now: RATE), [0.0, 0.1, 0.2, 0.3], MINUTE, rates=of_each)
    assert processes.refused_part == 0.0
    assert processes.shares(10, MINUTE, of=SHARE) == [pytest.approx(1.0, abs=0.03)] * PROCESSES
