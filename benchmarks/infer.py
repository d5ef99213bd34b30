"""How much of an endpoint's speed each way of calling it uses. Prints one JSON object a line.

    python -m benchmarks.infer [--quick] [--latency 0.2] [--only NAME]

An endpoint in another process answers every call after ``latency``, so that ``concurrency / latency`` calls a second
are the limit, and ``share`` is the part of it that was reached. The clock starts when the first call is given to what
is measured and stops when the last answer is there: filling the window and emptying it are part of the time. With
``rounds`` times ``concurrency`` calls that costs at most 1 / rounds of the share: 2 % with the usual 50. One round
before, not measured, opens the connections. The endpoint shares the machine's cores; its CPU time is not counted.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
import httpx
from apache_beam.ml.inference.base import ModelHandler, PredictionResult, RunInference

from backends.engine import Engine, close_engines
from backends.ir import ChatRequest, Message
from backends.jobs import Done
from backends.workers_ai import WorkersAI, chat_body
from benchmarks.fake_endpoint import fake_endpoint
from storage.environment import CloudflareAccount
from transforms.elements import Answer, FileVersion, Line
from transforms.infer import Infer
from transforms.prompts import Defaults

MODEL = "@cf/meta/llama-3.3-70b-instruct-fp8-fast"
REQUEST = ChatRequest(MODEL, (Message("user", "What is the capital of France?"),), {"temperature": 0})
BUDGET_S = 20.0  # no new call after this: plain httpx would take many minutes for its rounds


@dataclass(frozen=True, slots=True)
class Measured:
    """Calls that were answered, the wall time in seconds, and this process's CPU time in seconds."""

    calls: int
    seconds: float
    cpu_s: float


@dataclass(frozen=True, slots=True)
class Row:
    """One way to call: ``measure(url, concurrency, calls)`` makes the calls and measures them."""

    name: str
    measure: Callable[[str, int, int], Measured]
    concurrencies: Sequence[int]
    rounds: int


class _Clock:
    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def stop(self, calls: int) -> Measured:
        return Measured(calls, time.perf_counter() - self._wall, time.process_time() - self._cpu)


def account(url: str) -> CloudflareAccount:
    """An account at the endpoint."""
    return CloudflareAccount("0" * 32, "token", url)


def bare_engine(url: str, concurrency: int, calls: int) -> Measured:
    """The engine with the Workers AI backend; one thread submits."""
    engine = Engine(window=concurrency, connect=lambda _: WorkersAI(account(url)))

    def submit_all(count: int) -> None:
        left, all_done = count, threading.Event()

        def deliver(done: Done) -> None:
            nonlocal left
            assert done.error is None, done.error
            left -= 1
            if not left:
                all_done.set()

        for _ in range(count):
            engine.submit("workers-ai", REQUEST, deliver)
        assert all_done.wait(600)

    try:
        submit_all(concurrency)
        clock = _Clock()
        submit_all(calls)
        return clock.stop(calls)
    finally:
        engine.close()


def plain_httpx(url: str, concurrency: int, calls: int) -> Measured:
    """httpx with its own transport, one client, and a semaphore: what a script would do."""
    target, body = f"{account(url).url}/ai/run/{MODEL}", chat_body(REQUEST)

    async def call_all(client: httpx.AsyncClient, count: int) -> int:
        semaphore, end, answered = asyncio.Semaphore(concurrency), time.monotonic() + BUDGET_S, 0

        async def call() -> None:
            nonlocal answered
            async with semaphore:
                if time.monotonic() < end:
                    response = await client.post(target, json=body)
                    answered += bool(response.json()["result"]["response"])

        await asyncio.gather(*(call() for _ in range(count)))
        return answered

    async def scenario() -> Measured:
        limits = httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
        async with httpx.AsyncClient(limits=limits, timeout=180) as client:
            await call_all(client, concurrency)
            clock = _Clock()
            return clock.stop(await call_all(client, calls))

    return asyncio.run(scenario())


class _OneByOne(ModelHandler[dict[str, Any], PredictionResult, httpx.Client]):
    """A handler as RunInference's documentation shows it for a remote service: one call after the other."""

    def __init__(self, target: str) -> None:
        super().__init__()
        self._target = target

    def load_model(self) -> httpx.Client:
        return httpx.Client(timeout=180)

    def run_inference(
        self, batch: Sequence[dict[str, Any]], model: httpx.Client, inference_args: dict[str, Any] | None = None
    ) -> list[PredictionResult]:
        assert not inference_args
        results = []
        for body in batch:
            start = time.perf_counter()
            reply = model.post(self._target, json=body).json()["result"]["response"]
            _spans.append((start, time.perf_counter()))
            results.append(PredictionResult(body, reply))
        return results


_spans: list[tuple[float, float]] = []  # of the handler's calls; FnApiRunner's workers are threads of this process


def run_inference(url: str, concurrency: int, calls: int) -> Measured:
    """Beam's RunInference on FnApiRunner; only the time from its first call to its last is taken, not the start-up."""
    assert concurrency == 1, "it makes one call at a time"
    target, body = f"{account(url).url}/ai/run/{MODEL}", chat_body(REQUEST)
    _spans.clear()
    cpu = time.process_time()
    with beam.Pipeline(runner="FnApiRunner") as root:
        _ = root | beam.Create([body] * calls) | RunInference(_OneByOne(target))
    return Measured(len(_spans), _spans[-1][1] - _spans[0][0], time.process_time() - cpu)


def infer_step(url: str, concurrency: int, calls: int) -> Measured:
    """The step Infer on FnApiRunner, with its parsing and rows; from the first line in to the last outcome out."""
    at = account(url)
    os.environ |= {
        "CLOUDFLARE_ACCOUNT_ID": at.account_id,
        "CLOUDFLARE_API_TOKEN": at.token,
        "CLOUDFLARE_BASE_URL": at.base_url,
    }
    file = FileVersion("r2://bucket", "prompts.jsonl", "etag", calls)
    line = json.dumps({"prompt": "What is the capital of France?", "temperature": 0}).encode()

    def answer_all(count: int) -> Measured:
        _moments.clear()
        cpu = time.process_time()
        with beam.Pipeline(runner="FnApiRunner") as root:
            lines = root | beam.Create([Line(file, i, i + 1, line) for i in range(count)], reshuffle=False)
            answers = lines | "In" >> beam.Map(_note) | Infer(Defaults(f"workers-ai/{MODEL}"), concurrency)
            _ = answers | "Out" >> beam.Map(_note)
        answered = [moment for moment, element in _moments if isinstance(element, Answer)]
        assert len(answered) == count
        return Measured(count, answered[-1] - _moments[0][0], time.process_time() - cpu)

    try:
        answer_all(concurrency)
        return answer_all(calls)
    finally:
        close_engines()


_moments: list[tuple[float, Any]] = []  # when each element passed; FnApiRunner's workers are threads of this process


def _note(element: Any) -> Any:
    _moments.append((time.perf_counter(), element))
    return element


ROWS = (
    Row("engine", bare_engine, (16, 64, 256), 50),
    Row("Infer step", infer_step, (16, 64, 256), 50),
    Row("plain httpx", plain_httpx, (16, 64, 256), 50),
    Row("Beam RunInference", run_inference, (1,), 50),
)


def run(rows: Sequence[Row], latency_s: float, quick: bool = False) -> list[dict[str, Any]]:
    """Measures the rows against one endpoint and prints each result as it comes."""
    results = []
    with fake_endpoint(latency_s) as url:
        for row in rows:
            for concurrency in row.concurrencies[:1] if quick else row.concurrencies:
                measured = row.measure(url, concurrency, concurrency * (3 if quick else row.rounds))
                rate = measured.calls / measured.seconds
                result = {
                    "name": row.name,
                    "concurrency": concurrency,
                    "latency_s": latency_s,
                    "calls": measured.calls,
                    "seconds": round(measured.seconds, 3),
                    "calls_per_s": round(rate, 1),
                    "share": round(rate * latency_s / concurrency, 3),
                    "cpu_ms_per_call": round(1000 * measured.cpu_s / measured.calls, 3),
                }
                print(json.dumps(result), flush=True)
                results.append(result)
    return results


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--quick", action="store_true", help="three rounds at the lowest concurrency, to see that it runs"
    )
    parser.add_argument("--latency", type=float, default=0.2, help="seconds the endpoint takes for a call")
    parser.add_argument("--only", help="the name of one row")
    chosen = parser.parse_args()
    run([row for row in ROWS if chosen.only in (None, row.name)], chosen.latency, chosen.quick)


if __name__ == "__main__":
    # Not this module's own main(): Beam pickles what stands in __main__ by value, and the spans would go to a copy.
    from benchmarks import infer

    infer.main()
