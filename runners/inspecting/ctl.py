"""``llmdo ctl``: orders to runs that are alive, wherever they run, and whether they obey."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from llmdo.pipelines.usage import UsageError
from llmdo.storage.errors import InvalidLocation
from llmdo.storage.objects.opening import open_store
from llmdo.storage.objects.store import ObjectStore, locate_folder
from llmdo.storage.runs.control import LOOK_SECONDS, Control, read_control, write_control
from llmdo.storage.runs.runs import SeenRun, seen_runs

# A run looks for orders every LOOK_SECONDS, and says at once that it obeys. Seconds.
ANSWERS_WITHIN_S = 4 * LOOK_SECONDS
_ASK_S = 0.5


@dataclass(frozen=True, slots=True)
class OrderReply:
    """What a run says to an order: ``obeys`` is None if it has said nothing so far; True if it has ended."""

    run_id: str
    obeys: bool | None
    said: str

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {"run_id": self.run_id, "obeys": self.obeys, "said": self.said}


def order(output_url: str, changed: Callable[[Control], Control], run_id: str | None = None) -> list[OrderReply]:
    """Orders the runs of an output that are alive, or one of them, and waits until they obey.

    Raises UsageError if there is none, MissingSettings and StorageError.
    """
    try:
        where = locate_folder(output_url)
    except InvalidLocation as error:
        raise UsageError([str(error)]) from None
    store = open_store(where.store_url)
    alive = [run for run in seen_runs(store, where.key) if run.alive and run_id in (None, run.beat.run_id)]
    if not alive:
        which = f"run {run_id}" if run_id else "no run"
        raise UsageError([f"{which} of {output_url} is {'not ' if run_id else ''}alive: llmdo status shows what is"])
    numbers: dict[str, int] = {}
    for run in alive:
        name = run.beat.run_id
        before = read_control(store, where.key, name) or Control()
        after = changed(before).model_copy(update={"number": before.number + 1})
        write_control(store, where.key, name, after)
        numbers[name] = after.number
    return _answers(store, where.key, numbers)


def _answers(store: ObjectStore, prefix: str, numbers: dict[str, int]) -> list[OrderReply]:
    found = {name: OrderReply(name, None, f"has not answered within {ANSWERS_WITHIN_S:g} s") for name in numbers}
    end = time.monotonic() + ANSWERS_WITHIN_S
    while time.monotonic() < end and any(one.obeys is None for one in found.values()):
        there = {run.beat.run_id: run for run in seen_runs(store, prefix)}
        for name, number in numbers.items():
            found[name] = _answer(found[name], there.get(name), number)
        time.sleep(_ASK_S)
    return list(found.values())


def _answer(before: OrderReply, run: SeenRun | None, number: int) -> OrderReply:
    if run is None:
        return replace(before, obeys=True, said="has ended") if before.obeys is None else before
    if run.beat.obeys < number:
        return before
    return replace(before, obeys=not run.beat.refuses, said=run.beat.refuses or "obeys")
