"""Runs the benchmarks one after the other, and gathers what they print in one file.

    python -m benchmarks                 # all; 55 minutes on two cores
    python -m benchmarks --quick         # all, a small run each: 7 minutes, to see that they run
    python -m benchmarks start infer     # these
    python -m benchmarks --show FILE     # the figures of a file of results, as Markdown

The JSON lines go to stdout and to ``benchmarks/results/DATE.jsonl``, progress and tables to stderr. A benchmark that
breaks does not keep the others from running. The exit code is 1 then; it is 0 whatever the figures are.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, TextIO

from benchmarks.reporting.figures import cells

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
# In this order; with the arguments of the whole run.
BENCHMARKS: dict[str, tuple[str, ...]] = {
    "start": (),
    "read_lines": (),
    "vectors": (),
    "outputs.export": (),
    "small_files": (),
    "outputs.status": (),
    "processes": (),
    "infer": ("--rivals", "--rounds", "5"),
    "rows.ask_model": (),
    "telemetry": (),
    "goodput": ("--seeds", "4"),
    "limits": (),
    "shared_limit": (),
    "continuous": (),
    "chat": (),
    "chat --livestore": (),
    "flink": (),
}


def run(names: Sequence[str], results: Path, *, quick: bool) -> int:
    """Runs the benchmarks and returns the exit code."""
    results.parent.mkdir(exist_ok=True)
    broken = []
    with results.open("a", encoding="utf-8") as kept:
        keep(kept, json.dumps(machine()))
        for number, name in enumerate(names, start=1):
            arguments = ("--quick",) if quick else BENCHMARKS[name]
            progress(f"{number} of {len(names)}: python -m benchmarks.{name} {' '.join(arguments)}")
            begun = time.monotonic()
            command = [sys.executable, "-m", *f"benchmarks.{name}".split(), *arguments]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
                assert process.stdout
                for line in process.stdout:
                    keep(kept, line.rstrip())
            if process.returncode:
                broken.append(name)
            progress(f"{name} took {time.monotonic() - begun:.0f} s and ended with {process.returncode}")
    judged = [row for row in figures_in(results) if row["met"] is not None]
    missed = [f"{row['benchmark']}: {row['figure']}" for row in judged if not row["met"]]
    if judged:
        progress(f"{len(judged) - len(missed)} of {len(judged)} goals are met")
    for text in missed:
        progress(f"not met: {text}")
    for name in broken:
        progress(f"{name} broke: see its message above")
    progress(f"All figures are in {results}")
    return bool(broken)


def machine() -> dict[str, Any]:
    """Where and of what the figures are."""
    commit = ["git", "describe", "--always", "--dirty"]
    return {
        "run": time.strftime("%Y-%m-%d %H:%M"),
        "commit": subprocess.run(commit, capture_output=True, text=True, check=False, cwd=ROOT).stdout.strip(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "apache-beam": version("apache-beam"),
        "load": round(os.getloadavg()[0], 1),
    }


def keep(kept: TextIO, line: str) -> None:
    """Writes a line to the file and to stdout."""
    print(line, flush=True)
    print(line, file=kept, flush=True)


def progress(text: str) -> None:
    """For people."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def figures_in(results: Path) -> list[dict[str, Any]]:
    """The figures of a file of results; of one that was measured again, the last."""
    rows = map(json.loads, results.read_text(encoding="utf-8").splitlines())
    return list({(row["benchmark"], row["figure"]): row for row in rows if "figure" in row}.values())


def markdown(figures: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A table for each benchmark."""
    for name in dict.fromkeys(row["benchmark"] for row in figures):
        yield from ("", f"`python -m benchmarks.{name}`", "", "| figure | value | goal | met |", "|---|---|---|---|")
        for row in figures:
            if row["benchmark"] == name:
                yield f"| {' | '.join(cells(row))} |"


def main() -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of {', '.join(BENCHMARKS)}")
    parser.add_argument("--quick", action="store_true", help="a small run of each, to see that they run")
    parser.add_argument("--show", type=Path, metavar="FILE", help="print the figures of a file, and run nothing")
    chosen = parser.parse_args()
    if unknown := set(chosen.names) - BENCHMARKS.keys():
        parser.error(f"there is no benchmark {', '.join(sorted(unknown))}: choose from {', '.join(BENCHMARKS)}")
    if chosen.show:
        print("\n".join(markdown(figures_in(chosen.show))).strip())
        return 0
    name = time.strftime("%Y-%m-%d") + ("-quick" if chosen.quick else "")
    return run(chosen.names or list(BENCHMARKS), RESULTS / f"{name}.jsonl", quick=chosen.quick)


if __name__ == "__main__":
    sys.exit(main())
