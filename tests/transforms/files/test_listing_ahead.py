"""A listing is read no further ahead of the lines than a few files, whatever the number of its keys."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import apache_beam as beam
import pytest
from apache_beam.testing.test_pipeline import TestPipeline

from llmdo.pipelines.options import JsonlOptions
from llmdo.storage.objects.r2 import R2Store
from llmdo.storage.objects.store import Location, ObjectInfo
from llmdo.transforms.elements import Line, Read
from llmdo.transforms.files.find_files import FindFiles
from llmdo.transforms.files.open_files import OPENED_AT_ONCE, OpenFiles
from llmdo.transforms.files.source import Listing
from llmdo.transforms.lines.read_lines import ReadLines
from llmdo.transforms.run import Run
from tests.memory_store import MemoryStore
from tests.states import run_state

KEYS = 100_000
LINES = 500  # then the run stops
LINE = b'{"prompt": "x"}\n'


class HugeBucket(MemoryStore):
    """Lists KEYS inputs that all have one content, and counts how many it has listed."""

    listed = 0

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        if not prefix.startswith("in/"):
            yield from super().list(prefix)
            return
        etag = self.put("content", LINE)
        for number in range(KEYS):
            self.listed += 1
            yield ObjectInfo(f"in/{number:06d}.jsonl", etag, len(LINE), datetime(2026, 1, 1, tzinfo=UTC))

    def _get(self, key: str):
        return super()._get("content" if key.startswith("in/") else key)


@pytest.fixture
def bucket(monkeypatch):
    bucket = HugeBucket("r2://memory")
    monkeypatch.setattr(R2Store, "open", lambda _: bucket)
    return bucket


AHEAD: list[int] = []  # by line, how many keys were listed before it came and had no line yet


def see(element: Read, run: Run) -> None:
    assert isinstance(element, Line) and element.data == LINE[:-1]
    AHEAD.append(run.store.listed - len(AHEAD) - 1)
    if len(AHEAD) == LINES:
        run.state.stop("enough was seen")


def test_of_100_000_keys_only_a_few_are_listed_ahead_of_the_lines(bucket):
    run_state()
    AHEAD.clear()
    run = Run("run-1", Location("r2://memory", "out/"), "c")
    reading = JsonlOptions(input="r2://memory/in/", output="r2://memory/out/", model="@cf/a/b").reading
    with TestPipeline(runner="FnApiRunner") as pipeline:
        _ = (
            pipeline
            | FindFiles(Listing(("r2://memory/in/",)), run)
            | OpenFiles(run)
            | ReadLines(reading, run)
            | beam.Map(see, run)
        )
    assert len(AHEAD) == LINES
    assert max(AHEAD) <= 2 * OPENED_AT_ONCE
    assert bucket.listed <= LINES + 2 * OPENED_AT_ONCE  # a run that stops lists nothing more


@pytest.mark.parametrize(
    ("given", "at_once"),
    [
        ({"input": "r2://memory/in/"}, True),
        ({"queue": "q"}, True),
        ({"queue": "q", "runner": "prism"}, False),
        ({"input": "r2://memory/in/", "runner": "prism"}, False),
    ],
)
def test_files_are_read_as_soon_as_they_are_open_where_one_worker_finds_them(given, at_once):
    options = JsonlOptions(output="r2://memory/out/", model="@cf/a/b", **given)
    assert options.reading.at_once is at_once
