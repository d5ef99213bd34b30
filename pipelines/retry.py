"""Error lines of an output in, the same output out, with what became of them this time."""

from __future__ import annotations

import apache_beam as beam
from apache_beam.pvalue import PCollection

from llmdo.pipelines.options import JsonlOptions
from llmdo.transforms.answers.infer import Infer
from llmdo.transforms.elements import Settled
from llmdo.transforms.files.write_shards import WriteShards
from llmdo.transforms.retry.retry_files import FindErrors, MergeFiles, ReadErrors


def build(root: beam.Pipeline, options: JsonlOptions, run_id: str) -> PCollection[Settled]:
    """Error shards of settled files in, new shards and switched manifests out; for bounded runs.

    Emits each file whose manifest counts its lines anew.
    """
    output, configuration = options.output_location, options.configuration
    return (
        root
        | "Find errors" >> FindErrors(output)
        | "Read errors" >> ReadErrors(output, configuration, run_id, everything=options.retry == "all")
        | "Answer lines" >> Infer(options.defaults, options.calls)
        | "Write shards" >> WriteShards(output, configuration, options.batching)
        | "Merge files" >> MergeFiles(output, run_id)
    )
