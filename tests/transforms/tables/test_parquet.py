"""Rows of Parquet files: wherever reading is split or resumed, each comes once, as pyarrow reads it."""

from __future__ import annotations

import gc
import io
import json
import random
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any
from unittest.mock import patch

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmdo.storage.errors import ObjectChanged, ObjectNotFound, StorageUnavailable
from llmdo.storage.output.intervals import Intervals
from llmdo.transforms.elements import Blank, FileVersion, Line, OpenFile, Stale, TooLong
from llmdo.transforms.files.open_files import gaps_of
from llmdo.transforms.kinds.inside import look_inside
from llmdo.transforms.lines import read_lines as lines
from llmdo.transforms.lines.planned import plan, read_planned
from llmdo.transforms.lines.reading import NO_END, Reading, read_range, unread
from llmdo.transforms.lines.stretches import Stretch, read_stretch
from llmdo.transforms.tables import parquet as tables
from llmdo.transforms.tables import ranged_file
from llmdo.transforms.unreadable import CorruptData
from tests.memory_store import MemoryStore
from tests.states import run_state
from tests.transforms.lines.restless_reading import RUN, in_order, read_restlessly
from tests.transforms.tables.parquet_files import parquet, prompts


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[MemoryStore]:
    store = MemoryStore()
    monkeypatch.setattr(ranged_file, "open_store", lambda url: store)
    monkeypatch.setattr("llmdo.transforms.kinds.first_look.open_store", lambda url: store)
    forget()
    yield store
    forget()


def forget() -> None:
    tables._footers.clear()
    tables._parked.readers.clear()


def opened(store: MemoryStore, body: bytes, name: str = "a.parquet") -> FileVersion:
    return look_inside(store.add(name, body))


def rows_of(body: bytes) -> list[dict[str, Any]]:
    return pq.read_table(io.BytesIO(body)).to_pylist()  # type: ignore[no-any-return]


def read_all(file: FileVersion, reading: Reading | None = None) -> list[Any]:
    found = read_range(OpenFile(file, gaps_of(file, Intervals())), 0, NO_END, reading or Reading())
    return [tile for tiles in found for tile in tiles]


@st.composite
def files(draw: st.DrawFn) -> bytes:
    count = draw(st.integers(0, 60))
    table = pa.table(
        {
            "prompt": pa.array([draw(st.text(max_size=5)) for _ in range(count)], pa.string()),
            "n": pa.array(range(count), pa.int64()),
        }
    )
    groups = draw(st.integers(1, 70))
    return parquet(table, row_group_size=groups, use_dictionary=draw(st.booleans()))


@settings(max_examples=150, deadline=None)
@given(files(), st.integers(1, 5000), st.sampled_from([None, 1.0]), st.integers(0, 1 << 32), st.booleans(), st.data())
def test_however_a_table_is_split_and_resumed_each_row_comes_once(
    body: bytes, size: int, checkpoint: float | None, seed: int, small: bool, data: st.DataObject
) -> None:
    rng, store = random.Random(seed), MemoryStore(chunk=100)
    with (
        patch.object(ranged_file, "open_store", lambda url: store),
        patch.object(tables, "_BATCH_ROWS", data.draw(st.integers(1, 20))),
        patch.object(lines, "next_group", lambda size, seconds: rng.randint(1, 8)),
    ):
        forget()
        file = look_inside(store.add("a.pq", body), body)
        rows = rows_of(body)
        done = [i for i in range(len(rows)) if data.draw(st.booleans())] if data.draw(st.booleans()) else []
        gaps = gaps_of(file, Intervals((i, i + 1) for i in done))
        reading = Reading(range_bytes=size, checkpoint_seconds=checkpoint)
        found = read_restlessly(OpenFile(file, gaps, body if small else None), reading, rng) if gaps else []
    left = [i for i in range(len(rows)) if i not in done]
    if not rows:
        assert found == [Blank(file, 0, 0, total=0)]
        return
    found = in_order(found)
    assert [(tile.start, tile.stop) for tile in found] == [(i, i + 1) for i in left]
    assert [json.loads(tile.data) for tile in found] == [rows[i] for i in left]


@settings(max_examples=100, deadline=None)
@given(files(), st.integers(1, 5000), st.lists(st.integers(0, 60), max_size=6))
def test_planned_ranges_and_stretches_have_each_row_once(body: bytes, size: int, cuts: list[int]) -> None:
    store, rows = MemoryStore(), rows_of(body)
    state = run_state()
    with patch.object(ranged_file, "open_store", lambda url: store):
        forget()
        file = look_inside(store.add("a.pq", body), body)
        element = OpenFile(file, gaps_of(file, Intervals()))
        reading = Reading(range_bytes=size, planned=True)
        planned = [
            tile for part in plan(element, reading) for some in read_planned(part, reading, RUN) for tile in some
        ]
        stops = sorted({0, len(rows), *(cut for cut in cuts if cut < len(rows))})
        stretches = [
            tile
            for number, (start, stop) in enumerate(pairwise(stops))
            for tile in read_stretch(Stretch(number, element, start, stop), reading, RUN)
            if isinstance(tile, Line)
        ]
    assert not state.stopping
    if rows:
        assert [(tile.start, json.loads(tile.data)) for tile in planned] == list(enumerate(rows))
        assert [(tile.start, json.loads(tile.data)) for tile in stretches] == list(enumerate(rows))
    else:
        assert planned == [Blank(file, 0, 0, total=0)]


def test_the_footer_is_read_once_and_only_what_is_needed_of_the_rest(store: MemoryStore) -> None:
    body = parquet({"n": list(range(400_000))}, row_group_size=50_000, use_dictionary=False, compression="none")
    file = opened(store, body)
    assert file.length == 400_000
    asked = len(store.asked)
    element = OpenFile(file, ((399_990, 400_000),))
    found = [tile for tiles in read_range(element, 399_990, 400_000, Reading()) for tile in tiles]
    read = [json.loads(tile.data)["n"] for tile in found if isinstance(tile, Line)]
    assert read == list(range(399_990, 400_000))
    begins = [start for _, start, _ in store.asked[asked:]]
    assert begins
    assert min(begins) >= len(body) // 2  # the last row group of eight, in blocks of 1 MiB


def test_small_row_groups_are_read_together_and_a_large_one_in_parts(store: MemoryStore) -> None:
    many = OpenFile(opened(store, prompts(1000, row_group_size=1)), ((0, 1000),))
    one = OpenFile(opened(store, prompts(100_000), "b.pq"), ((0, 100_000),))
    mixed = OpenFile(opened(store, prompts(1000, row_group_size=300), "c.pq"), ((0, 1000),))
    assert list(lines.ranges_of(many, 0, 1000, 250)) == [(0, 250), (250, 500), (500, 750), (750, 1000)]
    assert list(lines.ranges_of(mixed, 100, 1000, 250)) == [(100, 600), (600, 900), (900, 1000)]
    parts = list(lines.ranges_of(one, 0, 100_000, 10))
    assert len(parts) == tables._PARTS
    assert [start for start, _ in parts[1:]] == [stop for _, stop in parts[:-1]]


def test_a_lane_that_resumes_goes_on_where_the_decoder_is(store: MemoryStore) -> None:
    body = prompts(20_000)
    file = opened(store, body)
    element = OpenFile(file, ((0, 20_000),))
    with patch.object(tables._Reader, "of", side_effect=tables._Reader.of) as made:
        at = 0
        while at < 20_000:
            found = read_range(element, at, 20_000, Reading())
            for _ in range(7):
                at = max((tile.stop for tile in next(found, [])), default=at)
            at -= at % 5 if at < 20_000 else 0  # not all that was read was claimed
            del found
            gc.collect()
        assert made.call_count == 1
    assert tables._parked.readers == []


def test_a_file_that_changes_or_goes_is_reported_as_such(store: MemoryStore) -> None:
    body = prompts(50_000, row_group_size=10_000, use_dictionary=False, compression="none")
    file = opened(store, body)
    found = read_range(OpenFile(file, ((0, 50_000),)), 0, NO_END, Reading())
    next(found)
    store.put("a.parquet", prompts(50_001))
    with pytest.raises(ObjectChanged):
        list(found)
    store.delete("a.parquet")
    forget()
    with pytest.raises(ObjectNotFound):
        look_inside(file, checked=False)


def test_a_file_that_is_shorter_than_was_announced_has_changed(store: MemoryStore) -> None:
    file = store.add("a.parquet", prompts(10))
    with pytest.raises(ObjectChanged, match=r"ends at byte \d+, not"):
        look_inside(replace(file, size=file.size + 1), checked=False)


def test_a_store_that_fails_is_no_fault_of_the_file(store: MemoryStore) -> None:
    def fail(key: str, offset: int) -> None:
        raise StorageUnavailable("R2 does not answer")

    file = store.add("a.parquet", prompts(10))
    store.on_chunk = fail
    with pytest.raises(StorageUnavailable):
        look_inside(file, checked=False)


def broken(name: str) -> bytes:
    good = prompts(20_000, compression="none", use_dictionary=False, write_page_checksum=True)
    middle = len(good) // 2
    return {
        "empty": b"",
        "cut": good[:middle],
        "only magic": b"PAR1",
        "no footer": good[:-8] + b"\0" * 8,
        "a footer that is too long": good[:-8] + b"\xff\xff\xff\x7fPAR1",
        "text": b'{"prompt": "x"}\n' * 10,
        "damaged pages": good.replace(b"What is 7777?", b"What is 7778?"),
        "null vector": parquet({"v": pa.array([[1.0, 2.0], None], pa.list_(pa.float32(), 2))}),
        "twins": parquet(pa.table([[1], [2]], names=["a", "a"])),
    }[name]


@pytest.mark.parametrize(
    "name",
    [
        "empty",
        "cut",
        "only magic",
        "no footer",
        "a footer that is too long",
        "text",
        "damaged pages",
        "twins",
        "null vector",
    ],
)
def test_a_file_that_is_not_whole_parquet_ends_with_one_sentence(store: MemoryStore, name: str) -> None:
    with pytest.raises(CorruptData) as caught:
        read_all(opened(store, broken(name)))
    said = str(caught.value)
    assert said.startswith("r2://memory/a.parquet ")
    assert said.count("r2://memory") == 1
    assert ": " in said
    assert "\n" not in said


def test_an_encrypted_file_says_so(store: MemoryStore) -> None:
    import pyarrow.parquet.encryption as pe

    class Kms(pe.KmsClient):  # type: ignore[misc]
        def wrap_key(self, key_bytes: bytes, master_key_identifier: str) -> bytes:
            return key_bytes.hex().encode()

        def unwrap_key(self, wrapped_key: bytes, master_key_identifier: str) -> bytes:
            return bytes.fromhex(wrapped_key.decode())

    factory, out = pe.CryptoFactory(lambda _: Kms()), io.BytesIO()
    table = pa.table({"prompt": ["x"]})
    for plaintext in (True, False):
        how = pe.EncryptionConfiguration("k", column_keys={"k": ["prompt"]}, plaintext_footer=plaintext)
        properties = factory.file_encryption_properties(pe.KmsConnectionConfig(), how)
        out = io.BytesIO()
        with pq.ParquetWriter(out, table.schema, encryption_properties=properties) as writer:
            writer.write_table(table)
        with pytest.raises(CorruptData, match=r" is (an )?encrypted Parquet.*: decrypt it"):
            read_all(opened(store, out.getvalue(), f"{plaintext}.pq"))


@pytest.mark.parametrize("compression", ["gz", "zst"])
def test_a_table_that_is_compressed_as_a_whole_is_refused(store: MemoryStore, compression: str) -> None:
    with pytest.raises(CorruptData, match=r"compressed as a whole.*: unpack it: "):
        look_inside(store.add(f"a.parquet.{compression}", b"\x1f\x8b..."))


def test_rows_over_the_limit_are_too_long_and_say_how_long(store: MemoryStore) -> None:
    file = opened(store, parquet({"prompt": ["a", "b" * 100, "c"]}))
    found = read_all(file, Reading(max_line_bytes=50))
    assert [type(tile) for tile in found] == [Line, TooLong, Line]
    assert found[1] == TooLong(file, 1, 2, size=len('{"prompt":""}') + 100)
    assert found[1].length == 113


def test_a_table_with_more_content_than_is_allowed_is_not_read(store: MemoryStore) -> None:
    file = opened(store, parquet({"prompt": ["x" * 1000 + str(i) for i in range(1000)]}, use_dictionary=False))
    element = OpenFile(file, gaps_of(file, Intervals()))
    assert file.size < 100_000
    assert unread(element, Reading(max_file_bytes=2_000_000)) is None
    found = unread(element, Reading(max_file_bytes=100_000))
    assert isinstance(found, Stale)
    assert "holds more than 100,000 bytes: raise --max-file-bytes" in found.reason


def test_tables_without_rows_or_columns(store: MemoryStore) -> None:
    empty = opened(store, parquet({"prompt": pa.array([], pa.string())}))
    assert empty.length == 0
    assert unread(OpenFile(empty, gaps_of(empty, Intervals())), Reading()) == Blank(empty, 0, 0, total=0)
    nothing = opened(store, parquet(pa.table({})), "b.pq")
    assert nothing.length == 0
    (one,) = read_all(opened(store, prompts(1), "c.pq"))
    assert json.loads(one.data) == {"id": "r0", "prompt": "What is 0?"}


@pytest.mark.slow
def test_a_row_group_of_a_million_rows_is_not_in_memory_whole(store: MemoryStore) -> None:
    count = 1_000_000
    table = pa.table({"prompt": pa.array([f"{i:0100}" for i in range(count)])})
    body = parquet(table, row_group_size=count, use_dictionary=False)
    del table
    file = opened(store, body)
    assert tables.table_of(file).starts == (0, count)
    pool, seen = pa.default_memory_pool(), 0
    before = most = pool.bytes_allocated()
    for tiles in read_range(OpenFile(file, ((0, count),)), 0, NO_END, Reading()):
        assert len(tiles) <= tables._BATCH_ROWS
        seen += len(tiles)
        most = max(most, pool.bytes_allocated())
    assert seen == count
    assert most - before < 16 << 20  # of 110 MB


def test_a_value_that_a_dictionary_has_once_is_not_copied_for_all_rows_at_once(store: MemoryStore) -> None:
    file = opened(store, parquet({"prompt": ["x" * 500_000] * 3000}))
    assert file.size < 1 << 20
    pool = pa.default_memory_pool()
    before = pool.bytes_allocated()
    for tiles in read_range(OpenFile(file, ((0, 3000),)), 0, NO_END, Reading()):
        assert pool.bytes_allocated() - before < 300 << 20  # of 1.5 GB
        assert sum(len(tile.data) for tile in tiles if isinstance(tile, Line)) < 1 << 20
