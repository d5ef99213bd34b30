import json
import time
from dataclasses import replace

import apache_beam as beam
import pytest
from apache_beam.testing.test_pipeline import TestPipeline
from apache_beam.testing.util import assert_that, equal_to

from llmdo.storage.errors import StorageUnavailable
from llmdo.storage.objects.opening import open_store
from llmdo.storage.objects.store import Location
from llmdo.storage.output.intervals import Intervals
from llmdo.storage.output.jobs import Jobs
from llmdo.storage.output.manifests import MANIFEST_NAME, put_shard
from llmdo.transforms import acks as acking
from llmdo.transforms import outages
from llmdo.transforms.acks import close_acks
from llmdo.transforms.elements import FileVersion, KnownShard, Leftovers, Notice, OpenFile
from llmdo.transforms.files import open_files as opening
from llmdo.transforms.files.find_files import left_in_work
from llmdo.transforms.files.folders import folder_of
from llmdo.transforms.files.open_files import SMALL_BYTES, TRIES, OpenFiles, Opening, gaps_of, open_file
from llmdo.transforms.files.settle_files import Finished, settle
from llmdo.transforms.files.source import Notifications
from llmdo.transforms.run import Run
from llmdo.transforms.run_state import RunState
from tests.states import run_state

QUEUE = Notifications("q")
CONTENT = b"x" * 99 + b"\n"


@pytest.fixture(autouse=True)
def state():
    return run_state()


@pytest.fixture
def output(tmp_path):
    return Location(str(tmp_path / "out"), "out/")


@pytest.fixture
def source(tmp_path):
    return open_store(str(tmp_path / "in"))


def put(source, key="input/a.jsonl", content=CONTENT):
    return FileVersion(source.url, key, source.put(key, content), len(content))


@pytest.fixture
def file(source):
    return put(source)


def notice(file, nonce="n1", lease_id=None):
    return Notice(file, lease_id, {"action": "PutObject"}, nonce)


def write(output, file, start, stop):
    row = b'{"source": {"offset": %d, "length": %d}, "usage": {"input_tokens": 1, "output_tokens": 1}}'
    rows = [(start, stop, row % (start, stop - start))]
    return put_shard(
        open_store(output.store_url),
        folder_of(output, file),
        "answers",
        rows,
        configuration="c",
        input_tokens=1,
        output_tokens=1,
    )


def records(output):
    return list(Jobs(open_store(output.store_url), output.key).sweep())


def opened(file, *gaps, nonce="n1"):
    return OpenFile(replace(file, opening=nonce), gaps, CONTENT)


def test_a_new_file_gets_a_record_with_its_whole_notification(output, file, state):
    assert open_file(Run("run-1", output, "c"), notice(file)) == Opening((opened(file, (0, 100)),))
    (record,) = records(output)
    assert (record.key, record.etag, record.size, record.nonce) == (file.key, file.etag, file.size, "n1")
    assert (record.notification, record.configuration, record.run_id) == ({"action": "PutObject"}, "c", "run-1")
    assert state.in_work() == [replace(file, opening="n1")]


def test_only_the_gaps_of_an_earlier_run_are_read_again(output, file):
    shards = [write(output, file, 20, 40), write(output, file, 60, 100)]
    found = open_file(Run("run-2", output, "c"), notice(file)).elements
    here = replace(file, opening="n1")
    assert found == (*(KnownShard(here, s) for s in shards), opened(file, (0, 20), (40, 60)))


def test_a_file_that_lacks_only_its_manifest_is_not_read_again(output, file):
    shard = write(output, file, 0, 100)
    known = KnownShard(replace(file, opening="n1"), shard)
    assert open_file(Run("run-2", output, "c"), notice(file)).elements == (known,)


def test_torn_shards_are_named_so_that_the_winner_can_delete_them(output, file):
    open_store(output.store_url).put(folder_of(output, file) + "shard-000000000000-torn.jsonl", b"{")
    found = open_file(Run("run-2", output, "c"), notice(file)).elements
    assert found[0] == Leftovers(replace(file, opening="n1"), ("shard-000000000000-torn.jsonl",))


def test_a_settled_file_is_not_opened_and_a_record_left_behind_goes(output, source, file):
    open_file(Run("run-1", output, "c"), notice(file))
    settle(Run("run-1", output, "c"), Finished(file, 100, 0, ()))
    other = put(source, "input/b.jsonl")
    open_file(Run("run-1", replace(output), "c"), notice(other))
    assert open_file(Run("run-2", output, "c"), notice(file, "n2")) == Opening()
    assert [record.key for record in records(output)] == ["input/b.jsonl"]
    assert run_state("run-2").settled[file.id].reason == "was done before"


def test_what_this_run_works_on_is_not_opened_twice_but_a_repeated_bundle_opens_it_again(output, file):
    first = open_file(Run("run-1", output, "c"), notice(file))
    assert open_file(Run("run-1", output, "c"), notice(file, "n2")) == Opening()
    assert open_file(Run("run-1", output, "c"), notice(file)) == first


def test_a_later_attempt_of_the_run_takes_over_what_an_earlier_one_lost_and_not_the_other_way_round(output, file):
    first, second = (replace(notice(file, nonce), attempt=at) for nonce, at in (("n1", "99.5"), ("n2", "100.5")))
    assert open_file(Run("run", output, "c"), first).elements == (opened(file, (0, len(CONTENT))),)
    assert open_file(Run("run", output, "c"), second).elements == (opened(file, (0, len(CONTENT)), nonce="n2"),)
    assert open_file(Run("run", output, "c"), replace(first, nonce="n3")) == Opening()
    assert [record.run_id for record in records(output)] == ["run@100.5"]


def test_what_a_living_run_works_on_is_left_to_it_and_the_message_goes(output, file, monkeypatch):
    open_file(Run("run-1", output, "c"), notice(file))
    monkeypatch.setattr(RunState, "is_alive", lambda self, run_id: True)
    assert open_file(Run("run-2", output, "c"), notice(file, "n2")) == Opening()
    assert run_state("run-2").others == {file.id: "run-1"}


@pytest.mark.parametrize("gone", [True, False])
def test_a_version_that_is_no_more_is_stale_and_leaves_no_record(output, source, file, state, gone):
    source.delete(file.key) if gone else source.put(file.key, b"new\n")
    assert open_file(Run("run-1", output, "c"), notice(file)) == Opening()
    assert records(output) == []
    assert state.settled[file.id].status == "stale"


@pytest.mark.parametrize("lease_id", [None, "lease"])
def test_a_file_of_another_configuration_is_left_and_its_message_is_not_acked(output, file, lease_id):
    settle(Run("run-1", output, "another"), Finished(file, 100, 0, ()))
    assert open_file(Run("run-2", output, "c"), notice(file, lease_id=lease_id)) == Opening(ack=False)
    assert "another configuration" in run_state("run-2").left[file.id]
    assert records(output) == []


def test_a_message_about_a_settled_file_opens_nothing_and_leaves_no_record(output, file):
    settle(Run("run-1", output, "c"), Finished(file, 100, 0, (write(output, file, 0, 100),)))
    assert open_file(Run("run-2", output, "c"), notice(file, "n2", "lease")) == Opening()
    assert records(output) == []
    assert run_state("run-2").settled[file.id].reason == "was done before"
    assert run_state("run-2").in_work() == []


def test_a_file_that_another_run_settles_right_before_the_claim_is_not_answered_again(output, file, monkeypatch):
    """Its manifest appears after it was looked for, and its record is gone when the claim is made."""
    claim = Jobs.claim

    def late(jobs, record, is_alive):
        settle(Run("run-1", output, "c"), Finished(file, 100, 0, (write(output, file, 0, 100),)))
        return claim(jobs, record, is_alive)

    monkeypatch.setattr(Jobs, "claim", late)
    assert open_file(Run("run-2", output, "c"), notice(file)) == Opening()
    assert records(output) == []


def test_half_a_file_of_another_configuration_is_never_mixed(output, file):
    open_file(Run("run-1", output, "another"), notice(file))
    write(output, file, 0, 50)
    assert open_file(Run("run-2", output, "c"), notice(file, "n2")) == Opening()
    assert "another configuration" in run_state("run-2").left[file.id]
    (record,) = records(output)
    assert (record.run_id, record.failures) == ("", 1)


@pytest.mark.parametrize("lease_id", [None, "lease"])
def test_a_file_that_fails_three_times_to_open_goes_to_the_dead_letters_and_its_record_says_so(output, file, lease_id):
    store = open_store(output.store_url)
    store.put(folder_of(output, file) + MANIFEST_NAME, b"torn")
    for failures in (1, 2, 3):
        assert open_file(Run(f"run-{failures}", output, "c"), notice(file, f"n{failures}", lease_id)) == Opening()
        (record,) = records(output)
        assert (record.failures, record.dead, record.run_id) == (failures, failures == TRIES, "")
        assert len(list(store.list("out/_dead/"))) == (failures == TRIES)
    (letter,) = store.list("out/_dead/")
    said = json.loads(store.read(letter.key)[0])
    assert "is not a manifest" in said["reason"] and "is not a manifest" in record.problem
    assert (said["tries"], said["message"]) == (3, {"action": "PutObject"})
    assert list(left_in_work(Run("run-1", output), QUEUE)) == []
    assert list(run_state("run-3").left) == [file.id]
    store.delete(folder_of(output, file) + MANIFEST_NAME)
    assert open_file(Run("run-3", output, "c"), notice(file, "n4")).elements == (opened(file, (0, 100), nonce="n4"),)
    assert run_state("run-3").left == {}


def test_a_big_file_is_not_read_when_it_is_opened(output, source):
    file = put(source, content=b"x" * SMALL_BYTES + b"\n")
    assert open_file(Run("run-1", output, "c"), notice(file)).elements[0].content is None


def test_a_wrong_size_in_an_event_is_put_right(output, file):
    for size in (0, 7, 10 * SMALL_BYTES):
        (element,) = open_file(Run(f"run-{size}", output, "c"), notice(replace(file, size=size), f"n{size}")).elements
        assert (element.file.size, element.gaps, element.content) == (100, ((0, 100),), None)


def test_gaps_of_a_compressed_file_are_open_at_the_end(file):
    packed = replace(file, key="a.jsonl.gz")
    assert gaps_of(packed, Intervals()) == ((0, None),)
    assert gaps_of(packed, Intervals([(10, 500)])) == ((0, 10), (500, None))


def test_an_empty_file_has_one_empty_gap(file):
    assert gaps_of(replace(file, size=0), Intervals()) == ((0, 0),)


class _Queue:
    """Stands for the queue's client: notes what is acked, and how many records there were at that moment."""

    acked: list

    def __init__(self, account, queue_id):
        assert queue_id == "q"

        self.queue_id = queue_id

    def close(self):
        pass

    def settle(self, acks, tries):
        _Queue.acked.append((sorted(acks), len(records(_Queue.output))))


@pytest.fixture
def acked(monkeypatch, output):
    monkeypatch.setattr(acking, "QueueClient", _Queue)
    monkeypatch.setattr(acking, "cloudflare_account", lambda: None)
    _Queue.acked, _Queue.output = [], output
    return _Queue.acked


def run(output, notices, expected):
    with TestPipeline(runner="FnApiRunner") as pipeline:
        found = pipeline | beam.Create(notices, reshuffle=False) | OpenFiles(Run("run-1", output, "c"), "q")
        keys = found | beam.Map(lambda element: element.file.key)
        assert_that(keys, equal_to(expected))
    close_acks(run_state())


def test_two_messages_for_one_version_open_it_once_and_both_are_acked_after_the_record(output, file, acked):
    run(output, [notice(file, "n1", "l1"), notice(file, "n2", "l2")], [file.key])
    assert acked == [(["l1", "l2"], 1)]


def test_many_files_are_opened_side_by_side_and_each_once(output, source, acked):
    files = [put(source, f"input/{i}.jsonl") for i in range(150)]
    run(output, [notice(file, f"n{i}", f"l{i}") for i, file in enumerate(files)], [file.key for file in files])
    assert sorted(lease for leases, _ in acked for lease in leases) == sorted(f"l{i}" for i in range(150))
    assert all(len(leases) <= 100 and count >= len(leases) for leases, count in acked)


def test_messages_are_acked_when_their_bundle_ends_however_few_they_are(output, file, acked, monkeypatch):
    monkeypatch.setattr(opening, "_ACK_WITHIN", 3600.0)
    with TestPipeline(runner="FnApiRunner") as pipeline:
        notices = pipeline | beam.Create([notice(file, "n1", "l1")], reshuffle=False)
        _ = notices | OpenFiles(Run("run-1", output, "c"), "q")
    end = time.monotonic() + 60
    while not acked:
        assert time.monotonic() < end
        time.sleep(0.01)
    assert acked == [(["l1"], 1)]
    close_acks(run_state())


def test_no_notices_open_nothing(output, acked):
    run(output, [], [])
    assert acked == []


def test_a_message_is_acked_also_when_its_file_cannot_be_opened_since_the_record_brings_it_back(output, file, acked):
    open_store(output.store_url).put(folder_of(output, file) + MANIFEST_NAME, b"torn")
    run(output, [notice(file, "n1", "l1")], [])
    assert acked == [(["l1"], 1)]
    assert [found.file.key for found in left_in_work(Run("run-1", output), QUEUE)] == [file.key]


def test_a_message_is_not_acked_when_its_record_cannot_be_written(output, file, acked, monkeypatch):
    def refuse(*_):
        raise StorageUnavailable("r2://bucket: later")

    monkeypatch.setattr(opening.Jobs, "claim", refuse)
    monkeypatch.setattr(outages.time, "sleep", lambda seconds: None)
    with pytest.raises(Exception, match="later"):
        run(output, [notice(file, "n1", "l1")], [])
    assert acked == []


def test_a_record_that_cannot_be_written_for_now_holds_its_message_back_and_loses_nothing(
    output, file, acked, monkeypatch
):
    claim, errors = opening.Jobs.claim, [StorageUnavailable("later")] * 2

    def claimed(*arguments):
        if errors:
            raise errors.pop()
        return claim(*arguments)

    monkeypatch.setattr(opening.Jobs, "claim", claimed)
    monkeypatch.setattr(outages.time, "sleep", lambda seconds: None)
    run(output, [notice(file, "n1", "l1")], [file.key])
    assert acked == [(["l1"], 1)]
