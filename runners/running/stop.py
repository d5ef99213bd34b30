"""Ctrl-C and SIGTERM: the first one drains the run, the second one exits at once; neither loses anything."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from llmdo.backends.engine.registry import close_engines, drain_engines
from llmdo.runners.servers import kill_all
from llmdo.transforms.run_state import RunState

_log = logging.getLogger(__name__)

# For the last shards and manifests, once calls have ended or were cancelled. Seconds.
_LAST_WRITES = 60.0


class Stop:
    """Whether the user wants the run to end; its calls then end within ``drain_seconds``."""

    def __init__(self, drain_seconds: float) -> None:
        self._drain_seconds = drain_seconds
        self._state = RunState()
        self._asked = threading.Event()
        self._over = threading.Event()
        self._draining = False
        self._signal = ""

    @property
    def asked(self) -> bool:
        """Whether a signal came."""
        return self._asked.is_set()

    def ask(self, who: str) -> None:
        """Drains the run, as a first signal does."""
        self._signal = who
        self._asked.set()
        threading.Thread(target=self._drain, name="llmdo-drain", daemon=True).start()

    def wait(self, seconds: float) -> bool:
        """Waits this long, or until a signal comes; returns whether one came."""
        return self._asked.wait(seconds)

    def apply(self, state: RunState) -> None:
        """From now on signals stop this run; one that came before does so at once."""
        self._state, state.stops_calls = state, True
        if self.asked:
            state.stop(self._sentence())

    def drain(self) -> None:
        """Lets the calls in flight of a pipeline that has failed end, so that no answer is paid for again.

        Ctrl-C exits at once; another signal only ends the run afterwards.
        """
        with self.last_calls():
            left = drain_engines(self._drain_seconds, self._say_what_for, self._state.run_id)
        if left:
            _log.warning("%d calls have not ended in %g s: they are made again later", left, self._drain_seconds)

    @contextmanager
    def last_calls(self) -> Iterator[None]:
        """While a failed pipeline waits for the ends of calls: Ctrl-C exits at once."""
        self._draining = True
        try:
            yield
        finally:
            self._draining = False

    def _say_what_for(self, calls: int) -> None:
        what = (
            "1 call in flight, to keep its answer" if calls == 1 else f"{calls} calls in flight, to keep their answers"
        )
        _log.warning("the pipeline failed: waiting up to %g s for %s; Ctrl-C exits at once", self._drain_seconds, what)

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """Listens for SIGINT and SIGTERM."""
        try:
            with handling_signals(self._handle):
                yield
        finally:
            self._over.set()

    def _handle(self, number: int) -> None:
        if self.asked or (self._draining and number == signal.SIGINT):
            leave(128 + number)
        self.ask(signal.Signals(number).name)  # in a thread of its own: this one may hold any lock at this moment

    def _sentence(self) -> str:
        return f"stopped by {self._signal}; run the same command again to resume"

    def _drain(self) -> None:
        self._state.stop(self._sentence())
        steps: tuple[tuple[float, Callable[[], None]], ...] = (
            (self._drain_seconds, lambda: close_engines(self._state.run_id)),
            (_LAST_WRITES, lambda: leave(1)),
        )
        for seconds, then in steps:
            if self._over.wait(seconds):
                return
            _log.warning("the run has not ended %g s after %s", seconds, self._signal)
            then()


@contextmanager
def handling_signals(handle: Callable[[int], None]) -> Iterator[None]:
    """Calls ``handle`` with the number of each SIGINT and SIGTERM; does nothing outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handler(number: int, _: FrameType | None) -> None:
        handle(number)

    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def leave(code: int) -> None:
    """Ends this process at once, with everything that it started."""
    kill_all()
    os._exit(code)
