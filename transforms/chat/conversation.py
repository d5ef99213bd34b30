"""Answers the messages of one conversation, each once and in order, and pushes the answers.

Calls to the log block, and run in threads; no thread is held while a model answers.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from llmdo.storage.chat.log import ChatLog, mark_name
from llmdo.storage.chat.records import ChatMessage, Conversation, DamagedLog, LoggedAnswer
from llmdo.storage.errors import StorageError, StorageUnavailable
from llmdo.transforms.chat.answers import Answers, NotNow
from llmdo.transforms.chat.elements import MOST_WAITING, Answered, ConversationSettings, MessageOutcome, WaitingMessage
from llmdo.transforms.chat.failures import OVERFLOW, reason_of
from llmdo.transforms.chat.replies import AnsweredElsewhere, ReplySink

_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 30.0  # between tries while the log is unreachable

OnAnswered = Callable[[Answered], None]
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ChatContext:
    """What the conversations of a run share.

    Attributes:
        log: the log that holds the conversations.
        answers: makes the answer to one message.
        replies: where answers are pushed to; None if they are only logged.
        stopped: set once no further turn may start; ``stop`` sets it, and takes the reason.
        spawn: runs a coroutine as a separate task.
        names: ``mark_name`` of each message in work.
    """

    log: ChatLog
    answers: Answers
    replies: ReplySink | None
    settings: ConversationSettings
    stopped: asyncio.Event
    stop: Callable[[BaseException], None]
    spawn: Callable[[Coroutine[Any, Any, None]], None]
    names: set[str] = field(default_factory=set)


@dataclass(slots=True, eq=False)
class _Work:
    """A message in work, and the callbacks for its outcome."""

    message: ChatMessage
    dones: list[OnAnswered]
    trace: dict[str, float]


class ConversationWorker:
    """Answers the messages of one conversation in order; used only on the loop of its Conversations."""

    def __init__(self, conversation: str, context: ChatContext) -> None:
        self.id = conversation
        self._context = context
        self._log = context.log
        self._settings = context.settings
        self._waiting: dict[str, _Work] = {}
        self._working: dict[str, _Work] = {}  # the one being answered, and those being pushed
        self._came = asyncio.Event()
        self._ours = False  # claimed by this process
        self._skipped: set[str] = set()  # messages that stay unanswered unless they are submitted again
        self._failures = 0

    @property
    def open(self) -> int:
        """Messages in work."""
        return len(self._waiting) + len(self._working)

    def take_in(self, incoming: WaitingMessage, done: OnAnswered) -> None:
        """Takes a message to answer; one that is already in work is answered once."""
        message = incoming.message
        known = self._waiting.get(message.id) or self._working.get(message.id)
        if known is not None:
            known.dones.append(done)
            return
        work = self._work(message, [done])
        if self._context.stopped.is_set() or self._settings.leaves_alone(message):
            self._finish(work, "left")
        elif len(self._waiting) >= MOST_WAITING and not incoming.accepted:
            self._begin(work)
            refusal = self._context.answers.refuse(message, work.trace, OVERFLOW)
            self._context.spawn(self._safely(work, self._keep(work, refusal)))
        else:
            self._waiting[message.id] = work
            self.wake()

    def wake(self) -> None:
        """Makes ``run`` look for new messages, or for the end."""
        self._came.set()

    async def run(self) -> None:
        """Answers messages until none has arrived for a while, or everything is stopped."""
        stopped = self._context.stopped
        try:
            while not stopped.is_set():
                if self._waiting:
                    await self._next_turn()
                elif not await self._message_arrives():
                    await self._release()
                    if not self.open:
                        return
        except Exception:  # noqa: BLE001 - a bug that one conversation meets must not end the others
            _log.exception("conversation %s: unexpected error: its messages stay open", self.id)
        finally:
            await self._release()
            for work in list(self._waiting.values()):
                self._finish(work, "left")

    async def _message_arrives(self) -> bool:
        self._came.clear()
        while not self._waiting and not self._context.stopped.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(self._came.wait(), self._settings.linger_s)
                continue
            if not self.open:
                return False
        return True

    async def _next_turn(self) -> None:
        """Answers one message, or waits until that is possible."""
        try:
            if not self._ours:
                settings = self._settings
                self._ours = await asyncio.to_thread(self._log.take, self.id, settings.run_id, settings.is_alive)
            conversation = await asyncio.to_thread(self._log.conversation, self.id)
            self._finish_answered(conversation)
            if not self._ours and self._waiting:
                await self._pause(self._settings.look_again_s)
            if not self._ours or not self._waiting:
                return
            work = await self._first_unanswered(conversation)
        except DamagedLog as error:
            work = self._begin(min(self._waiting.values(), key=_order))
            answer = self._context.answers.refuse(work.message, work.trace, reason_of(error), error)
            await self._safely(work, self._keep(work, answer))
            return
        except StorageError as error:
            await self._wait_after(error)
            return
        self._failures = 0
        if not self._context.stopped.is_set():
            await self._safely(self._begin(work), self._turn(work, conversation))

    def _finish_answered(self, conversation: Conversation) -> None:
        """Finishes the messages that have an answer by now."""
        for work in list(self._waiting.values()):
            answer = conversation.answers.get(work.message.id)
            if answer is not None and self._ours:
                self._context.spawn(self._safely(self._begin(work), self._deliver_again(work, answer)))
            elif answer is not None:
                self._finish(work, "elsewhere")

    async def _first_unanswered(self, conversation: Conversation) -> _Work:
        """The first message without an answer, even if it was submitted to another process, or to none so far."""
        for message in conversation.unanswered:
            if message.id in self._waiting:
                return self._waiting[message.id]
            if message.id in self._working or message.id in self._skipped or self._settings.leaves_alone(message):
                continue
            found = await asyncio.to_thread(self._log.find, message.id, self.id)
            if found and found[0].open and found[0].answer is None:
                return self._waiting.get(message.id) or self._work(message, [])
            self._skipped.add(message.id)
        return min(self._waiting.values(), key=_order)  # its message is no longer in the log

    async def _turn(self, work: _Work, conversation: Conversation) -> None:
        work.trace["begun"] = time.time()
        try:
            answer = await self._context.answers.make(work.message, conversation.before(work.message), work.trace)
        except NotNow as reason:
            self._finish(work, "left")
            self._context.stop(reason.error)
            return
        except AnsweredElsewhere:
            self._working.pop(work.message.id)
            self._waiting[work.message.id] = work
            await self._pause(self._settings.look_again_s)
            return
        await self._keep(work, answer)

    async def _keep(self, work: _Work, answer: LoggedAnswer) -> None:
        """Logs an answer, retrying while the log is unreachable; then delivers it."""
        first = None
        while first is None:
            try:
                first = await asyncio.to_thread(self._log.answer, answer)
            except DamagedLog as error:  # an answer exists, and may have been pushed
                _log.warning("%s", error)
                self._finish(work, "left")
                return
            except StorageError as error:
                await self._wait_after(error)
                if self._context.stopped.is_set():
                    self._finish(work, "left")
                    return
        if first == answer:
            self._settings.counted(answer)
        else:
            self._ours = False  # another run thought that this one was dead
        self._context.spawn(self._safely(work, self._deliver(work, first)))

    async def _deliver_again(self, work: _Work, answer: LoggedAnswer) -> None:
        """Pushes an answer that was found in the log, unless it was pushed before."""
        with suppress(StorageError):
            found = await asyncio.to_thread(self._log.find, work.message.id, self.id)
            if found and not found[0].open:
                self._finish(work, _outcome(answer))
                return
        await self._deliver(work, answer)

    async def _deliver(self, work: _Work, answer: LoggedAnswer) -> None:
        replies = self._context.replies
        if replies is None or await replies.push(answer.events):
            try:
                await asyncio.to_thread(self._log.close, work.message, time.time())
            except StorageError as error:
                _log.warning("%s/%s will be pushed again: %s", self.id, work.message.id, error)
        self._finish(work, _outcome(answer))

    async def _wait_after(self, error: StorageError) -> None:
        """Waits, longer each time, while the log is unreachable; any other error ends the run."""
        if not isinstance(error, StorageUnavailable):
            self._context.stop(error)
            return
        wait = min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2.0 ** min(self._failures, 10))
        self._failures += 1
        _log.warning("conversation %s continues in %g s: %s", self.id, wait, error)
        await self._pause(wait)

    async def _release(self) -> None:
        if self._ours:
            self._ours = False
            try:
                await asyncio.to_thread(self._log.release, self.id)
            except StorageError as error:
                _log.debug("conversation %s stays claimed until this run ends: %s", self.id, error)
            except Exception:  # noqa: BLE001 - the callbacks of its messages must still be called
                _log.exception("conversation %s: unexpected error: it stays claimed until this run ends", self.id)

    def _work(self, message: ChatMessage, dones: list[OnAnswered]) -> _Work:
        self._context.names.add(mark_name(message))
        return _Work(message, dones, {"received": message.arrived, "queued": time.time()})

    def _begin(self, work: _Work) -> _Work:
        self._waiting.pop(work.message.id, None)
        self._working[work.message.id] = work
        return work

    async def _safely(self, work: _Work, doing: Coroutine[Any, Any, None]) -> None:
        """An unexpected error leaves its message open, and ends nothing else."""
        try:
            await doing
        except Exception:  # noqa: BLE001 - see above
            _log.exception("%s/%s: unexpected error: the message stays open", self.id, work.message.id)
            self._finish(work, "left")

    def _finish(self, work: _Work, outcome: MessageOutcome) -> None:
        message = work.message
        self._waiting.pop(message.id, None)
        self._working.pop(message.id, None)
        self._context.names.discard(mark_name(message))
        answered = Answered(message.conversation, message.id, outcome)
        if outcome == "left":
            self._skipped.add(message.id)
        dones, work.dones = work.dones, []
        for done in dones:
            done(answered)

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._context.stopped.wait(), seconds)


def _order(work: _Work) -> tuple[float, float, str]:
    return work.message.order


def _outcome(answer: LoggedAnswer) -> MessageOutcome:
    return "failed" if answer.failed else "answered"
