"""Logs the events of chats, and returns the messages that need an answer. No Beam."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from llmdo.storage.chat.log import ChatLog
from llmdo.storage.chat.records import ChatMessage, DamagedLog
from llmdo.storage.errors import StorageUnavailable
from llmdo.transforms.chat.elements import WaitingMessage
from llmdo.transforms.chat.events import BadEvent, ChatEvent, OtherEvent, ResponseEvent, read_event
from llmdo.transforms.run import Run

# Each event is one object, and a round trip to R2 takes tens of milliseconds and hardly any CPU.
_AT_ONCE = 32
_TICK = 1e-6  # least distance between two events' times of arrival, which order them. Seconds


@dataclass(frozen=True, slots=True)
class LoggedEvent:
    """A taken event: ``incoming`` is the message to answer, ``error`` why it cannot be logged at the moment."""

    incoming: WaitingMessage | None = None
    error: StorageUnavailable | None = None


class EventIntake:
    """Puts events into a log; used by one thread.

    ``since``: messages sent earlier are logged, but not answered. It and ``clock`` are Unix time in seconds.
    """

    def __init__(self, log: ChatLog, run: Run, since: float | None, clock: Callable[[], float] = time.time) -> None:
        self._log = log
        self._run = run
        self._since = since
        self._clock = clock
        self._arrived = 0.0
        self._pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="llmdo-events")

    def take(self, events: Iterable[object]) -> list[LoggedEvent]:
        """Logs events (JSON as bytes or text, or objects); returns what became of each, in order.

        Messages come first, then responses, which may be about them. Raises StorageError for lasting faults.
        """
        parsed = [(event, self._parsed(event)) for event in events]
        taken = list(self._pool.map(lambda pair: self._tried(lambda: self._put(*pair)), parsed))
        answered: set[str] = set()
        for at, (_, event) in enumerate(parsed):
            if isinstance(event, ResponseEvent) and event.answer is not None:
                taken[at] = self._tried(partial(self._adopt, event))
                answered.add(event.answer.conversation)
        return [self._unless_answered(one, answered) for one in taken] if answered else taken

    def close(self) -> None:
        """Ends the threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _parsed(self, event: object) -> ChatEvent | BadEvent:
        self._arrived = max(self._clock(), self._arrived + _TICK)
        try:
            return read_event(event, self._arrived)  # type: ignore[arg-type]  # other types raise BadEvent
        except BadEvent as error:
            return error

    def _put(self, raw: object, event: ChatEvent | BadEvent) -> WaitingMessage | None:
        match event:
            case ChatMessage():
                wanted = self._since is None or event.created >= self._since
                try:
                    added = self._log.add(event, wanted)
                    return None if added == "done" else WaitingMessage(event, accepted=added == "open")
                except DamagedLog as error:  # logged before, damaged since: the next step reports it to the user
                    self._log.bury(raw, str(error))
                    return WaitingMessage(event, accepted=True) if wanted and event.role == "user" else None
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

    def _tried(self, work: Callable[[], WaitingMessage | None]) -> LoggedEvent:
        try:
            return LoggedEvent(work())
        except StorageUnavailable as error:
            return LoggedEvent(error=error)

    def _unless_answered(self, taken: LoggedEvent, conversations: set[str]) -> LoggedEvent:
        """Drops a message whose answer arrived with it."""
        incoming = taken.incoming
        if incoming is None or incoming.message.conversation not in conversations:
            return taken
        return self._tried(lambda: incoming if self._waits(incoming.message) else None)

    def _waits(self, message: ChatMessage) -> bool:
        try:
            return message.id not in self._log.conversation(message.conversation).answers
        except DamagedLog:
            return True  # as in _put()
