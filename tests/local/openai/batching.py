"""Files and batches of the local OpenAI, by the official client."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from typing import Any

from openai import OpenAI
from openai.types import Batch

from tests.local.cloudflare import Running

CHAT = "/v1/chat/completions"
MODEL = "gpt-4o-mini"


def client_of(server: Running, key: str | None = None) -> OpenAI:
    """A client with the key of ``data/env``, or another."""
    return OpenAI(
        api_key=key or server.env["OPENAI_API_KEY"], base_url=server.env["LOCAL_OPENAI_BASE_URL"], max_retries=0
    )


def request(name: str, prompt: str | None = None, **other: Any) -> dict[str, Any]:
    body = {"model": MODEL, "messages": [{"role": "user", "content": name if prompt is None else prompt}]}
    return {"custom_id": name, "method": "POST", "url": CHAT, "body": body, **other}


def jsonl(requests: Iterable[object]) -> bytes:
    return b"".join(json.dumps(one).encode() + b"\n" for one in requests)


def submit(client: OpenAI, requests: Iterable[object], endpoint: Any = CHAT, **other: Any) -> Batch:
    file = client.files.create(file=("in.jsonl", jsonl(requests)), purpose="batch")
    return client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h", **other)


def prompts(number: int) -> list[dict[str, Any]]:
    return [request(f"r{n}") for n in range(number)]


def until(client: OpenAI, batch: Batch, holds: Callable[[Batch], bool]) -> Batch:
    deadline = time.monotonic() + 60
    while not holds(batch):
        assert time.monotonic() < deadline, batch
        time.sleep(0.01)
        batch = client.batches.retrieve(batch.id)
    return batch


def ended(client: OpenAI, batch: Batch) -> Batch:
    return until(client, batch, lambda one: str(one.status) in ("completed", "failed", "expired", "cancelled"))


def rows(client: OpenAI, file: str | None) -> list[dict[str, Any]]:
    return [json.loads(line) for line in client.files.content(file).text.splitlines()] if file else []


def ids(client: OpenAI, file: str | None) -> list[str]:
    return [row["custom_id"] for row in rows(client, file)]
