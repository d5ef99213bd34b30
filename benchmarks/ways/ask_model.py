"""``llmdo.AskModel`` in a pipeline on FnApiRunner, from texts in memory to a count; its window begins small."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import apache_beam as beam

from benchmarks.servers.fake_endpoint import TEXT, account_at
from benchmarks.ways.measuring import MODEL, Task, run
from llmdo import AskModel


def is_right(row: beam.Row) -> int:
    """1 for the answer that the endpoint gives, else 0."""
    return int(row.answer == TEXT)


def call_all(task: Task) -> int:
    """Runs a pipeline over the prompts."""
    os.environ |= account_at(task.url)
    counted = Path(task.folder, "right")
    with beam.Pipeline(runner="FnApiRunner") as root:
        _ = (
            root
            | "Prompts" >> beam.Create(task.texts()).with_output_types(str)
            | "Ask" >> AskModel(MODEL, prompt="{text}", concurrency=task.concurrency)
            | "Is it right" >> beam.Map(is_right)
            | "Count" >> beam.CombineGlobally(sum)
            | "Keep" >> beam.Map(lambda count: counted.write_text(str(count)))
        )
    return int(counted.read_text())


if __name__ == "__main__":
    # Not this module's own functions: Beam pickles those of __main__ by value.
    from benchmarks.ways import ask_model

    gc.freeze()  # as docs/guide/library.md advises
    run(ask_model.call_all)
