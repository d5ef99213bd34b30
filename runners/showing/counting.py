"""Shows how far work on many things is: a line that changes on a terminal, and a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from llmdo.runners.showing.terminal import note, stderr

_FIRST, _EVERY = 5.0, 30.0  # seconds until a line, where there is no terminal, and between two


@contextmanager
def counting(things: str) -> Iterator[Callable[[int, int], None]]:
    """Gives what hears how many of how many are done."""
    started, said = time.monotonic(), 0.0

    def sentence(done: int, total: int) -> str:
        rate = done / max(time.monotonic() - started, 0.001)
        share = f", {min(done / total, 1):.0%}" if total else ""
        return f"{done:,} of {total:,} {things}{share}, {rate:,.0f} a second"

    if stderr.is_terminal:
        with stderr.status(f"reading {things}") as status:
            yield lambda done, total: status.update(sentence(done, total))
        return

    def say(done: int, total: int) -> None:
        nonlocal said
        now = time.monotonic()
        if now - (said or started) >= (_EVERY if said else _FIRST):
            said = now
            note(sentence(done, total))

    yield say
