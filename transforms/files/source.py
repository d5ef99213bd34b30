"""Where a run finds its files: what a queue announces, or a listing."""

from __future__ import annotations

from dataclasses import dataclass

# In lower case; a file's ending may be in any.
SUFFIXES = tuple(name + packed for name in (".jsonl", ".ndjson", ".jsonlines") for packed in ("", ".gz", ".zst"))


@dataclass(frozen=True, slots=True)
class Listing:
    """Objects below r2:// prefixes, and local files, folders and glob patterns."""

    inputs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Notifications:
    """Messages of a queue about objects below ``prefix`` that end in one of SUFFIXES."""

    queue_id: str
    prefix: str = ""
    poll_seconds: float = 0.5


Source = Notifications | Listing
