"""Which requests go into batches, and how long their answers are waited for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# sync: a call for each request. batch: every request whose model takes batches is handed over. auto: where there are
# many.
Mode = Literal["auto", "sync", "batch"]
# At Workers AI's 300 calls a minute of text generation they take 100 s, and a batch, whatever its size, up to five
# minutes; but batches are answered side by side, and use up none of that rate.
AUTO_LEAST = 500
# A batch is waited for a little longer than the provider gives it: the provider ends it, and knows what was answered.
_LATE = 1.05


@dataclass(frozen=True, slots=True)
class LaneChoice:
    """Decides for each group of requests, and for each batch.

    Attributes:
        mode: see Mode.
        deadline_s: seconds that a batch has where its provider promises nothing, and at least.
        detached: nobody waits for batches: their requests are left to a later run.
    """

    mode: Mode
    deadline_s: float
    detached: bool = False

    def hands_over(self, requests: int) -> bool:
        """Whether a group of this size is handed over, instead of being called one by one."""
        return self.mode == "batch" or (self.mode == "auto" and requests >= AUTO_LEAST)

    def expected_by(self, window_s: float, handed_over_at: float) -> float:
        """When answers are due that were promised within ``window_s`` seconds; times are Unix times."""
        return handed_over_at + (window_s or self.deadline_s)

    def waits_until(self, window_s: float, handed_over_at: float) -> float:
        """When to wait no longer for a batch, and to call for what is left."""
        return handed_over_at + max(self.deadline_s, _LATE * window_s)
