"""The calls of jobs: each waits for its turn, is made, and is counted. One in a window is answered later:

    the call → the name of its answer is durable → its turn is given back → looks, as at a batch of this one request

A call whose reply is lost, or whose process is killed before the name is durable, is made again, as any call is.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import Callable

from llmdo.backends.backend import BackgroundBackend, BatchBackend
from llmdo.backends.connections import Connections
from llmdo.backends.engine.batch_polls import BatchPolls
from llmdo.backends.engine.jobs import Job
from llmdo.backends.engine.scheduler import Scheduler
from llmdo.backends.engine.settings import CallSettings
from llmdo.backends.errors import LineError, ModelError
from llmdo.backends.kept.submissions import Pointer
from llmdo.backends.lanes.batch import Batch, BatchMember
from llmdo.backends.lanes.takers import Takers
from llmdo.backends.money.lanes import asked_window
from llmdo.backends.requests import BatchPlace, Request
from llmdo.backends.responses import RawResponse, Response
from llmdo.backends.telemetry.calls import CallEnded, CallTelemetry, lines_of
from llmdo.backends.usage import Usage

_HAS_NONE = "{} is not answered in the background ({})"
_NO_ROUTE = frozenset({404, 405, 501})  # how a service refuses what it does not have

_log = logging.getLogger(__name__)


class JobCalls:
    """Used on the loop's thread.

    Args:
        loop: the engine's event loop.
        scheduler: gives the turns.
        connections: the backends.
        settings: those of the engine.
        accepted: gets provider, model and begin of each call that a service has taken in, to be answered later.
        closing: whether the engine is being closed: what ends then is not told.

    Attributes:
        retries: calls that repeated a failed one.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        scheduler: Scheduler,
        connections: Connections,
        settings: CallSettings,
        accepted: Callable[[str, str, float], None],
        closing: Callable[[], bool],
    ) -> None:
        self.retries = 0
        self._loop, self._scheduler, self._connections = loop, scheduler, connections
        self._settings, self._accepted, self._closing = settings, accepted, closing
        self._telemetry = CallTelemetry.of(settings.run_id)

    async def answer(self, job: Job, request: Request, sent: Request) -> Response:
        """The call of a request, which is ``sent`` with the bytes that it refers to. Raises NotStarted, and its error.

        The caller gives its turn back.
        """
        await self.turn(job, request)
        ended: Response | ModelError | None = None
        began = self._loop.time()
        try:
            ended = await self._connections.answer(job.provider, sent, self._settings.call_timeout_s, job.refusals)
        except ModelError as error:
            ended = error
            raise
        finally:
            if self._settings.budget:
                self._settings.budget.after(job.provider, request, ended)
            if self._telemetry and (how := ended or sys.exception()) and not self._closing():
                took_s, lines = self._loop.time() - began, lines_of(job.request)
                self._telemetry(CallEnded(job.provider, request, lines, took_s, job.earlier + job.tries, how))
        if job.at_list:
            ended.warnings = (*ended.warnings, f"asked at list price: {job.at_list}")
        return ended

    async def begin(self, job: Job, request: Request, backend: BackgroundBackend, window: str) -> str | Response:
        """The call that asks for an answer in the background: its name, or the answer; see BackgroundBackend.

        After its ``turn``, which the caller gives back. What the budget has reserved stays so as long as there is no
        answer.
        """
        begun: str | Response | ModelError | None = None
        try:
            async with asyncio.timeout(self._settings.call_timeout_s):
                begun = await backend.begin(request, window)
        except ModelError as error:
            begun = error
            raise
        finally:
            if self._settings.budget and not isinstance(begun, str):
                self._settings.budget.after(job.provider, request, begun)
        return begun

    def give_back(self, job: Job, *, accepted: bool) -> None:
        """Gives a job's turn back before the job has ended; ``accepted``: by a call that the service has taken."""
        call, job.call = job.call, None
        assert call  # noqa: S101 - see callers
        # As one that has used what it has reserved of the tokens a minute.
        taken = RawResponse({}, Usage(int(call.tokens), 0), job.request.model) if accepted else None
        self._scheduler.give_back(job.provider, call, taken, None)
        if accepted:
            self._accepted(job.provider, job.request.model, call.at)
        self._scheduler.start()

    async def turn(self, job: Job, request: Request) -> None:
        """Waits until the call may be made. Raises NotStarted."""
        again = job.again and not job.postponed
        job.call = await self._scheduler.take(
            job.provider, request, again=again, job=job.number, fresh=not job.again, suspect=job.suspect
        )
        if job.began is None:
            job.began = job.call.at
        self.retries += bool(job.tries)
        job.tries += 1


class Windows:
    """Asks for answers in the background; used on the loop's thread.

    Args:
        calls, polls: the engine's.
        takers: who answers in the background.
        settings: those of the engine; ``lane`` is a window.
    """

    def __init__(self, calls: JobCalls, polls: BatchPolls, takers: Takers, settings: CallSettings) -> None:
        self._calls, self._polls, self._takers = calls, polls, takers
        self._lane, self._budget = settings.lane, settings.budget
        self._marked: set[tuple[str, str]] = set()

    def asked(self, job: Job, request: Request, backend: BatchBackend) -> str:
        """The window in which a request is asked, or "": its row says then why it is not in the run's."""
        if job.at_list or not isinstance(backend, BackgroundBackend):
            return ""
        if window := asked_window(request, self._lane):
            if self._takers.has_refused(job.provider, request.model):
                job.at_list = _HAS_NONE.format(request.model, window)
            else:
                job.at_list = backend.background_problem(request)
        return "" if job.at_list else window

    async def begin(self, job: Job, member: BatchMember, backend: BatchBackend, window: str) -> Batch | Response | None:
        """Asks for an answer in the background: a batch of one, or the answer of a service that has made it at once.

        The batch has no members where another run was faster. None: the model has no such window. Raises the call's
        error, NotStarted, and StopRun of the ledger.
        """
        assert isinstance(backend, BackgroundBackend) and self._polls.recall  # noqa: S101 - see asked, Batches
        submissions, model = self._polls.recall.submissions, (job.provider, member.request.model)
        if model not in self._marked:
            await submissions.mark(*model)
            self._marked.add(model)
        await self._calls.turn(job, member.request)
        if self._takers.has_refused(*model):  # meanwhile
            if self._budget:
                self._budget.give_back(member.request)
            self._at_list(job, window)
            return None
        try:
            begun = await self._calls.begin(job, member.request, backend, window)
        except LineError as refused:
            if "background" not in refused.message.lower() and refused.status not in _NO_ROUTE:
                raise
            self._takers.refuse(*model)
            _log.warning("%s/%s: is called at list price: %s", *model, refused.message)
            self._at_list(job, window)
            return None
        if not isinstance(begun, str):
            return begun
        now, at = self._polls.loop.time(), time.time()
        batch = Batch(*model, backend, began=now, joined=now, members=[member])
        member.place = BatchPlace(0, "", 1)
        self._polls.was_sent(batch, begun, at)
        try:
            ours = await submissions.keep(member.key, member.generation, Pointer(0, "", 1, at, batch=begun))
        except BaseException:
            if self._budget:
                self._budget.after(job.provider, member.request, None)
            raise
        finally:
            self._calls.give_back(job, accepted=True)
        if not ours:
            await self._polls.cancel(batch)
            self._polls.look_again(batch)
        return batch

    def _at_list(self, job: Job, window: str) -> None:
        job.at_list = _HAS_NONE.format(job.request.model, window)
        job.tries -= 1  # it was no try of what is called now
        self._calls.give_back(job, accepted=False)
