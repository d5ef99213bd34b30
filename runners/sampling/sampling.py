"""``llmdo run --sample``: answers some lines by the run's own steps and ledger, and estimates what all will take."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

from pydantic_core import from_json

from llmdo.backends.money.lanes import WINDOWS
from llmdo.backends.money.money import Budget
from llmdo.backends.money.prices import Prices
from llmdo.backends.money.spent import Spent
from llmdo.backends.providers import published_rates
from llmdo.pipelines.options import JsonlOptions
from llmdo.pipelines.usage import UsageError
from llmdo.runners.inspecting.report.tally import finish_reason
from llmdo.runners.inspecting.report.texts import answer_parts, visible
from llmdo.runners.running.attempt import Watch
from llmdo.runners.running.checks import check_files
from llmdo.runners.running.run import run
from llmdo.runners.sampling.drawing import Drawn, draw
from llmdo.runners.sampling.graph import Outcomes, build_sample
from llmdo.runners.sampling.intervals import Range, sum_over
from llmdo.runners.showing.plan import ASSUMED_CALL_S
from llmdo.runners.showing.summary import Summary
from llmdo.transforms.elements import Answer, Failure
from llmdo.transforms.files.source import Listing
from llmdo.transforms.run_state import RunState

ANSWERED, TRUNCATED, REFUSED, MISFIT = "answered", "truncated", "refused", "misses the schema"
_EXAMPLES = 3


@dataclass(frozen=True, slots=True)
class SampledLine:
    """One line of a sample. ``cost_usd`` is None if it is not known; ``paid``: a call was made for it now."""

    length: int
    id: str
    outcome: str
    said: str
    model: str = ""
    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float | None = 0.0
    seconds: float = 0.0
    paid: bool = True


@dataclass(frozen=True, slots=True)
class Sampled:
    """A sample that was answered, and what all lines without an outcome will take by it, those of the sample included.

    ``summary`` tells how the answering ended; ``cost_usd`` is None where an answer's cost is not known. ``lane``: by
    which lane lines are answered that are left, as far as it has a price of its own; "" is list price.
    """

    drawn: Drawn
    lines: tuple[SampledLine, ...]
    summary: Summary
    cost_usd: Range | None
    input_tokens: Range
    output_tokens: Range
    seconds: Range
    lane: str = ""

    @property
    def spent(self) -> Spent:
        """What the calls of the sample have used."""
        return self.summary.spent

    @property
    def left(self) -> int:
        """Lines that are still to be answered, about."""
        return max(0, round(self.drawn.count) - len(self.lines))

    @property
    def to_pay_usd(self) -> Range | None:
        """What is still to be paid: the answers of the sample, kept in the ledger, cost nothing more."""
        if self.cost_usd is None:
            return None
        kept = math.fsum(line.cost_usd or 0.0 for line in self.lines)
        return Range(*(max(0.0, bound - kept) for bound in _bounds(self.cost_usd)))

    @property
    def outcomes(self) -> Counter[str]:
        """How many lines ended how, the most frequent first."""
        return Counter(dict(Counter(line.outcome for line in self.lines).most_common()))

    @property
    def examples(self) -> list[SampledLine]:
        """A few lines: one of each outcome, then more of those."""
        firsts = {line.outcome: line for line in reversed(self.lines)}
        return [*firsts.values(), *(line for line in self.lines if line not in firsts.values())][:_EXAMPLES]


def draw_sample(options: JsonlOptions, count: int) -> Drawn:
    """Draws lines of all that have no outcome yet. Raises UsageError and StorageError."""
    if not isinstance(options.source, Listing):
        raise UsageError(
            ["--sample needs FILES: what a queue will announce cannot be drawn from; name its bucket, r2://BUCKET/"]
        )
    if options.apart:
        raise UsageError(
            [
                "--sample makes its calls in this process, and the steps would run in others: run it once with "
                "--runner direct and the same --ledger r2://BUCKET/PREFIX/, answer no, and start the job after that"
            ]
        )
    check_files(options)
    return draw(options, count)


def answer_sample_of(options: JsonlOptions, drawn: Drawn, watch: Watch, budget: Budget) -> Sampled:
    """Answers the lines that were drawn. Their answers are in the ledger then, by the keys that the run looks up."""
    lane = None if options.lane in WINDOWS else options.lane
    at_once = {"mode": "sync", "ready_by": None, "lane": lane}
    here = options.model_copy(update={"runner": "direct", "processes": 1, "notify_queue": None, **at_once})
    outcomes = Outcomes()

    @contextmanager
    def kept(state: RunState) -> Iterator[None]:
        state.shared(Outcomes, lambda: outcomes)
        with watch(state):
            yield

    summary = run(here, kept, partial(build_sample, lines=drawn.lines), budget)
    lengths = {(line.file.id, line.start): len(line.data) for line in drawn.lines}
    lines = [_line(one, lengths) for one in outcomes if isinstance(one, Answer | Failure)]
    return _estimated(options, drawn, _with_lost_tries(lines, summary.spent), summary, budget.prices)


def _line(outcome: Answer | Failure, lengths: dict[tuple[str, int], int]) -> SampledLine:
    row, length = from_json(outcome.row), lengths[outcome.file.id, outcome.start]
    name = f"{outcome.file.key}:{outcome.start}"
    if isinstance(outcome, Failure):
        error = row["error"]
        misses = error["class"] == "BadReply" and "schema" in str(error["message"])
        label = MISFIT if misses else str(error["class"])
        called = bool(error["attempts"])
        name = str(row.get("id", row.get("custom_id", name)))
        return SampledLine(length, name, label, visible(str(error["message"])), paid=called)
    body = row["response"]["body"]
    parts = answer_parts(body)
    reason = finish_reason(row)
    refused = reason == "content_filter" or any(part.label.endswith("refusal") for part in parts)
    return SampledLine(
        length,
        str(row["id"]),
        REFUSED if refused else TRUNCATED if reason == "length" else ANSWERED,
        " ".join(part.text for part in parts),
        str(row["model"]),
        outcome.input_tokens,
        outcome.output_tokens,
        outcome.cost.usd,
        row["latency_ms"] / 1000,
        paid=bool(row["attempts"]),
    )


def _with_lost_tries(lines: list[SampledLine], spent: Spent) -> list[SampledLine]:
    """What failed tries have used counts for the lines that failed, else for all that calls were made for."""
    paid = [line for line in lines if line.paid]
    share = [line for line in paid if not line.model] or paid
    if not share:
        return lines
    usd = max(0.0, (spent.cost_usd or 0.0) - math.fsum(line.cost_usd or 0.0 for line in paid)) / len(share)
    given = max(0, spent.input_tokens - sum(line.input_tokens for line in paid)) // len(share)
    got = max(0, spent.output_tokens - sum(line.output_tokens for line in paid)) // len(share)
    return [
        replace(
            line,
            cost_usd=None if line.cost_usd is None else line.cost_usd + usd,
            input_tokens=line.input_tokens + given,
            output_tokens=line.output_tokens + got,
        )
        if any(line is one for one in share)
        else line
        for line in lines
    ]


def _estimated(
    options: JsonlOptions, drawn: Drawn, lines: Sequence[SampledLine], summary: Summary, prices: Prices
) -> Sampled:
    def over_all(amount: Callable[[SampledLine], float]) -> Range:
        found = [(float(line.length), float(amount(line))) for line in lines]
        return sum_over(found, drawn.count, drawn.length, drawn.error)

    priced = all(line.cost_usd is not None for line in lines)
    batches = options.mode == "batch" or options.ready_by
    lane = "batch" if batches else options.lane if options.lane and options.lane in WINDOWS else ""
    less = _later(lane, lines, prices)
    cost = over_all(lambda line: less(line) * (line.cost_usd or 0.0))
    # The sample was answered by calls, whatever becomes of the rest.
    dearer = math.fsum((1 - less(line)) * (line.cost_usd or 0.0) for line in lines)
    given, got = over_all(lambda line: line.input_tokens), over_all(lambda line: line.output_tokens)
    return Sampled(
        drawn,
        tuple(lines),
        summary,
        Range(*(bound + dearer for bound in _bounds(cost))) if priced else None,
        given,
        got,
        _seconds(options, drawn, lines, summary.spent, over_all, (given, got)),
        lane if dearer else "",
    )


def _later(lane: str, lines: Sequence[SampledLine], prices: Prices) -> Callable[[SampledLine], float]:
    """Tells what part of its list price a line costs that is answered like one of the sample, but in ``lane``."""
    if not lane:
        return lambda _: 1.0
    factors: dict[str, float] = {}
    for name in {line.model for line in lines if line.model}:
        provider, _, model = name.partition("/")
        factors[name] = prices.lane_factor(provider, model, lane) or 1.0
    # Texts to embed, which have no output, are not handed over.
    return lambda line: factors.get(line.model, 1.0) if line.output_tokens else 1.0


def _seconds(
    options: JsonlOptions,
    drawn: Drawn,
    lines: Sequence[SampledLine],
    spent: Spent,
    over_all: Callable[[Callable[[SampledLine], float]], Range],
    tokens: tuple[Range, Range],
) -> Range:
    """How long the lines that are left take: by the calls that may be in flight, or by a rate if that takes longer."""
    timed = [line.seconds for line in lines if line.paid and line.model]
    usual = math.fsum(timed) / len(timed) if timed else ASSUMED_CALL_S
    left = 1 - len(lines) / drawn.count if drawn.count > len(lines) else 0.0
    paid = sum(line.paid for line in lines)
    calls = min(1.0, spent.calls / paid) if paid and spent.calls else 1.0  # texts share calls
    at_once = calls * left / options.calls_in_flight
    windowed = over_all(lambda line: line.seconds if line.paid and line.model else usual)
    found = [Range(windowed.estimate * at_once, windowed.low * at_once, windowed.high * at_once)]
    models = Counter(line.model for line in lines if line.model)
    for name, count in models.items():
        provider, _, model = name.partition("/")
        rates = options.rates.or_else(published_rates(provider, model)).shared_by(options.workers)
        share = left * count / len(lines)
        if rates.rpm:
            found.append(Range(*[60 * share * calls * drawn.count / rates.rpm] * 3))
        if rates.tpm:
            by_tokens = (
                60 * share * (a + b) / rates.tpm for a, b in zip(_bounds(tokens[0]), _bounds(tokens[1]), strict=True)
            )
            found.append(Range(*by_tokens))
    return Range(*(max(bounds) for bounds in zip(*map(_bounds, found), strict=True)))


def _bounds(one: Range) -> tuple[float, float, float]:
    return one.estimate, one.low, one.high
