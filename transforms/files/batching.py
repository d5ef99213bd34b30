"""How big shards get."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Batching:
    """A shard is written when it has ``size`` lines, or ``seconds`` after its first line came, or with the last line of
    its file.
    """

    size: int = 100
    seconds: float = 60.0


DEFAULT_BATCHING = Batching()
