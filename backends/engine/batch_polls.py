"""From a batch's hand-over to its answers, by polls that are calls like all others: in the window, within limits."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any

from llmdo.backends.engine.recall import Recall
from llmdo.backends.engine.scheduler import NotStarted, Scheduler
from llmdo.backends.engine.settings import CallSettings
from llmdo.backends.engine.verdicts import BEFORE_ANSWERS, as_lines_own
from llmdo.backends.errors import CallTimeout, LineError, ModelError, Retryable, StopRun, WaitsInBatch
from llmdo.backends.lanes.batch import Batch, BatchMember, LeftBatch
from llmdo.backends.lanes.choice import LaneChoice
from llmdo.backends.lanes.counted import BatchCounts
from llmdo.backends.lanes.records import BatchRecord
from llmdo.backends.lanes.rescue import UNKNOWN_FACTOR, Rescue
from llmdo.backends.lanes.windows import look_s
from llmdo.backends.limits.retry import is_throttled
from llmdo.backends.requests import RawRequest
from llmdo.backends.responses import Response

# Seconds; a batch of Workers AI is usually answered within five minutes
# (developers.cloudflare.com/workers-ai/features/batch-api).
FIRST_POLL_S = 5.0
LONGEST_POLL_S = 60.0
# A batch that was cancelled ends within minutes (OpenAI: 10); one that does not is given up after this. Seconds.
CANCELLED_S = 3600.0

_log = logging.getLogger(__name__)

_Results = AsyncIterator[tuple[int, Response | ModelError]]


class BatchPolls:
    """Polls for the answers of batches; used on the loop's thread.

    Args:
        loop: the engine's event loop.
        scheduler: starts the calls.
        settings: those of the engine.
        recall: where batches are kept; None: nowhere.
        stop: gets each StopRun, and must set ``over``.
        final: what an error that every call meets is for a provider's model, see Connections.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        scheduler: Scheduler,
        settings: CallSettings,
        recall: Recall | None,
        stop: Callable[[StopRun], None],
        final: Callable[[str, str, ModelError], ModelError],
    ) -> None:
        self.loop = loop
        self.lanes = LaneChoice(settings.mode, settings.retry.deadline_s, settings.detached)
        self.retry = settings.retry
        self.recall = recall
        self.over = asyncio.Event()
        self.following = Counter[tuple[str, str]]()  # batches of a model that are worked on
        self.random = random.Random()  # noqa: S311 - spreads waits, guards nothing
        self._began = time.time() - loop.time()
        self.rescue = (
            Rescue(settings.ready_by, self._now, scheduler.speed_of, self._factor) if settings.ready_by else None
        )
        self._longest_poll_s = min(LONGEST_POLL_S, self.rescue.look_s) if self.rescue else LONGEST_POLL_S
        self._settings = settings
        self._scheduler = scheduler
        self._budget = settings.budget
        self._counts = BatchCounts(settings.budget, rescues=self.rescue is not None)
        self._stop = stop
        self._final = final

    async def follow(self, batch: Batch) -> None:
        """Polls for a batch until all members have ended. Raises NotStarted.

        If the batch is unknown, and where it is not done in time, they are left to be called by themselves, and count
        as lost. A batch of an earlier run is looked at first, whatever the time. A refusal that may pass (a firewall's
        page) is believed at the BEFORE_ANSWERS-th poll in a row: what is handed over is paid.
        """
        wait_s, failures, refusals, looked = min(FIRST_POLL_S, self._longest_poll_s), 0, 0, not batch.earlier
        while batch.members or batch.late:
            if looked and self.lanes.detached and self.recall:
                raise NotStarted
            if looked:
                await self.pause(wait_s * (0.5 + self.random.random() / 2))
                out = self.following[batch.provider, batch.model] if batch.window else 0
                wait_s = min(2 * wait_s, max(self._longest_poll_s, look_s(out, self._settings.rates.rpm)))
            looked, done = True, False
            try:
                done = await self._poll(batch, [*batch.members, *batch.late])
                failures = refusals = 0
            except Retryable:
                failures, refusals = failures + 1, 0
            except ModelError as refused:
                failures, refusals = failures + 1, refusals + 1
                if refused.about != "unclear" or refused.status == 404:
                    warn_of(batch, f"batch {batch.name} is not known", refused)
                    return self.release(batch)
                if refusals >= BEFORE_ANSWERS:
                    raise self._ending(batch, refused) from refused
            late = not done and self.loop.time() >= batch.until and not 0 < failures < self.retry.attempts
            if late and not await self._cancel(batch):
                with suppress(ModelError):  # it may have ended since the last look: then it is paid
                    if await self._poll(batch, [*batch.members, *batch.late]):
                        continue
                warn_of(batch, f"batch {batch.name} is not answered {batch.given_s:g} s after it was sent")
                return self.release(batch)
        return None

    def release(self, batch: Batch) -> None:
        """Leaves all members to be called by themselves."""
        for member in (*batch.members, *batch.late):
            self._counts.end(batch, member)
            self._counts.fetch(batch, member)
            self._counts.rescue(batch, member)
            member.end(None)
        batch.members.clear()
        batch.late.clear()

    def call_now(self, batch: Batch) -> None:
        """Leaves all members to be called by themselves, whether their batch comes back or not."""
        for member in batch.members:
            self._counts.rescue(batch, member)
            member.end(None)
        batch.late.update(batch.members)
        batch.members.clear()

    def look_again(self, batch: Batch) -> None:
        """Lets all members be looked up again, since they are in no batch now."""
        for member in batch.members:
            self._counts.give_back(batch, member)
            member.fail(LeftBatch())
        batch.members.clear()

    def send_away(self, batch: Batch) -> None:
        """Ends all members: as NotStarted, or, if a later run can fetch their answers, as WaitsInBatch."""
        waits = self.recall and not self.recall.broken and batch.name
        until = self.lanes.expected_by(batch.window_s, batch.sent_at)
        said = f"{batch.model}: waits in batch {batch.name}: run the same command again to fetch its answer"
        for member in (*batch.members, *batch.late):
            (self._counts.leave if waits else self._counts.end)(batch, member)
            member.fail(WaitsInBatch(said, provider=batch.provider, until=until) if waits else NotStarted())
        batch.members.clear()
        batch.late.clear()

    def was_sent(self, batch: Batch, name: str, at: float) -> None:
        """A batch was handed over, ``at`` in Unix time."""
        batch.name, batch.sent_at = name, at
        batch.given_s = self.lanes.waits_until(batch.window_s, at) - at
        batch.until = self.loop.time() + batch.given_s - max(0.0, time.time() - at)

    def was_cancelled(self, batch: Batch, at: float) -> None:
        """The provider was asked to end it, ``at`` in Unix time."""
        batch.cancelled_at, batch.until = at, self.loop.time() + CANCELLED_S - (self._now() - at)

    async def update(self, nonce: str, **changes: Any) -> None:
        """Writes what is new of a submission into its record, if it has one; a warning where it cannot."""
        records = self._settings.batches
        if not records or not nonce:
            return
        try:
            if record := await asyncio.to_thread(records.find, nonce):
                answered = min(record.answered + changes.pop("answered", 0), record.lines)
                await asyncio.to_thread(records.keep, replace(record, answered=answered, **changes))
        except Exception as error:  # noqa: BLE001 - of whichever storage; nothing depends on it
            _log.warning("%s%s.json cannot be written: %s", records.place, nonce, error)

    async def begin_record(self, record: BatchRecord) -> None:
        """Writes the record of a batch that may be submitted from now on. Raises NotStarted."""
        if self._settings.batches:
            try:
                await asyncio.to_thread(self._settings.batches.keep, record)
            except Exception as error:
                self.end_run(StopRun(f"the record of a batch cannot be written, so it is not handed over: {error}"))
                raise NotStarted from error

    def end_run(self, error: StopRun) -> None:
        """Stops the run, as a ledger that fails does."""
        self._stop(error)

    @asynccontextmanager
    async def call(self, batch: Batch, body: Mapping[str, Any]) -> AsyncIterator[None]:
        """One call in the window. Raises NotStarted instead of a StopRun about the account, which all requests get."""
        request, timeout_s = RawRequest(batch.model, body), self._settings.call_timeout_s
        call = await self._scheduler.take(batch.provider, request, again=True, paid=False)
        error: ModelError | None = None
        try:
            yield
        except TimeoutError as late:
            error = CallTimeout(f"{batch.model}: no reply to a batch within {timeout_s:g} s: try later")
            raise error from late
        except ModelError as known:
            error = known
            if isinstance(known, StopRun) and known.about != "unclear":
                raise self._ending(batch, known) from known
            raise
        finally:
            self._scheduler.give_back(batch.provider, call, None, error)
            self._scheduler.start()

    async def pause(self, seconds: float) -> None:
        """Waits, but not on when the run is stopped: the next call is not started then."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.over.wait()

    async def cancel(self, batch: Batch) -> None:
        """Asks for a batch to end, until that was heard or is refused."""
        with suppress(NotStarted, ModelError):
            while batch.members and await self._cancel(batch) and not batch.cancelled and not self.over.is_set():
                await self.pause(min(FIRST_POLL_S, self._longest_poll_s))

    async def _cancel(self, batch: Batch) -> bool:
        """Asks for a late batch to end; returns whether it may still bring answers."""
        if batch.cancelled:
            return False
        try:
            async with self.call(batch, {"cancel": batch.name}), asyncio.timeout(self._settings.call_timeout_s):
                await batch.backend.cancel_batch(batch.model, batch.name)
        except Retryable:
            return True  # asked again after the next poll
        except LineError:
            return False
        self.was_cancelled(batch, self._now())
        await self.update(batch.nonce, cancelled_at=batch.cancelled_at)
        return True

    async def _poll(self, batch: Batch, members: Sequence[BatchMember]) -> bool:
        """Ends those members whose batch is done; returns whether it is."""
        requests, places = [member.request for member in members], [member.place for member in members if member.place]
        async with self.call(batch, {"request_id": batch.name}):
            async with asyncio.timeout(self._settings.call_timeout_s):
                state = await batch.backend.poll_batch(batch.model, batch.name, requests, places)
            if state.results is None:
                batch.seen_open = True
                batch.answered = min(1.0, state.answered / max((place.count for place in places), default=1))
                return False
            try:
                answered = await self._take(batch, members, state.results)
            finally:
                batch.members = [member for member in batch.members if not member.ended.done()]
        batch.late.clear()
        measured = batch.measured(self._now()) if answered or batch.cancelled else {}
        if self.rescue:
            self.rescue.learn(batch.provider, batch.model, **measured)
        await self.update(batch.nonce, ended_at=time.time(), answered=answered, **measured)
        return True

    async def _take(self, batch: Batch, members: Sequence[BatchMember], results: _Results) -> int:
        """Ends each member with its result, as these come; returns how many were answers.

        What may be a refusal of one line is known to be when all have come, and others were answered. Members without
        a result are left to be called by themselves; so are all that an earlier run's batch has refused: a later run
        may get what that one was refused, the quota of its day, a text since allowed.
        """
        left, errors = dict(enumerate(members)), list[tuple[BatchMember, ModelError]]()
        answered = 0
        while one := await self._next(results):
            member, result = left.pop(one[0], None), one[1]
            if member is None:
                continue  # a second result, or of none of these
            result.lane = result.lane or "batch"
            late = member in batch.late
            batch.late.discard(member)
            if isinstance(result, ModelError):
                errors.append((member, result))
                continue
            answered += 1
            self._counts.spend(batch, member, result, late=late)
            member.end(result)
        if not answered and not left and all(is_throttled(error) for _, error in errors) and await self._refused(batch):
            return 0
        for member, error in errors:
            own = as_lines_own(error) if answered and error.about == "unclear" else error
            self._counts.fail(batch, member, own)
            member.end(None if batch.earlier else own)
        for member in left.values():
            self._counts.fail(batch, member)
            self._counts.rescue(batch, member)
            member.end(None)
        return answered

    async def _refused(self, batch: Batch) -> bool:
        """A batch that the provider had no room for (its limit of enqueued tokens): it is handed over again, later."""
        if not self.recall or not batch.nonce:
            return False
        model = batch.provider, batch.model
        others = self.following[model]
        while not self.over.is_set():
            await self.pause(LONGEST_POLL_S)
            if self.following[model] <= 1 or self.following[model] < others:
                break
        try:
            await self.recall.submissions.give_up(batch.nonce)
        except StopRun as broken:
            self.end_run(broken)
            raise NotStarted from broken
        self.look_again(batch)
        return True

    async def _next(self, results: _Results) -> tuple[int, Response | ModelError] | None:
        async with asyncio.timeout(self._settings.call_timeout_s):
            return await anext(results, None)

    def _now(self) -> float:
        """Unix time that no change of the clock moves."""
        return self._began + self.loop.time()

    def _factor(self, provider: str, model: str) -> float:
        known = self._budget and self._budget.prices.lane_factor(provider, model, "batch")
        return known or UNKNOWN_FACTOR

    def _ending(self, batch: Batch, error: ModelError) -> ModelError | NotStarted:
        """What to raise for an error that every call meets; an error that ends the run goes to all requests."""
        final = self._final(batch.provider, batch.model, error)
        if isinstance(final, StopRun):
            self._stop(final)
            return NotStarted()
        return final


def warn_of(batch: Batch, what: str, error: ModelError | None = None) -> None:
    """Warns that a batch's requests are called one by one, and why."""
    why = f" ({error.message})" if error else ""
    _log.warning("%s/%s: %s%s: its requests are called one by one", batch.provider, batch.model, what, why)
