"""One batch's hand-over, such that nothing is handed over twice: see llmdo.backends.kept.submissions."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import Counter

from llmdo.backends.backend import BatchBackend
from llmdo.backends.engine.batch_polls import BatchPolls, warn_of
from llmdo.backends.engine.scheduler import NotStarted
from llmdo.backends.engine.settings import CallSettings
from llmdo.backends.errors import BatchUnclear, LineError, ModelError, ModelUnusable, Retryable, StopRun
from llmdo.backends.kept.submissions import Pointer
from llmdo.backends.lanes.batch import Batch
from llmdo.backends.limits.retry import is_throttled
from llmdo.backends.money.billing import maybe_billed
from llmdo.backends.money.money import Budget
from llmdo.backends.requests import batch_places

PRICES_S = 0.1  # between looks whether prices, or grants of a budget, are there
GRANTED_S = 10.0  # until what was asked for of a budget is not expected any more: its period is spent
# A list of batches may lag behind, and a call whose client has died may still be worked on. Nobody documents for how
# long; it is seconds. To wait longer only delays a run that was killed in the middle of a hand-over.
LISTING_LAG_S = 30.0
CLOCKS_S = 3600.0  # by which a provider's clock may differ from ours
BYTES_S = 200_000  # of an upload, at least
_ROOM_S = 60.0  # between tries while the provider has no room beside the batches that it works on

_log = logging.getLogger(__name__)


class BatchWork:
    """Hands batches over, and finds those whose hand-over nobody has seen end; used on the loop's thread."""

    def __init__(self, polls: BatchPolls, settings: CallSettings) -> None:
        self._polls = polls
        self._settings = settings
        self._budget = settings.budget
        self._submissions = polls.recall.submissions if polls.recall else None

    async def hand_over(self, batch: Batch) -> None:
        """Hands a batch over; its name is durable then. Raises LineError where the provider refuses it, and NotStarted.

        Members for which the budget has no room are left to be called by themselves: they wait for their turn as calls
        do, and stop the run. So are all members if the batch cannot be handed over with the tries that a call has, or
        if its refusal may be about one of them: their own calls decide, see Verdicts. If a try's reply was lost, the
        batch is looked for; where that cannot be, each member counts as lost, and the next try is made.
        """
        await self._prices(batch.provider)
        if self._polls.over.is_set():
            raise NotStarted  # to reserve would wait for the prices, and so would the loop
        await self._reserve_money(batch)
        if self._polls.over.is_set():
            raise NotStarted  # what was reserved is given back as the members are sent away
        if not batch.members:
            return
        try:
            if await self._reserve(batch):
                await self._submit_with_tries(batch)
            else:
                self._polls.look_again(batch)
        except BatchUnclear as unclear:
            self._lose(batch)
            await self._quarantine(batch, len(batch.members), unclear)
            for member in batch.members:
                member.fail(unclear)
            raise NotStarted from unclear
        except StopRun as broken:  # the ledger
            self._polls.end_run(broken)
            raise NotStarted from broken

    async def settle(self, provider: str, model: str, backend: BatchBackend, pointer: Pointer) -> str:
        """The batch of a nonce, attached by now; "" if it was returned, since it was not submitted.

        Raises BatchUnclear, StopRun of the ledger, and NotStarted.
        """
        assert self._submissions  # noqa: S101 - it has found the pointer
        nonce, records = pointer.nonce, self._settings.batches
        where = await self._submissions.reserved(nonce)
        if records and where == records.place and not await asyncio.to_thread(records.find, nonce):
            return await self._submissions.give_back(nonce)  # the record comes first, or somebody has removed it
        probe = Batch(provider, model, backend, 0.0, 0.0, nonce=nonce)
        if not backend.batch_limits(model).finds:
            said = (
                f"{pointer.count} requests may have been handed over by a run that died, and nobody can look for them"
            )
            _log.warning("%s/%s: %s: they are handed over again, and may be paid for twice", provider, model, said)
            name = ""
        else:
            try:
                name = await self._find(probe, pointer.count, pointer.at)
            except BatchUnclear as unclear:
                await self._quarantine(probe, pointer.count, unclear)
                raise
        return await self._attach(probe, name)

    async def _quarantine(self, batch: Batch, count: int, unclear: BatchUnclear) -> None:
        """Says once that nobody can tell whether requests were handed over, and what to do."""
        records = self._settings.batches
        remedy = "look into the provider's list of batches"
        if records:
            remedy += (
                f"; if it has none for these, remove {records.place}{batch.nonce}.json, and they are handed over again"
            )
        said = f"nobody can tell whether a batch of {count} requests was submitted, so they stay open"
        _log.error("%s/%s: %s (%s): %s", batch.provider, batch.model, said, unclear.message, remedy)
        await self._polls.update(batch.nonce, unclear=unclear.message)

    # The steps of a hand-over.

    async def _reserve_money(self, batch: Batch) -> None:
        """Leaves those members to be called for which there is no room, also after more was asked for and granted."""
        for number, member in enumerate(batch.members):
            while self._budget and self._budget.before(batch.provider, member.request):
                if await self._more_granted(self._budget):
                    continue
                members, batch.members = batch.members, batch.members[number:]
                self._polls.release(batch)
                batch.members = members[:number]
                return

    async def _more_granted(self, budget: Budget) -> bool:
        """Whether more of the output's budget has come for this process, which takes a few writes of a record."""
        granted, until = budget.awaited(), self._polls.loop.time() + GRANTED_S
        while granted and not granted.done() and self._polls.loop.time() < until and not self._polls.over.is_set():
            await self._polls.pause(PRICES_S)
        return granted is not None and granted.done()

    async def _prices(self, provider: str) -> None:
        """Waits until the budget knows a provider's prices, or the run is stopped."""
        pending = self._budget.pending(provider) if self._budget else None
        while pending and not pending.done() and not self._polls.over.is_set():
            await self._polls.pause(PRICES_S)

    async def _reserve(self, batch: Batch) -> bool:
        """Keeps where each request will be; returns whether all are this run's. Raises StopRun of the ledger."""
        batch.nonce, at = secrets.token_hex(13), time.time()
        places = batch_places([member.request for member in batch.members])
        for member, place in zip(batch.members, places, strict=True):
            member.place = place
        if not self._submissions:
            return True
        records = self._settings.batches
        pointers = {
            (member.key, member.generation): Pointer(place.number, place.reference, place.count, at, batch.nonce)
            for member, place in zip(batch.members, places, strict=True)
        }
        await self._submissions.mark(batch.provider, batch.model)
        mine = await self._submissions.reserve(batch.nonce, records.place if records else "", pointers)
        if not mine or len(pointers) < len(batch.members):
            await self._submissions.give_back(batch.nonce)
            return False
        await self._polls.begin_record(batch.record(at, records.ledger if records else "", self._settings.run_id))
        return True

    async def _submit_with_tries(self, batch: Batch) -> None:
        began, tries = self._polls.loop.time(), Counter[bool]()
        reserved_at, lost = time.time(), False
        while batch.members:
            try:
                return await self._submit(batch)
            except NotStarted:
                if not (batch.name or lost):
                    await self._return(batch)
                raise
            except Retryable as error:
                if self._finds(batch) and _reply_lost(error):
                    return await self._look_for(batch, reserved_at)
                lost = lost or maybe_billed(error)
                refused = is_throttled(error)
                # What it works on for us makes room as it is done, however long that takes.
                waits = refused and self._polls.following[batch.provider, batch.model] > 0
                tries[refused] += not waits
                spent_s = 0.0 if waits else self._polls.loop.time() - began
                wait_s = self._polls.retry.wait_s(error, tries[refused], self._polls.random, spent_s)
                if wait_s is None:
                    warn_of(batch, f"{len(batch.members)} requests could not be handed over", error)
                    return await self._release(batch)
            except (StopRun, ModelUnusable) as error:
                if error.about != "unclear":
                    await self._return(batch)
                    raise
                warn_of(batch, f"a batch of {len(batch.members)} requests was refused", error)
                return await self._release(batch)
            except LineError:
                await self._return(batch)
                raise
            await self._polls.pause(max(wait_s, _ROOM_S) if waits else wait_s)
        return None

    async def _submit(self, batch: Batch) -> None:
        """The place in the window is free again when the batch's name is durable."""
        requests, limits = [member.request for member in batch.members], batch.backend.batch_limits(batch.model)
        upload_s = batch.share * limits.size / BYTES_S
        async with self._polls.call(batch, {"requests": len(requests)}):
            try:
                async with asyncio.timeout(self._settings.call_timeout_s + upload_s):
                    name = await batch.backend.submit_batch(batch.model, requests, batch.nonce)
            except (ModelError, TimeoutError, asyncio.CancelledError) as error:
                closing = isinstance(error, asyncio.CancelledError)
                billed = not isinstance(error, ModelError) or maybe_billed(error)
                if closing or (billed and not self._finds(batch)):
                    self._lose(batch)
                raise
            self._polls.was_sent(batch, name, time.time())
            if self._submissions:
                await self._submissions.attach(batch.nonce, name)
        if self._submissions and not await self._attach(batch, name):
            self._polls.look_again(batch)  # another run believed that this one had died

    def _finds(self, batch: Batch) -> bool:
        """Whether it can be found if the reply to its submission is lost."""
        return self._submissions is not None and batch.backend.batch_limits(batch.model).finds

    async def _attach(self, batch: Batch, name: str) -> str:
        """Attaches a batch, or with "" returns its nonce; the one that holds by now."""
        assert self._submissions  # noqa: S101 - see callers
        holds = await self._submissions.attach(batch.nonce, name)
        if name and not holds:
            _log.warning("%s/%s: batch %s comes too late, and is cancelled", batch.provider, batch.model, name)
            try:
                async with self._polls.call(batch, {"cancel": name}), asyncio.timeout(self._settings.call_timeout_s):
                    await batch.backend.cancel_batch(batch.model, name)
            except ModelError as error:
                _log.warning("batch %s could not be cancelled: %s", name, error.message)
        now = time.time()
        if holds:
            by = self._polls.lanes.expected_by(batch.window_s, now)
            await self._polls.update(batch.nonce, batch=holds, handed_over_at=now, expected_by=by, unclear="")
        else:
            await self._polls.update(batch.nonce, ended_at=now, unclear="")
        return holds

    async def _look_for(self, batch: Batch, reserved_at: float) -> None:
        """After a lost reply: follows the batch if it is there, else lets its requests be handed over anew."""
        name = await self._find(batch, len(batch.members), reserved_at)
        if holds := await self._attach(batch, name):
            self._polls.was_sent(batch, holds, time.time())
        else:
            self._polls.look_again(batch)

    async def _find(self, batch: Batch, count: int, since: float) -> str:
        """The batch of a nonce by the provider's list, or "". Raises BatchUnclear and NotStarted."""
        recall = self._polls.recall
        assert recall  # noqa: S101 - see callers
        # A run that lives may still be handing it over, if other runs ask the same.
        busy_s = since + self._settings.call_timeout_s - time.time() if recall.shares else 0.0
        for last in (False, True):
            if holds := await recall.submissions.batch_of(batch.nonce):
                return holds
            if name := await self._look(batch, count, since):
                return name
            if not last:
                await self._polls.pause(max(LISTING_LAG_S, busy_s))
        return ""

    async def _look(self, batch: Batch, count: int, since: float) -> str | None:
        tries, retry = 0, self._polls.retry
        while True:
            try:
                async with self._polls.call(batch, {"find": batch.nonce}):
                    async with asyncio.timeout(self._settings.call_timeout_s):
                        return await batch.backend.find_batch(batch.model, batch.nonce, count, since - CLOCKS_S)
            except Retryable as error:
                tries += 1
                wait_s = retry.wait_s(error, tries, self._polls.random)
                if wait_s is None:
                    raise BatchUnclear(error.message, provider=batch.provider) from error
            except BatchUnclear:
                raise
            except ModelError as error:
                raise BatchUnclear(error.message, provider=batch.provider) from error
            await self._polls.pause(wait_s)

    async def _release(self, batch: Batch) -> None:
        await self._return(batch)
        self._polls.release(batch)

    async def _return(self, batch: Batch) -> None:
        """Frees requests that were surely not handed over."""
        if self._submissions:
            await self._attach(batch, "")

    def _lose(self, batch: Batch) -> None:
        """A batch may have been handed over whose name is unknown."""
        if self._budget:
            for member in batch.members:
                self._budget.lose(batch.provider, member.request)


def _reply_lost(error: ModelError) -> bool:
    """Whether the provider may have done what it did not confirm."""
    return maybe_billed(error) or (error.status or 0) in (500, 502, 503, 504)
