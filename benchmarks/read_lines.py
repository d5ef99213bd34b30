"""ReadLines against Beam's own ReadAllFromText, on FnApiRunner, over one local file.

    python -m benchmarks.read_lines [--quick] [--lines 500000] [--runs 3]

Prints JSON lines: one for each run, and at the end the medians and their ratio. Each run is a process of its own, so
that its peak memory is its own; the two readers take turns.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.timestamp import MIN_TIMESTAMP
from apache_beam.utils.windowed_value import WindowedValue

from benchmarks.reporting.figures import Figure, at_most, command_line, report
from benchmarks.ways.measuring import peak_mb
from llmdo.storage.objects.local import LocalStore
from llmdo.storage.objects.store import Location
from llmdo.transforms.elements import FileVersion, OpenFile
from llmdo.transforms.lines.read_lines import ReadLines
from llmdo.transforms.lines.reading import Reading
from llmdo.transforms.run import Run

RATIO = "time of ReadLines, by that of ReadAllFromText"
GOALS = {RATIO: at_most(1.0)}
READERS = ("ReadLines", "ReadAllFromText")
PROMPT = (
    "Classify the sentiment of this customer's review in one word: "
    "The delivery was late, but the product itself is great. "
)


class _CountElements(beam.DoFn):
    """Does next to nothing with each element, so that reading is what is measured."""

    def start_bundle(self) -> None:
        self._count = 0

    def process(self, _element: Any) -> None:
        self._count += 1

    def finish_bundle(self) -> Iterator[WindowedValue]:
        yield WindowedValue(self._count, MIN_TIMESTAMP, (GlobalWindow(),))


def write_prompts(path: Path, lines: int) -> None:
    """A file of prompts, some 160 bytes a line."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"id": f"review-{i:08d}", "prompt": PROMPT}) + "\n" for i in range(lines))


def run_reader(reader: str, path: Path) -> dict[str, Any]:
    """Reads the file once in this process. Seconds are the pipeline's, without building it or starting Python."""
    root = beam.Pipeline(runner="FnApiRunner", options=PipelineOptions([]))
    if reader == "ReadLines":
        info = LocalStore(path.parent).stat(path.name)
        file = FileVersion(str(path.parent), path.name, info.etag, info.size)
        run = Run("benchmark", Location("out", ""))
        read = root | beam.Create([OpenFile(file, ((0, info.size),))]) | ReadLines(Reading(), run)
    else:
        read = root | beam.Create([str(path)]) | beam.io.ReadAllFromText()
    counted = path.with_suffix(".count")
    _ = (
        read
        | "Count each bundle" >> beam.ParDo(_CountElements())
        | "Add up" >> beam.CombineGlobally(sum)
        | "Keep" >> beam.Map(lambda count: counted.write_text(str(count)))
    )
    begun = time.perf_counter()
    root.run().wait_until_finish()
    seconds = time.perf_counter() - begun
    lines = int(counted.read_text())
    return {
        "reader": reader,
        "lines": lines,
        "seconds": round(seconds, 3),
        "lines_per_second": round(lines / seconds),
        "peak_rss_mb": round(peak_mb()),
    }


def main() -> None:
    """Runs both readers in turn and prints the ratio of their median times, ours to theirs."""
    parser = command_line(__doc__, "read_lines")
    parser.add_argument("--lines", type=int, default=500_000)
    parser.add_argument("--runs", type=int, default=3, help="of each reader")
    parser.add_argument("--reader", choices=READERS, help=argparse.SUPPRESS)  # one run, in a process of its own
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.reader:
        print(json.dumps(run_reader(arguments.reader, arguments.file)))
        return
    lines, runs = (20_000, 1) if arguments.quick else (arguments.lines, arguments.runs)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "prompts.jsonl"
        write_prompts(path, lines)
        results: dict[str, list[dict[str, Any]]] = {reader: [] for reader in READERS}
        for _ in range(runs):
            for reader in READERS:
                command = [sys.executable, "-m", "benchmarks.read_lines", "--reader", reader, "--file", str(path)]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                print(done.stdout.strip(), flush=True)
                results[reader].append(json.loads(done.stdout))
        ours, theirs = (median(run["seconds"] for run in results[reader]) for reader in READERS)
        summary = {
            "benchmark": "read_lines",
            "bytes": path.stat().st_size,
            "seconds": {"ReadLines": ours, "ReadAllFromText": theirs},
            "peak_rss_mb": {reader: max(run["peak_rss_mb"] for run in results[reader]) for reader in READERS},
            "ratio": round(ours / theirs, 3),
        }
        print(json.dumps(summary))
    figures = [
        Figure(RATIO, summary["ratio"]),
        *(Figure(f"{reader}: peak memory", peak, "MB") for reader, peak in summary["peak_rss_mb"].items()),
        *(Figure(f"{reader}: lines", round(lines / took), "/s") for reader, took in summary["seconds"].items()),
    ]
    report("read_lines", figures, GOALS, quick=arguments.quick)


if __name__ == "__main__":
    main()
