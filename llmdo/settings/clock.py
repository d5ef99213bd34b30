"""A clock that nobody sets."""

from __future__ import annotations

import time


def elapsed() -> float:
    """Seconds on a clock that also runs while the process, or the whole machine, sleeps."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.time() if clock is None else time.clock_gettime(clock)
