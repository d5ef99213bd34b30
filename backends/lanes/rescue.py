"""Keeps a deadline for the batches of an engine: what the policy needs to know, and what it decides."""

from __future__ import annotations

import asyncio
import logging
import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Protocol

from llmdo.backends.lanes.batch import Batch
from llmdo.backends.lanes.cancel_times import longest_cancel
from llmdo.backends.lanes.queue_times import QueueTimes
from llmdo.backends.lanes.ready_by import GroupOut, Lane, ReadyBy
from llmdo.backends.limits.call_speed import CallSpeed

# Every hundredth request of a model is called at once, until it is known from this many how fast calls are.
_AHEAD, _ENOUGH = 100, 200
# The part of the whole time between two looks, and the bounds of that in seconds.
_LOOK, _LEAST_LOOK_S, _MOST_LOOK_S = 0.005, 0.1, 5.0
UNKNOWN_FACTOR = 0.5  # what nearly all providers ask for a batch, as a part of list price

LEARNING_S = 60.0  # a group waits this long for the first call's answer, so that it is known how fast calls are
_log = logging.getLogger(__name__)
_Key = tuple[str, str]  # provider and model


class Polls(Protocol):
    """What is done about batches; see BatchPolls."""

    over: asyncio.Event

    async def pause(self, seconds: float) -> None: ...  # noqa: D102 - as the others, see there
    async def cancel(self, batch: Batch) -> None: ...  # noqa: D102
    def call_now(self, batch: Batch) -> None: ...  # noqa: D102
    def release(self, batch: Batch) -> None: ...  # noqa: D102


class Rescue:
    """Asks the policy about each group, and about the batches that are out; used on the engine's loop.

    Args:
        ready_by: the deadline, in Unix time as all times here.
        clock: Unix time.
        known: what is known of the calls of a provider's model, and how many are in flight or wait for their turn.
        factor: the price of its batches as a part of list price.

    Attributes:
        planned: by the nonces of batches that are out, when each is cancelled, and its requests are called, if it is
            not back before. Replaced, never changed: from any thread.
    """

    def __init__(
        self,
        ready_by: ReadyBy,
        clock: Callable[[], float],
        known: Callable[[str, str], tuple[CallSpeed, int]],
        factor: Callable[[str, str], float],
    ) -> None:
        self.keeping = False
        self.planned: Mapping[str, tuple[float, float]] = {}
        self.ready_by, self._clock = ready_by, clock
        self._known, self._factor = known, factor
        self._returned: defaultdict[_Key, list[float]] = defaultdict(list)
        self._settled: defaultdict[_Key, list[float]] = defaultdict(list)
        self.look_s = min(max((ready_by.at - ready_by.begun) * _LOOK, _LEAST_LOOK_S), _MOST_LOOK_S)
        self._joined: defaultdict[_Key, int] = defaultdict(int)
        self._ahead: defaultdict[_Key, int] = defaultdict(int)
        self._out: defaultdict[_Key, dict[GroupOut, Batch]] = defaultdict(dict)

    async def choose(self, polls: Polls, batch: Batch, to_come: int) -> None:
        """Leaves those members of a group to be called that a batch is not for; see ``hand_over``."""
        until = self._clock() + LEARNING_S
        while self.is_learning(batch.provider, batch.model) and self._clock() < until and not polls.over.is_set():
            await polls.pause(self.look_s)
        members, stay = batch.members, self.hand_over(batch, to_come)
        batch.members = members[: len(members) - stay]
        polls.release(batch)
        batch.members = members[len(members) - stay :]

    async def keep(self, polls: Polls) -> None:
        """Cancels what would be late, and has called what must be, as long as a batch is out."""
        self.keeping = True
        cancels = set[asyncio.Task[None]]()
        while self.is_needed and not polls.over.is_set():
            cancel, call, again_s = self.moves()
            cancels |= {asyncio.ensure_future(polls.cancel(batch)) for batch in cancel}
            for batch in call:
                what, lines = f"batch {batch.name} would come too late", len(batch.members)
                _log.warning("%s/%s: %s: its %d requests are called", batch.provider, batch.model, what, lines)
                polls.call_now(batch)
                self.ended(batch)
            await polls.pause(min(max(again_s, 0.05), self.look_s))
        self.keeping = False

    @property
    def is_needed(self) -> bool:
        """Whether a batch is out."""
        return any(self._out.values())

    def learn(self, provider: str, model: str, queue_s: float = 0.0, cancel_s: float = 0.0) -> None:
        """How long a batch, or its cancel, took; 0: that was not measured."""
        if queue_s:
            self._returned[provider, model].append(queue_s)
        if cancel_s:
            self._settled[provider, model].append(cancel_s)

    def calls_ahead(self, provider: str, model: str) -> bool:
        """Whether the next request is called at once, so that it is known how fast calls are."""
        key = provider, model
        self._joined[key] += 1
        ahead = self._ahead[key] < min(_ENOUGH, self._joined[key] // _AHEAD)
        self._ahead[key] += ahead
        return ahead

    def is_learning(self, provider: str, model: str) -> bool:
        """Whether none of the requests that were called ahead is answered yet."""
        return self._ahead[provider, model] > 0 and not self._known(provider, model)[0].answered

    def most_lines(self, provider: str, model: str) -> int:
        """Requests of a group at most."""
        return max(self.ready_by.most_lines(self._clock(), self._known(provider, model)[0]), _AHEAD)

    def hand_over(self, batch: Batch, to_come: int) -> int:
        """How many members of a group to hand over, the last ones; ``to_come`` others may have to be called, too."""
        key, now = (batch.provider, batch.model), self._clock()
        lane, (speed, in_hand) = self._lane(key, batch, now), self._known(*key)
        others = in_hand + to_come + sum(group.lines for group in self._out[key])
        found = self.ready_by.hand_over(now, len(batch.members), others, in_hand, [lane], speed)
        return found[1] if found else 0

    def went_out(self, batch: Batch) -> None:
        """A batch was handed over, now or by an earlier run."""
        key = batch.provider, batch.model
        lane = self._lane(key, batch, self._clock())
        self._out[key][GroupOut(lane, len(batch.members), batch.sent_at, batch.cancelled)] = batch

    def ended(self, batch: Batch) -> None:
        """A batch is not out any more, or none of its requests waits for it."""
        out = self._out[batch.provider, batch.model]
        for group in [group for group, other in out.items() if other is batch]:
            del out[group]
        self.planned = {nonce: times for nonce, times in self.planned.items() if nonce != batch.nonce}

    def moves(self) -> tuple[list[Batch], list[Batch], float]:
        """Batches to cancel, batches whose requests are called now, and in how many seconds to ask again."""
        cancel, call, again_s = list[Batch](), list[Batch](), math.inf
        now, planned = self._clock(), dict[str, tuple[float, float]]()
        for key, out in self._out.items():
            # Others have come back, or their cancels have settled, since these went out.
            lane = self._lane(key, next(iter(out.values())), now) if out else None
            for group, batch in out.items():
                group.lines, group.lane, group.answered = len(batch.members), lane or group.lane, batch.answered
            speed, in_hand = self._known(*key)
            moves = self.ready_by.moves(now, list(out), in_hand, speed)
            for group in moves.cancel:
                group.cancelled = True
                cancel.append(out[group])
            call += [out[group] for group in moves.call]
            again_s = min(again_s, moves.again_at - now)
            planned |= {batch.nonce: (group.cancel_at, group.call_at) for group, batch in out.items()}
        self.planned = planned
        return cancel, call, again_s

    def _lane(self, key: _Key, batch: Batch, now: float) -> Lane:
        out = self._out[key]
        still_out = tuple(now - group.at for group in out)
        waiting = [now - other.cancelled_at for other in out.values() if other.cancelled]
        window_s = batch.backend.batch_limits(batch.model).window_s or self.ready_by.at - self.ready_by.begun
        queue = QueueTimes(window_s, tuple(self._returned[key]), still_out)
        return Lane("batch", self._factor(*key), queue, longest_cancel(self._settled[key], waiting))
