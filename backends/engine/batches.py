"""Requests that go to a provider's asynchronous batch API: collected in groups, each handed over at once.

``sync`` calls for each request by itself. ``batch`` hands over every request whose model takes batches. ``auto`` does
so where there are many: AUTO_LEAST in a group; fewer are answered sooner by calls. A group is handed over when it is
full, by MAX_ITEMS or by the provider's limit of bytes, and when no more has joined for LINGER_S s.

The name of a batch is in the ledger before its answers are asked for, so that a run that was killed, or stopped,
can be resumed: the next one, in any mode, polls for what was handed over, and pays for nothing twice. Items that the
provider loses or fails are called by themselves, like all tries after the first.

Texts to embed are never handed over, be they one a line or many: a hundred share a call, and a later run would put
others together.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Coroutine
from typing import Any

from llmdo.backends.backend import Backend, BatchBackend
from llmdo.backends.connections import Connections
from llmdo.backends.engine.batch_work import Batch, BatchMember, BatchWork
from llmdo.backends.engine.jobs import Job
from llmdo.backends.engine.recall import HandedOver
from llmdo.backends.engine.scheduler import NotStarted
from llmdo.backends.engine.settings import Mode
from llmdo.backends.errors import LineError, ModelError
from llmdo.backends.listing import list_models
from llmdo.backends.requests import BatchPlace, EmbedRequest, Request
from llmdo.backends.responses import Response
from llmdo.settings.environment import MissingSettings

# A kill while a batch is handed over, before its name is kept, pays it again: at most this many requests of a model.
MAX_ITEMS = 1000
# At the 300 calls a minute of text generation they take 100 s, and a batch, whatever its size, up to five minutes; but
# batches are answered side by side, and use up none of that rate.
AUTO_LEAST = 500
LINGER_S = 2.0
LONGEST_LINGER_S = 30.0  # of a group that requests keep joining
_LIST_S = 30.0  # a list of models that takes longer is given up

_log = logging.getLogger(__name__)


class Batches:
    """Collects requests in groups, hands each group over as one batch, and returns each request's answer.

    Used on the loop's thread.

    Attributes:
        waiting: requests that were taken in and have not ended.
        tasks: what is to be cancelled at the end.
    """

    def __init__(self, mode: Mode, connections: Connections, work: BatchWork) -> None:
        self.waiting = 0
        self.tasks: set[asyncio.Task[Any]] = set()
        self._mode = mode
        self._connections = connections
        self._work = work
        self._loop = work.loop
        self._handed_over: dict[tuple[str, str], asyncio.Task[bool]] = {}
        self._batch_backends: dict[tuple[str, str], asyncio.Future[BatchBackend | None]] = {}
        # By provider, model and, of those that were handed over, name.
        self._open_groups: dict[tuple[str, str, str], Batch] = {}
        self._followed: dict[tuple[str, str, str], Batch] = {}
        # Groups of a model are handed over one after the other: a model that refuses one is not asked again.
        self._handover_locks: defaultdict[tuple[str, str], asyncio.Lock] = defaultdict(asyncio.Lock)
        self._awaiting_handover: set[Batch] = set()
        self._warned: set[str] = set()

    async def answer(self, job: Job, request: Request) -> Response | None:
        """The answer by way of a batch, or None where the request is to be called by itself.

        Raises the ModelError with which its item ended, and NotStarted.
        """
        if job.again or (self._mode == "sync" and not await self._were_handed_over(job.provider, request.model)):
            return None
        backend = await self._backend(job.provider, request)
        if backend is None:
            return None
        self.waiting += 1
        try:
            ended = await self._outcome(job.provider, request, backend)
        finally:
            self.waiting -= 1
        if ended is None:
            return None
        job.tries += 1
        if isinstance(ended, ModelError):
            raise ended
        return ended

    def stop(self) -> None:
        """Hands nothing more over; members end as NotStarted, but for those of a call in flight."""
        self._work.over.set()
        for batch in (*self._open_groups.values(), *self._awaiting_handover):
            self._work.send_away(batch)
        self._open_groups.clear()

    async def _outcome(self, provider: str, request: Request, backend: BatchBackend) -> Response | ModelError | None:
        recall = self._work.recall
        known = await recall.handed_over(provider, request) if recall else None
        if self._work.over.is_set():
            raise NotStarted
        member = BatchMember(request, self._loop.create_future())
        if known:
            self._rejoin(provider, member, known, backend)
        elif self._mode == "sync" or not await self._join(provider, member, backend):
            return None
        return await member.ended

    async def _were_handed_over(self, provider: str, model: str) -> bool:
        """Whether an earlier run has handed requests of this model over; asked once, so that others cost nothing."""
        recall, asked = self._work.recall, self._handed_over.get((provider, model))
        if recall is None:
            return False
        if asked is None:
            asked = self._handed_over[provider, model] = self._start(recall.has_batches(provider, model))
        return asked.result() if asked.done() else await asyncio.shield(asked)

    # Who takes batches.

    async def _backend(self, provider: str, request: Request) -> BatchBackend | None:
        """The backend, if it takes batches of such requests."""
        model = request.model
        if isinstance(request, EmbedRequest):
            self._warn_once(provider, model, "texts to embed are not handed over in batches: many of them share a call")
            return None
        found = self._batch_backends.get((provider, model))
        if found is None:
            found = self._batch_backends[provider, model] = self._start(self._find(provider, model))
        return found.result() if found.done() else await asyncio.shield(found)

    async def _find(self, provider: str, model: str) -> BatchBackend | None:
        try:
            backend = self._connections.get(provider)
        except ModelError:
            return None  # the call will say so
        if isinstance(backend, BatchBackend) and await self._is_listed(backend, provider, model):
            return backend
        self._warn_once(provider, model, "it takes no batches, and its requests are called one by one")
        return None

    async def _is_listed(self, backend: Backend, provider: str, model: str) -> bool:
        """Whether the list of models, or without it the backend, reports that a model takes batches."""
        try:
            async with asyncio.timeout(_LIST_S):
                listed = (await list_models(backend)).models
        except (ModelError, MissingSettings, TimeoutError):
            listed = ()
        info = next((info for info in listed if info.name == f"{provider}/{model}"), None)
        if info:
            return "batch" in info.capabilities
        return isinstance(backend, BatchBackend) and backend.takes_batches(model)

    def _warn_once(self, provider: str, model: str, what: str) -> None:
        name = f"{provider}/{model}"
        if self._mode == "batch" and name not in self._warned:
            self._warned.add(name)
            _log.warning("%s: %s", name, what)

    # Groups.

    async def _join(self, provider: str, member: BatchMember, backend: BatchBackend) -> bool:
        """Puts a request into a group; returns whether there is one for it."""
        model = member.request.model
        try:
            share = await backend.batch_share(member.request)
        except ModelError:
            return False  # the call will say so
        if self._work.over.is_set():
            raise NotStarted
        if share > 1:
            return False
        key = (provider, model, "")
        batch = self._open_groups.get(key)
        if batch and batch.share + share > 1:
            self._begin(key)
            batch = None
        batch = batch or self._gather(key, backend)
        self._add(batch, member, share)
        if len(batch.members) >= MAX_ITEMS:
            self._begin(key)
        return True

    def _rejoin(self, provider: str, member: BatchMember, known: HandedOver, backend: BatchBackend) -> None:
        """Puts a request together with the others of its batch that this run has."""
        key = (provider, member.request.model, known.batch)
        batch = self._followed.get(key) or self._open_groups.get(key)
        if batch is None:
            batch = self._gather(key, backend)
            left_s = self._work.retry.deadline_s - max(0.0, time.time() - known.at)
            batch.name, batch.until, batch.earlier = known.batch, self._loop.time() + left_s, True
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
        if self._mode == "auto" and not batch.earlier and len(batch.members) < AUTO_LEAST:
            self._work.release(batch)
        else:
            self._start(self._run_group(key, batch))

    async def _run_group(self, key: tuple[str, str, str], batch: Batch) -> None:
        if batch.earlier:
            self._followed[key] = batch
        elif not self._work.recall and "" not in self._warned:
            self._warned.add("")
            _log.warning("without a ledger, batches of a run that is killed are paid again: name one with --ledger")
        try:
            if not batch.earlier:
                await self._hand_over(batch)
            await self._work.follow(batch)
        except NotStarted:
            self._work.send_away(batch)
        except LineError as refused:
            unusable = self._batch_backends[batch.provider, batch.model] = self._loop.create_future()
            unusable.set_result(None)
            _log.warning("%s/%s: is called request by request from now on: %s", *key[:2], refused.message)
        except Exception:  # noqa: BLE001 - no request must be left waiting
            _log.exception("%s/%s: unexpected error of a batch", *key[:2])
        finally:
            self._work.release(batch)
            self._followed.pop(key, None)

    async def _hand_over(self, batch: Batch) -> None:
        self._awaiting_handover.add(batch)
        async with self._handover_locks[batch.provider, batch.model]:
            self._awaiting_handover.discard(batch)
            found = self._batch_backends[batch.provider, batch.model]
            if found.done() and not found.result():
                self._work.release(batch)
            await self._work.hand_over(batch)

    def _start(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = self._loop.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task
