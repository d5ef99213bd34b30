"""What each run leaves behind: how it ended, and how its figures changed meanwhile.

``_runs/2026-11-21T14-15-60Z.json`` is the first run that ended in this minute; the next one has 61 for its seconds.
Such a name is like that of a schedule's summary, which every version leaves alone, and never that of one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime, timedelta
from itertools import islice
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

from llmdo.storage.errors import AlreadyExists, ObjectNotFound, StorageError
from llmdo.storage.objects.store import ObjectStore
from llmdo.storage.runs.runs import FOLDER

HISTORIES_KEPT = 500  # the newest; each has some 10 KB
MOST_POINTS = 240
MOST_CHANGES = 1_000  # of limits, over all models
_NAME = re.compile(r"\d{4}-\d\d-\d\dT\d\d-\d\d-[6-9]\dZ\.json")
_FIRST, _SLOTS, _MINUTES = 60, 40, 5
_READS = 16
# A foreign object that large is not read into memory. Bytes.
_LARGEST = 4 << 20

Figure = Annotated[float, Field(allow_inf_nan=False)]


class Moments(BaseModel):
    """Figures over time, thinned to at most MOST_POINTS; all lists have the same length.

    Attributes:
        at: seconds since the run began.
        lines, calls, tokens, cost_usd, throttled_s: so far; see Figures.
        in_flight, window, batched: at that moment.
    """

    model_config = ConfigDict(frozen=True)

    at: list[Figure] = []
    lines: list[int] = []
    calls: list[int] = []
    tokens: list[int] = []
    cost_usd: list[Figure | None] = []
    throttled_s: list[Figure] = []
    in_flight: list[int] = []
    window: list[int] = []
    batched: list[int] = []

    @model_validator(mode="after")
    def _are_even(self) -> Moments:
        lengths = {len(getattr(self, name)) for name in type(self).model_fields}
        if len(lengths) > 1 or max(lengths) > MOST_POINTS:
            raise ValueError("not as many values of each figure, or too many")
        return self


class LimitsChange(BaseModel):
    """A change of a model's limits, and why; see Change."""

    model_config = ConfigDict(frozen=True)

    at: AwareDatetime
    window: int
    requests_per_s: Figure | None = None
    pause_s: Figure = 0.0
    reason: str = ""


class LimitsThen(BaseModel):
    """What held a model's calls back; see ModelLimits."""

    model_config = ConfigDict(frozen=True)

    model: str
    calls: int = 0
    refused: int = 0
    window: int = 0
    throttled_s: Figure = 0.0
    away_s: Figure = 0.0
    changes: list[LimitsChange] = []


class RunHistory(BaseModel):
    """How one run went.

    Attributes:
        command: such as ``run`` or ``stream``.
        models: those that its options name.
        answered, failed, files_done, files_stale: by this run.
        spent: as in a summary: ``calls``, ``cost_usd``, ``cost_is_lower_bound`` …
    """

    model_config = ConfigDict(frozen=True)

    version: Literal[1] = 1
    run_id: str
    command: str = ""
    models: list[str] = []
    started: AwareDatetime
    ended: AwareDatetime
    answered: int = 0
    failed: int = 0
    files_done: int = 0
    files_stale: int = 0
    problem: str | None = None
    spent: dict[str, Any] = {}
    limits: list[LimitsThen] = []
    moments: Moments = Moments()


def is_history(name: str) -> bool:
    """Whether an object in the folder of runs is a history, not a schedule's summary or a heartbeat."""
    return _NAME.fullmatch(name) is not None


def leave_history(store: ObjectStore, prefix: str, history: RunHistory) -> str:
    """Writes how a run went, and removes what is older than the HISTORIES_KEPT newest. Returns its key.

    Raises StorageError.
    """
    body = history.model_dump_json().encode()
    names = islice(_names(prefix + FOLDER, history.ended), _MINUTES * _SLOTS)
    key = next((key for key in names if _is_put(store, key, body)), None)
    if key is None:
        raise StorageError(f"{store.url}/{prefix}{FOLDER}: too many runs have ended in these minutes")
    for old in _histories(store, prefix)[:-HISTORIES_KEPT]:
        store.delete(old)
    return key


def histories(store: ObjectStore, prefix: str, most: int) -> list[RunHistory]:
    """The newest histories, oldest first, without those that cannot be read. Raises StorageError."""
    with ThreadPoolExecutor(_READS, thread_name_prefix="llmdo-histories") as reads:
        found = reads.map(lambda key: _history(store, key), _histories(store, prefix)[-most:])
        return [one for one in found if one is not None]


def _names(folder: str, ended: datetime) -> Iterator[str]:
    while True:
        for slot in range(_FIRST, _FIRST + _SLOTS):
            yield f"{folder}{ended:%Y-%m-%dT%H-%M}-{slot}Z.json"
        ended += timedelta(minutes=1)


def _is_put(store: ObjectStore, key: str, body: bytes) -> bool:
    try:
        store.put_if_absent(key, body)
    except AlreadyExists:
        with suppress(ObjectNotFound):
            return store.read(key)[0] == body  # the reply to our own write was lost
        return False
    return True


def _histories(store: ObjectStore, prefix: str) -> list[str]:
    folder = prefix + FOLDER
    infos = (info for info in store.list(folder) if info.size <= _LARGEST)
    return [info.key for info in infos if is_history(info.key.removeprefix(folder))]


def _history(store: ObjectStore, key: str) -> RunHistory | None:
    try:
        return RunHistory.model_validate_json(store.read(key)[0])
    except (ObjectNotFound, ValidationError):
        return None
