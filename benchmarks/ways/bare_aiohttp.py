"""The yardstick: aiohttp with a semaphore, and nothing around it. Each reply is parsed and checked."""

from __future__ import annotations

import asyncio

import aiohttp

from benchmarks.servers.fake_endpoint import TEXT
from benchmarks.ways.measuring import MODEL, Task, native_body, run


async def call_all(task: Task) -> int:
    """Makes all calls."""
    url, semaphore = f"{task.url}/ai/run/{MODEL}", asyncio.Semaphore(task.concurrency)

    async def call(text: str) -> bool:
        async with semaphore, session.post(url, json=native_body(text)) as reply:
            return bool((await reply.json())["result"]["response"] == TEXT)

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=task.concurrency)) as session:
        return sum(await asyncio.gather(*map(call, task.texts())))


if __name__ == "__main__":
    run(lambda task: asyncio.run(call_all(task)))
