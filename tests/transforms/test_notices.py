import os

import pytest

from storage.jobs import Jobs, new_record
from storage.objects import Location, open_store
from storage.queues import Message
from transforms import notices
from transforms.elements import FileVersion
from transforms.notices import Listing, Notifications, left_in_work, list_inputs, understand
from transforms.run_state import reset_run_state

SOURCE = Notifications("q", "input/")


def listed(*inputs, output=None):
    return {(n.file.store_url, n.file.key, n.file.size) for n in list_inputs(Listing(inputs), output)}


@pytest.fixture
def folder(tmp_path):
    for name in ("a.jsonl", "sub/b.jsonl", "sub/c.jsonl.gz", "notes.txt", "out/x/1-2/shard-000000000000-aa.jsonl"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}\n")
    return tmp_path


def test_a_folder_gives_every_prompt_file_below_it_but_not_the_output(folder):
    output = Location(str(folder / "out"), "")
    assert {key for _, key, _ in listed(str(folder), output=output)} == {"a.jsonl", "sub/b.jsonl", "sub/c.jsonl.gz"}


def test_a_file_is_taken_whatever_its_name(folder):
    assert listed(str(folder / "notes.txt")) == {(str(folder), "notes.txt", 3)}


@pytest.mark.parametrize("name", [b"caf\xe9.jsonl", b"caf\xe9/d.jsonl"])
def test_a_file_whose_name_is_not_utf_8_is_left_out_with_a_warning_that_names_it(folder, caplog, name):
    path = folder / "sub" / os.fsdecode(name)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"{}\n")
    for place in (folder, folder / "*" / "**" / "*.jsonl*"):
        assert {key.rpartition("/")[2] for _, key, _ in listed(str(place))} >= {"b.jsonl", "c.jsonl.gz"}
        assert "caf\\udce9" in caplog.text and "is not UTF-8" in caplog.text
        caplog.clear()
    assert listed(str(path)) == set()
    assert "rename it" in caplog.text
    keys = [info.key for info in open_store(str(folder)).list("sub/")]
    assert keys == ["sub/b.jsonl", "sub/c.jsonl.gz"]


def test_a_pattern_keeps_the_path_behind_its_fixed_part(folder):
    assert listed(str(folder / "sub" / "*.jsonl")) == {(str(folder / "sub"), "b.jsonl", 3)}
    output = Location(str(folder / "out"), "")
    keys = {key for _, key, _ in listed(str(folder / "**" / "*.jsonl*"), output=output)}
    assert keys == {"a.jsonl", "sub/b.jsonl", "sub/c.jsonl.gz"}


def test_a_file_that_is_named_twice_is_listed_once(folder):
    name = str(folder / "a.jsonl")
    assert len(list(list_inputs(Listing((name, name)), None))) == 1


def test_a_changed_file_is_another_version(folder):
    path = folder / "a.jsonl"
    (before,) = list_inputs(Listing((str(path),)), None)
    os.utime(path, ns=(1, 1))
    (after,) = list_inputs(Listing((str(path),)), None)
    assert before.file.id != after.file.id


def event(key, action="PutObject", bucket="bucket"):
    item = {"key": key} if "Delet" in action else {"key": key, "size": 7, "eTag": "e1"}
    return {"account": "a", "action": action, "bucket": bucket, "object": item, "eventTime": "2024-05-24T19:36:44.379Z"}


def message(body, decodable=True):
    return Message(
        id="m",
        lease_id="lease",
        attempts=1,
        timestamp_ms=0,
        body=body,
        content_type="json",
        decodable=decodable,
        raw=body,
    )


@pytest.fixture
def output(tmp_path):
    return Location(str(tmp_path), "")


def test_an_event_for_an_input_is_a_notice_with_its_lease_and_whole_body(output):
    notice = understand(message(event("input/a.jsonl")), SOURCE, output)
    assert notice.file == FileVersion("r2://bucket", "input/a.jsonl", "e1", 7)
    assert notice.lease_id == "lease"
    assert dict(notice.body) == event("input/a.jsonl")


@pytest.mark.parametrize(
    "body",
    [
        event("other/a.jsonl"),
        event("input/a.csv"),
        event("input/a.jsonl", "DeleteObject"),
        event("input/a.jsonl", "LifecycleDeletion"),
        event("input/a.jsonl", "SomethingNew"),
        {"type": "cf.r2.bucket.created", "source": {}, "payload": {}, "metadata": {}},
        {"hello": "world"},
        "text",
        5,
        None,
    ],
)
def test_other_messages_are_counted_and_passed_over(output, body):
    state = reset_run_state()
    assert understand(message(body), SOURCE, output) is None
    assert (state.counts.messages_passed_over, state.counts.messages_undecodable) == (1, 0)


def test_an_event_for_the_outputs_own_shards_is_passed_over():
    output = Location("r2://bucket", "input/answers/")
    state = reset_run_state()
    assert understand(message(event("input/answers/bucket/shard-1.jsonl")), SOURCE, output) is None
    assert state.counts.messages_passed_over == 1


def test_a_body_that_cannot_be_decoded_is_in_the_dead_letters_before_it_is_acked(output):
    state = reset_run_state()
    assert understand(message("\x00garbage", decodable=False), SOURCE, output) is None
    assert state.counts.messages_undecodable == 1
    store = open_store(output.store_url)
    (letter,) = store.list("_dead/")
    assert b"garbage" in store.read(letter.key)[0]


def recorded(folder, output, file):
    """What is left in work where a job record names this file, for a queue and for inputs."""
    record = new_record(
        file.store_url, file.key, file.etag, file.size, notification={}, configuration="c", run_id="another"
    )
    jobs = Jobs(open_store(str(folder / "bucket")), output.key)
    jobs.claim(record, lambda _: False)

    def left(source):
        return [found.file for found in left_in_work(output, source)]

    return left


@pytest.fixture
def bucket(folder, monkeypatch):
    """An output in a bucket, which is a folder here."""
    store = open_store(str(folder / "bucket"))
    monkeypatch.setattr(notices, "open_store", lambda url: store if url == "r2://b" else open_store(url))
    return Location("r2://b", "out/")


def test_a_record_in_a_bucket_that_names_a_file_of_this_machine_counts_only_where_that_is_an_input(folder, bucket):
    file = FileVersion(str(folder), "a.jsonl", "3-1", 3)
    left, state = recorded(folder, bucket, file), reset_run_state()
    for source in (SOURCE, Listing(("r2://b/in/",)), Listing((str(folder / "sub"),))):
        assert left(source) == []
        assert f"name {folder} as an input" in state.left.pop(file.id)
    for place in (folder, folder / "a.jsonl", folder / "gone.jsonl", folder / "*.jsonl"):
        assert left(Listing((str(place),))) == [file]
    assert state.left == {}


def test_a_record_that_names_an_object_counts_whatever_the_inputs_are(folder, bucket):
    file = FileVersion("r2://other", "a.jsonl", "e", 3)
    left = recorded(folder, bucket, file)
    assert left(SOURCE) == left(Listing((str(folder),))) == [file]


def test_a_record_in_a_folder_counts_whatever_the_inputs_are(folder):
    file = FileVersion(str(folder), "a.jsonl", "3-1", 3)
    left = recorded(folder, Location(str(folder / "bucket"), "out/"), file)
    assert left(SOURCE) == [file]
