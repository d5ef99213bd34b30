"""Logs the events of stores as they come, and emits the messages to answer."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby

import apache_beam as beam
from apache_beam.pvalue import PCollection

from llmdo.storage.chat.log import ChatLog, open_log
from llmdo.storage.errors import StorageUnavailable
from llmdo.storage.livestore.stores import TakenEvent
from llmdo.storage.objects.store import Location
from llmdo.transforms.chat.conversations import InWork, messages_in_work
from llmdo.transforms.chat.elements import WaitingMessage
from llmdo.transforms.chat.intake import EventIntake
from llmdo.transforms.chat.read_events import accepted
from llmdo.transforms.files.poll_files import LISTEN_SECONDS, LookAgain, Sweep
from llmdo.transforms.livestore.connections import StoreSettings, links_of
from llmdo.transforms.outages import Outage
from llmdo.transforms.run import Run

_MOST = 500  # events that are logged at a time
_SWEPT_AT_ONCE = 4  # stores whose log is looked through between two polls
# From this number of messages in work on, others wait in the log of chats. Were the next step full, it would wait for
# answers, and no answer can be pushed before its store is read to the end. Less than half of converse.MOST_OPEN.
_MOST_IN_WORK = 4_000

_log = logging.getLogger(__name__)


@dataclass(eq=False)  # not frozen: Beam writes hints and labels into its transforms
class PollStores(beam.PTransform):
    """Logs the events of stores, and emits the messages of users, until the run stops.

    Order of writes: log of chats, then cursor; what the cursor does not cover is read again, and recognised. At the
    start and every few minutes, messages that other runs left open are emitted too.
    """

    settings: StoreSettings
    run: Run

    def expand(self, root: beam.Pipeline) -> PCollection[WaitingMessage]:
        """Nothing → WaitingMessage, without end."""
        begin = partial(_StoredEvents, self.settings, self.run)
        return (
            root
            | "Start" >> beam.Impulse()
            | "Listen" >> beam.ParDo(LookAgain(self.run, begin)).with_output_types(WaitingMessage)
        )


class _OneStore:
    """The log of chats of one store. ``client``: by whose name this run pushes to it."""

    def __init__(self, store: str, where: Location, since: float, client: str, run: Run) -> None:
        self._store, self._client, self._run = store, client, run
        self._log: ChatLog = open_log(where)
        self.intake = EventIntake(self._log, run, since, from_store=True)
        self._sweep = self._new_sweep()
        self._deferred = False  # messages were logged, and not emitted

    def take(
        self, events: Sequence[TakenEvent], *, full: bool = False
    ) -> tuple[list[WaitingMessage], list[TakenEvent], StorageUnavailable | None]:
        """Logs events; returns the messages to answer, the events that cannot be logged at the moment, and why.

        ``full``: messages are left to a later sweep.
        """
        # What this run pushed comes back, and is in the log of chats already.
        events = [one for one in events if one.event.client != self._client]
        taken = self.intake.take([one.event.envelope for one in events], [one.event.stored for one in events])
        found = list(self._of_store(one.incoming for one in taken if one.incoming is not None))
        held = [event for event, one in zip(events, taken, strict=True) if one.error is not None]
        if full and found:
            self._deferred, found = True, []
        return found, held, next((one.error for one in taken if one.error is not None), None)

    def swept(self) -> tuple[list[WaitingMessage], bool]:
        """Some of the messages that were left open, and whether there may be more."""
        messages, more = self._sweep.portion()
        if not more and self._deferred:
            self._deferred, self._sweep = False, self._new_sweep()
            return messages, True
        return messages, more

    def _new_sweep(self) -> Sweep[WaitingMessage]:
        known = InWork(self._run.state, self._store)
        return Sweep(self._run, lambda: self._of_store(accepted(self._log.open_messages(known=known))))

    def _of_store(self, messages: Iterable[WaitingMessage]) -> Iterator[WaitingMessage]:
        return (replace(message, store=self._store) for message in messages)


class _StoredEvents:
    """A Looking for the messages of stores, and for those that were left open."""

    def __init__(self, settings: StoreSettings, run: Run) -> None:
        self._links = links = links_of(settings, run)
        self._state = run.state
        self._stores = {
            store: _OneStore(store, where, links.since[store], links.clients[store], run)
            for store, where in settings.logs.items()
        }
        self._to_sweep = deque(self._stores.values())
        self._unswept = len(self._stores)  # whose log was not looked through yet
        self._backend_outage = Outage(run.state, "LiveStore's backend")
        self._log_outage = Outage(run.state, "the log")
        self._held: list[TakenEvent] = []  # those that could not be logged so far

    def look(self) -> tuple[Sequence[WaitingMessage], float]:
        full = messages_in_work(self._state) >= _MOST_IN_WORK
        found, more = ([], False) if full else self._swept()
        end = time.monotonic() + (0.0 if more else LISTEN_SECONDS)
        while True:
            wait = 0.0 if found else max(0.0, end - time.monotonic())
            # No more are taken while some are held: a store's cursor must not pass what is not logged.
            events = self._held or self._links.stores.take(_MOST, wait)
            messages, error = self._logged(events, full=full)
            found += messages
            # What this run has pushed comes back: that is no reason to bother the runner.
            if found or error or time.monotonic() >= end or self._state.stopping:
                break
        for reader in self._links.readers.values():
            reader.keep()
        if error is not None:
            return found, self._log_outage.wait_after(error)
        self._log_outage.over()
        self._watch_backend()
        return found, 0.0

    def _logged(
        self, events: Sequence[TakenEvent], *, full: bool
    ) -> tuple[list[WaitingMessage], StorageUnavailable | None]:
        """Logs events; returns the messages to answer, and why some are held."""
        found: list[WaitingMessage] = []
        error: StorageUnavailable | None = None
        self._held = []
        for store, some in groupby(sorted(events, key=lambda one: one.store), key=lambda one: one.store):
            ours = list(some)
            messages, held, problem = self._stores[store].take(ours, full=full)
            found += messages
            self._held += held
            error = error or problem
            if not held:
                self._links.readers[store].logged(ours)
        return found, error

    def close(self) -> None:
        """The connections are closed with the run."""

    def _swept(self) -> tuple[list[WaitingMessage], bool]:
        found: list[WaitingMessage] = []
        more = False
        for _ in range(min(_SWEPT_AT_ONCE, len(self._to_sweep))):
            messages, rest = self._to_sweep[0].swept()
            found += messages
            more = more or rest
            self._to_sweep.rotate(-1)
            self._unswept = max(0, self._unswept - 1)
        return found, more or self._unswept > 0

    def _watch_backend(self) -> None:
        """The connections try again by themselves: here it is only told."""
        problem = self._links.stores.problem
        if problem is None:
            self._backend_outage.over()
        else:
            self._backend_outage.wait_after(problem)
