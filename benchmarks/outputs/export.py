"""How fast ``llmdo export`` writes tables, and what is in memory meanwhile. Prints one JSON object a line.

    python -m benchmarks.outputs.export [--quick] [--rows 1000000] [--repeat 3]

One local file of prompts with four fields, all answered: shards of 100 rows, each of about 900 bytes. ``llmdo export``
runs as a process of its own, joins the rows to the prompts, and writes JSON lines, CSV and Parquet in turns.
``late``: the type of a field changes in the last tenth, so that Parquet needs two passes. ``rows_per_s``: by the time
from the start of the process to its end. ``peak_mb``: of its memory; also with a tenth of the rows, to compare.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.reporting.figures import Figure, Goal, at_most, command_line, report
from llmdo.storage.objects.content import content_hash
from llmdo.storage.objects.opening import open_store
from llmdo.storage.output.manifests import Manifest, ManifestShard, file_folder, put_shard, write_manifest

SHARD = 100
FORMS = ("jsonl", "csv", "parquet")
GROWTH = "peak memory of Parquet, by that with a tenth of the rows"
GOALS = {
    "jsonl: rows": Goal(100_000),
    "parquet: rows": Goal(40_000),
    GROWTH: at_most(1.5),
}


def make_output(folder: Path, rows: int, *, late: bool) -> None:
    """A source and its output, as a run leaves them."""
    source = folder / "in" / "prompts.jsonl"
    source.parent.mkdir(parents=True)
    places, at = [], 0
    with source.open("wb") as file:
        for number in range(rows):
            score = number + 0.5 if late and number >= rows * 9 // 10 else number
            line = json.dumps(
                {"id": f"r{number}", "prompt": f"Why is sky {number} blue?", "lang": "de", "score": score}
            )
            file.write(line.encode() + b"\n")
            places.append((at, at + len(line) + 1))
            at = places[-1][1]
    etag, store = content_hash(str(source)), open_store(str(folder / "out"))
    shards = []
    for first in range(0, rows, SHARD):
        some = [
            (start, stop, answer(first + n, start, stop, etag))
            for n, (start, stop) in enumerate(places[first : first + SHARD])
        ]
        made = put_shard(store, file_folder("", "", source.name, etag), "answers", some, configuration="c")
        shards.append(ManifestShard(name=made.name, kind=made.kind, lines=made.lines, tiles=made.tiles))
    manifest = Manifest(
        **{"bucket": "", "folder": str(source.parent), "key": source.name, "etag": etag, "size": at, "length": at},
        **{"configuration": "c", "run_id": "r", "created_at": "2026-11-30T10:00:00Z", "answered": rows, "failed": 0},
        **{"blank": 0, "input_tokens": 0, "output_tokens": 0},
        shards=tuple(shards),
    )
    write_manifest(store, file_folder("", "", source.name, etag), manifest)


def answer(number: int, start: int, stop: int, etag: str) -> bytes:
    """A row as a run writes it."""
    message = {"role": "assistant", "content": "Blue light is scattered more than red. " * 6}
    tokens = {"prompt_tokens": 19, "completion_tokens": 31, "total_tokens": 50}
    row = {
        "id": f"r{number}",
        "custom_id": f"r{number}",
        "response": {
            "status_code": 200,
            "request_id": "req_0123456789",
            "body": {
                "id": f"chatcmpl-{number}",
                "object": "chat.completion",
                "created": 1_700_000_000,
                "model": "gpt-4o-mini",
                "choices": [{"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}],
                "usage": tokens,
            },
        },
        "error": None,
        "model": "openai/gpt-4o-mini",
        "usage": {"input_tokens": 19, "output_tokens": 31, "total_tokens": 50, "cost_usd": 0.00007526},
        "source": {"key": "prompts.jsonl", "etag": etag, "offset": start, "length": stop - start},
        "attempts": 1,
        "latency_ms": 812,
        "metadata": {"lang": "de", "score": number},
    }
    return json.dumps(row, separators=(",", ":")).encode()


def measure(folder: Path, rows: int, form: str, name: str) -> dict[str, Any]:
    """One export."""
    target = folder / f"answers.{form}"
    begun = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "llmdo", "export", str(folder / "out"), "--to", str(target), "--json"],
        stdout=subprocess.PIPE,
    )
    assert process.stdout
    said = json.loads(process.stdout.read())
    used = os.wait4(process.pid, 0)[2]
    seconds = time.perf_counter() - begun
    assert (said["answers"], said["joined"]) == (rows, 1), said
    return {
        "benchmark": "export",
        "to": name,
        "rows": rows,
        "rows_per_s": round(rows / seconds),
        "cpu_us_per_row": round((used.ru_utime + used.ru_stime) / rows * 1e6, 1),
        "peak_mb": round(used.ru_maxrss / (1024 if sys.platform == "linux" else 1 << 20)),
        "bytes": target.stat().st_size,
        "load": round(os.getloadavg()[0], 1),
    }


def measured(rows: int, repeat: int) -> Iterator[dict[str, Any]]:
    """All exports, each format in turns."""
    with tempfile.TemporaryDirectory(prefix="llmdo-benchmark-") as place:
        for name, count, late in (("small", rows // 10, False), ("plain", rows, False), ("late", rows, True)):
            folder = Path(place, name)
            # Elsewhere: what a process has in memory when it starts another one counts for that one, too.
            making = [sys.executable, "-m", "benchmarks.outputs.export", "--rows", str(count), "--make", str(folder)]
            subprocess.run([*making, *(["--late"] if late else [])], check=True)
            forms = FORMS if name == "plain" else ("parquet",)
            for _ in range(repeat if name == "plain" else 1):
                for form in forms:
                    yield measure(folder, count, form, form if name == "plain" else f"{form}, {name}")


def main() -> None:
    """Prints what each export took, and the medians."""
    parser = command_line(__doc__, "export")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--late", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.make:
        make_output(arguments.make, arguments.rows, late=arguments.late)
        return
    rows, repeat = (20_000, 1) if arguments.quick else (arguments.rows, arguments.repeat)
    found: dict[str, list[dict[str, Any]]] = {}
    for row in measured(rows, repeat):
        print(json.dumps(row), flush=True)
        found.setdefault(row["to"], []).append(row)
    figures = []
    for name, some in found.items():
        figures += [
            Figure(f"{name}: rows", median(row["rows_per_s"] for row in some), "/s"),
            Figure(f"{name}: CPU a row", median(row["cpu_us_per_row"] for row in some), "µs"),
            Figure(f"{name}: peak memory", max(row["peak_mb"] for row in some), "MB"),
        ]
    peaks = {name: max(row["peak_mb"] for row in some) for name, some in found.items()}
    figures.append(Figure(GROWTH, round(peaks["parquet"] / peaks["parquet, small"], 2)))
    report("export", figures, GOALS, quick=arguments.quick)


if __name__ == "__main__":
    main()
