"""A graph of a user's own is refused if lines could be lost in it, or doubled, or asked otherwise than the run says."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import apache_beam as beam
import pytest

from llmdo.pipelines import jsonl
from llmdo.pipelines.graph.chain import CHAIN
from llmdo.pipelines.graph.own import OwnOptions, built_by
from llmdo.pipelines.graph.steps import Steps
from llmdo.pipelines.options import JsonlOptions, check_options
from llmdo.pipelines.usage import UsageError
from llmdo.transforms.files.batching import Batching
from llmdo.transforms.files.write_shards import WriteShards
from llmdo.transforms.lines.read_lines import ReadLines
from llmdo.transforms.lines.reading import Reading

OWN = {"own_steps": "mine", "output": "/tmp/out", "model": "local/smollm2-135m-instruct"}
FILES = {**OWN, "files": ("/in",)}
Between = Callable[[Any, Steps], Any]


def same(line: dict[str, Any]) -> dict[str, Any]:
    return line


def keep(_: object) -> bool:
    return True


def graph(steps: Steps, root: beam.Pipeline, **between: Between) -> Any:
    """The chain; behind a step of a name what ``between`` makes of its output."""
    end: Any = root
    for name in CHAIN:
        end = end | name >> getattr(steps, name)()
        if name in between:
            end = between[name](end, steps)
    return end


def check(build: Callable[[beam.Pipeline, Steps], Any], **given: Any) -> Any:
    options = OwnOptions(**{**FILES, **given})
    return built_by(build)(beam.Pipeline(runner="FnApiRunner"), options, "run-1")


@pytest.mark.parametrize("runner", ["direct", "prism", "flink"])
def test_the_steps_in_their_order_are_accepted_on_every_runner(runner: str) -> None:
    assert check(lambda root, steps: graph(steps, root), runner=runner) is not None


@pytest.mark.parametrize("runner", ["prism", "flink"])
def test_so_they_are_where_they_look_again_and_again(runner: str) -> None:
    given = {"files": (), "queue": "id", "continuous": True, "runner": runner}
    assert check(lambda root, steps: graph(steps, root), **given) is not None


def test_functions_stand_between_reading_and_asking_and_branches_anywhere() -> None:
    def change(lines: Any, steps: Steps) -> Any:
        _ = lines | "Count" >> beam.Filter(keep)
        return lines | "One" >> steps.change_lines(same) | "Two" >> steps.change_lines(same)

    def build(root: beam.Pipeline, steps: Steps) -> Any:
        settled = graph(steps, root, read_lines=change)
        _ = settled | "Tell" >> beam.Map(print)
        return settled

    assert check(build) is not None


def refused(build: Callable[[beam.Pipeline, Steps], Any], **given: Any) -> str:
    with pytest.raises(UsageError) as error:
        check(build, **given)
    (problem,) = error.value.problems
    return str(problem)


@pytest.mark.parametrize("own", [beam.Filter(keep), beam.FlatMap(lambda line: [line, line]), beam.Reshuffle()])
def test_a_step_that_could_drop_or_double_lines_is_refused(own: beam.PTransform) -> None:
    def dropping(lines: Any, _: Steps) -> Any:
        return lines | "Drop spam" >> own

    assert refused(lambda root, steps: graph(steps, root, read_lines=dropping)) == (
        "'Drop spam' stands between steps.read_lines() and steps.infer(), where it could lose or double lines: "
        "put what it does into steps.change_lines(function)"
    )


@pytest.mark.parametrize(("name", "behind"), [*pairwise(CHAIN)])
def test_it_is_refused_between_any_two_steps(name: str, behind: str) -> None:
    def own(end: Any, _: Steps) -> Any:
        return end | "My own" >> beam.Filter(keep)

    said = refused(lambda root, steps: graph(steps, root, **{name: own}))
    assert said.startswith(f"'My own' stands between steps.{name}() and steps.{behind}(), where")


def test_a_function_stands_nowhere_else() -> None:
    def change(end: Any, steps: Steps) -> Any:
        return end | "Change" >> steps.change_lines(same)

    said = refused(lambda root, steps: graph(steps, root, infer=change))
    assert "'Change' stands between steps.infer() and steps.write_shards()" in said


class Hiding(beam.PTransform):
    """A step of a user's own in which ours stands."""

    def __init__(self, steps: Steps, *, drops: bool) -> None:
        super().__init__()
        self.steps, self.drops = steps, drops

    def expand(self, files: Any) -> Any:
        lines = files | self.steps.read_lines()
        return lines | beam.Filter(keep) if self.drops else lines


@pytest.mark.parametrize("drops", [True, False])
def test_a_step_in_a_composite_of_the_users_own_is_found(drops: bool) -> None:
    def build(root: beam.Pipeline, steps: Steps) -> Any:
        opened = root | steps.find_files() | steps.open_files()
        lines = opened | "My reading" >> Hiding(steps, drops=drops)
        return lines | steps.infer() | steps.write_shards() | steps.settle_files()

    if drops:
        assert "'My reading' stands between steps.read_lines() and steps.infer()" in refused(build)
    else:
        assert check(build) is not None


def test_each_step_is_there_once() -> None:
    def twice(lines: Any, steps: Steps) -> Any:
        _ = lines | "Ask again" >> steps.infer()
        return lines

    said = refused(lambda root, steps: graph(steps, root, read_lines=twice))
    assert said == "the graph has steps.infer() 2 times: use each step once"
    assert "steps.open_files() 0 times" in refused(lambda root, steps: root | steps.find_files())


def test_the_graph_ends_with_what_is_settled() -> None:
    words = "the graph ends with something else than steps.settle_files(): return its output, and use it in branches"

    def nothing(root: beam.Pipeline, steps: Steps) -> None:
        graph(steps, root)

    assert refused(nothing) == words
    assert refused(lambda root, steps: graph(steps, root) | "Tell" >> beam.Filter(keep)) == words


def test_a_step_that_is_not_as_the_run_needs_it_is_refused() -> None:
    def reading(root: beam.Pipeline, steps: Steps) -> Any:
        opened = root | steps.find_files() | steps.open_files()
        lines = opened | ReadLines(Reading(max_line_bytes=7), steps.run)
        return lines | steps.infer() | steps.write_shards() | steps.settle_files()

    assert refused(reading) == "reading of ReadLines is not the run's: take the step from steps.read_lines()"

    def batching(root: beam.Pipeline, steps: Steps) -> Any:
        answers = root | steps.find_files() | steps.open_files() | steps.read_lines() | steps.infer()
        return answers | WriteShards(steps.run, Batching(7)) | steps.settle_files()

    assert refused(batching) == "batching of WriteShards is not the run's: take the step from steps.write_shards()"


def test_an_output_of_own_steps_is_not_one_of_the_command_nor_of_other_steps() -> None:
    given = {name: value for name, value in FILES.items() if name != "own_steps"}
    fingerprints = {
        JsonlOptions(**given).configuration,
        OwnOptions(**FILES).configuration,
        OwnOptions(**{**FILES, "own_steps": "mine, 2"}).configuration,
    }
    assert len(fingerprints) == 3
    assert OwnOptions(**FILES).decisive["own_steps"] == "mine"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"processes": 2}, "--processes"),
        ({"files": (), "retry": "all"}, "a retry has a graph of its own"),
        ({"own_steps": ""}, "own-steps"),
    ],
)
def test_options_that_have_a_graph_of_their_own_are_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        check_options(OwnOptions, **{**FILES, **given})


def test_the_main_graph_is_such_a_chain() -> None:
    def build(root: beam.Pipeline, steps: Steps) -> Any:
        return jsonl.build(root, steps.options, "run-1")

    assert check(build) is not None
