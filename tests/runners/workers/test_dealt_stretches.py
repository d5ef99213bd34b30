"""What is left of a stretch whose worker died is read once, by another one."""

from __future__ import annotations

import gzip
from dataclasses import replace
from unittest.mock import patch

from hypothesis import given, settings
from hypothesis import strategies as st

from llmdo.runners.workers.dealt_stretches import DealtStretch, counts_of, written_by_the_dead
from llmdo.storage.objects.local import LocalStore
from llmdo.storage.objects.store import Location
from llmdo.storage.output.intervals import Intervals
from llmdo.storage.output.manifests import ShardRecord, put_shard
from llmdo.transforms.elements import Blank, FileVersion, OpenFile, StretchRead, Written
from llmdo.transforms.files.folders import folder_of
from llmdo.transforms.lines import reading
from llmdo.transforms.lines.reading import NO_END, Reading
from llmdo.transforms.lines.stretches import Stretch, read_stretch
from llmdo.transforms.run import Run
from tests.memory_store import MemoryStore
from tests.plain_reading import contents

RUN = Run("run-1", Location("out", ""))


def read(stretch, store):
    with patch.object(reading, "open_store", lambda url: store):
        return list(read_stretch(stretch, Reading(), RUN))


def came_back(file, tiles):
    """As the worker reports these tiles: in a shard, or as blanks."""
    lines = Intervals((tile.start, tile.stop) for tile in tiles if not isinstance(tile, Blank))
    yield Written(file, shard=ShardRecord(f"shard-{len(lines):012d}-aa.jsonl", "answers", lines.encode(), len(lines)))
    yield Written(file, blanks=tuple((tile.start, tile.stop) for tile in tiles if isinstance(tile, Blank)))


@settings(max_examples=300)
@given(contents, st.integers(0, 300), st.integers(1, 300), st.booleans(), st.data())
def test_the_rest_of_a_stretch_is_all_that_did_not_come_back(content, start, length, compressed, data):
    store = MemoryStore(chunk=7)
    file = store.add("a.jsonl.gz" if compressed else "a.jsonl", gzip.compress(content) if compressed else content)
    size = len(content)
    start, stop = (0, NO_END) if compressed else (min(start, size), min(start + length, size))
    gap = (0, None) if compressed else (0, size)
    stretch = Stretch(1, OpenFile(file, (gap,)), start, stop)
    if not content or (not compressed and start == stop):
        return
    *tiles, end = read(stretch, store)
    done = [tile for tile in tiles if data.draw(st.booleans())]
    dealt = DealtStretch(stretch)
    for written in came_back(file, done):
        dealt.add(written)
    assert not dealt.done or not tiles
    rest = dealt.rest(2)
    left = [tile for tile in tiles if tile not in done]
    again = [] if rest is None else [one for one in read(rest.stretch, store) if not isinstance(one, StretchRead)]
    # The end mark of a compressed file has no length: it comes again, and counts once.
    assert [one for one in again if one.start < one.stop] == [one for one in left if one.start < one.stop]
    for written in came_back(file, left):
        dealt.add(written)
    dealt.add(Written(file, stretch_length=end.length))
    assert dealt.done


def test_an_empty_file_is_dealt_again_until_its_end_mark_comes():
    file = FileVersion("r2://bucket", "a.jsonl", "e1", 0, "nonce")
    dealt = DealtStretch(Stretch(1, OpenFile(file, ((0, 0),), b""), 0, NO_END), deaths=1)
    rest = dealt.rest(2)
    assert (rest.stretch, rest.deaths) == (replace(dealt.stretch, number=2), 1)
    rest.add(Written(file, blanks=((0, 0),), total=0))
    assert not rest.done
    rest.add(Written(file, stretch_length=0))
    assert rest.done


def test_shards_that_the_dead_wrote_are_found_and_those_of_others_are_not(tmp_path):
    run = Run("run-1", Location(str(tmp_path), ""))
    file = FileVersion("r2://bucket", "a.jsonl", "e1", 10_000, "nonce", stretch=7)
    folder, store = folder_of(run.output, file), LocalStore(tmp_path)

    def put(*places, kind="answers"):
        field = "source" if kind == "answers" else "error"
        rows = [(at, at + 10, f'{{"{field}": {{"offset": {at}, "length": 10}}}}'.encode()) for at in places]
        return put_shard(store, folder, kind, rows, configuration="")

    told, found, failed = put(1000, 1010), put(1020, 1050), put(1060, kind="errors")
    put(990), put(2000)  # of other stretches
    (tmp_path / folder / "shard-000000001100-0123456789abcdef.jsonl").write_text('{"torn')
    dealt = DealtStretch(Stretch(7, OpenFile(file, ((500, 10_000),)), 1000, 2000))
    dealt.add(Written(file, shard=told))
    written = written_by_the_dead(run, dealt)
    assert {one.shard for one in written if one.shard} == {found, failed}
    assert [one.leftovers for one in written if one.leftovers] == [("shard-000000001100-0123456789abcdef.jsonl",)]
    for one in written:
        dealt.add(one)
    assert written_by_the_dead(run, dealt)[:-1] == []
    rest = dealt.rest(8)
    assert rest.stretch.element.gaps == ((1030, 1050), (1070, 10_000))


def test_shards_of_earlier_runs_in_a_compressed_file_are_not_found_again(tmp_path):
    run = Run("run-1", Location(str(tmp_path), ""))
    file = FileVersion("r2://bucket", "a.jsonl.gz", "e1", 100, "nonce")
    row = [(0, 10, b'{"source": {"offset": 0, "length": 10}}')]
    put_shard(LocalStore(tmp_path), folder_of(run.output, file), "answers", row, configuration="")
    dealt = DealtStretch(Stretch(1, OpenFile(file, ((10, None),)), 0, NO_END))
    assert written_by_the_dead(run, dealt) == []


def test_what_came_back_is_counted_as_the_summary_counts_it():
    file = FileVersion("r2://bucket", "a.jsonl", "e1", 100)
    record = ShardRecord("errors-000000000000-aa.jsonl", "errors", "0+30", 3, 4, 5)
    expected = {"bytes_done": 30, "failed": 3, "input_tokens": 4, "output_tokens": 5, "shards": 1, "lines_written": 3}
    assert counts_of(Written(file, shard=record)) == expected
    assert counts_of(Written(file, blanks=((30, 31), (40, 42)))) == {"bytes_done": 3}
