"""Message Batches: requests that are answered one after the other, and kept while the server runs.

A batch is ``in_progress``, then ``ended``, as fast as this machine is; results come in another order than their
requests. Once the server's clock is 24 hours past its creation, what is left expires. Shapes: the official client's
types, and platform.claude.com/docs/en/build-with-claude/batch-processing. Faults: see ``faults.Fault.batch``.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic_core import from_json, to_json

from llmdo.local.anthropic.pages import id_page
from llmdo.local.faults import Faults, Strike
from llmdo.local.openai.rows import spoiled
from llmdo.local.settings import ANTHROPIC_BASE
from llmdo.local.wire import AnthropicRefused, HttpCall, HttpReply

MAX_REQUESTS = 100_000
MAX_BATCH_SIZE = 256_000_000  # bytes
WINDOW_S = 24 * 3600.0
_WAIT_S = 0.01  # between looks at whether a held batch may go on
_PAUSE_EVERY = 100  # requests, after which other calls get their turn
_ID = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_ENDINGS = {"expire": "expired", "cancel": "canceled"}
_PIECE = 1 << 16

_log = logging.getLogger(__name__)

# Answers a body: see AnthropicApi.message.
_Answer = Callable[..., Awaitable[HttpReply]]


@dataclass(slots=True)
class MessageBatch:
    """One batch, with the faults that have struck it; its requests and results are files."""

    id: str
    requests: Path
    results: Path
    count: int
    created_at: float
    strikes: list[Strike]
    status: str = "in_progress"
    ended_at: float | None = None
    canceled_at: float | None = None
    counts: Counter[str] = field(default_factory=Counter)

    def of(self, kind: str) -> list[Strike]:
        """The faults of a kind that have struck it."""
        return [one for one in self.strikes if one.fault.batch == kind]

    def share(self, strike: Strike) -> int:
        """After how many requests a fault has its effect."""
        share = strike.fault.share
        return int((0.5 if share is None else share) * self.count)

    def as_json(self, call: HttpCall) -> dict[str, Any]:
        """The ``message_batch`` object."""
        ended = self.status == "ended"
        counts = self.counts if ended else Counter(processing=self.count)
        host = call.headers.get("Host", "")
        return {
            "id": self.id,
            "type": "message_batch",
            "processing_status": self.status,
            "request_counts": {
                name: counts[name] for name in ("processing", "succeeded", "errored", "canceled", "expired")
            },
            "created_at": _time(self.created_at),
            "expires_at": _time(self.created_at + WINDOW_S),
            "ended_at": _time(self.ended_at),
            "cancel_initiated_at": _time(self.canceled_at),
            "archived_at": None,
            "results_url": f"http://{host}{ANTHROPIC_BASE}/v1/messages/batches/{self.id}/results" if ended else None,
        }


class MessageBatches:
    """All batches. ``clock`` returns seconds since 1970."""

    def __init__(self, folder: Path, answer: _Answer, faults: Faults, clock: Callable[[], float]) -> None:
        self._folder = folder
        self._answer = answer
        self._faults = faults
        self._clock = clock
        self._batches: dict[str, MessageBatch] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def create(self, call: HttpCall) -> dict[str, Any]:
        """Accepts a batch, whose requests are looked at later, but for their ids. Raises AnthropicRefused."""
        if len(call.body) > MAX_BATCH_SIZE:
            raise AnthropicRefused(413, "Request exceeds the maximum size")
        requests = await _checked_requests(call.body)
        name = f"msgbatch_{secrets.token_hex(12)}"
        self._folder.mkdir(parents=True, exist_ok=True)
        kept, results = (self._folder / f"{name}.{what}.jsonl" for what in ("requests", "results"))
        with kept.open("wb") as file:
            file.writelines(to_json(one) + b"\n" for one in requests)
        texts = "#batch", str(requests[0]["custom_id"]), str(requests[0]["params"].get("model"))
        strikes = self._faults.of_batch("anthropic", *texts)
        batch = MessageBatch(name, kept, results, len(requests), self._clock(), strikes)
        for strike in batch.of("hide"):
            strike.begin()
        self._batches[name] = batch
        task = asyncio.get_running_loop().create_task(self._work(batch))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return batch.as_json(call)

    def poll(self, call: HttpCall, name: str) -> dict[str, Any]:
        """The ``message_batch`` object. Raises AnthropicRefused."""
        batch = self._find(name)
        shown = batch.as_json(call)
        for strike in batch.of("hold"):
            strike.look()
        return shown

    def listing(self, call: HttpCall) -> dict[str, Any]:
        """A page of the batches, newest first. Raises AnthropicRefused."""
        shown = []
        for batch in reversed(self._batches.values()):
            hidden = [strike for strike in batch.of("hide") if strike.holds()]
            for strike in hidden:
                strike.look()
            if not hidden:
                shown.append(batch.as_json(call))
        return id_page(shown, call)

    def results(self, name: str) -> HttpReply:
        """The results, a line each. Raises AnthropicRefused."""
        batch = self._find(name)
        if batch.status != "ended":
            raise AnthropicRefused(400, f"Batch {name} has no results: it is still in progress")
        headers = {"Content-Type": "application/x-jsonl", "Content-Length": str(batch.results.stat().st_size)}
        return HttpReply(200, headers=headers, pieces=_pieces(batch.results))

    def cancel(self, call: HttpCall, name: str) -> dict[str, Any]:
        """Stops a batch before its next request. Raises AnthropicRefused if it has ended."""
        batch = self._find(name)
        if batch.status == "ended":
            raise AnthropicRefused(400, f"Batch {name} has ended, and cannot be canceled")
        if batch.canceled_at is None:
            batch.status, batch.canceled_at = "canceling", self._clock()
        return batch.as_json(call)

    def delete(self, name: str) -> dict[str, Any]:
        """Removes a batch that has ended. Raises AnthropicRefused."""
        batch = self._find(name)
        if batch.status != "ended":
            raise AnthropicRefused(400, f"Batch {name} is in progress: cancel it before it is deleted")
        del self._batches[name]
        batch.results.unlink()
        return {"id": name, "type": "message_batch_deleted"}

    def _find(self, name: str) -> MessageBatch:
        found = self._batches.get(name)
        if found is None:
            raise AnthropicRefused(404, f"Batch {name} not found")
        return found

    async def _work(self, batch: MessageBatch) -> None:
        lines: list[bytes] = []
        ending = "errored"
        try:
            ending = await self._answered(batch, lines)
        except Exception:  # noqa: BLE001  the batch ends, and the server goes on
            _log.exception("%s failed", batch.id)
        with batch.requests.open("rb") as requests:
            for number, request in enumerate(requests):
                if number >= batch.counts.total():
                    lines.append(_line(from_json(request)["custom_id"], _unanswered(ending)))
        batch.counts[ending] += batch.count - batch.counts.total()
        batch.results.write_bytes(b"".join(lines[1:] + lines[:1]))
        spoiled(batch.results, batch.strikes)
        batch.requests.unlink()
        batch.status, batch.ended_at = "ended", self._clock()

    async def _answered(self, batch: MessageBatch, lines: list[bytes]) -> str:
        """Answers one request after the other; returns as what those end that are left."""
        ends = {batch.share(one): _ENDINGS[kind] for kind in _ENDINGS for one in batch.of(kind)}
        holds = [(batch.share(one), one) for one in batch.of("hold") if one.fault.state != "canceling"]
        ending = ""
        with batch.requests.open("rb") as requests:
            for number, request in enumerate([*requests, None]):
                for _, strike in (hold for hold in holds if hold[0] == number):
                    await self._hold(batch, strike)
                ending = self._ending(batch) or ends.get(number, "")
                if ending or request is None:
                    break
                if number % _PAUSE_EVERY == 0:
                    await asyncio.sleep(0)
                kind, line = await self._row(from_json(request))
                batch.counts[kind] += 1
                lines += [line] if line else []
        for strike in batch.of("hold") if batch.canceled_at is not None else ():
            if strike.fault.state == "canceling":
                await self._hold(batch, strike)
        return ending

    def _ending(self, batch: MessageBatch) -> str:
        if batch.canceled_at is not None:
            return "canceled"
        return "expired" if self._clock() >= batch.created_at + WINDOW_S else ""

    async def _hold(self, batch: MessageBatch, strike: Strike) -> None:
        strike.begin()
        while strike.holds():
            if strike.fault.state != "canceling" and self._ending(batch):
                return
            await asyncio.sleep(_WAIT_S)

    async def _row(self, request: dict[str, Any]) -> tuple[str, bytes]:
        """What became of a request, and its line, under the faults of rows; b"" where it was lost."""
        name, params = request["custom_id"], request["params"]
        try:
            if params.get("stream"):
                raise AnthropicRefused(400, "stream: not supported in batches")
            reply = await self._answer(params, (name,), name, "row")
        except AnthropicRefused as refused:
            reply = refused.reply
        if reply.status == 200 and (message := _object(reply.body)):
            kind, result = "succeeded", {"type": "succeeded", "message": message}
        else:
            error = _object(reply.body) or _failed("api_error", "Internal server error")
            kind, result = "errored", {"type": "errored", "error": error}
        line = _line(name, result)
        if reply.ending == "drop":
            return kind, b""
        return kind, line[: len(line) // 2] + b"\n" if reply.ending == "truncate" else line


async def _checked_requests(body: bytes) -> list[dict[str, Any]]:
    """The requests of a batch. Raises AnthropicRefused."""
    found = _object(body)
    requests = found.get("requests") if found else None
    if not isinstance(requests, list) or not requests:
        raise AnthropicRefused(400, "requests: at least one request is required")
    if len(requests) > MAX_REQUESTS:
        raise AnthropicRefused(400, f"requests: at most {MAX_REQUESTS} requests are allowed")
    ids: set[str] = set()
    for number, one in enumerate(requests):
        if number % _PAUSE_EVERY == 0:
            await asyncio.sleep(0)
        name = one.get("custom_id") if isinstance(one, dict) else None
        if not isinstance(name, str) or not _ID.fullmatch(name):
            pattern = "'^[a-zA-Z0-9_-]{1,64}$'"
            raise AnthropicRefused(400, f"requests.{number}.custom_id: String should match pattern {pattern}")
        if name in ids:
            raise AnthropicRefused(400, f"requests.{number}.custom_id: {name} is not unique")
        if not isinstance(one.get("params"), dict):
            raise AnthropicRefused(400, f"requests.{number}.params: Field required")
        ids.add(name)
    return requests


def _object(body: bytes) -> dict[str, Any] | None:
    try:
        found = from_json(body)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _unanswered(ending: str) -> dict[str, Any]:
    if ending != "errored":
        return {"type": ending}
    return {"type": ending, "error": _failed("api_error", "Internal server error")}


def _failed(kind: str, message: str) -> dict[str, Any]:
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": None}


def _line(name: str, result: dict[str, Any]) -> bytes:
    return to_json({"custom_id": name, "result": result}) + b"\n"


async def _pieces(path: Path) -> AsyncGenerator[bytes, None]:
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            yield piece


def _time(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")
