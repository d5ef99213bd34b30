from dataclasses import replace

import pytest

from llmdo.storage.errors import ObjectChanged
from llmdo.storage.output.costs import Cost, unknown
from llmdo.storage.output.manifests import Manifest, ManifestShard, ShardRecord, read_manifest, write_manifest
from llmdo.storage.output.merging import CannotMerge, merged, switch
from tests.memory_store import MemoryStore


def record(kind, *spans, name="0"):
    tiles, at = [], 0
    for start, stop in spans:
        tiles.append(f"{start - at}+{stop - start}")
        at = stop
    prefix = {"answers": "shard", "errors": "errors"}[kind]
    tokens = (3, 2) if kind == "answers" else (0, 0)
    return ShardRecord(f"{prefix}-{spans[0][0]:012d}-{name}.jsonl", kind, ",".join(tiles), len(spans), *tokens)


def manifest(*shards):
    return Manifest(
        bucket="b", key="k", etag="e", size=100, length=100, configuration="c", run_id="run-1", created_at="then",
        answered=sum(s.lines for s in shards if s.kind == "answers"),
        failed=sum(s.lines for s in shards if s.kind == "errors"),
        blank=1, input_tokens=30, output_tokens=20,
        shards=tuple(ManifestShard(name=s.name, kind=s.kind, lines=s.lines, tiles=s.tiles) for s in shards),
    )  # fmt: skip


FIRST = record("answers", (0, 10), (30, 40))
FAILED = record("errors", (10, 20), (20, 30), (50, 60))
OLD = manifest(FIRST, FAILED, record("errors", (60, 100), name="other"))


def test_the_new_shards_stand_in_the_order_of_lines_and_all_counts_follow():
    answers, again = record("answers", (20, 30), (50, 60)), record("errors", (10, 20))
    new = merged(OLD, {FAILED.name, "foreign"}, [answers, again], "run-2")
    assert [s.name for s in new.shards] == [FIRST.name, again.name, answers.name, OLD.shards[-1].name]
    assert (new.answered, new.failed, new.blank, new.input_tokens, new.output_tokens) == (4, 2, 1, 33, 22)
    assert new.run_id == "run-2" and new.created_at != "then"
    assert (new.bucket, new.key, new.etag, new.size, new.configuration) == ("b", "k", "e", 100, "c")


def test_an_error_shard_may_give_way_to_one_of_the_same_name():
    new = merged(OLD, {FAILED.name}, [FAILED], "run-2")
    assert new.shards == OLD.shards
    assert (new.answered, new.failed) == (OLD.answered, OLD.failed)


@pytest.mark.parametrize(
    "new",
    [
        [],
        [record("answers", (10, 20), (20, 30))],
        [record("answers", (10, 30), (50, 60))],  # the same bytes, but not as many lines
        [record("answers", (10, 20), (20, 30), (50, 60), (60, 70))],
        [record("answers", (10, 20), (20, 30), (50, 60)), record("errors", (10, 20))],
    ],
)
def test_shards_that_stand_for_other_lines_are_not_merged(new):
    with pytest.raises(CannotMerge):
        merged(OLD, {FAILED.name}, new, "run-2")


def test_a_shard_of_answers_never_gives_way():
    with pytest.raises(CannotMerge):
        merged(OLD, {FIRST.name}, [record("errors", (0, 10), (30, 40))], "run-2")


def test_a_switch_replaces_exactly_the_version_that_was_read():
    store = MemoryStore()
    write_manifest(store, "f/", OLD)
    etag = store.read("f/_manifest.json")[1]
    ours, theirs = (merged(OLD, {FAILED.name}, [FAILED], run) for run in ("run-2", "run-3"))
    assert switch(store, "f/", ours, etag)
    assert not switch(store, "f/", theirs, etag)
    assert read_manifest(store, "f/") == ours


def test_a_switch_whose_reply_was_lost_is_known_as_ones_own(monkeypatch):
    store = MemoryStore()
    write_manifest(store, "f/", OLD)
    etag = store.read("f/_manifest.json")[1]
    ours = merged(OLD, {FAILED.name}, [FAILED], "run-2")

    def repeated(key, body, etag):
        store.put(key, body)
        raise ObjectChanged("the first try has arrived")

    monkeypatch.setattr(store, "put_if_match", repeated, raising=False)
    assert switch(store, "f/", ours, etag)


def test_a_manifest_that_is_gone_is_not_written_again():
    store = MemoryStore()
    assert not switch(store, "f/", OLD, "e")
    assert read_manifest(store, "f/") is None


@pytest.mark.parametrize(
    ("before", "added", "after"),
    [
        (Cost(0.5, 0, 1.0), Cost(0.25), Cost(0.75, 0, 1.0)),
        (Cost(0.5), unknown(2), Cost(0.5, 2)),
        (unknown(2), Cost(0.25), Cost(0.25, 2)),
    ],
)
def test_what_the_new_answers_cost_is_added(before, added, after):
    old = OLD.model_copy(update={"cost_usd": before.usd, "unpriced": before.unpriced, "neurons": before.neurons})
    answers = replace(record("answers", (10, 20), (20, 30), (50, 60)), cost=added)
    assert merged(old, {FAILED.name}, [answers], "run-2").cost == after


def test_the_cost_of_a_manifest_from_before_costs_were_written_stays_a_lower_bound():
    answers = replace(record("answers", (10, 20), (20, 30), (50, 60)), cost=Cost(0.25))
    assert merged(OLD, {FAILED.name}, [answers], "run-2").cost == Cost(0.25, OLD.answered)
