"""The reader: driven by hand with every kind of split, and end to end on FnApiRunner and Prism."""

from __future__ import annotations

import gzip
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import apache_beam as beam
import pytest
import zstandard
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.sdf_utils import RestrictionTrackerView, ThreadsafeRestrictionTracker
from apache_beam.testing.test_pipeline import TestPipeline
from apache_beam.testing.util import assert_that, equal_to
from hypothesis import given, settings
from hypothesis import strategies as st

from llmdo.storage.errors import AccessDenied
from llmdo.storage.objects.local import LocalStore
from llmdo.storage.output.manifests import ShardRecord
from llmdo.transforms.elements import Blank, FileVersion, KnownShard, Line, OpenFile, Stale, TooLong
from llmdo.transforms.lines import cutting
from llmdo.transforms.lines import read_lines as lines
from llmdo.transforms.lines import reading as reads
from llmdo.transforms.lines.read_lines import ReadLines
from llmdo.transforms.lines.reading import NO_END, Reading
from tests.memory_store import MemoryStore
from tests.plain_reading import contents, gaps_without, limits, plain_reading
from tests.states import run_state
from tests.transforms.lines.restless_reading import RUN, in_order, read_restlessly

ROOT = Path(__file__).parents[3]
SHARD = ShardRecord("shard-000000000000-00.jsonl", "answers", "0+9", 1)


readings = st.builds(
    Reading,
    range_bytes=st.integers(1, 200),
    max_line_bytes=limits,
    checkpoint_seconds=st.sampled_from([None, 1.0]),
)
seeds = st.integers(0, 1 << 32)


@settings(max_examples=400)
@given(contents, readings, st.integers(1, 100), st.sampled_from([1, 9, 64 << 10]), seeds, st.data())
def test_however_a_file_is_split_its_tiles_are_those_of_a_plain_reading(
    content: bytes, reading: Reading, chunk: int, block: int, seed: int, data: st.DataObject
) -> None:
    rng = random.Random(seed)
    store = MemoryStore(chunk=chunk)
    file = store.add("a.jsonl", content)
    tiles = plain_reading(file, content, reading.max_line_bytes)
    done = [tile for tile in tiles if data.draw(st.booleans())] if data.draw(st.booleans()) else []
    with (
        patch.object(reads, "open_store", lambda url: store),
        patch.object(lines, "next_group", lambda size, seconds: rng.randint(1, 8)),
        patch.object(reads, "OVERHANG", data.draw(st.sampled_from([1, 10, 64 << 10]))),
        patch.object(cutting, "BLOCK", block),
    ):
        found = read_restlessly(OpenFile(file, gaps_without(done, len(content), open_end=False)), reading, rng)
    left = [tile for tile in tiles if tile not in done] or ([] if content else [Blank(file, 0, 0, total=0)])
    assert in_order(found) == left


@settings(max_examples=200)
@given(st.lists(contents, min_size=1, max_size=4), readings, st.integers(1, 100), seeds, st.data())
@pytest.mark.parametrize("codec", ["gz", "zst"])
def test_however_a_compressed_file_is_deferred_its_tiles_are_those_of_a_plain_reading(
    codec: str, parts: list[bytes], reading: Reading, chunk: int, seed: int, data: st.DataObject
) -> None:
    rng = random.Random(seed)
    pack = gzip.compress if codec == "gz" else zstandard.ZstdCompressor().compress
    content = b"".join(parts)
    store = MemoryStore(chunk=chunk)
    file = store.add(f"a.jsonl.{codec}", b"".join(pack(part) for part in parts))
    tiles = plain_reading(file, content, reading.max_line_bytes)
    done = [tile for tile in tiles if data.draw(st.booleans())] if data.draw(st.booleans()) else []
    with (
        patch.object(reads, "open_store", lambda url: store),
        patch.object(lines, "next_group", lambda size, seconds: rng.randint(1, 8)),
    ):
        found = read_restlessly(OpenFile(file, gaps_without(done, len(content), open_end=True)), reading, rng)
    end = Blank(file, len(content), len(content), total=len(content))
    assert in_order(found) == [*(tile for tile in tiles if tile not in done), end]


@given(readings, seeds)
def test_a_known_shard_and_an_empty_file_come_out_once(reading: Reading, seed: int) -> None:
    rng = random.Random(seed)
    store = MemoryStore()
    empty, full, packed = store.add("a", b""), store.add("b", b"123456789"), store.add("c.gz", b"")
    with patch.object(reads, "open_store", lambda url: store):
        assert read_restlessly(KnownShard(full, SHARD), reading, rng) == [KnownShard(full, SHARD)]
        assert read_restlessly(OpenFile(empty, ()), reading, rng) == [Blank(empty, 0, 0, total=0)]
        assert read_restlessly(OpenFile(packed, ((0, None),)), reading, rng) == [Blank(packed, 0, 0, total=0)]


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> MemoryStore:
    store = MemoryStore()
    monkeypatch.setattr(reads, "open_store", lambda url: store)
    return store


def process(file: FileVersion, reading: Reading | None = None) -> Iterator[list[Any]]:
    """The groups of one range over the whole file; the tracker must be done at the end."""
    do_fn = lines._ReadRange(reading or Reading(), RUN)
    do_fn.start_bundle()
    element = OpenFile(file, ((0, file.size),))
    tracker = ThreadsafeRestrictionTracker(do_fn.create_tracker(do_fn.initial_restriction(element)))
    yield from map(list, do_fn.process(element, RestrictionTrackerView(tracker)))
    tracker.check_done()


def test_only_the_gaps_and_the_rest_of_their_last_lines_are_asked_for(store: MemoryStore) -> None:
    file = store.add("a", b"0123456\n" * 100)
    reading = Reading(range_bytes=40)
    read_restlessly(OpenFile(file, ((80, 160), (400, 480))), reading, random.Random(1))
    inside = [(80, 160), (400, 480)]
    asked = [(start, NO_END if stop is None else stop) for _, start, stop in store.asked]
    assert asked
    assert all(any(a <= start and stop <= b for a, b in inside) for start, stop in asked)


@pytest.mark.parametrize("size", [64, 65, 1000])
def test_ranges_are_of_the_size_asked_for_and_none_is_tiny(size: int) -> None:
    do_fn = lines._ReadRange(Reading(range_bytes=64), RUN)
    file = FileVersion("r2://memory", "a", "e", size)
    element = OpenFile(file, ((0, size),))
    parts = list(do_fn.split(element, do_fn.initial_restriction(element)))
    assert [part.start for part in parts] == [0, *(part.stop for part in parts[:-1])]
    assert parts[-1].stop == size
    assert all(64 <= part.stop - part.start < 64 + 16 or part is parts[-1] for part in parts)
    assert parts[-1].stop - parts[-1].start >= 16


def test_a_compressed_file_is_not_split_but_can_be_deferred() -> None:
    do_fn = lines._ReadRange(Reading(range_bytes=1), RUN)
    element = OpenFile(FileVersion("r2://memory", "a.gz", "e", 1000), ((0, None),))
    (restriction,) = do_fn.split(element, do_fn.initial_restriction(element))
    tracker = do_fn.create_tracker(restriction)
    assert tracker.try_claim((0, 50))
    assert tracker.try_split(0.5) is None
    parts = tracker.try_split(0)
    assert parts is not None
    primary, residual = parts
    assert (primary.stop, residual.start) == (50, 50)
    assert do_fn.create_tracker(primary).try_split(0.5) is None  # a repeat of the primary is no more seekable
    assert do_fn.restriction_size(element, residual) == 1000


def test_a_tracker_says_so_when_lines_are_left(store: MemoryStore) -> None:
    do_fn = lines._ReadRange(Reading(), RUN)
    element = OpenFile(store.add("a", b"a\nb\n"), ((0, 4),))
    tracker = do_fn.create_tracker(do_fn.initial_restriction(element))
    assert tracker.try_claim((0, 2))
    with pytest.raises(ValueError, match="from byte 2 to 4"):
        tracker.check_done()


@pytest.mark.parametrize(("change", "reason"), [("delete", "does not exist"), ("overwrite", "was overwritten")])
@pytest.mark.parametrize("at", [0, 64])
def test_a_file_that_goes_or_changes_becomes_one_stale(store: MemoryStore, change: str, reason: str, at: int) -> None:
    content = b"0123456\n" * 32
    file = store.add("a", content)
    store.chunk = 64

    def on_chunk(key: str, offset: int) -> None:
        if offset == at:
            store.delete(key) if change == "delete" else store.put(key, b"other")

    store.on_chunk = on_chunk
    found = [tile for group in process(file) for tile in group]
    assert found[:-1] == plain_reading(file, content, 100)[: at // 8]
    assert isinstance(found[-1], Stale)
    assert reason in found[-1].reason


def test_a_file_that_is_shorter_than_announced_is_stale_and_no_line_is_torn(store: MemoryStore) -> None:
    real = store.add("a", b"one\ntwo\nthr")
    file = FileVersion(real.store_url, real.key, real.etag, 14)
    *tiles, stale = [tile for group in process(file) for tile in group]
    assert tiles == [Line(file, 0, 4, b"one"), Line(file, 4, 8, b"two")]
    assert isinstance(stale, Stale)
    assert "ends at byte 11, not 14" in stale.reason


@pytest.mark.parametrize(
    ("key", "body", "reason"),
    [
        ("a.jsonl.gz", gzip.compress(b"one\n" * 99, mtime=0)[:-9], "ends in the middle of its gzip data"),
        ("a.jsonl.gz", b"one\n", "is not valid gzip data"),
        ("a.jsonl.gz", gzip.compress(b"one\n", mtime=0) + b"one\n", "has something else behind its gzip data"),
        ("a.jsonl.zst", zstandard.ZstdCompressor().compress(b"one\n" * 99)[:-1], "ends in the middle of its zstd data"),
        ("a.jsonl.zst", b"one\n", "is not valid zstd data"),
    ],
)
def test_a_corrupt_compressed_file_is_stale_and_says_what_to_do(
    store: MemoryStore, key: str, body: bytes, reason: str
) -> None:
    *_, stale = [tile for group in process(store.add(key, body)) for tile in group]
    assert isinstance(stale, Stale)
    assert stale.reason.startswith(f"r2://memory/{key} {reason}")
    assert stale.reason.endswith("upload it again")


def test_a_plain_file_over_the_limit_is_stale_before_a_byte_is_read(store: MemoryStore) -> None:
    reading = Reading(range_bytes=8, max_file_bytes=100)
    small, large = store.add("a", b"0123\n" * 20), store.add("b", b"0123\n" * 20 + b"\n")
    assert [tile for group in process(small, reading) for tile in group] == plain_reading(small, b"0123\n" * 20, 100)
    store.asked.clear()
    reason = "r2://memory/b holds more than 100 bytes: raise --max-file-bytes, or split the file"
    assert read_restlessly(OpenFile(large, ((0, 101),)), reading, random.Random(1)) == [
        Stale(large, reason, gone=False)
    ]
    assert store.asked == []


@pytest.mark.parametrize(("key", "pack"), [("a.gz", gzip.compress), ("a.zst", zstandard.ZstdCompressor().compress)])
def test_a_compressed_file_is_stale_where_its_content_goes_over_the_limit(
    store: MemoryStore, key: str, pack: Callable[[bytes], bytes]
) -> None:
    content = b"0123456\n" * 1000
    file = store.add(key, pack(content) + pack(content))

    def read(limit: int | None) -> list[Any]:
        return read_restlessly(OpenFile(file, ((0, None),)), Reading(max_file_bytes=limit), random.Random(1))

    assert len(read(None)) == len(read(16_000)) == 2001
    found = read(15_999)
    reason = f"r2://memory/{key} holds more than 15,999 bytes: raise --max-file-bytes, or split the file"
    # One for each part that a runner made of the file.
    assert {tile for tile in found if not isinstance(tile, Line)} == {Stale(file, reason, gone=False)}
    assert all(tile.stop < 16_000 for tile in found if isinstance(tile, Line))


def test_compressed_files_have_a_limit_of_their_own_and_plain_ones_none() -> None:
    plain, packed = (FileVersion("r2://memory", key, "e", 5 << 40) for key in ("a", "a.gz"))
    assert not Reading().refuses(plain)
    assert not Reading(max_file_bytes=5 << 40).refuses(plain)
    assert Reading(max_file_bytes=(5 << 40) - 1).refuses(plain)
    assert Reading().content_limit(packed) == reads.COMPRESSED_CONTENT
    assert Reading(max_file_bytes=1 << 40).content_limit(packed) == 1 << 40


def test_other_storage_errors_are_raised(store: MemoryStore) -> None:
    def on_chunk(key: str, offset: int) -> None:
        raise AccessDenied("the key may not read this bucket")

    store.on_chunk = on_chunk
    with pytest.raises(AccessDenied):
        list(process(store.add("a", b"a\n")))


def test_when_the_run_stops_the_rest_of_the_range_is_left_out(store: MemoryStore) -> None:
    file = store.add("a", b"line\n" * 1000)
    groups = process(file)
    first = next(groups)
    run_state().stop("interrupted")
    assert first == [Line(file, 0, 5, b"line")]
    assert list(groups) == []
    store.asked.clear()
    assert list(process(file)) == []
    assert store.asked == []


def test_a_range_that_was_split_is_read_no_further(store: MemoryStore) -> None:
    store.chunk = 500
    element = OpenFile(store.add("a", b"line\n" * 10_000), ((0, 50_000),))
    do_fn = lines._ReadRange(Reading(), RUN)
    do_fn.start_bundle()
    tracker = ThreadsafeRestrictionTracker(do_fn.create_tracker(do_fn.initial_restriction(element)))
    read: list[int] = []
    store.on_chunk = lambda key, offset: read.append(offset)
    groups = do_fn.process(element, RestrictionTrackerView(tracker))
    tiles = list(next(groups))
    tracker.try_split(0.02)
    tiles += (tile for group in groups for tile in group)
    tracker.check_done()
    assert tiles == plain_reading(element.file, b"line\n" * 201, 100)
    assert max(read) <= 1500


def test_a_reader_without_checkpoints_never_defers(store: MemoryStore) -> None:
    do_fn = lines._ReadRange(Reading(), RUN)
    element = OpenFile(store.add("a", b"line\n" * 1000), ((0, 5000),))
    do_fn.start_bundle()
    tracker = ThreadsafeRestrictionTracker(do_fn.create_tracker(do_fn.initial_restriction(element)))
    assert sum(len(group) for group in do_fn.process(element, RestrictionTrackerView(tracker))) == 1000
    assert tracker.deferred_status() is None


def test_a_range_begins_with_one_line_so_that_a_slow_step_behind_leaves_the_rest_to_split(store: MemoryStore) -> None:
    sizes = [len(group) for group in process(store.add("a", b"line\n" * 1000))]
    assert sizes[:7] == [1, 2, 4, 8, 16, 32, 64]


def test_a_bundle_that_fails_gives_its_lane_back(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "SMALLEST_RANGE", 1)  # else there is one lane more for it
    element = OpenFile(store.add("a", b"a\nb\n"), ((0, 4),))
    resumed = lines._Range(0, 4, fresh=False)

    def begin() -> tuple[Any, list[Any]]:
        do_fn = lines._ReadRange(Reading(checkpoint_seconds=30.0, lanes=1), RUN)
        do_fn.start_bundle()
        tracker = ThreadsafeRestrictionTracker(do_fn.create_tracker(resumed))
        return do_fn, list(do_fn.process(element, RestrictionTrackerView(tracker)))

    first, groups = begin()
    assert groups
    assert begin()[1] == []  # deferred: the only lane is taken
    first.teardown()
    assert begin()[1] == groups


def test_a_small_file_is_read_while_large_ones_have_all_lanes(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "SMALLEST_RANGE", 10)
    reading = Reading(checkpoint_seconds=30.0, lanes=1)

    def read(content: bytes, key: str = "a", fresh: bool = True) -> list[Any]:
        do_fn = lines._ReadRange(reading, RUN)
        do_fn.start_bundle()
        file = store.add(key, content)
        element = OpenFile(file, ((0, None if file.compression else file.size),))
        tracker = do_fn.create_tracker(replace(do_fn.initial_restriction(element), fresh=fresh))
        return list(do_fn.process(element, RestrictionTrackerView(ThreadsafeRestrictionTracker(tracker))))

    assert read(b"line\n" * 100, fresh=False)
    assert read(b"line\n" * 100, fresh=False) == []
    # What is packed may be of any size.
    assert read(gzip.compress(b""), key="a.gz", fresh=False) == []
    assert read(b"one\n")


# End to end.


def prism_options() -> PipelineOptions:
    binary = Path(os.environ.get("LLMDO_PRISM") or ROOT / ".cache" / "prism" / "prism")
    if not binary.exists():
        pytest.fail(f"there is no Prism at {binary}: `make test` fetches it, or set LLMDO_PRISM to where it is")
    return PipelineOptions(
        ["--runner=PrismRunner", f"--prism_location={binary}", "--environment_type=LOOPBACK", "--job_server_timeout=60"]
    )


def same_as(expected: list[Any]) -> Any:
    """Matches the same elements in any order; how often a stale file is told depends on how a runner split it."""
    tiles = [element for element in expected if not isinstance(element, Stale)]
    stale = {element for element in expected if isinstance(element, Stale)}

    def matches(found: list[Any]) -> None:
        equal_to(tiles)([element for element in found if not isinstance(element, Stale)])
        equal_to(stale)({element for element in found if isinstance(element, Stale)})

    return matches


@pytest.fixture(params=["direct", "planned", "at_once", pytest.param("prism", marks=pytest.mark.prism)])
def run(request: pytest.FixtureRequest) -> Any:
    """Reads elements on a runner and compares; on Prism with turns so short that ranges are deferred and resumed.

    Planned reading is for Flink, but any runner can do it.
    """

    def read(elements: list[Any], expected: list[Any], reading: Reading) -> None:
        on_prism = request.param == "prism"
        reading = Reading(
            reading.range_bytes,
            reading.max_line_bytes,
            checkpoint_seconds=0.05 if on_prism else None,
            planned=request.param == "planned",
            at_once=request.param == "at_once",
        )
        root = TestPipeline(options=prism_options()) if on_prism else TestPipeline(runner="FnApiRunner")
        with root as pipeline:
            found = (
                pipeline
                | beam.Create(elements, reshuffle=False).with_output_types(OpenFile | KnownShard)
                | ReadLines(reading, RUN)
            )
            assert_that(found, same_as(expected))

    return read


@pytest.mark.fast("direct", "planned", "at_once")
def test_no_files_give_nothing(run: Any) -> None:
    run([], [], Reading())


@pytest.mark.fast("direct", "planned", "at_once")
def test_every_kind_of_file_comes_out_as_a_plain_reading_of_it(run: Any, tmp_path: Path) -> None:
    limit = 200
    many = b"".join(b'{"id": %d, "prompt": "Translate: bonjour"}\n' % i for i in range(400))
    kinds = {
        "plain.jsonl": many,
        "crlf.jsonl": many.replace(b"\n", b"\r\n"),
        "bom.jsonl": b"\xef\xbb\xbf" + many,
        "one.jsonl": b'{"prompt": "Hi"}',
        "blank.jsonl": b"\n \r\n\t\n",
        "long.jsonl": b"a\n" + b"x" * 5000 + b"\nb\n" + b"y" * 201,
        "empty.jsonl": b"",
        "in/a folder/é.jsonl": many[:77],
        "many.jsonl.gz": gzip.compress(many[:5000]) + gzip.compress(many[5000:]),
        "empty.jsonl.gz": gzip.compress(b""),
        "nothing.jsonl.gz": b"",
        "many.jsonl.zst": zstandard.ZstdCompressor().compress(many),
    }
    kinds |= {f"small-{i}.jsonl": many[: 60 * i] for i in range(1, 20)}
    elements: list[Any] = []
    expected: list[Any] = []
    for key, body in kinds.items():
        (tmp_path / key).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / key).write_bytes(body)
        file = FileVersion(str(tmp_path), key, LocalStore(tmp_path).stat(key).etag, len(body))
        content = body
        if file.compression and body:
            content = gzip.decompress(body) if key.endswith("gz") else many
        tiles = plain_reading(file, content, limit)
        done = tiles[3:5] + tiles[17:40]  # an earlier run answered these
        gaps = gaps_without(done, len(content), open_end=file.compression is not None)
        elements += [OpenFile(file, gaps), KnownShard(file, SHARD)]
        expected += [KnownShard(file, SHARD), *(tile for tile in tiles if tile not in done)]
        if file.compression or not content:
            expected.append(Blank(file, len(content), len(content), total=len(content)))
    assert any(isinstance(tile, TooLong) for tile in expected)
    run(elements, expected, Reading(range_bytes=1000, max_line_bytes=limit))


@pytest.mark.fast("direct", "planned", "at_once")
def test_a_file_that_goes_stale_leaves_the_others_alone(run: Any, store: MemoryStore) -> None:
    store.chunk = 512
    content = b'{"prompt": "Hi"}\n' * 200
    good, bad = store.add("good.jsonl", content), store.add("bad.jsonl", content)

    def on_chunk(key: str, offset: int) -> None:
        if key == "bad.jsonl" and offset >= 2048:
            store.delete(key)

    store.on_chunk = on_chunk
    left = [tile for tile in plain_reading(bad, content, 1000) if tile.stop <= 2048]
    stale = Stale(bad, "r2://memory/bad.jsonl does not exist", gone=True)
    run(
        [OpenFile(bad, ((0, bad.size),)), OpenFile(good, ((0, good.size),))],
        [*plain_reading(good, content, 1000), *left, stale],
        Reading(range_bytes=1 << 20, max_line_bytes=1000),
    )


@pytest.mark.parametrize(
    ("length", "checkpoint", "size"),
    [
        (10**9, None, 4 << 20),
        (10**5, None, 4 << 20),
        (10**9, 30.0, 4 << 20),
        (1_600_000, 30.0, 100_000),
        (1000, 30.0, lines.SMALLEST_RANGE),
    ],
)
def test_where_bundles_take_turns_a_small_file_has_ranges_for_every_lane(length, checkpoint, size):
    assert lines.range_size(Reading(checkpoint_seconds=checkpoint), length) == size
