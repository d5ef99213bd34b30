"""Runs as a page shows them: how each went, its figures over time, and why its limits changed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from llmdo.runners.inspecting.report.charts import clock, rate, run_over_time
from llmdo.runners.inspecting.report.texts import visible
from llmdo.runners.showing.summary import dollars
from llmdo.runners.showing.words import lasting
from llmdo.storage.runs.histories import RunHistory

_DRAWN, _CHANGES, _LEAST = 10, 100, 3


@dataclass(frozen=True, slots=True)
class RunRow:
    """A run, for people; ``svg`` is "" where there is nothing to draw."""

    began: str
    what: str
    took: str
    answered: int
    failed: int
    calls: str
    refused: int
    held: str
    spent: str
    problem: str
    svg: Markup | str
    caption: str
    moments: list[list[str]]
    changes: list[dict[str, Any]]
    changes_note: str


def run_rows(histories: list[RunHistory], *, with_texts: bool) -> list[RunRow]:
    """The newest first; ``with_texts``: with services' words in why one stopped."""
    newest = histories[::-1]
    drawn = [one for one in newest if len(one.moments.at) >= _LEAST][:_DRAWN]
    return [_row(number, one, one in drawn, with_texts) for number, one in enumerate(newest)]


def _row(number: int, run: RunHistory, drawn: bool, with_texts: bool) -> RunRow:
    caption = "Calls and lines a second above, calls in flight and allowed at once below. Dotted lines: slowed down."
    if drawn and any(run.moments.batched):
        caption = caption.replace(" below.", " below, then requests in batches.")
    problem = run.problem or ""
    changes = [_change(run, model.model, change) for model in run.limits for change in model.changes]
    changes.sort(key=lambda one: one["seconds"])
    cost = run.spent.get("cost_usd")
    svg = Markup(run_over_time(run, "Figures over time", f"run{number}")) if drawn else ""  # noqa: S704  of numbers
    return RunRow(
        began=clock(run.started),
        what=visible(run.command)[:40] or "run",
        took=lasting(max(0.0, (run.ended - run.started).total_seconds())),
        answered=run.answered,
        failed=run.failed,
        calls=f"{sum(model.calls for model in run.limits) or int(run.spent.get('calls') or 0):,}",
        refused=sum(model.refused for model in run.limits),
        held=lasting(sum(model.throttled_s for model in run.limits)),
        spent=dollars(
            float(cost) if isinstance(cost, int | float) else None,
            lower_bound=bool(run.spent.get("cost_is_lower_bound")),
        ),
        problem=visible(problem)[:600] if with_texts else "it did" if problem else "",
        svg=svg,
        caption=caption,
        moments=_moments(run) if drawn else [],
        changes=changes[-_CHANGES:] if drawn else [],
        changes_note=f" (the last {_CHANGES} of {len(changes):,})" if len(changes) > _CHANGES else "",
    )


def _moments(run: RunHistory) -> list[list[str]]:
    moments = run.moments
    calls, lines = rate(moments.at, moments.calls), rate(moments.at, moments.lines)
    return [
        [
            f"{moments.at[i]:,.0f}",
            f"{calls[i - 1]:,.1f}",
            f"{lines[i - 1]:,.1f}",
            f"{moments.in_flight[i]:,}",
            f"{moments.window[i]:,}",
            f"{moments.batched[i]:,}",
            dollars(moments.cost_usd[i], lower_bound=False),
        ]
        for i in range(1, len(moments.at))
    ]


def _change(run: RunHistory, model: str, change: Any) -> dict[str, Any]:
    seconds = max(0.0, (change.at - run.started).total_seconds())
    return {
        "seconds": seconds,
        "after": lasting(seconds),
        "model": visible(model)[:200],
        "window": change.window,
        "per_s": "" if change.requests_per_s is None else f"{change.requests_per_s:.3g}",
        "pause": lasting(change.pause_s) if change.pause_s else "",
        "reason": visible(change.reason)[:200],
    }
