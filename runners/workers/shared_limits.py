"""The run's window and rates, of which each worker has a part that follows what it has to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from llmdo.backends.limits.shares import Demand, Share, deal_shares
from llmdo.runners.workers.worker_process import WorkerProcess


class SharedLimits:
    """Deals out calls in flight and rates among workers; the windows never add up to more than ``window``.

    Args:
        window: calls in flight at most, of all workers.
        parts: workers at most; until a share says otherwise, each keeps to the rates divided by this number.
    """

    def __init__(self, window: int, parts: int) -> None:
        self._window, self._parts = window, parts

    def first(self, others: Sequence[WorkerProcess]) -> Share:
        """The share of a worker that is to start: an equal part, if the others leave as much."""
        free = self._window - sum(_most(worker) for worker in others)
        return Share(max(0, min(free, -(-self._window // self._parts))))

    def deal(self, workers: Sequence[WorkerProcess]) -> None:
        """Sends each worker its share, if it is another one than it has, and it is known to have that."""
        if not workers:
            return
        # Each keeps to one of ``parts`` of the rates by itself, of which fewer workers may have more.
        whole = self._parts / len(workers)
        shares = deal_shares(self._window, [_demand(worker, whole) for worker in workers])
        for worker, dealt in zip(workers, shares, strict=True):
            share = replace(dealt, part=dealt.part * whole)
            if share != worker.share and _may_change(worker, share):
                worker.share = share
                worker.channel.send(share)


def _demand(worker: WorkerProcess, whole: float) -> Demand:
    demand = worker.report.demand if worker.report else None
    if demand is None:  # it starts, and will have as much to do as it may
        return Demand(worker.share.window, 0, max(1, worker.share.window))
    allowed = {model: per_s and per_s * whole for model, per_s in demand.allowed.items()}
    return replace(demand, window=_most(worker), allowed=allowed)


def _most(worker: WorkerProcess) -> int:
    """Calls that it may have in flight, by what it reported or was sent since."""
    demand = worker.report.demand if worker.report else None
    return worker.share.window if demand is None else max(demand.window, demand.in_flight, worker.share.window)


def _may_change(worker: WorkerProcess, share: Share) -> bool:
    """Not while it may still use more than the share that was sent last: ``_most`` would not know of that."""
    demand = worker.report.demand if worker.report else None
    return share.window > worker.share.window if demand is None else demand.window == worker.share.window
