"""Stretches give the tiles of a plain reading once, and their ends the length of these."""

from __future__ import annotations

import gzip
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmdo.storage.errors import StorageUnavailable
from llmdo.storage.objects.store import Location
from llmdo.transforms.elements import Blank, OpenFile, Stale, StretchRead
from llmdo.transforms.lines import reading
from llmdo.transforms.lines.reading import NO_END, Reading, gap_of, one_gap_each
from llmdo.transforms.lines.stretches import Stretch, read_stretch
from llmdo.transforms.run import Run
from tests.memory_store import MemoryStore
from tests.plain_reading import contents, gaps_without, limits, plain_reading
from tests.states import run_state

RUN = Run("run-1", Location("out", ""))
PLAIN = Reading()


def read(stretch, how=PLAIN, store=None):
    with patch.object(reading, "open_store", lambda url: store):
        return list(read_stretch(stretch, how, RUN))


@settings(max_examples=300)
@given(contents, st.integers(1, 200), limits, st.integers(1, 100), st.booleans(), st.data())
def test_stretches_give_each_tile_of_a_plain_reading_once_and_their_length_last(
    content: bytes, size: int, limit: int, chunk: int, inline: bool, data: st.DataObject
) -> None:
    store = MemoryStore(chunk=chunk)
    file = store.add("a.jsonl", content)
    tiles = plain_reading(file, content, limit)
    done = [tile for tile in tiles if data.draw(st.booleans())] if data.draw(st.booleans()) else []
    opened = OpenFile(file, gaps_without(done, len(content), open_end=False), content if inline else None)
    found, number = [], 0
    for element in one_gap_each(opened) if content else ():
        first, last = gap_of(element)
        for start in range(first, last, size):
            number += 1
            stretch = Stretch(number, element, start, min(start + size, last))
            *own, end = read(stretch, Reading(max_line_bytes=limit), store)
            assert end == StretchRead(file, sum(tile.stop - tile.start for tile in own))
            assert {one.file.stretch for one in (*own, end)} == {number}
            found += own
    assert found == [tile for tile in tiles if tile not in done]


def test_a_compressed_file_is_one_stretch_and_its_end_mark_adds_no_length():
    store = MemoryStore(chunk=50)
    file = store.add("a.jsonl.gz", gzip.compress(b"1\n\n22\n"))
    *tiles, end = read(Stretch(1, OpenFile(file, ((2, None),)), 0, NO_END), store=store)
    assert [(tile.start, tile.stop) for tile in tiles] == [(2, 3), (3, 6), (6, 6)]
    assert end == StretchRead(file, 4)


def test_an_empty_stretch_and_an_empty_file_have_the_length_zero():
    store = MemoryStore(chunk=50)
    file = store.add("a.jsonl", b"0123456789\n")
    assert read(Stretch(1, OpenFile(file, ((0, 11),)), 4, 11), store=store) == [StretchRead(file, 0)]
    empty = store.add("b.jsonl", b"")
    assert read(Stretch(2, OpenFile(empty, ((0, 0),)), 0, 0), store=store) == [
        Blank(empty, 0, 0, total=0),
        StretchRead(empty, 0),
    ]


def test_a_file_that_changes_meanwhile_is_stale_and_its_stretch_ends_with_what_was_read():
    store = MemoryStore(chunk=64)
    file = store.add("a", b"0123456\n" * 32)
    store.on_chunk = lambda key, offset: store.put(key, b"other") if offset == 64 else None
    *tiles, stale, end = read(Stretch(1, OpenFile(file, ((0, file.size),)), 0, file.size), store=store)
    assert isinstance(stale, Stale) and stale.gone
    assert 0 < end.length == sum(tile.stop - tile.start for tile in tiles) < file.size


def test_a_stretch_of_a_stopped_run_has_no_end():
    store = MemoryStore(chunk=80)
    file = store.add("a", b"0123456\n" * 100)
    with patch.object(reading, "open_store", lambda url: store):
        tiles = read_stretch(Stretch(1, OpenFile(file, ((0, 800),)), 0, 800), Reading(), RUN)
        assert next(tiles)
        run_state().stop("interrupted")
        assert list(tiles) == []


def test_a_store_that_fails_says_nothing_about_the_file():
    store = MemoryStore(chunk=80)
    file = store.add("a", b"0123456\n" * 100)

    def fail(key, offset):
        raise StorageUnavailable("no connection")

    store.on_chunk = fail
    with pytest.raises(StorageUnavailable):
        read(Stretch(1, OpenFile(file, ((0, 800),)), 0, 800), store=store)
