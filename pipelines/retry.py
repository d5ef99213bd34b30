"""Error lines of an output in, the same output out, with their new outcomes."""

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
    run = options.run(run_id)
    return (
        root
        | "Find errors" >> FindErrors(run)
        | "Read errors" >> ReadErrors(run, everything=options.retry == "all")
        | "Answer lines" >> Infer(options.defaults, options.calls, run, options.vectors)
        | "Write shards" >> WriteShards(run, options.batching)
        | "Merge files" >> MergeFiles(run)
    )
