"""Logs the events of chats, and returns the messages that need an answer. No Beam."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import repeat

from llmdo.storage.chat.log import ChatLog
from llmdo.storage.chat.records import ChatMessage, DamagedLog, LoggedAnswer
from llmdo.storage.errors import StorageUnavailable
from llmdo.transforms.chat.elements import WaitingMessage
from llmdo.transforms.chat.events import BadEvent, ChatEvent, OtherEvent, ResponseEvent, read_event
from llmdo.transforms.run import Run

# Each event is one object, and a round trip to R2 takes tens of milliseconds and hardly any CPU.
_AT_ONCE = 32
_TICK = 1e-6  # least distance between two events' times of arrival, which order them. Seconds
# All logs of a process share them: a run may have a hundred stores.
_writers = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="llmdo-events")


@dataclass(frozen=True, slots=True)
class LoggedEvent:
    """A taken event: ``incoming`` is the message to answer, ``error`` why it cannot be logged at the moment."""

    incoming: WaitingMessage | None = None
    error: StorageUnavailable | None = None


class EventIntake:
    """Puts events into a log; used by one thread.

    Args:
        since: messages sent earlier are logged, but not answered. It and ``clock`` are Unix time in seconds.
        from_store: the events are those of a store. A message counts as sent when it got there: its sender may have
            been offline, or have a wrong clock. A message that has a response there gets no other. And what is
            neither stays only there: an app has many such events.
    """

    def __init__(
        self,
        log: ChatLog,
        run: Run,
        since: float | None,
        clock: Callable[[], float] = time.time,
        *,
        from_store: bool = False,
    ) -> None:
        self._log = log
        self._run = run
        self._since = since
        self._clock = clock
        self._from_store = from_store
        self._arrived = 0.0

    def take(self, events: Iterable[object], arrived: Sequence[float | None] | None = None) -> list[LoggedEvent]:
        """Logs events (JSON as bytes or text, or objects); returns what became of each, in order.

        ``arrived``: when each arrived, in Unix time; now where it is not known.
        Messages come first, then responses, which may be about them. Raises StorageError for lasting faults.
        """
        times: Iterable[float | None] = repeat(None) if arrived is None else arrived
        parsed = [(event, self._parsed(event, at)) for event, at in zip(events, times)]  # noqa: B905  repeat() is endless
        taken = list(_writers.map(lambda pair: self._tried(lambda: self._put(*pair)), parsed))
        answers = [
            (at, event.answer, event.created)
            for at, (_, event) in enumerate(parsed)
            if isinstance(event, ResponseEvent) and event.answer is not None
        ]
        named = [one for one in answers if one[1].message_id]
        adopted = list(_writers.map(lambda one: self._tried(lambda: self._adopt(*one[1:])), named))
        for (at, _, _), result in zip(named, adopted, strict=True):
            taken[at] = result
        for at, answer, created in answers:  # in order: each answers the last message that has no answer so far
            if not answer.message_id:
                taken[at] = self._tried(partial(self._adopt, answer, created))
        answered = {answer.conversation for _, answer, _ in answers}
        return [self._unless_answered(one, answered) for one in taken] if answered else taken

    def _parsed(self, event: object, arrived: float | None) -> ChatEvent | BadEvent:
        if arrived is None:
            arrived = self._arrived = max(self._clock(), self._arrived + _TICK)
        try:
            return read_event(event, arrived)  # type: ignore[arg-type]  # other types raise BadEvent
        except BadEvent as error:
            return error

    def _put(self, raw: object, event: ChatEvent | BadEvent) -> WaitingMessage | None:
        match event:
            case ChatMessage():
                sent = max(event.created, event.arrived) if self._from_store else event.created
                wanted = self._since is None or sent >= self._since
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
                if not self._from_store:
                    self._log.keep(event.event)
            case ResponseEvent():
                self._run.state.add(messages_passed_over=1)
        return None

    def _adopt(self, answer: LoggedAnswer, created: float) -> None:
        try:
            self._log.adopt(answer, created, final=self._from_store)
        except DamagedLog as error:
            self._log.bury(answer.events[0], str(error))

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
