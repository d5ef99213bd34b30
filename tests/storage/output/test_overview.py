"""What is seen of an output from outside."""

import json
import time
from datetime import UTC, datetime

import pytest

from llmdo.storage.errors import StorageError
from llmdo.storage.objects.opening import open_store
from llmdo.storage.output.jobs import JobRecord, Jobs
from llmdo.storage.output.manifests import Manifest, ManifestShard, file_folder, put_shard, write_manifest
from llmdo.storage.output.overview import Observer, check_there
from llmdo.storage.runs.runs import Presence, seen_runs


def error_row(offset, kind="ModelError", code=None, message="no"):
    return json.dumps(
        {"error": {"class": kind, "code": code, "message": message, "offset": offset, "length": 5}}
    ).encode()


def done(store, key, *, answered=1, errors=(), created=None, usd=0.5):
    folder = file_folder("out/", "bucket", key, "e")
    shards = []
    if errors:
        rows = [(5 * at, 5 * at + 5, error_row(5 * at, *error)) for at, error in enumerate(errors)]
        record = put_shard(store, folder, "errors", rows, configuration="c")
        shards = [ManifestShard(name=record.name, kind="errors", lines=record.lines, tiles=record.tiles)]
    manifest = Manifest(
        **{"bucket": "bucket", "key": key, "etag": "e", "size": 1, "length": 1, "configuration": "c", "run_id": "r"},
        **{"created_at": (created or datetime.now(UTC)).isoformat(), "answered": answered, "failed": len(errors)},
        **{"blank": 0, "input_tokens": 10, "output_tokens": 3, "cost_usd": usd, "unpriced": 0},
        shards=tuple(shards),
    )
    write_manifest(store, folder, manifest)


@pytest.fixture
def store(tmp_path):
    return open_store(str(tmp_path))


def test_what_is_done_is_summed_up_with_the_last_hour_and_the_kinds_of_errors(store):
    done(store, "a.jsonl", answered=7, errors=[("Refused", "3036", "too much"), ("Refused", "3036"), ("BadLine", None)])
    done(store, "b.jsonl", answered=2, created=datetime(2026, 1, 1, tzinfo=UTC))
    found = Observer(store, "out/").look()
    assert (found.files_done, found.read, found.answered, found.failed) == (2, 2, 9, 3)
    assert (found.input_tokens, found.output_tokens, found.cost.usd, found.last_hour) == (20, 6, 1.0, 10)
    assert [(one.name, one.code, one.count) for one in found.errors] == [("Refused", "3036", 2), ("BadLine", "", 1)]
    assert found.errors[0].example == "too much" and found.errors_read == 3


def test_files_in_work_have_their_shards_and_dead_ones_are_apart(store):
    jobs = Jobs(store, "out/")
    jobs.claim(jobs_record(store, "open.jsonl"), lambda _: False)
    folder = file_folder("out/", "bucket", "open.jsonl", "e")
    put_shard(store, folder, "answers", [(0, 5, b'{"source":{"offset":0,"length":5}}')], configuration="c")
    dead = jobs_record(store, "dead.jsonl").model_copy(update={"dead": True, "problem": "it is torn"})
    jobs.claim(dead, lambda _: False)
    found = Observer(store, "out/").look()
    assert [(one.record.key, one.shards) for one in found.open] == [("open.jsonl", 1)]
    assert [(one.key, one.problem) for one in found.dead] == [("dead.jsonl", "it is torn")]
    assert found.files_done == 0


def jobs_record(store, key):
    return JobRecord(
        **{"store_url": "r2://bucket", "key": key, "etag": "e", "size": 10, "notification": {}, "configuration": "c"},
        run_id="r",
    )


def test_later_looks_read_only_what_is_new(store, monkeypatch):
    done(store, "a.jsonl", errors=[("X", None)])
    observer = Observer(store, "out/")
    assert observer.look().read == 1
    read, asked = store.read, []
    monkeypatch.setattr(type(store), "read", lambda self, key: asked.append(key) or read(key))
    done(store, "b.jsonl")
    assert observer.look().read == 2
    assert [key for key in asked if "a.jsonl" in key] == []


def test_a_manifest_that_a_retry_has_replaced_is_read_anew(store):
    done(store, "a.jsonl", errors=[("X", None)])
    observer = Observer(store, "out/")
    assert (observer.look().failed, len(observer.look().errors)) == (1, 1)
    key = file_folder("out/", "bucket", "a.jsonl", "e") + "_manifest.json"
    said = json.loads(store.read(key)[0]) | {"answered": 2, "failed": 0, "shards": []}
    store.put(key, json.dumps(said).encode())
    found = observer.look()
    assert (found.answered, found.failed, found.errors) == (2, 0, ())


def test_a_file_that_is_done_is_not_in_work_though_its_record_is_still_there(store):
    done(store, "a.jsonl")
    Jobs(store, "out/").claim(jobs_record(store, "a.jsonl"), lambda _: False)
    found = Observer(store, "out/").look()
    assert (found.files_done, found.open) == (1, ())


class LargeOutput:
    """A store whose listings of the whole output take a second of a clock that stands otherwise."""

    def __init__(self, store, monkeypatch):
        self.now, self.listed, self.read = 0.0, [], []
        kind, listing, reading = type(store), store.list, store.read
        monkeypatch.setattr(kind, "list", lambda _, prefix: self.lists(prefix) or listing(prefix))
        monkeypatch.setattr(kind, "read", lambda _, key: self.read.append(key) or reading(key))
        self.observer = Observer(store, "out/", clock=lambda: self.now)

    def lists(self, prefix):
        self.listed.append(prefix)
        self.now += prefix == "out/"

    def look(self):
        self.listed.clear()
        self.read.clear()
        return self.observer.look()


def test_a_large_output_is_listed_again_only_after_nine_times_as_long_as_it_took(store, monkeypatch):
    jobs = Jobs(store, "out/")
    for number in range(30):
        done(store, f"{number}.jsonl")
    for name in ("x.jsonl", "y.jsonl"):
        jobs.claim(jobs_record(store, name), lambda _: False)
    output = LargeOutput(store, monkeypatch)
    assert (output.look().files_done, "out/" in output.listed) == (30, True)
    # One is done meanwhile, one has a shard, a third was opened, and one has come and gone unseen.
    done(store, "x.jsonl", answered=5)
    jobs.remove(("r2://bucket", "x.jsonl", "e"))
    put_shard(store, file_folder("out/", "bucket", "y.jsonl", "e"), "answers", [(0, 5, b"{}")], configuration="c")
    jobs.claim(jobs_record(store, "z.jsonl"), lambda _: False)
    done(store, "unseen.jsonl")
    found = output.look()
    assert "out/" not in output.listed and len(output.listed) < 8
    assert (found.files_done, found.read, found.answered) == (31, 31, 35)
    assert sorted((one.record.key, one.shards) for one in found.open) == [("y.jsonl", 1), ("z.jsonl", 0)]
    assert sorted(key.rpartition("/")[2] for key in output.read if "_runs" not in key) == sorted(
        ["_manifest.json", next(key for key in output.read if "_open" in key).rpartition("/")[2]]
    )
    output.now = 9.9
    assert output.look().files_done == 31
    output.now = 10.0
    assert (output.look().files_done, "out/" in output.listed) == (32, True)


def test_with_little_time_some_manifests_wait_for_later_looks(store, monkeypatch):
    monkeypatch.setattr("llmdo.storage.output.overview._READS", 1)
    for number in range(20):
        done(store, f"{number:02}.jsonl")
    observer = Observer(store, "out/", seconds=0.0)
    first = observer.look()
    assert (first.files_done, first.read) == (20, 8)
    assert [observer.look().read for _ in range(2)] == [16, 20]


def test_what_cannot_be_read_is_said_and_hides_nothing(store):
    done(store, "a.jsonl")
    store.put("out/_open/" + "0" * 64 + ".json", b"torn")
    store.put(file_folder("out/", "bucket", "b.jsonl", "e") + "_manifest.json", b"torn")
    found = Observer(store, "out/").look()
    assert (found.files_done, found.read) == (2, 1)
    assert len(found.problems) == 1 and "is not a job record" in found.problems[0]


def test_an_empty_place_is_no_output(store):
    with pytest.raises(StorageError, match="is empty: name the --output of a run"):
        check_there(store, "nothing/")


def test_a_run_is_seen_with_what_it_tells_and_is_dead_once_its_process_is(store):
    figures = {"lines": 3}
    presence = Presence(
        *(store, "out/", "run-1", "c"), tells=lambda: {"command": "run", "queue": "q", "figures": figures, "obeys": 2}
    )
    (seen,) = seen_runs(store, "out/")
    assert seen.alive and seen.age_s < 60
    assert (seen.beat.command, seen.beat.queue, seen.beat.figures, seen.beat.obeys) == ("run", "q", figures, 2)
    figures["lines"] = 9
    presence.beat_now()
    assert [run.beat.figures["lines"] for run in seen_runs(store, "out/")] == [9]
    text = store.read("out/_runs/run-1.json")[0]
    presence.stop()
    assert list(seen_runs(store, "out/")) == []
    gone = json.loads(text) | {"process_start": "1", "run_id": "run-2"}
    store.put("out/_runs/run-2.json", json.dumps(gone).encode())
    (seen,) = seen_runs(store, "out/")
    assert not seen.alive and seen.beat.run_id == "run-2"


def test_another_machines_run_lives_as_long_as_its_heartbeat_is_fresh(store, monkeypatch):
    beat = {"version": 1, "run_id": "far", "host": "elsewhere", "pid": 1, "process_start": ""}
    store.put("out/_runs/far.json", json.dumps(beat).encode())
    assert [run.alive for run in seen_runs(store, "out/")] == [True]
    now = time.time()
    monkeypatch.setattr("llmdo.storage.runs.runs.time.time", lambda: now + 200.0)
    (seen,) = seen_runs(store, "out/")
    assert not seen.alive and 199 < seen.age_s < 260
