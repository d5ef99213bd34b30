"""A function of the user's changes what is asked, and can neither lose a line nor make two of one."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.testing.test_pipeline import TestPipeline

from llmdo.backends.errors import StopRun
from llmdo.storage.objects.store import Location
from llmdo.transforms.elements import Blank, Failure, FileVersion, KnownShard, Leftovers, Line, Stale, TooLong
from llmdo.transforms.own.change_lines import ChangeLines, Skip, SkippedLine, StepFailed, change_line
from llmdo.transforms.run import Run
from tests.states import fresh_state, run_state

FILE = FileVersion("r2://bucket", "input/a.jsonl", "e1", 1000)
RUN = Run("run-1", Location("out", ""))
# A module global, since Beam pickles closures: what a step puts into a local list is never seen here.
FOUND: list[Any] = []


def line(document: Any, start: int = 0) -> Line:
    data = document if isinstance(document, bytes) else json.dumps(document).encode()
    return Line(FILE, start, start + 10, data)


def raising(document: dict[str, Any]) -> dict[str, Any]:
    return {**document, "prompt": document["absent"]}


def forgetful(document: dict[str, Any]) -> None:
    document["prompt"] = "changed"


def renaming(document: dict[str, Any]) -> dict[str, Any]:
    document["id"] = 1.0
    return document


def test_a_changed_line_keeps_its_place_and_what_stands_in_the_file() -> None:
    before = line({"id": 1, "prompt": "a"}, 30)
    after = change_line(before, lambda document: {**document, "prompt": "b"})
    assert (after.file, after.start, after.stop, after.data) == (FILE, 30, 40, before.data)
    assert json.loads(after.changed or b"") == {"id": 1, "prompt": "b"}


def test_a_second_function_gets_what_the_first_one_returned() -> None:
    once = change_line(line({"prompt": "a"}), lambda document: {**document, "prompt": document["prompt"] + "b"})
    twice = change_line(once, lambda document: {**document, "prompt": document["prompt"] + "c"})
    assert json.loads(twice.changed or b"") == {"prompt": "abc"}


def test_an_error_row_of_an_earlier_run_is_changed_as_its_line() -> None:
    names = "class code status message retryable attempts offset length".split()
    row = {"prompt": "a", "error": dict.fromkeys(names)}
    assert json.loads(change_line(line(row), lambda document: document).changed or b"") == {"prompt": "a"}


@pytest.mark.parametrize("data", [b"{broken", b"[1]", b'"a text"', b"\xff"])
def test_what_is_not_a_json_object_is_left_to_the_next_step_which_reports_it(data: bytes) -> None:
    before = line(data)
    assert change_line(before, raising) is before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (raising, "raising failed: KeyError: 'absent'"),
        (partial(raising), "raising failed: KeyError: 'absent'"),
        (forgetful, "forgetful returned None: let it return the line, or llmdo.Skip(reason)"),
        (lambda document: [document], "let it return the line"),
        (lambda _: {"prompt": {1, object()}}, "failed: PydanticSerializationError"),
        (lambda _: {"id": "\ud800"}, "failed: PydanticSerializationError"),
        (renaming, "renaming changed id or custom_id"),
        (lambda document: {"prompt": document["prompt"]}, "changed id or custom_id"),
        (lambda document: {**document, "custom_id": "new"}, "changed id or custom_id"),
    ],
)
def test_a_function_that_fails_is_an_error_of_its_line(change: Callable[..., Any], words: str) -> None:
    with pytest.raises(StepFailed) as failed:
        change_line(line({"id": 1, "prompt": "a"}), change)
    assert words in str(failed.value)


def test_a_skip_is_an_error_with_the_reason_and_a_stop_is_one() -> None:
    with pytest.raises(SkippedLine, match="spam"):
        change_line(line({"prompt": "a"}), lambda _: Skip("spam"))

    def stopping(_: dict[str, Any]) -> dict[str, Any]:
        raise StopRun("the orders cannot be read: start their database")

    with pytest.raises(StopRun, match="database"):
        change_line(line({"prompt": "a"}), stopping)


NAMES = {"a": "Anna", "b": "Bert"}


def collect(tile: Any) -> None:
    FOUND.append(tile)


def change(document: dict[str, Any]) -> dict[str, Any] | Skip:
    match document["prompt"]:
        case "skip":
            return Skip("not wanted")
        case "stop":
            raise StopRun("enough")
    return {**document, "prompt": NAMES[document["prompt"]]}


def changed(*tiles: Any) -> list[Any]:
    """What the step emits on FnApiRunner, sorted by where it stands."""
    FOUND.clear()
    fresh_state()
    with TestPipeline(runner="FnApiRunner") as pipeline:
        result = pipeline | beam.Create(tiles, reshuffle=False) | ChangeLines(change, RUN)
        _ = result | beam.Map(collect)
    return sorted(FOUND, key=lambda tile: getattr(tile, "start", -1))


def test_each_line_comes_out_once_and_everything_else_as_it_is() -> None:
    others = [
        Blank(FILE, 40, 50),
        TooLong(FILE, 50, 60),
        Line(FILE, 60, 70, b"x", problem="the row cannot be read"),
        line(b"{broken", 70),
    ]
    passing = [KnownShard(FILE, None), Leftovers(FILE, ("s",)), Stale(FILE, "gone", gone=True)]  # type: ignore[arg-type]  # its shard is never looked at
    lines = [line({"prompt": text}, 10 * at) for at, text in enumerate(["a", "skip", "b", "c"])]
    found = changed(*passing, *lines, *others)
    assert sorted(map(repr, found[:3])) == sorted(map(repr, passing))
    first, skipped, second, failed, *rest = found[3:]
    assert rest == others
    assert [json.loads(one.changed)["prompt"] for one in (first, second)] == ["Anna", "Bert"]
    assert [type(one) for one in (skipped, failed)] == [Failure, Failure]
    row = json.loads(skipped.row)
    assert (row["prompt"], row["error"]["class"], row["error"]["message"]) == ("skip", "SkippedLine", "not wanted")
    row = json.loads(failed.row)
    assert (row["prompt"], row["error"]["class"], row["error"]["retryable"]) == ("c", "StepFailed", False)
    assert row["error"]["message"] == "change failed: KeyError: 'c'"
    assert (skipped.start, skipped.stop, failed.start, failed.stop) == (10, 20, 30, 40)
    assert run_state().counts.failed == 2


def test_a_stop_ends_the_run_and_leaves_the_rest_open() -> None:
    found = changed(line({"prompt": "a"}), line({"prompt": "stop"}, 10), line({"prompt": "b"}, 20))
    assert [one.start for one in found] == [0]
    assert str(run_state().stop_reason) == "enough"
    assert run_state().counts.failed == 0
