"""What a run would do, as ``--dry-run`` tells it: for people, and for ``--json``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from llmdo.backends.usage import Usage
from llmdo.runners.exit_codes import EXIT_ANSWERED, EXIT_SOME_ERRORS
from llmdo.runners.showing.summary import dollars
from llmdo.storage.output.costs import NOTHING, Cost, total

# Duration of a call, where only the number of calls in flight limits a run. Seconds.
ASSUMED_CALL_S = 3.0


@dataclass(slots=True)
class ModelPlan:
    """What a run would ask of one model. ``output_tokens`` and ``cost`` are maxima.
    ``texts`` are those to embed.

    ``kept`` lines have an answer in the ledger, and cost nothing; ``used`` is what their calls did, ``foreseen`` how
    many tokens of input were foreseen for them, and ``likely`` the cost of the other lines if they are like these.

    ``seconds`` is the least that the limits allow, and ``limit`` names them; or it is ``assumed``.
    """

    lines: int = 0
    texts: int = 0
    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost: Cost = NOTHING
    kept: int = 0
    used: Usage = field(default_factory=Usage)
    foreseen: int = 0
    likely: float | None = None
    seconds: float = 0.0
    limit: str = ""
    assumed: bool = False


@dataclass(slots=True)
class Plan:
    """What a run over some files would do.

    Attributes:
        files: those that would be answered; ``files_done`` have a manifest already, and nothing is asked for them.
        broken: lines that would end as errors without a call; ``unreadable``: files that cannot be read to their end.
        problems: file, offset in bytes and a sentence for each of these, the first PROBLEMS_SHOWN.
        notes: what is worth knowing but breaks nothing.
        window: calls that are in flight at most.
    """

    window: int
    files: int = 0
    files_done: int = 0
    lines: int = 0
    blank: int = 0
    broken: int = 0
    unreadable: int = 0
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    models: dict[str, ModelPlan] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """0 if every line can be answered, else 3."""
        return EXIT_SOME_ERRORS if self.broken or self.unreadable else EXIT_ANSWERED

    @property
    def cost(self) -> Cost:
        """What all answers cost at most."""
        return total(model.cost for model in self.models.values())

    @property
    def likely(self) -> float | None:
        """What all answers cost if they are like those that the ledger has; None without one of each model."""
        known = [model.likely for model in self.models.values() if model.likely is not None]
        return sum(known) if known and len(known) == len(self.models) else None

    @property
    def seconds(self) -> float:
        """Duration of a run: each model has its own limits, and all share the calls in flight."""
        limited = max((model.seconds for model in self.models.values() if not model.assumed), default=0.0)
        return max(limited, assumed_s(sum(model.calls for model in self.models.values() if model.assumed), self.window))

    def as_json(self) -> dict[str, Any]:
        """For ``--json``; times in seconds, costs in US dollars."""
        return {
            "exit_code": self.exit_code,
            "files": self.files,
            "files_done": self.files_done,
            "files_unreadable": self.unreadable,
            "lines": self.lines,
            "blank": self.blank,
            "broken": self.broken,
            **_sums(self.models.values()),
            "cost_usd_at_most": self.cost.usd,
            "cost_usd_likely": self.likely,
            "cost_is_lower_bound": self.cost.unpriced > 0,
            "seconds": round(self.seconds, 1),
            "models": {
                name: {
                    "lines": model.lines,
                    **_sums([model]),
                    "cost_usd_at_most": model.cost.usd,
                    "cost_usd_likely": model.likely,
                    "seconds": round(model.seconds, 1),
                    "limited_by": model.limit,
                }
                for name, model in self.models.items()
            },
            "problems": self.problems,
            "notes": self.notes,
        }


def _sums(models: Any) -> dict[str, int]:
    models = list(models)
    return {
        "calls": sum(model.calls for model in models),
        "kept": sum(model.kept for model in models),
        "input_tokens": sum(model.input_tokens for model in models),
        "output_tokens_at_most": sum(model.output_tokens for model in models),
    }


def assumed_s(calls: int, window: int) -> float:
    """Duration of calls of which at most ``window`` run at once. Seconds."""
    return ASSUMED_CALL_S * -(-calls // window)


def show_plan(plan: Plan) -> RenderableType:
    """For people, in narrow lines: what each model is asked, then the totals, then what is wrong."""
    parts: list[RenderableType] = []
    for name, model in plan.models.items():
        parts.append(Text(name, "bold"))
        counts = f"{model.lines:,} lines, {model.calls:,} calls, {model.input_tokens:,} tokens in"
        parts.append(Padding(f"{counts}, at most {model.output_tokens:,} out; {_cost(model.cost)}", (0, 0, 0, 2)))
        if model.kept:
            parts.append(Padding(_kept(model), (0, 0, 0, 2)))
        parts.append(Padding(f"{_duration(model.seconds)} by {model.limit}", (0, 0, 0, 2)))
    said = f"{plan.files:,} files, {plan.lines:,} lines: {_cost(plan.cost)} at list prices, in about "
    parts.append(Text(f"{said}{_duration(plan.seconds)}. No call was made, and nothing was written."))
    if plan.files_done:
        parts.append(Text(f"{plan.files_done:,} files are done already, and were left out."))
    parts += [Text.assemble(("note: ", "yellow"), note) for note in plan.notes]
    parts += [Text.assemble(("wrong: ", "bold red"), problem) for problem in plan.problems]
    more = plan.broken + plan.unreadable - len(plan.problems)
    if more:
        parts.append(Text(f"and {more:,} more", "bold red"))
    return Group(*parts)


def _kept(model: ModelPlan) -> str:
    out = f"{model.used.output_tokens / model.kept:,.0f} tokens out each"
    said = f"{model.kept:,} answers are in the ledger, paid ({out})"
    if model.likely is None:
        return said
    return f"{said}: the others cost about {dollars(model.likely, lower_bound=False)} if they are like these"


def _cost(cost: Cost) -> str:
    """
    >>> _cost(Cost(0.5)), _cost(Cost(0.5, 3)), _cost(Cost(None, 3))
    ('at most $0.50', 'at most $0.50 and the cost of 3 lines without a known price', 'at an unknown price')
    """
    if cost.usd is None:
        return "at an unknown price"
    more = f" and the cost of {cost.unpriced:,} lines without a known price" if cost.unpriced else ""
    return f"at most {dollars(cost.usd, lower_bound=False)}{more}"


def _duration(seconds: float) -> str:
    """
    >>> _duration(0.2), _duration(75), _duration(90_061)
    ('1 s', '1 min 15 s', '25 h 1 min')
    """
    whole = max(1, round(seconds))
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    if hours:
        return f"{hours:,} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
