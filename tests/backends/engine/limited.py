"""Services that refuse calls, as providers on a fake clock: by a rate, by a number of calls at once, or by chance."""

import asyncio
import random

from llmdo.backends.connections import Connections
from llmdo.backends.engine.dispatch import Dispatcher
from llmdo.backends.engine.jobs import Job, Reservation
from llmdo.backends.engine.settings import CallSettings
from llmdo.backends.errors import Overloaded
from llmdo.backends.limits.retry import Retry
from llmdo.backends.requests import ChatRequest, Message
from llmdo.backends.responses import ChatResponse
from llmdo.backends.usage import Usage
from tests.backends.fake_clock import run


class Bucket:
    """Admits ``rate(seconds since the first call)`` calls a second; one second deep unless said."""

    def __init__(self, rate, deep_s=1.0):
        self.rate, self.deep_s = rate, deep_s
        self.last, self.left = 0.0, max(1.0, rate(0.0) * deep_s)

    def admits(self, now):
        rate = self.rate(now)
        self.left = min(max(1.0, rate * self.deep_s), self.left + (now - self.last) * rate)
        self.last = now
        if self.left < 1:
            return False
        self.left -= 1
        return True

    def ended(self):
        pass


class Capacity:
    """Runs at most ``most`` calls at once."""

    def __init__(self, most):
        self.left = most

    def admits(self, now):
        if not self.left:
            return False
        self.left -= 1
        return True

    def ended(self):
        self.left += 1


class Capricious:
    """Refuses a part of the calls at random, and passes the others on to another policy, if there is one."""

    def __init__(self, part, seed, then=None):
        self.part, self.random, self.then = part, random.Random(seed), then

    def admits(self, now):
        return self.random.random() >= self.part and (self.then is None or self.then.admits(now))

    def ended(self):
        if self.then:
            self.then.ended()


class Service:
    """Stands for a provider: answers what its policy admits after ``latency()``, refuses others after ``refuses_s``."""

    name = "fake"

    def __init__(self, policy, latency=lambda: 0.2, refuses_s=0.005, error=lambda: Overloaded("full", code=3040)):
        self.policy, self.latency, self.refuses_s, self.error = policy, latency, refuses_s, error
        self.begin = None
        self.starts, self.answered, self.refused = [], [], []
        self.in_flight = self.most = 0

    async def execute(self, request):
        now = asyncio.get_running_loop().time()
        self.begin = now if self.begin is None else self.begin
        self.starts.append(now - self.begin)
        if not self.policy.admits(now - self.begin):
            await asyncio.sleep(self.refuses_s)
            self.refused.append(asyncio.get_running_loop().time() - self.begin)
            raise self.error()
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        await asyncio.sleep(self.latency())
        self.in_flight -= 1
        self.policy.ended()
        self.answered.append(asyncio.get_running_loop().time() - self.begin)
        return ChatResponse("x", "stop", Usage(10, 5), request.model)

    def answered_per_s(self, start, stop):
        return sum(start <= moment < stop for moment in self.answered) / (stop - start)

    @property
    def refused_part(self):
        return len(self.refused) / len(self.starts)


def dispatch(service, loop, free, *, window=64, retry=None, call_timeout_s=1e6, seed=1, **settings):
    settings = CallSettings(window, retry=retry or Retry(refusals=1000), call_timeout_s=call_timeout_s, **settings)
    made = Dispatcher(loop, Connections(lambda _: service), settings, None, free, lambda place: None, lambda jobs: None)
    made._random.seed(seed)  # else the waits between tries, and with them the figures, differ from run to run
    return made


REQUEST = ChatRequest("m", (Message("user", "x" * 400),))


def feed(service, end, request=REQUEST, window=64, **settings):
    """A dispatcher that has 2 * window jobs waiting until ``end``."""
    loop = asyncio.get_running_loop()

    def free(place):
        if loop.time() < end:
            loop.call_soon(lambda: work.add([job()]))

    def job():
        return Job("fake", request, lambda *_: None, Reservation(1))

    work = dispatch(service, loop, free, window=window, **settings)
    work.add([job() for _ in range(2 * window)])
    return work


def keep_busy(service, seconds, **settings):
    """Feeds a service for ``seconds``; returns the dispatcher, as it was then."""

    async def scenario():
        work = feed(service, asyncio.get_running_loop().time() + seconds, **settings)
        await asyncio.sleep(seconds)
        await work.cancel()
        return work

    return run(scenario())


def keep_busy_together(services, seconds, seed):
    """Feeds several services, which may share a policy, by a dispatcher each; they begin within two seconds."""
    chance = random.Random(seed)

    async def scenario():
        begin = asyncio.get_running_loop().time()
        works = []
        for service in services:
            service.begin = begin
            works.append(feed(service, begin + seconds, seed=chance.random()))
            await asyncio.sleep(2 * chance.random())
        await asyncio.sleep(begin + seconds - asyncio.get_running_loop().time())
        for work in works:
            await work.cancel()

    run(scenario())
