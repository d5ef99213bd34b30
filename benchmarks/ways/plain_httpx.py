"""httpx with its own transport, one client, and a semaphore: what a script would do."""

from __future__ import annotations

import asyncio

import httpx

from benchmarks.servers.fake_endpoint import TEXT
from benchmarks.ways.measuring import MODEL, Task, native_body, run


async def call_all(task: Task) -> int:
    """Makes all calls."""
    url, semaphore = f"{task.url}/ai/run/{MODEL}", asyncio.Semaphore(task.concurrency)

    async def call(text: str) -> bool:
        async with semaphore:
            reply = await client.post(url, json=native_body(text))
            return bool(reply.json()["result"]["response"] == TEXT)

    limits = httpx.Limits(max_connections=task.concurrency, max_keepalive_connections=task.concurrency)
    async with httpx.AsyncClient(limits=limits, timeout=180) as client:
        return sum(await asyncio.gather(*map(call, task.texts())))


if __name__ == "__main__":
    run(lambda task: asyncio.run(call_all(task)))
