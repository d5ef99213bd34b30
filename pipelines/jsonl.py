"""Files of prompts in, shards of answers and one manifest a file out."""

from __future__ import annotations

import apache_beam as beam
from apache_beam.pvalue import PCollection

from llmdo.pipelines.dealt import build_head_and_tail
from llmdo.pipelines.options import JsonlOptions
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
from llmdo.transforms.run import Run


def build(root: beam.Pipeline, options: JsonlOptions, run_id: str) -> PCollection[Settled]:
    """JSONL objects of prompts in, shards of answers and one manifest a file out.

    ``options.queue`` is the queue's id, not its name. Emits each file once it is done.
    """
    if options.processes > 1:
        return build_head_and_tail(root, options, run_id)
    run = options.run(run_id)
    return (
        root
        | "Find files" >> find_files(options, run)
        | "Open files" >> OpenFiles(run, options.queue, options.max_line_bytes, options.needed_columns)
        | "Read lines" >> ReadLines(options.reading, run)
        | "Answer lines" >> Infer(options.defaults, options.calls, run, options.vectors)
        | "Write shards" >> WriteShards(run, options.batching)
        | "Settle files" >> SettleFiles(run)
    )


def find_files(options: JsonlOptions, run: Run) -> FindFiles | PollFiles | TickFiles:
    """Looks once, or again and again; Flink restarts failed jobs by itself."""
    source = options.source
    if options.continuous and isinstance(source, Notifications):
        return TickFiles(source, run) if options.reading.planned else PollFiles(source, run)
    return FindFiles(source, run, retried=options.runner == "flink", together=options.reading.at_once)
