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

Then four processes share one server that admits 40 calls a second in all, twice: each learning by itself, and with
``--rpm 2400 --workers 4``. ``warm`` is what they got together in the second half of the time, ``shares`` what each got,
as fractions of a quarter; ``refused`` counts the calls of that half, ``refused_all`` all of them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from benchmarks.figures import Figure, Goal, at_most, command_line, report
from llmdo.backends.engine.engine import Engine
from llmdo.backends.engine.jobs import Done
from llmdo.backends.engine.settings import CallSettings
from llmdo.backends.errors import EngineClosed
from llmdo.backends.limits.rates import NO_RATES, Rates
from llmdo.backends.limits.throttle import ModelLimits
from llmdo.backends.requests import ChatRequest, Message
from llmdo.backends.workers_ai.backend import WorkersAI
from llmdo.settings.environment import CloudflareAccount, cloudflare_account

MODEL = "@cf/meta/llama-3.3-70b-instruct-fp8-fast"
REQUEST = ChatRequest(MODEL, (Message("user", "What is the capital of France?"),), {"max_tokens": 20})
LATENCY_S = 0.2
WARM_S = 10.0
CHANCE_WARM_S = 20.0  # as in benchmarks.goodput: chance has to be told from a limit first
RATES = (5, 20, 100)
SHARED_PER_S = 40.0
PROCESSES = 4
READY = "ready\n"
LEARNING, DIVIDED = (
    f"{PROCESSES} processes on {SHARED_PER_S:g}/s, {how}" for how in ("each learning", "rates divided")
)


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


CHANCES = (Chance(0.05, 12), Chance(0.2, 12), Chance(0.05, 64, SHARED_PER_S))
WAYS = (Way("engine", 64, False), Way("fixed window of 64", 64, True), Way("no limiter", 512, True))
GOALS = {
    **{f"engine, {rate}/s: answered": Goal(0.98) for rate in RATES},
    **{f"engine, {rate}/s: answered at half the rate": Goal(0.95) for rate in RATES},
    **{f"engine, {rate}/s: refused": at_most(0.03) for rate in RATES},
    **{f"{chance.name}: answered": chance.goal for chance in CHANCES},
    f"{LEARNING}: answered": Goal(0.95),
    f"{LEARNING}: refused": at_most(0.05),
    f"{LEARNING}: smallest part": Goal(0.8),
    f"{LEARNING}: largest part": at_most(1.25),
}


class Server:
    """``llmdo local`` in a process of its own; see ``llmdo.local.faults`` for its faults."""

    def __init__(self, account: CloudflareAccount, url: str) -> None:
        self.account = account
        self._url = url

    def admit(self, per_s: float | None, refused: float = 0.0) -> None:
        """From now on, admits this many calls a second, and refuses a part of all calls by chance."""
        self._control("DELETE")
        if refused:
            self._control("POST", {"target": "ai", "probability": refused, "seed": 1, "status": 429, "code": 3040})
        if per_s:
            self._control("POST", {"target": "ai", "rate_per_s": per_s, "code": 3040})
        self._control("POST", {"target": "ai", "latency_s": LATENCY_S})

    def _control(self, method: str, body: dict[str, Any] | None = None) -> None:
        headers = {"authorization": f"Bearer {self.account.token}"}
        httpx.request(method, f"{self._url}/_faults", json=body, headers=headers, trust_env=False).raise_for_status()


@contextmanager
def server() -> Iterator[Server]:
    """Starts a server, which ends with the context."""
    with tempfile.TemporaryDirectory() as data:
        command = [sys.executable, "-m", "llmdo", "local", "--data", data, "--port", "0", "--model", "echo"]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
            try:
                while not (env := Path(data, "env")).exists():
                    assert process.poll() is None, "llmdo local did not start"
                    time.sleep(0.05)
                variables = dict(
                    line.removeprefix("export ").replace("'", "").split("=", 1) for line in env.read_text().splitlines()
                )
                account = CloudflareAccount(
                    variables["CLOUDFLARE_ACCOUNT_ID"],
                    variables["CLOUDFLARE_API_TOKEN"],
                    variables["CLOUDFLARE_BASE_URL"],
                )
                yield Server(account, variables["R2_ENDPOINT_URL"])
            finally:
                process.terminate()


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


def keep_busy(service: Server, way: Way, seconds: float) -> Called:
    """Calls for ``seconds``."""
    answered: list[float] = []
    failed: list[Done] = []

    def deliver(done: Done) -> None:
        if done.response:
            answered.append(time.monotonic() - begin)
        elif not isinstance(done.error, EngineClosed):
            failed.append(done)

    engine = Engine(CallSettings(way.window, fixed=way.fixed), lambda _: WorkersAI(service.account))
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
    with server() as service:
        service.admit(rate)
        halve = threading.Timer(seconds, service.admit, [rate / 2])
        halve.start()
        try:
            called = keep_busy(service, way, 2 * seconds)
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
    with server() as service:
        service.admit(chance.per_s, chance.part)
        called = keep_busy(service, Way("engine", chance.window, False), seconds)
    possible = chance.per_s or chance.window / LATENCY_S
    warm = called.share(min(CHANCE_WARM_S, seconds / 2), seconds, possible)
    return {"benchmark": "limits", "name": chance.name, "seconds": seconds, "warm": warm, **called.counts}


def work(seconds: float, rates: Rates) -> dict[str, int]:
    """One of several processes: calls for ``seconds``, and counts the second half (``calls_all`` etc.: all)."""
    answered = 0

    def deliver(done: Done) -> None:
        nonlocal answered
        answered += done.response is not None

    engine = Engine(CallSettings(WAYS[0].window, rates=rates), lambda _: WorkersAI(cloudflare_account()))
    begin, before = time.monotonic(), None
    try:
        while (now := time.monotonic() - begin) < seconds:
            if engine.wait_for_room(0.1):
                engine.submit("workers-ai", REQUEST, deliver, wait=False)
            if before is None and now >= seconds / 2:
                before = (answered, *_called(engine))
        after = (answered, *_called(engine))
    finally:
        engine.close()
    found = dict(
        zip(("answered", "calls", "refused"), (a - b for a, b in zip(after, before or after, strict=True)), strict=True)
    )
    return {**found, "calls_all": after[1], "refused_all": after[2]}


def _called(engine: Engine) -> tuple[int, int]:
    (limits,) = engine.limits()
    return limits.calls, limits.refused


def share(name: str, seconds: float, processes: int = PROCESSES, rpm: float | None = None) -> dict[str, Any]:
    """Makes several processes call one server, starting at the same moment."""
    command = [sys.executable, "-m", "benchmarks.limits", "--seconds", str(seconds), "--one-of", str(processes)]
    with server() as service, ExitStack() as stack:
        service.admit(SHARED_PER_S)
        account = service.account
        env = os.environ | {
            "CLOUDFLARE_ACCOUNT_ID": account.account_id,
            "CLOUDFLARE_API_TOKEN": account.token,
            "CLOUDFLARE_BASE_URL": account.base_url,
        }
        command += ["--rpm", str(rpm)] if rpm else []
        pipe = subprocess.PIPE
        started = [
            stack.enter_context(subprocess.Popen(command, env=env, stdin=pipe, stdout=pipe, text=True))
            for _ in range(processes)
        ]
        for process in started:
            assert process.stdout and process.stdout.readline() == READY, "a process did not start"
        for process in started:
            assert process.stdin
            process.stdin.write("\n")
            process.stdin.flush()
        each = [json.loads(process.communicate()[0]) for process in started]
    return {
        "benchmark": "limits",
        "name": name,
        "admitted_per_s": SHARED_PER_S,
        "seconds": seconds,
        "warm": round(sum(one["answered"] for one in each) / (seconds / 2) / SHARED_PER_S, 3),
        "shares": [round(one["answered"] / (seconds / 2) / SHARED_PER_S * processes, 2) for one in each],
        "refused": _part(each, "refused", "calls"),
        "refused_all": _part(each, "refused_all", "calls_all"),
    }


def _part(each: Sequence[dict[str, int]], some: str, of: str) -> float:
    return round(sum(one[some] for one in each) / max(1, sum(one[of] for one in each)), 4)


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


def run_shared(seconds: float) -> list[dict[str, Any]]:
    """Measures processes that share a limit, and prints the results."""
    results = []
    for name, rpm in ((LEARNING, None), (DIVIDED, 60 * SHARED_PER_S)):
        results.append(share(name, seconds, rpm=rpm))
        print(json.dumps(results[-1]), flush=True)
    return results


def main() -> None:
    """The command."""
    parser = command_line(__doc__, "limits")
    parser.add_argument("--seconds", type=float, default=60.0, help="at each rate, and again at its half")
    parser.add_argument("--one-of", type=int, help=argparse.SUPPRESS)  # what the processes of `share` are told
    parser.add_argument("--rpm", type=float, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one_of:
        rates = Rates(rpm=chosen.rpm).shared_by(chosen.one_of) if chosen.rpm else NO_RATES
        print(READY, end="", flush=True)
        sys.stdin.readline()
        print(json.dumps(work(chosen.seconds, rates)))
        return
    alone = run(RATES[1:2] if chosen.quick else RATES, 3.0 if chosen.quick else chosen.seconds)
    by_chance = run_chances(CHANCES[:1] if chosen.quick else CHANCES, 6.0 if chosen.quick else chosen.seconds)
    shared = run_shared(6.0 if chosen.quick else 2 * chosen.seconds)
    report("limits", figures(alone, by_chance, shared), GOALS, quick=chosen.quick)


def figures(
    alone: Sequence[dict[str, Any]], by_chance: Sequence[dict[str, Any]], shared: Sequence[dict[str, Any]]
) -> Iterator[Figure]:
    """The fractions that were answered, and the parts that were refused."""
    for row in by_chance:
        yield Figure(f"{row['name']}: answered", row["warm"])
        yield Figure(f"{row['name']}: refused", row["refused"])
    for row in alone:
        name = f"{row['name']}, {row['admitted_per_s']:g}/s"
        yield Figure(f"{name}: answered", row["warm"])
        yield Figure(f"{name}: answered at half the rate", row["found"])
        yield Figure(f"{name}: refused", row["refused"])
    for row in shared:
        yield Figure(f"{row['name']}: answered", row["warm"])
        yield Figure(f"{row['name']}: refused", row["refused"])
        yield Figure(f"{row['name']}: smallest part", min(row["shares"]))
        yield Figure(f"{row['name']}: largest part", max(row["shares"]))


if __name__ == "__main__":
    main()
