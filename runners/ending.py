"""Ends an export by a signal: nothing half stays."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn


class Ending:
    """Ctrl-C and SIGTERM raise at once, but not where something would be left that nobody knows of: there they wait.

    Only for the main thread.
    """

    def __init__(self) -> None:
        self._told: int | None = None
        self._held = 0

    @contextmanager
    def heeded(self) -> Iterator[None]:
        """Signals raise KeyboardInterrupt or SystemExit, except those that the process was told to ignore."""
        heeded = [one for one in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(one) is not signal.SIG_IGN]
        before = [(number, signal.signal(number, self._hear)) for number in heeded]
        try:
            yield
        finally:
            for number, handler in before:
                signal.signal(number, handler)

    @contextmanager
    def hold(self) -> Iterator[None]:
        """What is told in between raises at the end of it."""
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1
        self.check()

    def check(self) -> None:
        """Raises what was told, also again: it may have been raised where nobody passes errors on, as under pyarrow."""
        if self._told is not None and not self._held:
            self._end(self._told)

    def _hear(self, number: int, _: FrameType | None) -> None:
        self._told = number
        self.check()

    def _end(self, number: int) -> NoReturn:
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + number)
