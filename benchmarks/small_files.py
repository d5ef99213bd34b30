"""How many one-line files a second ``llmdo run`` answers, from the events in a queue to the manifests.

    python -m benchmarks.small_files [--quick] [--files 500 --files 2000] [--source queue]

R2, the queue and the model are an ``llmdo local`` with the echo model, ``llmdo`` another process. Each run prints a
JSON line. ``seconds`` are those of the whole command, its start included, and so is ``cpu_ms``, the CPU time a file of
``llmdo`` alone. ``operations`` are R2's operations a file, by kind, with the few of the run itself (heartbeats,
configuration).
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from typing import Any

from benchmarks.reporting.figures import Figure, Goal, at_most, command_line, report
from benchmarks.servers.local_cloudflare import BUCKET, LocalCloudflare, local_cloudflare
from benchmarks.ways.measuring import MODEL, children_cpu_s
from llmdo.storage.objects.opening import open_store
from llmdo.storage.output.manifests import manifest_folders

SOURCES = ("queue", "listing")
GOALS = {"500 files, queue: files": Goal(300), "500 files, queue: operations of R2 a file": at_most(5)}


def main() -> None:
    """Prints a JSON line for each number of files and each source."""
    parser = command_line(__doc__, "small_files")
    parser.add_argument("--files", type=int, action="append", help="how many files; may be repeated")
    parser.add_argument("--source", choices=SOURCES, help="only one of them")
    arguments = parser.parse_args()
    numbers, figures = [20] if arguments.quick else arguments.files or [500, 2_000], []
    for files, source in product(numbers, (arguments.source,) if arguments.source else SOURCES):
        with local_cloudflare() as server:
            row = measure(server, files, source)
        print(json.dumps(row), flush=True)
        name = f"{files:,} files, {source}"
        figures += [
            Figure(f"{name}: files", row["files_per_s"], "/s"),
            Figure(f"{name}: operations of R2 a file", row["operations_per_file"]),
            Figure(f"{name}: CPU a file", row["cpu_ms"], "ms"),
        ]
    report("small_files", figures, GOALS, quick=arguments.quick)


def measure(server: LocalCloudflare, files: int, source: str) -> dict[str, Any]:
    """Uploads the files, runs ``llmdo`` once over all of them, and checks that each has its manifest."""
    folder = "input" if source == "queue" else "listed"  # no event is sent about the second one
    store = open_store(BUCKET)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: store.put(f"{folder}/{n:06d}.jsonl", b'{"prompt": "say %d"}\n' % n), range(files)))
    given = ("--input", f"{BUCKET}/{folder}/") if source == "listing" else ("--queue", "llmdo-input")
    output = f"{BUCKET}/output/"
    server.control("DELETE", "/_stats")
    before, begun = children_cpu_s(), time.monotonic()
    run = [sys.executable, "-m", "llmdo", "run", *given, "--output", output, "--model", MODEL, "--concurrency", "64"]
    subprocess.run([*run, "--json"], check=True, stdout=subprocess.DEVNULL)
    seconds, cpu = time.monotonic() - begun, children_cpu_s() - before
    operations = server.control("GET", "/_stats")["r2"]["by_operation"]
    settled = sum(1 for _ in manifest_folders(store, "output/"))
    assert settled == files, f"{settled} of {files} files are done"
    return {
        "benchmark": "small_files",
        "source": source,
        "files": files,
        "seconds": round(seconds, 2),
        "files_per_s": round(files / seconds, 1),
        "operations": {kind: round(count / files, 3) for kind, count in sorted(operations.items())},
        "operations_per_file": round(sum(operations.values()) / files, 3),
        "cpu_ms": round(1000 * cpu / files, 2),
    }


if __name__ == "__main__":
    main()
