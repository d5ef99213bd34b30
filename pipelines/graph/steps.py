"""The steps of the main graph, one by one, as a run's options say."""

from __future__ import annotations

from dataclasses import dataclass

from llmdo.pipelines.options import JsonlOptions
from llmdo.transforms.answers.infer import Infer
from llmdo.transforms.files.find_files import FindFiles
from llmdo.transforms.files.open_files import OpenFiles
from llmdo.transforms.files.poll_files import PollFiles
from llmdo.transforms.files.settle_files import SettleFiles
from llmdo.transforms.files.source import Notifications
from llmdo.transforms.files.tick_files import TickFiles
from llmdo.transforms.files.write_shards import WriteShards
from llmdo.transforms.lines.read_lines import ReadLines
from llmdo.transforms.own.change_lines import ChangeLines, LineChange
from llmdo.transforms.run import Run


@dataclass(frozen=True, slots=True)
class Steps:
    """Makes the steps of one run over files, each with what the run's options and its runner need.

    A graph has each of them once and in this order; only ``change_lines`` may be there several times, or not at all.

    Attributes:
        options: those of the run.
        run: what all steps know of it.
    """

    options: JsonlOptions
    run: Run

    def find_files(self) -> FindFiles | PollFiles | TickFiles:
        """The pipeline → Notice. Looks once, or again and again; Flink restarts failed jobs by itself."""
        options, source = self.options, self.options.source
        if options.continuous and isinstance(source, Notifications):
            return TickFiles(source, self.run) if options.reading.planned else PollFiles(source, self.run)
        return FindFiles(source, self.run, retried=options.runner == "flink", together=options.reading.at_once)

    def open_files(self) -> OpenFiles:
        """Notice → Opened: a job record for each file, and what is left to read of it."""
        return OpenFiles(self.run, self.options.queue, self.options.max_line_bytes, self.options.needed_columns)

    def read_lines(self) -> ReadLines:
        """Opened → Read: lines with their places in their files."""
        return ReadLines(self.options.reading, self.run)

    def change_lines(self, change: LineChange) -> ChangeLines:
        """Read → Read: asks what a function of yours makes of a line, or skips it. See ChangeLines."""
        return ChangeLines(change, self.run)

    def infer(self) -> Infer:
        """Read → Outcome: an answer or a failure for each line."""
        return Infer(self.options.defaults, self.options.calls, self.run, self.options.vectors)

    def write_shards(self) -> WriteShards:
        """Outcome → Written: objects with rows."""
        return WriteShards(self.run, self.options.batching)

    def settle_files(self) -> SettleFiles:
        """Written → Settled: a manifest for each file whose lines are all there."""
        return SettleFiles(self.run)
