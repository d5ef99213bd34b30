"""When a bundle reads, waits or ends its turn, on a runner that emits nothing of a bundle before its end. No Beam.

There a reader must defer what is left after some seconds, so that answers get out. While a bundle drains, it submits
no calls; so several bundles, the lanes, read at the same time, and their turns end at different times.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

# A bundle that finds all lanes taken tries again after this. Seconds.
RETRY = 0.5
# Fresh ranges are dealt out to lanes this far apart, or they would come back as one bundle. Seconds.
SPACING = 0.25
# A turn lasts while no other bundle reads, up to this many times its length; what it has read stays in it that long.
LONGEST_TURN = 2
# The longest and shortest time that a group of lines should take through the steps behind. Seconds.
SLOW_S, FAST_S = 0.2, 0.05
MAX_GROUP = 64


def next_group(lines: int, seconds: float) -> int:
    """How many lines to claim at once after a group of ``lines`` took ``seconds``.

    What is claimed can be neither split off nor deferred: few lines when the steps behind are slow, more when not.
    """
    if seconds > SLOW_S:
        return max(1, lines // 2)
    return min(MAX_GROUP, lines * 2) if seconds < FAST_S else lines


def end_of_turn(now: float, seconds: float, others: Iterable[float]) -> float:
    """When a turn that begins now should end: after ``seconds``, or earlier, farthest from the ends of the others.

    Each of the others is assumed to continue in turns of ``seconds``, so what counts is the phase.
    """
    phases = sorted({(end - now) % seconds for end in others})
    if not phases:
        return now + seconds
    following = [*phases[1:], phases[0] + seconds]
    gap, begin = max((b - a, a) for a, b in zip(phases, following, strict=True))
    middle = (begin + gap / 2) % seconds
    # A turn of almost no time would be all draining.
    return now + (middle if middle > gap / 4 else middle + seconds)


@dataclass(slots=True)
class Lanes:
    """The bundles that read at this moment in this process. Thread-safe."""

    _ends: dict[ReadingTurn, float] = field(default_factory=dict)
    _refused: float = float("-inf")
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def enter(self, turn: ReadingTurn, count: int, now: float, seconds: float) -> float | None:
        """Takes one of ``count`` lanes and returns when the turn ends, or None if all are taken."""
        with self._lock:
            # Past its end a bundle reads no more. One that hangs, or died with its runner, must not hold the lane.
            self._ends = {other: end for other, end in self._ends.items() if end > now}
            if len(self._ends) >= count:
                self._refused = now
                return None
            end = end_of_turn(now, seconds, self._ends.values())
            self._ends[turn] = end
            return end

    def others_read(self, turn: ReadingTurn, now: float) -> bool:
        """Whether any other bundle has time left to read."""
        with self._lock:
            return any(end > now for other, end in self._ends.items() if other is not turn)

    def free(self, turn: ReadingTurn) -> None:
        """Gives the lane back, if the turn had one."""
        with self._lock:
            self._ends.pop(turn, None)

    def pause(self, now: float) -> float:
        """Seconds that a bundle whose turn is over must wait: none, unless others wait for a lane."""
        with self._lock:
            return 2 * RETRY if now - self._refused < 2 * RETRY else 0.0


class ReadingTurn:
    """One bundle's time to read: about ``seconds`` from its first range, in one of ``count`` lanes."""

    def __init__(self, lanes: Lanes, count: int, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._lanes = lanes
        self._count = count
        self._seconds = seconds
        self._clock = clock
        self._dealt = 0
        self._end: float | None = None

    def wait(self, fresh: bool, small: bool = False) -> float | None:
        """Seconds for which a range must be deferred, unclaimed, before it is tried again; None: read it now.

        A ``fresh`` range, one that was never deferred, is dealt to a lane: it comes back together with the others of
        this bundle that go there. A ``small`` one, of some 100 lines at most, does not wait behind large ones: it is
        not dealt, has one more lane, and starts even if time has just run out, since a range that was read before it in
        this bundle may be first again, until that one is finished.
        """
        if fresh and not small:
            lane = self._dealt % self._count
            self._dealt += 1
            return lane * min(SPACING, self._seconds / self._count)
        if self._end is None:
            self._end = self._lanes.enter(self, self._count + small, self._clock(), self._seconds)
            return RETRY if self._end is None else None
        if small and self._clock() < self._end + self._seconds / self._count:
            return None
        return self.rest()

    def rest(self) -> float | None:
        """None while the turn lasts; then the seconds for which all ranges of the bundle must be deferred.

        It lasts longer while no other bundle reads: all that is left to read may be in this one and in bundles that
        wait for a slow call, and nothing would be submitted before the first of them has ended.
        """
        now = self._clock()
        if self._end is None or now < self._end:
            return None
        pause = self._lanes.pause(now)
        more = now < self._end + (LONGEST_TURN - 1) * self._seconds
        return None if more and not pause and not self._lanes.others_read(self, now) else pause

    def finish(self) -> None:
        """The bundle reads no more: its lane is free."""
        self._lanes.free(self)
        self._end = None
