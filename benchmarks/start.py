"""How long ``llmdo run`` takes from its start until its first call arrives. Prints one JSON line.

    python -m benchmarks.start [--quick] [--runs 7]

The command answers a file of one line, direct runner, local output folder and ledger, from an endpoint on this machine
that answers at once. ``first_call_s``: from starting the process to the call's arrival; ``seconds``: to the process's
end; ``cpu_s``: its CPU seconds, children included. Medians; ``first_call_s`` with all its values. The first run, which
is not measured, fills the system's caches and Python's. ``python_s`` is what ``python -c pass`` takes, ``beam_s`` what
``python -c "import apache_beam"`` takes, in turns with the command: the yardsticks of the machine.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.reporting.figures import Figure, at_most, command_line, report
from benchmarks.servers.fake_endpoint import account_at, fake_endpoint, take_spans
from benchmarks.ways.measuring import MODEL, children_cpu_s

ROOT = Path(__file__).parents[1]
PROMPT = "What is the capital of France?"
GOALS = {"first call after": at_most(1.5)}


@dataclass(frozen=True, slots=True)
class Start:
    """One command, in seconds: until its first call arrived, until its end, and CPU."""

    first_call: float
    whole: float
    cpu: float


def start_once(url: str) -> Start:
    """Answers one line in a new process."""
    with tempfile.TemporaryDirectory(prefix="llmdo-benchmark-") as folder:
        prompts = Path(folder, "prompts.jsonl")
        prompts.write_text(json.dumps({"id": "1", "prompt": PROMPT}) + "\n")
        own = {"PATH": os.environ["PATH"], "HOME": folder, "no_proxy": "127.0.0.1", **account_at(url)}
        command = ["-m", "llmdo", "run", str(prompts), "--output", str(Path(folder, "out")), "--model", MODEL, "--json"]
        begun = time.monotonic()
        whole, cpu = timed(command, own)
        ((first_call, _),) = take_spans(url)
        return Start(first_call - begun, whole, cpu)


def timed(arguments: Sequence[str], environment: dict[str, str]) -> tuple[float, float]:
    """Wall and CPU seconds of this Python with these arguments. Raises CalledProcessError."""
    before, begun = children_cpu_s(), time.monotonic()
    subprocess.run(
        [sys.executable, *arguments],
        check=True,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return time.monotonic() - begun, children_cpu_s() - before


def main() -> None:
    """Starts the command and the yardsticks in turns."""
    parser = command_line(__doc__, "start")
    parser.add_argument("--runs", type=int, default=7)
    chosen = parser.parse_args()
    runs: int = 1 if chosen.quick else chosen.runs
    starts: list[Start] = []
    yardsticks: dict[str, list[float]] = {"pass": [], "import apache_beam": []}
    with fake_endpoint(0.0) as url:
        for number in range(runs + 1):
            start = start_once(url)
            taken = {code: timed(["-c", code], {"PATH": os.environ["PATH"]})[0] for code in yardsticks}
            if number:
                starts.append(start)
                for code, seconds in taken.items():
                    yardsticks[code].append(seconds)
    result = {
        "benchmark": "start",
        "first_call_s": round(median(start.first_call for start in starts), 3),
        "seconds": round(median(start.whole for start in starts), 3),
        "cpu_s": round(median(start.cpu for start in starts), 3),
        "python_s": round(median(yardsticks["pass"]), 3),
        "beam_s": round(median(yardsticks["import apache_beam"]), 3),
        "all_first_calls_s": [round(start.first_call, 3) for start in starts],
        "load": round(os.getloadavg()[0], 2),
    }
    print(json.dumps(result))
    figures = [
        Figure("first call after", result["first_call_s"], "s"),
        Figure("fastest first call after", min(result["all_first_calls_s"]), "s"),
        Figure("CPU of the command", result["cpu_s"], "s"),
        Figure("python -c 'import apache_beam'", result["beam_s"], "s"),
    ]
    report("start", figures, GOALS, quick=chosen.quick)


if __name__ == "__main__":
    main()
