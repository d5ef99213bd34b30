"""Where a run finds its files: what a queue announces, or a listing."""

from __future__ import annotations

from dataclasses import dataclass

from llmdo.transforms.files.listing import SUFFIXES, Listing


@dataclass(frozen=True, slots=True)
class Notifications:
    """Messages of a queue about objects below ``prefix`` that end in one of ``suffixes``."""

    queue_id: str
    prefix: str = ""
    suffixes: tuple[str, ...] = SUFFIXES
    poll_seconds: float = 0.5


Source = Notifications | Listing
