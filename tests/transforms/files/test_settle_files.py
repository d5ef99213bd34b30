from dataclasses import replace

import apache_beam as beam
import pytest
from apache_beam.testing.test_pipeline import TestPipeline
from apache_beam.testing.util import assert_that, equal_to

from llmdo.storage.objects.opening import open_store
from llmdo.storage.objects.store import Location
from llmdo.storage.output.intervals import Intervals
from llmdo.storage.output.jobs import JobRecord, Jobs
from llmdo.storage.output.manifests import MANIFEST_NAME, ShardRecord, read_manifest, write_manifest
from llmdo.transforms.elements import FileVersion, Settled, Written
from llmdo.transforms.files.folders import folder_of
from llmdo.transforms.files.settle_files import Finished, SettleFiles, merge, settle, settle_stale
from llmdo.transforms.run import Run

FILE = FileVersion("r2://bucket", "input/a.jsonl", "e1", 100, opening="n1")


def shard(start, stop, kind="answers", lines=1):
    prefix = "shard" if kind == "answers" else "errors"
    return ShardRecord(f"{prefix}-{start:012d}-{stop}.jsonl", kind, f"{start}+{stop - start}", lines, 2, 3)


@pytest.fixture
def output(tmp_path):
    where = Location(str(tmp_path), "out/")
    record = JobRecord(
        store_url=FILE.store_url,
        key=FILE.key,
        etag=FILE.etag,
        size=FILE.size,
        notification={},
        configuration="c",
        run_id="run-1",
        nonce="n1",
    )
    Jobs(open_store(str(tmp_path)), where.key).claim(record, lambda run_id: False)
    return where


def settled_by_beam(output, written, expected):
    with TestPipeline(runner="FnApiRunner") as pipeline:
        result = pipeline | beam.Create(written, reshuffle=False) | SettleFiles(Run("run-1", output, "c"))
        assert_that(result, equal_to(expected))


def open_records(output):
    return list(Jobs(open_store(output.store_url), output.key).sweep())


def test_a_file_is_done_when_its_tiles_cover_it(output):
    written = [
        Written(FILE, shard=shard(50, 100, lines=5)),
        Written(FILE, blanks=((40, 41), (41, 50))),
        Written(FILE, shard=shard(0, 40, "errors", lines=2)),
    ]
    settled_by_beam(output, written, [Settled(FILE, "done", 5, 2)])
    manifest = read_manifest(open_store(output.store_url), folder_of(output, FILE))
    assert (manifest.answered, manifest.failed, manifest.blank, manifest.length) == (5, 2, 2, 100)
    assert (manifest.input_tokens, manifest.output_tokens) == (4, 6)
    assert [s.name for s in manifest.shards] == [shard(0, 40, "errors").name, shard(50, 100).name]
    assert open_records(output) == []


@pytest.mark.parametrize(
    "written",
    [
        [],
        [Written(FILE, shard=shard(0, 99))],
        [Written(FILE, shard=shard(1, 100))],
        [Written(FILE, shard=shard(0, 50)), Written(FILE, shard=shard(51, 100))],
        # As many bytes as the file has, but some twice and some never.
        [Written(FILE, shard=shard(0, 60)), Written(FILE, shard=shard(20, 60))],
        [Written(FILE, shard=shard(0, 60)), Written(FILE, shard=shard(50, 100))],
    ],
)
def test_a_file_with_a_gap_or_an_overlap_stays_open(output, written):
    settled_by_beam(output, written, [])
    assert read_manifest(open_store(output.store_url), folder_of(output, FILE)) is None
    assert len(open_records(output)) == 1


def test_a_shard_that_comes_twice_counts_once(output):
    written = [
        Written(FILE, shard=shard(0, 60)),
        Written(FILE, shard=shard(0, 60)),
        Written(FILE, shard=shard(60, 100)),
    ]
    settled_by_beam(output, written, [Settled(FILE, "done", 2, 0)])
    manifest = read_manifest(open_store(output.store_url), folder_of(output, FILE))
    assert (len(manifest.shards), manifest.answered) == (2, 2)


def test_an_empty_file_is_done_with_its_end_mark_and_not_before(output):
    empty = replace(FILE, size=0)
    settled_by_beam(output, [Written(empty, blanks=((0, 0),), total=0)], [Settled(empty, "done", 0, 0)])
    manifest = read_manifest(open_store(output.store_url), folder_of(output, empty))
    assert (manifest.shards, manifest.blank) == ((), 0)


def test_a_compressed_file_is_done_only_when_its_length_is_known(output):
    packed = replace(FILE, key="input/a.jsonl.gz", size=100)
    lines = [Written(packed, shard=shard(0, 700, lines=7)), Written(packed, shard=shard(700, 800))]
    settled_by_beam(output, lines, [])
    end = Written(packed, blanks=((800, 801), (801, 801)), total=801)
    settled_by_beam(output, [*lines, end], [Settled(packed, "done", 8, 0)])
    manifest = read_manifest(open_store(output.store_url), folder_of(output, packed))
    assert (manifest.length, manifest.blank) == (801, 1)


def test_a_stale_file_gets_no_manifest_and_its_record_goes(output):
    written = [Written(FILE, stale="corrupt"), Written(FILE, shard=shard(0, 100))]
    settled_by_beam(output, written, [Settled(FILE, "stale", reason="corrupt")])
    assert read_manifest(open_store(output.store_url), folder_of(output, FILE)) is None
    assert open_records(output) == []


@pytest.mark.parametrize(("content", "left"), [(None, 0), (b"{}\n\n", 0), (b"{}\n", 1)])
def test_a_version_that_was_gone_and_is_back_is_free_for_the_next_sweep(tmp_path, content, left):
    source, where = open_store(str(tmp_path / "in")), Location(str(tmp_path), "out/")
    etag = source.put("a.jsonl", b"{}\n")
    file = FileVersion(source.url, "a.jsonl", etag, 3, opening="n1")
    record = JobRecord(
        store_url=file.store_url,
        key=file.key,
        etag=etag,
        size=3,
        notification={},
        configuration="c",
        run_id="r",
        nonce="n1",
    )
    jobs = Jobs(open_store(str(tmp_path)), where.key)
    jobs.claim(record, lambda run_id: False)
    if content is None:
        source.delete("a.jsonl")
    elif left == 0:
        source.put("a.jsonl", content)
    settle_stale(Run("run-1", where), file, "it was overwritten", gone=True)
    assert [found.run_id for found in jobs.sweep()] == [""] * left


def test_a_stale_file_that_another_run_has_taken_over_is_left_to_it(output):
    settle_stale(Run("run-1", output), replace(FILE, opening="an earlier one"), "corrupt", gone=False)
    assert len(open_records(output)) == 1


def test_only_the_winner_of_the_manifest_deletes_and_only_what_it_saw_and_does_not_count(output):
    store, folder = open_store(output.store_url), folder_of(output, FILE)
    mine, torn, theirs = shard(0, 100).name, "shard-000000000000-torn.jsonl", "shard-000000000000-theirs.jsonl"
    for name in (mine, torn, theirs):
        store.put(folder + name, b"{}\n")
    finished = Finished(FILE, 100, 0, (shard(0, 100),), frozenset({torn, mine}))
    settle(Run("run-1", output, "c"), finished)
    left = [folder + name for name in (MANIFEST_NAME, mine, theirs)]
    assert sorted(info.key for info in store.list(folder)) == sorted(left)
    settle(Run("run-2", output, "c"), replace(finished, leftovers=frozenset({theirs})))
    assert sorted(info.key for info in store.list(folder)) == sorted(left)


def test_a_shard_that_overlaps_is_deleted_by_the_run_that_wrote_it(output):
    store, folder = open_store(output.store_url), folder_of(output, FILE)
    one, other = shard(0, 60), shard(50, 60)
    store.put(folder + other.name, b"{}\n")
    store.put(folder + "shard-000000000000-torn.jsonl", b"{}\n")
    written = [
        Written(FILE, leftovers=("shard-000000000000-torn.jsonl",)),
        Written(FILE, shard=one),
        Written(FILE, shard=other),
        Written(FILE, shard=shard(60, 100)),
    ]
    settled_by_beam(output, written, [Settled(FILE, "done", 2, 0)])
    manifest = read_manifest(open_store(output.store_url), folder_of(output, FILE))
    assert (len(manifest.shards), manifest.answered) == (2, 2)
    assert [info.key for info in store.list(folder)] == [folder + MANIFEST_NAME]


def test_files_do_not_disturb_each_other(output):
    other = replace(FILE, etag="e2")
    written = [Written(FILE, shard=shard(0, 100)), Written(other, shard=shard(0, 50))]
    settled_by_beam(output, written, [Settled(FILE, "done", 1, 0)])
    assert read_manifest(open_store(output.store_url), folder_of(output, FILE)) is not None
    assert read_manifest(open_store(output.store_url), folder_of(output, other)) is None


def test_the_loser_of_a_race_says_what_the_winners_manifest_says(output):
    store, folder = open_store(output.store_url), folder_of(output, FILE)
    settle(Run("run-1", output, "c"), Finished(FILE, 100, 0, (shard(0, 100, lines=9),)))
    winner = read_manifest(store, folder)
    late = settle(Run("run-2", output, "c"), Finished(FILE, 100, 0, (shard(0, 100, lines=8),)))
    assert late == Settled(FILE, "done", 9, 0)
    assert read_manifest(store, folder) == winner
    assert write_manifest(store, folder, winner) == winner
    assert [info.key for info in store.list(folder)] == [folder + MANIFEST_NAME]


def test_tiles_that_are_covered_change_nothing():
    covered = Intervals([(0, 10)])
    assert not merge(covered, Written(FILE, blanks=((20, 30), (9, 11))))
    assert covered.spans == ((0, 10),)
    assert merge(covered, Written(FILE, blanks=((10, 20),)))
    assert covered.spans == ((0, 20),)
