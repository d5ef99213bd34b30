"""What the limits make of services that refuse calls, on a fake clock. Prints one JSON object a line.

    python -m benchmarks.goodput [--quick] [--seeds 20] [--only bucket]

The engine's dispatcher, with its real limits and retries, always has a call ready; calls take 0.2 s, refusals 5 ms. A
service is a token bucket, or runs a number of calls at once, or refuses a part of the calls by chance. ``worst`` and
``median`` are over the seeds: of the answers a second, as a share of what the service admits (by chance: of what the
window could do without refusals; at once: the part of the service's places that is in use). ``goal`` is what the worst
seed has to reach, ``refused`` the largest part refused.
"""

from __future__ import annotations

import asyncio
import json
import random
import statistics
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice

from benchmarks.reporting.figures import Figure, Goal, at_most, command_line, report
from tests.backends.engine.limited import Bucket, Capacity, Capricious, Service, keep_busy, keep_busy_together

LATENCY_S = 0.2
WARM_S = 20.0
SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Case:
    """A service, what one seed makes of it (share, part refused), and the goals for both."""

    name: str
    run: Callable[[int], tuple[float, float]]
    goal: float
    most_refused: float = 1.0


def _any_length(seed: int) -> Callable[[], float]:
    lengths = random.Random(seed)
    return lambda: LATENCY_S * lengths.lognormvariate(-0.125, 0.5)


def by_chance(part: float, window: int, seed: int) -> tuple[float, float]:
    """A part of the calls is refused by chance."""
    service = Service(Capricious(part, seed))
    keep_busy(service, SECONDS, window=window, seed=seed)
    return service.answered_per_s(WARM_S, SECONDS) / (window / LATENCY_S), service.refused_part


def bucket(rate: float, deep_s: float, refuses_s: float, seed: int) -> tuple[float, float]:
    """A token bucket."""
    service = Service(Bucket(lambda _: rate, deep_s), _any_length(seed), refuses_s=refuses_s)
    keep_busy(service, SECONDS, seed=seed)
    return service.answered_per_s(WARM_S, SECONDS) / rate, service.refused_part


def changed(rate: float, factor: float, after_s: float, seed: int) -> tuple[float, float]:
    """A token bucket whose rate changes after a minute; the answers in 10 s from ``after_s`` after that on."""
    service = Service(Bucket(lambda now: rate if now < 60 else factor * rate))
    keep_busy(service, SECONDS, seed=seed)
    return service.answered_per_s(60 + after_s, 70 + after_s) / (factor * rate), service.refused_part


def at_once(most: int, seed: int) -> tuple[float, float]:
    """A service that runs a number of calls at once: the part of its places that is in use."""
    length, calls = _any_length(seed), []

    def admitted() -> float:
        begins = asyncio.get_running_loop().time() - service.begin
        calls.append((begins, begins + length()))
        return calls[-1][1] - begins

    service = Service(Capacity(most), admitted)
    keep_busy(service, SECONDS, seed=seed)
    busy_s = sum(max(0.0, min(end, SECONDS) - max(begin, WARM_S)) for begin, end in calls)
    return busy_s / (SECONDS - WARM_S) / most, service.refused_part


def both(part: float, rate: float, seed: int) -> tuple[float, float]:
    """A token bucket, and a part refused by chance before it."""
    service = Service(Capricious(part, seed, Bucket(lambda _: rate)))
    keep_busy(service, SECONDS, seed=seed)
    return service.answered_per_s(WARM_S, SECONDS) / rate, service.refused_part


def shared(callers: int, rate: float, what: str, seed: int) -> tuple[float, float]:
    """Several processes on one bucket: what they use of it, the smallest part of one, or the largest."""
    policy = Bucket(lambda _: rate)
    services = [Service(policy) for _ in range(callers)]
    keep_busy_together(services, 240.0, seed)
    parts = [service.answered_per_s(60, 240) / rate for service in services]
    figures = {"used": sum(parts), "smallest": min(parts) * callers, "largest": 2 - max(parts) * callers}
    refused = sum(len(service.refused) for service in services) / sum(len(service.starts) for service in services)
    return figures[what], refused


def cases() -> Iterator[Case]:
    """All cases, with the goals."""
    for part in (0.01, 0.05, 0.2, 0.4):
        for window in (12, 64, 256):
            name = f"{part:.0%} by chance, window {window}"
            yield Case(name, partial(by_chance, part, window), 0.9 * (1 - part))
    for rate in (5, 20, 100, 300):
        yield Case(f"bucket of {rate}/s", partial(bucket, rate, 1.0, 0.005), 0.98, 0.03)
    for rate in (20, 100):
        yield Case(f"bucket of {rate}/s, 0.1 s deep", partial(bucket, rate, 0.1, 0.005), 0.95, 0.03)
        yield Case(f"bucket of {rate}/s, refuses after 0.1 s", partial(bucket, rate, 1.0, 0.1), 0.98, 0.06)
    for rate in (20, 100):
        yield Case(f"bucket of {rate}/s that halves, 10 s later", partial(changed, rate, 0.5, 10), 0.95, 0.03)
    for rate in (23, 40):
        yield Case(
            f"bucket of {rate}/s, then four times as much, 10 s later", partial(changed, rate, 4, 10), 0.95, 0.03
        )
    for most in (1, 2, 3, 6, 10, 40):
        yield Case(f"{most} calls at once", partial(at_once, most), 0.95, 0.03)
    yield Case("bucket of 40/s and 5% by chance", partial(both, 0.05, 40), 0.9)
    for what, goal in (("used", 0.95), ("smallest", 0.8), ("largest", 0.75)):
        yield Case(f"4 processes on 40/s, {what}", partial(shared, 4, 40, what), goal, 0.05)


GOALS = {case.name: Goal(round(case.goal, 3)) for case in cases()} | {
    f"{case.name}: refused": at_most(case.most_refused) for case in cases() if case.most_refused < 1
}


def main() -> None:
    """The command."""
    parser = command_line(__doc__, "goodput")
    parser.add_argument("--seeds", type=int, default=20, help="runs of each case (20)")
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    arguments = parser.parse_args()
    seeds, step = (1, 4) if arguments.quick else (arguments.seeds, 1)
    figures = []
    with ProcessPoolExecutor() as pool:
        for case in islice(cases(), 0, None, step):
            if arguments.only in case.name:
                shares, refused = zip(*pool.map(case.run, range(seeds)), strict=True)
                row = {
                    "worst": round(min(shares), 3),
                    "median": round(statistics.median(shares), 3),
                    "refused": round(max(refused), 4),
                }
                print(json.dumps({"benchmark": "goodput", "case": case.name, "seeds": seeds, **row}), flush=True)
                figures += [Figure(case.name, row["worst"]), Figure(f"{case.name}: refused", row["refused"])]
    report("goodput", figures, GOALS, quick=arguments.quick)


if __name__ == "__main__":
    main()
