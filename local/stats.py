"""Counts calls and paid answers, so that a test or a benchmark can distinguish repeated calls from first ones."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def prompt_hash(text: str) -> str:
    """SHA-256 (hex) of a prompt: ``prompt``, the user's messages joined by newlines, or one text to embed."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class Stats:
    """Counts since the start, or since the last reset.

    A paid call is one that the model answered, even if its reply was then dropped or cut.
    An embedding call counts as one paid call, and once for each of its texts.
    Each answered line of a batch counts as a call.
    """

    def __init__(self) -> None:
        self.in_flight = 0
        self.reset()

    def reset(self) -> None:
        """Forgets everything except the calls in flight."""
        self.calls: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.paid_calls = 0
        self.paid_prompts: Counter[str] = Counter()
        self.paid_lines: Counter[str] = Counter()
        self.batches: Counter[str] = Counter()
        self.operations: Counter[str] = Counter()
        self.max_in_flight = self.in_flight

    def called(self, target: str, outcome: str) -> None:
        """Counts one call; the outcome is a status, or the ending that a fault caused."""
        self.calls[target][outcome] += 1

    def operation(self, name: str) -> None:
        """Counts one operation of R2, by the name that Cloudflare bills it under."""
        self.operations[name] += 1

    def paid(self, prompts: list[str], line: str | None) -> None:
        """Counts one call that the model answered."""
        self.paid_calls += 1
        self.paid_prompts.update(map(prompt_hash, prompts))
        if line:
            self.paid_lines[line] += 1

    def batch(self, what: str) -> None:
        """Counts a use of a batch API: ``submitted``, a batch that was accepted, or ``polled``."""
        self.batches[what] += 1

    @contextmanager
    def flight(self) -> Iterator[None]:
        """Counts an AI call as being in flight."""
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        try:
            yield
        finally:
            self.in_flight -= 1

    def as_json(self) -> dict[str, Any]:
        """What GET /_stats answers: calls by service and status (or ``drop``, ``truncate``), those to R2 also by
        operation, what was paid, batches.
        """
        calls = {
            t: {"calls": self.calls[t].total(), "by_status": dict(self.calls[t])}
            for t in ("ai", "anthropic", "openai", "queue", "r2")
        }
        return {
            **calls,
            "r2": {**calls["r2"], "by_operation": dict(self.operations)},
            "ai": {**calls["ai"], "in_flight": self.in_flight, "max_in_flight": self.max_in_flight},
            "paid": {
                "calls": self.paid_calls,
                "by_prompt": dict(self.paid_prompts),
                "by_line": dict(self.paid_lines),
            },
            "batches": {what: self.batches[what] for what in ("submitted", "polled")},
        }
