"""``llmdo run`` on the direct runner, from a JSONL file to shards and manifest in a local folder, with its ledger."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from benchmarks.servers.fake_endpoint import account_at
from benchmarks.ways.measuring import MODEL, Task, run
from llmdo.runners.cli import main as cli
from llmdo.storage.objects.local import LocalStore
from llmdo.storage.output.manifests import MANIFEST_NAME, Manifest


def answer_file(task: Task) -> tuple[int, dict[str, Any]]:
    """Runs the command."""
    os.environ |= account_at(task.url)
    output = Path(task.folder, "output")
    command = [
        "run",
        task.prompts,
        "--output",
        str(output),
        "--model",
        MODEL,
        "--concurrency",
        f"fixed:{task.concurrency}",
    ]
    try:
        cli.main([*command, "--json"])
    except SystemExit as ended:
        if ended.code:
            raise
    return figures(output)


def figures(output: Path) -> tuple[int, dict[str, Any]]:
    """Lines answered, according to the manifest, and when shards were written: seconds from the first to the last, and
    lines a second of those after the first.
    """
    (found,) = (info.key for info in LocalStore(output).list("") if info.key.endswith(MANIFEST_NAME))
    manifest = Manifest.model_validate_json((output / found).read_bytes())
    folder = (output / found).parent
    written = sorted(((folder / shard.name).stat().st_mtime_ns / 1e9, shard.lines) for shard in manifest.shards)
    seconds = written[-1][0] - written[0][0]
    later = sum(lines for _, lines in written[1:])
    more = {
        "shards": len(written),
        "shards_s": round(seconds, 3),
        "lines_per_s": round(later / seconds, 1) if seconds else None,
    }
    return manifest.answered, more


if __name__ == "__main__":
    run(answer_file)
