"""Processes that share one limit of the service. Prints one JSON object a line.

    python -m benchmarks.shared_limit [--quick] [--seconds 120]

`llmdo local`, in a process of its own, answers after 0.2 s and admits 40 calls a second in all, as in
``benchmarks.limits``. Four processes that always have a call ready share it, twice: each learning by itself, and with
``--rpm 2400 --workers 4``. ``answered`` is what they got together in the second half of the time, as a fraction of what
the server admits, ``shares`` what each got, as fractions of a quarter; ``refused`` is the part of the calls of that
half, ``refused_all`` of all of them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

from benchmarks.limits import REQUEST, admit
from benchmarks.reporting.figures import Figure, Goal, at_most, command_line, report
from benchmarks.servers.local_cloudflare import started_cloudflare
from llmdo.backends.engine.engine import Engine
from llmdo.backends.engine.jobs import Done
from llmdo.backends.engine.settings import CallSettings
from llmdo.backends.limits.rates import NO_RATES, Rates
from llmdo.backends.workers_ai.backend import WorkersAI
from llmdo.settings.environment import cloudflare_account

PER_S = 40.0
PROCESSES = 4
WINDOW = 64
READY = "ready\n"
LEARNING, DIVIDED = (f"{PROCESSES} processes on {PER_S:g}/s, {how}" for how in ("each learning", "rates divided"))
GOALS = {
    f"{LEARNING}: answered": Goal(0.95),
    f"{LEARNING}: refused": at_most(0.05),
    f"{LEARNING}: smallest part": Goal(0.8),
    f"{LEARNING}: largest part": at_most(1.25),
}


def work(seconds: float, rates: Rates) -> dict[str, int]:
    """One of several processes: calls for ``seconds``, and counts the second half (``calls_all`` etc.: all)."""
    answered = 0

    def deliver(done: Done) -> None:
        nonlocal answered
        answered += done.response is not None

    engine = Engine(CallSettings(WINDOW, rates=rates), lambda _: WorkersAI(cloudflare_account()))
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
    command = [sys.executable, "-m", "benchmarks.shared_limit", "--seconds", str(seconds), "--one-of", str(processes)]
    with started_cloudflare() as server, ExitStack() as stack:
        admit(server, PER_S)
        env = os.environ | server.env
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
        "benchmark": "shared_limit",
        "name": name,
        "admitted_per_s": PER_S,
        "seconds": seconds,
        "answered": round(sum(one["answered"] for one in each) / (seconds / 2) / PER_S, 3),
        "shares": [round(one["answered"] / (seconds / 2) / PER_S * processes, 2) for one in each],
        "refused": _part(each, "refused", "calls"),
        "refused_all": _part(each, "refused_all", "calls_all"),
    }


def _part(each: Sequence[dict[str, int]], some: str, of: str) -> float:
    return round(sum(one[some] for one in each) / max(1, sum(one[of] for one in each)), 4)


def run(seconds: float) -> list[dict[str, Any]]:
    """Measures processes that share a limit, and prints the results."""
    results = []
    for name, rpm in ((LEARNING, None), (DIVIDED, 60 * PER_S)):
        results.append(share(name, seconds, rpm=rpm))
        print(json.dumps(results[-1]), flush=True)
    return results


def main() -> None:
    """The command."""
    parser = command_line(__doc__, "shared_limit")
    parser.add_argument("--seconds", type=float, default=120.0, help="of which the second half counts")
    parser.add_argument("--one-of", type=int, help=argparse.SUPPRESS)  # what the processes of `share` are told
    parser.add_argument("--rpm", type=float, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one_of:
        rates = Rates(rpm=chosen.rpm).shared_by(chosen.one_of) if chosen.rpm else NO_RATES
        print(READY, end="", flush=True)
        sys.stdin.readline()
        print(json.dumps(work(chosen.seconds, rates)))
        return
    report("shared_limit", figures(run(6.0 if chosen.quick else chosen.seconds)), GOALS, quick=chosen.quick)


def figures(results: Sequence[dict[str, Any]]) -> Iterator[Figure]:
    """What was answered and refused, and what the least and the most that a process got."""
    for row in results:
        yield Figure(f"{row['name']}: answered", row["answered"])
        yield Figure(f"{row['name']}: refused", row["refused"])
        yield Figure(f"{row['name']}: smallest part", min(row["shares"]))
        yield Figure(f"{row['name']}: largest part", max(row["shares"]))


if __name__ == "__main__":
    main()
