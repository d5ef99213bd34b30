"""Shows a run in progress: lines, calls a second, tokens, errors, files."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from llmdo.backends.engine.registry import calls_in_flight, calls_made, limits_of_engines, requests_in_batches
from llmdo.runners.showing.limits import away_text
from llmdo.runners.showing.summary import NOTHING_SPENT, dollars
from llmdo.transforms.run_state import RunState

# Between two lines, which replace the bar where there is no terminal. Seconds.
_PLAIN_EVERY = 5.0
_RATE_SECONDS = 10.0


class Rate:
    """A rate per second over the last 10 s, so that a slow start does not distort it forever."""

    def __init__(self) -> None:
        self._seen = deque([(time.monotonic(), 0)])

    def __call__(self, count: int) -> float:
        """Takes the current count and returns the rate."""
        now = time.monotonic()
        self._seen.append((now, count))
        while len(self._seen) > 2 and self._seen[1][0] < now - _RATE_SECONDS:
            self._seen.popleft()
        then, before = self._seen[0]
        return (count - before) / max(now - then, 0.001)


def status_line(state: RunState, rate: Rate) -> str:
    """The figures of a run so far, in one line."""
    counts = state.counts
    lines, tokens = counts.answered + counts.failed, counts.input_tokens + counts.output_tokens
    done = counts.files_done + counts.files_stale
    return (
        f"{lines:,} lines · {rate(calls_made(state.run_id) + state.elsewhere().calls):,.1f} calls/s · "
        f"{_limits_text(state)}"
        f"{tokens:,} tokens{cost_text(state)} · {counts.failed:,} errors · "
        f"{done:,}/{len(state.in_work()) + done:,} files"
    )


def stream_line(state: RunState, rate: Rate) -> str:
    """The figures of a continuous run at this moment, in one line."""
    counts = state.counts
    lines, tokens = counts.answered + counts.failed, counts.input_tokens + counts.output_tokens
    waiting = "?" if state.backlog is None else f"{state.backlog:,}"
    return (
        f"{len(state.in_work()):,} files open, {counts.files_done:,} done · {lines:,} lines, {rate(lines):,.1f}/s · "
        f"{calls_in_flight(state.run_id) + state.elsewhere().in_flight:,} in flight · {_limits_text(state)}"
        f"{tokens:,} tokens · {counts.failed:,} errors · {waiting} waiting"
    )


def _limits_text(state: RunState) -> str:
    """How many requests wait in batches, and which services do not answer; nothing where there is neither."""
    waiting = requests_in_batches(state.run_id)
    limits = (*limits_of_engines(state.run_id), *state.elsewhere().limits)
    return (f"{waiting:,} in batches · " if waiting else "") + away_text(limits)


def cost_text(state: RunState) -> str:
    """What was spent; "" if nothing has a cost."""
    spent = (state.budget.spent() if state.budget else NOTHING_SPENT) + state.elsewhere().spent
    return f" · {dollars(spent.cost_usd, lower_bound=spent.unpriced > 0)}" if spent.cost_usd or spent.unpriced else ""


class ProgressDisplay:
    """Gives a run a context in which its state is shown on ``console``, four times a second in a terminal.

    A bounded run has a bar for its bytes; a continuous one only its ``line``.
    """

    def __init__(self, console: Console, line: Callable[[RunState, Rate], str] = status_line) -> None:
        self.console = console
        self.line = line

    @contextmanager
    def __call__(self, state: RunState) -> Iterator[None]:
        """Shows until the context ends."""
        over = threading.Event()
        show = self._bar if self.console.is_terminal else self._lines
        thread = threading.Thread(target=show, args=(state, over), name="progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _bar(self, state: RunState, over: threading.Event) -> None:
        rate = Rate()
        bar = [BarColumn(bar_width=30)] if self.line is status_line else []
        columns = (SpinnerColumn(), *bar, TextColumn("{task.description}"), TimeElapsedColumn())
        with Progress(*columns, console=self.console) as progress:
            task = progress.add_task("looking for files", total=None)
            while True:
                last = over.wait(0.25)
                size = state.counts.bytes_opened
                progress.update(
                    task,
                    description=self.line(state, rate),
                    total=size or None,
                    completed=min(state.counts.bytes_done, size),
                )
                if last:
                    return

    def _lines(self, state: RunState, over: threading.Event) -> None:
        rate = Rate()
        while not over.wait(_PLAIN_EVERY):
            self.console.print(self.line(state, rate), highlight=False)
        self.console.print(self.line(state, rate), highlight=False)


def quiet(_: RunState) -> AbstractContextManager[None]:
    """Shows nothing of a run in progress."""
    return nullcontext()
