"""The asynchronous batch API: requests submitted with ``?queueRequest=true``, answered one after the other, and kept.

Each batch is queued at its first poll, running at its second, and done from the third on, once all its items are.
Results are kept while the server runs, so that a client that died finds them by the request id; no item is answered
twice. Items fail independently: a fault becomes the item's error, and a dropped item is missing. A fault may match
``#batch-submit``, ``#batch-poll`` or ``#batch-item``.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic_core import from_json

from llmdo.local.ai.catalogue import LocalModel
from llmdo.local.wire import HttpReply, Refused, success

# developers.cloudflare.com/workers-ai/features/batch-api: less than 10 MB in all
MAX_BATCH_BYTES = 10_000_000
CAPACITY = 200  # most unfinished batches; our own choice, since the real limit is not published
_POLLS = ("queued", "running")

_Answer = Callable[[dict[str, Any], LocalModel], Awaitable[HttpReply]]


@dataclass(slots=True)
class _Batch:
    model: LocalModel
    work: asyncio.Task[None]
    items: list[dict[str, Any]] = field(default_factory=list)
    polls: int = 0


class BatchStore:
    """All batches since the start. ``answer`` returns the reply of one item, or raises Refused."""

    def __init__(self, answer: _Answer) -> None:
        self._answer = answer
        self._batches: dict[str, _Batch] = {}

    def submit(self, body: Mapping[str, Any], model: LocalModel, size: int) -> HttpReply:
        """Accepts requests; ``size`` is the body's, in bytes. Raises Refused."""
        requests = body["requests"]
        if not model.batch:
            raise Refused(400, 5006, "AiError: AiError: Bad input: Error: queueRequest is not supported by this model")
        if size >= MAX_BATCH_BYTES:
            raise Refused(413, 3006, "AiError: AiError: 3006: Request is too large")
        if not isinstance(requests, list) or not requests or not all(isinstance(one, dict) for one in requests):
            raise Refused(
                400, 5006, "AiError: AiError: Bad input: Error: Type mismatch of '/requests', 'array' expected"
            )
        if sum(not batch.work.done() for batch in self._batches.values()) >= CAPACITY:
            raise Refused(429, 3040, "InferenceUpstreamError: 3040: Capacity temporarily exceeded, please try again.")
        name = str(uuid.uuid4())
        items: list[dict[str, Any]] = []
        work = asyncio.get_running_loop().create_task(self._work(requests, model, items))
        self._batches[name] = _Batch(model, work, items)
        return success({"status": "queued", "request_id": name, "model": model.name})

    def poll(self, name: object, model: LocalModel) -> HttpReply:
        """The state, or the results. Raises Refused if there is no such batch of this model."""
        batch = self._batches.get(str(name))
        if batch is None or batch.model.name != model.name:
            raise Refused(404, 5006, f"AiError: AiError: Bad input: Error: no such request_id {name}")
        batch.polls += 1
        if batch.polls <= len(_POLLS) or not batch.work.done():
            status = _POLLS[min(batch.polls, len(_POLLS)) - 1]
            return success({"status": status, "request_id": str(name)})
        return success(_results(batch))

    async def _work(self, requests: list[dict[str, Any]], model: LocalModel, items: list[dict[str, Any]]) -> None:
        for number, request in enumerate(requests):
            reference = request.get("external_reference")
            body = {name: value for name, value in request.items() if name != "external_reference"}
            item: dict[str, Any] = {"id": number, "external_reference": reference}
            try:
                reply = await self._answer({**body, "custom_id": body.get("custom_id", reference)}, model)
            except Refused as refused:
                error = {"code": refused.code, "message": refused.message}
                items.append({**item, "success": False, "error": error})
                continue
            if reply.ending == "whole":
                items.append({**item, **_outcome(reply)})


def _outcome(reply: HttpReply) -> dict[str, Any]:
    try:
        body = from_json(reply.body)
    except ValueError:
        body = {}
    if reply.status == 200 and body.get("success"):
        return {"success": True, "result": body["result"]}
    errors = body.get("errors") or [{"code": 5001, "message": f"HTTP {reply.status}"}]
    return {"success": False, "error": errors[0]}


def _results(batch: _Batch) -> dict[str, Any]:
    """The documented shape, out of order; models with OpenAI's answers have another one, without references."""
    if batch.model.openai_shape:
        rows = [{name: item[name] for name in item if name not in ("id", "external_reference")} for item in batch.items]
        indexed = [{"index": item["id"], **row} for item, row in zip(batch.items, rows, strict=True)]
        return {"results": indexed}
    usages = [item["result"].get("usage") or {} for item in batch.items if isinstance(item.get("result"), dict)]
    names = ("prompt_tokens", "completion_tokens", "total_tokens")
    return {
        "responses": batch.items[1:] + batch.items[:1],
        "usage": {name: sum(usage.get(name, 0) for usage in usages) for name in names},
    }
