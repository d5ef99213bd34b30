"""How well a run keeps its window of calls full, and how soon a new file is answered. Prints one JSON object a line.

    python -m benchmarks.continuous [--quick] [--mean 0.2] [--lines 20000] [--only PART]

R2 and the queue are an ``llmdo local``, the model an endpoint with log-normal latency (sigma 1), ``llmdo`` a third
process. ``share`` is how much of the window the endpoint saw in use: its calls' time divided by window times seconds,
from the first call to the start of the last one, after which nothing is left to fill the window; ``share_to_end`` is
that up to the last answer. ``limit``: a loop of plain aiohttp that does nothing else; ``of_limit`` is a share divided
by its share. ``in_flight`` is what the engine had in flight of its window, over the same time as ``share``: there a
call begins with a look into the ledger and ends when its answer is stored.

``mean`` scales time: 0.2 s stands for a model of 2 s, and Prism's reader checkpoints itself after 15 means, which
stands for 30 s. The machine's own work for a call is not scaled, so a share here is lower than with a real model, and
lower still when the machine is busy with other work; ``in_flight`` suffers less.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, median
from typing import Any

import aiohttp

from benchmarks.read_lines import PROMPT, write_prompts
from benchmarks.reporting.figures import Figure, Goal, at_most, command_line, report
from benchmarks.servers.fake_endpoint import Span, fake_endpoint, take_spans
from benchmarks.servers.local_cloudflare import BUCKET, local_cloudflare
from benchmarks.ways.measuring import MODEL, children_cpu_s
from llmdo.storage.objects.opening import open_store
from llmdo.storage.output.manifests import MANIFEST_NAME, Manifest

SIGMA = 1.0
CHECKPOINT_MEANS = 15  # llmdo.pipelines.runner_options.PRISM_CHECKPOINT, 30 s, for a model that takes 2 s
TIMEOUT_S = 900.0
GOALS = {
    "direct: window in use, at the endpoint": Goal(0.97),
    "prism: window in use, at the endpoint": Goal(0.93),
    "prism: one-line file meanwhile, longest": at_most(15),
    "idle: upload to shard, median": at_most(3),
}


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is measured.

    Attributes:
        mean: of the model's latency, in seconds.
        lines: of the big file; ``limit_calls``: calls of the bare loop.
        window: most calls in flight.
        idle_files: one-line files for a stream that has nothing else to do.
    """

    mean: float = 0.2
    lines: int = 20_000
    window: int = 64
    limit_calls: int = 6_000
    idle_files: int = 30


QUICK = Scale(mean=0.02, lines=400, window=16, limit_calls=200, idle_files=2)


def share(spans: Sequence[Span], window: int, until: float) -> float:
    """How much of a window was in use, from the first call on."""
    begin = min(span[0] for span in spans)
    busy = sum(min(end, until) - start for start, end in spans if start < until)
    return busy / (window * (until - begin))


def window_used(spans: Sequence[Span], window: int) -> dict[str, Any]:
    """The figures of one part's calls."""
    begin, last, end = min(s[0] for s in spans), max(s[0] for s in spans), max(s[1] for s in spans)
    return {
        "calls": len(spans),
        "seconds": round(end - begin, 2),
        "share": round(share(spans, window, last), 3),
        "share_to_end": round(share(spans, window, end), 3),
    }


def seconds_of(waits: Sequence[float]) -> dict[str, Any]:
    """Median, ninth decile and maximum."""
    ordered = sorted(waits)
    p90 = ordered[math.ceil(0.9 * len(ordered)) - 1]
    return {"p50_s": round(median(ordered), 2), "p90_s": round(p90, 2), "max_s": round(ordered[-1], 2)}


async def bare_loop(url: str, window: int, calls: int) -> None:
    """Calls with plain aiohttp, and nothing around them."""
    body = {"messages": [{"role": "user", "content": PROMPT}], "max_tokens": 2048}
    left = iter(range(calls))

    async def work(session: aiohttp.ClientSession) -> None:
        for _ in left:
            async with session.post(f"{url}/ai/run/{MODEL}", json=body) as reply:
                assert (await reply.json())["success"]

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=window)) as session:
        await asyncio.gather(*(work(session) for _ in range(window)))


def limit(scale: Scale) -> dict[str, Any]:
    """What the endpoint and this machine allow."""
    with fake_endpoint(scale.mean, SIGMA) as url:
        asyncio.run(bare_loop(url, scale.window, scale.limit_calls))
        return window_used(take_spans(url), scale.window)


@contextlib.contextmanager
def llmdo(scale: Scale, url: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A running ``llmdo`` whose model is at ``url``. It is drained at the end, and must end well."""
    checkpoint = str(CHECKPOINT_MEANS * scale.mean)
    options = ["--model", MODEL, "--concurrency", str(scale.window), "--json"]
    command = [sys.executable, "-m", "benchmarks.ways.launch", checkpoint, url, str(samples()), *arguments, *options]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            yield process
            process.send_signal(signal.SIGTERM)
            ended = process.wait(120)
        finally:
            process.kill()
    if ended:
        raise SystemExit(f"llmdo ended with exit code {ended}: see its message above")


def direct(scale: Scale) -> dict[str, Any]:
    """``llmdo run --runner direct`` over one file."""
    upload("direct/big.jsonl", scale.lines)  # no event is sent about this place
    output = f"{BUCKET}/output/direct/"
    with fake_endpoint(scale.mean, SIGMA) as url:
        cpu = children_cpu_s()
        with llmdo(scale, url, "run", "--input", f"{BUCKET}/direct/", "--output", output) as process:
            process.wait(TIMEOUT_S)
        return result_of("direct/", "direct/big.jsonl", take_spans(url), scale, cpu)


def prism(scale: Scale) -> dict[str, Any]:
    """``llmdo stream`` over the same file; meanwhile, one-line files, each timed until its manifest exists."""
    chance, sent, settled = random.Random(1), dict[str, float](), dict[str, float]()
    with fake_endpoint(scale.mean, SIGMA) as url:
        cpu = children_cpu_s()
        with stream(scale, url, "prism/") as process:
            upload("input/prism/big.jsonl", scale.lines)
            wait_for(lambda: listed("prism/", "big.jsonl", ".jsonl"), process, 0.1)
            now = time.monotonic()
            # Not in the last part, lest one of them makes the last call.
            last = now + 0.8 * scale.lines * scale.mean / scale.window
            next_at = now
            while not (big := listed("prism/", "big.jsonl", MANIFEST_NAME)) or len(settled) < len(sent):
                now = time.monotonic()
                settled |= dict.fromkeys(listed("prism/", "one-", MANIFEST_NAME) - settled.keys(), now)
                if not sent or (next_at <= now < last and not big):
                    name = f"one-{len(sent):03d}.jsonl"
                    upload(f"input/prism/{name}", 1)
                    sent[name] = time.monotonic()
                    next_at = now + CHECKPOINT_MEANS * scale.mean * chance.uniform(0.5, 1.5)
                check(process, next_at)
                time.sleep(0.1)
        used = result_of("prism/", "input/prism/big.jsonl", take_spans(url), scale, cpu)
    waits = [settled[name] - sent[name] for name in sent]
    return used | {"one_line_files": {"files": len(waits), **seconds_of(waits)}}


def idle(scale: Scale) -> dict[str, Any]:
    """One-line files, one after the other, for a stream with an instant model: from the upload to the shard."""
    waits, chance = [], random.Random(2)
    with fake_endpoint(0.0) as url, stream(scale, url, "idle/") as process:
        for number in range(-1, scale.idle_files):  # the first one waits for the start
            name = f"one-{number + 1:03d}.jsonl"
            begin = upload(f"input/idle/{name}", 1)
            wait_for(lambda: listed("idle/", name, ".jsonl"), process, 0.05)  # noqa: B023  called at once
            if number >= 0:
                waits.append(time.monotonic() - begin)
            time.sleep(chance.uniform(0, 0.5))  # at any point of the stream's rounds
    return {"files": len(waits), **seconds_of(waits)}


@contextlib.contextmanager
def stream(scale: Scale, url: str, place: str) -> Iterator[subprocess.Popen[bytes]]:
    """A stream that answers what comes below ``input/place``."""
    places = ("--prefix", f"input/{place}", "--output", f"{BUCKET}/output/{place}")
    with llmdo(scale, url, "stream", *places, "--batch-seconds", "1") as process:
        yield process


def upload(key: str, lines: int) -> float:
    """Writes a file of prompts into the bucket; returns when that began."""
    with tempfile.NamedTemporaryFile() as file:
        path = Path(file.name)
        write_prompts(path, lines)
        begin = time.monotonic()
        open_store(BUCKET).put(key, path.read_bytes())
    return begin


def listed(place: str, name: str, suffix: str) -> set[str]:
    """The names of input files that have an output with this suffix."""
    prefix = f"output/{place}llmdo/input/{place}"
    found = (info.key for info in open_store(BUCKET).list(prefix + name) if info.key.endswith(suffix))
    return {key.removeprefix(prefix).partition("/")[0] for key in found}


def wait_for(done: Callable[[], Any], process: subprocess.Popen[bytes], pause_s: float) -> None:
    """Polls."""
    begin = time.monotonic()
    while not done():
        check(process, begin)
        time.sleep(pause_s)


def check(process: subprocess.Popen[bytes], since: float) -> None:
    """Ends the benchmark when there is nothing left to wait for."""
    if process.poll() is not None or time.monotonic() - since > TIMEOUT_S:
        raise SystemExit("llmdo did not do what it was waited for: see its message above")


def result_of(place: str, key: str, spans: Sequence[Span], scale: Scale, cpu_before: float) -> dict[str, Any]:
    """The figures of a part whose file is done according to its manifest."""
    store = open_store(BUCKET)
    (manifest,) = (i.key for i in store.list(f"output/{place}llmdo/{key}/") if i.key.endswith(MANIFEST_NAME))
    answered = Manifest.model_validate_json(store.read(manifest)[0]).answered
    assert answered == scale.lines, answered
    cpu_ms = 1000 * (children_cpu_s() - cpu_before) / len(spans)
    more = {"in_flight": round(in_flight(spans, scale.window), 3), "cpu_ms_per_call": round(cpu_ms, 2)}
    return window_used(spans, scale.window) | more


def in_flight(spans: Sequence[Span], window: int) -> float:
    """How much of its window the engine that ran last had in use, until the last of these calls."""
    begin, last = min(span[0] for span in spans), max(span[0] for span in spans)
    return mean(calls for at, calls in json.loads(samples().read_text()) if begin <= at <= last) / window


def samples() -> Path:
    """What ``benchmarks.ways.launch`` writes."""
    return Path(os.environ["XDG_STATE_HOME"]) / "samples.json"


PARTS: dict[str, Callable[[Scale], dict[str, Any]]] = {"limit": limit, "direct": direct, "prism": prism, "idle": idle}


def run(scale: Scale, only: str | None = None) -> list[dict[str, Any]]:
    """Measures the parts, and prints the figures of each as they come."""
    results: dict[str, dict[str, Any]] = {}
    with local_cloudflare():
        for name, measure in PARTS.items():
            if only in (None, name) or name == "limit":
                row = measure(scale)
                if name != "limit" and "share" in row:
                    row["of_limit"] = round(row["share"] / results["limit"]["share"], 3)
                results[name] = {"benchmark": "continuous", "part": name, "mean_s": scale.mean} | row
                print(json.dumps(results[name]), flush=True)
    return list(results.values())


def main() -> None:
    """The command."""
    parser = command_line(__doc__, "continuous")
    parser.add_argument("--mean", type=float, default=Scale().mean, help="the model's mean latency in seconds")
    parser.add_argument("--lines", type=int, default=Scale().lines, help="of the big file")
    parser.add_argument("--only", choices=PARTS, help="one part, and the limit")
    chosen = parser.parse_args()
    scale = QUICK if chosen.quick else replace(Scale(), mean=chosen.mean, lines=chosen.lines)
    report("continuous", figures(run(scale, chosen.only)), GOALS, quick=chosen.quick)


def figures(results: Sequence[dict[str, Any]]) -> Iterator[Figure]:
    """What is judged, and what it is compared with."""
    parts = {row["part"]: row for row in results}
    for part, row in parts.items():
        if "share" in row:
            yield Figure(f"{part}: window in use, at the endpoint", row["share"])
        if "in_flight" in row:
            yield Figure(f"{part}: window in use, in the engine", row["in_flight"])
            yield Figure(f"{part}: of the bare loop", row["of_limit"])
            yield Figure(f"{part}: CPU a call", row["cpu_ms_per_call"], "ms")
    if "prism" in parts:
        files = parts["prism"]["one_line_files"]
        yield Figure("prism: one-line file meanwhile, median", files["p50_s"], "s")
        yield Figure("prism: one-line file meanwhile, longest", files["max_s"], "s")
    if "idle" in parts:
        yield Figure("idle: upload to shard, median", parts["idle"]["p50_s"], "s")
        yield Figure("idle: upload to shard, longest", parts["idle"]["max_s"], "s")


if __name__ == "__main__":
    main()
