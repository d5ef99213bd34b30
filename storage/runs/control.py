"""What people order a running run to do: one object for each run, ``_runs/<run_id>/control.json``."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llmdo.storage.errors import ObjectNotFound, StorageError
from llmdo.storage.objects.store import ObjectStore
from llmdo.storage.runs.runs import CONTROL, FOLDER

# How often a run looks for orders. Seconds.
LOOK_SECONDS = 5.0


class Control(BaseModel):
    """How a run is to behave, as ordered so far.

    Attributes:
        number: greater with each order.
        paused: whether no call is started.
        concurrency: calls in flight at most; None: as the run was started.
        max_cost: US dollars that the run may spend in all; None: as it was started.
        drain: whether it ends: calls in flight are answered, and what is there is written.
    """

    model_config = ConfigDict(frozen=True)

    version: Literal[1] = 1
    number: int = Field(default=0, ge=0)
    paused: bool = False
    concurrency: int | None = Field(default=None, ge=1, le=4096)
    max_cost: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    drain: bool = False

    @property
    def window(self) -> int | None:
        """Calls in flight at most, 0 while it is paused; None: as the run was started."""
        return 0 if self.paused else self.concurrency


def read_control(store: ObjectStore, prefix: str, run_id: str) -> Control | None:
    """What was ordered, or None. Raises StorageError, also for an order that cannot be read."""
    key = _key(prefix, run_id)
    try:
        return Control.model_validate_json(store.read(key)[0])
    except ObjectNotFound:
        return None
    except ValidationError:
        raise StorageError(f"{store.url}/{key} is not an order: remove it") from None


def write_control(store: ObjectStore, prefix: str, run_id: str, control: Control) -> None:
    """Orders a run to behave so. Raises StorageError."""
    store.put(_key(prefix, run_id), control.model_dump_json().encode())


def forget_control(store: ObjectStore, prefix: str, run_id: str) -> None:
    """Removes the orders to a run that has ended. Raises StorageError."""
    store.delete(_key(prefix, run_id))


def _key(prefix: str, run_id: str) -> str:
    return f"{prefix}{FOLDER}{run_id}{CONTROL}"
