"""Draws static SVG for a page: text stays text, and colours are the page's, light or dark, or a printer's."""

from __future__ import annotations

import io
import math
import re
from bisect import bisect_left
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from html import escape
from itertools import pairwise
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

from llmdo.storage.runs.histories import RunHistory

# Colours that stand for the page's.
_INK, _FAINT, _SERIES = "#010203", "#040506", ("#0a0b01", "#0a0b02", "#0a0b03")
_BY_PAGE = {_INK: "currentColor", _FAINT: "var(--line)"} | {
    color: f"var(--series-{number})" for number, color in enumerate(_SERIES, 1)
}
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.size": 10.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _FAINT,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _INK),
}
_WIDTH = 7.6  # inches of 72 units
_BINS = 40
_FAR = 20.0  # times the least
_FONT = re.compile(r"font-family: [^;\"]*; ?")

Bin = tuple[float, float, int]


def bins(values: Sequence[float]) -> list[Bin]:
    """Counts in ranges [from, to): of the same width, or, for values far apart, growing by a factor.

    Whole numbers are in ranges between whole numbers, so that none is in the gap between two others.
    """
    known = sorted(value for value in values if value > 0)
    zeros = len(values) - len(known)
    found: list[Bin] = [(0.0, 0.0, zeros)] if zeros else []
    if not known:
        return found
    edges = _edges(known[0], known[-1], whole=all(value == int(value) for value in known))
    at = [bisect_left(known, edge) for edge in edges]
    counts = [after - before for before, after in pairwise(at)]
    return found + [(low, high, count) for (low, high), count in zip(pairwise(edges), counts, strict=True)]


def _edges(first: float, last: float, *, whole: bool) -> list[float]:
    end = last + 1 if whole else last * 1.001
    if is_narrow(first, last):
        step = max(1.0, math.ceil((end - first) / _BINS)) if whole else (end - first) / _BINS
        return [first + step * number for number in range(math.ceil(round((end - first) / step, 6)) + 1)]
    edges = [first * (end / first) ** (number / _BINS) for number in range(_BINS)] + [end]
    return sorted({float(round(edge)) for edge in edges}) if whole else edges


def is_narrow(first: float, last: float) -> bool:
    """Whether values are close enough to each other for an axis with equal steps."""
    return last < _FAR * first


def histogram(values: Sequence[float], unit: str, title: str, name: str) -> str:
    """How many values are in which range; those of 0 are not drawn."""

    def draw(axes: Axes) -> None:
        found = [one for one in bins(values) if one[1]]  # not those of 0
        axes.bar(
            [low for low, _, _ in found],
            [count for *_, count in found],
            width=[high - low for low, high, _ in found],
            align="edge",
            color=_SERIES[0],
            linewidth=0,
        )
        first, last = found[0][0], found[-1][1]
        if not is_narrow(first, last):
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.set_xlabel(unit)
        axes.set_ylabel("answers")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
        axes.xaxis.set_minor_formatter(FuncFormatter(lambda *_: ""))
        axes.grid(visible=False, axis="x")

    return _svg([draw], name, title, 2.4)


def run_over_time(history: RunHistory, title: str, name: str) -> str:
    """Rates, window, and batches if there were any, from a run's begin to its end."""
    moments = history.moments
    at = [seconds / _unit(moments.at)[0] for seconds in moments.at]

    def rates(axes: Axes) -> None:
        axes.plot(at[1:], rate(moments.at, moments.calls), color=_SERIES[0], label="calls/s")
        axes.plot(at[1:], rate(moments.at, moments.lines), color=_SERIES[1], linestyle="--", label="lines/s")

    def window(axes: Axes) -> None:
        axes.plot(at, moments.window, color=_SERIES[0], drawstyle="steps-post", label="calls allowed at once")
        axes.plot(at, moments.in_flight, color=_SERIES[1], linestyle="--", label="calls in flight")

    def batched(axes: Axes) -> None:
        axes.plot(at, moments.batched, color=_SERIES[2], drawstyle="steps-post", label="requests in batches")

    def finished(draw: Callable[[Axes], None]) -> Callable[[Axes], None]:
        def both(axes: Axes) -> None:
            draw(axes)
            for seconds in slowed(history):
                axes.axvline(seconds / _unit(moments.at)[0], color=_INK, linewidth=0.8, linestyle=":")
            axes.set_ylim(bottom=0)
            axes.yaxis.set_major_locator(MaxNLocator(5))
            axes.legend(loc="lower right", fontsize=9, bbox_to_anchor=(1.0, 1.0), ncols=2, borderaxespad=0.2)

        return both

    drawn = [finished(rates), finished(window), *([finished(batched)] if any(moments.batched) else [])]
    return _svg(drawn, name, title, 1.7, xlabel=f"{_unit(moments.at)[1]} since {history.started:%Y-%m-%d %H:%M:%S} UTC")


def rate(at: Sequence[float], counts: Sequence[float]) -> list[float]:
    """By the second, between each moment and the one before."""
    pairs = zip(pairwise(at), pairwise(counts), strict=True)
    return [max(0.0, after - before) / max(now - then, 1e-3) for (then, now), (before, after) in pairs]


def slowed(history: RunHistory) -> list[float]:
    """When a run was slowed down, in seconds since its begin."""
    last = history.moments.at[-1] if history.moments.at else 0.0
    changes = (change for model in history.limits for change in model.changes if change.pause_s > 0)
    since = sorted((change.at - history.started).total_seconds() for change in changes)
    return [seconds for seconds in since if 0 <= seconds <= last]


def _unit(at: Sequence[float]) -> tuple[float, str]:
    last = at[-1] if at else 0.0
    return (
        (86_400.0, "days")
        if last > 3 * 86_400
        else (3_600.0, "hours")
        if last > 3 * 3_600
        else ((60.0, "minutes") if last > 180 else (1.0, "seconds"))
    )


def _svg(draws: Sequence[Callable[[Axes], None]], name: str, title: str, height: float, xlabel: str = "") -> str:
    """One picture with as many axes, whose ids begin with ``name``."""
    style: dict[Any, Any] = {**_STYLE, "svg.hashsalt": name}
    with mpl.rc_context(style):
        drawing = Drawing(figsize=(_WIDTH, height * len(draws) + 0.4), layout="constrained")
        axes = drawing.subplots(len(draws), 1, sharex=True, squeeze=False)[:, 0]
        for one, draw in zip(axes, draws, strict=True):
            draw(one)
        if xlabel:
            axes[-1].set_xlabel(xlabel)
        written = io.StringIO()
        drawing.savefig(
            written, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
        )
    return _for_the_page(written.getvalue(), name, title)


def _for_the_page(svg: str, name: str, title: str) -> str:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="patch_1">.*?</g>', "", svg, count=1, flags=re.DOTALL)  # the background
    svg = re.sub(r' id="', f' id="{name}-', svg)
    svg = re.sub(r'((?:xlink:)?href="|url\()#', rf"\1#{name}-", svg)
    svg = _FONT.sub("", svg)  # the page's
    for color, ours in _BY_PAGE.items():
        svg = svg.replace(color, ours)
    head = f'<svg role="img" aria-label="{escape(title)}" viewBox="'
    return re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', lambda found: f'{head}{found[1]}">', svg, count=1)


def _short(value: float) -> str:
    """A number on an axis."""
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def clock(at: datetime) -> str:
    """A time for people, in UTC."""
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S}"
