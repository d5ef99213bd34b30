"""polar_llama: a column of prompts in a Polars frame, called from Rust."""

from __future__ import annotations

import os

import polars  # type: ignore[import-not-found]  # in a Python of its own
from polar_llama import inference_async, string_to_message  # type: ignore[import-not-found]  # as above

from benchmarks.servers.fake_endpoint import TEXT
from benchmarks.ways.measuring import Task, run


def call_all(task: Task) -> int:
    """Makes all calls."""
    os.environ |= {
        "OPENAI_BASE_URL": task.url,
        "OPENAI_API_KEY": "key",
        "POLAR_LLAMA_MAX_CONCURRENCY": str(task.concurrency),
    }
    prompts = polars.DataFrame({"text": task.texts()})
    message = string_to_message(polars.col("text"), message_type="user")
    answers = prompts.with_columns(answer=inference_async(message, provider="openai", model="gpt-4"))
    return int((answers["answer"] == TEXT).sum())


if __name__ == "__main__":
    run(call_all)
