"""Shares out a run's window and pace to several processes, by what each has to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

# Below so few starts a second in all one process calls alone, until there are more again. With little to measure,
# several learn a common limit badly (see docs/scaling.md).
ALONE_PER_S, STAYS_ALONE_PER_S = 10.0, 15.0

ProviderModel = tuple[str, str]  # provider and model


@dataclass(frozen=True, slots=True)
class Demand:
    """What a process has to do, as it reports.

    Attributes:
        window: calls that it may have in flight: what it reports, or was sent since if that is more.
        in_flight: calls under way.
        waiting: calls that wait for their turn, or for their next try.
        paces: starts a second that it has learned, by model; None while it has learned none.
        allowed: starts a second that set or published rates allow it by an equal part, by model; None without these.
    """

    window: int
    in_flight: int
    waiting: int
    paces: Mapping[ProviderModel, float | None] = field(default_factory=dict)
    allowed: Mapping[ProviderModel, float | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Share:
    """A process's part.

    Attributes:
        window: calls that it may have in flight; 0: it makes none for now.
        part: of the rates that are set or published, in equal parts.
        paces: starts a second, by model, of those that all processes together have learned.
    """

    window: int
    part: float = 1.0
    paces: Mapping[ProviderModel, float] = field(default_factory=dict)


def deal_shares(window: int, demands: Sequence[Demand]) -> list[Share]:
    """The shares of a run's window and paces, one for each process; windows add up to ``window``.

    They follow the calls in flight and waiting. Each process can make a call, unless there are fewer than processes, or
    fewer than ALONE_PER_S starts a second for all: then one calls alone, as long as it has something to do. What
    another process may still have in flight is given to nobody before.
    """
    paces = _learned(demands)
    if has_few_calls(demands):
        caller = _caller(demands)
        wanted = [window * (at == caller) for at in range(len(demands))]
    else:
        wanted = _apportion(window, [one.in_flight + one.waiting for one in demands])
    windows = _within(window, wanted, demands)
    # The pace of one that waits for the end of others' calls would be lost meanwhile, and had to be learned again.
    calling = sum(want for size, want in zip(windows, wanted, strict=True) if size)
    return [
        Share(size, len(wanted) * want / sum(wanted), {model: per_s * want / calling for model, per_s in paces.items()})
        if size and want
        else Share(size)
        for size, want in zip(windows, wanted, strict=True)
    ]


def _learned(demands: Sequence[Demand]) -> dict[ProviderModel, float]:
    """The sum of what processes have learned, by model; that of those who call now, if any do."""
    found: dict[ProviderModel, float] = {}
    for one in demands:
        for model, per_s in one.paces.items():
            if per_s is not None and one.window:
                found[model] = found.get(model, 0.0) + per_s
    return found


def has_few_calls(demands: Sequence[Demand], *, before: bool = False) -> bool:
    """Whether one process is to make all calls, since they are few a second; ``before``: whether that was so."""
    paces, total = _learned(demands), 0.0
    models = {model for one in demands for model in one.paces}
    for model in models:
        allowed = [per_s for one in demands if (per_s := one.allowed.get(model)) is not None]
        known = [per_s for per_s in (paces.get(model), *(len(demands) * part for part in allowed)) if per_s is not None]
        if not known:
            return False
        total += min(known)
    before = before or any(not one.window for one in demands)
    return bool(models) and total < (STAYS_ALONE_PER_S if before else ALONE_PER_S)


def _caller(demands: Sequence[Demand]) -> int:
    """The process that calls alone: the one that does so already, unless it has nothing left to do."""
    busy = [one.in_flight + one.waiting for one in demands]
    return max(range(len(demands)), key=lambda at: (busy[at] > 0, demands[at].window, busy[at]))


def _apportion(window: int, busy: Sequence[int]) -> list[int]:
    """The window in parts by weight, at least 1 each while there are enough; by largest remainder."""
    each = min(1, window // len(busy)) if busy else 0
    free, weights = window - each * len(busy), busy if any(busy) else [1] * len(busy)
    exact = [free * weight / sum(weights) for weight in weights]
    sizes = [int(size) for size in exact]
    order = sorted(range(len(busy)), key=lambda at: (sizes[at] - exact[at], at))
    for at in order[: free - sum(sizes)]:
        sizes[at] += 1
    return [size + each for size in sizes]


def _within(window: int, wanted: Sequence[int], demands: Sequence[Demand]) -> list[int]:
    """What can be given at once of what is wanted: the place of a call in flight is free only when that has ended."""
    free, sizes = window - sum(max(one.window, one.in_flight) for one in demands), []
    for size, one in zip(wanted, demands, strict=True):
        more = max(0, min(size - one.window, free))
        free -= more
        sizes.append(min(size, one.window + more))
    return sizes
