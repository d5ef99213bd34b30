"""``llmdo run --dry-run``: reads every line as a run would, and reports what is wrong and what it may cost; no call."""

from __future__ import annotations

import asyncio
import itertools

from llmdo.backends.connections import Connections
from llmdo.backends.errors import ModelError
from llmdo.backends.media.parts import references_in, with_samples
from llmdo.backends.money.estimates import Estimates
from llmdo.backends.money.lanes import dearest_lane
from llmdo.backends.money.prices import Prices, cost_usd
from llmdo.backends.providers import connect, published_rates
from llmdo.backends.requests import EmbedRequest
from llmdo.backends.usage import Usage, added
from llmdo.pipelines.options import JsonlOptions
from llmdo.pipelines.usage import UsageError
from llmdo.runners.inspecting.repeated_ids import RepeatedIds
from llmdo.runners.running.checks import check_files
from llmdo.runners.showing.plan import ASSUMED_CALL_S, ModelPlan, Plan, assumed_s
from llmdo.storage.errors import StorageError
from llmdo.storage.objects.opening import open_store
from llmdo.storage.output.costs import Cost, total, unknown
from llmdo.storage.output.manifests import read_manifest
from llmdo.transforms.answers.infer import line_id, unreadable
from llmdo.transforms.answers.ledger_look import LedgerLook
from llmdo.transforms.elements import Blank, FileVersion, Line, OpenFile, Stale, TooLong
from llmdo.transforms.files.folders import as_begun, folder_of
from llmdo.transforms.files.listing import list_inputs
from llmdo.transforms.files.reopening import has_readable
from llmdo.transforms.files.source import Listing
from llmdo.transforms.kinds.inside import look_inside
from llmdo.transforms.lines.reading import NO_END, read_range, unread
from llmdo.transforms.prompts.parse import Prompt, parse_prompt
from llmdo.transforms.unreadable import CorruptData, TooLarge

# Problems that are kept and shown; the rest is counted.
PROBLEMS_SHOWN = 20
# Lines that are looked up in the ledger together.
_LOOKED_UP = 256


def plan_run(options: JsonlOptions) -> Plan:
    """Reads all that ``options`` name. Raises UsageError, and StorageError for a place that cannot be listed."""
    source = options.source
    if not isinstance(source, Listing):
        raise UsageError(["--dry-run needs FILES: looking into a queue would take its messages"])
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
        self._prices = Prices(own=options.own_prices)
        self._estimates = Estimates()
        self._plan = Plan(options.concurrency.calls)
        self._ids = RepeatedIds()  # of the file that is read
        self._first: dict[str, str] = {}  # the first line that asks a model
        self._naming = self._named = 0  # lines that name media, and how many
        self._media = options.calls.media
        self._ledger = LedgerLook(options.kept)
        self._asked: list[Prompt] = []  # that are to be looked up
        self._defaults = options.defaults
        for name in options.models:
            self._prices.ask(name.partition("/")[0])

    def close(self) -> None:
        self._ledger.close()
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
        reading = self._options.reading
        whole = OpenFile(look_inside(file, None, self._options.needed_columns), gaps=((0, None),))
        nothing = unread(whole, reading)
        if isinstance(nothing, Stale):
            raise TooLarge(nothing.reason)
        if nothing is not None:
            return
        self._ids = RepeatedIds()
        for tile in itertools.chain.from_iterable(read_range(whole, 0, NO_END, reading)):
            if not isinstance(tile, Blank):
                self._plan.lines += 1
                self._add_line(f"{name}:{tile.start}", tile)
            elif tile.start < tile.stop and not tile.between:
                self._plan.blank += 1
        if note := self._ids.note(name):
            self._plan.notes.append(note)

    def _add_line(self, place: str, tile: Line | TooLong) -> None:
        try:
            if error := unreadable(tile):
                raise error
            assert isinstance(tile, Line)  # noqa: S101  a TooLong has an error
            file = tile.file
            prompt = parse_prompt(
                tile.data, line_id(tile), self._defaults, self._max_texts, file.key, of_table=file.has_rows
            )
            if self._media:
                prompt.request = self._media.marked(prompt.request, file.store_url)
            named = references_in(prompt.request)
            self._backends.get(prompt.provider).check(with_samples(prompt.request) if named else prompt.request)
        except ModelError as error:  # a BadLine, a provider that is missing, or what it refuses without a call
            self._plan.broken += 1
            self._problem(f"{place}: {error.message}")
            return
        if prompt.custom_id is not None:
            self._ids.add(str(prompt.custom_id))
        model = f"{prompt.provider}/{prompt.request.model}"
        if model not in self._plan.models:
            self._plan.models[model] = ModelPlan()
            self._first[model] = place
        self._plan.models[model].lines += 1
        self._naming += bool(named)
        self._named += len(named)
        self._asked.append(prompt)
        if len(self._asked) >= _LOOKED_UP:
            self._look_up()

    def _look_up(self) -> None:
        """Counts what the lines use that wait for it: those of which the ledger has an answer cost nothing."""
        asked, self._asked = self._asked, []
        found = self._ledger.usages([(prompt.provider, prompt.request) for prompt in asked])
        for prompt, used in zip(asked, found, strict=True):
            one = self._plan.models[f"{prompt.provider}/{prompt.request.model}"]
            most = self._estimates.most(prompt.request)
            if used is not None:
                one.kept, one.foreseen, one.used = one.kept + 1, one.foreseen + most.input_tokens, added(one.used, used)
                continue
            if isinstance(prompt.request, EmbedRequest):
                one.texts += len(prompt.request.texts)
            else:
                one.calls += 1
            one.input_tokens += most.input_tokens
            one.output_tokens += most.output_tokens
            lane = dearest_lane(prompt.request)
            usd = cost_usd(most, self._prices.of(prompt.provider, prompt.request.model, lane=lane))
            one.cost = total((one.cost, unknown(1) if usd is None else Cost(usd)))

    def _likely(self, provider: str, short: str, model: ModelPlan) -> float | None:
        """What the lines without an answer cost if they are like those that have one."""
        left, price = model.lines - model.kept, self._prices.of(provider, short)
        if not (left and model.kept):
            return None if left else 0.0
        given = model.input_tokens / left * model.used.input_tokens / max(1, model.foreseen)
        usd = cost_usd(Usage(round(given), round(model.used.output_tokens / model.kept)), price)
        return None if usd is None else usd * left

    def finish(self) -> Plan:
        self._look_up()
        if self._named:
            self._plan.notes.append(
                f"{self._naming:,} lines name {self._named:,} images, sounds or files, which are fetched when they are "
                "called: they were not looked at, and only images are in the tokens"
            )
        for name, model in self._plan.models.items():
            provider, _, short = name.partition("/")
            if not self._prices.lists(provider, short):
                self._plan.notes.append(
                    f"{name} is not in its provider's list: {model.lines:,} lines ask it, first {self._first[name]}"
                )
            model.calls += -(-model.texts // self._max_texts(provider, short))  # texts share calls, over all lines
            model.likely = self._likely(provider, short, model)
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
