"""Goodput when the service admits fewer calls than it is sent. Prints one JSON object a line.

    python -m benchmarks.limits [--quick] [--seconds 60]

`llmdo local`, in a process of its own, answers after 0.2 s and admits R calls a second (a token bucket, one second
deep); the rest it refuses at once with 429 and code 3040, without Retry-After. The caller does not know R, and R halves
halfway. Three contestants, at the same time and each with a server of its own, always have a call ready: the engine,
the engine with a fixed window of 64, and one without a limiter (a fixed window of 512). All three retry a refused call
up to 20 times, with the same back-off.

``warm``: answers a second after the first 10 s, as a fraction of R; ``found``: the same for the half rate, from 10 s
after it halved; ``refused``: the share of all calls that were refused; ``failed``: requests without an answer.

Then the engine calls three servers that refuse some calls by chance, with the same code, after 0.2 s; one of them has a
bucket as well. ``warm`` is what it is answered, as a fraction of the bucket's rate, or of what its window could do
without refusals, from 20 s after the start.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from benchmarks.reporting.figures import Figure, Goal, at_most, command_line, report
from benchmarks.servers.local_cloudflare import LocalCloudflare, started_cloudflare
from benchmarks.ways.measuring import MODEL
from llmdo.backends.engine.engine import Engine
from llmdo.backends.engine.jobs import Done
from llmdo.backends.engine.settings import CallSettings
from llmdo.backends.errors import EngineClosed
from llmdo.backends.limits.throttle import ModelLimits
from llmdo.backends.requests import ChatRequest, Message
from llmdo.backends.workers_ai.backend import WorkersAI

REQUEST = ChatRequest(MODEL, (Message("user", "What is the capital of France?"),), {"max_tokens": 20})
LATENCY_S = 0.2
WARM_S = 10.0
CHANCE_WARM_S = 20.0  # as in benchmarks.goodput: chance has to be told from a limit first
RATES = (5, 20, 100)
_FAULT = {"target": "ai", "code": 3040}


@dataclass(frozen=True, slots=True)
class Way:
    """One way to call: the engine's window, and whether it is fixed."""

    name: str
    window: int
    fixed: bool


@dataclass(frozen=True, slots=True)
class Chance:
    """A service that refuses a part of the calls by chance, and admits ``per_s`` of the others, or all."""

    part: float
    window: int
    per_s: float | None = None

    @property
    def name(self) -> str:
        """In the names of figures."""
        limit = f", bucket of {self.per_s:g}/s" if self.per_s else ""
        return f"engine, {self.part:.0%} refused by chance, window of {self.window}{limit}"

    @property
    def goal(self) -> Goal:
        """For the answers, as a fraction of what the bucket admits, or of what the window could do unrefused."""
        return Goal(0.9 if self.per_s else round(0.9 * (1 - self.part), 3))


CHANCES = (Chance(0.05, 12), Chance(0.2, 12), Chance(0.05, 64, per_s=40.0))
WAYS = (Way("engine", 64, False), Way("fixed window of 64", 64, True), Way("no limiter", 512, True))
GOALS = {
    **{f"engine, {rate}/s: answered": Goal(0.98) for rate in RATES},
    **{f"engine, {rate}/s: answered at half the rate": Goal(0.95) for rate in RATES},
    **{f"engine, {rate}/s: refused": at_most(0.03) for rate in RATES},
    **{f"{chance.name}: answered": chance.goal for chance in CHANCES},
}


def admit(server: LocalCloudflare, per_s: float | None, refused: float = 0.0) -> None:
    """From now on the server admits this many calls a second, and refuses a part of all calls by chance."""
    server.control("DELETE", "/_faults")
    if refused:
        server.control("POST", "/_faults", _FAULT | {"probability": refused, "seed": 1, "status": 429})
    if per_s:
        server.control("POST", "/_faults", _FAULT | {"rate_per_s": per_s})
    server.control("POST", "/_faults", {"target": "ai", "latency_s": LATENCY_S})


@dataclass(frozen=True, slots=True)
class Called:
    """What came of calls that were always ready.

    Attributes:
        answered: when each answer came, in seconds since the start.
        failed: requests without an answer.
    """

    answered: list[float]
    failed: int
    limits: ModelLimits

    def share(self, start: float, stop: float, of: float) -> float:
        """Answers a second between two moments, as a fraction of ``of``."""
        return round(sum(start <= moment < stop for moment in self.answered) / (stop - start) / of, 3)

    @property
    def counts(self) -> dict[str, Any]:
        """For the row."""
        return {
            "calls": self.limits.calls,
            "refused": round(self.limits.refused / self.limits.calls, 4),
            "failed": self.failed,
            "changes": len(self.limits.changes),
        }


def keep_busy(server: LocalCloudflare, way: Way, seconds: float) -> Called:
    """Calls for ``seconds``."""
    answered: list[float] = []
    failed: list[Done] = []

    def deliver(done: Done) -> None:
        if done.response:
            answered.append(time.monotonic() - begin)
        elif not isinstance(done.error, EngineClosed):
            failed.append(done)

    engine = Engine(CallSettings(way.window, fixed=way.fixed), lambda _: WorkersAI(server.account))
    begin = time.monotonic()
    try:
        while time.monotonic() - begin < seconds:
            if engine.wait_for_room(0.1):
                engine.submit("workers-ai", REQUEST, deliver, wait=False)
        (limits,) = engine.limits()
    finally:
        engine.close()
    return Called(answered, len(failed), limits)


def measure(way: Way, rate: float, seconds: float) -> dict[str, Any]:
    """Calls for ``seconds`` at the rate, and for as long at half of it."""
    with started_cloudflare() as server:
        admit(server, rate)
        halve = threading.Timer(seconds, admit, [server, rate / 2])
        halve.start()
        try:
            called = keep_busy(server, way, 2 * seconds)
        finally:
            halve.join()
    warm = min(WARM_S, seconds / 2)
    return {
        "benchmark": "limits",
        "name": way.name,
        "admitted_per_s": rate,
        "seconds": 2 * seconds,
        "warm": called.share(warm, seconds, rate),
        "found": called.share(seconds + warm, 2 * seconds, rate / 2),
        **called.counts,
    }


def measure_chance(chance: Chance, seconds: float) -> dict[str, Any]:
    """Calls a service that refuses some calls by chance."""
    with started_cloudflare() as server:
        admit(server, chance.per_s, chance.part)
        called = keep_busy(server, Way("engine", chance.window, False), seconds)
    possible = chance.per_s or chance.window / LATENCY_S
    warm = called.share(min(CHANCE_WARM_S, seconds / 2), seconds, possible)
    return {"benchmark": "limits", "name": chance.name, "seconds": seconds, "warm": warm, **called.counts}


def run(rates: Sequence[float], seconds: float, ways: Sequence[Way] = WAYS) -> list[dict[str, Any]]:
    """Measures all ways at each rate and prints the results."""
    results = []
    with ThreadPoolExecutor(len(ways)) as pool:
        for rate in rates:
            for result in pool.map(lambda way: measure(way, rate, seconds), ways):  # noqa: B023 - it ends in this round
                print(json.dumps(result), flush=True)
                results.append(result)
    return results


def run_chances(chances: Sequence[Chance], seconds: float) -> list[dict[str, Any]]:
    """Measures the engine with services that refuse by chance, at the same time, and prints the results."""
    with ThreadPoolExecutor(len(chances)) as pool:
        results = list(pool.map(lambda chance: measure_chance(chance, seconds), chances))
    for result in results:
        print(json.dumps(result), flush=True)
    return results


def main() -> None:
    """The command."""
    parser = command_line(__doc__, "limits")
    parser.add_argument("--seconds", type=float, default=60.0, help="at each rate, and again at its half")
    chosen = parser.parse_args()
    alone = run(RATES[1:2] if chosen.quick else RATES, 3.0 if chosen.quick else chosen.seconds)
    by_chance = run_chances(CHANCES[:1] if chosen.quick else CHANCES, 6.0 if chosen.quick else chosen.seconds)
    report("limits", figures(alone, by_chance), GOALS, quick=chosen.quick)


def figures(alone: Sequence[dict[str, Any]], by_chance: Sequence[dict[str, Any]]) -> Iterator[Figure]:
    """The fractions that were answered, and the parts that were refused."""
    for row in by_chance:
        yield Figure(f"{row['name']}: answered", row["warm"])
        yield Figure(f"{row['name']}: refused", row["refused"])
    for row in alone:
        name = f"{row['name']}, {row['admitted_per_s']:g}/s"
        yield Figure(f"{name}: answered", row["warm"])
        yield Figure(f"{name}: answered at half the rate", row["found"])
        yield Figure(f"{name}: refused", row["refused"])


if __name__ == "__main__":
    main()
