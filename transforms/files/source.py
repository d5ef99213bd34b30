"""Where a run finds its files: what a queue announces, or a listing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llmdo.storage.output.manifests import FormatName


@dataclass(frozen=True, slots=True)
class Listing:
    """Objects below r2:// prefixes, and local files, folders and glob patterns.

    ``format``: the name of the files' format, whatever their endings; in folders only those with its endings are taken.
    """

    inputs: tuple[str, ...]
    format: FormatName | Literal[""] = ""


@dataclass(frozen=True, slots=True)
class Notifications:
    """Messages of a queue about objects below ``prefix`` whose names end as inputs do; ``format`` as in Listing."""

    queue_id: str
    prefix: str = ""
    poll_seconds: float = 0.5
    format: FormatName | Literal[""] = ""


Source = Notifications | Listing
