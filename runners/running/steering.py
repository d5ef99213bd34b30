"""Obeys what ``llmdo ctl`` orders a running run to do."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from llmdo.backends.engine.registry import limit_engines
from llmdo.pipelines.run_options import RunOptions
from llmdo.runners.running.stop import Stop
from llmdo.storage.errors import StorageError
from llmdo.storage.objects.opening import open_store
from llmdo.storage.objects.store import ObjectStore
from llmdo.storage.runs.control import LOOK_SECONDS, Control, forget_control, read_control, write_control
from llmdo.storage.runs.runs import Presence
from llmdo.transforms.run_state import RunState

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Steering:
    """The orders to a command's runs. A pipeline that is restarted keeps to those of the one before.

    Attributes:
        control: what holds.
        refused: why a part of it does not, or "".
    """

    options: RunOptions
    stop: Stop
    control: Control = field(default_factory=Control)
    refused: str = ""

    def told(self) -> dict[str, object]:
        """For the heartbeat: which order is obeyed."""
        return {"obeys": self.control.number, "refuses": self.refused, "paused": self.control.paused}

    def begin(self, run_id: str) -> None:
        """Before a run can be seen: gives it the orders to the pipeline before, so that later ones add to these."""
        if self.control.number:
            where = self.options.output_location
            write_control(open_store(where.store_url), where.key, run_id, self.control)

    @contextmanager
    def of(self, state: RunState, presence: Presence) -> Iterator[None]:
        """Looks for orders to a run until the context ends."""
        where = self.options.output_location
        store, over = open_store(where.store_url), threading.Event()
        given = (store, where.key, state, presence, over)
        thread = threading.Thread(target=self._look_on, args=given, name="llmdo-control", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            with suppress(StorageError):  # the folder is swept after a day
                if self.control.number:
                    forget_control(store, where.key, state.run_id)

    def _look_on(
        self, store: ObjectStore, prefix: str, state: RunState, presence: Presence, over: threading.Event
    ) -> None:
        seen = self.control.number
        while not over.wait(LOOK_SECONDS):
            try:
                found = read_control(store, prefix, state.run_id)
            except StorageError as error:
                _log.debug("%s", error)
                continue
            if found is not None and found.number > seen:
                seen, self.control = found.number, found
                self.refused = self._obey_once(state)
                _log.warning("llmdo ctl: %s", described(found) + (f"; {self.refused}" if self.refused else ""))
                presence.beat_now()
            self._obey(state)

    def _obey(self, state: RunState) -> None:
        """Again and again: an engine is opened with its first call."""
        if not self.control.number or state.stopping:
            return
        state.window = self.control.window
        if self.options.processes == 1:
            limit_engines(self.control.window, state.run_id)

    def _obey_once(self, state: RunState) -> str:
        control = self.control
        if control.drain:
            self.stop.ask("llmdo ctl")
        if control.max_cost is None:
            return ""
        if self.options.processes > 1 or self.options.apart or state.budget is None:
            return "max-cost is not changed: the run has several processes; drain it, and start it with another one"
        state.budget.limit_cost(control.max_cost)
        return ""


def described(control: Control) -> str:
    """An order in words."""
    parts = [
        "drain" if control.drain else "paused" if control.paused else "running",
        *([f"{control.concurrency:,} calls in flight at most"] if control.concurrency else []),
        *([f"${control.max_cost:,.2f} at most"] if control.max_cost else []),
    ]
    return ", ".join(parts)
