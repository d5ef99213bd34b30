"""Puts findings into the page: one HTML file that needs nothing else and may load nothing."""

from __future__ import annotations

import base64
import hashlib
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any

from jinja2 import BaseLoader, Environment, StrictUndefined
from markupsafe import Markup

from llmdo import __version__
from llmdo.runners.inspecting.report.charts import bins, clock, histogram
from llmdo.runners.inspecting.report.collecting import Findings, files_by_cost
from llmdo.runners.inspecting.report.run_rows import run_rows
from llmdo.runners.inspecting.report.tally import ModelTally
from llmdo.runners.inspecting.report.texts import part, visible
from llmdo.runners.showing.summary import dollars, lane_text
from llmdo.runners.showing.words import counted
from llmdo.storage.output.costs import Cost
from llmdo.storage.output.receipts import FileReceipt

_FILES, _ROWS = 100, 60


@dataclass(frozen=True, slots=True)
class Chart:
    """A distribution, drawn, and as numbers."""

    svg: Markup
    caption: str
    bins: list[tuple[str, str, int]]


@dataclass(frozen=True, slots=True)
class Distribution:
    """A chart of all answers, and percentiles of each model."""

    chart: Chart
    rows: list[tuple[str, list[str]]]


def page(found: Findings, made: datetime, *, with_texts: bool) -> str:
    """The whole report; without texts nothing of what users or models wrote."""
    script, css = _part("page.js"), _part("page.css")
    environment = Environment(loader=BaseLoader(), autoescape=True, undefined=StrictUndefined, trim_blocks=False)
    environment.filters |= {"n": _n, "clock": clock, "cost": _cost, "visible": visible}
    shown = _sections(found, with_texts)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.from_string(_part("page.html")).render(
        found=found,
        made=made.astimezone(UTC),
        version=__version__,
        css=Markup(css),  # noqa: S704  our own file
        script=Markup(script),  # noqa: S704  likewise
        policy=f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'; "
        "form-action 'none'",
        with_texts=with_texts,
        **shown,
        sections=[(name, title) for name, title in _TITLES.items() if name in _ALWAYS or shown[name]],
    )


_ALWAYS = ("summary", "models", "files")
_TITLES = {
    "summary": "Outcome and cost",
    "lanes": "By lane",
    "models": "By model",
    "files": "By file",
    "latency": "Latency",
    "tokens": "Tokens",
    "runs": "Runs",
    "errors": "Errors",
    "samples": "Answers and errors",
}


def _sections(found: Findings, with_texts: bool) -> dict[str, Any]:
    tally, samples = found.tally, found.samples if with_texts else []
    models = sorted(tally.models.items(), key=lambda one: -one[1].answers)
    named = [(name, model.latencies) for name, model in models]
    latencies = [value for _, values in named for value in values]
    part_read = _part_read(tally.answers, found.answered)
    files_shown, receipt = list(files_by_cost(found.files))[:_FILES], found.receipt
    return {
        "scope": _scope(found),
        "figures": list(_figures(found)),
        "configuration": _configuration(found.decisive) if with_texts else _model_alone(found.decisive),
        "lanes": [] if receipt is None else list(_lane_rows(receipt)),
        "lanes_caption": "" if receipt is None else _lanes_caption(receipt),
        "models": [_model_row(name, model, found.answered / max(1, tally.answers)) for name, model in models],
        "estimated": tally.answers < found.answered,
        "models_caption": f"{_upper(part_read)}; the sums are of what was read",
        "files": files_shown,
        "files_caption": f"{len(files_shown):,} of {counted(len(found.files), 'file')}, the dearest first",
        "latency": _distribution(latencies, named, "milliseconds", "latency", f"Latency of {part_read}"),
        "tokens": [
            one
            for one in (
                _token_distribution(models, "inputs", f"Input tokens of {part_read}"),
                _token_distribution(models, "outputs", f"Output tokens of {part_read}"),
            )
            if one
        ],
        "runs": run_rows(found.histories, with_texts=with_texts),
        "errors": _error_rows(found),
        "errors_caption": _upper(_part_read(tally.error_lines, found.failed, "error line")),
        "retry": _retry(found),
        "samples": samples,
        "samples_note": f"Drawn at random, each answer as likely as any other, from {part_read}"
        + (f", and from {counted(tally.error_lines, 'error line')}." if tally.error_lines else "."),
        "sample_models": sorted({one.model for one in samples if one.model}),
        "sample_files": sorted({one.place.name for one in samples}),
    }


def _scope(found: Findings) -> str:
    said = f"{counted(found.answered + found.failed, 'line')} of {counted(len(found.files), 'file')}"
    if len(found.files) < found.files_done:
        said += f", the newest of {found.files_done:,}"
    read = found.tally.answers + found.tally.error_lines
    if read < found.answered + found.failed:
        return f"{said}. Counts and costs are of all of them; what needs the lines is from a random sample of {read:,}."
    return f"{said}, all of them read."


def _part_read(read: int, there: int, thing: str = "answer") -> str:
    if read < there:
        return f"a random sample of {read:,} of {counted(there, thing)}"
    return f"all {counted(read, thing)}" if read != 1 else f"1 {thing}"


def _upper(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]


def _figures(found: Findings) -> Iterable[tuple[str, str, str]]:
    lines, cost = found.answered + found.failed, found.cost
    tokens = [sum(getattr(file, name) for file in found.files) for name in ("input_tokens", "output_tokens")]
    yield "files done", f"{found.files_done:,}", f"{len(found.in_work):,} in work" if found.in_work else ""
    if found.dead:
        yield "dead letters", f"{found.dead:,}", "could not be opened"
    yield "lines answered", f"{found.answered:,}", f"{found.answered / lines:.2%}" if lines else ""
    yield "errors", f"{found.failed:,}", f"{found.failed / lines:.2%}" if lines else ""
    receipt = found.receipt
    note = "at list prices" if receipt is None else f"at list price {_usd(receipt.list_usd)}"
    yield "cost", _cost(cost), f"{cost.unpriced:,} answers without a known price" if cost.unpriced else note
    if found.answered and cost.usd:
        yield "cost of 1,000 answers", dollars(1000 * cost.usd / found.answered, lower_bound=cost.unpriced > 0), ""
    yield "tokens in", f"{tokens[0]:,}", ""
    yield "tokens out", f"{tokens[1]:,}", ""
    if cost.neurons is not None:
        yield "neurons", f"{cost.neurons:,.1f}", ""
    alive = sum(run.alive for run in found.runs)
    if alive:
        yield "runs alive", f"{alive:,}", "llmdo status shows them"
    if found.tally.unreadable:
        yield "rows that cannot be read", f"{found.tally.unreadable:,}", "llmdo verify says more"


def _lane_rows(receipt: FileReceipt) -> Iterable[tuple[str, ...]]:
    """Lane, lines, cost, what that would be at list price, and the difference."""
    for lane, one in receipt.lanes.items():
        saved = one.list_usd - one.cost_usd
        yield _upper(lane_text(lane)), f"{one.lines:,}", _usd(one.cost_usd), _usd(one.list_usd), _difference(saved)
    lines = sum(one.lines for one in receipt.lanes.values())
    sums = (receipt.cost_usd, receipt.list_usd)
    yield "All", f"{lines:,}", *map(_usd, sums), _difference(receipt.saved_usd)


def _lanes_caption(receipt: FileReceipt) -> str:
    said = "Answers whose cost is known, by the lane that they were paid in"
    return f"{said}; the rescue cost {_usd(receipt.rescue_usd)}" if receipt.rescue_usd else said


def _difference(usd: float) -> str:
    return _usd(usd) if usd >= 0 else f"−{_usd(-usd)}"


def _usd(usd: float) -> str:
    return dollars(usd, lower_bound=False)


def _model_row(name: str, model: ModelTally, times: float) -> dict[str, str]:
    """``times``: how many answers there are for each that was read."""
    cost = Cost(model.cost_usd if model.unpriced < model.answers else None, model.unpriced)
    each = None if cost.usd is None else 1000 * cost.usd / model.answers
    return {
        "name": name,
        "answers": f"{model.answers:,}",
        "input_tokens": f"{model.input_tokens:,}",
        "output_tokens": f"{model.output_tokens:,}",
        "cost": _cost(cost),
        "all": "" if cost.usd is None else f"≈ {dollars(times * cost.usd, lower_bound=False)}",
        "each": dollars(each, lower_bound=cost.unpriced > 0),
        "reused": f"{model.reused:,}",
        "warned": f"{model.warned:,}",
        "reasons": ", ".join(f"{reason} {count / model.answers:.1%}" for reason, count in model.reasons.most_common(4)),
    }


def _token_distribution(models: Sequence[tuple[str, ModelTally]], name: str, caption: str) -> Distribution | None:
    named = [(model, getattr(tally, name)) for model, tally in models]
    return _distribution([value for _, values in named for value in values], named, "tokens", name, caption)


def _distribution(
    values: Sequence[float], named: Iterable[tuple[str, Sequence[float]]], unit: str, name: str, caption: str
) -> Distribution | None:
    if not any(values):
        return None
    svg = Markup(histogram(values, unit, f"{caption}: histogram", name))  # noqa: S704  drawn of numbers
    table = [(_short(low), _short(high) if high else "", count) for low, high, count in bins(values) if count]
    return Distribution(Chart(svg, caption, table), [(model, _spread(some)) for model, some in named if some])


def _spread(values: Sequence[float]) -> list[str]:
    ordered = sorted(values)
    at = [ordered[min(len(ordered) - 1, int(part * len(ordered)))] for part in (0.5, 0.9, 0.99)]
    return [f"{len(ordered):,}", *map(_short, (sum(ordered) / len(ordered), *at, ordered[-1]))]


def _error_rows(found: Findings) -> list[dict[str, Any]]:
    ordered = sorted(found.tally.errors.items(), key=lambda one: -one[1].lines)
    return [
        {
            "name": name,
            "code": code,
            "lines": f"{error.lines:,}",
            "retryable": "yes" if error.retryable == error.lines else "some" if error.retryable else "no",
            "examples": error.examples,
        }
        for (name, code), error in ordered[:_ROWS]
    ]


def _retry(found: Findings) -> str:
    retryable = any(error.retryable for error in found.tally.errors.values())
    return visible(f"llmdo retry {shlex.quote(found.url)}") if retryable else ""


def _configuration(decisive: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        (visible(name), part("", value).text) for name, value in decisive.items() if name != "fingerprint" and value
    ]


def _model_alone(decisive: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Prompts and schemas are the user's words."""
    return _configuration({name: value for name, value in decisive.items() if name in ("model", "parameters")})


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def _n(value: float) -> str:
    return f"{value:,}"


def _cost(cost: Cost) -> str:
    return dollars(cost.usd, lower_bound=cost.unpriced > 0)


def _part(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")
