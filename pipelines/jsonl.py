"""Files of prompts in, shards of answers and one manifest a file out."""

from __future__ import annotations

import apache_beam as beam
from apache_beam.pvalue import PCollection

from llmdo.pipelines.dealt import build_head_and_tail
from llmdo.pipelines.graph.steps import Steps
from llmdo.pipelines.options import JsonlOptions
from llmdo.transforms.elements import Settled


def build(root: beam.Pipeline, options: JsonlOptions, run_id: str) -> PCollection[Settled]:
    """JSONL objects of prompts in, shards of answers and one manifest a file out.

    ``options.queue`` is the queue's id, not its name. Emits each file once it is done.
    """
    if options.processes > 1:
        return build_head_and_tail(root, options, run_id)
    steps = Steps(options, options.run(run_id))
    return (
        root
        | "Find files" >> steps.find_files()
        | "Open files" >> steps.open_files()
        | "Read lines" >> steps.read_lines()
        | "Answer lines" >> steps.infer()
        | "Write shards" >> steps.write_shards()
        | "Settle files" >> steps.settle_files()
    )
