"""``llmdo run --dry-run``: reads every line as a run would, and reports what is wrong and what it may cost; no call."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass, field
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from llmdo.backends.connections import Connections
from llmdo.backends.errors import ModelError
from llmdo.backends.money.estimates import Estimates
from llmdo.backends.money.prices import Prices, cost_usd
from llmdo.backends.providers import connect, published_rates
from llmdo.backends.requests import EmbedRequest
from llmdo.backends.usage import Usage
from llmdo.pipelines.options import JsonlOptions
from llmdo.pipelines.usage import UsageError
from llmdo.runners.running.checks import check_files
from llmdo.runners.showing.summary import EXIT_ANSWERED, EXIT_SOME_ERRORS, dollars
from llmdo.storage.errors import StorageError
from llmdo.storage.objects.opening import open_store
from llmdo.storage.output.costs import NOTHING, Cost, total, unknown
from llmdo.storage.output.manifests import read_manifest
from llmdo.transforms.answers.infer import too_long
from llmdo.transforms.elements import Blank, FileVersion, Line, OpenFile, Stale, TooLong
from llmdo.transforms.files.first_look import head_of, wrong_format
from llmdo.transforms.files.folders import as_begun, folder_of
from llmdo.transforms.files.listing import list_inputs
from llmdo.transforms.files.reopening import has_readable
from llmdo.transforms.files.source import Listing
from llmdo.transforms.lines.cutting import CorruptData, TooLarge
from llmdo.transforms.lines.reading import NO_END, read_range, unread
from llmdo.transforms.prompts.parse import parse_prompt

# Problems that are kept and shown; the rest is counted.
PROBLEMS_SHOWN = 20
# Duration of a call, where only the number of calls in flight limits a run. Seconds.
ASSUMED_CALL_S = 3.0


@dataclass(slots=True)
class ModelPlan:
    """What a run would ask of one model. ``output_tokens`` and ``cost`` are maxima.
    ``texts`` are those to embed.

    ``seconds`` is the least that the limits allow, and ``limit`` names them; or it is ``assumed``.
    """

    lines: int = 0
    texts: int = 0
    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost: Cost = NOTHING
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
            "cost_is_lower_bound": self.cost.unpriced > 0,
            "seconds": round(self.seconds, 1),
            "models": {
                name: {
                    "lines": model.lines,
                    **_sums([model]),
                    "cost_usd_at_most": model.cost.usd,
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
        "input_tokens": sum(model.input_tokens for model in models),
        "output_tokens_at_most": sum(model.output_tokens for model in models),
    }


def plan_run(options: JsonlOptions) -> Plan:
    """Reads all that ``options`` name. Raises UsageError, and StorageError for a place that cannot be listed."""
    source = options.source
    if not isinstance(source, Listing):
        raise UsageError(["--dry-run needs FILES or --input: looking into a queue would take its messages"])
    check_files(options)
    planner = _Planner(options)
    try:
        for notice in list_inputs(source, options.output_location):
            planner.add_file(notice.file)
        return planner.finish()
    finally:
        planner.close()


class _Planner:
    def __init__(self, options: JsonlOptions) -> None:
        self._options = options
        self._output = open_store(options.output_location.store_url)
        self._backends = Connections(connect)
        self._prices = Prices()
        self._estimates = Estimates()
        self._plan = Plan(options.concurrency.calls)
        self._first: dict[str, str] = {}  # the first line that asks a model
        self._defaults = options.defaults
        for name in options.models:
            self._prices.ask(name.partition("/")[0])

    def close(self) -> None:
        asyncio.run(self._backends.aclose())

    def add_file(self, file: FileVersion) -> None:
        name, plan = f"{file.store_url}/{file.key}", self._plan
        file = as_begun(self._options.output_location, file)
        folder = folder_of(self._options.output_location, file)
        manifest = read_manifest(self._output, folder)
        again = manifest is not None and has_readable(self._output, folder, manifest, self._options.max_line_bytes)
        if manifest is not None and not again and manifest.configuration == self._options.configuration:
            plan.files_done += 1
            return
        plan.files += 1
        try:
            self._add_lines(file, name)
        except (StorageError, CorruptData, TooLarge) as error:
            plan.unreadable += 1
            self._problem(f"{name}: {error}" if isinstance(error, StorageError) else str(error))

    def _add_lines(self, file: FileVersion, name: str) -> None:
        """Reads a file as a run would. Raises StorageError, and CorruptData and TooLarge, which name it."""
        problem, reading = wrong_format(file, head_of(file)), self._options.reading
        if problem is not None:
            raise CorruptData(problem)
        whole = OpenFile(file, gaps=((0, None),))
        nothing = unread(whole, reading)
        if isinstance(nothing, Stale):
            raise TooLarge(nothing.reason)
        if nothing is not None:
            return
        for tile in itertools.chain.from_iterable(read_range(whole, 0, NO_END, reading)):
            if not isinstance(tile, Blank):
                self._plan.lines += 1
                self._add_line(f"{name}:{tile.start}", tile)
            elif tile.start < tile.stop:
                self._plan.blank += 1

    def _add_line(self, place: str, tile: Line | TooLong) -> None:
        try:
            if isinstance(tile, TooLong):
                raise too_long(tile)
            prompt = parse_prompt(tile.data, "", self._defaults, self._max_texts, tile.file.key)
            self._backends.get(prompt.provider).check(prompt.request)
        except ModelError as error:  # a BadLine, a provider that is missing, or what it refuses without a call
            self._plan.broken += 1
            self._problem(f"{place}: {error.message}")
            return
        model = f"{prompt.provider}/{prompt.request.model}"
        if model not in self._plan.models:
            self._plan.models[model] = ModelPlan()
            self._first[model] = place
        one = self._plan.models[model]
        most = self._estimates.most(prompt.request)
        one.lines += 1
        if isinstance(prompt.request, EmbedRequest):
            one.texts += len(prompt.request.texts)
        else:
            one.calls += 1
        one.input_tokens += most.input_tokens
        one.output_tokens += most.output_tokens

    def finish(self) -> Plan:
        for name, model in self._plan.models.items():
            provider, _, short = name.partition("/")
            if not self._prices.lists(provider, short):
                self._plan.notes.append(
                    f"{name} is not in its provider's list: {model.lines:,} lines ask it, first {self._first[name]}"
                )
            usd = cost_usd(Usage(model.input_tokens, model.output_tokens), self._prices.of(provider, short))
            model.cost = unknown(model.lines) if usd is None else Cost(usd)
            model.calls += -(-model.texts // self._max_texts(provider, short))  # texts share calls, over all lines
            self._estimate_time(provider, short, model)
        return self._plan

    def _estimate_time(self, provider: str, short: str, model: ModelPlan) -> None:
        workers, tokens = self._options.workers, model.input_tokens + model.output_tokens
        rates = self._options.rates.or_else(published_rates(provider, short)).shared_by(workers)
        part = f" (one of {workers:,} workers' part)" if workers > 1 else ""
        by_limit = []
        if rates.rpm:
            by_limit.append((60 * model.calls / rates.rpm, f"{rates.rpm:g} requests a minute{part}"))
        if rates.tpm:
            by_limit.append((60 * tokens / rates.tpm, f"{rates.tpm:g} tokens a minute{part}"))
        if by_limit:
            model.seconds, model.limit = max(by_limit)
        else:
            window, model.assumed = self._options.concurrency.calls, True
            model.seconds = assumed_s(model.calls, window)
            model.limit = f"{window} calls in flight, of {ASSUMED_CALL_S:g} s each (assumed: no rate is published)"

    def _max_texts(self, provider: str, model: str) -> int:
        return self._backends.get(provider).max_texts(model)

    def _problem(self, sentence: str) -> None:
        if len(self._plan.problems) < PROBLEMS_SHOWN:
            self._plan.problems.append(sentence)


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
