"""How many texts a second ``llmdo run`` embeds, by the vectors' dimensions. Prints one JSON object a line.

    python -m benchmarks.vectors [--lines N] [--dimensions N …] [--repeat N] [--options='--vectors base64']

An endpoint in a process of its own (see ``benchmarks.fake_endpoint``) answers at once; ``llmdo run`` on the direct
runner reads a file of one text a line, 256 texts go into each call, 8 calls are in flight, and ledger, shards and
manifest are written to a local folder. ``sends``: whether the endpoint packs its vectors when it is asked to (base64),
or writes numbers whatever it is asked.

``lines_per_s``: from the first call's arrival to the last shard; ``cpu_ms_per_line``: of llmdo's process, from the
first call to the end of all its work. ``endpoint_core``: how much of a core the endpoint used meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.fake_endpoint import fake_endpoint, seen, take_spans
from benchmarks.infer import NotMeasured, cpu_at, run_to_end
from benchmarks.measuring import MEASURED, Used
from benchmarks.ways.vectors import OPTIONS

CALLS_IN_FLIGHT = 8


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
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lines", type=int, default=20_000)
    parser.add_argument("--dimensions", type=int, nargs="+", default=[4, 1024])
    parser.add_argument("--repeat", type=int, default=1, help="rounds")
    parser.add_argument("--options", default="", help="of llmdo run, separated by spaces")
    chosen = parser.parse_args()
    for _ in range(chosen.repeat):
        for dimensions in chosen.dimensions:
            for packs in (True, False):
                row = measure(chosen.lines, dimensions, packs=packs, options=chosen.options)
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
