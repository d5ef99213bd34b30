"""What a budget counts of batches: what they have used, what is called in their place, and what is left in them."""

from __future__ import annotations

from typing import Protocol

from llmdo.backends.errors import ModelError
from llmdo.backends.lanes.batch import Batch, BatchMember
from llmdo.backends.requests import Request
from llmdo.backends.responses import Response


class SpendingCounted(Protocol):
    """See Budget."""

    def after(  # noqa: D102 - see there
        self, provider: str, request: Request, ended: Response | ModelError | None, *, late: bool = False
    ) -> None: ...
    def give_back(self, request: Request) -> None: ...  # noqa: D102
    def rescue(self, request: Request) -> None: ...  # noqa: D102
    def leave(self, provider: str, request: Request, batch: str) -> None: ...  # noqa: D102
    def fetched(self, provider: str, request: Request, batch: str) -> None: ...  # noqa: D102


class BatchCounts:
    """Counts in a budget, if there is one; ``rescues``: what a deadline costs is counted apart."""

    def __init__(self, budget: SpendingCounted | None, *, rescues: bool) -> None:
        self._budget, self._rescues = budget, rescues

    def spend(
        self, batch: Batch, member: BatchMember, result: Response | ModelError | None, *, late: bool = False
    ) -> None:
        """A member has its result; None: nobody knows what it has used."""
        if self._budget:
            self._budget.after(batch.provider, member.request, result, late=late)
        self.fetch(batch, member)

    def end(self, batch: Batch, member: BatchMember) -> None:
        """A member ends without an answer; one that this run has handed over may be billed nevertheless."""
        if batch.name and not batch.earlier:
            self.spend(batch, member, None)
        elif self._budget:
            self._budget.give_back(member.request)

    def fail(self, batch: Batch, member: BatchMember, error: ModelError | None = None) -> None:
        """The batch has no answer for a member; an error of one that this run has handed over may be billed."""
        if error and not batch.earlier:
            self.spend(batch, member, error)
        else:
            self.give_back(batch, member)

    def give_back(self, batch: Batch, member: BatchMember) -> None:
        """A member is in this batch no more, and costs nothing there."""
        if self._budget:
            self._budget.give_back(member.request)
        self.fetch(batch, member)

    def rescue(self, batch: Batch, member: BatchMember) -> None:
        """A member is called: because of the deadline, unless its batch has failed it."""
        if self._budget and self._rescues and batch.name and (batch.cancelled or member in batch.members):
            self._budget.rescue(member.request)

    def leave(self, batch: Batch, member: BatchMember) -> None:
        """A member stays in its batch, for a later run."""
        if self._budget and not batch.earlier:
            self._budget.leave(batch.provider, member.request, batch.reserve)

    def fetch(self, batch: Batch, member: BatchMember) -> None:
        """Nobody waits for a member any more that an earlier run has left."""
        if self._budget and batch.earlier:
            self._budget.fetched(batch.provider, member.request, batch.reserve)
