"""What a deadline asks for: which requests are handed over in batches, and when those that are out are called at last.

The rule is: as late as possible, but never later than calls at list price need. All times are seconds of one clock,
which the caller brings, and nothing here waits.

A batch that will be late is cancelled first, and its requests are called once the cancel has settled: what was answered
by then is paid at its lane's price and taken, the rest is paid once, as calls. To call beside a batch that is still out
would be paid twice wherever it comes back. So it is only done where the time for a cancel to settle is not there; a
batch is then left out until its calls must start if it is likely enough to come back meanwhile.

While calls that must be made anyway keep the service busy, nothing that is out is given up: earlier would not be
faster. So even where list price needs nearly all the time, the requests that would be called last may be out meanwhile.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from llmdo.backends.lanes.cancel_times import CAUTIOUS_S
from llmdo.backends.lanes.queue_times import QueueTimes
from llmdo.backends.limits.call_speed import CallSpeed

# The part of the whole time that is kept free at its end: for writing shards, and for what nobody foresees.
_SPARE = 0.03
# The part of a batch that is likely worked on, paid, and not used if it is given up without waiting for the cancel.
_WASTED = 0.25
# A lane must save this part of list price, or it is not worth its trouble.
_WORTH = 0.02
# Calls may be quicker than they were: the part of their expected time in which they surely keep the service busy.
_BUSY = 0.7
# Only whole groups can be given up: at list price one takes at most this part of the time that is left.
_GROUP = 1 / 16
_LOOK_S = 1.0  # between looks whether to go on waiting, at least
_STEPS = 16  # in which a group is divided into what is called and what is handed over


@dataclass(frozen=True, slots=True)
class Lane:
    """A way to have requests answered later and cheaper.

    Attributes:
        name: as in ``Response.lane``.
        factor: its price as a part of list price.
        queue: how long it takes.
        cancel_s: the longest that it takes until a cancelled batch has its answers so far.
    """

    name: str
    factor: float
    queue: QueueTimes
    cancel_s: float = CAUTIOUS_S

    def expected_price(self, wait_s: float) -> float:
        """As a part of list price, of a request that is out and must be called ``wait_s`` from now if it is not back.

        The cheaper of two: to cancel in time for the cancel to settle, or to wait until the last moment.
        """
        return min(self._price(wait_s - self.cancel_s, 0.0), self._price(wait_s, _WASTED))

    def _price(self, wait_s: float, wasted: float) -> float:
        back = self.queue.chance(wait_s)
        return back * self.factor + (1 - back) * (1 + wasted * self.factor)


@dataclass(slots=True, eq=False)
class GroupOut:
    """Requests that were handed over together at a time, and are not back.

    Attributes:
        answered: the part of them that the provider reports as answered.
        cancel_at, call_at: when it is cancelled, and its requests are called, if it is not back before; by the last
            ``moves``.
    """

    lane: Lane
    lines: int
    at: float
    cancelled: bool = False
    answered: float = 0.0
    cancel_at: float = math.inf
    call_at: float = math.inf


@dataclass(frozen=True, slots=True)
class Moves:
    """What is to be done now: groups to cancel, and groups whose requests are called, whether they are back or not.

    ``again_at``: when to ask anew, at the latest; infinite where nothing is out.
    """

    cancel: tuple[GroupOut, ...]
    call: tuple[GroupOut, ...]
    again_at: float


@dataclass(frozen=True, slots=True)
class ReadyBy:
    """Answers are to be ready ``at`` a time; ``begun``: when the run began."""

    at: float
    begun: float

    def latest_start(self, calls: float, speed: CallSpeed) -> float:
        """When calls must start, at the latest, for this many to be answered in time."""
        return self.at - _SPARE * (self.at - self.begun) - speed.seconds(calls)

    def most_lines(self, now: float, speed: CallSpeed) -> int:
        """Requests of a group at most."""
        return max(1, int(_GROUP * (self.at - now) * speed.per_s))

    def hand_over(
        self, now: float, lines: int, others: int, in_hand: int, lanes: Sequence[Lane], speed: CallSpeed
    ) -> tuple[Lane, int] | None:
        """The lane for a group, and how many of its last requests to hand over; None: all are called.

        Args:
            now: the time.
            lines: requests of the group.
            others: requests that may have to be called as well: those that are out, and those in hand.
            in_hand: requests that are being called, or wait for their turn.
            lanes: what there is; calls at list price are always there.
            speed: of these calls.
        """
        latest = self.latest_start(lines + others, speed)
        best: tuple[float, Lane, int] | None = None
        for lane in lanes:
            for step in range(_STEPS):
                called = lines * step // _STEPS
                wait_s = max(latest, now + _busy_s(in_hand + called, speed)) - now
                saved = (lines - called) * (1 - lane.expected_price(wait_s))
                if saved > _WORTH * lines and (best is None or saved > best[0]):
                    best = saved, lane, lines - called
        return best and (best[1], best[2])

    def moves(self, now: float, out: Sequence[GroupOut], in_hand: int, speed: CallSpeed) -> Moves:
        """What to do about the groups that are out, while ``in_hand`` requests are being called or wait to be.

        Those least likely to come back are given up first, and each as late as those that remain allow.
        """
        left = in_hand + sum(group.lines for group in out)
        busy_until = now + _busy_s(in_hand, speed)
        cancel, call, again_at = [], [], math.inf
        for group in sorted(out, key=lambda group: (not group.cancelled, self._hope(group, now))):
            call_at = max(self.latest_start(left, speed), busy_until)
            left -= group.lines
            settles_s = group.lane.cancel_s
            group.cancel_at, group.call_at = call_at - settles_s, call_at
            if now >= call_at:
                call.append(group)
                if not group.cancelled:
                    cancel.append(group)
                continue
            if not group.cancelled:
                if now < call_at - settles_s:
                    again_at = min(again_at, call_at - settles_s)
                    continue
                if not self._is_worth_waiting(group, now, call_at - now):
                    cancel.append(group)
                else:
                    again_at = min(again_at, now + max(_LOOK_S, (call_at - now) / 8))
            again_at = min(again_at, call_at)
        return Moves(tuple(cancel), tuple(call), again_at)

    def _hope(self, group: GroupOut, now: float) -> float:
        return group.lane.queue.chance(self.at - now, now - group.at)

    def _is_worth_waiting(self, group: GroupOut, now: float, wait_s: float) -> bool:
        """Whether to leave a group out until it must be called, although a cancel would not settle by then."""
        lane = group.lane
        back = lane.queue.chance(wait_s, now - group.at)
        waiting = back * lane.factor + (1 - back) * (1 + _WASTED * lane.factor)
        return waiting < group.answered * lane.factor + (1 - group.answered)


def _busy_s(calls: int, speed: CallSpeed) -> float:
    """For how long these calls surely keep the service busy."""
    return _BUSY * calls / speed.per_s
