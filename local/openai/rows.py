"""Rows of a batch's output and error files."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic_core import from_json, to_json

from llmdo.local.faults import Strike
from llmdo.local.openai.endpoints import Endpoints
from llmdo.local.wire import HttpReply, OpenAIRefused

_UNANSWERED = {
    "expired": ("batch_expired", "This request could not be executed before the completion window expired."),
    "cancelled": ("batch_cancelled", "This request was not executed because the batch was cancelled."),
    "failed": ("batch_failed", "This request was not executed because the batch failed."),
}


@dataclass(frozen=True, slots=True)
class BatchRow:
    """A line of the output file, or, if it is not ``good``, of the error file; empty where it was lost."""

    line: bytes
    good: bool
    usage: dict[str, int] = field(default_factory=dict)

    @classmethod
    async def answered(cls, endpoints: Endpoints, endpoint: str, request: dict[str, Any]) -> BatchRow:
        """The row of a request, under the faults of rows."""
        name = request["custom_id"]
        try:
            if request["body"].get("stream"):
                raise OpenAIRefused(400, "Streaming is not supported in the Batch API.", "unsupported_value", "stream")
            reply = await endpoints.answer(endpoint, request["body"], (name,), name, "row")
        except OpenAIRefused as refused:
            reply = refused.reply
        good = reply.status in (0, 200)
        line = b"" if reply.ending == "drop" else _row(name, _response(reply), None)
        if reply.ending == "truncate":
            line = line[: len(line) // 2] + b"\n"
        return cls(line, good, _usage(reply))

    @staticmethod
    def unanswered(name: str, state: str) -> bytes:
        """The row of a request that its batch did not get to before it ended in this state."""
        code, message = _UNANSWERED[state]
        return _row(name, None, {"code": code, "message": message})


def spoiled(path: Path, strikes: Sequence[Strike]) -> None:
    """Changes a written output file by the faults that have struck its batch."""
    for strike in strikes:
        fault = strike.fault
        share = 0.5 if fault.share is None else fault.share
        if fault.batch == "cut":
            whole = path.read_bytes()
            path.write_bytes(whole[: int(len(whole) * share)])
        if fault.batch not in ("shuffle", "repeat", "foreign"):
            continue
        rows = path.read_bytes().splitlines(keepends=True)
        if fault.batch == "repeat":
            rows += rows[: -int(-len(rows) * share // 1)]
        elif fault.batch == "foreign":
            rows += [_renamed(row) for row in rows[: -int(-len(rows) * share // 1)]]
        else:
            rows = fault.shuffled(rows)
        path.write_bytes(b"".join(rows))


def _renamed(row: bytes) -> bytes:
    try:
        return to_json({**from_json(row), "custom_id": f"foreign-{secrets.token_hex(8)}"}) + b"\n"
    except ValueError:  # a row that a fault has cut
        return row


def _row(name: str, response: dict[str, Any] | None, error: dict[str, Any] | None) -> bytes:
    identity = f"batch_req_{secrets.token_hex(16)}"
    return to_json({"id": identity, "custom_id": name, "response": response, "error": error}) + b"\n"


def _response(reply: HttpReply) -> dict[str, Any]:
    if reply.status == 0:
        return {"status_code": 0, "request_id": "", "body": ""}
    return {"status_code": reply.status, "request_id": secrets.token_hex(16), "body": _body(reply)}


def _body(reply: HttpReply) -> Any:
    try:
        return from_json(reply.body)
    except ValueError:
        return reply.body.decode()


def _usage(reply: HttpReply) -> dict[str, int]:
    body = _body(reply)
    usage = body.get("usage") if isinstance(body, dict) else None
    if not usage:
        return {}
    into = usage.get("prompt_tokens", usage.get("input_tokens", 0))
    return {"input_tokens": into, "output_tokens": usage.get("completion_tokens", usage.get("output_tokens", 0))}
