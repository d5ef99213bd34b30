"""Batches: a file of requests, checked as a whole, then answered line by line; kept while the server runs.

A batch is ``validating``, ``in_progress``, ``finalizing``, ``completed`` as fast as this machine is. Once the server's
clock is past its window, it expires, with the rows of what was answered. Shapes: the official client's types, and
developers.openai.com/api/docs/guides/batch. Faults: see ``faults.Fault.batch``.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from pydantic_core import from_json

from llmdo.local.ai.catalogue import LocalModel
from llmdo.local.faults import Faults, Strike
from llmdo.local.openai.batch_object import WINDOWS_S, OpenAIBatch, checked_metadata
from llmdo.local.openai.endpoints import Endpoints
from llmdo.local.openai.files import StoredFiles
from llmdo.local.openai.lines import PAUSE_EVERY, checked_input
from llmdo.local.openai.pages import cursor_page
from llmdo.local.openai.rows import BatchRow, spoiled
from llmdo.local.wire import HttpCall, OpenAIRefused

_WAIT_S = 0.01  # between looks at whether a held batch may go on
_ENDED = frozenset({"completed", "failed", "expired", "cancelled"})
_STATES = ("validating", "in_progress", "finalizing", "cancelling")
_ENDINGS = {"expire": "expired", "cancel": "cancelled", "fail": "failed"}

_log = logging.getLogger(__name__)


class _Ended(Exception):
    """A batch ends before all its lines are answered."""

    def __init__(self, state: str) -> None:
        super().__init__(state)
        self.state = state


class OpenAIBatches:
    """The batches of one key. ``clock`` returns seconds since 1970."""

    def __init__(
        self,
        files: StoredFiles,
        endpoints: Endpoints,
        models: Mapping[str, LocalModel],
        faults: Faults,
        clock: Callable[[], float],
    ) -> None:
        self._files = files
        self._endpoints = endpoints
        self._models = models
        self._faults = faults
        self._clock = clock
        self._batches: dict[str, OpenAIBatch] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def create(self, body: dict[str, Any]) -> dict[str, Any]:
        """Accepts a batch, whose lines are looked at later. Raises OpenAIRefused."""
        for name in ("input_file_id", "endpoint", "completion_window"):
            if not body.get(name):
                raise OpenAIRefused(400, f"Missing required parameter: '{name}'.", "missing_required_parameter", name)
        for name, known in (("endpoint", self._endpoints.by_path), ("completion_window", WINDOWS_S)):
            if body[name] not in known:
                message = f"Invalid value: '{body[name]}'. Supported values are: {', '.join(known)}."
                raise OpenAIRefused(400, message, "invalid_value", name)
        file = self._files.find(body["input_file_id"])
        if file.purpose != "batch":
            message = f"The file's purpose must be 'batch', and is '{file.purpose}'."
            raise OpenAIRefused(400, message, "invalid_value", "input_file_id")
        metadata = checked_metadata(body.get("metadata"))
        kept = (body.get("output_expires_after") or {}).get("seconds")
        strikes = self._faults.of_batch("openai", body["endpoint"], file.filename, *(metadata or {}).values())
        name = f"batch_{secrets.token_hex(16)}"
        batch = OpenAIBatch(
            name, body["endpoint"], file, body["completion_window"], int(self._clock()), metadata, kept, strikes
        )
        if batch.of("forget"):
            batch.metadata = None
        for strike in batch.of("hide"):
            strike.begin()
        self._batches[name] = batch
        task = asyncio.get_running_loop().create_task(self._work(batch))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return batch.as_json()

    def poll(self, name: str) -> dict[str, Any]:
        """The ``batch`` object. Raises OpenAIRefused."""
        batch = self._find(name)
        shown = batch.as_json()
        for strike in batch.of("hold"):
            strike.look()
        return shown

    def listing(self, call: HttpCall) -> dict[str, Any]:
        """A page of the batches, newest first. Raises OpenAIRefused."""
        shown = []
        for batch in reversed(self._batches.values()):
            hidden = [strike for strike in batch.of("hide") if strike.holds()]
            for strike in hidden:
                strike.look()
            if not hidden:
                shown.append(batch.as_json())
        return cursor_page(shown, call, 20, 100)

    def cancel(self, name: str) -> dict[str, Any]:
        """Stops a batch before its next line. Raises OpenAIRefused if it ends anyway."""
        batch = self._find(name)
        if batch.status in _ENDED or batch.status == "finalizing":
            raise OpenAIRefused(409, f"Cannot cancel a batch with status '{batch.status}'.")
        if not batch.cancelled:
            batch.cancelled = True
            self._enter(batch, "cancelling")
        return batch.as_json()

    def _find(self, name: str) -> OpenAIBatch:
        found = self._batches.get(name)
        if found is None:
            raise OpenAIRefused(404, f"No batch found with id '{name}'.")
        return found

    def _enter(self, batch: OpenAIBatch, state: str) -> None:
        batch.status = state
        batch.times[state] = int(self._clock())

    async def _hold(self, batch: OpenAIBatch, strike: Strike) -> None:
        strike.begin()
        while strike.holds():
            if strike.fault.state not in ("finalizing", "cancelling"):
                self._check_ended(batch)
            await asyncio.sleep(_WAIT_S)

    def _check_ended(self, batch: OpenAIBatch) -> None:
        if batch.cancelled:
            raise _Ended("cancelled")
        if self._clock() >= batch.expires_at:
            raise _Ended("expired")

    async def _in_state(self, batch: OpenAIBatch, state: str) -> None:
        for strike in batch.of("hold"):
            if strike.fault.state == state:
                await self._hold(batch, strike)

    async def _work(self, batch: OpenAIBatch) -> None:
        try:
            await self._answer(batch)
        except _Ended as ended:  # before its first line
            self._enter(batch, ended.state)
        except Exception:  # noqa: BLE001  the batch fails, and the server goes on
            _log.exception("%s failed", batch.id)
            self._refuse(batch, "server_error", "The server had an error while processing your batch.")
        batch.tokens = 0

    async def _answer(self, batch: OpenAIBatch) -> None:
        await self._in_state(batch, "validating")
        if not await self._checked(batch):
            return
        for strike in batch.of("hold"):
            if strike.fault.state not in _STATES:
                batch.status = strike.fault.state
                await self._hold(batch, strike)
        self._check_ended(batch)
        self._enter(batch, "in_progress")
        state = "completed"
        output, errors = self._files.draft(), self._files.draft()
        with batch.file.path.open("rb") as lines, output.open("wb") as good, errors.open("wb") as bad:
            rest = iter(lines)
            try:
                await self._lines(batch, rest, good, bad)
            except _Ended as ended:
                state = ended.state
                await self._unanswered(state, rest, bad)
        if state == "completed":
            self._enter(batch, "finalizing")
            await self._in_state(batch, "finalizing")
        elif batch.cancelled:
            await self._in_state(batch, "cancelling")
        spoiled(output, batch.strikes)
        batch.output = self._kept(batch, output, "output")
        batch.error = self._kept(batch, errors, "error")
        if state == "failed":
            self._refuse(batch, batch.of("fail")[0].fault.code or "server_error", "The batch failed.")
        else:
            self._enter(batch, state)

    async def _checked(self, batch: OpenAIBatch) -> bool:
        """Whether the batch may go on; it has failed otherwise."""
        try:
            found = await checked_input(batch.file, batch.endpoint, self._models)
        except OSError:
            self._refuse(batch, "file_not_found", f"No such File object: {batch.file.id}")
            return False
        batch.model = found.model or None
        if found.errors:
            batch.errors = found.errors
            self._enter(batch, "failed")
            return False
        enqueued = found.tokens + sum(one.tokens for one in self._batches.values() if one.model == batch.model)
        limits = [strike.fault.tokens for strike in batch.of("limit")]
        if limits and enqueued > min(limits):
            message = (
                f"Enqueued token limit reached for {batch.model} in organization org-local. Limit: {min(limits):,}"
                " enqueued tokens. Please try again once some in_progress batches have been completed."
            )
            self._refuse(batch, "token_limit_exceeded", message)
            return False
        batch.tokens = found.tokens
        batch.counts["total"] = found.lines
        return True

    def _refuse(self, batch: OpenAIBatch, code: int | str, message: str) -> None:
        batch.errors = [{"code": str(code), "line": None, "message": message, "param": None}]
        self._enter(batch, "failed")

    async def _lines(self, batch: OpenAIBatch, lines: Iterator[bytes], good: BinaryIO, bad: BinaryIO) -> None:
        """Answers line after line. Raises _Ended before the one at which the batch ends."""
        ends = [(batch.share(one), _ENDINGS[kind]) for kind in _ENDINGS for one in batch.of(kind)]
        holds = [(batch.share(one), one) for one in batch.of("hold") if one.fault.state == "in_progress"]
        for number in range(batch.counts["total"] + 1):
            for at, strike in holds:
                if at == number:
                    await self._hold(batch, strike)
            for at, state in ends:
                if at == number:
                    raise _Ended(state)
            if number == batch.counts["total"]:
                break
            self._check_ended(batch)
            if number % PAUSE_EVERY == 0:
                await asyncio.sleep(0)
            request = from_json(next(lines))
            row = await BatchRow.answered(self._endpoints, batch.endpoint, request)
            batch.counts["completed" if row.good else "failed"] += 1
            for name, count in row.usage.items():
                batch.usage[name] += count
            (good if row.good else bad).write(row.line)

    async def _unanswered(self, state: str, lines: Iterator[bytes], bad: BinaryIO) -> None:
        for number, line in enumerate(lines, 1):
            if number % PAUSE_EVERY == 0:
                await asyncio.sleep(0)
            bad.write(BatchRow.unanswered(from_json(line)["custom_id"], state))

    def _kept(self, batch: OpenAIBatch, path: Path, what: str) -> str | None:
        """The id of a written file; None, as OpenAI has it, for an empty one."""
        if not path.stat().st_size:
            path.unlink()
            return None
        return self._files.keep(path, "batch_output", f"{batch.id}_{what}.jsonl", batch.kept_s).id
