"""What may be spent, and what errors call the limits that their reader can change."""

from __future__ import annotations

from dataclasses import dataclass, field

from llmdo.backends.money.lease import PeriodBudget

_OPTIONS = {"prices": "--price-file"}  # the others are named like the arguments


@dataclass(frozen=True, slots=True)
class Naming:
    """Names limits as their reader set them: as arguments in Python, or as options of a command."""

    command: bool = False

    def of(self, argument: str, value: object = "") -> str:
        """``max_cost=2`` or ``--max-cost 2``; without a value the name alone."""
        if not self.command:
            return f"{argument}={value}"
        option = _OPTIONS.get(argument, f"--{argument.removesuffix('_s').replace('_', '-')}")
        return f"{option} {value}".rstrip()

    @property
    def again(self) -> str:
        """How what was stopped resumes."""
        return f"run the same {'command' if self.command else 'pipeline'} again"


@dataclass(frozen=True, slots=True)
class Limits:
    """What a run may spend: US dollars, and input and output tokens together. None: no limit.

    ``output``: what all runs of its output may spend together. ``naming``: how errors name all limits of calls.
    """

    max_cost_usd: float | None = None
    max_tokens: int | None = None
    output: PeriodBudget | None = None
    naming: Naming = field(default=Naming(), compare=False)

    @property
    def in_dollars(self) -> str:
        """The limit that needs prices, by its name, or ""."""
        if self.max_cost_usd is not None:
            return self.naming.of("max_cost")
        return "--budget" if self.output and self.output.usd is not None else ""

    @property
    def max_cost(self) -> str:
        """The limit of US dollars, by its name."""
        return self.naming.of("max_cost", f"{self.max_cost_usd:g}")

    @property
    def max_tokens_total(self) -> str:
        """The limit of tokens, by its name."""
        return self.naming.of("max_tokens_total", self.max_tokens)


NO_LIMITS = Limits()
