import threading
from itertools import chain

import pytest

from llmdo.storage.errors import AccessDenied, QueueError, QueueUnauthorized, StorageUnavailable
from llmdo.storage.objects.local import LocalStore
from llmdo.storage.objects.opening import open_store
from llmdo.storage.objects.store import Location
from llmdo.storage.output.jobs import JobRecord, Jobs
from llmdo.storage.queues.client import Pulled, QueueMessage
from llmdo.transforms import acks, outages
from llmdo.transforms import run as runs
from llmdo.transforms.acks import close_acks
from llmdo.transforms.elements import FileVersion
from llmdo.transforms.files import find_files as notices
from llmdo.transforms.files.find_files import FindFiles, Puller, _Look, left_in_work, pull_notifications, understand
from llmdo.transforms.files.source import Listing, Notifications
from llmdo.transforms.run import Run
from tests.states import run_state

SOURCE = Notifications("q", "input/")


def event(key, action="PutObject", bucket="bucket"):
    item = {"key": key} if "Delet" in action else {"key": key, "size": 7, "eTag": "e1"}
    return {"account": "a", "action": action, "bucket": bucket, "object": item, "eventTime": "2024-05-24T19:36:44.379Z"}


def message(body, decodable=True):
    return QueueMessage(
        id="m",
        lease_id="lease",
        attempts=1,
        body=body,
        content_type="json",
        decodable=decodable,
        raw=body,
    )


@pytest.fixture
def output(tmp_path):
    return Location(str(tmp_path), "")


def test_an_event_for_an_input_is_a_notice_with_its_lease_and_whole_body(output):
    notice = understand(message(event("input/a.jsonl")), SOURCE, Run("run-1", output))
    assert notice.file == FileVersion("r2://bucket", "input/a.jsonl", "e1", 7)
    assert notice.lease_id == "lease"
    assert dict(notice.body) == event("input/a.jsonl")


@pytest.mark.parametrize(
    "body",
    [
        event("other/a.jsonl"),
        event("input/a.txt"),
        event("input/_delta_log/00.json"),
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
    state = run_state()
    assert understand(message(body), SOURCE, Run("run-1", output)) is None
    assert (state.counts.messages_passed_over, state.counts.messages_undecodable) == (1, 0)


def test_an_event_for_the_outputs_own_shards_is_passed_over():
    output = Location("r2://bucket", "input/answers/")
    state = run_state()
    assert understand(message(event("input/answers/bucket/shard-1.jsonl")), SOURCE, Run("run-1", output)) is None
    assert state.counts.messages_passed_over == 1


def test_a_body_that_cannot_be_decoded_is_in_the_dead_letters_before_it_is_acked(output):
    state = run_state()
    assert understand(message("\x00garbage", decodable=False), SOURCE, Run("run-1", output)) is None
    assert state.counts.messages_undecodable == 1
    store = open_store(output.store_url)
    (letter,) = store.list("_dead/")
    assert b"garbage" in store.read(letter.key)[0]


def recorded(folder, output, file):
    """What is left in work where a job record names this file, for a queue and for inputs."""
    record = JobRecord(
        store_url=file.store_url,
        key=file.key,
        etag=file.etag,
        size=file.size,
        notification={},
        configuration="c",
        run_id="another",
    )
    jobs = Jobs(open_store(str(folder / "bucket")), output.key)
    jobs.claim(record, lambda _: False)

    def left(source):
        return [found.file for found in left_in_work(Run("run-1", output), source)]

    return left


@pytest.fixture
def folder(tmp_path):
    for name in ("a.jsonl", "sub/b.jsonl", "sub/c.jsonl.gz"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(name)
    return tmp_path


@pytest.fixture
def bucket(folder, monkeypatch):
    """An output in a bucket, which is a folder here."""
    store = open_store(str(folder / "bucket"))
    monkeypatch.setattr(runs, "open_store", lambda url: store if url == "r2://b" else open_store(url))
    return Location("r2://b", "out/")


def test_a_record_in_a_bucket_that_names_a_file_of_this_machine_counts_only_where_that_is_an_input(folder, bucket):
    file = FileVersion(str(folder), "a.jsonl", "3-1", 3)
    left, state = recorded(folder, bucket, file), run_state()
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


# Faults of the queue and of R2, while messages are pulled.


class _Client:
    """Stands for the queue: what each pull gives, then nothing; an error for each of the next acks."""

    queue_id = "q"

    def __init__(self):
        self.pulls, self.settling, self.acked, self.pulled = [], [], [], 0

    def pull(self, visibility_timeout_s):
        self.pulled += 1
        found = self.pulls.pop(0) if self.pulls else ()
        if isinstance(found, Exception):
            raise found
        return Pulled(tuple(found), 0)

    def settle(self, acks, tries):
        if self.settling:
            raise self.settling.pop(0)
        self.acked += acks

    def close(self):
        pass


@pytest.fixture
def client(monkeypatch):
    made = _Client()
    for module in (notices, acks):
        monkeypatch.setattr(module, "cloudflare_account", lambda: None)
        monkeypatch.setattr(module, "QueueClient", lambda account, queue_id: made)
    return made


@pytest.fixture
def slept(monkeypatch):
    """The seconds that this thread slept, without sleeping."""
    steps, mine, sleep = [], threading.get_ident(), outages.time.sleep
    monkeypatch.setattr(outages.time, "sleep", lambda s: steps.append(s) if threading.get_ident() == mine else sleep(s))
    return steps


def leased(lease, body, decodable=True):
    return QueueMessage(lease, lease, 1, body, "json", decodable, body)


WANTED, UNWANTED = leased("wanted", event("input/a.jsonl")), leased("unwanted", event("other/a.jsonl"))
UNREADABLE = leased("unreadable", "garbage", decodable=False)


def keys(found):
    return [notice.file.key for notice in found]


def test_an_ack_that_is_refused_for_a_minute_loses_none_of_the_files_that_the_pull_announced(client, output):
    client.pulls = [[UNWANTED, WANTED]]
    client.settling = [QueueError("too many calls", 429, None, 60.0)]
    found, number, _ = Puller(SOURCE, Run("run-1", output)).pull()
    assert (keys(found), number) == (["input/a.jsonl"], 2)
    acks.acks_of(run_state(), "q").flush()
    assert (client.acked, run_state().stop_reason) == ([], None)
    assert close_acks(run_state()) == {"q": 1}


def test_while_r2_takes_no_dead_letter_its_message_is_held_and_the_other_files_go_on(client, output, monkeypatch):
    client.pulls = [[UNREADABLE, UNWANTED, WANTED], [leased("later", event("input/b.jsonl"))]]
    puller = Puller(SOURCE, Run("run-1", output))
    with monkeypatch.context() as outage:
        outage.setattr(LocalStore, "put", _unavailable)
        found, number, wait = puller.pull()
        assert (keys(found), number, wait) == (["input/a.jsonl"], 3, 0.5)
        assert puller.pull() == ([], 1, 1.0)
        assert client.pulled == 1  # nothing more meanwhile
    assert puller.pull()[:2] == ([], 1)
    assert keys(puller.pull()[0]) == ["input/b.jsonl"]
    acks.acks_of(run_state(), "q").flush()
    assert (client.acked, run_state().counts.messages_undecodable) == (["unwanted", "unreadable"], 1)
    assert len(list(open_store(output.store_url).list("_dead/"))) == 1


def _unavailable(*_):
    raise StorageUnavailable("R2 sleeps")


def _denied(*_):
    raise AccessDenied("not ours")


def test_a_version_that_is_asked_for_while_r2_fails_is_asked_for_again(client, output, monkeypatch):
    unsized = {"key": "input/a.jsonl"}
    client.pulls = [[leased("l", {**event("input/a.jsonl"), "object": unsized})]]
    puller, errors = Puller(SOURCE, Run("run-1", output)), [StorageUnavailable("R2 sleeps")]

    def version_of(_):
        if errors:
            raise errors.pop()
        return FileVersion("r2://bucket", "input/a.jsonl", "e1", 7)

    monkeypatch.setattr(notices, "version_of", version_of)
    assert puller.pull() == ([], 1, 0.5)
    assert keys(puller.pull()[0]) == ["input/a.jsonl"]


def test_an_event_about_a_bucket_that_is_not_ours_is_a_dead_letter_and_stops_nothing(output, monkeypatch):
    monkeypatch.setattr(notices, "version_of", _denied)
    assert understand(message(event("input/a.jsonl")), SOURCE, Run("run-1", output)) is None
    store = open_store(output.store_url)
    (letter,) = store.list("_dead/")
    assert b"not ours" in store.read(letter.key)[0]
    monkeypatch.setattr(LocalStore, "put", _denied)  # but wrong keys do
    with pytest.raises(AccessDenied):
        understand(message(event("input/a.jsonl")), SOURCE, Run("run-1", output))


def test_a_queue_that_fails_for_minutes_is_waited_for_by_a_run(client, output, slept):
    failing = [QueueError("too many calls", 429, None, 300.0), QueueError("busy", 503), QueueError("no reply", 0)]
    client.pulls = [*failing, [WANTED]]
    assert keys(chain(*pull_notifications(SOURCE, Run("run-1", output)))) == ["input/a.jsonl"]
    assert sum(slept) > 300
    assert run_state().left == {}


@pytest.mark.parametrize("error", [QueueError("busy", 503), QueueError("too many calls", 429, None, 1000.0)])
def test_a_run_gives_up_a_queue_after_ten_minutes_and_answers_what_it_has_found(client, output, slept, error):
    client.pulls = [[WANTED], *[error] * 100]
    assert keys(chain(*pull_notifications(SOURCE, Run("run-1", output)))) == ["input/a.jsonl"]
    assert sum(slept) <= outages.QUEUE_PATIENCE_S
    assert run_state().left == {"queue q": f"what it still holds: {error}"}
    assert run_state().stop_reason is None


def test_a_run_that_is_told_to_stop_does_not_wait_for_a_queue_that_fails(client, output, slept):
    client.pulls = [[WANTED], QueueError("too many calls", 429, None, 300.0)]
    found = pull_notifications(SOURCE, Run("run-1", output))
    next(found)
    run_state().stop("SIGTERM")
    assert (list(found), slept) == ([], [])


def test_a_queue_that_refuses_for_good_is_an_error_at_once(client, output):
    client.pulls = [QueueUnauthorized("wrong token", 401)]
    with pytest.raises(QueueUnauthorized):
        Puller(SOURCE, Run("run-1", output)).pull()


def test_a_run_waits_for_r2_to_list_its_inputs(folder, slept, monkeypatch):
    listing, errors = LocalStore.stat, [StorageUnavailable("R2 sleeps")] * 2

    def stat(store, key):
        if errors and key.endswith("b.jsonl"):
            raise errors.pop()
        return listing(store, key)

    monkeypatch.setattr(LocalStore, "stat", stat)
    step = FindFiles(Listing((str(folder / "sub"),)), Run("run-1", Location(str(folder / "answers"), "")))
    assert keys(_Look(step).process(b"")) == ["b.jsonl", "c.jsonl.gz"]
    assert sum(slept) == pytest.approx(1.5)
