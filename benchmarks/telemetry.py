"""What OpenTelemetry costs a call, off and on. Prints JSON lines, and a table on stderr.

    python -m benchmarks.telemetry [--quick]

"llmdo run" answers the same file of prompts from the same endpoint without and with OTEL_EXPORTER_OTLP_ENDPOINT, in
turns, each time as a process of its own; a receiver in this process takes what is exported and throws it away. One call
in a hundred has a span, which is the default, and all are measured. ``cpu_ms_per_call`` is that of the whole process,
with the SDK's threads that export. What one call costs in the engine's thread is measured by itself as well, and is
given as a part of a call without telemetry: the difference of two runs is smaller than what other work on the machine
does to them.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from statistics import median
from typing import Any

from benchmarks.infer import Cell, figures, measure
from benchmarks.reporting.figures import Figure, Goal, at_most, command_line, report
from benchmarks.ways.contestants import LLMDO_RUN
from llmdo.backends.requests import ChatRequest, LineId, Message
from llmdo.backends.responses import ChatResponse
from llmdo.backends.telemetry.calls import CallEnded, CallTelemetry, lines_of
from llmdo.backends.telemetry.switch import forget_telemetry
from llmdo.backends.usage import Usage

CELL, QUICK = Cell(0.0, concurrency=256, calls=10_000), Cell(0.0, concurrency=8, calls=80, mean_s=0.05)
ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
OFF, ON, EVERY = "off: part of a call", "on: part of a call", "on, a span for each call: part of a call"
GOALS: dict[str, Goal] = {OFF: at_most(0.01), ON: at_most(0.05), "on: CPU of a run, against off": at_most(1.05)}


@dataclass(slots=True)
class Sink:
    """A receiver that throws away what it gets, and counts it."""

    url: str
    bodies: int = 0
    size: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


@contextmanager
def sink() -> Iterator[Sink]:
    """A receiver of OTLP on loopback."""

    class Handler(BaseHTTPRequestHandler):
        """Takes anything."""

        def do_POST(self) -> None:
            """A message."""
            body = self.rfile.read(int(self.headers["content-length"]))
            with found.lock:
                found.bodies, found.size = found.bodies + 1, found.size + len(body)
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found = Sink(f"http://127.0.0.1:{server.server_port}")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()


def hook_us(settings: dict[str, str], calls: int) -> float:
    """Microseconds of CPU that the end of a call takes in the engine's thread, with these variables set."""
    before = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("OTEL_")}
    os.environ.update(settings)
    forget_telemetry()
    try:
        ended = CallTelemetry.of("run")
        request = ChatRequest("m", (Message("user", "?"),), {"max_tokens": 9}, LineId.of("1", "r2://b/k", "e", 0))
        answer = ChatResponse("!", "stop", Usage(10, 20), "m-1", "id")
        return min(_one_us(ended, request, answer, calls // 5) for _ in range(5))
    finally:
        forget_telemetry()
        for name in settings:
            del os.environ[name]
        os.environ.update(before)


def _one_us(ended: Callable[[CallEnded], None] | None, request: ChatRequest, answer: ChatResponse, calls: int) -> float:
    begun = time.thread_time()
    for _ in range(calls):
        if ended:  # as llmdo.backends.engine.dispatch has it
            ended(CallEnded("openai", request, lines_of(request), 0.2, 1, answer))
    return 1e6 * (time.thread_time() - begun) / calls


def runs(cell: Cell, rounds: int) -> Iterator[dict[str, Any]]:
    """Rows of "llmdo run" without telemetry and with it, in turns."""
    with sink() as receiver:
        for number in range(1, rounds + 1):
            for name, more in (("off", {}), ("on", {ENDPOINT: receiver.url})):
                exported = receiver.size
                row = figures(measure(LLMDO_RUN, cell, more=more), cell)
                load, size = round(os.getloadavg()[0], 1), receiver.size - exported
                about = {"benchmark": "telemetry", "telemetry": name, "round": number, "load": load}
                yield {**about, **row, "exported_bytes": size}


def gathered(rows: list[dict[str, Any]], hook_calls: int, url: str) -> Iterator[Figure]:
    """The figures of these rows, and of the end of a call by itself."""
    cpu = {name: median(row["cpu_ms_per_call"] for row in rows if row["telemetry"] == name) for name in ("off", "on")}
    on = {ENDPOINT: url}
    for name, settings in ((OFF, {}), (ON, on), (EVERY, {**on, "OTEL_TRACES_SAMPLER": "always_on"})):
        taken = hook_us(settings, hook_calls)
        yield Figure(f"{name.partition(':')[0]}: CPU at the end of a call", round(taken, 3), "µs")
        yield Figure(name, round(taken / 1000 / cpu["off"], 5))
    yield Figure("off: CPU a call", round(cpu["off"], 3), "ms")
    yield Figure("on: CPU a call", round(cpu["on"], 3), "ms")
    yield Figure("on: CPU of a run, against off", round(cpu["on"] / cpu["off"], 3))


def main() -> None:
    """The command."""
    chosen = command_line(__doc__, "telemetry").parse_args()
    cell, rounds, hook_calls = (QUICK, 1, 1_000) if chosen.quick else (CELL, 5, 50_000)
    rows = []
    for row in runs(cell, rounds):
        print(json.dumps(row), flush=True)
        rows.append(row)
    with sink() as receiver:
        report("telemetry", list(gathered(rows, hook_calls, receiver.url)), GOALS, quick=chosen.quick)


if __name__ == "__main__":
    main()
