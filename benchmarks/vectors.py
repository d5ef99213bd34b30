"""How many texts a second ``llmdo run`` embeds, by the vectors' dimensions. Prints one JSON object a line.

    python -m benchmarks.vectors [--quick] [--lines 20000] [--dimensions 4 1024] [--repeat 1]

An endpoint in a process of its own (``benchmarks.servers.fake_endpoint``) answers at once; ``llmdo run`` on the direct
runner reads a file of one text a line, 256 texts go into each call, 8 calls are in flight, and ledger, shards and
manifest are written to a local folder. ``sends``: whether the endpoint packs its vectors when it is asked to (base64),
or writes numbers whatever it is asked. ``options``: of the command; by default rows hold numbers, too.

``lines_per_s``: from the first call's arrival to the last shard; ``cpu_ms_per_line``: of llmdo's process, from the
first call to the end of all its work. ``endpoint_core``: how much of a core the endpoint used meanwhile.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.infer import NotMeasured, cpu_at, run_to_end
from benchmarks.reporting.figures import Figure, Goal, at_most, command_line, report
from benchmarks.servers.fake_endpoint import fake_endpoint, seen, take_spans
from benchmarks.ways.measuring import MEASURED, Used
from benchmarks.ways.vectors import OPTIONS

CALLS_IN_FLIGHT = 8
ROWS = {"": "numbers", "--vectors base64": "base64"}  # options of llmdo run, what its rows hold
# 4,000 lines a second on one core, whatever the endpoint sends and the rows hold.
_NAMES = [f"1,024 dimensions, {sends} to {rows}" for sends in ("base64", "numbers") for rows in ROWS.values()]
GOALS = {f"{name}: lines": Goal(4_000) for name in _NAMES} | {f"{name}: CPU a line": at_most(0.25) for name in _NAMES}


def measure(lines: int, dimensions: int, *, packs: bool, options: str = "") -> dict[str, Any]:
    """One run. Raises NotMeasured."""
    with (
        tempfile.TemporaryDirectory(prefix="llmdo-benchmark-") as folder,
        fake_endpoint(0.0, dimensions=dimensions, packs=packs) as url,
    ):
        texts = Path(folder, "texts.jsonl")
        texts.write_text(
            "".join(f'{{"id": "{n}", "text": "The delivery of order {n} was late."}}\n' for n in range(lines))
        )
        command = [sys.executable, "-m", "benchmarks.ways.vectors", url, str(CALLS_IN_FLIGHT), str(texts), folder]
        run_to_end(command, folder, {OPTIONS: options})
        used = Used(**json.loads(Path(folder, MEASURED).read_text()))
        if used.answered != lines:
            raise NotMeasured(f"{used.answered:,} of {lines:,} texts have a vector")
        begin, recorded = min(begin for begin, _ in take_spans(url)), seen(url)
        last = max(path.stat().st_mtime for path in Path(folder, "output").rglob("shard-*"))
    seconds = last - (time.time() - time.monotonic()) - begin
    return {
        "benchmark": "vectors",
        "dimensions": dimensions,
        "sends": "base64" if packs else "numbers",
        "options": options,
        "lines": lines,
        "lines_per_s": round(lines / seconds),
        "cpu_ms_per_line": round(1000 * (used.cpu[-1][1] - cpu_at(used.cpu, begin)) / lines, 3),
        "row_bytes": used.more["row_bytes"],
        "peak_rss_mb": round(used.rss_mb),
        "endpoint_core": round(recorded.cpu_s / seconds, 2),
        "load": round(os.getloadavg()[0], 1),
    }


def main() -> None:
    """The command."""
    parser = command_line(__doc__, "vectors")
    parser.add_argument("--lines", type=int, default=20_000)
    parser.add_argument("--dimensions", type=int, nargs="+", default=[4, 1024])
    parser.add_argument("--repeat", type=int, default=1, help="rounds")
    chosen = parser.parse_args()
    lines, rounds = (2_000, 1) if chosen.quick else (chosen.lines, chosen.repeat)
    rows = []
    for _, dimensions, packs, options in product(range(rounds), chosen.dimensions, (True, False), ROWS):
        if options and dimensions == min(chosen.dimensions):
            continue  # only what all others are compared with
        rows.append(measure(lines, dimensions, packs=packs, options=options))
        print(json.dumps(rows[-1]), flush=True)
    report("vectors", figures(rows), GOALS, quick=chosen.quick)


def figures(rows: Sequence[dict[str, Any]]) -> Iterator[Figure]:
    """The medians over the rounds."""
    for name in dict.fromkeys(map(name_of, rows)):
        same = [row for row in rows if name_of(row) == name]
        yield Figure(f"{name}: lines", median(row["lines_per_s"] for row in same), "/s")
        yield Figure(f"{name}: CPU a line", median(row["cpu_ms_per_line"] for row in same), "ms")
        yield Figure(f"{name}: a row", median(row["row_bytes"] for row in same), "bytes")


def name_of(row: Mapping[str, Any]) -> str:
    """What is compared."""
    return f"{row['dimensions']:,} dimensions, {row['sends']} to {ROWS[row['options']]}"


if __name__ == "__main__":
    main()
