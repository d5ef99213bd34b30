"""The graph of a sample: some lines in, their outcomes in the state of the run."""

from __future__ import annotations

from collections.abc import Sequence

import apache_beam as beam
from apache_beam.pvalue import PCollection

from llmdo.pipelines.options import JsonlOptions
from llmdo.transforms.answers.infer import Infer
from llmdo.transforms.elements import Line, Outcome, Read
from llmdo.transforms.run import Run


class Outcomes(list[Outcome]):
    """Those of a sample's lines, in the order in which they came."""


def build_sample(
    root: beam.Pipeline, options: JsonlOptions, run_id: str, lines: Sequence[Line]
) -> PCollection[Outcome]:
    """Answers lines by the step that answers all of them, so that a run finds their answers in the ledger."""
    run = options.run(run_id)
    return (
        root
        | "Start" >> beam.Impulse()
        | "Some lines" >> beam.FlatMap(lambda _: lines).with_output_types(Read)
        | "Answer lines" >> Infer(options.defaults, options.calls, run, options.vectors)
        | "Keep outcomes" >> beam.Map(_kept, run)
    )


def _kept(outcome: Outcome, run: Run) -> Outcome:
    run.state.shared(Outcomes, Outcomes).append(outcome)
    return outcome
