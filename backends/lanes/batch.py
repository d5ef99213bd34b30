"""A batch of requests, before and after it is handed over."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field

from llmdo.backends.backend import BatchBackend
from llmdo.backends.errors import ModelError
from llmdo.backends.lanes.records import FILES_KEPT, BatchRecord
from llmdo.backends.lanes.windows import PROMISED_S, window_of
from llmdo.backends.requests import BatchPlace, LineId, Request
from llmdo.backends.responses import Response


class LeftBatch(Exception):
    """The request is in no batch any more, or in another one than was thought: look it up again."""


@dataclass(slots=True, eq=False)
class BatchMember:
    """A request in a batch. ``ended`` gets its answer or its error, or None where it is to be called by itself.

    ``key``: that of its answer in the ledger; ``generation``: how often it was handed over, and returned.
    """

    request: Request
    ended: asyncio.Future[Response | ModelError | None]
    place: BatchPlace | None = None
    key: str = ""
    generation: int = 0

    def end(self, ended: Response | ModelError | None) -> None:
        """Gives it its answer, unless its task was cancelled."""
        if not self.ended.done():
            self.ended.set_result(ended)

    def fail(self, error: Exception) -> None:
        """Lets it raise an error, unless its task was cancelled."""
        if not self.ended.done():
            self.ended.set_exception(error)


@dataclass(slots=True, eq=False)
class Batch:
    """Requests of one model that are handed over together; ``members`` are those that have not ended.

    Attributes:
        began, joined: when its first and its last member came, by the loop's clock.
        share: of the largest batch that the provider takes.
        nonce: of its submission, once its members are reserved; "" before, and of batches of old.
        name: the provider's, once it is handed over; "" before. That of an answer in the background: see lanes.windows.
        sent_at: when it was handed over, in Unix time.
        given_s: how long it is waited for; ``until``: until when, by the loop's clock.
        earlier: it was handed over by an earlier run, and others of its members may be elsewhere.
        cancelled_at: when the provider was asked to end it, by whichever run, in Unix time, and 0 if it was not.
        answered: the part of all its requests, also those of other runs, that the provider has reported as answered.
        seen_open: this run has seen it before it had ended.
        late: members that were called meanwhile: what the batch answers to them is spent, and no second answer.
    """

    provider: str
    model: str
    backend: BatchBackend
    began: float
    joined: float
    members: list[BatchMember] = field(default_factory=list)
    share: float = 0.0
    nonce: str = ""
    name: str = ""
    sent_at: float = 0.0
    given_s: float = float("inf")
    until: float = float("inf")
    earlier: bool = False
    cancelled_at: float = 0.0
    seen_open: bool = False
    answered: float = 0.0
    late: set[BatchMember] = field(default_factory=set)

    @property
    def reserve(self) -> str:
        """By which a budget knows it; that of all answers in the background is their window's."""
        return self.window or self.nonce or self.name

    @property
    def window(self) -> str:
        """Within which its one answer is made in the background; "" for a batch."""
        return window_of(self.name)

    @property
    def window_s(self) -> float:
        """Within how many seconds its answers are promised; 0: nothing is."""
        return PROMISED_S.get(self.window) or self.backend.batch_limits(self.model).window_s

    @property
    def cancelled(self) -> bool:
        """Whether the provider was asked to end it."""
        return self.cancelled_at > 0

    def measured(self, now: float) -> dict[str, float]:
        """How long it, or its cancel, took that has ended ``now``: see BatchRecord.

        {} for one that had ended before this run looked at it, nobody knows when; and for an answer in the background.
        """
        if self.window or (self.earlier and not self.seen_open):
            return {}
        return {"cancel_s": now - self.cancelled_at} if self.cancelled else {"queue_s": now - self.sent_at}

    def record(self, reserved_at: float, ledger: str, run: str) -> BatchRecord:
        """What others may know of it when it is about to be handed over."""
        ids = [member.request.request_id for member in self.members]
        files = Counter(line.place for line in ids if isinstance(line, LineId))
        return BatchRecord(
            *(self.nonce, self.provider, self.model, len(ids), reserved_at),
            files=dict(files.most_common(FILES_KEPT)),
            run=run,
            ledger=ledger,
        )
