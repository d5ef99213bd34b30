"""``llmdo run`` over texts to embed, on the direct runner, with its ledger; more options of the command may follow."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from benchmarks.ways.beam import figures
from benchmarks.ways.measuring import Task, run
from llmdo.runners.cli import main as cli

OPTIONS = "LLMDO_BENCHMARK_OPTIONS"


def embed_file(task: Task) -> tuple[int, dict[str, Any]]:
    """Runs the command."""
    os.environ["OPENAI_BASE_URL"] = f"{task.url}/v1"
    output = Path(task.folder, "output")
    command = ["run", task.prompts, "--output", str(output), "--model", "openai/embed"]
    command += ["--concurrency", f"fixed:{task.concurrency}", *os.environ.get(OPTIONS, "").split()]
    try:
        cli.main([*command, "--json"])
    except SystemExit as ended:
        if ended.code:
            raise
    answered, more = figures(output)
    size = sum(path.stat().st_size for path in output.rglob("shard-*"))
    return answered, more | {"row_bytes": round(size / answered)}


if __name__ == "__main__":
    run(embed_file)
