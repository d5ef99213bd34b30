"""Clocks that tests move."""

from __future__ import annotations

import time


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class AheadClock:
    """The real time in seconds since 1970, which a test can put ahead."""

    def __init__(self) -> None:
        self.ahead = 0.0
        self._real = time.time  # also where a test replaces it

    def __call__(self) -> float:
        return self._real() + self.ahead
