"""Which ledger keeps the answers of a run, and whose answers may be taken from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from llmdo.backends.engine.settings import Reuse
from llmdo.storage.ledger.ledger import NO_LEDGER
from llmdo.storage.ledger.opening import open_ledger

if TYPE_CHECKING:
    from llmdo.backends.engine.recall import Recall


@dataclass(frozen=True, slots=True)
class LedgerSettings:
    """Where answers are kept the moment they arrive (``open_ledger``), and whose answer may be taken."""

    ledger: str = NO_LEDGER
    reuse: Reuse | Literal["same-message"] = "same-line"

    def open(self) -> Recall | None:
        """Opens the ledger. Raises LedgerError."""
        from llmdo.backends.engine.recall import Recall  # noqa: PLC0415  options are read without the engine

        ledger = open_ledger(self.ledger)
        return None if ledger is None else Recall(ledger, self.reuse)
