"""Answers lines: one engine for the whole process, one outcome per tile, in the order in which calls end."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import apache_beam as beam
from apache_beam.pvalue import PCollection
from apache_beam.utils.windowed_value import WindowedValue

from llmdo.backends.engine.engine import Engine
from llmdo.backends.engine.registry import get_engine
from llmdo.backends.engine.settings import CallSettings
from llmdo.backends.errors import EngineClosed, LineError, ModelError, ModelUnusable, StaysOpen, StopRun
from llmdo.backends.requests import LineId
from llmdo.backends.responses import VectorFormat
from llmdo.backends.usage import Usage
from llmdo.storage.output.costs import Cost
from llmdo.transforms.answers.bundle_calls import BundleCalls
from llmdo.transforms.answers.leases import keep_lease
from llmdo.transforms.answers.metrics import InferMetrics
from llmdo.transforms.answers.paid_lanes import paid_by_lane
from llmdo.transforms.answers.rows import answer_row, failure_row
from llmdo.transforms.answers.texts import Embedded
from llmdo.transforms.elements import Answer, Blank, Changed, Failure, Idle, Line, Mark, Outcome, TooLong
from llmdo.transforms.members import join, report_stop
from llmdo.transforms.prompts.line_json import BadLine
from llmdo.transforms.prompts.parse import Defaults, Prompt, parse_prompt
from llmdo.transforms.run import Run

_log = logging.getLogger(__name__)


@dataclass(eq=False)  # not frozen: Beam writes hints and labels into its transforms
class Infer(beam.PTransform):
    """Turns each line into its answer or its failure; blanks, marks, stale files, known shards, and failures of lines
    that are not to be asked pass through.

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

    def expand(self, tiles: PCollection[Changed]) -> PCollection[Outcome]:
        """Read, or what ChangeLines made of it → Outcome."""
        return tiles | "Call the model" >> beam.ParDo(_Infer(self))


@dataclass(slots=True)
class _Job:
    """One line in work, with the window and timestamp for its outcome."""

    line: Line
    prompt: Prompt
    context: WindowedValue


class _Infer(beam.DoFn):
    def __init__(self, step: Infer) -> None:
        self.defaults = step.defaults
        self.calls = step.calls
        self.run = step.run
        self.vectors = step.vectors

    def setup(self) -> None:
        join(self.run)
        state = self.run.state
        self._budget = state.budget_within(self.calls.limits, self.calls.prices)
        keep_lease(self.run, self._budget)
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
        self._calls: BundleCalls[_Job] = BundleCalls(self._engine, self._budget.prices)

    def process(
        self, tile: Changed | Mark, timestamp: Any = beam.DoFn.TimestampParam, window: Any = beam.DoFn.WindowParam
    ) -> Iterator[Any]:
        if isinstance(tile, Line | TooLong) and (wrong := unreadable(tile)):
            yield self._failure(tile, wrong, attempts=0)
            return
        if not isinstance(tile, Line):
            if isinstance(tile, Blank):
                self.run.state.add_done(tile.file, tile.stop - tile.start)
            elif isinstance(tile, Idle):
                yield from self._outcomes(self._calls.flush())
                yield from self._results(wait=True)
            yield tile
            return
        try:
            most, file = self._engine.max_texts, tile.file
            data = tile.data if tile.changed is None else tile.changed
            prompt = parse_prompt(data, line_id(tile), self.defaults, most, file.key, of_table=file.has_rows)
            if self.calls.media:
                prompt.request = self.calls.media.marked(prompt.request, file.store_url)
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
        yield from self._outcomes(self._calls.all())
        self._metrics.engine(self._engine, now=True)
        report_stop(self.run)

    def _submit(self, job: _Job) -> Iterator[WindowedValue]:
        yield from self._outcomes(self._calls.submit(job, job.prompt.provider, job.prompt.request))

    def _results(self, *, wait: bool) -> Iterator[WindowedValue]:
        yield from self._outcomes(self._calls.ended(wait=wait))

    def _outcomes(self, ended: Iterable[tuple[_Job, Embedded]]) -> Iterator[WindowedValue]:
        for job, one in ended:
            self._metrics.engine(self._engine)
            outcome = self._outcome(job, one)
            if outcome is not None:
                yield job.context.with_value(outcome)

    def _outcome(self, job: _Job, ended: Embedded) -> Outcome | None:
        done = ended.done
        if done.error is not None:
            if isinstance(done.error, EngineClosed):
                return None
            if isinstance(done.error, StaysOpen):
                self.run.state.leave_open(done.error)
                if stopped := self._engine.stopped:
                    self.run.state.stop(stopped)
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
        lanes = paid_by_lane(self._budget.prices, prompt, paid, usd)
        cost = Cost(usd, int(usd is None), usage.neurons, lanes)
        self._metrics.answer(usage, usd, done)
        self.run.state.add_done(
            job.line.file,
            job.line.stop - job.line.start,
            answered=1,
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
        )
        return Answer(
            job.line.file,
            job.line.start,
            job.line.stop,
            answer_row(
                prompt, job.line, response, done.attempts, done.latency_s, usd, ended.errors, self.vectors, lanes
            ),
            usage.input_tokens,
            usage.output_tokens,
            cost,
        )

    def _failure(self, line: Line | TooLong, error: ModelError, attempts: int) -> Failure:
        self._metrics.failure(error)
        if _log.isEnabledFor(logging.INFO):  # without its words: services repeat what was asked
            code = error.code if error.code is not None else error.status
            about = {"file": line.file.id, "line": line.start}
            _log.info("a line has no answer: %s%s", type(error).__name__, f" ({code})" if code else "", extra=about)
        self.run.state.add_done(line.file, line.stop - line.start, failed=1)
        return Failure(line.file, line.start, line.stop, failure_row(line, error, attempts))


def line_id(line: Line) -> LineId:
    """The id of a line's request: the same in all tries and runs for one version of a file."""
    text = hashlib.sha256(f"{line.file.id}:{line.start}".encode()).hexdigest()[:32]
    return LineId.of(text, line.file.place, line.file.etag, line.start, resumed=line.file.resumed)


def unreadable(line: Line | TooLong) -> LineError | None:
    """The error of a line that was not even read; None for one that was."""
    if isinstance(line, Line):
        return BadLine(line.problem) if line.problem else None
    what = "line" if line.size is None else "row, as JSON,"
    return LineTooLong(f"the {what} has {line.length:,} bytes: raise --max-line-bytes, or split it")


class LineTooLong(LineError):
    """The line is longer than ``--max-line-bytes``."""
