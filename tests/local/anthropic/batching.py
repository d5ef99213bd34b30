"""Message batches of the local Anthropic, by the official client."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

from anthropic import Anthropic
from anthropic.types.messages import MessageBatch

from tests.local.cloudflare import Running

MODEL = "claude-haiku-4-5"


def client_of(server: Running, key: str = "sk-ant-any") -> Anthropic:
    return Anthropic(api_key=key, base_url=server.env["LOCAL_ANTHROPIC_BASE_URL"], max_retries=0)


def request(name: str, prompt: str | None = None, **other: Any) -> Any:
    params = {"model": MODEL, "max_tokens": 50, "messages": [{"role": "user", "content": prompt or name}], **other}
    return {"custom_id": name, "params": params}


def requests(number: int) -> list[Any]:
    return [request(f"r{n}") for n in range(number)]


def until(client: Anthropic, batch: MessageBatch, holds: Callable[[MessageBatch], bool]) -> MessageBatch:
    deadline = time.monotonic() + 60
    while not holds(batch):
        assert time.monotonic() < deadline, batch
        time.sleep(0.01)
        batch = client.messages.batches.retrieve(batch.id)
    return batch


def ended(client: Anthropic, batch: MessageBatch) -> MessageBatch:
    return until(client, batch, lambda one: one.processing_status == "ended")


def paid(server: Running, calls: int) -> None:
    """Waits until this number of answers was paid for."""
    deadline = time.monotonic() + 60
    while server.stats()["paid"]["calls"] < calls:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def done(client: Anthropic, given: Iterable[Any]) -> MessageBatch:
    return ended(client, client.messages.batches.create(requests=given))


def results(client: Anthropic, batch: MessageBatch) -> dict[str, str]:
    """The kind of each result, by custom id, in their order."""
    return {one.custom_id: one.result.type for one in client.messages.batches.results(batch.id)}
