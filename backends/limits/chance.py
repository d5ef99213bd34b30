"""Refusals that come by chance: how large their part is, learned from calls that start at the same instant.

Workers AI's 3040 "out of capacity" comes at any pace, and so do the refusals of a service behind many machines. To
lower the pace helps nothing there. A rate or a capacity that is used up looks different: whoever used it up, all
further calls of that instant are refused. Where one is admitted after another was refused, that one met chance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

BURST_CALLS = 4  # calls; at a high pace those of BURST_CALLS_S, since a service admits some more while they arrive
BURST_CALLS_S = 0.03
BY_CHANCE = 6  # refusals by chance that are enough for a verdict
BEHIND = 4  # refusals behind the last admitted call of their instant that are enough where none was by chance
EITHER = 12  # refusals of both kinds that are enough
TRIAL_CALLS = 1000  # then they have become too rare to matter
MEMORY_CALLS = 400  # what earlier trials found counts as this many calls at most
SIGNIFICANT = 3.0  # standard deviations


@dataclass(slots=True)
class Chance:
    """What all trials have found: of ``calls`` that were not behind a limit, ``refused`` by chance."""

    refused: float = 0.0
    calls: float = 0.0

    @property
    def part(self) -> float:
        """The part of all calls that is refused at any pace: the measured one and its standard deviation."""
        if not self.calls:
            return 0.0
        part = self.refused / self.calls
        return part + math.sqrt(part * (1 - part) / self.calls)

    def add(self, refused: int, calls: int) -> None:
        """Takes note of what a trial has found."""
        fades = min(1.0, MEMORY_CALLS / self.calls) if self.calls else 0.0
        self.refused, self.calls = fades * self.refused + refused, fades * self.calls + calls


@dataclass(slots=True)
class Trial:
    """Calls that start ``at_once``, from number ``index`` on. Times are seconds of one clock."""

    index: int
    at_once: int
    _starts: list[float] = field(default_factory=list)
    _refused: set[int] = field(default_factory=set)
    _lag_s: float = 0.05  # after which a refusal has come

    def started(self, now: float) -> float:
        """Takes note of a start; returns how many calls' time must pass until the next one."""
        self._starts.append(now)
        return float(self.at_once) if len(self._starts) % self.at_once == 0 else 0.0

    def refused(self, index: int, at: float, now: float) -> None:
        """Takes note that the start with this number, made at ``at``, was refused."""
        self._refused.add(index - self.index - 1)
        self._lag_s = max(self._lag_s, 2 * (now - at))

    def verdict(self, chance: Chance, now: float) -> bool | None:
        """Whether chance explains the refusals, or None as long as they are too few; adds them to ``chance``."""
        groups = self._groups(now)
        by_chance = behind = admitted = 0
        for group in groups:
            last = max((place for place, refused in enumerate(group) if not refused), default=-1)
            decided = group[: max(last, 0)]
            by_chance += sum(decided)
            admitted += len(decided) - sum(decided)
            behind += len(group) - 1 - last
        rare = len(self._starts) >= TRIAL_CALLS
        enough = by_chance >= BY_CHANCE or by_chance + behind >= EITHER or (behind >= BEHIND and not by_chance)
        if not enough and not rare:
            return None
        chance.add(by_chance, by_chance + admitted)
        odds = chance.part / max(1.0 - chance.part, 1.0 / self.at_once)  # calls by chance behind the last admitted one
        expected = len(groups) * odds
        return rare or (by_chance > 1 and behind <= expected + SIGNIFICANT * math.sqrt(expected * (1 + odds)) + 1)

    def _groups(self, now: float) -> list[list[bool]]:
        """Of each instant with several starts, whether each was refused."""
        groups: dict[float, list[bool]] = {}
        for number, at in enumerate(self._starts):
            if at + self._lag_s > now:
                break
            groups.setdefault(at, []).append(number in self._refused)
        return [group for group in groups.values() if len(group) > 1]
