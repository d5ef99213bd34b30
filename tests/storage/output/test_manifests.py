import hashlib
import json
import threading
from datetime import UTC, datetime
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmdo.storage.errors import AlreadyExists
from llmdo.storage.objects.local import LocalStore
from llmdo.storage.objects.store import ObjectInfo
from llmdo.storage.output.costs import UNPAID, Cost, LaneCost, total, unknown
from llmdo.storage.output.folders import list_folder
from llmdo.storage.output.intervals import Intervals
from llmdo.storage.output.manifests import (
    MANIFEST_NAME,
    MAX_KEY_BYTES,
    MAX_LOCAL_NAME_BYTES,
    MAX_METADATA_BYTES,
    Manifest,
    ManifestShard,
    ShardRecord,
    counted_shards,
    file_folder,
    put_shard,
    read_manifest,
    read_shard,
    shard_name,
    write_manifest,
)

FOLDER = "output/bucket/input/a.jsonl/etag/"
ANSWER, ERROR = "answers", "errors"


def row(kind, start, stop, tokens=(3, 5)):
    place = {"offset": start, "length": stop - start}
    if kind == ERROR:
        return start, stop, json.dumps({"prompt": "…", "error": {"class": "X"} | place}).encode()
    usage = {"input_tokens": tokens[0], "output_tokens": tokens[1]}
    return start, stop, json.dumps({"id": f"{start}", "usage": usage, "source": {"key": "k"} | place}).encode()


def write(store, kind, *spans, folder=FOLDER):
    rows = [row(kind, start, stop) for start, stop in spans]
    paid = len(spans) if kind == ANSWER else 0
    return put_shard(store, folder, kind, rows, configuration="c" * 64, input_tokens=3 * paid, output_tokens=5 * paid)


def shards_of(store, folder=FOLDER):
    return [read_shard(store, info) for info in store.list(folder)]


@pytest.fixture
def local(tmp_path):
    return LocalStore(tmp_path)


@pytest.fixture(params=["local", "r2"])
def either(request):
    """A store without metadata, and one with."""
    return request.getfixturevalue("local" if request.param == "local" else "store")


# Names


@pytest.mark.parametrize(
    ("parts", "folder"),
    [
        (("output/", "bucket", "input/a b.jsonl", "e-2"), "output/bucket/input/a b.jsonl/e-2/"),
        (("", "bucket", "a", "e"), "bucket/a/e/"),
        (("", "", "sub/a.jsonl", "10-99"), "sub/a.jsonl/10-99/"),
        (("/o/p/", "bucket", "a", "e"), "o/p/bucket/a/e/"),
    ],
)
def test_a_files_folder_is_readable(parts, folder):
    assert file_folder(*parts) == folder


@pytest.mark.parametrize(
    "key", ["x" * 256 + "/a", "a/" + "é" * 128, "a//b", "/a", "a/", "../a", "a/./b", "a\0b", "x/" * 490 + "a"]
)
def test_a_key_that_some_store_could_not_hold_is_hashed(key):
    assert file_folder("output", "bucket", key, "e") == f"output/bucket/{hashlib.sha256(key.encode()).hexdigest()}/e/"


def test_the_limits_are_met_exactly():
    name = "x" * MAX_LOCAL_NAME_BYTES
    assert file_folder("", "bucket", name, "e") == f"bucket/{name}/e/"
    longest = len("errors--.jsonl") + 15 + 16
    room = MAX_KEY_BYTES - len("bucket/" + "/e/") - longest
    key = "a/" * (room // 2 - 1) + "b" * (2 + room % 2)
    assert file_folder("", "bucket", key, "e") == f"bucket/{key}/e/"
    assert key not in file_folder("", "bucket", key + "b", "e")


@given(
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=1100),
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=1100),
)
def test_every_key_has_its_own_folder_that_both_stores_can_hold(one, other):
    folders = [file_folder("output", "bucket", key, "e" * 40) for key in (one, other)]
    for folder in folders:
        shard = folder + shard_name("errors", 10**14, b"")
        assert len(shard.encode()) <= MAX_KEY_BYTES
        names = folder.removesuffix("/").split("/")
        assert all(name not in {"", ".", ".."} and len(name.encode()) <= MAX_LOCAL_NAME_BYTES for name in names)
        assert "\0" not in folder
    assert (folders[0] == folders[1]) == (one == other)


def test_a_shards_name_is_its_first_offset_and_its_content():
    assert shard_name("answers", 4096, b"x") == f"shard-000000004096-{hashlib.sha256(b'x').hexdigest()[:16]}.jsonl"
    assert shard_name("errors", 0, b"x").startswith("errors-000000000000-")
    assert ShardRecord(shard_name("answers", 4096, b"x"), "answers", "", 1).first == 4096


# Shards


@pytest.mark.parametrize("kind", [ANSWER, ERROR])
def test_what_was_put_is_read(either, kind):
    written = write(either, kind, (0, 10), (10, 25), (40, 41))
    assert shards_of(either) == [written]
    assert (written.kind, written.lines, written.tiles, written.first) == (kind, 3, "0+25,15+1", 0)
    assert (written.input_tokens, written.output_tokens) == ((9, 15) if kind == ANSWER else (0, 0))


def test_rows_are_sorted_and_a_repeat_writes_the_same_object(either):
    forward = write(either, ANSWER, (0, 10), (10, 25))
    backward = write(either, ANSWER, (10, 25), (0, 10))
    assert forward == backward
    assert len(list(either.list(FOLDER))) == 1
    lines = either.read(FOLDER + forward.name)[0].splitlines()
    assert [json.loads(line)["source"]["offset"] for line in lines] == [0, 10]


def test_rows_that_overlap_are_refused(either):
    with pytest.raises(ValueError, match="overlaps"):
        write(either, ANSWER, (0, 10), (9, 12))
    assert list(either.list(FOLDER)) == []


def test_tiles_too_many_for_the_metadata_are_read_from_the_body(store):
    written = write(store, ANSWER, *((n * 100, n * 100 + 10) for n in range(2000)))
    metadata = store.stat(FOLDER + written.name).metadata
    assert "tiles" not in metadata
    assert metadata["lines"] == "2000"
    assert len(written.tiles) > MAX_METADATA_BYTES
    assert shards_of(store) == [written]


def test_metadata_just_below_the_limit_is_taken_by_the_server(store):
    spans = [(n * 100, n * 100 + 10) for n in range(1300)]
    assert len(Intervals(spans).encode()) > 7500
    written = write(store, ANSWER, *spans)
    assert store.stat(FOLDER + written.name).metadata["tiles"] == written.tiles


spans_of = st.lists(st.tuples(st.integers(0, 9), st.integers(1, 99)), min_size=1, max_size=40)


@given(spans_of, st.sampled_from([ANSWER, ERROR]))
def test_metadata_and_body_say_the_same(tmp_path_factory, steps, kind):
    spans, at = [], 0
    for gap, length in steps:
        spans.append((at + gap, at + gap + length))
        at += gap + length
    store = LocalStore(tmp_path_factory.mktemp("out"))
    written = write(store, kind, *spans)
    assert shards_of(store) == [written]  # from the body: a folder keeps no metadata
    assert Intervals.decode(written.tiles) == Intervals(spans)


def test_a_torn_shard_does_not_count(local):
    written = write(local, ANSWER, (0, 10), (10, 25))
    body = local.read(FOLDER + written.name)[0]
    for torn in (body[:-5], body.splitlines(keepends=True)[0], b"", b"\xff"):
        local.put(FOLDER + written.name, torn)
        assert shards_of(local) == [None]
    assert counted_shards(local, list_folder(local, FOLDER).shards) == ([], [written.name])
    local.put(FOLDER + written.name, body)
    assert counted_shards(local, list_folder(local, FOLDER).shards)[0] == [written]


@pytest.mark.parametrize(
    "name",
    [
        "_manifest.json",
        "notes.jsonl",
        "shard-x-0.jsonl",
        "shard-000000000000-3f9a.json",
        "shard-000000000000-3f9a.jsonl",
        "errors-000000000000.jsonl",
        "shard.jsonl",
    ],
)
@pytest.mark.parametrize(
    "body", [b"", b"{}\n", b"[1]\n", b'{"source": 5}\n', b'{"source": {"offset": "x", "length": 1}}\n']
)
def test_a_foreign_file_does_not_count(either, name, body):
    either.put(FOLDER + name, body)
    assert shards_of(either) == [None]


def test_foreign_metadata_does_not_count(store):
    for metadata in (
        {"tiles": "x"},
        {"tiles": "0+1"},
        {"tiles": "0+1", "lines": "?", "input-tokens": "0", "output-tokens": "0"},
    ):
        store.put(FOLDER + "shard-000000000000-3f9a.jsonl", b"", metadata)
        assert shards_of(store) == [None]


def test_what_another_row_has_paid_for_is_in_no_sum(local):
    usage = {"input_tokens": 3, "output_tokens": 5, "neurons": 2.0, "cost_usd": 0.5}
    rows = [
        {"usage": usage, "source": {"offset": 0, "length": 4}},
        {"usage": usage | {"cost_usd": 0.0}, "shared": True, "source": {"offset": 4, "length": 4}},
        {"usage": {"input_tokens": 1, "output_tokens": 0}, "shared": True, "source": {"offset": 8, "length": 4}},
    ]
    body = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    name = shard_name("answers", 0, body)
    local.put(FOLDER + name, body)
    assert shards_of(local) == [
        ShardRecord(name, "answers", "0+12", 3, 3, 5, Cost(0.5, 0, 2.0, (LaneCost(UNPAID, 2),)))
    ]


def test_usage_may_be_unknown(local):
    body = b'{"usage": null, "source": {"offset": 0, "length": 4}}\n'
    body += b'{"usage": {"input_tokens": null}, "source": {"offset": 4, "length": 4}}\n'
    local.put(FOLDER + shard_name("answers", 0, body), body)
    assert shards_of(local) == [ShardRecord(shard_name("answers", 0, body), "answers", "0+8", 2, cost=unknown(2))]


def test_a_shard_that_vanishes_after_the_listing_does_not_count(either):
    gone = ObjectInfo(FOLDER + shard_name("answers", 0, b""), "e", 0, datetime.now(UTC))
    assert read_shard(either, gone) is None


# Which shards count


def test_shards_come_in_the_order_of_their_lines(either):
    wanted = [write(either, kind, (at, at + 5)) for at, kind in ((0, ERROR), (5, ANSWER), (10, ERROR), (15, ANSWER))]
    assert counted_shards(either, list_folder(either, FOLDER).shards)[0] == wanted


def test_of_two_that_overlap_the_answers_count(either):
    write(either, ERROR, (0, 5), (5, 10))
    answers = write(either, ANSWER, (5, 10), (10, 15))
    after = write(either, ERROR, (15, 20))
    counted, left = counted_shards(either, list_folder(either, FOLDER).shards)
    assert counted == [answers, after]
    assert len(left) == 1 and left[0].startswith("errors-000000000000-")


def test_shards_of_a_file_further_down_are_not_this_files(either):
    mine = write(either, ANSWER, (0, 5))
    write(either, ANSWER, (5, 9), folder=FOLDER + "etag-of-another-file/")
    for name in ("notes.jsonl", MANIFEST_NAME):
        either.put(FOLDER + name, b"{}\n")
    listed = list_folder(either, FOLDER)
    assert listed.manifest
    assert counted_shards(either, listed.shards) == ([mine], [])
    assert not list_folder(either, FOLDER + "etag-of-another-file/").manifest


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20), st.sampled_from([ANSWER, ERROR])), max_size=8))
def test_the_counted_shards_never_overlap(tmp_path_factory, drawn):
    store = LocalStore(tmp_path_factory.mktemp("out"))
    for start, length, kind in drawn:
        write(store, kind, (start, start + length))
    counted, left = counted_shards(store, list_folder(store, FOLDER).shards)
    spans = [span for shard in counted for span in Intervals.decode(shard.tiles).spans]
    assert all(one[1] <= other[0] for one, other in pairwise(spans))
    assert {shard.name for shard in counted} | set(left) == {
        info.key.removeprefix(FOLDER) for info in store.list(FOLDER)
    }
    covered = Intervals(spans)
    for shard in shards_of(store):  # one that does not count overlaps one that does
        assert any(covered.overlaps(*span) for span in Intervals.decode(shard.tiles).spans)


# Manifests


def manifest(run_id="run-1"):
    return Manifest(
        bucket="bucket",
        key="input/ä.jsonl",
        etag="etag",
        size=25,
        length=25,
        configuration="c" * 64,
        run_id=run_id,
        created_at="2026-01-02T03:04:05Z",
        answered=2,
        failed=0,
        blank=0,
        input_tokens=6,
        output_tokens=10,
        shards=(ManifestShard(name="shard-000000000000-3f9a.jsonl", kind="answers", lines=2, tiles="0+25"),),
    )


def test_a_manifest_is_read_as_it_was_written(either):
    assert read_manifest(either, FOLDER) is None
    assert write_manifest(either, FOLDER, manifest()) == manifest()
    assert read_manifest(either, FOLDER) == manifest()


def test_what_is_unknown_of_a_file_is_null_in_its_manifest():
    written = json.loads(manifest().model_dump_json())
    assert {name: written[name] for name in ("cost_usd", "unpriced", "neurons")} == dict.fromkeys(
        ("cost_usd", "unpriced", "neurons")
    )
    assert not {"format", "unit"} & written.keys()


def test_the_first_manifest_stays(either):
    write_manifest(either, FOLDER, manifest("run-1"))
    assert write_manifest(either, FOLDER, manifest("run-2")).run_id == "run-1"


def test_of_many_that_write_it_all_get_the_same(local):
    found, start = [], threading.Barrier(6)

    def run(number):
        start.wait()
        found.append(write_manifest(local, FOLDER, manifest(f"run-{number}")))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [read_manifest(local, FOLDER)] * 6


def test_a_lost_reply_is_an_own_success(store, server, waits):
    server.lose_replies = 1
    assert write_manifest(store, FOLDER, manifest()) == manifest()


def test_a_manifest_that_was_removed_again_is_no_success(local, monkeypatch):
    def taken(key, body):
        raise AlreadyExists(key)

    monkeypatch.setattr(local, "put_if_absent", taken)
    with pytest.raises(AlreadyExists):
        write_manifest(local, FOLDER, manifest())


@pytest.mark.parametrize("body", [b"", b"{", b"{}", b'{"version": 2}', b"\xff"])
def test_a_manifest_that_cannot_be_read_is_named(either, body):
    either.put(FOLDER + MANIFEST_NAME, body)
    with pytest.raises(
        ValueError, match=f"{either.url}/{FOLDER}{MANIFEST_NAME} is not a manifest that this version can read"
    ):
        read_manifest(either, FOLDER)


# Costs


PRICED = {"input_tokens": 3, "output_tokens": 5, "cost_usd": 1.5e-6, "neurons": 0.25}
UNPRICED = {"input_tokens": 3, "output_tokens": 5, "cost_usd": None}


def put_priced(store, *usages):
    rows = [
        (10 * i, 10 * i + 10, json.dumps({"usage": u, "source": {"offset": 10 * i, "length": 10}}).encode())
        for i, u in enumerate(usages)
    ]
    cost = total(Cost(u["cost_usd"], int(u["cost_usd"] is None), u.get("neurons")) for u in usages)
    return put_shard(store, FOLDER, "answers", rows, configuration="c", input_tokens=9, output_tokens=5, cost=cost)


@pytest.mark.parametrize("usages", [[PRICED], [PRICED, UNPRICED, PRICED], [UNPRICED]])
def test_what_a_shards_answers_cost_is_read_again_from_metadata_and_from_the_body(either, usages):
    written = put_priced(either, *usages)
    (found,) = shards_of(either)
    assert found.cost == written.cost
    assert found.cost.unpriced == sum(usage is UNPRICED for usage in usages)


def test_a_shard_from_before_costs_were_written_counts_and_its_cost_is_unknown(store):
    written = put_priced(store, PRICED, PRICED)
    body, _ = store.read(FOLDER + written.name)
    old = {"tiles": written.tiles, "lines": "2", "input-tokens": "6", "output-tokens": "10", "configuration": "c"}
    store.put(FOLDER + written.name, body, old)
    errors = put_shard(store, FOLDER, "errors", [row("errors", 90, 95)], configuration="c")
    store.put(FOLDER + errors.name, store.read(FOLDER + errors.name)[0], old | {"tiles": errors.tiles, "lines": "1"})
    assert {shard.kind: shard.cost for shard in shards_of(store)} == {"answers": unknown(2), "errors": Cost()}


def test_a_manifest_from_before_costs_were_written_can_be_read(local):
    old = manifest().model_dump(exclude={"cost_usd", "unpriced", "neurons"})
    local.put(FOLDER + MANIFEST_NAME, json.dumps(old).encode())
    assert read_manifest(local, FOLDER).cost == unknown(2)


def test_a_manifest_tells_its_cost(local):
    new = manifest().model_copy(update={"cost_usd": 0.5, "unpriced": 1, "neurons": 7.0})
    assert write_manifest(local, FOLDER, new).cost == read_manifest(local, FOLDER).cost == Cost(0.5, 1, 7.0)
