"""Settings of a run's ledger of paid answers."""

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
    """Which ledger stores answers as soon as they arrive (see ``open_ledger``), and which of its answers are reused."""

    ledger: str = NO_LEDGER
    reuse: Reuse | Literal["same-message"] = "same-line"

    def open(self) -> Recall | None:
        """Opens the ledger. Raises LedgerError."""
        from llmdo.backends.engine.recall import Recall  # noqa: PLC0415  options must load without the engine

        ledger = open_ledger(self.ledger)
        return None if ledger is None else Recall(ledger, self.reuse)
