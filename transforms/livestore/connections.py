"""A run's stores in this process: their connections, who answers what in them, and how far each was read."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llmdo.settings.environment import livestore_payload
from llmdo.storage.errors import StorageError
from llmdo.storage.livestore import progress
from llmdo.storage.livestore.frames import Cursor, StoredEvent
from llmdo.storage.livestore.places import StorePlace
from llmdo.storage.livestore.progress import StoreProgress
from llmdo.storage.livestore.stores import LiveStores, TakenEvent
from llmdo.storage.objects.opening import open_store
from llmdo.storage.objects.store import Location
from llmdo.transforms.files.poll_files import SWEEP_SECONDS
from llmdo.transforms.livestore.claims import CLAIM_S, Claims
from llmdo.transforms.run import Run
from llmdo.transforms.run_state import RunState

# Events of the last minutes are read again at the next start: a claim that still holds may be among them, or an answer
# whose message is still marked as open, since the log was away. A sweep would mend that. Seconds.
READ_AGAIN_S = max(CLAIM_S, 2 * SWEEP_SECONDS) + 60.0
# R2 takes one write a second to a key, and other instances may write it, too. Seconds.
_WRITE_SECONDS = 5.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """How stores are read; picklable, without secrets.

    Attributes:
        url: of the sync backend.
        logs: where the log of chats of each store is, by the store's id.
        started: whether answers are claimed and announced.
        since: messages created earlier are not answered; Unix time in seconds. None: those before the first start.
    """

    url: str
    logs: Mapping[str, Location]
    started: bool = True
    since: float | None = None


class Reader:
    """How far one store was read and logged. Used by one thread."""

    def __init__(self, where: Location, found: StoreProgress, claims: Claims) -> None:
        self._store, self._prefix = open_store(where.store_url, private=True), where.key
        self._found, self._claims = found, claims
        # When the last event was stored of each second in which there were some, and the place behind it.
        self._recent: deque[tuple[float, Cursor]] = deque()
        self._life, self._unwritten, self._written_at = 0, False, float("-inf")

    def logged(self, events: Sequence[TakenEvent]) -> None:
        """Everything up to the last of these is in the log of chats."""
        for taken in events:
            if taken.life != self._life:
                self._life = taken.life
                self._recent.clear()
                self._read_to("", 0)
            at = taken.event.stored
            if self._recent and int(self._recent[-1][0]) >= int(at):
                at = max(at, self._recent.pop()[0])
            self._recent.append((at, taken.cursor))

    def keep(self) -> None:
        """Writes the cursor now and then."""
        while self._recent and self._claims.age(self._recent[0][0]) > READ_AGAIN_S:
            _, cursor = self._recent.popleft()
            self._read_to(cursor.backend, cursor.number)
        now = time.monotonic()
        if not self._unwritten or now - self._written_at < _WRITE_SECONDS:
            return
        self._written_at = now
        try:
            progress.write_progress(self._store, self._prefix, self._found)
            self._unwritten = False
        except StorageError as error:  # an older cursor does no harm
            _log.debug("%s", error)

    def _read_to(self, backend: str, number: int) -> None:
        self._found = self._found.model_copy(update={"backend": backend, "number": number})
        self._unwritten = True


class StoreLinks:
    """The stores of a run in this process. Raises StorageError and MissingSettings.

    Attributes:
        stores: their connections.
        readers: how far each was read, by store.
        claims: who answers what in each.
        clients: the name by which this run pushes to each.
        log_ids: what identifies the log of chats of each.
        since: messages of each created earlier are not answered; Unix time in seconds.
    """

    def __init__(self, settings: StoreSettings, run: Run) -> None:
        payload, now = livestore_payload(), time.time()
        self.claims: dict[str, Claims] = {}
        self.readers: dict[str, Reader] = {}
        self.clients: dict[str, str] = {}
        self.log_ids: dict[str, str] = {}
        self.since: dict[str, float] = {}
        cursors, places = {}, []
        for store, where in settings.logs.items():
            found, new = progress.begin_progress(
                open_store(where.store_url, private=True), where.key, settings.since, now
            )
            if new and settings.since is None:
                _log.warning(
                    "store %s is read for the first time: messages sent before now are logged, not answered (--since)",
                    store,
                )
            self.claims[store] = Claims()
            self.readers[store] = Reader(where, found, self.claims[store])
            self.since[store], self.log_ids[store] = found.since, found.log
            self.clients[store] = client_name(found.log, run.run_id)
            if found.cursor is not None:
                cursors[store] = found.cursor
            places.append(StorePlace(settings.url, store, payload))
        self.stores = LiveStores(places, self.clients, cursors, self._hear, self._forget)

    def _hear(self, store: str, event: StoredEvent) -> StoredEvent:
        return self.claims[store].hear(event)

    def _forget(self, store: str) -> None:
        self.claims[store].forget()


def client_name(log: str, run_id: str) -> str:
    """By which name a run pushes: other instances with the same log of chats know whether it lives."""
    return f"llmdo-{log}-{run_id}"


def run_of_client(client: str, log: str) -> str:
    """The run that pushed under a name, if it has the same log of chats; else ""."""
    before = client_name(log, "")
    return client.removeprefix(before) if client.startswith(before) else ""


def links_of(settings: StoreSettings, run: Run) -> StoreLinks:
    """The run's stores in this process, which all its steps share."""
    return run.state.shared(StoreLinks, lambda: StoreLinks(settings, run))


def close_links(state: RunState) -> None:
    """Ends a run's connections in this process."""
    for links in state.take(StoreLinks).values():
        links.stores.close()
