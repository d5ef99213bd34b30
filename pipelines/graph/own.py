"""Options of a run whose graph has steps of the user's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import apache_beam as beam
from apache_beam.pvalue import PCollection
from pydantic import Field, model_validator

from llmdo.pipelines.graph.chain import check_chain
from llmdo.pipelines.graph.steps import Steps
from llmdo.pipelines.options import JsonlOptions
from llmdo.transforms.elements import Settled

# The field of an output's configuration that names a user's steps.
OWN_STEPS = "own_steps"
# A user's graph: the pipeline, and its steps → what ``settle_files`` emits.
BuildGraph = Callable[[beam.Pipeline, Steps], PCollection[Settled]]


class OwnOptions(JsonlOptions):
    """Those of JsonlOptions.

    Attributes:
        own_steps: names what the user's steps do, since that affects answers.
    """

    own_steps: Annotated[str, Field(min_length=1)]

    @model_validator(mode="after")
    def _in_one_process(self) -> OwnOptions:
        if self.processes > 1:
            raise ValueError("--processes has llmdo's own graph in each process: leave it out, or use runner='flink'")
        if self.retry:
            raise ValueError("a retry has a graph of its own: give the error files to a new output instead")
        return self

    @property
    def decisive(self) -> dict[str, Any]:
        """See JsonlOptions."""
        return {**super().decisive, OWN_STEPS: self.own_steps}


def built_by(build: BuildGraph) -> Callable[[beam.Pipeline, JsonlOptions, str], PCollection[Settled]]:
    """Builds a user's graph, and checks it."""

    def build_own(root: beam.Pipeline, options: JsonlOptions, run_id: str) -> PCollection[Settled]:
        steps = Steps(options, options.run(run_id))
        settled = build(root, steps)
        check_chain(root, steps, settled)
        return settled

    return build_own
