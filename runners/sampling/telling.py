"""Tells what a sample showed: for people, and for ``--json``."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from llmdo.runners.sampling.intervals import Range
from llmdo.runners.sampling.sampling import Sampled, SampledLine
from llmdo.runners.showing.summary import dollars, spent_json
from llmdo.runners.showing.words import counted, lasting

_CHARACTERS = 160  # of an example's answer
_PROBLEMS = 5  # files that are named


def sample_json(sample: Sampled) -> dict[str, Any]:
    """Costs in US dollars, times in seconds; sums over all lines without an outcome, those of the sample included."""
    drawn, cost, to_pay = sample.drawn, sample.cost_usd, sample.to_pay_usd
    return {
        "lines": len(sample.lines),
        "lines_in_all": round(drawn.count),
        "lines_are_estimated": drawn.error > 0,
        "lines_broken": round(drawn.broken),
        "files": drawn.files,
        "files_done": drawn.files_done,
        "files_unreadable": len(drawn.unreadable),
        "spent": spent_json(sample.spent),
        "from_ledger": sum(not line.paid for line in sample.lines if line.model),
        "cost_usd": None if cost is None else _range_json(cost),
        "to_pay_usd": None if to_pay is None else _range_json(to_pay),
        "input_tokens": _range_json(sample.input_tokens, 0),
        "output_tokens": _range_json(sample.output_tokens, 0),
        "seconds": None if sample.lane else _range_json(sample.seconds, 1),
        "lane": sample.lane or None,
        "outcomes": dict(sample.outcomes),
        "examples": [{"id": one.id, "outcome": one.outcome, "said": _short(one)} for one in sample.examples],
    }


def _range_json(one: Range, digits: int = 12) -> dict[str, float]:
    return {name: round(getattr(one, name), digits) for name in ("estimate", "low", "high")}


def show_sample(sample: Sampled) -> RenderableType:
    """What was answered, how it ended, and what all lines will take."""
    drawn, cost = sample.drawn, sample.cost_usd
    about = "about " if drawn.error else ""
    said = f"{len(sample.lines):,} of {about}{counted(round(drawn.count), 'line')} sampled"
    kept = sum(not line.paid for line in sample.lines if line.model)
    parts: list[RenderableType] = [
        Text(f"{said}: {_paid(sample)}" + (f", {counted(kept, 'answer')} from the ledger" if kept else ""))
    ]
    parts.append(Text(", ".join(f"{count:,} {outcome}" for outcome, count in sample.outcomes.items())))
    for one in sample.examples:
        parts.append(Text.assemble((one.id, "bold"), f" ({one.outcome}) {_short(one)}"))
    parts.append(Text("For all of them, with 95 % intervals, the sample included:"))
    usd = "at an unknown price" if cost is None else _between(cost, lambda value: dollars(value, lower_bound=False))
    tokens = [_between(one, lambda value: f"{value:,.0f}") for one in (sample.input_tokens, sample.output_tokens)]
    rows = [f"cost    {usd}", f"tokens  {tokens[0]} in", f"        {tokens[1]} out"]
    left = f"the {counted(sample.left, 'line')} that are left"
    batches = sample.lane == "batch"
    rows[0] += f", with {left} {'by batches' if batches else f'within {sample.lane}'}" if sample.lane else ""
    time = "what batches take" if batches else f"up to {sample.lane}" if sample.lane else ""
    rows.append(f"time    {time or _between(sample.seconds, lasting)} for {left}")
    parts += [Padding(Text(row), (0, 0, 0, 2)) for row in rows]
    if drawn.broken:
        parts.append(Text(f"{about}{counted(round(drawn.broken), 'line')} more cannot be read: --dry-run names them"))
    parts += [Text.assemble(("wrong: ", "bold red"), problem) for problem in drawn.unreadable[:_PROBLEMS]]
    return Group(*parts)


def _paid(sample: Sampled) -> str:
    spent = sample.spent
    return f"{dollars(spent.cost_usd, lower_bound=spent.unpriced > 0)} spent"


def _between(one: Range, text: Any) -> str:
    """
    >>> _between(Range(10, 8, 13), str), _between(Range(10, 10, 10), str)
    ('10 (8 to 13)', '10')
    """
    if one.low == one.high:
        return str(text(one.estimate))
    return f"{text(one.estimate)} ({text(one.low)} to {text(one.high)})"


def _short(one: SampledLine) -> str:
    text = " ".join(one.said.split())
    return text if len(text) <= _CHARACTERS else text[: _CHARACTERS - 1] + "…"
