from dataclasses import replace
from types import SimpleNamespace

import apache_beam as beam
import pytest
from apache_beam.testing.test_pipeline import TestPipeline
from apache_beam.testing.util import assert_that, equal_to
from pydantic_core import from_json, to_json

from llmdo.backends.errors import InvalidRequest, Overloaded
from llmdo.storage.objects.opening import open_store
from llmdo.storage.objects.store import Location
from llmdo.storage.output.jobs import JobRecord, Jobs
from llmdo.storage.output.manifests import (
    MANIFEST_NAME,
    Manifest,
    ManifestShard,
    put_shard,
    read_manifest,
    write_manifest,
)
from llmdo.transforms.answers.rows import failure_row
from llmdo.transforms.elements import Answer, Failure, FileVersion, KnownShard, Leftovers, Line
from llmdo.transforms.files.folders import folder_of
from llmdo.transforms.files.write_shards import write_batch
from llmdo.transforms.retry.retry_files import (
    FindErrors,
    MergeFiles,
    ReadErrors,
    claim_file,
    find_errors,
    merge_file,
    read_errors,
    retries,
)
from llmdo.transforms.run import Run
from tests.states import run_state

BUSY, WRONG = Overloaded("out of capacity"), InvalidRequest("no")
LINE = b'{"prompt": "x"}'
SIZE = len(LINE) + 1


def run_of(output, run_id="run-1"):
    return Run(run_id, output, "c")


@pytest.fixture
def output(tmp_path):
    return Location(str(tmp_path / "out"), "results/")


def settled_file(output, *shards, key="input/a.jsonl", configuration="c"):
    """A settled file, all its lines alike; each shard is a list of its lines' errors, None for answers."""
    count = sum(len(errors) for errors in shards)
    file = FileVersion("r2://bucket", key, "e1", count * SIZE)
    store, folder, at, records = open_store(output.store_url), folder_of(output, file), 0, []
    for errors in shards:
        kind = "answers" if errors[0] is None else "errors"
        rows = []
        for error in errors:
            line = Line(file, at, at + SIZE, LINE)
            rows.append((at, line.stop, b"{}" if error is None else failure_row(line, error, 3)))
            at += SIZE
        records.append(put_shard(store, folder, kind, rows, configuration=configuration))
    answered = sum(len(errors) for errors in shards if errors[0] is None)
    manifest = Manifest(
        bucket="bucket", key=key, etag="e1", size=count * SIZE, length=count * SIZE, configuration=configuration,
        run_id="run-0", created_at="then", answered=answered, failed=count - answered, blank=0, input_tokens=0,
        output_tokens=0,
        shards=tuple(ManifestShard(name=s.name, kind=s.kind, lines=s.lines, tiles=s.tiles) for s in records),
    )  # fmt: skip
    write_manifest(store, folder, manifest)
    return file, folder, [record.name for record in records]


def names(output, folder):
    return {info.key.removeprefix(folder) for info in open_store(output.store_url).list(folder)}


def alive(*run_ids):
    return SimpleNamespace(is_alive=lambda run_id: run_id in run_ids, asleep=False)


def outcomes(elements, fails=()):
    """What becomes of the lines: each is answered, but those that begin at ``fails``; the rest goes through."""
    for element in elements:
        if not isinstance(element, Line):
            yield element
        elif element.start in fails:
            yield Failure(element.file, element.start, element.stop, failure_row(element, BUSY, 3))
        else:
            place = {"offset": element.start, "length": SIZE}
            yield Answer(element.file, element.start, element.stop, to_json({"source": place}), 4, 2)


def written(output, elements, fails=()):
    by_kind = {}
    for outcome in outcomes(elements, fails):
        by_kind.setdefault(type(outcome), []).append(outcome)
    return [one for batch in by_kind.values() for one in write_batch(run_of(output), batch)]


def retried(output, folder, fails=(), run_id="run-1", everything=False):
    """One file's whole way without Beam."""
    elements = list(read_errors(folder, run_of(output, run_id), everything))
    return list(merge_file(written(output, elements, fails), run_of(output, run_id))) if elements else []


def test_files_with_errors_are_found_and_no_others(output):
    _, failed, _ = settled_file(output, [None], [BUSY])
    settled_file(output, [None, None], key="input/whole.jsonl")
    with TestPipeline(runner="FnApiRunner") as pipeline:
        assert_that(pipeline | FindErrors(run_of(output)), equal_to([failed]))


def test_an_output_without_a_settled_file_gives_nothing(output):
    assert list(find_errors(run_of(output))) == []
    with TestPipeline(runner="FnApiRunner") as pipeline:
        merged = (
            pipeline | FindErrors(run_of(output)) | ReadErrors(run_of(output)) | beam.Map(lambda line: (line.file, 0))
        )
        assert_that(merged, equal_to([]))


def test_many_files_are_all_looked_at(output):
    folders = {settled_file(output, [BUSY], key=f"input/{i}.jsonl")[1] for i in range(150)}
    assert set(find_errors(run_of(output))) == folders


def test_a_damaged_manifest_is_left_and_stops_no_other(output):
    _, good, _ = settled_file(output, [BUSY], key="input/b.jsonl")
    _, bad, _ = settled_file(output, [BUSY])
    open_store(output.store_url).put(bad + MANIFEST_NAME, b"{")
    assert list(find_errors(run_of(output))) == [good]
    assert "not a manifest" in run_state().left[bad]


def test_lines_come_with_their_place_and_rows_that_stay_go_to_a_new_shard_as_they_are(output):
    file, folder, shards = settled_file(output, [None, None], [BUSY, WRONG, BUSY], [WRONG])
    store = open_store(output.store_url)
    old = store.read(folder + shards[1])[0].splitlines()
    with TestPipeline(runner="FnApiRunner") as pipeline:
        found = pipeline | beam.Create([folder]) | ReadErrors(run_of(output)) | beam.Map(_said)
        kept = ("known", f"errors-{3 * SIZE:012d}", 1)
        expected = [kept, ("line", 2 * SIZE, LINE), ("line", 4 * SIZE, LINE), ("leftovers", (shards[1],))]
        assert_that(found, equal_to(expected))
    (name,) = names(output, folder) - {*shards, MANIFEST_NAME}
    assert store.read(folder + name)[0] == old[1] + b"\n"
    assert retries(run_of(output)).read((file.store_url, file.key, file.etag)).run_id == "run-1"


def _said(element):
    match element:
        case Line():
            return "line", element.start, to_json(from_json(element.data)).replace(b":", b": ")
        case KnownShard():
            return "known", element.shard.name.rpartition("-")[0], element.shard.lines
        case Leftovers():
            return "leftovers", element.names


def test_a_file_without_a_line_to_try_is_told_and_let_go(output):
    _, folder, shards = settled_file(output, [None], [WRONG, WRONG])
    assert list(read_errors(folder, run_of(output))) == []
    (settled,) = run_state().settled.values()
    assert (settled.answered, settled.failed, settled.reason) == (1, 2, "nothing to try again")
    assert list(retries(run_of(output)).sweep()) == []
    assert names(output, folder) == {*shards, MANIFEST_NAME}


def test_with_everything_also_lines_that_were_refused_come_again(output):
    _, folder, _ = settled_file(output, [None], [WRONG, BUSY])
    (settled,) = retried(output, folder, everything=True)
    assert (settled.answered, settled.failed) == (3, 0)


def test_answers_take_the_place_of_errors_and_the_old_shards_go(output):
    _, folder, shards = settled_file(output, [None, None], [BUSY, WRONG, BUSY], [BUSY])
    (settled,) = retried(output, folder, fails={5 * SIZE})
    assert (settled.status, settled.answered, settled.failed) == ("done", 4, 2)
    manifest = read_manifest(open_store(output.store_url), folder)
    assert (manifest.run_id, manifest.answered, manifest.failed, manifest.input_tokens) == ("run-1", 4, 2, 8)
    assert names(output, folder) == {*(shard.name for shard in manifest.shards), MANIFEST_NAME}
    assert not names(output, folder) & set(shards[1:2])
    assert list(retries(run_of(output)).sweep()) == []
    assert (run_state().in_work(), run_state().left) == ([], {})


def test_one_file_of_one_line_and_files_of_some_are_merged_by_beam(output):
    wanted, elements = [], []
    for i in range(1, 4):
        file, folder, _ = settled_file(output, [BUSY] * i, key=f"input/{i}.jsonl")
        elements += written(output, read_errors(folder, run_of(output)))
        wanted.append((file.key, i, 0))
    with TestPipeline(runner="FnApiRunner") as pipeline:
        merged = pipeline | beam.Create(elements) | MergeFiles(run_of(output))
        assert_that(merged | beam.Map(lambda s: (s.file.key, s.answered, s.failed)), equal_to(wanted))
    assert list(find_errors(run_of(output))) == []


def test_a_file_in_work_by_a_living_retry_is_left_to_it_and_a_dead_ones_is_taken_over(output):
    _, folder, _ = settled_file(output, [BUSY])
    assert claim_file(run_of(output), folder).abandoned is False
    state = run_state("run-2")
    state.presence = alive("run-1")
    assert list(read_errors(folder, run_of(output, "run-2"))) == []
    assert list(state.others.values()) == ["run-1"]
    state.presence = alive()
    assert claim_file(run_of(output, "run-3"), folder).abandoned is True


def test_a_retry_whose_file_was_taken_over_changes_nothing_any_more(output):
    file, folder, _ = settled_file(output, [BUSY, BUSY])
    late = written(output, read_errors(folder, run_of(output)))
    (settled,) = retried(output, folder, fails={0}, run_id="run-2")
    assert (settled.answered, settled.failed) == (1, 1)
    after = read_manifest(open_store(output.store_url), folder)
    assert list(merge_file(late, run_of(output))) == []
    assert read_manifest(open_store(output.store_url), folder) == after
    assert {shard.name for shard in after.shards} <= names(output, folder)
    assert "taken it over" in run_state().left[file.id]


def test_a_retry_that_was_frozen_neither_switches_nor_deletes(output):
    _, folder, _ = settled_file(output, [BUSY, BUSY])
    late = written(output, read_errors(folder, run_of(output)))
    before = names(output, folder)
    run_state().presence = SimpleNamespace(is_alive=lambda run_id: True, asleep=True)
    assert list(merge_file(late, run_of(output))) == []
    assert names(output, folder) == before
    assert read_manifest(open_store(output.store_url), folder).answered == 0


def test_a_manifest_that_was_changed_meanwhile_stays_as_it_is(output):
    file, folder, _ = settled_file(output, [BUSY, BUSY])
    late = written(output, read_errors(folder, run_of(output)))
    store = open_store(output.store_url)
    other = read_manifest(store, folder).model_copy(update={"run_id": "run-9"})
    store.put(folder + MANIFEST_NAME, other.model_dump_json().encode())
    before = names(output, folder)
    assert list(merge_file(late, run_of(output))) == []
    assert read_manifest(store, folder) == other
    assert names(output, folder) == before
    assert "changed meanwhile" in run_state().left[file.id]
    assert list(retries(run_of(output)).sweep()) == []


def test_a_manifest_that_was_changed_between_reading_and_claiming_is_read_again(output, monkeypatch):
    _, folder, _ = settled_file(output, [BUSY, BUSY])
    store, claim, changed = open_store(output.store_url), Jobs.claim, []

    def slow(jobs, record, is_alive):
        if not changed:
            changed.append(read_manifest(store, folder).model_copy(update={"run_id": "run-9", "failed": 0}))
            store.put(folder + MANIFEST_NAME, changed[0].model_dump_json().encode())
        return claim(jobs, record, is_alive)

    monkeypatch.setattr(Jobs, "claim", slow)
    assert claim_file(run_of(output), folder).manifest == changed[0]


@pytest.mark.parametrize("keep", [0, 1])
def test_a_line_without_an_outcome_keeps_the_old_manifest(output, keep):
    file, folder, shards = settled_file(output, [BUSY, BUSY], [BUSY])
    elements = list(read_errors(folder, run_of(output)))
    lines = [element for element in elements if isinstance(element, Line)]
    some = written(output, [*lines[:keep], elements[-1]])
    assert list(merge_file(some, run_of(output))) == []
    assert read_manifest(open_store(output.store_url), folder).failed == 3
    assert set(shards) <= names(output, folder)
    assert "retry again" in run_state().left[file.id]
    # The next one begins anew, and removes what this one has written.
    (settled,) = retried(output, folder, run_id="run-2")
    assert (settled.answered, settled.failed) == (3, 0)
    manifest = read_manifest(open_store(output.store_url), folder)
    assert names(output, folder) == {*(shard.name for shard in manifest.shards), MANIFEST_NAME}


def test_a_run_that_is_stopped_reads_no_further_and_merges_nothing(output):
    file, folder, _ = settled_file(output, [BUSY, BUSY, BUSY])
    elements = []
    for element in read_errors(folder, run_of(output)):
        elements.append(element)
        run_state().stop("enough")
    assert [type(element) for element in elements] == [Line, Leftovers]
    assert list(merge_file(written(output, elements), run_of(output))) == []
    assert run_state().in_work() != []
    assert "not read to its end" in run_state().left[file.id]
    assert list(retries(run_of(output)).sweep()) == []
    assert list(read_errors(folder, run_of(output))) == []


def test_a_shard_that_cannot_be_read_stays_and_the_others_are_merged(output):
    _, folder, shards = settled_file(output, [BUSY], [BUSY], [BUSY])
    store = open_store(output.store_url)
    store.delete(folder + shards[0])
    store.put(folder + shards[1], b"torn")
    (settled,) = retried(output, folder)
    assert (settled.answered, settled.failed) == (1, 2)
    assert [shard.name for shard in read_manifest(store, folder).shards][:2] == shards[:2]
    assert len(run_state().left) == 2


def test_a_file_that_another_configuration_answered_is_left(output):
    file, folder, _ = settled_file(output, [BUSY], configuration="other")
    assert list(read_errors(folder, run_of(output))) == []
    assert "another configuration" in run_state().left[file.id]
    assert list(retries(run_of(output)).sweep()) == []


def test_only_objects_with_a_shards_name_right_in_the_folder_are_removed(output):
    _, folder, _ = settled_file(output, [BUSY])
    store = open_store(output.store_url)
    for name in ("notes.txt", "shard-000000000000-0.jsonl", "e2/shard-000000000000-0.jsonl"):
        store.put(folder + name, b"x")
    assert len(retried(output, folder)) == 1
    left = names(output, folder)
    assert {"notes.txt", "e2/shard-000000000000-0.jsonl"} <= left
    assert "shard-000000000000-0.jsonl" not in left


def test_a_record_that_a_run_left_in_open_is_no_claim_on_a_retry(output):
    file, folder, _ = settled_file(output, [BUSY])
    record = JobRecord(
        store_url=file.store_url,
        key=file.key,
        etag=file.etag,
        size=file.size,
        notification={},
        configuration="c",
        run_id="run-0",
    )
    Jobs(open_store(output.store_url), output.key).claim(record, lambda run_id: False)
    run_state().presence = alive("run-0")
    assert [settled.answered for settled in retried(output, folder)] == [1]


def test_local_files_have_no_bucket_and_are_retried_too(output):
    file, folder, _ = settled_file(output, [BUSY])
    store = open_store(output.store_url)
    manifest = read_manifest(store, folder).model_copy(update={"bucket": ""})
    local = folder_of(output, replace(file, store_url=""))
    for name in names(output, folder) - {MANIFEST_NAME}:
        store.put(local + name, store.read(folder + name)[0])
    write_manifest(store, local, manifest)
    (settled,) = retried(output, local)
    assert (settled.file.key, settled.answered, settled.failed) == (file.key, 1, 0)


def test_a_shard_that_comes_twice_counts_once(output):
    _, folder, _ = settled_file(output, [BUSY, BUSY])
    elements = written(output, read_errors(folder, run_of(output)))
    (settled,) = merge_file([*elements, *elements], run_of(output))
    assert (settled.answered, settled.failed) == (2, 0)
