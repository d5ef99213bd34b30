"""What others may know of a run's batches: status, other machines, and whoever measures how long they take."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class BatchRecord:
    """One submission. Times are Unix times in seconds, and 0 as long as they are not known.

    Attributes:
        nonce: names it.
        provider, model: who answers.
        lines: how many requests it has.
        reserved_at: when its requests were reserved; from then on it may have been submitted.
        batch: the provider's name for it, "" until that is known.
        handed_over_at, expected_by: when it was submitted, and when the provider has promised its answers.
        cancelled_at: when the provider was asked to end it.
        ended_at: when its results were fetched, or when it was found never to have been submitted.
        answered: how many of its lines have answers from it.
        queue_s, cancel_s: how long it took until it ended, or from its cancel on; 0 where nobody looked meanwhile.
        unclear: why nobody can tell whether it was submitted, or, once it has ended, why its answers were not fetched;
            else "".
        files: lines by the place of their file; of the first FILES_KEPT only.
        run, ledger: who has submitted it, and where its requests are to be found.
    """

    nonce: str
    provider: str
    model: str
    lines: int
    reserved_at: float
    batch: str = ""
    handed_over_at: float = 0.0
    expected_by: float = 0.0
    ended_at: float = 0.0
    answered: int = 0
    unclear: str = ""
    files: Mapping[str, int] = field(default_factory=dict)
    run: str = ""
    ledger: str = ""
    queue_s: float = 0.0
    cancel_s: float = 0.0
    cancelled_at: float = 0.0


FILES_KEPT = 1000


class BatchRecords(Protocol):
    """Where the records of an output's batches are kept; a value, part of CallSettings. Its methods may block.

    Attributes:
        place: names it, and the record of a nonce is ``place`` + nonce + ".json".
        ledger: what a record names as the place of pointers.
    """

    @property
    def place(self) -> str: ...  # noqa: D102 - see above

    @property
    def ledger(self) -> str: ...  # noqa: D102

    def keep(self, record: BatchRecord) -> None:
        """Writes a record, in the place of an earlier one of the same submission. Raises StorageError."""

    def find(self, nonce: str) -> BatchRecord | None:
        """The record of a submission, if there is one. Raises StorageError."""

    def all(self) -> Iterable[BatchRecord]:
        """The records of all submissions, by any run. Raises StorageError."""

    def __hash__(self) -> int:
        """Goes with equality."""
