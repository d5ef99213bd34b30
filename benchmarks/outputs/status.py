"""How long ``llmdo status`` takes for a large output in R2. Prints one JSON line.

    python -m benchmarks.outputs.status [--quick] [--files 100000]

The output is in ``llmdo local``, whose listings answer after 80 ms, as R2's do: a manifest and a shard for each file.
``seconds`` and ``cpu_s`` are those of the command; ``lists`` how many listings it asked for, and ``pages`` how many
pages the output has. ``one_by_one_s`` is what the same listing takes page after page, in this process.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.reporting.figures import Figure, at_most, command_line, report
from benchmarks.servers.local_cloudflare import BUCKET, LocalCloudflare, local_cloudflare
from benchmarks.ways.measuring import children_cpu_s
from llmdo.local.r2.object_file import ObjectFile, Stored
from llmdo.storage.objects.opening import open_store
from llmdo.storage.output.manifests import Manifest, ManifestShard, file_folder

LIST_S, PAGE = 0.08, 1000
OUTPUT = "output/"
GOALS = {
    "llmdo status of 100,000 files": at_most(10.0),
    "listings, of those that there are pages": at_most(1.13),
}


def fill(objects: Path, files: int) -> None:
    """Writes an output of files of one line into the file from which ``llmdo local`` reads its objects."""
    bucket = BUCKET.removeprefix("r2://")
    stored = ObjectFile(objects)
    stored.add_bucket(bucket)
    stored.begin()
    now = datetime.now(UTC)
    for number in range(files):
        for key, body in output_of(bucket, number, now):
            etag = hashlib.md5(body, usedforsecurity=False).hexdigest()
            stored.save(Stored(bucket, key, etag, now, {}, body))
    stored.close()


def output_of(bucket: str, number: int, now: datetime) -> Iterator[tuple[str, bytes]]:
    """What one file leaves."""
    key = f"input/{number:06d}.jsonl"
    etag = hashlib.md5(key.encode(), usedforsecurity=False).hexdigest()
    folder = file_folder(OUTPUT, bucket, key, etag)
    shard = ManifestShard(name=f"shard-000000000000-{etag[:16]}.jsonl", kind="answers", lines=1, tiles="0+60")
    about: dict[str, Any] = {"bucket": bucket, "key": key, "etag": etag, "size": 60, "length": 60}
    counts = {"answered": 1, "failed": 0, "blank": 0, "input_tokens": 20, "output_tokens": 30, "unpriced": 0}
    of_run = {"configuration": "c", "run_id": "r", "created_at": now.isoformat()}
    manifest = Manifest(**about, **counts, **of_run, cost_usd=0.0001, shards=(shard,))
    yield folder + "_manifest.json", manifest.model_dump_json(indent=1).encode()
    yield folder + shard.name, b'{"id":"1"}\n'


def measure(server: LocalCloudflare, files: int) -> dict[str, Any]:
    """The command, and the same listing page after page."""
    server.control("POST", "/_faults", {"target": "r2", "match": "list-type=2", "latency_s": LIST_S})
    server.control("DELETE", "/_stats")
    begun, before = time.monotonic(), children_cpu_s()
    command = [sys.executable, "-m", "llmdo", "status", f"{BUCKET}/{OUTPUT}", "--json"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])
    seconds, cpu = time.monotonic() - begun, children_cpu_s() - before
    said = json.loads(done.stdout)
    assert said["files"]["done"] == files, said["files"]
    lists = server.control("GET", "/_stats")["r2"]["by_operation"]["ListObjects"]
    return {
        "files": files,
        "seconds": round(seconds, 2),
        "cpu_s": round(cpu, 2),
        "manifests_read": said["manifests_read"],
        "lists": lists,
        "pages": -(-2 * files // PAGE),
        "one_by_one_s": round(one_by_one(), 2),
    }


def one_by_one() -> float:
    """Seconds of a listing whose next page is asked for when the one before it is there."""
    begun, store, asked = time.monotonic(), open_store(BUCKET), dict[str, str]()
    token = "first"
    while token:
        _, token = store._page(OUTPUT, asked)  # type: ignore[attr-defined]
        asked = {"continuation-token": token}
    return time.monotonic() - begun


def main() -> None:
    """Fills the server, and looks at it."""
    parser = command_line(__doc__, "status")
    parser.add_argument("--files", type=int, default=100_000)
    chosen = parser.parse_args()
    files = 5_000 if chosen.quick else chosen.files
    with local_cloudflare(lambda folder: fill(folder / "objects.sqlite", files)) as server:
        result = measure(server, files)
    print(json.dumps({"benchmark": "status", **result, "load": round(os.getloadavg()[0], 2)}))
    figures = [
        Figure(f"llmdo status of {files:,} files", result["seconds"], "s"),
        Figure("CPU of the command", result["cpu_s"], "s"),
        Figure("the listing alone, page after page", result["one_by_one_s"], "s"),
        Figure("listings, of those that there are pages", round(result["lists"] / result["pages"], 3)),
    ]
    report("status", figures, GOALS, quick=chosen.quick)


if __name__ == "__main__":
    main()
