"""Heartbeats: one object for each run, ``_runs/<run_id>.json``, which shows whether a run is alive."""

from __future__ import annotations

import logging
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llmdo.settings.clock import elapsed as _now
from llmdo.storage.errors import ObjectNotFound, StorageError
from llmdo.storage.objects.store import ObjectInfo, ObjectStore

FOLDER = "_runs/"
BEAT_SECONDS = 60.0  # R2 takes one write a second to a key; nothing else of a run is renewed
DEAD_SECONDS = 180.0  # by the store's own clock, so that no machine's clock matters
ASLEEP_SECONDS = 90.0  # without a heartbeat for this long, a run makes no new call: others may take over soon
BEAT_AGAIN_SECONDS = 5.0  # after a failed beat; after BEAT_SECONDS the run would be asleep
_ASK_AGAIN_SECONDS = 10.0  # for how long the last answer about another run holds
_FORGOTTEN = timedelta(days=1)  # a heartbeat this much older than the newest belongs to a run killed long ago

# What else is in the folder: a schedule's claim, the summaries of its runs, named by ticks (see schedules), and the
# histories of runs, with such names (see histories).
CLAIM = "_schedule.json"
# See members.
REPORT, STOP = ".report.json", "/stop.json"
# See control.
CONTROL = "/control.json"
SUMMARY = re.compile(r"\d{4}-\d\d-\d\dT\d\d-\d\d-\d\dZ\.json")

# An ``owner_of``, or "". Anybody may have written it, and it becomes part of a key: ASCII, since names have 255 bytes.
Owner = Annotated[str, Field(max_length=200, pattern=r"^([A-Za-z0-9_-][A-Za-z0-9_.@-]*)?$")]

_log = logging.getLogger(__name__)


class Heartbeat(BaseModel):
    """The content of a heartbeat.

    Attributes:
        host: the run's machine since its boot.
        process_start: distinguishes its process from a later one with the same ``pid``; "" if the system has no /proc.
        configuration: fingerprint of the run's configuration; "" in heartbeats of earlier versions.
        command: what it is, such as ``run`` or ``stream``; "" in those of processes that work for another one.
        queue: the id of the queue that it reads, or "".
        started_at: Unix time in seconds.
        figures: what it has done and does at this moment, for people.
        ready_by: until when its answers are wanted, in Unix time; 0 for whenever.
        rescues: by the nonces of batches that are out, when each will be cancelled, and its requests called, if it is
            not back before; in Unix time.
        obeys, refuses: the number of the last order that it obeys (see control), and why not all of it.
    """

    model_config = ConfigDict(frozen=True)

    version: Literal[1] = 1
    run_id: Owner
    host: str
    # The system's own type for it has 32 bits; 0 and below are process groups.
    pid: int = Field(gt=0, lt=1 << 31)
    process_start: str
    configuration: str = ""
    command: str = ""
    queue: str = ""
    started_at: float = Field(default=0.0, ge=0)
    figures: dict[str, Any] = {}
    ready_by: float = Field(default=0.0, ge=0)
    rescues: dict[str, tuple[float, float]] = {}
    obeys: int = 0
    refuses: str = ""
    paused: bool = False


def owner_of(run_id: str, attempt: str) -> str:
    """Who a job record says works on its file: a run, or one of its attempts, where a runner starts them by itself."""
    return f"{run_id}@{attempt}" if attempt else run_id


def run_of(owner: str) -> str:
    """The run of an ``owner_of``."""
    return owner.partition("@")[0]


def attempt_of(owner: str) -> str:
    """Its attempt, or ""."""
    return owner.partition("@")[2]


def heartbeats(store: ObjectStore, prefix: str) -> Iterator[Heartbeat]:
    """The heartbeats in one output, also those of dead runs (see ``Presence.is_alive``). Raises StorageError."""
    for info in _of_runs(store, prefix):
        beat = _read(store, info.key) if is_beat(info.key) else None
        if beat is not None:
            yield beat


@dataclass(frozen=True, slots=True)
class SeenRun:
    """A run as others see it, without a heartbeat of their own: its last heartbeat, and how long ago that was, in s."""

    beat: Heartbeat
    age_s: float

    @property
    def alive(self) -> bool:
        """Whether it may still work on its files."""
        here = self.beat.host == _host()
        return self.age_s < DEAD_SECONDS and (not here or _is_running(self.beat.pid, self.beat.process_start))


def seen_runs(store: ObjectStore, prefix: str) -> Iterator[SeenRun]:
    """The runs of an output by this machine's clock, also dead ones, without the processes that work for them.

    Raises StorageError.
    """
    for info in _of_runs(store, prefix):
        if "/" in info.key.removeprefix(prefix + FOLDER) or not is_beat(info.key):
            continue
        beat = _read(store, info.key)
        if beat is not None:
            yield SeenRun(beat, max(0.0, time.time() - info.modified.timestamp()))


def sweep(store: ObjectStore, prefix: str) -> None:
    """Removes the heartbeats of runs that were killed over a day ago; a run that lives must have one there.

    Its heartbeat gives the time, so that no machine's clock matters. Raises StorageError.
    """
    beats = list(_of_runs(store, prefix))
    now = max((info.modified for info in beats), default=None)
    for info in beats:
        if now is not None and now - info.modified > _FORGOTTEN:
            store.delete(info.key)


class Presence:
    """This run's heartbeat in one output, and what it knows about other runs. Thread-safe; ``stop`` it at the end.

    Without a heartbeat for ASLEEP_SECONDS, since its process was frozen or the store unreachable, the run is over for
    good (``asleep``) and beats no more: another run may work on its files by now.

    Args:
        configuration: the run's fingerprint; no other one is written into the output while the run is alive.
        member: names one of several processes of the run; each has its own heartbeat, and the run is alive as long as
            one of them is.
        tells: gives those fields of each heartbeat that are for people.
    """

    def __init__(
        self,
        store: ObjectStore,
        prefix: str,
        run_id: str,
        configuration: str = "",
        *,
        member: str = "",
        tells: Callable[[], Mapping[str, Any]] = dict,
    ) -> None:
        self._store = store
        self._prefix = prefix
        self.run_id = run_id
        self._own_key = self._folder(run_id) + member + ".json" if member else self._key(run_id)
        self._configuration, self._tells = configuration, tells
        self._last = _now()
        self._asleep = False
        self._over = threading.Event()
        self._known: dict[str, tuple[float, bool]] = {}
        self._store_time = self._beat()
        self._thread = threading.Thread(target=self._live, name="llmdo-heartbeat", daemon=True)
        self._thread.start()

    @property
    def asleep(self) -> bool:
        """Whether this run must make no new call and open no file any more."""
        if is_asleep(self._last):
            self._asleep = True
        return self._asleep

    @property
    def beat_at(self) -> float:
        """When the last heartbeat was sent, for ``is_asleep`` in another process of this machine."""
        return float("-inf") if self.asleep else self._last

    def store_time(self) -> float:
        """The store's clock, to within a second or two: seconds since 1970."""
        ours, theirs = self._store_time
        return theirs.timestamp() + _now() - ours

    def is_alive(self, owner: str) -> bool:
        """Whether a run (an ``owner_of``) may still work on its files. Raises StorageError."""
        run_id = run_of(owner)
        if run_id == self.run_id:
            return True
        asked, alive = self._known.get(run_id, (float("-inf"), False))
        if _now() - asked > _ASK_AGAIN_SECONDS:
            alive = self._ask(run_id)
            self._known[run_id] = (_now(), alive)
        return alive

    def beat_now(self) -> None:
        """Sends a heartbeat besides those that are due; one that fails is made up for by the next."""
        with suppress(StorageError):
            self._store_time = self._beat()

    def stop(self) -> None:
        """Ends and removes the heartbeat: others may take over at once what this run left open."""
        self._over.set()
        self._thread.join()
        try:
            self._store.delete(self._own_key)
        except StorageError as error:
            _log.warning("the heartbeat stays until it is %g s old: %s", DEAD_SECONDS, error)

    def _live(self) -> None:
        try:
            sweep(self._store, self._prefix)
        except StorageError as error:
            _log.debug("old heartbeats stay: %s", error)  # the next run tries again
        wait_s = BEAT_SECONDS
        while not self._over.wait(wait_s):
            if self.asleep:
                return
            try:
                self._store_time = self._beat()
                wait_s = BEAT_SECONDS
            except StorageError as error:
                _log.warning("no heartbeat: %s", error)
                wait_s = BEAT_AGAIN_SECONDS

    def _beat(self) -> tuple[float, datetime]:
        """Writes the heartbeat; returns our time and the store's at that moment."""
        begun = _now()
        beat = Heartbeat(
            run_id=self.run_id,
            host=_host(),
            pid=os.getpid(),
            process_start=_start(os.getpid()),
            configuration=self._configuration,
            **self._tells(),
        )
        self._store.put(self._own_key, beat.model_dump_json().encode())
        self._last = begun
        return begun, self._store.stat(self._own_key).modified

    def _ask(self, run_id: str) -> bool:
        if self._is_fresh(self._key(run_id)):
            return True
        members = (info.key for info in self._store.list(self._folder(run_id)) if is_beat(info.key))
        return any(map(self._is_fresh, members))

    def _is_fresh(self, key: str) -> bool:
        try:
            info = self._store.stat(key)
        except ObjectNotFound:
            return False
        beat = _read(self._store, key)
        if beat is None:
            return False
        if beat.host == _host() and not _is_running(beat.pid, beat.process_start):
            return False
        ours, theirs = self._store_time
        age = (theirs - info.modified).total_seconds() + (_now() - ours)
        return age < DEAD_SECONDS

    def _folder(self, run_id: str) -> str:
        return f"{self._prefix}{FOLDER}{run_id}/"

    def _key(self, run_id: str) -> str:
        return f"{self._prefix}{FOLDER}{run_id}.json"


def _of_runs(store: ObjectStore, prefix: str) -> Iterator[ObjectInfo]:
    for info in store.list(prefix + FOLDER):
        name = info.key.removeprefix(prefix + FOLDER)
        if name != CLAIM and not SUMMARY.fullmatch(name):
            yield info


def is_beat(name: str) -> bool:
    """Whether an object is a heartbeat, not a report or an order."""
    return not name.endswith((REPORT, STOP, CONTROL))


def _read(store: ObjectStore, key: str) -> Heartbeat | None:
    """A heartbeat; None for one that is gone, or cannot be read."""
    try:
        return Heartbeat.model_validate_json(store.read(key)[0])
    except (ObjectNotFound, ValidationError):
        return None


def is_asleep(beat_at: float) -> bool:
    """Whether a run whose last heartbeat was at this time must make no new call any more."""
    return _now() - beat_at > ASLEEP_SECONDS


def _host() -> str:
    """This machine since its boot, and the namespace that its pids are of: machines and containers share names."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{socket.gethostname()}/{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return socket.gethostname()


def _start(pid: int) -> str:
    """When a process was started, in the kernel's ticks since boot; "" where there is no /proc."""
    return (*_stat(pid), *[""] * 20)[19]


def _stat(pid: int) -> list[str]:
    """What the kernel says of a process behind its name in brackets, which may hold anything: proc(5)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    except OSError:
        return []


def _is_running(pid: int, process_start: str) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # somebody else's process has this pid
    if _stat(pid)[:1] == ["Z"] and len(list(Path(f"/proc/{pid}/task").glob("*"))) < 2:
        return False  # it has ended, and nobody has asked for its exit code yet
    return not process_start or _start(pid) == process_start
