"""Shows a run in progress: how much is done, how fast, what is left, what it costs, what holds it back."""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console, Group
from rich.filesize import decimal
from rich.live import Live
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Column, Table
from rich.text import Text

from llmdo.backends.engine.registry import calls_in_flight, calls_made, limits_of_engines, requests_in_batches
from llmdo.runners.showing.limits import held_text
from llmdo.runners.showing.summary import NOTHING_SPENT, dollars
from llmdo.runners.showing.terminal import stderr
from llmdo.runners.showing.words import counted, lasting
from llmdo.transforms.run_state import RunState

# Between two lines, which replace the bar where there is no terminal. Seconds.
_PLAIN_EVERY = 5.0
_RATE_SECONDS = 10.0
_LARGE = 30  # rows of a terminal that also shows the open files


class Rate:
    """A rate per second over the last 10 s, so that a slow start does not distort it forever."""

    def __init__(self, seconds: float = _RATE_SECONDS) -> None:
        self._seconds = seconds
        self._seen = deque([(time.monotonic(), 0.0)])

    def __call__(self, count: float) -> float:
        """Takes the current count and returns the rate."""
        now = time.monotonic()
        self._seen.append((now, count))
        while len(self._seen) > 2 and self._seen[1][0] < now - self._seconds:
            self._seen.popleft()
        then, before = self._seen[0]
        return (count - before) / max(now - then, 0.001)


@dataclass(frozen=True, slots=True)
class Figures:
    """A run at one moment.

    Attributes:
        lines: answered and failed by this run; ``lines_expected``: by the part of the files' bytes that is done.
        files_open, files_done: stale ones count as done.
        lines_per_s: over the last 10 s.
        left_s: seconds until all opened files are done, at the rate of the last minute.
        calls: made so far; ``in_flight``, ``window``: at this moment, and how many there may be.
        cost_usd, expected_usd: of all calls so far, and of those of all opened files.
        throttled_s: in which a call was ready and limits held it back.
        waiting: messages in the queue, about.
        held: what holds calls back, for people.
    """

    lines: int
    failed: int
    files_open: int
    files_done: int
    bytes_done: int
    bytes_opened: int
    lines_per_s: float
    left_s: float | None
    calls: int
    in_flight: int
    window: int
    throttled_s: float
    tokens: int
    cost_usd: float | None
    cost_is_lower_bound: bool
    batched: int
    waiting: int | None
    held: str

    @property
    def part_done(self) -> float | None:
        """Of the bytes of the files that were opened; None if there are none."""
        return min(1.0, self.bytes_done / self.bytes_opened) if self.bytes_opened else None

    @property
    def lines_expected(self) -> int | None:
        """See above."""
        return round(self.lines / self.part_done) if self.lines and self.part_done else None

    @property
    def expected_usd(self) -> float | None:
        """See above."""
        return self.cost_usd / self.part_done if self.cost_usd and self.part_done else None

    def as_json(self) -> dict[str, Any]:
        """For machines; times in seconds."""
        part = self.part_done
        return {
            **{name: value for name, value in asdict(self).items() if name != "held"},
            "lines_per_s": round(self.lines_per_s, 2),
            "throttled_s": round(self.throttled_s, 1),
            "left_s": None if self.left_s is None else round(self.left_s, 1),
            "part_done": None if part is None else round(part, 4),
            "lines_expected": self.lines_expected,
            "expected_usd": self.expected_usd,
            "held": self.held or None,
        }


class Meters:
    """The rates of a run, which each look at it feeds."""

    def __init__(self) -> None:
        self._lines, self._bytes, self._held = Rate(), Rate(60.0), Rate()

    def look(self, state: RunState) -> Figures:
        """The run's figures now."""
        counts, elsewhere = state.counts, state.elsewhere()
        spent = (state.budget.spent() if state.budget else NOTHING_SPENT) + elsewhere.spent
        limits = (*limits_of_engines(state.run_id), *elsewhere.limits)
        lines, left = counts.answered + counts.failed, counts.bytes_opened - counts.bytes_done
        bytes_per_s = self._bytes(counts.bytes_done)
        throttled_s = sum(model.throttled_s for model in limits)
        throttled = self._held(throttled_s)
        return Figures(
            lines,
            counts.failed,
            len(state.in_work()),
            counts.files_done + counts.files_stale,
            counts.bytes_done,
            counts.bytes_opened,
            self._lines(lines),
            left / bytes_per_s if left > 0 and bytes_per_s > 0 else None,
            calls_made(state.run_id) + elsewhere.calls,
            calls_in_flight(state.run_id) + elsewhere.in_flight,
            sum(model.window for model in limits),
            throttled_s,
            counts.input_tokens + counts.output_tokens,
            spent.cost_usd,
            spent.unpriced > 0,
            requests_in_batches(state.run_id) + elsewhere.batched,
            state.backlog,
            " · ".join(filter(None, (_awaits_budget(state), held_text(limits, throttled)))),
        )


def _awaits_budget(state: RunState) -> str:
    seen = state.output_budget
    if seen is None or not seen.waiting:
        return ""
    return f"waiting for --budget {seen.budget}" + (f", until {seen.until:%H:%M} UTC" if seen.until else "")


def status_line(now: Figures, _: RunState) -> str:
    """A bounded run in one line."""
    parts = [
        counted(now.lines, "line") + (f" of ≈ {now.lines_expected:,}" if now.lines_expected and now.left_s else ""),
        f"{now.lines_per_s:,.1f}/s",
        f"{lasting(now.left_s)} left" if now.left_s else "",
        *calls_and_cost(now),
        counted(now.failed, "error"),
        f"{now.files_done:,} of {counted(now.files_open + now.files_done, 'file')}",
    ]
    return " · ".join(filter(None, parts))


def stream_line(now: Figures, _: RunState) -> str:
    """A continuous run at this moment, in one line."""
    parts = [
        f"{counted(now.files_open, 'file')} open, {now.files_done:,} done",
        f"{counted(now.lines, 'line')}, {now.lines_per_s:,.1f}/s",
        *calls_and_cost(now),
        counted(now.failed, "error"),
        f"{'?' if now.waiting is None else format(now.waiting, ',')} waiting",
    ]
    return " · ".join(filter(None, parts))


def calls_and_cost(now: Figures) -> Iterator[str]:
    """Parts of a line; some are empty."""
    if now.window:
        yield f"{now.in_flight:,} of {counted(now.window, 'call')} in flight"
    elif now.in_flight:
        yield f"{counted(now.in_flight, 'call')} in flight"
    yield f"{now.batched:,} in batches" if now.batched else ""
    yield now.held
    yield f"{now.tokens:,} tokens"
    yield _cost(now)


def _cost(now: Figures) -> str:
    if not now.cost_usd and not now.cost_is_lower_bound:
        return ""
    so_far = dollars(now.cost_usd, lower_bound=now.cost_is_lower_bound)
    if now.expected_usd is None or not now.left_s:
        return so_far
    return f"{so_far} of ≈ {dollars(now.expected_usd, lower_bound=False)}"


class ProgressDisplay:
    """Gives a run a context in which its state is shown on ``console``, four times a second in a terminal.

    A bounded run has a bar for its bytes, and on a large terminal a table of its open files; elsewhere there is a line
    every 5 s. ``as_json``: each is a JSON object.
    """

    def __init__(
        self, console: Console, line: Callable[[Figures, RunState], str] = status_line, *, as_json: bool = False
    ) -> None:
        self.console = console
        self.line = line
        self._as_json = as_json

    @contextmanager
    def __call__(self, state: RunState) -> Iterator[None]:
        """Shows until the context ends."""
        over = threading.Event()
        show = self._live if self.console.is_terminal and not self._as_json else self._lines
        thread = threading.Thread(target=show, args=(state, over), name="progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _live(self, state: RunState, over: threading.Event) -> None:
        meters = Meters()
        bar = [BarColumn(bar_width=30)] if self.line is status_line else []
        columns = (SpinnerColumn(), *bar, TextColumn("{task.description}", markup=False), TimeElapsedColumn())
        progress = Progress(*columns, console=self.console)
        task = progress.add_task("looking for files", total=None)
        with Live(progress, console=self.console, refresh_per_second=4, transient=False) as live:
            while True:
                last = over.wait(0.25)
                now = meters.look(state)
                progress.update(
                    task,
                    description=self.line(now, state),
                    total=now.bytes_opened or None,
                    completed=min(now.bytes_done, now.bytes_opened),
                )
                files = None if last else open_files(state, self.console.height)
                live.update(Group(progress, files) if files else progress)
                if last:
                    return

    def _lines(self, state: RunState, over: threading.Event) -> None:
        meters = Meters()
        while True:
            last = over.wait(_PLAIN_EVERY)
            now = meters.look(state)
            said = json.dumps(now.as_json()) if self._as_json else self.line(now, state)
            self.console.print(said, highlight=False, markup=False, soft_wrap=True)
            if last:
                return


def open_files(state: RunState, height: int) -> Table | None:
    """The files in work that fit, with how far each is as far as this process knows; None on a small terminal."""
    files = state.in_work()
    if height < _LARGE or len(files) < 2:
        return None
    table = Table("open file", Column("size", justify="right"), Column("done", justify="right"), box=None)
    room = height // 2
    for file in files[:room]:
        done = min(1.0, state.done_of(file.id) / max(file.size if file.length is None else file.length, 1))
        table.add_row(Text(file.key), decimal(file.size), f"{done:.0%}")
    if len(files) > room:
        table.add_row(f"… and {len(files) - room:,} more", "", "")
    return table


def display(
    line: Callable[[Figures, RunState], str] = status_line, *, as_json: bool = False, json_progress: bool = False
) -> Callable[[RunState], AbstractContextManager[None]]:
    """Shows a run in progress on stderr, as JSON for machines, or not where a machine reads the summary alone."""
    return quiet if as_json and not json_progress else ProgressDisplay(stderr, line, as_json=json_progress)


def quiet(_: RunState) -> AbstractContextManager[None]:
    """Shows nothing of a run in progress."""
    return nullcontext()
