"""The main graph in several processes of one machine: the first has its head and tail, the workers what is between."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import apache_beam as beam
from apache_beam.pvalue import PCollection

from llmdo.pipelines.options import JsonlOptions
from llmdo.transforms.answers.infer import Infer
from llmdo.transforms.elements import Mark, Read, Settled, Written
from llmdo.transforms.files.find_files import FindFiles
from llmdo.transforms.files.open_files import OpenFiles
from llmdo.transforms.files.poll_files import PollFiles
from llmdo.transforms.files.settle_files import SettleFiles
from llmdo.transforms.files.source import Notifications
from llmdo.transforms.files.write_stretches import WriteStretches
from llmdo.transforms.lines.deal import Deal
from llmdo.transforms.lines.deal_on import DealOn
from llmdo.transforms.run import Run


def build_head_and_tail(root: beam.Pipeline, options: JsonlOptions, run_id: str) -> PCollection[Settled]:
    """Finds and opens files, has the run's workers answer them, and settles them."""
    run, source = options.run(run_id), options.source
    find: PollFiles | FindFiles = FindFiles(source, run, together=True)
    deal: DealOn | Deal = Deal(options.reading, run)
    if options.continuous and isinstance(source, Notifications):
        find, deal = PollFiles(source, run), DealOn(options.reading, run)
    return (
        root
        | "Find files" >> find
        | "Open files" >> OpenFiles(run, options.queue, options.max_line_bytes, options.needed_columns)
        | "Deal stretches out" >> deal
        | "Settle files" >> SettleFiles(run)
    )


def build_worker(
    root: beam.Pipeline,
    options: JsonlOptions,
    run_id: str,
    read: Callable[[None, JsonlOptions, Run], Iterator[Read | Mark]],
    send: Callable[[Written, Run], None],
) -> PCollection[None]:
    """Answers the lines that ``read`` yields, and ``send``s what was written; all in one bundle."""
    run = options.run(run_id)
    return (
        root
        | "One bundle" >> beam.Create([None], reshuffle=False)
        | "Read stretches" >> beam.FlatMap(read, options, run)
        | "Answer lines" >> Infer(options.defaults, options.calls, run, options.vectors)
        | "Write shards" >> WriteStretches(run, options.batching)
        | "Send" >> beam.Map(send, run)
    )
