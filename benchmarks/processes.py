"""How much more ``llmdo run --processes N`` does than one process, by the CPU time that each of its processes needs.

    python -m benchmarks.processes [--quick] [--processes 2] [--lines 40000] [--rounds 3]

The command answers a file of short prompts, direct runner, local output folder and ledger, with 256 calls in flight,
from an endpoint in a process of its own that answers at once. One process and N take turns.

CPU time is counted, so the result does not depend on the machine's cores: ``parent_us`` is that of the run's own
process and ``worker_us`` that of its busiest worker, for each line of the run. If every process has a core, the slower
of the two bounds the run: ``times_one`` is the CPU time a line of a run with one process, divided by that. The
endpoint's CPU time does not count, nor does that of starting: a run of one line for each process is measured as well,
and subtracted. ``start_cpu_s`` is that of a worker, ``worker_mb`` the most memory that one had. Medians of all rounds.

``ledger_per_s``: answers that one SQLite ledger keeps a second while 256 are to be kept at any time, by one, two, four
and eight processes together. SQLite makes one commit at a time, so this bounds a run with its ledger on this disk.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.reporting.figures import Figure, Goal, command_line, report
from benchmarks.servers.fake_endpoint import account_at, fake_endpoint, seen
from benchmarks.ways.measuring import MODEL, PROMPT
from llmdo.storage.ledger.sqlite import SqliteLedger

ROOT = Path(__file__).parents[1]
WINDOW = 256
LOOK_S = 0.05  # the last CPU time of a process may be missed by this much
TICKS, PAGE = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
WRITERS, WRITE_S, ANSWER = (1, 2, 4, 8), 3.0, b"x" * 600
GOALS = {"2 processes: times one": Goal(1.7)}


@dataclass(slots=True)
class Process:
    """What a process has used: CPU seconds, and the most resident bytes."""

    cpu_s: float = 0.0
    memory: int = 0


@dataclass(frozen=True, slots=True)
class Ran:
    """A run: its own process, its workers, and the endpoint's CPU seconds."""

    parent: Process
    workers: tuple[Process, ...]
    endpoint_s: float
    seconds: float

    @property
    def busiest(self) -> Process:
        """The worker with the most CPU time; the run's own process without any."""
        return max(self.workers, key=lambda one: one.cpu_s, default=self.parent)


def run(lines: int, processes: int, *, files: int = 1) -> Ran:
    """Answers as many lines and files. Raises AssertionError if a line is missing."""
    with tempfile.TemporaryDirectory(prefix="llmdo-benchmark-") as name, fake_endpoint(0.0) as url:
        folder = Path(name)
        inputs = [folder / f"{file}.jsonl" for file in range(files)]
        for file, path in enumerate(inputs):
            prompts = (json.dumps({"prompt": PROMPT.format(i)}) + "\n" for i in range(file, lines, files))
            path.write_text("".join(prompts))
        own = {"PATH": os.environ["PATH"], "HOME": name, "no_proxy": "127.0.0.1", **account_at(url)}
        command = [sys.executable, "-m", "llmdo", "run", *map(str, inputs), "--output", str(folder / "out")]
        command += ["--model", MODEL, "--concurrency", f"fixed:{WINDOW}", "--processes", str(processes), "--json"]
        begun = time.monotonic()
        with subprocess.Popen(command, cwd=ROOT, env=own, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as started:
            used = watch(started)
            assert started.stdout
            summary = json.loads(started.stdout.read().splitlines()[-1])
        assert started.returncode == 0, summary
        assert summary["answered"] == lines, summary
        parent = used.pop(started.pid)
        # A worker is started by a shell, which waits for it and uses nothing.
        workers = tuple(one for one in used.values() if one.cpu_s > 0.3)
        return Ran(parent, workers, seen(url).cpu_s, time.monotonic() - begun)


def watch(started: subprocess.Popen[bytes]) -> dict[int, Process]:
    """What a process and its descendants use until it ends, by pid."""
    used: dict[int, Process] = {}
    while started.poll() is None:
        for pid in family(started.pid):
            look(pid, used)
        time.sleep(LOOK_S)
    return used


def family(pid: int) -> list[int]:
    """A process and its descendants."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        others = [path for path in Path(f"/proc/{pid}/task").iterdir() if path.name != str(pid)]
        for thread in others:
            children += (thread / "children").read_text().split()
    except OSError:
        return []
    return [pid, *(one for child in children for one in family(int(child)))]


def look(pid: int, used: dict[int, Process]) -> None:
    """Notes what a process has used so far, unless it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except OSError:
        return
    cpu_s, memory = (int(fields[11]) + int(fields[12])) / TICKS, int(fields[21]) * PAGE
    one = used.setdefault(pid, Process())
    one.cpu_s, one.memory = max(one.cpu_s, cpu_s), max(one.memory, memory)


def keep_answers(path: Path, at_once: int) -> int:
    """Keeps answers in a ledger for WRITE_S; returns how many."""

    async def keep() -> int:
        ledger, numbers, end = SqliteLedger(path), count(), time.monotonic() + WRITE_S

        async def one() -> None:
            while time.monotonic() < end:
                await ledger.put(f"{os.getpid():032x}{next(numbers):032x}", ANSWER)

        await asyncio.gather(*(one() for _ in range(at_once)))
        await ledger.aclose()
        return next(numbers)

    return asyncio.run(keep())


def ledger_per_s(writers: int) -> float:
    """How many answers a second several processes keep in one ledger."""
    with tempfile.TemporaryDirectory(prefix="llmdo-benchmark-") as folder, ProcessPoolExecutor(writers) as pool:
        path = Path(folder, "ledger.sqlite")
        asyncio.run(SqliteLedger(path).aclose())
        kept = list(pool.map(keep_answers, [path] * writers, [WINDOW // writers] * writers))
    return sum(kept) / WRITE_S


def measure(lines: int, processes: int) -> dict[str, Any]:
    """One process and several, without what starting takes."""
    found: dict[str, Any] = {"benchmark": "processes", "processes": processes, "lines": lines}
    alone, few = run(lines, 1), run(1, 1)
    several, start = run(lines, processes), run(processes, processes, files=processes)
    found["one_us"] = 1e6 * (alone.parent.cpu_s - few.parent.cpu_s) / lines
    found["parent_us"] = 1e6 * (several.parent.cpu_s - start.parent.cpu_s) / lines
    found["worker_us"] = 1e6 * (several.busiest.cpu_s - start.busiest.cpu_s) / lines
    found["times_one"] = found["one_us"] / max(found["parent_us"], found["worker_us"])
    found["workers"] = len(several.workers)
    found["start_cpu_s"] = start.busiest.cpu_s
    found["worker_mb"] = max((one.memory for one in several.workers), default=0) / 1e6
    found["endpoint_us"] = 1e6 * several.endpoint_s / lines
    found["seconds"], found["seconds_of_one"] = several.seconds, alone.seconds
    return found | {"load": os.getloadavg()[0]}


def main() -> None:
    """Prints a JSON line for each round, and one of the ledger."""
    parser = command_line(__doc__, "processes")
    parser.add_argument("--processes", type=int, action="append", help="how many; may be repeated (2)")
    parser.add_argument("--lines", type=int, default=40_000)
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    lines, rounds = (2_000, 1) if chosen.quick else (chosen.lines, chosen.rounds)
    figures = []
    for processes in chosen.processes or [2]:
        rows = []
        for _ in range(rounds):
            rows.append(measure(lines, processes))
            print(json.dumps({name: _short(value) for name, value in rows[-1].items()}), flush=True)
        name, middle = f"{processes} processes", lambda key, rows=rows: _short(median(row[key] for row in rows))
        figures += [
            Figure(f"{name}: times one", middle("times_one")),
            Figure(f"{name}: CPU a line of one process", middle("one_us"), "µs"),
            Figure(f"{name}: CPU a line of the run's own", middle("parent_us"), "µs"),
            Figure(f"{name}: CPU a line of the busiest worker", middle("worker_us"), "µs"),
            Figure(f"{name}: CPU of a worker's start", middle("start_cpu_s"), "s"),
            Figure(f"{name}: memory of a worker", middle("worker_mb"), "MB"),
        ]
    kept = {writers: round(ledger_per_s(writers)) for writers in (WRITERS[:1] if chosen.quick else WRITERS)}
    print(json.dumps({"benchmark": "processes", "ledger_per_s": kept}), flush=True)
    figures += [Figure(f"ledger, {writers} writing: answers kept", per_s, "/s") for writers, per_s in kept.items()]
    report("processes", figures, GOALS, quick=chosen.quick)


def _short(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value


if __name__ == "__main__":
    main()
