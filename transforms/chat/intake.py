"""Puts events of chats into the log, and says which messages wait for an answer. No Beam."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from llmdo.storage.chat.log import ChatLog
from llmdo.storage.chat.records import ChatMessage, DamagedLog
from llmdo.storage.errors import StorageUnavailable
from llmdo.transforms.chat.elements import Incoming
from llmdo.transforms.chat.events import BadEvent, Event, OtherEvent, ResponseEvent, read_event
from llmdo.transforms.run import Run

# An event's record is an object of its own, and a round trip to R2 takes tens of milliseconds and hardly any CPU.
_AT_ONCE = 32
_TICK = 1e-6  # between two events' times of arrival: their order. Seconds


@dataclass(frozen=True, slots=True)
class Taken:
    """What became of one event: a message that waits for its answer, or ``error``: it could not be logged for now."""

    incoming: Incoming | None = None
    error: StorageUnavailable | None = None


class Intake:
    """Puts events into a log; used by one thread.

    ``since``: messages that were sent before are logged, not answered. Both it and ``clock`` in Unix time in seconds.
    """

    def __init__(self, log: ChatLog, run: Run, since: float | None, clock: Callable[[], float] = time.time) -> None:
        self._log = log
        self._run = run
        self._since = since
        self._clock = clock
        self._arrived = 0.0
        self._pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="llmdo-events")

    def take(self, events: Iterable[object]) -> list[Taken]:
        """Logs some events: JSON as bytes or text, or objects; what became of each, in their order.

        Messages first, then responses, which may be about them. Raises StorageError for what would not go away.
        """
        understood = [(event, self._understood(event)) for event in events]
        taken = list(self._pool.map(lambda pair: self._tried(lambda: self._put(*pair)), understood))
        answered: set[str] = set()
        for at, (_, event) in enumerate(understood):
            if isinstance(event, ResponseEvent) and event.answer is not None:
                taken[at] = self._tried(partial(self._adopt, event))
                answered.add(event.answer.conversation)
        return [self._unless_answered(one, answered) for one in taken] if answered else taken

    def close(self) -> None:
        """Lets go of the threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _understood(self, event: object) -> Event | BadEvent:
        self._arrived = max(self._clock(), self._arrived + _TICK)
        try:
            return read_event(event, self._arrived)  # type: ignore[arg-type]  # what else comes is a BadEvent
        except BadEvent as error:
            return error

    def _put(self, raw: object, event: Event | BadEvent) -> Incoming | None:
        match event:
            case ChatMessage():
                wanted = self._since is None or event.created >= self._since
                try:
                    added = self._log.add(event, wanted)
                    return None if added == "done" else Incoming(event, accepted=added == "open")
                except DamagedLog as error:  # known, and its record is spoilt: the step behind says so to the user
                    self._log.bury(raw, str(error))
                    return Incoming(event, accepted=True) if wanted and event.role == "user" else None
            case BadEvent():
                self._run.state.add(messages_undecodable=1)
                self._log.bury(raw, str(event))
            case OtherEvent():
                self._run.state.add(messages_passed_over=1)
                self._log.keep(event.event)
            case ResponseEvent():
                self._run.state.add(messages_passed_over=1)
        return None

    def _adopt(self, event: ResponseEvent) -> None:
        assert event.answer is not None  # noqa: S101  take() asks for those that have one
        try:
            self._log.adopt(event.answer, event.created)
        except DamagedLog as error:
            self._log.bury(event.answer.events[0], str(error))

    def _tried(self, work: Callable[[], Incoming | None]) -> Taken:
        try:
            return Taken(work())
        except StorageUnavailable as error:
            return Taken(error=error)

    def _unless_answered(self, taken: Taken, conversations: set[str]) -> Taken:
        """Without the message whose answer came with it."""
        incoming = taken.incoming
        if incoming is None or incoming.message.conversation not in conversations:
            return taken
        return self._tried(lambda: incoming if self._waits(incoming.message) else None)

    def _waits(self, message: ChatMessage) -> bool:
        try:
            return message.id not in self._log.conversation(message.conversation).answers
        except DamagedLog:
            return True  # as in _put
