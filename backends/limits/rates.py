"""Requests and tokens a minute: how many a caller may send, and when the next call may start."""

from __future__ import annotations

from dataclasses import dataclass

from llmdo.backends.limits.sizes import answer_limit, likely_tokens
from llmdo.backends.requests import ChatRequest, Request
from llmdo.backends.usage import Usage

# How far calls may run ahead of an even spacing, in seconds: what a busy event loop has missed is made up for.
SLACK_S = 0.05
MODEST_OUTPUT = 256  # tokens expected of an answer while none was measured and the request sets no limit


@dataclass(frozen=True, slots=True)
class Rates:
    """Requests and tokens (input and output together) a minute; None if unknown, infinite for no limit."""

    rpm: float | None = None
    tpm: float | None = None

    def or_else(self, other: Rates) -> Rates:
        """These, and the other's where these are None."""
        return Rates(other.rpm if self.rpm is None else self.rpm, other.tpm if self.tpm is None else self.tpm)

    @property
    def per_s(self) -> float | None:
        """Requests a second."""
        return self.rpm and self.rpm / 60

    def shared_by(self, workers: float) -> Rates:
        """The share of one of several processes that call at the same time."""
        return Rates(self.rpm and self.rpm / workers, self.tpm and self.tpm / workers)


NO_RATES = Rates()


class Meter:
    """Spaces amounts evenly: what exceeds the rate is paid for by the time until the next start.

    The generic cell rate algorithm (ITU-T I.371) in seconds of the caller's clock. A single amount may be larger than
    a second's worth, so a long prompt waits for nothing but its turn.
    """

    __slots__ = ("due", "per_s")

    def __init__(self, per_s: float) -> None:
        self.per_s = per_s
        self.due = float("-inf")

    @property
    def opens_at(self) -> float:
        """From when on the next call may start."""
        return self.due - SLACK_S

    def spend(self, amount: float, now: float) -> None:
        """Takes note of a start."""
        self.due = max(self.due, now) + amount / self.per_s

    def correct(self, amount: float) -> None:
        """Adds to what was spent before, or gives back."""
        self.due += amount / self.per_s


class Tokens:
    """Guesses what a call will use, by what calls really used so far."""

    __slots__ = ("_calls", "_guessed", "_input", "_output")

    def __init__(self) -> None:
        self._calls = self._input = self._output = 0
        self._guessed = 0.0

    def estimate(self, request: Request) -> float:
        """Tokens of input and output that a call may use."""
        a_guess = self._input / self._guessed if self._guessed else 1.0
        return likely_tokens(request) * a_guess + self._answer(request)

    @property
    def mean(self) -> float | None:
        """Tokens of a call, in the mean; None before any."""
        return (self._input + self._output) / self._calls if self._calls else None

    def measured(self, request: Request, usage: Usage) -> None:
        """Takes note of what a call used."""
        self._calls += 1
        self._guessed += likely_tokens(request)
        self._input += usage.input_tokens
        self._output += usage.output_tokens

    def _answer(self, request: Request) -> float:
        measured = self._output / self._calls if self._calls else None
        unknown = MODEST_OUTPUT if isinstance(request, ChatRequest) else 0.0
        return min((known for known in (answer_limit(request), measured) if known is not None), default=unknown)
