"""What the processes of one run report to each other, where its steps are not in the process that started it.

Each reports in ``_runs/<run_id>/<member>.<slot>.report.json`` what it has done and whether it had to stop; the one that
began the run reads that, and stops all of them by ``_runs/<run_id>/stop.json``. Their heartbeats stand beside these.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llmdo.storage.errors import ObjectNotFound
from llmdo.storage.objects.store import ObjectStore
from llmdo.storage.runs.runs import FOLDER, REPORT, STOP

# Whatever is in the bucket may have been damaged: sums of these, and a date, can be made of any that pass.
Count = Annotated[int, Field(ge=0, lt=1 << 53)]
Amount = Annotated[float, Field(ge=0, lt=1 << 53)]
UnixTime = Annotated[float, Field(ge=0, lt=253_402_300_800)]  # before the year 10000


class StopReason(BaseModel):
    """Why a process stopped: the class of a model's error, what it says, and from when on calls can succeed again."""

    model_config = ConfigDict(frozen=True)

    error: str
    message: str
    until: UnixTime | None = None


class MemberReport(BaseModel):
    """What one process has done for its run so far; of its reports the one with the highest ``number`` counts.

    ``counts`` and ``spent`` are by name; ``settled`` are the newest files that it settled; ``left`` and ``others`` as
    in a run's summary; ``in_flight`` are its calls at this moment.
    """

    model_config = ConfigDict(frozen=True)

    version: Literal[1] = 1
    counts: dict[str, Count]
    spent: dict[str, Amount | None]
    in_flight: Count = 0
    number: Count = 0
    settled: tuple[dict[str, Any], ...] = ()
    left: dict[str, str] = {}
    others: dict[str, str] = {}
    backlog: Count | None = None
    stopped: StopReason | None = None


class _Stop(BaseModel):
    reason: str


@dataclass(frozen=True, slots=True)
class Members:
    """The notes of one run; every method raises StorageError."""

    store: ObjectStore
    prefix: str
    run_id: str

    def report(self, member: str, report: MemberReport, slot: int = 0) -> None:
        """Writes what a process has done so far. R2 takes one write a second to a key; each slot has its own."""
        self.store.put(f"{self._folder}{member}.{slot}{REPORT}", report.model_dump_json().encode())

    def reports(self) -> dict[str, MemberReport]:
        """The last report of each process, by member; also of those that are gone."""
        found: dict[str, MemberReport] = {}
        for member, report in self._each():
            if member not in found or report.number > found[member].number:
                found[member] = report
        return found

    def others_answered(self, member: str) -> bool:
        """Whether a process other than ``member`` has reported answers; stops reading at the first one."""
        return any(report.counts.get("answered") for name, report in self._each() if name != member)

    def _each(self) -> Iterator[tuple[str, MemberReport]]:
        """Each report that is there with its member; a member may have several."""
        for info in self.store.list(self._folder):
            if not info.key.endswith(REPORT):
                continue
            with suppress(ObjectNotFound, ValidationError):
                report = MemberReport.model_validate_json(self.store.read(info.key)[0])
                yield info.key.removeprefix(self._folder).partition(".")[0], report

    def stop(self, reason: str) -> None:
        """Orders all processes to stop."""
        self.store.put(self._stop_key, _Stop(reason=reason).model_dump_json().encode())

    def stopped(self) -> str | None:
        """Why all processes must stop, or None."""
        try:
            return _Stop.model_validate_json(self.store.read(self._stop_key)[0]).reason
        except ObjectNotFound:
            return None
        except ValidationError:  # whoever wrote it wanted an end
            return f"{self.store.url}/{self._stop_key} orders this run to end, without a reason"

    def forget(self) -> None:
        """Removes all reports and orders, and the heartbeats of processes that are gone."""
        for info in list(self.store.list(self._folder)):
            self.store.delete(info.key)

    @property
    def _folder(self) -> str:
        return f"{self.prefix}{FOLDER}{self.run_id}/"

    @property
    def _stop_key(self) -> str:
        return f"{self.prefix}{FOLDER}{self.run_id}{STOP}"
