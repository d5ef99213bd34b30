"""llmdo's engine with the Workers AI backend, as ``--concurrency fixed:N`` sets it up; one thread submits."""

from __future__ import annotations

from queue import SimpleQueue

from benchmarks.servers.fake_endpoint import TEXT
from benchmarks.ways.measuring import MODEL, Task, run
from llmdo.backends.engine.engine import Engine
from llmdo.backends.engine.jobs import Done
from llmdo.backends.engine.settings import CallSettings
from llmdo.backends.requests import ChatRequest, Message
from llmdo.backends.responses import ChatResponse
from llmdo.backends.workers_ai.backend import WorkersAI
from llmdo.settings.environment import CloudflareAccount


def call_all(task: Task, *, fixed: bool = True) -> int:
    """Makes all calls."""
    account = CloudflareAccount("0" * 32, "token", task.url)
    texts, finished = task.texts(), SimpleQueue[Done]()
    engine = Engine(CallSettings(task.concurrency, fixed=fixed), lambda _: WorkersAI(account))
    try:
        for text in texts:
            engine.submit("workers-ai", ChatRequest(MODEL, (Message("user", text),)), finished.put)
        return sum(_is_right(finished.get()) for _ in texts)
    finally:
        engine.close()


def _is_right(done: Done) -> bool:
    return isinstance(done.response, ChatResponse) and done.response.text == TEXT


if __name__ == "__main__":
    run(call_all)
