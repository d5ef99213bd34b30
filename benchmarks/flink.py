"""How well a run on Flink fills its window of calls, and what more machines gain. Prints one JSON object a line.

    python -m benchmarks.flink [--quick] [--only PART] [--mean 0.5]

``window``: ``llmdo run --runner flink`` on the job server's own cluster; a model with log-normal latency (sigma 1) and
the given mean, and the figures of ``benchmarks.continuous``: ``share`` of the window that the endpoint saw in use, and
``in_flight``, what the engine had in flight of it. ``limit`` is a loop of plain aiohttp that does nothing else.

``scale``: a cluster of 1, 2, and 4 TaskManagers of one slot, each with a Python process that has a fixed number of
calls in flight, of 0.3 s each: each of these can make at most 1/0.3 s. ``per_s`` counts the calls of the middle 80 %,
when all machines are working; ``ratio`` is that divided by one machine's. Everything runs on the same cores, which is
possible since calls mostly wait; a machine that is busy with other work shows less.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

from benchmarks import continuous
from benchmarks.continuous import upload
from benchmarks.reporting.figures import Figure, Goal, command_line, report
from benchmarks.servers.fake_endpoint import Span, fake_endpoint, take_spans
from benchmarks.servers.local_cloudflare import BUCKET, local_cloudflare
from benchmarks.ways.measuring import MODEL, children_cpu_s
from tests.servers.flink import running_cluster

LATENCY_S = 0.3
GOALS = {
    "window: window in use, in the engine": Goal(0.9),
    "2 slots: times one slot's calls": Goal(1.8),
    "4 slots: times one slot's calls": Goal(3.4),
}
LONG_TAIL = continuous.Scale(mean=0.5, lines=10_000, limit_calls=4_000)


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is measured.

    Attributes:
        window: calls in flight, in the part of this name.
        slots: numbers of machines, one after the other; each has ``calls`` in flight and ``lines`` to answer.
    """

    window: continuous.Scale = LONG_TAIL
    slots: tuple[int, ...] = (1, 2, 4)
    calls: int = 16
    lines: int = 1_500


QUICK = Scale(replace(continuous.QUICK, lines=200), slots=(2,), calls=4, lines=100)


def window(scale: Scale) -> Iterator[dict[str, Any]]:
    """One machine, with calls of very different lengths."""
    limit = continuous.limit(scale.window)
    yield {"part": "limit", "mean_s": scale.window.mean, **limit}
    upload("flink/window/big.jsonl", scale.window.lines)
    with fake_endpoint(scale.window.mean, continuous.SIGMA) as url:
        cpu, begun = children_cpu_s(), time.monotonic()
        with continuous.llmdo(scale.window, url, *_places("window"), "--runner", "flink") as process:
            process.wait(continuous.TIMEOUT_S)
        spans = take_spans(url)
        used = continuous.result_of("flink/window/", "flink/window/big.jsonl", spans, scale.window, cpu)
    more = {"of_limit": round(used["share"] / limit["share"], 3), "first_call_s": first_call(spans, begun)}
    yield {"part": "window", "mean_s": scale.window.mean, **used, **more}


def machines(scale: Scale) -> Iterator[dict[str, Any]]:
    """More and more machines, with calls of equal length."""
    rates: list[float] = []
    for slots in scale.slots:
        name = f"slots-{slots}"
        upload(f"flink/{name}/big.jsonl", scale.lines * slots)
        with (
            fake_endpoint(LATENCY_S) as url,
            # The workers take it from the environment of the pool.
            patch.dict(os.environ, {"CLOUDFLARE_BASE_URL": url}),
            running_cluster(task_managers=slots, slots=1) as cluster,
        ):
            where = ["--flink-master", cluster.master, "--environment-config", cluster.pool]
            how = ["--parallelism", str(slots), "--concurrency", f"fixed:{scale.calls}", "--model", MODEL, "--json"]
            command = [sys.executable, "-m", "llmdo", *_places(name), "--runner", "flink", *where, *how]
            begun = time.monotonic()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=continuous.TIMEOUT_S)
            spans = take_spans(url)
        rates.append(rate(spans))
        yield {
            "part": "scale",
            "slots": slots,
            "calls": len(spans),
            "most_per_s": round(slots * scale.calls / LATENCY_S, 1),
            "per_s": round(rates[-1], 1),
            "ratio": round(rates[-1] / rates[0], 2),
            "first_call_s": first_call(spans, begun),
        }


def first_call(spans: Sequence[Span], begun: float) -> float:
    """Seconds from the start of the command to the arrival of its first call, without those of a cluster."""
    return round(min(begin for begin, _ in spans) - begun, 1)


def rate(spans: Sequence[Span]) -> float:
    """Calls a second in the middle 80 %."""
    begins = sorted(begin for begin, _ in spans)
    first, last = len(begins) // 10, len(begins) * 9 // 10
    return (last - first) / (begins[last] - begins[first])


def _places(name: str) -> list[str]:
    return ["run", "--input", f"{BUCKET}/flink/{name}/", "--output", f"{BUCKET}/output/flink/{name}/"]


PARTS = {"window": window, "scale": machines}


def run(scale: Scale, only: str | None = None) -> list[dict[str, Any]]:
    """Measures the parts, and prints the figures of each as they come."""
    results = []
    with local_cloudflare():
        for name, measure in PARTS.items():
            if only in (None, name):
                for row in measure(scale):
                    results.append({"benchmark": "flink"} | row)
                    print(json.dumps(results[-1]), flush=True)
    return results


def main() -> None:
    """The command."""
    parser = command_line(__doc__, "flink")
    parser.add_argument("--only", choices=PARTS, help="one part")
    parser.add_argument("--mean", type=float, default=LONG_TAIL.mean, help="the model's mean latency in seconds")
    chosen = parser.parse_args()
    scale = QUICK if chosen.quick else Scale(window=replace(LONG_TAIL, mean=chosen.mean))
    report("flink", figures(run(scale, chosen.only)), GOALS, quick=chosen.quick)


def figures(results: Sequence[dict[str, Any]]) -> Iterator[Figure]:
    """What is judged, and what it is compared with."""
    for row in results:
        if row["part"] == "scale":
            yield Figure(f"{row['slots']} slots: calls", row["per_s"], "/s")
            yield Figure(f"{row['slots']} slots: first call after", row["first_call_s"], "s")
            if row["slots"] > 1 and any(other.get("slots") == 1 for other in results):
                yield Figure(f"{row['slots']} slots: times one slot's calls", row["ratio"])
        else:
            yield Figure(f"{row['part']}: window in use, at the endpoint", row["share"])
        if row["part"] == "window":
            yield Figure("window: window in use, in the engine", row["in_flight"])
            yield Figure("window: of the bare loop", row["of_limit"])
            yield Figure("window: first call after", row["first_call_s"], "s")


if __name__ == "__main__":
    main()
