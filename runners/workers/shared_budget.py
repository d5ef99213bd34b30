"""The run's budget, of which each worker is granted parts."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from itertools import count

from llmdo.backends.money.grants import Ask, FromPurse, ToPurse
from llmdo.backends.money.money import Budget
from llmdo.backends.money.purse import Purse, used_of
from llmdo.backends.money.spent import Spent
from llmdo.runners.workers.worker_process import WorkerProcess


class SharedBudget:
    """Answers what workers ask of the run's purse. Thread-safe.

    Args:
        budget: the run's limits, and what was spent of them before; what workers spend is added to it as they end.
    """

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._purse = Purse(budget.limits)
        self._numbers, self._next = dict[WorkerProcess, int](), count()
        self._workers: dict[int, WorkerProcess] = {}
        self._lock = threading.Lock()
        before = used_of(budget.spent(), budget.limits)
        number = next(self._next)
        self._purse.join(number)
        self._purse.receive(number, Ask(before, before, waiting=False))
        self._purse.leave(number, budget.spent(), died=False)

    def join(self, worker: WorkerProcess) -> None:
        """A worker has started."""
        with self._lock:
            number = self._numbers[worker] = next(self._next)
            self._workers[number] = worker
            self._purse.join(number)

    def receive(self, worker: WorkerProcess, message: ToPurse) -> None:
        """Takes what a worker asks for or returns."""
        with self._lock:
            if worker in self._numbers:
                self._send(self._purse.receive(self._numbers[worker], message))

    def leave(self, worker: WorkerProcess, spent: Spent, *, died: bool) -> None:
        """A worker has ended. If it died, what it was granted and did not report as spent may be spent, too."""
        with self._lock:
            number = self._numbers.pop(worker)
            del self._workers[number]
            self._send(self._purse.leave(number, spent, died=died))
        self._budget.add(spent)

    def _send(self, messages: Iterable[tuple[int, FromPurse]]) -> None:
        for number, message in messages:
            self._workers[number].channel.send(message)
