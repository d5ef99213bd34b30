"""Requests that go to a provider's asynchronous batch API: collected in groups, each handed over at once.

``sync`` calls for each request by itself. ``batch`` hands over every request whose model takes batches. ``auto`` does
so where there are many: AUTO_LEAST in a group; fewer are answered sooner by calls. A group is handed over when it is
full, by the provider's limits of requests and of bytes, and when no more has joined for LINGER_S s.

What is handed over is in the ledger before and after (see llmdo.backends.kept.submissions), so that a run that was
killed, or stopped, can be resumed: the next one, in any mode, polls for what was handed over, and pays for nothing
twice. Items that the provider loses or fails are called by themselves, like all tries after the first.

Texts to embed are never handed over, be they one a line or many: a hundred share a call, and a later run would put
others together.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from typing import Any, TypeVar

from llmdo.backends.backend import BatchBackend
from llmdo.backends.connections import Connections
from llmdo.backends.engine.batch_polls import BatchPolls
from llmdo.backends.engine.batch_work import BatchWork
from llmdo.backends.engine.calls import JobCalls, Windows
from llmdo.backends.engine.jobs import Job
from llmdo.backends.engine.scheduler import NotStarted
from llmdo.backends.engine.settings import CallSettings
from llmdo.backends.errors import LineError, ModelError
from llmdo.backends.kept.submissions import Pointer
from llmdo.backends.lanes.batch import Batch, BatchMember, LeftBatch
from llmdo.backends.lanes.earlier import EarlierBatches
from llmdo.backends.lanes.records import BatchRecord
from llmdo.backends.lanes.takers import Takers
from llmdo.backends.lanes.unawaited import Unawaited
from llmdo.backends.money.lanes import WINDOWS
from llmdo.backends.requests import BatchPlace, ChatRequest, EmbedRequest, RawRequest, Request
from llmdo.backends.responses import ChatResponse, RawResponse, Response

LINGER_S = 2.0
LONGEST_LINGER_S = 30.0  # of a group that requests keep joining

_T = TypeVar("_T")
_log = logging.getLogger(__name__)


class Batches:
    """Collects requests in groups, hands each group over as one batch, and returns each request's answer.

    Used on the loop's thread.

    Attributes:
        waiting: requests that were taken in and have not ended.
        tasks: what is to be cancelled at the end.
    """

    def __init__(self, connections: Connections, polls: BatchPolls, calls: JobCalls, settings: CallSettings) -> None:
        self.waiting = 0
        self.tasks: set[asyncio.Task[Any]] = set()
        self._mode = settings.mode
        self._settings = settings
        self._connections = connections
        in_windows = settings.lane in WINDOWS and polls.recall is not None
        self._takers = Takers(connections.get, settings.lane if in_windows else settings.mode)
        self._windows = Windows(calls, polls, self._takers, settings) if in_windows else None
        self._polls = polls
        self._work = BatchWork(polls, settings)
        self._submissions = polls.recall.submissions if polls.recall else None
        self._earlier = EarlierBatches(settings.batches, self._submissions, polls.rescue) if settings.batches else None
        self._loop = polls.loop
        self._handed_over: dict[tuple[str, str], asyncio.Task[bool]] = {}
        self._settling: dict[str, asyncio.Task[str]] = {}  # by nonce
        # By provider, model and route; those that were handed over by their name instead of the route.
        self._open_groups: dict[tuple[str, str, str], Batch] = {}
        self._followed: dict[tuple[str, str, str], Batch] = {}
        # Groups of a model are handed over one after the other: a model that refuses one is not asked again.
        self._handover_locks: defaultdict[tuple[str, str], asyncio.Lock] = defaultdict(asyncio.Lock)
        self._awaiting_handover: set[Batch] = set()
        self._warned = False

    @property
    def rescues(self) -> Mapping[str, tuple[float, float]]:
        """See ``Rescue.planned``."""
        return self._polls.rescue.planned if self._polls.rescue else {}

    async def answer(self, job: Job, request: Request) -> Response | None:
        """The answer by way of a batch, or None where the request is to be called by itself.

        Raises the ModelError with which its item ended, NotStarted, and StopRun if lines of the output are in batches
        that its ledger does not know.
        """
        if self._earlier and not isinstance(request, EmbedRequest):
            await self._earlier.look()
        in_window = self._windows is not None and not job.at_list
        if not in_window and (
            job.again or (self._mode == "sync" and not await self._were_handed_over(job.provider, request.model))
        ):
            return None
        backend = self._takers.backend(job.provider, request)
        if backend is None:
            return None
        tries = job.tries
        self.waiting += 1
        try:
            ended = await self._outcome(job, request, backend)
        finally:
            self.waiting -= 1
        if ended is None:
            return None
        job.tries = max(job.tries, tries + 1)
        if isinstance(ended, ModelError):
            raise ended
        return ended

    def stop(self) -> None:
        """Hands nothing more over; members end as NotStarted, but for those of a call in flight."""
        self._polls.over.set()
        for batch in (*self._open_groups.values(), *self._awaiting_handover):
            self._polls.send_away(batch)
        self._open_groups.clear()

    async def close_unawaited(self, is_awaited: Callable[[BatchRecord], bool]) -> None:
        """Ends those batches of earlier runs whose answers nobody waits for, when all lines have ended."""
        if not self._earlier or not self._submissions:
            return
        budget, timeout_s = self._settings.budget, self._settings.call_timeout_s

        def spend(batch: Batch, result: Response | ModelError) -> None:
            if budget and result.usage is not None:
                budget.after(batch.provider, ChatRequest(batch.model, ()), result, late=True)

        closed = budget.closed if budget else lambda _: None
        unawaited = Unawaited(self._submissions, self._polls, self._work, timeout_s, spend, closed)
        with suppress(NotStarted, ModelError):  # nothing is known of them, or the provider cannot be called
            for record in (await self._earlier.look()).values():
                if self._polls.over.is_set() or await asyncio.to_thread(is_awaited, record):
                    continue
                backend = self._connections.get(record.provider)
                if isinstance(backend, BatchBackend):
                    if budget:  # else the end of the run would not know what it has cost
                        await asyncio.wrap_future(budget.prices.ask(record.provider))
                    await unawaited.close(record, backend)

    async def _outcome(self, job: Job, request: Request, backend: BatchBackend) -> Response | ModelError | None:
        provider, recall = job.provider, self._polls.recall
        key = recall.answer_key(provider, request) if recall else ""
        while True:
            generation, pointer = await self._submissions.find(key) if self._submissions else (0, None)
            member = BatchMember(request, self._loop.create_future(), key=key, generation=generation)
            if pointer and not (
                name := pointer.batch or await self._batch_of(provider, request.model, backend, pointer)
            ):
                continue  # it was returned
            if self._polls.over.is_set():
                raise NotStarted
            if pointer:
                self._rejoin(provider, member, pointer, name, backend)
            elif self._windows and (window := self._windows.asked(job, request, backend)):
                begun = await self._windows.begin(job, member, backend, window)
                if not isinstance(begun, Batch):
                    return begun
                if begun.members:  # else another run was faster
                    self._start(self._run_group((provider, request.model, begun.name), begun))
            elif self._mode == "sync" or not await self._join(provider, member, backend):
                return None
            with suppress(LeftBatch):
                ended = await member.ended
                if self._windows and not isinstance(ended, ChatResponse | RawResponse):
                    job.at_list, job.began = "it was not answered in the background", None  # its tries begin anew
                return ended

    async def _batch_of(self, provider: str, model: str, backend: BatchBackend, pointer: Pointer) -> str:
        """The batch of a submission, "" if it was not made; where nobody knows yet, it is looked for, once for all."""
        assert self._submissions  # noqa: S101 - it has found the pointer
        nonce = pointer.nonce
        known = await self._submissions.batch_of(nonce)
        if known is not None:
            return known
        if nonce not in self._settling:
            self._settling[nonce] = self._start(self._work.settle(provider, model, backend, pointer))
        return await asyncio.shield(self._settling[nonce])

    async def _were_handed_over(self, provider: str, model: str) -> bool:
        """Whether an earlier run has handed requests of this model over; asked once, so that others cost nothing."""
        if self._submissions is None:
            return False
        asked = self._handed_over.get((provider, model))
        if asked is None:
            asked = self._handed_over[provider, model] = self._start(self._submissions.any_of(provider, model))
        return asked.result() if asked.done() else await asyncio.shield(asked)

    # Groups.

    async def _join(self, provider: str, member: BatchMember, backend: BatchBackend) -> bool:
        """Puts a request into a group; returns whether there is one for it."""
        model, generation = member.request.model, member.generation
        if generation >= self._polls.retry.attempts or not await self._takers.takes_batches(backend, provider, model):
            return False
        try:
            share = await backend.batch_share(member.request)
        except ModelError:
            return False  # the call will say so
        if self._polls.over.is_set():
            raise NotStarted
        if share > 1 or (self._polls.rescue and self._polls.rescue.calls_ahead(provider, model)):
            return False
        key = (provider, model, _route(member.request))
        batch = self._open_groups.get(key)
        if batch and batch.share + share > 1:
            self._begin(key)
            batch = None
        batch = batch or self._gather(key, backend)
        self._add(batch, member, share)
        most = backend.batch_limits(model).items
        if self._polls.rescue:
            most = min(most, self._polls.rescue.most_lines(provider, model))
        if len(batch.members) >= most:
            self._begin(key)
        return True

    def _rejoin(self, provider: str, member: BatchMember, known: Pointer, name: str, backend: BatchBackend) -> None:
        """Puts a request together with the others of its batch that this run has."""
        key = (provider, member.request.model, name)
        batch = self._followed.get(key) or self._open_groups.get(key)
        if batch is None:
            batch = self._gather(key, backend)
            batch.nonce, batch.earlier = known.nonce, True
            self._polls.was_sent(batch, name, known.at)
            if self._earlier and (cancelled_at := self._earlier.cancelled_at(known.nonce)):
                self._polls.was_cancelled(batch, cancelled_at)
        member.place = BatchPlace(known.number, known.reference, known.count)
        self._add(batch, member, 0.0)

    def _gather(self, key: tuple[str, str, str], backend: BatchBackend) -> Batch:
        now = self._loop.time()
        batch = self._open_groups[key] = Batch(*key[:2], backend, began=now, joined=now)
        self._loop.call_at(now + LINGER_S, self._begin_if_quiet, key, batch)
        return batch

    def _add(self, batch: Batch, member: BatchMember, share: float) -> None:
        batch.members.append(member)
        batch.share += share
        batch.joined = self._loop.time()

    def _begin_if_quiet(self, key: tuple[str, str, str], batch: Batch) -> None:
        """Starts a group that no request has joined for a while."""
        if self._open_groups.get(key) is not batch:
            return
        due = min(batch.joined + LINGER_S, batch.began + LONGEST_LINGER_S)
        if self._loop.time() < due:
            self._loop.call_at(due, self._begin_if_quiet, key, batch)
        else:
            self._begin(key)

    def _begin(self, key: tuple[str, str, str]) -> None:
        batch = self._open_groups.pop(key)
        if batch.earlier or self._polls.lanes.hands_over(len(batch.members)):
            self._start(self._run_group(key, batch))
        else:
            self._polls.release(batch)

    async def _run_group(self, key: tuple[str, str, str], batch: Batch) -> None:
        if batch.name:
            self._followed[key] = batch
        elif not self._submissions and not self._warned:
            self._warned = True
            _log.warning("without a ledger, batches of a run that is killed are paid again: name one with --ledger")
        model = batch.provider, batch.model
        try:
            if not batch.name:
                if self._polls.rescue:
                    others = (one for one in self._open_groups.values() if one.model == batch.model)
                    await self._polls.rescue.choose(self._polls, batch, sum(len(one.members) for one in others))
                await self._hand_over(batch)
            if self._polls.rescue and batch.members:
                self._polls.rescue.went_out(batch)
                if not self._polls.rescue.keeping:
                    self._start(self._polls.rescue.keep(self._polls))
            self._polls.following[model] += 1
            try:
                await self._polls.follow(batch)
            finally:
                self._polls.following[model] -= 1
        except NotStarted:
            self._polls.send_away(batch)
        except LineError as refused:
            self._takers.refuse(*model)
            _log.warning("%s/%s: is called request by request from now on: %s", *model, refused.message)
        except Exception:  # noqa: BLE001 - no request must be left waiting
            _log.exception("%s/%s: unexpected error of a batch", *model)
        finally:
            self._polls.release(batch)
            self._followed.pop(key, None)
            if self._polls.rescue:
                self._polls.rescue.ended(batch)

    async def _hand_over(self, batch: Batch) -> None:
        self._awaiting_handover.add(batch)
        async with self._handover_locks[batch.provider, batch.model]:
            self._awaiting_handover.discard(batch)
            if self._takers.has_refused(batch.provider, batch.model):
                self._polls.release(batch)
            await self._work.hand_over(batch)

    def _start(self, work: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
        task = self._loop.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task


def _route(request: Request) -> str:
    """What all requests of a batch have in common, beside their model."""
    return request.path if isinstance(request, RawRequest) else ""
