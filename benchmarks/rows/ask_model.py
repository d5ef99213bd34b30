"""What ``llmdo.AskModel`` costs over the bare engine. Prints JSON lines, and a table on stderr.

    python -m benchmarks.rows.ask_model [--quick]

The engine, to which one thread submits, and a pipeline with AskModel on FnApiRunner ask the same 10,000 prompts of the
same endpoint with at most 256 calls in flight, in turns, each as a process of its own. Both begin with 20 calls at once
and double, as is the default. The pipeline's process has called gc.freeze(), as docs/guide/library.md advises.
``share`` and ``cpu_ms_per_call`` are those of ``benchmarks.infer``; the goal is for the share of AskModel, divided by
that of the engine in the same round.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from statistics import median
from typing import Any

from benchmarks.infer import Cell, figures, measure
from benchmarks.reporting.figures import Figure, Goal, command_line, report
from benchmarks.ways.contestants import Way

_BOTH = Way("engine", "ways.learning_engine"), Way("AskModel", "ways.ask_model")
FIXED, RANDOM = Cell(0.0, concurrency=256), Cell(1.0, concurrency=256)
QUICK = Cell(0.0, concurrency=8, calls=80, mean_s=0.05)
GOALS = {f"{cell.name}: AskModel, against the engine": Goal(0.95) for cell in (FIXED, RANDOM)}


def runs(cells: Sequence[Cell], rounds: int) -> Iterator[dict[str, Any]]:
    """Rows of the engine and of AskModel, in turns."""
    for cell in cells:
        for number in range(1, rounds + 1):
            for way in _BOTH:
                about = {"benchmark": "rows.ask_model", "way": way.name, "cell": cell.name, "round": number}
                yield {**about, "load": round(os.getloadavg()[0], 1), **figures(measure(way, cell), cell)}


def gathered(rows: Sequence[dict[str, Any]]) -> Iterator[Figure]:
    """The medians over the rounds of each cell."""
    for cell in dict.fromkeys(row["cell"] for row in rows):
        engine, step = ([row for row in rows if (row["cell"], row["way"]) == (cell, way.name)] for way in _BOTH)
        ratios = [one["share"] / other["share"] for one, other in zip(step, engine, strict=True)]
        yield Figure(f"{cell}: AskModel, against the engine", round(median(ratios), 3))
        for way, found in zip(_BOTH, (engine, step), strict=True):
            cpu = median(row["cpu_ms_per_call"] for row in found)
            yield Figure(f"{cell}: {way.name}, CPU a call", round(cpu, 3), "ms")


def main() -> None:
    """The command."""
    chosen = command_line(__doc__, "rows.ask_model").parse_args()
    rows = []
    for row in runs((QUICK,) if chosen.quick else (FIXED, RANDOM), 1 if chosen.quick else 5):
        print(json.dumps(row), flush=True)
        rows.append(row)
    report("rows.ask_model", list(gathered(rows)), GOALS, quick=chosen.quick)


if __name__ == "__main__":
    main()
