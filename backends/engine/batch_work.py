"""One batch from its hand-over to its answers, by calls like all others: in the window, within their model's limits."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from llmdo.backends.backend import BatchBackend
from llmdo.backends.engine.recall import Recall
from llmdo.backends.engine.scheduler import NotStarted, Scheduler
from llmdo.backends.engine.settings import CallSettings
from llmdo.backends.engine.verdicts import BEFORE_ANSWERS, as_lines_own
from llmdo.backends.errors import CallTimeout, ModelError, ModelUnusable, Retryable, StopRun
from llmdo.backends.limits.retry import is_throttled
from llmdo.backends.money.billing import maybe_billed
from llmdo.backends.requests import BatchPlace, RawRequest, Request, batch_places
from llmdo.backends.responses import Response

# Seconds; a batch is usually answered within five minutes (developers.cloudflare.com/workers-ai/features/batch-api).
FIRST_POLL_S = 5.0
LONGEST_POLL_S = 60.0
PRICES_S = 0.1  # between looks whether prices are there

_log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class BatchMember:
    """A request in a batch. ``ended`` gets its answer or its error, or None where it is to be called by itself."""

    request: Request
    ended: asyncio.Future[Response | ModelError | None]
    place: BatchPlace | None = None


@dataclass(slots=True, eq=False)
class Batch:
    """Requests of one model that are handed over together; ``members`` are those that have not ended.

    Attributes:
        began, joined: when its first and its last member came, by the loop's clock.
        share: of the largest batch that the provider takes.
        name: the provider's, once it is handed over; "" before.
        until: its deadline, by the loop's clock.
        earlier: it was handed over by an earlier run, and others of its members may be elsewhere.
    """

    provider: str
    model: str
    backend: BatchBackend
    began: float
    joined: float
    members: list[BatchMember] = field(default_factory=list)
    share: float = 0.0
    name: str = ""
    until: float = float("inf")
    earlier: bool = False


class BatchWork:
    """Hands batches over and polls for their answers; used on the loop's thread.

    Args:
        loop: the engine's event loop.
        scheduler: starts the calls that hand over and poll.
        settings: those of the engine; a batch has ``retry.deadline_s`` s to be answered.
        recall: keeps the names of batches; None: a run that is killed pays for them again.
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
        self.retry = settings.retry
        self.recall = recall
        self.over = asyncio.Event()
        self._scheduler = scheduler
        self._call_timeout_s = settings.call_timeout_s
        self._budget = settings.budget
        self._stop = stop
        self._final = final
        self._random = random.Random()  # noqa: S311 - spreads waits, guards nothing

    async def hand_over(self, batch: Batch) -> None:
        """Hands a batch over; its name is durable then. Raises LineError where the provider refuses it, and NotStarted.

        Members for which the budget has no room are left to be called by themselves: they wait for their turn as calls
        do, and stop the run. So are all members if the batch cannot be handed over with the tries that a call has, or
        if its refusal may be about one of them: their own calls decide, see Verdicts. Each try whose reply was lost
        may have handed it over, and each member counts as lost then.
        """
        await self._prices(batch.provider)
        if self.over.is_set():
            raise NotStarted  # to reserve would wait for the prices, and so would the loop
        self._reserve(batch)
        began, tries = self.loop.time(), Counter[bool]()
        while batch.members:
            try:
                return await self._submit(batch)
            except Retryable as error:
                refused = is_throttled(error)
                tries[refused] += 1
                spent_s = self.loop.time() - began
                wait_s = self.retry.wait_s(error, tries[refused], self._random, spent_s)
                if wait_s is None:
                    _warn(batch, f"{len(batch.members)} requests could not be handed over", error)
                    return self.release(batch)
            except (StopRun, ModelUnusable) as error:
                if error.about != "unclear":
                    raise
                _warn(batch, f"a batch of {len(batch.members)} requests was refused", error)
                return self.release(batch)
            await self._pause(wait_s)
        return None

    async def follow(self, batch: Batch) -> None:
        """Polls for a batch until all members have ended. Raises NotStarted.

        If the batch is unknown, and after its deadline, they are left to be called by themselves, and count as lost. A
        batch of an earlier run is looked at first, whatever the time. A refusal that may pass (a firewall's page) is
        believed at the BEFORE_ANSWERS-th poll in a row: what is handed over is paid.
        """
        wait_s, failures, refusals, looked = FIRST_POLL_S, 0, 0, not batch.earlier
        while batch.members:
            if looked:
                await self._pause(wait_s * (0.5 + self._random.random() / 2))
                wait_s = min(2 * wait_s, LONGEST_POLL_S)
            looked, results = True, None
            members = list(batch.members)
            try:
                results = await self._poll(batch, members)
                failures = refusals = 0
            except Retryable:
                failures, refusals = failures + 1, 0
            except ModelError as refused:
                failures, refusals = failures + 1, refusals + 1
                if refused.about != "unclear" or refused.status == 404:
                    _warn(batch, f"batch {batch.name} is not known", refused)
                    return self.release(batch)
                if refusals >= BEFORE_ANSWERS:
                    raise self._ending(batch, refused) from refused
            if results is not None:
                for member, result in zip(members, _own_refusals(results), strict=True):
                    # A later run may get what an earlier one was refused: the quota of that day, a text since allowed.
                    retry = batch.earlier and isinstance(result, ModelError)
                    if self._budget and not retry:
                        self._budget.after(batch.provider, member.request, result)
                    self._end_member(member, None if retry else result)
                del batch.members[: len(members)]
            elif self.loop.time() >= batch.until and not 0 < failures < self.retry.attempts:
                _warn(batch, f"batch {batch.name} is not answered {self.retry.deadline_s:g} s after it was sent")
                return self.release(batch)
        return None

    def release(self, batch: Batch) -> None:
        """Leaves all members to be called by themselves."""
        for member in batch.members:
            self._end(batch, member)
        batch.members.clear()

    def send_away(self, batch: Batch) -> None:
        """Ends all members as NotStarted."""
        for member in batch.members:
            if not member.ended.done():
                member.ended.set_exception(NotStarted())
            self._end(batch, member)
        batch.members.clear()

    def _end(self, batch: Batch, member: BatchMember) -> None:
        """Ends a member without an answer; one that this run has handed over may be billed nevertheless."""
        if self._budget and batch.name and not batch.earlier:
            self._budget.after(batch.provider, member.request, None)
        elif self._budget:
            self._budget.give_back(member.request)
        self._end_member(member, None)

    def _end_member(self, member: BatchMember, ended: Response | ModelError | None) -> None:
        if not member.ended.done():  # as it is where its task was cancelled
            member.ended.set_result(ended)

    def _reserve(self, batch: Batch) -> None:
        for number, member in enumerate(batch.members):
            if self._budget and self._budget.before(batch.provider, member.request):
                members, batch.members = batch.members, batch.members[number:]
                self.release(batch)
                batch.members = members[:number]
                return

    async def _prices(self, provider: str) -> None:
        """Waits until the budget knows a provider's prices, or the run is stopped."""
        pending = self._budget.pending(provider) if self._budget else None
        while pending and not pending.done() and not self.over.is_set():
            await self._pause(PRICES_S)

    async def _submit(self, batch: Batch) -> None:
        """The place in the window is free again when the batch's name is durable."""
        requests = [member.request for member in batch.members]
        places = batch_places(requests)
        async with self._call(batch, {"requests": len(requests)}):
            try:
                async with asyncio.timeout(self._call_timeout_s):
                    name = await batch.backend.submit_batch(batch.model, requests)
            except (ModelError, TimeoutError, asyncio.CancelledError) as error:
                if not isinstance(error, ModelError) or maybe_billed(error):
                    self._lose(batch)
                raise
            batch.name, batch.until = name, self.loop.time() + self.retry.deadline_s
            for member, place in zip(batch.members, places, strict=True):
                member.place = place
            if self.recall:
                await self.recall.keep_batch(batch.provider, requests, places, name, time.time())
                if self.recall.broken:
                    self._stop(self.recall.broken)

    def _lose(self, batch: Batch) -> None:
        """A batch may have been handed over whose name is unknown."""
        if self._budget:
            for member in batch.members:
                self._budget.lose(batch.provider, member.request)

    async def _poll(self, batch: Batch, members: list[BatchMember]) -> tuple[Response | ModelError, ...] | None:
        requests, places = [member.request for member in members], [member.place for member in members if member.place]
        async with self._call(batch, {"request_id": batch.name}), asyncio.timeout(self._call_timeout_s):
            return (await batch.backend.poll_batch(batch.model, batch.name, requests, places)).results

    @asynccontextmanager
    async def _call(self, batch: Batch, body: Mapping[str, Any]) -> AsyncIterator[None]:
        """One call in the window. Raises NotStarted instead of a StopRun about the account, which all requests get."""
        request = RawRequest(batch.model, body)
        call = await self._scheduler.take(batch.provider, request, again=True, paid=False)
        error: ModelError | None = None
        try:
            yield
        except TimeoutError as late:
            error = CallTimeout(f"{batch.model}: no reply to a batch within {self._call_timeout_s:g} s: try later")
            raise error from late
        except ModelError as known:
            error = known
            if isinstance(known, StopRun) and known.about != "unclear":
                raise self._ending(batch, known) from known
            raise
        finally:
            self._scheduler.give_back(batch.provider, call, None, error)
            self._scheduler.start()

    def _ending(self, batch: Batch, error: ModelError) -> ModelError | NotStarted:
        """What to raise for an error that every call meets; an error that ends the run goes to all requests."""
        final = self._final(batch.provider, batch.model, error)
        if isinstance(final, StopRun):
            self._stop(final)
            return NotStarted()
        return final

    async def _pause(self, seconds: float) -> None:
        """Waits, but not on when the run is stopped: the next call is not started then."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.over.wait()


def _own_refusals(results: Sequence[Response | ModelError]) -> Sequence[Response | ModelError]:
    """The results of a batch; what may be about one line is, where others of the batch were answered."""
    if all(isinstance(result, ModelError) for result in results):
        return results
    return [
        as_lines_own(result) if isinstance(result, ModelError) and result.about == "unclear" else result
        for result in results
    ]


def _warn(batch: Batch, what: str, error: ModelError | None = None) -> None:
    why = f" ({error.message})" if error else ""
    _log.warning("%s/%s: %s%s: its requests are called one by one", batch.provider, batch.model, what, why)
