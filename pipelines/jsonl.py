"""Files of prompts in, shards of answers and one manifest a file out."""

from __future__ import annotations

import apache_beam as beam
from apache_beam.pvalue import PCollection

from pipelines.options import JsonlOptions
from storage.environment import default_gateway
from transforms.elements import Settled
from transforms.infer import Infer
from transforms.lines import ReadLines
from transforms.notices import FindFiles, Notifications
from transforms.open import OpenFiles
from transforms.poll import PollFiles
from transforms.settle import SettleFiles
from transforms.shards import WriteShards


def build(root: beam.Pipeline, options: JsonlOptions, run_id: str) -> PCollection[Settled]:
    """JSONL objects of prompts in, shards of answers and one manifest a file out.

    ``options.queue`` is the queue's id, not its name. Emits each file once it is done.
    """
    output, configuration = options.output_location, options.configuration
    return (
        root
        | "Find files" >> find_files(options)
        | "Open files" >> OpenFiles(output, configuration, run_id, options.queue)
        | "Read lines" >> ReadLines(options.reading)
        | "Answer lines" >> answer_lines(options)
        | "Write shards" >> WriteShards(output, configuration, options.batching)
        | "Settle files" >> SettleFiles(output, configuration, run_id)
    )


def find_files(options: JsonlOptions) -> FindFiles | PollFiles:
    """Looks once, or again and again."""
    source, output = options.source, options.output_location
    if options.continuous and isinstance(source, Notifications):
        return PollFiles(source, output)
    return FindFiles(source, output)


def answer_lines(options: JsonlOptions) -> Infer:
    """By what the options say; the gateway also on workers whose environment does not name it."""
    return Infer(
        options.defaults,
        options.concurrency,
        options.paid,
        options.limits,
        options.rates,
        options.fixed,
        mode=options.mode,
        deadline_s=options.deadline,
        workers=options.workers,
        gateway=options.gateway or default_gateway(),
    )
