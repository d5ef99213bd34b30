"""Rows come in the order of the source, however shards overlap."""

import json
import random
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmdo.storage.errors import StorageError
from llmdo.storage.objects.opening import open_store
from llmdo.storage.output.intervals import Intervals
from llmdo.storage.output.manifests import Manifest, ManifestShard, file_folder, put_shard, write_manifest
from llmdo.storage.output.rows import done_files, rows_in_order


def row(kind, offset, length=10):
    place = {"offset": offset, "length": length}
    return json.dumps({"id": f"l{offset}"} | ({"source": place} if kind == "answers" else {"error": place})).encode()


def written(store, key, shards, prefix="out/"):
    """A file that is done, with these shards: (kind, offsets)."""
    folder = file_folder(prefix, "bucket", key, "e")
    records = [
        put_shard(store, folder, kind, [(at, at + 10, row(kind, at)) for at in offsets], configuration="c")
        for kind, offsets in shards
    ]
    manifest = Manifest(
        **{"bucket": "bucket", "key": key, "etag": "e", "size": 1, "length": 1, "configuration": "c", "run_id": "r"},
        **{"created_at": "2026-11-30T00:00:00Z", "answered": 0, "failed": 0, "blank": 0},
        **{"input_tokens": 0, "output_tokens": 0},
        shards=tuple(ManifestShard(name=one.name, kind=one.kind, lines=one.lines, tiles=one.tiles) for one in records),
    )
    write_manifest(store, folder, manifest)
    return folder, manifest


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 40), st.integers(1, 6), st.integers(0, 1 << 16))
def test_rows_are_in_the_order_of_the_source_whatever_the_shards_are(lines, shards, seed):
    chance, dealt = random.Random(seed), {}
    for line in range(lines):
        kind = chance.choice(("answers", "errors"))
        dealt.setdefault((kind, chance.randrange(shards)), []).append(10 * line)
    with tempfile.TemporaryDirectory() as place:
        store = open_store(place)
        folder, manifest = written(store, "a.jsonl", [(kind, offsets) for (kind, _), offsets in dealt.items()])
        found = list(rows_in_order(store, folder, manifest))
        assert [one.start for one in found] == [10 * line for line in range(lines)]
        assert all(one.line == row(one.kind, one.start) for one in found)
        answers = list(rows_in_order(store, folder, manifest, frozenset(("answers",))))
        assert answers == [one for one in found if one.kind == "answers"]


def test_done_files_come_in_the_order_of_their_keys(tmp_path):
    store = open_store(str(tmp_path))
    for key in ("b.jsonl", "a.jsonl", "x/y.jsonl", "a.jsonl/deeper.jsonl"):
        written(store, key, [("answers", [0])])
    assert [manifest.key for _, manifest in done_files(store, "out/")] == [
        *("a.jsonl/deeper.jsonl", "a.jsonl", "b.jsonl", "x/y.jsonl"),
    ]
    assert list(done_files(store, "elsewhere/")) == []


def test_a_row_that_cannot_be_read_is_named(tmp_path):
    store = open_store(str(tmp_path))
    folder, manifest = written(store, "a.jsonl", [("answers", [0, 10])])
    shard = manifest.shards[0]
    assert Intervals.decode(shard.tiles).spans == ((0, 20),)
    Path(tmp_path, folder, shard.name).write_bytes(b"no row\n")
    with pytest.raises(StorageError, match=f"{shard.name} has a row that cannot be read: llmdo verify"):
        list(rows_in_order(store, folder, manifest))


def test_a_manifest_that_cannot_be_read_is_named(tmp_path):
    store = open_store(str(tmp_path))
    folder, _ = written(store, "a.jsonl", [("answers", [0])])
    Path(tmp_path, folder, "_manifest.json").write_bytes(b"{}")
    with pytest.raises(StorageError, match="is not a manifest that this version can read"):
        list(done_files(store, "out/"))
