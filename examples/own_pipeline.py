"""llmdo's graph with steps of your own: spam is skipped, and each question gets what is known about its order.

    python examples/own_pipeline.py [FILES ...] --output out/ --model local/smollm2-135m-instruct --runner direct

The default model runs in this process and needs no account. The output is as that of `llmdo run`; run it again, and it
resumes. Exit codes are those of `llmdo run`, too: 3 means that some lines, such as skipped ones, have no answer.
"""

from __future__ import annotations

import argparse
import csv
import sys
from functools import cache
from pathlib import Path
from typing import Any

import apache_beam as beam
from apache_beam.pvalue import PCollection

import llmdo

QUESTIONS = Path(__file__).parent / "own_pipeline" / "questions.jsonl"
ORDERS = Path(__file__).parent / "own_pipeline" / "orders.csv"
PROMPT = "Reply to a customer in one sentence. The order: {known}. The question: {text}"


def without_spam(line: dict[str, Any]) -> dict[str, Any] | llmdo.Skip:
    """Returns the line, or the reason why it is not asked."""
    return llmdo.Skip("spam") if "lottery" in line["text"] else line


def with_order(line: dict[str, Any]) -> dict[str, Any]:
    """Returns the line with one field more."""
    return {**line, "known": orders().get(line["order"], "there is none")}


@cache  # once in each process that runs the step
def orders() -> dict[str, str]:
    """What is known of each order."""
    with ORDERS.open(encoding="utf-8", newline="") as rows:
        return {row["order"]: f"{row['what']}, {row['state']}" for row in csv.DictReader(rows)}


def build(root: beam.Pipeline, steps: llmdo.Steps) -> PCollection[llmdo.elements.Settled]:
    """The graph of `llmdo run`, with two steps more between reading and asking."""
    settled: PCollection[llmdo.elements.Settled] = (
        root
        | "Find files" >> steps.find_files()
        | "Open files" >> steps.open_files()
        | "Read lines" >> steps.read_lines()
        | "Skip spam" >> steps.change_lines(without_spam)
        | "Add orders" >> steps.change_lines(with_order)
        | "Answer lines" >> steps.infer()
        | "Write shards" >> steps.write_shards()
        | "Settle files" >> steps.settle_files()
    )
    return settled


def main(arguments: list[str]) -> int:
    """Answers the files and returns the exit code."""
    parser = argparse.ArgumentParser(description="Answers questions about orders; spam is skipped.")
    parser.add_argument("files", nargs="*", default=[str(QUESTIONS)], help="files, folders, r2://BUCKET/PREFIX/")
    parser.add_argument("-o", "--output", default="own-pipeline-out", help="r2://BUCKET/PREFIX/ or a folder")
    parser.add_argument("-m", "--model", default="local/smollm2-135m-instruct", help="PROVIDER/MODEL")
    parser.add_argument("-r", "--runner", default="direct", choices=["direct", "prism", "flink"])
    summary = llmdo.run_graph(build, own_steps="no spam, orders", prompt=PROMPT, **vars(parser.parse_args(arguments)))
    for file in summary.settled:
        print(f"{file.file.key}: {file.status}, {file.answered} answered, {file.failed} skipped or failed")
    if summary.problem:
        print(summary.problem, file=sys.stderr)
    return summary.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
