"""Changes what is asked about lines, or skips lines, by a function of the user's; each line keeps its place."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import apache_beam as beam
from apache_beam.pvalue import PCollection
from pydantic_core import to_json

from llmdo.backends.errors import LineError, StopRun, short
from llmdo.transforms.answers.rows import failure_row
from llmdo.transforms.elements import Changed, Failure, Line
from llmdo.transforms.members import join, report_stop
from llmdo.transforms.prompts.fields import IDS
from llmdo.transforms.prompts.line_json import BadLine, json_object, unwrapped
from llmdo.transforms.run import Run

# Of what a function's exception says, in an error row. Characters.
_MOST_WORDS = 500


class SkippedLine(LineError):
    """A step of the user's own decided that the line is not to be asked."""


class StepFailed(LineError):
    """A step of the user's own failed for the line, or returned what cannot be asked."""


@dataclass(frozen=True, slots=True)
class Skip:
    """What a function of ChangeLines returns for a line not to be asked, with the ``reason`` in a word or more."""

    reason: str


# A function of the user's: a line → what to ask instead.
LineChange = Callable[[dict[str, Any]], Mapping[str, Any] | Skip]


@dataclass(eq=False)  # not frozen: Beam writes hints and labels into its transforms
class ChangeLines(beam.PTransform):
    """Asks what ``change`` makes of a line instead of the line, or skips it; for use between ReadLines and Infer.

    ``change`` gets each line that is a JSON object, as a dict that it may change, one after the other. It returns the
    line to ask, or a Skip. A line stays one line, whatever the function does:

    - A skipped line becomes an error row of the class SkippedLine, so it is in the manifest, and costs nothing.
    - If the function raises, or returns anything else, or changes ``id`` or ``custom_id``, by which answers are found,
      the line becomes an error row of the class StepFailed.
    - A StopRun that it raises stops the run. Lines without an answer stay open, and the next run resumes.

    Rows of errors hold the line as it stands in its file; those of answers hold the fields that the function added in
    ``metadata``. A bundle that a runner repeats is changed again: what is asked should depend on the line alone, or an
    answer is paid for twice. Everything that is not a line passes through, and lines that are not JSON objects, which
    Infer reports.

    Args:
        change: the function, which is pickled for the workers.
        run: what its run shares, which the steps given by ``llmdo.run_graph`` have already.
    """

    change: LineChange
    run: Run

    def expand(self, tiles: PCollection[Changed]) -> PCollection[Changed]:
        """Read → Read, or a Failure for a line that is not to be asked."""
        return tiles | "Change" >> beam.ParDo(_Change(self.change, self.run))


class _Change(beam.DoFn):
    def __init__(self, change: LineChange, run: Run) -> None:
        self.change = change
        self.run = run

    def setup(self) -> None:
        join(self.run)

    def process(self, tile: Changed) -> Iterator[Changed]:
        if not isinstance(tile, Line) or tile.problem:
            yield tile
            return
        if self.run.state.stopping:
            return
        try:
            changed = change_line(tile, self.change)
        except StopRun as reason:
            self.run.state.stop(reason)
            return
        except (SkippedLine, StepFailed) as error:
            self.run.state.add_done(tile.file, tile.stop - tile.start, failed=1)
            yield Failure(tile.file, tile.start, tile.stop, failure_row(tile, error, attempts=0))
            return
        yield changed

    def finish_bundle(self) -> None:
        report_stop(self.run)


def change_line(line: Line, change: LineChange) -> Line:
    """The line with what is to be asked instead. Raises SkippedLine, StepFailed, and a StopRun of the function."""
    try:
        document = json_object(unwrapped(line.data if line.changed is None else line.changed))
    except BadLine:
        return line
    function = getattr(change, "func", change)  # of a partial
    name, ids = getattr(function, "__name__", type(function).__name__), _ids(document)
    try:
        changed = change(document)
        data = to_json(changed) if isinstance(changed, Mapping) else b""
    except StopRun:
        raise
    except Exception as error:  # whatever a user's function raises is about its line
        raise StepFailed(f"{name} failed: {type(error).__name__}: {str(error)[:_MOST_WORDS]}") from error
    if isinstance(changed, Skip):
        raise SkippedLine(changed.reason)
    if not isinstance(changed, Mapping):
        raise StepFailed(f"{name} returned {short(changed)}: let it return the line, or llmdo.Skip(reason)")
    if _ids(changed) != ids:
        raise StepFailed(
            f"{name} changed id or custom_id, by which answers are found: put the new one in another field"
        )
    return replace(line, changed=data)


def _ids(document: Mapping[str, Any]) -> bytes:
    """As JSON, in which 1 and true differ, and which a function cannot change afterwards."""
    return to_json({name: document[name] for name in sorted(IDS) if name in document})
