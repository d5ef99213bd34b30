"""An output's records of its schedule: who runs now, which tick was the last, and how each run ended.

``_runs/_schedule.json`` is changed by conditional writes only, so that at most one scheduled run works on an
output, on any machine. ``_runs/2026-11-21T14-15-00Z.json`` is the summary of the run for this tick, in UTC.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError
from pydantic_core import to_json

from llmdo.storage.errors import AlreadyExists, ObjectChanged, ObjectNotFound, StorageError
from llmdo.storage.objects.store import ObjectStore
from llmdo.storage.runs.histories import is_history
from llmdo.storage.runs.runs import CLAIM, FOLDER, SUMMARY, Owner, Presence

KEPT = 1000  # summaries; one list page of R2
_SKEW = timedelta(minutes=5)  # a tick further ahead was written by a clock that is wrong, and would stop all others

_log = logging.getLogger(__name__)


class ScheduleClaim(BaseModel):
    """Who runs now, and what was run.

    Attributes:
        schedule: the cron expression and the command; ``last`` of another schedule says nothing about these ticks.
        last: the newest tick whose run has ended; at first the time at which the schedule began.
        run_id: the heartbeat of who runs now; "" if nobody does.
        tick: the tick that it runs for.
    """

    model_config = ConfigDict(frozen=True)

    version: Literal[1] = 1
    schedule: str
    last: AwareDatetime
    run_id: Owner = ""
    tick: AwareDatetime | None = None


@dataclass(frozen=True, slots=True)
class ClaimHeld:
    """The claim is ours, as this version of the object."""

    claim: ScheduleClaim
    etag: str


@dataclass(frozen=True, slots=True)
class ClaimBusy:
    """Another live run works on the output."""

    claim: ScheduleClaim


@dataclass(frozen=True, slots=True)
class TickDone:
    """The tick's run has ended, or that of a later one: ``last``."""

    last: datetime


class Schedules:
    """The schedule of one output. Its methods raise StorageError."""

    def __init__(self, store: ObjectStore, prefix: str, schedule: str) -> None:
        self._store = store
        self._folder = prefix + FOLDER
        self._schedule = schedule

    def begin(self, now: datetime) -> datetime:
        """The newest tick whose run has ended; ``now`` where this schedule is new."""
        there, _ = self._read()
        if there is None:
            with suppress(AlreadyExists):
                self._store.put_if_absent(self._key, _json(ScheduleClaim(schedule=self._schedule, last=now)))
            return now
        return there.last if self._says(there, now) else now

    def take(
        self, presence: Presence, tick: datetime, last: datetime, now: datetime
    ) -> ClaimHeld | ClaimBusy | TickDone:
        """Tries to get the claim for a tick; ``last`` is what this process knows of."""
        while True:
            there, etag = self._read()
            ours = ScheduleClaim(schedule=self._schedule, last=last, run_id=presence.run_id, tick=tick)
            if there is not None:
                if there.run_id == presence.run_id:  # the reply to our own write was lost
                    return ClaimHeld(there, etag)
                if self._says(there, now):
                    if there.last >= tick:
                        return TickDone(there.last)
                    ours = ours.model_copy(update={"last": there.last})
                if there.run_id and presence.is_alive(there.run_id):
                    return ClaimBusy(there)
                if there.run_id:
                    _log.warning("%s died while it worked on the tick of %s: continuing", there.run_id, there.tick)
            try:
                body = _json(ours)
                put = self._store.put_if_match
                etag = self._store.put_if_absent(self._key, body) if there is None else put(self._key, body, etag)
            except (AlreadyExists, ObjectChanged):
                continue
            return ClaimHeld(ours, etag)

    def release(self, held: ClaimHeld, *, done: bool) -> None:
        """Lets others have the claim; ``done``: the tick needs no other run."""
        last = held.claim.tick if done and held.claim.tick else held.claim.last
        free = ScheduleClaim(schedule=held.claim.schedule, last=last)
        try:
            self._store.put_if_match(self._key, _json(free), held.etag)
        except ObjectChanged:
            there, _ = self._read()
            if there is not None and there != free:
                _log.warning("another run took over the schedule of %s meanwhile", self._store.url)

    def write(self, tick: datetime, summary: Mapping[str, Any]) -> None:
        """Writes how the run for a tick ended; the KEPT newest summaries stay."""
        self._store.put(self._summary(tick), to_json(summary, indent=1))
        listed = (info.key for info in self._store.list(self._folder))
        names = (key.removeprefix(self._folder) for key in listed)
        old = [name for name in names if SUMMARY.fullmatch(name) and not is_history(name)][:-KEPT]
        for name in old:
            self._store.delete(self._folder + name)

    def write_skipped(self, tick: datetime, summary: Mapping[str, Any]) -> None:
        """Writes why there was no run for a tick, unless there was one."""
        with suppress(AlreadyExists):
            self._store.put_if_absent(self._summary(tick), to_json(summary, indent=1))

    def _says(self, claim: ScheduleClaim, now: datetime) -> bool:
        """Whether a claim records what this schedule has done."""
        return claim.schedule == self._schedule and claim.last <= now + _SKEW

    @property
    def _key(self) -> str:
        return self._folder + CLAIM

    def _summary(self, tick: datetime) -> str:
        return f"{self._folder}{tick:%Y-%m-%dT%H-%M-%SZ}.json"

    def _read(self) -> tuple[ScheduleClaim | None, str]:
        try:
            body, etag = self._store.read(self._key)
        except ObjectNotFound:
            return None, ""
        try:
            return ScheduleClaim.model_validate_json(body), etag
        except ValidationError:
            raise StorageError(
                f"{self._store.url}/{self._key} is not a claim that this version can read: remove it"
            ) from None


def _json(claim: ScheduleClaim) -> bytes:
    return claim.model_dump_json().encode()
