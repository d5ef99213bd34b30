"""Planned reading gives the tiles of a plain reading, and parcels of a few lines. End to end: ``test_lines``."""

from __future__ import annotations

import gzip
from typing import Any
from unittest.mock import patch

from hypothesis import given, settings
from hypothesis import strategies as st

from llmdo.pipelines.runner_options import FLINK_LANES
from llmdo.storage.objects.store import Location
from llmdo.transforms.elements import Blank, Line, OpenFile, Stale
from llmdo.transforms.lines import planned, reading
from llmdo.transforms.lines.planned import PARCEL_LINES, parcels, parcels_in_bundle, plan, read_planned
from llmdo.transforms.lines.reading import PLANNED_CONTENT, Reading
from llmdo.transforms.run import Run
from tests.memory_store import MemoryStore
from tests.plain_reading import contents, gaps_without, limits, plain_reading
from tests.states import run_state

RUN = Run("run-1", Location("out", ""))
readings = st.builds(Reading, range_bytes=st.integers(1, 200), max_line_bytes=limits, planned=st.just(True))


def read(element: Any, how: Reading) -> list[list[Any]]:
    """The parcels of all ranges."""
    return [parcel for part in plan(element, how) for parcel in read_planned(part, how, RUN)]


@settings(max_examples=300)
@given(contents, readings, st.integers(1, 100), st.booleans(), st.data())
def test_planned_ranges_give_each_tile_of_a_plain_reading_once(
    content: bytes, how: Reading, chunk: int, inline: bool, data: st.DataObject
) -> None:
    store = MemoryStore(chunk=chunk)
    file = store.add("a.jsonl", content)
    tiles = plain_reading(file, content, how.max_line_bytes)
    done = [tile for tile in tiles if data.draw(st.booleans())] if data.draw(st.booleans()) else []
    gaps = gaps_without(done, len(content), open_end=False) or (((0, 0),) if not content else ())
    with patch.object(reading, "open_store", lambda url: store):
        found = read(OpenFile(file, gaps, content if inline else None), how)
    left = [tile for tile in tiles if tile not in done] or ([] if content else [Blank(file, 0, 0, total=0)])
    assert [tile for parcel in found for tile in parcel] == left


@settings(max_examples=100)
@given(contents, readings, st.data())
def test_a_compressed_file_is_one_range(content: bytes, how: Reading, data: st.DataObject) -> None:
    store = MemoryStore(chunk=50)
    file = store.add("a.jsonl.gz", gzip.compress(content))
    tiles = plain_reading(file, content, how.max_line_bytes)
    done = [tile for tile in tiles if data.draw(st.booleans())]
    element = OpenFile(file, gaps_without(done, len(content), open_end=True))
    with patch.object(reading, "open_store", lambda url: store):
        assert len(list(plan(element, how))) == 1
        found = [tile for parcel in read(element, how) for tile in parcel]
    end = Blank(file, len(content), len(content), total=len(content))
    assert found == [*(tile for tile in tiles if tile not in done), end]


def test_parcels_hold_few_lines_and_few_bytes_and_none_is_empty():
    file = MemoryStore().add("a", b"")
    short = [Line(file, i, i + 1, b"x") for i in range(2 * PARCEL_LINES + 1)]
    assert [len(parcel) for parcel in parcels(short)] == [PARCEL_LINES, PARCEL_LINES, 1]
    long = [Line(file, i, i + 1, b"x" * (100 << 10)) for i in range(5)]
    assert [len(parcel) for parcel in parcels(long)] == [2, 2, 1]
    huge = [Line(file, i, i + 1, b"x" * planned.PARCEL_BYTES * 2) for i in range(2)]
    assert [len(parcel) for parcel in parcels(huge)] == [1, 1]
    assert list(parcels([])) == []


def test_a_file_that_is_overwritten_while_it_is_read_is_stale():
    store = MemoryStore(chunk=64)
    file = store.add("a", b"0123456\n" * 32)
    store.on_chunk = lambda key, offset: store.put(key, b"other") if offset == 64 else None
    with patch.object(reading, "open_store", lambda url: store):
        *_, last = read(OpenFile(file, ((0, file.size),)), Reading(planned=True))
    assert isinstance(last[0], Stale)
    assert last[0].gone


def test_when_the_run_stops_the_rest_of_the_range_is_left_out():
    store = MemoryStore(chunk=80)
    file = store.add("a", b"0123456\n" * 100)
    with patch.object(reading, "open_store", lambda url: store):
        groups = read_planned(next(iter(plan(OpenFile(file, ((0, 800),)), Reading()))), Reading(planned=True), RUN)
        assert next(groups)
        run_state().stop("interrupted")
        assert list(groups) == []


def test_what_is_compressed_may_hold_less_than_where_it_is_read_as_it_comes():
    file = MemoryStore().add("a.gz", b"")
    assert Reading(planned=True).content_limit(file) == PLANNED_CONTENT < Reading().content_limit(file)
    assert Reading(planned=True, max_file_bytes=1 << 40).content_limit(file) == 1 << 40


def test_bundles_of_all_lanes_hold_more_than_a_window_even_of_one_line_files():
    for window in (1, 8, 64, 500):
        assert FLINK_LANES * parcels_in_bundle(window) >= 4 * window
