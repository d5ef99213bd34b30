"""Files of prompts in, shards of answers and one manifest a file out."""

from __future__ import annotations

import apache_beam as beam
from apache_beam.pvalue import PCollection

from llmdo.pipelines.options import JsonlOptions
from llmdo.storage.runs.members import Apart
from llmdo.transforms.answers.infer import Infer
from llmdo.transforms.elements import Settled
from llmdo.transforms.files.find_files import FindFiles
from llmdo.transforms.files.open_files import OpenFiles
from llmdo.transforms.files.poll_files import PollFiles
from llmdo.transforms.files.settle_files import SettleFiles
from llmdo.transforms.files.source import Notifications
from llmdo.transforms.files.tick_files import TickFiles
from llmdo.transforms.files.write_shards import WriteShards
from llmdo.transforms.lines.read_lines import ReadLines


def build(root: beam.Pipeline, options: JsonlOptions, run_id: str) -> PCollection[Settled]:
    """JSONL objects of prompts in, shards of answers and one manifest a file out.

    ``options.queue`` is the queue's id, not its name. Emits each file once it is done.
    """
    output, configuration, apart = options.output_location, options.configuration, options.members(run_id)
    return (
        root
        | "Find files" >> find_files(options, apart)
        | "Open files" >> OpenFiles(output, configuration, run_id, options.queue, apart, options.max_line_bytes)
        | "Read lines" >> ReadLines(options.reading, apart)
        | "Answer lines" >> Infer(options.defaults, options.calls, apart)
        | "Write shards" >> WriteShards(output, configuration, options.batching, apart)
        | "Settle files" >> SettleFiles(output, configuration, run_id, apart)
    )


def find_files(options: JsonlOptions, apart: Apart | None = None) -> FindFiles | PollFiles | TickFiles:
    """Looks once, or again and again; Flink begins failed jobs again by itself."""
    source, output, on_flink = options.source, options.output_location, options.runner == "flink"
    if options.continuous and isinstance(source, Notifications):
        return TickFiles(source, output, apart) if options.reading.planned else PollFiles(source, output, apart)
    return FindFiles(source, output, retried=on_flink, apart=apart)
