"""A process that dies right after, or right before, any single write loses nothing, and the next one ends the work.

The order of all writes is kept (``recorder``) and checked as a whole: what a crash leaves behind is never more than the
next run can make good.
"""

from __future__ import annotations

import random
from collections import Counter
from itertools import count, takewhile
from pathlib import Path
from tempfile import mkdtemp

import pytest

from llmdo.runners.exit_codes import EXIT_ANSWERED, EXIT_SOME_ERRORS
from llmdo.runners.inspecting.verify import verify
from llmdo.storage.output.jobs import JobRecord
from llmdo.storage.output.manifests import MANIFEST_NAME, Manifest
from tests.faults.recorder import OUTPUT, SOAK, Death, Process, World, Write, kind_of

# Each prompt is its own, so that a call tells its line. One file has two messages.
FILES = {
    "a.jsonl": b'{"prompt": "a0"}\n\n{"prompt": "a1"}\r\n{broken\n{"prompt": "a2"}\n',
    "b.jsonl": b'{"prompt": "b0"}\n\n{"prompt": "b1"}',
    "empty.jsonl": b"",
}
TORN = "shard-000000000000-0123456789abcdef.jsonl"
PROMPTS = {"a0", "a1", "a2", "b0", "b1"}
# How often a whole run writes each kind.
EACH = Counter(
    {
        "heartbeat": 1,
        "_configuration.json": 1,
        "pull": 1,
        "record": 3,
        "ack": 1,
        "keep": 5,
        "shard": 4,
        "shard removed": 1,
        "manifest": 3,
        "record removed": 3,
        "heartbeat removed": 1,
        "history": 1,
    }
)
SETTINGS = {"batch_size": 2, "concurrency": 2}


@pytest.fixture
def new_world(tmp_path, monkeypatch):
    """Makes a world in which nothing is done and a torn shard is left; it takes the place of the one before."""

    def new(**settings) -> World:
        monkeypatch.undo()
        world = World(Path(mkdtemp(dir=tmp_path)), **settings)
        world.install(monkeypatch)
        for name, body in FILES.items():
            etag = world.upload(name, body, messages=2 if name == "a.jsonl" else 1)
            if name == "b.jsonl":
                world.put(f"output/llmdo/input/{name}/{etag}/{TORN}", b'{"id": 0, "resp')
        return world

    return new


def test_a_whole_run_writes_record_ack_shards_manifest_in_this_order(new_world):
    world = new_world()
    summary = world.run(**SETTINGS)
    check_end(world, summary)
    assert world.calls == dict.fromkeys(PROMPTS, 1)
    assert Counter(map(kind_of, world.history)) == EACH
    assert [write.key.endswith(TORN) for write in world.history if kind_of(write) == "shard removed"] == [True]


# Where a store keeps no metadata, as a folder does not, what a shard holds must be read from its rows.
@pytest.mark.fast(
    "keep-before-False",
    "ack-before-False",
    "shard-before-False",
    "manifest-before-False",
    "record removed-before-False",
    "pull-after-True",
)
@pytest.mark.parametrize(("moment", "keeps_metadata"), [("after", True), ("before", False)])
@pytest.mark.parametrize("kind", EACH)
def test_a_death_at_a_write_of_any_kind_loses_nothing_and_repeats_only_calls_in_flight(
    new_world, kind, moment, keeps_metadata
):
    # Before a write there is what was there after the one before: the short form has one of each kind.
    for number in range(1, EACH[kind] + 1) if SOAK or moment == "after" else [EACH[kind]]:
        world = new_world(keeps_metadata=keeps_metadata)
        assert world.run(Death(moment, number, kind), **SETTINGS) is None
        assert moment == "before" or kind_of(world.history[-1]) == kind
        left = state_left(world)
        in_flight = unkept_calls(world)
        check_order(world.history)
        summary = world.run(**SETTINGS)
        try:
            check_end(world, summary)
            assert world.calls.total() == len(PROMPTS) + in_flight
        except AssertionError as error:
            error.add_note(f"it died right {moment} {kind} {number}, and left {left}")
            raise


@pytest.mark.fast("manifest-after", "push-after", "record removed-before")
@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("kind", ["manifest", "push", "record removed"])
def test_somebody_who_waits_for_messages_about_settled_files_gets_one_whenever_the_process_dies(
    new_world, kind, moment
):
    # Files that are done at the same time are told of together.
    for number in range(1, EACH[kind] + 1) if kind != "push" else [1]:
        world = new_world()
        assert world.run(Death(moment, number, kind), notify_queue="llmdo-settled", **SETTINGS) is None
        check_order(world.history)
        check_end(world, world.run(notify_queue="llmdo-settled", **SETTINGS))
        assert told(world) == {f"input/{name}" for name in FILES}


def told(world: World) -> set[str]:
    return {file for write in world.history if kind_of(write) == "push" for file in write.keys}


@pytest.mark.fast("0")
@pytest.mark.parametrize("seed", range(40 if SOAK else 3))
def test_deaths_again_and_again_cost_no_more_than_the_calls_in_flight_at_each(new_world, seed):
    rng = random.Random(seed)
    world = new_world()
    deaths = [Death(rng.choice(("before", "after")), rng.randrange(1, 14)) for _ in range(12)]
    died = list(takewhile(lambda death: world.run(death, **SETTINGS) is None, deaths))
    in_flight = unkept_calls(world)
    check_end(world, world.run(**SETTINGS))
    assert died
    assert world.calls.total() == len(PROMPTS) + in_flight
    assert in_flight <= len(died) * SETTINGS["concurrency"]


def test_without_a_ledger_a_death_repeats_what_was_in_no_shard(new_world):
    deaths = 0
    for number in count(8, 1 if SOAK else 3):
        world = new_world()
        if world.run(Death("after", number), ledger="none", **SETTINGS) is not None:
            break
        in_shards = sum(write.body.count(b"\n") for write in world.history if kind_of(write) == "shard")
        in_shards -= sum(write.key.rpartition("/")[2].startswith("errors-") for write in shards(world.history))
        paid = world.calls.total()
        check_end(world, world.run(ledger="none", **SETTINGS))
        assert world.calls.total() == paid + len(PROMPTS) - in_shards
        deaths += 1
    assert deaths >= 4


def shards(history: list[Write]) -> list[Write]:
    return [write for write in history if kind_of(write) == "shard"]


def unkept_calls(world: World) -> int:
    """Calls that were paid and whose answer is not in the ledger: those in flight when their process died."""
    return world.calls.total() - world.kept()


def state_left(world: World) -> list[str]:
    return [*(info.key for info in world.bucket.list("output/")), f"{world.backlog()} messages"]


def check_end(world: World, summary) -> None:
    """Everything is done: each line once, each message acked, nothing in work, and the order was kept throughout."""
    assert (summary.problem, summary.in_work, summary.left, summary.others) == (None, (), {}, {})
    assert summary.exit_code in (EXIT_ANSWERED, EXIT_SOME_ERRORS)  # whether the broken line was left to this run
    found = verify(OUTPUT, ["r2://llmdo/input/"])
    assert (found.differences, found.in_work) == ((), ())
    assert (found.files, found.compared, found.answered, found.failed, found.blank) == (3, 3, 5, 1, 2)
    assert world.backlog() == 0
    assert list(world.bucket.list("output/_open/")) == []
    assert set(world.calls) == PROMPTS
    check_order(world.history)


def check_order(history: list[Write]) -> None:
    """Job record before ack, shards before the manifest that names them, manifest before the record's removal."""
    recorded: set[str] = set()  # inputs that have, or had, a job record
    settled: dict[str, Manifest] = {}  # by input
    removed: dict[str, str] = {}  # job record → its input
    there: set[str] = set()  # shards
    named: set[str] = set()  # shards that a manifest names
    for write in history:
        match kind_of(write):
            case "record":
                record = JobRecord.model_validate_json(write.body)
                recorded.add(record.key)
                removed[write.key] = record.key
            case "ack":
                assert set(write.keys) <= recorded, "a message was acked before its file had a job record"
            case "shard":
                there.add(write.key)
            case "shard removed":
                assert write.key not in named, "a shard was removed that a manifest names"
                there.discard(write.key)
            case "manifest":
                manifest = Manifest.model_validate_json(write.body)
                folder = write.key.removesuffix(MANIFEST_NAME)
                shards = {folder + shard.name for shard in manifest.shards}
                assert shards <= there, "a manifest was written before a shard that it names"
                assert manifest.key not in settled, "a manifest was written twice"
                settled[manifest.key] = manifest
                named |= shards
            case "manifest removed":
                raise AssertionError("a manifest was removed")
            case "record removed":
                assert removed[write.key] in settled, "a job record was removed before there was a manifest"


def test_the_check_of_the_order_finds_each_wrong_order(new_world):
    world = new_world()
    world.run(**SETTINGS)
    kinds = [kind_of(write) for write in world.history]
    first = {kind: kinds.index(kind) for kind in kinds}
    manifest = next(i for i, kind in enumerate(kinds) if kind == "manifest" and "/a.jsonl/" in world.history[i].key)

    def moved(index: int, to: int) -> list[Write]:
        history = list(world.history)
        history.insert(to, history.pop(index))
        return history

    removal = Write("delete", world.history[first["shard"]].keys)
    wrong = {
        "acked before": moved(first["ack"], first["record"]),
        "before a shard": moved(manifest, first["shard"]),
        "removed before": moved(first["record removed"], first["manifest"]),
        "a shard was removed": [*world.history, removal],
    }
    for said, history in wrong.items():
        with pytest.raises(AssertionError, match=said):
            check_order(history)
    check_order(world.history)


def test_a_dead_process_writes_nothing_more(tmp_path, monkeypatch):
    world = World(tmp_path)
    world.process = Process(world.history, Death("after", 1))
    for write in (world.store.put, world.store.put_if_absent):
        with pytest.raises(Exception, match="dead"):
            write("output/x", b"1")
    assert [write.operation for write in world.history] == ["put"]
