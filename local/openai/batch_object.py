"""One batch, with the faults that have struck it, and what its metadata may be."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from llmdo.local.faults import Strike
from llmdo.local.openai.files import StoredFile
from llmdo.local.wire import OpenAIRefused

WINDOWS_S = {"24h": 86_400}
_SHARES = {"expire": 0.5, "cancel": 0.5, "fail": 0.0, "hold": 0.5}  # of the faults that have none


@dataclass(slots=True)
class OpenAIBatch:
    """One batch. ``times`` has the seconds of each state; ``tokens`` are enqueued until it ends."""

    id: str
    endpoint: str
    file: StoredFile
    window: str
    created_at: int
    metadata: dict[str, str] | None
    kept_s: int | None
    strikes: list[Strike]
    status: str = "validating"
    times: dict[str, int] = field(default_factory=dict)
    errors: list[dict[str, Any]] = field(default_factory=list)
    model: str | None = None
    tokens: int = 0
    counts: dict[str, int] = field(default_factory=lambda: {"total": 0, "completed": 0, "failed": 0})
    usage: dict[str, int] = field(default_factory=lambda: {"input_tokens": 0, "output_tokens": 0})
    output: str | None = None
    error: str | None = None
    cancelled: bool = False

    @property
    def expires_at(self) -> int:
        """Seconds since 1970."""
        return self.created_at + WINDOWS_S[self.window]

    def of(self, kind: str) -> list[Strike]:
        """The faults of a kind that have struck it."""
        return [one for one in self.strikes if one.fault.batch == kind]

    def share(self, strike: Strike) -> int:
        """After how many lines a fault has its effect."""
        share = strike.fault.share
        return int((_SHARES[str(strike.fault.batch)] if share is None else share) * self.counts["total"])

    def as_json(self) -> dict[str, Any]:
        """The ``batch`` object."""
        names = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")
        details = {"input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0}}
        return {
            "id": self.id,
            "object": "batch",
            "endpoint": self.endpoint,
            "model": self.model,
            "errors": {"object": "list", "data": self.errors} if self.errors else None,
            "input_file_id": self.file.id,
            "completion_window": self.window,
            "status": self.status,
            "output_file_id": self.output,
            "error_file_id": self.error,
            "created_at": self.created_at,
            **{f"{name}_at": self.times.get(name) for name in names},
            "expires_at": self.expires_at,
            "request_counts": self.counts,
            "usage": {**self.usage, "total_tokens": sum(self.usage.values()), **details},
            "metadata": self.metadata,
        }


def checked_metadata(given: object) -> dict[str, str] | None:
    """The metadata of a batch, or of a response. Raises OpenAIRefused."""
    if given is None:
        return None
    if not isinstance(given, dict) or len(given) > 16:
        raise OpenAIRefused(400, "'metadata' must be an object of at most 16 pairs.", "invalid_value", "metadata")
    for name, value in given.items():
        if len(name) > 64 or not isinstance(value, str) or len(value) > 512:
            message = f"'metadata.{name[:64]}': keys have at most 64 characters, values are strings of at most 512."
            raise OpenAIRefused(400, message, "invalid_value", "metadata")
    return given
