"""Batches whose answers no file waits for: what they have cost is counted, and their records are closed.

An earlier run has handed them over. Meanwhile their file was changed or removed, or its lines were answered otherwise.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from llmdo.backends.backend import BatchBackend
from llmdo.backends.errors import LineError, ModelError
from llmdo.backends.kept.submissions import Pointer, Submissions
from llmdo.backends.lanes.batch import Batch
from llmdo.backends.lanes.records import BatchRecord
from llmdo.backends.responses import Response

_log = logging.getLogger(__name__)


class CallsAbout(Protocol):
    """Calls about batches; see BatchPolls."""

    def call(self, batch: Batch, body: Mapping[str, Any]) -> AbstractAsyncContextManager[None]: ...  # noqa: D102 - see there
    async def update(self, nonce: str, **changes: Any) -> None: ...  # noqa: D102


class Settles(Protocol):
    """See BatchWork."""

    async def settle(self, provider: str, model: str, backend: BatchBackend, pointer: Pointer) -> str: ...  # noqa: D102


class Unawaited:
    """Closes such batches; used on the engine's loop.

    Args:
        submissions: what the ledger knows.
        polls, work: the engine's.
        timeout_s: of each call, in seconds.
        spend: counts what a result of a provider's model has used.
        closed: gets the nonce of each batch that is closed.
    """

    def __init__(
        self,
        submissions: Submissions,
        polls: CallsAbout,
        work: Settles,
        timeout_s: float,
        spend: Callable[[Batch, Response | ModelError], None],
        closed: Callable[[str], None],
    ) -> None:
        self._submissions, self._polls, self._work = submissions, polls, work
        self._timeout_s, self._spend, self._closed = timeout_s, spend, closed

    async def close(self, record: BatchRecord, backend: BatchBackend) -> None:
        """Looks at a batch once; one that the provider still works on stays open for a later run.

        So does one that cannot be looked at now. Raises NotStarted.
        """
        try:
            await self._close(record, backend)
        except (ModelError, TimeoutError) as error:
            said = getattr(error, "message", "no reply in time")
            _log.warning("batch %s, which no file waits for, stays open: %s", record.batch or record.nonce, said)

    async def _close(self, record: BatchRecord, backend: BatchBackend) -> None:
        provider, model, nonce = record.provider, record.model, record.nonce
        name = await self._submissions.batch_of(nonce)
        if name is None:
            pointer = Pointer(0, "", record.lines, record.reserved_at, nonce)
            name = await self._work.settle(provider, model, backend, pointer)
        if not name:  # it was never submitted
            await self._end(nonce, unclear="")
            return
        batch = Batch(provider, model, backend, 0.0, 0.0, nonce=nonce, name=name, earlier=True)
        try:
            async with self._polls.call(batch, {"request_id": name}):
                async with asyncio.timeout(self._timeout_s):
                    results = (await backend.poll_batch(model, name, (), ())).results
                if results is None:
                    return
                answered = await self._count(batch, results)
        except LineError as unknown:
            if unknown.about == "unclear" and unknown.status != 404:
                raise
            _log.warning("batch %s, which no file waits for, is closed: %s", name, unknown.message)
            await self._end(nonce, unclear=unknown.message)
            return
        _log.warning("batch %s is closed: no file waits for its %d answers, which are spent", name, answered)
        await self._end(nonce, answered=answered, unclear="")

    async def _end(self, nonce: str, **changes: Any) -> None:
        self._closed(nonce)
        await self._polls.update(nonce, ended_at=time.time(), **changes)

    async def _count(self, batch: Batch, results: AsyncIterator[tuple[int, Response | ModelError]]) -> int:
        """Counts what all have used, once they have come; returns how many are answers."""
        found = list[Response | ModelError]()
        while True:
            async with asyncio.timeout(self._timeout_s):
                one = await anext(results, None)
            if one is None:
                break
            found.append(one[1])
        for result in found:
            result.lane = result.lane or "batch"
            self._spend(batch, result)
        return sum(not isinstance(result, ModelError) for result in found)
