"""async-batch-llm: ``process_prompts`` with the openai SDK."""

from __future__ import annotations

import asyncio

from async_batch_llm import llm, process_prompts  # type: ignore[import-not-found]  # in a Python of its own

from benchmarks.servers.fake_endpoint import TEXT
from benchmarks.ways.measuring import Task, run, stay_on_this_machine


async def call_all(task: Task) -> int:
    """Makes all calls."""
    strategy = llm("openai-compatible:gpt-4", base_url=f"{task.url}/v1", api_key="key")
    batch = await process_prompts(strategy, task.texts(), concurrency=task.concurrency)
    return sum(result.output == TEXT for result in batch.results)


if __name__ == "__main__":
    stay_on_this_machine()
    run(lambda task: asyncio.run(call_all(task)))
