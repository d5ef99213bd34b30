"""Answers lines: one engine for the whole process, one outcome per tile, in the order in which calls end."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, cast

import apache_beam as beam
from apache_beam.pvalue import PCollection
from apache_beam.utils.windowed_value import WindowedValue

from llmdo.backends.engine.engine import Engine
from llmdo.backends.engine.jobs import Done
from llmdo.backends.engine.registry import get_engine
from llmdo.backends.engine.settings import CallSettings
from llmdo.backends.errors import EngineClosed, LineError, ModelError, ModelUnusable, StopRun
from llmdo.backends.requests import EmbedRequest, LineId
from llmdo.backends.responses import VectorFormat
from llmdo.backends.usage import Usage
from llmdo.storage.output.costs import Cost
from llmdo.transforms.answers.metrics import InferMetrics
from llmdo.transforms.answers.result_queue import ResultQueue
from llmdo.transforms.answers.rows import answer_row, failure_row
from llmdo.transforms.answers.texts import Embedded, LineTexts
from llmdo.transforms.elements import Answer, Blank, Failure, Idle, Line, Mark, Outcome, Read, TooLong
from llmdo.transforms.members import join, report_stop
from llmdo.transforms.prompts.parse import Defaults, Prompt, parse_prompt
from llmdo.transforms.run import Run

# How often a waiting bundle checks for room that another bundle's calls freed. Seconds.
_LOOK_AGAIN = 0.05
# A waiting bundle is woken after min(window / 8, 16) calls have ended: eight waiting bundles then all have something to
# submit, and calls of equal length do not stay in lock-step.
_PARTS, _MOST = 8, 16


@dataclass(eq=False)  # not frozen: Beam writes hints and labels into its transforms
class Infer(beam.PTransform):
    """Turns each line into its answer or its failure; blanks, marks, stale files and known shards pass through.

    At most ``calls.window`` calls are in flight in a process, however many bundles run; what waits in a batch is not a
    call in flight. A line never fails a bundle: one that cannot be answered becomes a Failure. The run stops after an
    error that would fail every call (a wrong token, the day's allocation used), and before a call that could exceed
    ``calls.limits``: unanswered lines then have no outcome, their file stays open, and a later run resumes.

    Args:
        defaults: model, prompt and parameters, which lines may override.
        calls: how calls are made; the step adds what depends on the process and its run.
        run: the run that the step belongs to.
        vectors: how they are written, unless a line's ``encoding_format`` is base64.
    """

    defaults: Defaults
    calls: CallSettings
    run: Run
    vectors: VectorFormat = "float"

    def expand(self, tiles: PCollection[Read]) -> PCollection[Outcome]:
        """Read → Outcome."""
        return tiles | "Call the model" >> beam.ParDo(_Infer(self))


@dataclass(slots=True)
class _Job:
    """One line in work, with the window and timestamp for its outcome."""

    line: Line
    prompt: Prompt
    context: WindowedValue
    texts: LineTexts | None = None


# A text to embed: its line, and its index there.
_Text = tuple[_Job, int]


class _Infer(beam.DoFn):
    def __init__(self, step: Infer) -> None:
        self.defaults = step.defaults
        self.calls = step.calls
        self.run = step.run
        self.vectors = step.vectors

    def setup(self) -> None:
        join(self.run)
        self._at_once = max(1, min(self.calls.window // _PARTS, _MOST))
        state = self.run.state
        self._budget = state.budget_within(self.calls.limits)
        self._metrics = InferMetrics()
        calls = replace(
            self.calls,
            own=self.defaults.providers,
            gate=state.asleep,
            budget=self._budget,
            answered_before=state.answered_before,
            run_id=self.run.run_id,
        )
        self._engine: Engine = get_engine(calls)

    def start_bundle(self) -> None:
        # Bundles of one process share the engine, but must not yield each other's results.
        self._finished: ResultQueue[tuple[_Text, Done]] = ResultQueue()
        self._arrays: dict[tuple[str, str, str], list[_Text]] = {}
        # By provider: answers whose rows wait for its prices, while the bundle continues.
        self._unpriced: defaultdict[str, list[tuple[_Text, Done]]] = defaultdict(list)
        self._open = 0

    def process(
        self, tile: Read | Mark, timestamp: Any = beam.DoFn.TimestampParam, window: Any = beam.DoFn.WindowParam
    ) -> Iterator[Any]:
        if isinstance(tile, TooLong):
            yield self._failure(tile, too_long(tile), attempts=0)
            return
        if not isinstance(tile, Line):
            if isinstance(tile, Blank):
                self.run.state.add(bytes_done=tile.stop - tile.start)
            elif isinstance(tile, Idle):
                yield from self._submit_arrays()
                yield from self._results(wait=True)
            yield tile
            return
        try:
            prompt = parse_prompt(tile.data, line_id(tile), self.defaults, self._engine.max_texts, tile.file.key)
        except LineError as error:
            yield self._failure(tile, error, attempts=0)
            return
        except ModelError as error:  # the run's own provider is unusable: no package, no token
            self.run.state.stop(error)
            return
        self._budget.prices.ask(prompt.provider)  # starts reading prices before they are needed
        job = _Job(tile, prompt, WindowedValue(None, timestamp, (window,)))
        yield from self._submit(job)
        yield from self._results(wait=False)

    def finish_bundle(self) -> Iterator[WindowedValue]:
        yield from self._submit_arrays()
        while self._open:
            yield from self._results(wait=True)
        self._metrics.engine(self._engine, now=True)
        report_stop(self.run)

    def _submit(self, job: _Job) -> Iterator[WindowedValue]:
        request = job.prompt.request
        if isinstance(request, EmbedRequest):
            key = (job.prompt.provider, request.model, repr(sorted(request.parameters.items())))
            job.texts = LineTexts(len(request.texts))
            for index in range(len(request.texts)):
                array = self._arrays.setdefault(key, [])
                array.append((job, index))
                if len(array) >= self._engine.array_size(job.prompt.provider, request.model):
                    del self._arrays[key]
                    yield from self._submit_array(array)
            return
        finished, provider = self._finished, job.prompt.provider

        def keep(done: Done) -> None:
            finished.put(((job, 0), done))

        yield from self._when_taken(1, lambda: self._engine.submit(provider, request, keep, wait=False))

    def _submit_arrays(self) -> Iterator[WindowedValue]:
        """Sends the arrays that are not full."""
        started, self._arrays = self._arrays, {}
        for array in started.values():
            yield from self._submit_array(array)

    def _submit_array(self, array: list[_Text]) -> Iterator[WindowedValue]:
        requests = [cast(EmbedRequest, job.prompt.request) for job, _ in array]
        texts = [request.texts[index] for request, (_, index) in zip(requests, array, strict=True)]
        ids = [request.request_id for request in requests]
        model, parameters, finished = requests[0].model, requests[0].parameters, self._finished
        provider = array[0][0].prompt.provider

        def deliver(index: int, done: Done) -> None:
            finished.put((array[index], done))

        yield from self._when_taken(
            len(array),
            lambda: self._engine.submit_texts(provider, model, texts, parameters, deliver, line_ids=ids, wait=False),
        )

    def _when_taken(self, results: int, submit: Callable[[], bool]) -> Iterator[WindowedValue]:
        """Submits as soon as there is room. If the engine is closed the run is over, and the lines have no outcome."""
        try:
            while not submit():
                if self._open:
                    yield from self._results(wait=True)
                else:  # none of this bundle's calls could wake it when there is room
                    self._engine.wait_for_room(_LOOK_AGAIN)
        except EngineClosed:
            return
        self._open += results

    def _results(self, wait: bool) -> Iterator[WindowedValue]:
        """Outcomes of the calls that have ended; with ``wait``, waits a moment for some to end."""
        wanted = min(self._open, self._at_once) if wait else 0
        for (job, index), done in (*self._finished.take(wanted, _LOOK_AGAIN), *self._priced()):
            if done.response and not self._budget.prices.ask(job.prompt.provider).done():
                self._unpriced[job.prompt.provider].append(((job, index), done))
                continue
            self._open -= 1
            self._metrics.engine(self._engine)
            ended = Embedded(done) if job.texts is None else job.texts.add(index, done)
            outcome = ended and self._outcome(job, ended)
            if outcome is not None:
                yield job.context.with_value(outcome)

    def _priced(self) -> list[tuple[_Text, Done]]:
        """Answers whose prices have arrived."""
        there = [provider for provider in self._unpriced if self._budget.prices.ask(provider).done()]
        return [answer for provider in there for answer in self._unpriced.pop(provider)]

    def _outcome(self, job: _Job, ended: Embedded) -> Outcome | None:
        done = ended.done
        if done.error is not None:
            if isinstance(done.error, EngineClosed):
                return None
            if isinstance(done.error, StopRun) or (isinstance(done.error, ModelUnusable) and not job.prompt.own_model):
                self.run.state.stop(done.error)
                return None
            return self._failure(job.line, done.error, done.attempts)
        response = done.response
        assert response is not None  # noqa: S101  Done has exactly one of the two
        prompt = job.prompt
        ending = self._budget.prices.ending(prompt.provider, prompt.request.model)
        if ending and ending not in response.warnings:
            response = replace(response, warnings=(*response.warnings, ending))
        # A shared response counts in the line that paid for it.
        usage = Usage() if response.shared else response.usage
        paid = [part for part in ended.parts or (response,) if not part.shared]
        usd = self._budget.prices.cost(prompt.provider, prompt.request.model, *paid)
        cost = Cost(usd, int(usd is None), usage.neurons)
        self._metrics.answer(usage, usd, done)
        self.run.state.add(
            answered=1,
            bytes_done=job.line.stop - job.line.start,
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
        )
        return Answer(
            job.line.file,
            job.line.start,
            job.line.stop,
            answer_row(prompt, job.line, response, done.attempts, done.latency_s, usd, ended.errors, self.vectors),
            usage.input_tokens,
            usage.output_tokens,
            cost,
        )

    def _failure(self, line: Line | TooLong, error: ModelError, attempts: int) -> Failure:
        self._metrics.failure(error)
        self.run.state.add(failed=1, bytes_done=line.stop - line.start)
        return Failure(line.file, line.start, line.stop, failure_row(line, error, attempts))


def line_id(line: Line) -> LineId:
    """The id of a line's request: the same in all tries and runs for one version of a file."""
    text = hashlib.sha256(f"{line.file.id}:{line.start}".encode()).hexdigest()[:32]
    return LineId.of(text, line.file.place, line.file.etag, line.start, resumed=line.file.resumed)


def too_long(line: TooLong) -> LineTooLong:
    """The error for such a line."""
    return LineTooLong(f"the line has {line.stop - line.start:,} bytes: raise --max-line-bytes, or split it")


class LineTooLong(LineError):
    """The line is longer than ``--max-line-bytes``."""
