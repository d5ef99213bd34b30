"""What the records of an output tell a run about the batches of earlier runs, before it makes a call."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from llmdo.backends.errors import StopRun
from llmdo.backends.kept.submissions import Submissions
from llmdo.backends.lanes.records import BatchRecord, BatchRecords
from llmdo.backends.lanes.rescue import Rescue


class EarlierBatches:
    """Looks once, at the first line; used on the engine's loop.

    Args:
        records: those of the output.
        submissions: what the run's ledger knows; None: it has no ledger.
        rescue: learns how long batches took; None: nobody asks.
    """

    def __init__(self, records: BatchRecords, submissions: Submissions | None, rescue: Rescue | None) -> None:
        self._records, self._submissions, self._rescue = records, submissions, rescue
        self._looking: asyncio.Task[dict[str, BatchRecord]] | None = None

    async def look(self) -> Mapping[str, BatchRecord]:
        """The batches that had not ended when the run began, by nonce.

        Raises StopRun if the ledger does not know which lines are in one of them: they would be paid for again.
        """
        if self._looking is None:
            self._looking = asyncio.ensure_future(self._look())
        return self._looking.result() if self._looking.done() else await asyncio.shield(self._looking)

    def cancelled_at(self, nonce: str) -> float:
        """When an earlier run has cancelled a batch, in Unix time; 0 if none has, or before anybody has looked."""
        known = self._looking.result() if self._looking and self._looking.done() else {}
        return known[nonce].cancelled_at if nonce in known else 0.0

    async def _look(self) -> dict[str, BatchRecord]:
        records, still_open = self._records, dict[str, BatchRecord]()
        try:
            found = await asyncio.to_thread(lambda: list(records.all()))
        except Exception as error:
            raise StopRun(f"{records.place} cannot be read, and lines could be paid for twice: {error}") from error
        for one in found:
            if one.ended_at:
                if self._rescue:
                    self._rescue.learn(one.provider, one.model, one.queue_s, one.cancel_s)
                continue
            if self._submissions is None or await self._submissions.reserved(one.nonce) is None:
                raise StopRun(
                    f"{one.lines} lines of this output were handed over to {one.provider}/{one.model} by run {one.run},"
                    " and this run's ledger does not know which, so it would pay for them again: run where"
                    f" {one.ledger or 'that ledger'} is, or name it with --ledger; or, to pay again, remove"
                    f" {records.place}{one.nonce}.json"
                )
            still_open[one.nonce] = one
        return still_open
