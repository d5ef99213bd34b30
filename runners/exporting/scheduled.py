"""What a schedule has done, as figures: its runs are processes of their own, and report by their summaries."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from llmdo.runners.exit_codes import EXIT_ANSWERED, EXIT_SOME_ERRORS
from llmdo.runners.exporting.totals import FIGURES, Exported

_OF_RUNS = ("lines", "files", "calls", "tokens", "cost_usd")
SCHEDULED = (
    *(one for one in FIGURES if one.name in _OF_RUNS),
    Exported("schedule_runs", "Runs that have ended, by exit code.", "exit_code"),
    Exported("schedule_running", "Whether a run is under way: 1, or 0.", counter=False),
    Exported("schedule_next_tick_timestamp_seconds", "When the next run is due, in Unix time.", counter=False),
    Exported("schedule_last_exit_code", "The exit code of the last run.", counter=False),
    Exported("schedule_last_run_seconds", "How long the last run took.", counter=False),
    Exported(
        "schedule_last_success_age_seconds",
        "Seconds since a run ended that answered all it found (exit codes 0 and 3); since the start before the first.",
        counter=False,
    ),
)


@dataclass
class ScheduleFigures:
    """What this process's schedule has done since it was started. Thread-safe."""

    clock: Callable[[], float] = time.time
    _counted: Counter[tuple[str, str]] = field(default_factory=Counter)
    _now: dict[tuple[str, str], float] = field(default_factory=dict)
    _success: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._success = self.clock()

    alive = True  # it answers

    @property
    def ready(self) -> bool:
        """Whether the schedule has begun: it waits for a tick, or runs."""
        return bool(self._now)

    def waits(self, tick: datetime) -> None:
        """The next run is due then."""
        with self._lock:
            self._now["schedule_running", ""] = 0.0
            self._now["schedule_next_tick_timestamp_seconds", ""] = tick.timestamp()

    def started(self) -> None:
        """A run was started."""
        with self._lock:
            self._now["schedule_running", ""] = 1.0

    def ended(self, said: dict[str, Any]) -> None:
        """A run has ended with this summary, as the output has it; of one that was killed there are the times alone."""
        code, spent = said["exit_code"], said.get("spent") or {}
        began, end = (datetime.fromisoformat(said[name]) for name in ("started", "ended"))
        with self._lock:
            self._counted["schedule_runs", str(code)] += 1
            self._now["schedule_running", ""] = 0.0
            self._now["schedule_last_exit_code", ""] = float(code)
            self._now["schedule_last_run_seconds", ""] = (end - began).total_seconds()
            if code in (EXIT_ANSWERED, EXIT_SOME_ERRORS):
                self._success = self.clock()
            for name, label, value in (
                ("lines", "answered", said.get("answered")),
                ("lines", "failed", said.get("failed")),
                ("files", "done", said.get("files_done")),
                ("files", "stale", said.get("files_stale")),
                ("calls", "", spent.get("calls")),
                ("tokens", "input", spent.get("input_tokens")),
                ("tokens", "output", spent.get("output_tokens")),
                ("cost_usd", "", spent.get("cost_usd")),
            ):
                self._counted[name, label] += value or 0

    def samples(self) -> dict[tuple[str, str], float]:
        """Values by name and label."""
        with self._lock:
            age = max(0.0, self.clock() - self._success)
            return {**self._counted, **self._now, ("schedule_last_success_age_seconds", ""): age}
