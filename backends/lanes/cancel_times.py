"""How long a cancelled batch takes until what it has answered is there."""

from __future__ import annotations

from collections.abc import Sequence

# Before any was measured. OpenAI: "up to 10 minutes"; Anthropic publishes none.
CAUTIOUS_S = 600.0
# One measured cancel counts fourfold, three twofold, ten 1.3-fold.
_CARE = 3.0
_MOST_MEASURED = 50  # the newest


def longest_cancel(settled: Sequence[float], waiting: Sequence[float] = ()) -> float:
    """Seconds that a cancel is expected to take at most.

    A wrong guess costs money, and no time: calls start when they must, whether the cancel has settled or not.

    Args:
        settled: what the cancels of this output took.
        waiting: for how long others have not settled.

    >>> longest_cancel([]), longest_cancel([20.0]), longest_cancel([20.0] * 30), longest_cancel([20.0], [700.0])
    (600.0, 80.0, 22.0, 700.0)
    """
    still = max(waiting, default=0.0)
    if not settled:
        return max(CAUTIOUS_S, still)
    longest = max(settled[-_MOST_MEASURED:])
    return max(still, longest, min(CAUTIOUS_S, longest * (1 + _CARE / len(settled))))
