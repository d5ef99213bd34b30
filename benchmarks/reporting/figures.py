"""A benchmark's figures and their goals: a JSON line each on stdout, and a table for people on stderr.

Each benchmark declares its goals as ``GOALS``, by the names of its figures. A figure that misses its goal fails
nothing: the machine may be busy with other work. A quick run is too short to be judged.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Goal:
    """What a figure should be at least, or with ``most`` at most."""

    bound: float
    most: bool = False

    def met_by(self, value: float) -> bool:
        """Whether the figure is good enough."""
        return value <= self.bound if self.most else value >= self.bound

    def __str__(self) -> str:
        return f"{'≤' if self.most else '≥'} {self.bound:,g}"


def at_most(bound: float) -> Goal:
    """For times, sizes, and parts that are lost."""
    return Goal(bound, most=True)


@dataclass(frozen=True, slots=True)
class Figure:
    """What was measured. A share or a ratio has no unit."""

    name: str
    value: float
    unit: str = ""


def report(benchmark: str, figures: Iterable[Figure], goals: Mapping[str, Goal], *, quick: bool = False) -> None:
    """Prints all figures, and the goals for which nothing was measured (a quick run leaves out much)."""
    found = {figure.name: figure for figure in figures}
    rows = [row_of(benchmark, figure, goals.get(figure.name), quick=quick) for figure in found.values()]
    if not quick:
        rows += [row_of(benchmark, Figure(name, float("nan")), goals[name]) for name in goals if name not in found]
    for row in rows:
        print(json.dumps(row, ensure_ascii=False), flush=True)
    note = " (a quick run, too short to be judged)" if quick else ""
    console = Console(stderr=True, width=None if sys.stderr.isatty() else 160)
    console.print(f"{benchmark}{note}, load {os.getloadavg()[0]:.1f}:", highlight=False)
    console.print(table(rows))


def row_of(benchmark: str, figure: Figure, goal: Goal | None, *, quick: bool = False) -> dict[str, Any]:
    """One figure for machines. ``met`` is null if there is no goal, or if it was not, or hardly, measured."""
    measured = figure.value == figure.value  # not NaN
    return {
        "benchmark": benchmark,
        "figure": figure.name,
        "value": figure.value if measured else None,
        "unit": figure.unit,
        "goal": str(goal) if goal else None,
        "met": goal.met_by(figure.value) if goal and measured and not quick else None,
    }


def table(rows: Iterable[Mapping[str, Any]]) -> Table:
    """The figures for people."""
    shown = Table("figure", "value", "goal", "met")
    for row in rows:
        shown.add_row(*cells(row))
    return shown


def cells(row: Mapping[str, Any]) -> tuple[str, str, str, str]:
    """The texts of a row's columns: figure, value, goal, met."""
    value = "not measured" if row["value"] is None else f"{row['value']:,.10g} {row['unit']}".strip()
    return row["figure"], value, row["goal"] or "", {None: "", True: "yes", False: "no"}[row["met"]]


def command_line(doc: str, name: str) -> argparse.ArgumentParser:
    """A parser that knows ``--quick``; its help is a benchmark's docstring, with its example."""
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}", description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a small run of a minute at most, to see that it runs")
    return parser
