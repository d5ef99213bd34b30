"""Beam's RunInference on FnApiRunner, with a handler that gathers the calls of a batch: as many as may be in flight.

The handler keeps its aiohttp session from batch to batch, which is more than most do; what slows it down is that a
batch waits for its slowest call.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aiohttp
import apache_beam as beam
from apache_beam.ml.inference.base import ModelHandler, RunInference

from benchmarks.servers.fake_endpoint import TEXT
from benchmarks.ways.measuring import MODEL, Task, native_body, run


class _Session:
    """A session, and the loop that it belongs to."""

    def __init__(self, concurrency: int) -> None:
        self.loop = asyncio.new_event_loop()
        self.http = self.loop.run_until_complete(self._open(concurrency))

    async def _open(self, concurrency: int) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=concurrency))

    async def post_all(self, url: str, texts: Sequence[str]) -> list[Any]:
        async def call(text: str) -> Any:
            async with self.http.post(url, json=native_body(text)) as reply:
                return (await reply.json())["result"]["response"]

        return await asyncio.gather(*map(call, texts))


class _Gathering(ModelHandler[str, str, _Session]):
    def __init__(self, task: Task) -> None:
        super().__init__()
        self._url = f"{task.url}/ai/run/{MODEL}"
        self._concurrency = task.concurrency

    def batch_elements_kwargs(self) -> dict[str, int]:
        return {"min_batch_size": self._concurrency, "max_batch_size": self._concurrency}

    def load_model(self) -> _Session:
        return _Session(self._concurrency)

    def run_inference(
        self, batch: Sequence[str], model: _Session, inference_args: dict[str, Any] | None = None
    ) -> list[str]:
        assert not inference_args
        return model.loop.run_until_complete(model.post_all(self._url, batch))


def call_all(task: Task) -> int:
    """Runs a pipeline over the prompts."""
    counted = Path(task.folder, "right")
    with beam.Pipeline(runner="FnApiRunner") as root:
        _ = (
            root
            | "Prompts" >> beam.Create(task.texts())
            | "Ask" >> RunInference(_Gathering(task))
            | "Is it right" >> beam.Map(lambda answer: int(answer == TEXT))
            | "Count" >> beam.CombineGlobally(sum)
            | "Keep" >> beam.Map(lambda count: counted.write_text(str(count)))
        )
    return int(counted.read_text())


if __name__ == "__main__":
    # Not this module's own classes: Beam pickles classes of __main__ by value.
    from benchmarks.ways import run_inference

    run(run_inference.call_all)
