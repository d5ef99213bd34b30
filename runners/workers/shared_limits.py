"""The run's window and rates, of which each worker has a part that follows what it has to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from llmdo.backends.limits.shares import Demand, Share, deal_shares, has_few_calls
from llmdo.runners.workers.worker_process import WorkerProcess

# A worker that makes no calls is not needed any more when it was dealt none this often in a row.
NEEDED_DEALS = 10


class SharedLimits:
    """Deals out calls in flight and rates among workers; the windows never add up to more than ``window``.

    Args:
        window: calls in flight at most, of all workers.
        parts: workers at most; until a share says otherwise, each keeps to the rates divided by this number.

    Attributes:
        few_calls: whether one worker is to make all calls, since they are few a second.
    """

    def __init__(self, window: int, parts: int) -> None:
        self._first = self._window = window
        self._parts = parts
        self.few_calls = False

    def resize(self, window: int | None) -> None:
        """Another window from now on, 0 for no calls at all, None for the first; a smaller one holds as calls end."""
        self._window = self._first if window is None else window

    def first(self, others: Sequence[WorkerProcess]) -> Share:
        """The share of a worker that is to start: an equal part, if the others leave as much."""
        free = self._window - sum(_most(worker) for worker in others)
        return Share(max(0, min(free, -(-self._window // self._parts))))

    def deal(self, workers: Sequence[WorkerProcess]) -> None:
        """Sends each worker its share, if it is another one than it has, and it is known to have that."""
        if not workers:
            self.few_calls = False
            return
        # Each keeps to one of ``parts`` of the rates by itself, of which fewer workers may have more.
        whole = self._parts / len(workers)
        demands = [_demand(worker, whole) for worker in workers]
        self.few_calls = has_few_calls(demands, before=self.few_calls)
        shares = deal_shares(self._window, demands)
        for worker, dealt in zip(workers, shares, strict=True):
            share = replace(dealt, part=dealt.part * whole)
            if share != worker.share and _may_change(worker, share):
                worker.share = share
                worker.channel.send(share)
            idle = self.few_calls and not worker.share.window and not _most(worker)
            worker.idle_deals = worker.idle_deals + 1 if idle else 0

    def needless(self, workers: Sequence[WorkerProcess]) -> list[WorkerProcess]:
        """Those that make no calls, for some time already, while another one makes all."""
        if not any(worker.takes_work and worker.share.window for worker in workers):
            return []
        return [worker for worker in workers if worker.takes_work and worker.idle_deals >= NEEDED_DEALS]


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
