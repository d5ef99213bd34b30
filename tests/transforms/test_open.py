from dataclasses import replace

import apache_beam as beam
import pytest
from apache_beam.testing.test_pipeline import TestPipeline
from apache_beam.testing.util import assert_that, equal_to

from storage.intervals import Intervals
from storage.jobs import Jobs
from storage.manifests import MANIFEST_NAME, put_shard
from storage.objects import Location, open_store
from transforms import open as opening
from transforms.elements import FileVersion, KnownShard, Notice, OpenFile
from transforms.open import OpenFiles, gaps_of, open_file
from transforms.run_state import reset_run_state
from transforms.settle import Finished, settle
from transforms.shards import folder_of

FILE = FileVersion("r2://bucket", "input/a.jsonl", "e1", 100)
NOTICE = Notice(FILE, None, {"action": "PutObject"})


@pytest.fixture
def output(tmp_path):
    return Location(str(tmp_path), "out/")


def write(output, start, stop):
    row = b'{"source": {"offset": %d, "length": %d}, "usage": {"input_tokens": 1, "output_tokens": 1}}'
    rows = [(start, stop, row % (start, stop - start))]
    return put_shard(
        open_store(output.store_url),
        folder_of(output, FILE),
        "answers",
        rows,
        configuration="c",
        input_tokens=1,
        output_tokens=1,
    )


def records(output):
    return list(Jobs(open_store(output.store_url), output.key).sweep())


def test_a_new_file_gets_a_record_with_its_whole_notification(output):
    assert open_file(output, "c", "run-1", NOTICE) == [OpenFile(FILE, ((0, 100),))]
    (record,) = records(output)
    assert (record.key, record.etag, record.size) == (FILE.key, FILE.etag, FILE.size)
    assert (record.notification, record.configuration, record.run_id) == ({"action": "PutObject"}, "c", "run-1")


def test_only_the_gaps_of_an_earlier_run_are_read_again(output):
    shards = [write(output, 20, 40), write(output, 60, 100)]
    opened = open_file(output, "c", "run-2", NOTICE)
    assert opened == [*(KnownShard(FILE, s) for s in shards), OpenFile(FILE, ((0, 20), (40, 60)))]


def test_a_file_that_lacks_only_its_manifest_is_not_read_again(output):
    shard = write(output, 0, 100)
    assert open_file(output, "c", "run-2", NOTICE) == [KnownShard(FILE, shard)]


def test_a_settled_file_is_not_opened_and_a_record_left_behind_goes(output):
    state = reset_run_state()
    open_file(output, "c", "run-1", NOTICE)
    settle(output, "c", "run-1", Finished(FILE, 100, 0, ()))
    open_file(replace(output), "c", "run-1", replace(NOTICE, file=replace(FILE, etag="e2")))
    assert open_file(output, "c", "run-2", NOTICE) == []
    assert [record.etag for record in records(output)] == ["e2"]
    assert state.settled[FILE.id].reason == "was done before"


def test_gaps_of_a_compressed_file_are_open_at_the_end():
    packed = replace(FILE, key="a.jsonl.gz")
    assert gaps_of(packed, Intervals()) == ((0, None),)
    assert gaps_of(packed, Intervals([(10, 500)])) == ((0, 10), (500, None))


def test_an_empty_file_has_one_empty_gap():
    assert gaps_of(replace(FILE, size=0), Intervals()) == ((0, 0),)


class _Queue:
    """Stands for the queue's client: notes what is acked, and what records there were at that moment."""

    acked: list

    def __init__(self, account, queue_id):
        assert queue_id == "q"

    def settle(self, acks):
        _Queue.acked.append((sorted(acks), len(records(_Queue.output))))


@pytest.fixture
def acked(monkeypatch, output):
    monkeypatch.setattr(opening, "QueueClient", _Queue)
    monkeypatch.setattr(opening, "cloudflare_account", lambda: None)
    _Queue.acked, _Queue.output = [], output
    return _Queue.acked


def run(output, notices, expected):
    with TestPipeline(runner="FnApiRunner") as pipeline:
        opened = pipeline | beam.Create(notices, reshuffle=False) | OpenFiles(output, "c", "run-1", "q")
        assert_that(opened, equal_to(expected))


def test_two_messages_for_one_version_open_it_once_and_both_are_acked_after_the_record(output, acked):
    run(output, [replace(NOTICE, lease_id="l1"), replace(NOTICE, lease_id="l2")], [OpenFile(FILE, ((0, 100),))])
    assert acked == [(["l1", "l2"], 1)]


def test_no_notices_open_nothing(output, acked):
    run(output, [], [])
    assert acked == []


def test_a_message_is_not_acked_when_its_file_cannot_be_opened(output, acked):
    state = reset_run_state()
    open_store(output.store_url).put(folder_of(output, FILE) + MANIFEST_NAME, b"torn")
    other = replace(FILE, etag="e2")
    notices = [replace(NOTICE, lease_id="l1"), Notice(other, "l2", {})]
    run(output, notices, [OpenFile(other, ((0, 100),))])
    assert acked == [(["l2"], 1)]
    assert "is no manifest" in state.left[FILE.id]
