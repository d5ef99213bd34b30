"""How much of an endpoint's speed each way of calling it reaches. Prints one JSON object a line, and a table on stderr.

    python -m benchmarks.infer [--quick] [--rivals] [--rounds 5] [--only WAY]

An endpoint in a process of its own (``benchmarks.servers.fake_endpoint``) answers after 0.2 s, or after a log-normal
time with that mean and sigma 1, or with 1,000 in flight after 1 s; the n-th call takes the same time for all. For each
latency and concurrency the ways take turns, each in a process of its own with an endpoint of its own, from the same
file of prompts. With ``--rounds`` bare aiohttp and "llmdo run" are measured that often, the others once; the figures
are medians. llmdo's ways make 5,000 calls (64 in flight) or 10,000, the others 2,000 (4,000 with 1,000 in flight). The
engine has its window from the start, as the others do (``--concurrency fixed:N``), and so has "llmdo run"; "engine,
learning" is the default, which starts with 20 calls at once and doubles.

``seconds``: from the first call's arrival at the endpoint to its last answer. It cannot be less than the sum of the
calls' latencies divided by ``concurrency``; ``share`` is that divided by ``seconds``. Filling and emptying the window
are part of the time, and with log-normal latencies the last calls hurt: a call of 5 s that comes late keeps everybody
waiting, with hardly anything else in flight. It hurts all alike, hence ``ratio``: a share divided by that of bare
aiohttp, in the same round, with the same latency, concurrency and number of calls. ``cpu_ms_per_call``: of the way's
process, from the first call to the end of all its work; ``start_s`` and ``start_cpu_s`` are what it took until then,
Python's own start included.

The endpoint shares the machine's cores with the way. ``endpoint`` says how much of a core it used, how late its answers
were on average, and the most calls that it saw in flight. A line before the others says how many calls a second it
admits when it answers at once, which must be far more than is measured. ``load`` is the machine's load average of the
last minute; other work on the machine makes all figures worse.

``--rivals`` adds other tools, which it installs below ``~/.cache/llmdo/rivals`` (one may have to be compiled: 10 to 20
minutes). They use the endpoint's OpenAI route, and reach nothing but this machine.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice, pairwise, product
from pathlib import Path
from statistics import median
from types import MappingProxyType
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.reporting.figures import Figure, Goal, at_most, command_line, report
from benchmarks.rivals.installing import CannotInstall, python_with
from benchmarks.servers.fake_endpoint import Seen, Span, fake_endpoint, latencies, seen, take_spans
from benchmarks.ways.contestants import LLMDO_RUN, RIVALS, WAYS, YARDSTICK, Way
from benchmarks.ways.measuring import MEASURED, PROMPT, Used

ROOT = Path(__file__).parents[1]
TIMEOUT_S = 900.0
WAVES = 4  # of calls, at least: the window is filled and emptied but once
MARGIN = 3  # times what is measured must the endpoint admit


# Of the table: title, field of the row, format.
COLUMNS = (
    ("calls/s", "calls_per_s", ",.0f"),
    ("share", "share", ".3f"),
    ("ratio", "ratio", ".3f"),
    ("CPU ms", "cpu_ms_per_call", ".2f"),
    ("peak MB", "peak_rss_mb", ".0f"),
    ("start s", "start_s", ".1f"),
    ("lines/s in shards", "lines_per_s", ",.0f"),
    ("most seen", "most_in_flight", ".0f"),
    ("answers late ms", "late_ms", ".2f"),
)


@dataclass(frozen=True, slots=True)
class Cell:
    """One setting in which all ways are compared: with ``sigma`` 0 the latency is ``mean_s``, else log-normal."""

    sigma: float
    concurrency: int
    calls: int = 10_000
    mean_s: float = 0.2

    @property
    def latency(self) -> str:
        """For people."""
        return "log-normal" if self.sigma else "fixed"

    @property
    def name(self) -> str:
        """In the names of figures."""
        return f"{self.latency} {self.mean_s:g} s, {self.concurrency:,} in flight"


CELLS = (
    Cell(0.0, 64, calls=5_000),
    Cell(0.0, 256),
    Cell(1.0, 64, calls=5_000),
    Cell(1.0, 256),
    Cell(0.0, 1_000, mean_s=1.0),
)
QUICK = (Cell(1.0, concurrency=8, calls=80, mean_s=0.05),)


GOALS = {
    **{f"{LLMDO_RUN.name}, {cell.name}: ratio": Goal(0.97 if cell.concurrency < 1_000 else 0.95) for cell in CELLS},
    **{f"{LLMDO_RUN.name}, {cell.name}: CPU a call": at_most(0.6) for cell in CELLS},
}


class NotMeasured(Exception):
    """A way did not do what it should; says why."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What the endpoint saw of a way, and what the way's process reports.

    Attributes:
        begun: time.monotonic() when the process was started.
        spans: of the calls, one for each prompt.
        before: calls before these: Curator makes one to read the service's limits from its headers.
    """

    begun: float
    spans: list[Span]
    before: int
    seen: Seen
    used: Used


def measure(
    way: Way, cell: Cell, python: str = sys.executable, more: Mapping[str, str] = MappingProxyType({})
) -> Measured:
    """Makes a way do the cell's calls, with a Python that has what it needs. Raises NotMeasured.

    ``more``: variables for its environment.
    """
    with (
        tempfile.TemporaryDirectory(prefix="llmdo-benchmark-") as folder,
        fake_endpoint(cell.mean_s, cell.sigma) as url,
    ):
        prompts = Path(folder, "prompts.jsonl")
        lines = (json.dumps({"id": str(i), "prompt": PROMPT.format(i)}) for i in range(cell.calls))
        prompts.write_text("".join(line + "\n" for line in lines))
        command = [python, "-m", f"benchmarks.{way.module}", url, str(cell.concurrency), str(prompts), folder]
        begun = time.monotonic()
        run_to_end(command, folder, more)
        used = Used(**json.loads(Path(folder, MEASURED).read_text()))
        spans = sorted(take_spans(url))
        if used.answered != cell.calls:
            raise NotMeasured(f"{used.answered:,} of {cell.calls:,} prompts got the right answer")
        if len(spans) != cell.calls and not way.requirements:
            raise NotMeasured(f"it made {len(spans):,} calls for {cell.calls:,} prompts")
        return Measured(begun, spans[-cell.calls :], len(spans) - cell.calls, seen(url), used)


def run_to_end(command: Sequence[str], folder: str, more: Mapping[str, str] = MappingProxyType({})) -> None:
    """Runs a way to its end, without the user's settings and without access to the network. Raises NotMeasured.

    ``more``: variables for its environment.
    """
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "all_proxy", "HTTPS_PROXY"), "http://127.0.0.1:9")
    own = {
        "PATH": os.environ["PATH"],
        "HOME": folder,
        "no_proxy": "127.0.0.1",
        "NO_PROXY": "127.0.0.1",
        **nowhere,
        **more,
    }
    log = Path(folder, "stderr")
    with log.open("w") as stderr:
        try:
            ended = subprocess.run(
                command,
                check=False,
                env=own,
                cwd=ROOT,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                timeout=TIMEOUT_S,
            )
        except subprocess.TimeoutExpired:
            raise NotMeasured(f"it did not end within {TIMEOUT_S:.0f} s") from None
    if ended.returncode:
        lines = log.read_text(errors="replace").strip().splitlines() or ["it said nothing"]
        raise NotMeasured(f"exit code {ended.returncode}: {lines[-1]}")


def figures(measured: Measured, cell: Cell) -> dict[str, Any]:
    """What is printed of a way, all but its ratio."""
    spans, used = measured.spans, measured.used
    begin, end = spans[0][0], max(end for _, end in spans)
    seconds, calls = end - begin, len(spans)
    drawn = islice(latencies(cell.mean_s, cell.sigma), measured.before, measured.before + calls)
    ideal = sum(drawn) / cell.concurrency
    start_cpu = cpu_at(used.cpu, begin)
    return {
        "calls": calls,
        "seconds": round(seconds, 3),
        "calls_per_s": round(calls / seconds, 1),
        "share": round(ideal / seconds, 4),
        "cpu_ms_per_call": round(1000 * (used.cpu[-1][1] - start_cpu) / calls, 3),
        "peak_rss_mb": round(used.rss_mb),
        "calls_before": measured.before,
        "start_s": round(begin - measured.begun, 2),
        "start_cpu_s": round(start_cpu, 2),
        **used.more,
        "endpoint": {
            "most_in_flight": measured.seen.most_in_flight,
            "core": round(measured.seen.cpu_s / seconds, 3),
            "late_ms": round(1000 * measured.seen.late_s / calls, 2),
        },
    }


def cpu_at(samples: Sequence[tuple[float, float]], moment: float) -> float:
    """CPU seconds used until a moment, interpolated between samples."""
    for (before, used_before), (after, used_after) in pairwise(samples):
        if before <= moment <= after and before < after:
            return used_before + (used_after - used_before) * (moment - before) / (after - before)
    raise ValueError("the process was not looked at then")


def check_endpoint(cells: Sequence[Cell]) -> dict[str, Any]:
    """How many calls a second the endpoint admits, from bare aiohttp, when it answers at once."""
    most = max(cell.concurrency / cell.mean_s for cell in cells)
    at_once = replace(cells[0], sigma=0.0, mean_s=0.0)
    spans = measure(YARDSTICK, at_once).spans
    rate = len(spans) / (max(end for _, end in spans) - spans[0][0])
    return {
        "benchmark": "infer",
        "way": "the endpoint, answering at once",
        "calls_per_s": round(rate, 1),
        "times_the_fastest_limit": round(rate / most, 2),
        "enough": rate > MARGIN * most,
    }


def rows(
    ways: Sequence[Way], cells: Sequence[Cell], rounds: int, again: Sequence[Way] = ()
) -> Iterator[dict[str, Any]]:
    """Measures all ways in each cell, in turns; in further rounds those of ``again``.

    Our own ways must work; a rival that does not gets a reason.
    """
    pythons, reasons = install(ways)
    for cell, number in product(cells, range(1, rounds + 1)):
        yardsticks: dict[int, float] = {}  # by number of calls: with few of them, the last ones hurt more
        for way in ways if number == 1 else again:
            row: dict[str, Any] = {
                "benchmark": "infer",
                "way": way.name,
                "latency": cell.latency,
                "mean_s": cell.mean_s,
                "concurrency": cell.concurrency,
                "round": number,
                "load": round(os.getloadavg()[0], 1),
            }
            mine = replace(cell, calls=min(cell.calls, max(way.most_calls, WAVES * cell.concurrency)))
            try:
                if way.name in reasons:
                    raise NotMeasured(reasons[way.name])
                if mine.calls not in yardsticks and way is not YARDSTICK:
                    yardsticks[mine.calls] = figures(measure(YARDSTICK, mine, sys.executable), mine)["share"]
                row |= figures(measure(way, mine, pythons[way.name]), mine)
            except NotMeasured as error:
                if not way.requirements:
                    raise SystemExit(f"{way.name}: {error}") from error
                yield row | {"not_measured": str(error)}
                continue
            if way is YARDSTICK:
                yardsticks[mine.calls] = row["share"]
            yield row | {"ratio": round(row["share"] / yardsticks[mine.calls], 3)}


def install(ways: Sequence[Way]) -> tuple[dict[str, str], dict[str, str]]:
    """The Python for each way; for a rival that cannot be installed, the reason."""
    pythons, reasons = {}, {}
    for way in ways:
        try:
            pythons[way.name] = (
                str(python_with(way.name, way.requirements, way.build)) if way.requirements else sys.executable
            )
        except CannotInstall as error:
            reasons[way.name] = f"it cannot be installed: {error}"
    return pythons, reasons


def table(results: Sequence[dict[str, Any]]) -> Table:
    """All results for people; of several rounds, the median."""
    shown = Table("latency", "in flight", "way", *(title for title, _, _ in COLUMNS))
    groups: dict[tuple[str, int, str], list[dict[str, Any]]] = {}
    for row in results:
        if "ratio" in row:
            groups.setdefault((row["latency"], row["concurrency"], row["way"]), []).append(row | row["endpoint"])
    last: tuple[str, int] | None = None
    for (latency, concurrency, way), rounds in groups.items():
        if last not in (None, (latency, concurrency)):
            shown.add_section()
        last = (latency, concurrency)
        values = ([row[name] for row in rounds if row.get(name) is not None] for _, name, _ in COLUMNS)
        cells = (format(median(v), form) if v else "" for v, (_, _, form) in zip(values, COLUMNS, strict=True))
        shown.add_row(latency, str(concurrency), way, *cells)
    return shown


def run(ways: Sequence[Way], cells: Sequence[Cell], rounds: int = 1) -> list[dict[str, Any]]:
    """Measures and prints. The yardstick, "llmdo run" and a way that was chosen alone are measured in each round."""
    again = [way for way in ways if way in (YARDSTICK, LLMDO_RUN)] if len(ways) > 2 else ways
    endpoint = check_endpoint(cells)
    print(json.dumps(endpoint), flush=True)
    results = []
    for row in rows(ways, cells, rounds, again):
        print(json.dumps(row), flush=True)
        results.append(row)
    console = Console(stderr=True, width=None if sys.stderr.isatty() else 160)
    console.print(table(results))
    for name, why in dict.fromkeys((row["way"], row["not_measured"]) for row in results if "not_measured" in row):
        console.print(f"{name}: {why}", markup=False, highlight=False)
    if not endpoint["enough"]:
        console.print(f"The endpoint admits less than {MARGIN} times the limit: it may be what is measured.")
    return results


def main() -> None:
    """The command."""
    parser = command_line(__doc__, "infer")
    parser.add_argument("--rivals", action="store_true", help="install other tools, and measure them too")
    parser.add_argument("--only", choices=[way.name for way in WAYS + RIVALS], help="one way, and bare aiohttp")
    parser.add_argument("--rounds", type=int, default=1, help="of bare aiohttp and llmdo run")
    chosen = parser.parse_args()
    wanted = [way for way in WAYS + RIVALS if chosen.only in (None, way.name) or way is YARDSTICK]
    ways = [way for way in wanted if not way.requirements or chosen.rivals or chosen.only]
    results = run(ways, QUICK if chosen.quick else CELLS, chosen.rounds)
    report("infer", ratios(results), GOALS, quick=chosen.quick)


def ratios(results: Sequence[dict[str, Any]]) -> Iterator[Figure]:
    """The medians of what each way reached in each cell."""
    measured: dict[str, list[dict[str, Any]]] = {}
    for row in results:
        if "ratio" in row:
            cell = Cell(float(row["latency"] != "fixed"), row["concurrency"], mean_s=row["mean_s"])
            measured.setdefault(f"{row['way']}, {cell.name}", []).append(row)
    for name, rounds in measured.items():
        if not name.startswith(YARDSTICK.name):
            yield Figure(f"{name}: ratio", round(median(row["ratio"] for row in rounds), 3))
        yield Figure(f"{name}: CPU a call", round(median(row["cpu_ms_per_call"] for row in rounds), 3), "ms")


if __name__ == "__main__":
    main()
