from __future__ import annotations

import gzip
import json
import threading
import time
from types import SimpleNamespace
from uuid import uuid4

import apache_beam as beam
import pytest
from apache_beam.testing.test_pipeline import TestPipeline
from apache_beam.testing.util import assert_that, equal_to

from llmdo.storage.chat.log import ChatLog
from llmdo.storage.errors import AccessDenied, QueueError, QueueUnauthorized, StorageError, StorageUnavailable
from llmdo.storage.objects.local import LocalStore
from llmdo.storage.objects.store import Location, locate
from llmdo.storage.queues.client import Pulled, QueueMessage
from llmdo.transforms import acks
from llmdo.transforms.acks import close_acks
from llmdo.transforms.chat import read_events as chat_source
from llmdo.transforms.chat.intake import EventIntake
from llmdo.transforms.chat.read_events import ReadEvents, read_lines
from llmdo.transforms.elements import FileVersion
from llmdo.transforms.run import Run
from tests.states import run_state

RUN = Run("run-1", Location("out", ""))


def sent(name, conversation="c", at=1000, role="user", **more):
    """A message's event; ``at`` in seconds."""
    args = {"id": name, "conversationId": conversation, "message": f"text of {name}", "role": role} | more
    return {"name": "v1.ChatMessageSent", "args": args | {"createdAt": at * 1000}}


def answered(name, response="r", conversation="c", at=2000):
    args = {"id": response, "conversationId": conversation, "message": "said", "role": "assistant", "modelId": "m"}
    if name:
        args["responseToMessageId"] = name
    return {"name": "v1.LLMResponseReceived", "args": args | {"createdAt": at * 1000}}


@pytest.fixture
def log(tmp_path):
    return ChatLog(LocalStore(tmp_path), "")


@pytest.fixture
def take(log):
    """Takes events in; gives the ids of the messages that came out."""

    def go(*events, since=None, clock=time.time):
        intake = EventIntake(log, RUN, since, clock)
        taken = intake.take(events)
        assert [one.error for one in taken] == [None] * len(events)
        return [one.incoming.message.id for one in taken if one.incoming]

    return go


def open_ids(log):
    return sorted(message.id for message in log.open_messages())


def objects(tmp_path, folder):
    return [json.loads(path.read_bytes()) for path in sorted((tmp_path / folder).glob("*.json"))]


def test_messages_of_users_come_out_logged_and_marked_whatever_form_their_event_has(take, log):
    forms = [sent("a"), json.dumps(sent("b")), json.dumps({**sent("c"), "seqNum": 3}).encode()]
    assert take(*forms, sent("d", role="assistant"), sent("e", role="system")) == ["a", "b", "c"]
    assert open_ids(log) == ["a", "b", "c"]
    assert [one.id for one in log.conversation("c").messages] == ["a", "b", "c", "d", "e"]


def test_events_of_one_moment_keep_the_order_in_which_they_came(take, log):
    names = [uuid4().hex for _ in range(50)]
    take(*(sent(name) for name in names), clock=lambda: 5.0)
    assert [one.id for one in log.conversation("c").messages] == names


def test_a_message_that_comes_again_comes_out_until_it_is_answered(take, log):
    assert take(sent("a"), sent("a")) in (["a"], ["a", "a"])
    assert take(sent("a")) == ["a"]
    take(answered("a"))
    assert take(sent("a")) == []


def test_messages_from_before_since_are_logged_and_left_alone(take, log):
    assert take(sent("old", at=99), sent("new", at=100), since=100.0) == ["new"]
    assert open_ids(log) == ["new"]
    assert [one.id for one in log.conversation("c").messages] == ["old", "new"]


@pytest.mark.parametrize("bad", [b"{broken", "[1]", ["a"], 7, None, {"name": "v1.ChatMessageSent", "args": {"id": 1}}])
def test_what_is_no_event_goes_to_the_dead_letters_with_its_reason(take, tmp_path, bad):
    assert take(bad, sent("a")) == ["a"]
    (letter,) = objects(tmp_path, "_dead")
    assert letter["reason"] and letter["body"] == (bad.decode() if isinstance(bad, bytes) else bad)
    assert run_state().counts.messages_undecodable == 1


def test_events_of_other_kinds_are_kept_and_counted(take, tmp_path):
    created = {"name": "v1.ConversationCreated", "args": {"id": "c", "title": "T", "createdAt": 1}}
    unknown = {"name": "v9.Unknown", "args": {"x": [1]}}
    started = {"name": "v1.LLMResponseStarted", "args": {}}
    assert take(created, unknown, started) == []
    assert sorted(event["name"] for event in objects(tmp_path, "_events")) == ["v1.ConversationCreated", "v9.Unknown"]
    assert run_state().counts.messages_passed_over == 3


@pytest.mark.parametrize("names_it", [True, False])
def test_a_response_that_comes_with_its_message_leaves_nothing_to_answer(take, log, names_it):
    events = [answered("a" if names_it else ""), sent("a"), sent("b", "other"), sent("later", at=3000)]
    assert take(*events) == ["b", "later"]
    assert open_ids(log) == ["b", "later"]
    assert log.conversation("c").answers["a"].text == "said"


def test_a_message_whose_record_is_spoilt_comes_out_so_that_its_user_is_told(take, log, tmp_path):
    take(sent("a"))
    (tmp_path / "c/messages/a.json").write_bytes(b"{")
    assert take(sent("a")) == ["a"]
    assert "c/messages/a.json" in objects(tmp_path, "_dead")[0]["reason"]


class _Shaky:
    """A log whose ``add`` fails for some messages."""

    def __init__(self, log, error):
        self.log = log
        self.error = error
        self.fails = {"b"}

    def __getattr__(self, name):
        return getattr(self.log, name)

    def add(self, message, wanted):
        if message.id in self.fails:
            raise self.error
        return self.log.add(message, wanted)


def test_what_the_log_does_not_take_now_is_said_and_the_others_are_logged(log):
    intake = EventIntake(_Shaky(log, StorageUnavailable("later")), RUN, None)
    taken = intake.take([sent("a"), sent("b"), sent("c")])
    assert [one.incoming.message.id if one.incoming else str(one.error) for one in taken] == ["a", "later", "c"]
    with pytest.raises(AccessDenied):
        EventIntake(_Shaky(log, AccessDenied("wrong key")), RUN, None).take([sent("b")])


def test_answers_of_others_are_taken_over_side_by_side(log):
    """Each costs three calls to the log, and an instance that has company reads an answer to every message."""
    together = threading.Barrier(3)

    class Slow:
        def __getattr__(self, name):
            return getattr(log, name)

        def adopt(self, answer, created, *, final=False):
            together.wait(60)
            log.adopt(answer, created)

    taken = EventIntake(Slow(), RUN, None).take([answered(f"m{n}", f"r{n}") for n in range(3)])
    assert [one.error for one in taken] == [None] * 3
    assert set(log.conversation("c").answers) == {"m0", "m1", "m2"}


# The queue.


class _Client:
    """Stands for the queue: what each pull gives, then nothing; keeps what was acked."""

    def __init__(self, *pulls):
        self.pulls = list(pulls)
        self.pulled = 0
        self.acked = []
        self.settling = []  # an error for each of the next calls
        self.queue_id = "q"

    def pull(self, visibility_timeout_s):
        self.pulled += 1
        found = self.pulls.pop(0) if self.pulls else []
        if isinstance(found, Exception):
            raise found
        messages = tuple(
            QueueMessage(str(i), f"lease of {event['args']['id']}", 1, event, "json", True, event)
            for i, event in enumerate(found)
        )
        return Pulled(messages, 7)

    def settle(self, acks, tries):
        if self.settling:
            raise self.settling.pop(0)
        self.acked += acks

    def close(self):
        pass


@pytest.fixture
def now(monkeypatch):
    """The source's clock, in seconds, which stands still."""
    clock = SimpleNamespace(monotonic=0.0)
    monkeypatch.setattr(chat_source, "time", SimpleNamespace(monotonic=lambda: clock.monotonic))
    return clock


@pytest.fixture
def queue(monkeypatch, tmp_path, log, now):
    """Opens the queue's side of the source over given pulls."""
    opened = []

    def go(*pulls, since=None):
        client = _Client(*pulls)
        close_acks(run_state())
        for module in (chat_source, acks):
            monkeypatch.setattr(module, "cloudflare_account", lambda: None)
            monkeypatch.setattr(module, "QueueClient", lambda account, queue_id: client)
        looking = chat_source._QueuedEvents("q", Run("run-1", locate(str(tmp_path))), since, 0.25)
        opened.append(looking)
        return looking, client

    yield go
    for looking in opened:
        looking.close()


def ids(look):
    found, wait = look
    return [incoming.message.id for incoming in found], wait


def test_a_message_is_in_the_log_before_it_is_acked_and_goes_on(queue, log, monkeypatch):
    looking, client = queue([sent("a"), answered("none")])
    logged = []
    settle = client.settle
    monkeypatch.setattr(client, "settle", lambda acks, tries: logged.append(open_ids(log)) or settle(acks, tries))
    assert ids(looking.look()) == (["a"], 0.25)
    looking.close()
    assert (client.acked, logged) == (["lease of a", "lease of r"], [["a"]])
    assert run_state().backlog == 7


def test_the_time_that_a_look_takes_is_part_of_the_wait(queue, now, monkeypatch):
    looking, client = queue([sent("a")], [sent("b")], [])
    pull = client.pull

    def slow(**given):
        now.monotonic += took
        return pull(**given)

    monkeypatch.setattr(client, "pull", slow)
    took = 0.125
    assert ids(looking.look()) == (["a"], 0.125)
    took = 3.0
    assert ids(looking.look()) == (["b"], 0.0)


def test_nothing_more_is_pulled_while_the_log_takes_nothing_and_nothing_is_acked(queue, monkeypatch):
    looking, client = queue([sent("a"), sent("b")], [sent("c")])
    shaky = _Shaky(looking._intake._log, StorageUnavailable("R2 sleeps"))
    monkeypatch.setattr(looking._intake, "_log", shaky)
    assert ids(looking.look()) == (["a"], 0.5)
    assert ids(looking.look()) == ([], 1.0)
    assert client.pulled == 1
    shaky.fails.clear()
    assert ids(looking.look())[0] == ["b"]
    assert ids(looking.look())[0] == ["c"]
    looking.close()
    assert client.acked == ["lease of a", "lease of b", "lease of c"]


def test_a_queue_that_gives_no_answer_is_asked_later_and_one_that_refuses_ends_the_run(queue):
    looking, _ = queue(QueueError("busy", 503), [sent("a")], QueueUnauthorized("wrong token", 401))
    found, wait = looking.look()
    assert (found, wait) == ([], 0.5)
    assert ids(looking.look())[0] == ["a"]
    with pytest.raises(QueueUnauthorized):
        looking.look()


def test_acks_that_fail_are_made_again_and_hold_nothing_up(queue):
    looking, client = queue([sent("a")], [sent("b")])
    client.settling = [QueueError("busy", 503)]
    assert ids(looking.look())[0] == ["a"]
    assert ids(looking.look())[0] == ["b"]
    looking.look()
    assert close_acks(run_state(), patient=True) == {}
    assert sorted(client.acked) == ["lease of a", "lease of b"]


def test_what_other_runs_left_open_comes_out_and_not_what_is_in_work_here(queue, take, monkeypatch):
    take(sent("left"), sent("ours"))
    monkeypatch.setattr(chat_source, "InWork", lambda state: {"c/ours"})
    looking, _ = queue([sent("a")])
    assert ids(looking.look())[0] == ["left", "a"]
    assert ids(looking.look())[0] == []  # until the next sweep


def test_only_what_is_new_in_the_log_has_not_been_accepted_before(queue, take, tmp_path):
    take(sent("left"), sent("spoilt"))
    (tmp_path / "c/messages/spoilt.json").write_bytes(b"{")
    looking, _ = queue([sent("a")], [sent("a"), sent("spoilt"), sent("b")])
    found = [[(one.message.id, one.accepted) for one in looking.look()[0]] for _ in range(2)]
    assert found == [[("left", True), ("a", False)], [("a", True), ("spoilt", True), ("b", False)]]


# Files.


def write(path, *lines):
    data = b"".join((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def test_all_events_of_all_files_are_logged_then_what_waits_comes_out(tmp_path, take):
    take(sent("before", "d"))
    files = tmp_path / "files"
    files.mkdir()
    write(files / "a.jsonl", sent("a"), b"", b"{broken", sent("b", at=50), answered("c"), sent("old", at=1))
    write(files / "b.jsonl.gz", sent("c"), sent("e", "f"))
    write(files / "log.txt", sent("t", "txt"))
    named = (str(files), str(files / "log.txt"))
    with TestPipeline(runner="FnApiRunner") as pipeline:
        found = (
            pipeline
            | ReadEvents(named, Run("run-1", Location(str(tmp_path), "")), 10.0)
            | beam.Map(lambda incoming: (incoming.message.id, incoming.accepted))
        )
        assert_that(found, equal_to([(name, True) for name in ("a", "b", "c", "e", "before", "t")]))
    log = ChatLog(LocalStore(tmp_path), "")
    assert [message.id for message in log.conversation("c").messages] == ["old", "b", "a", "c"]
    assert len(objects(tmp_path, "_dead")) == 1


def lines_of(path, log):
    info = LocalStore(path.parent).stat(path.name)
    return list(read_lines(FileVersion(str(path.parent), path.name, info.etag, info.size), log, RUN))


def test_a_line_that_is_too_long_is_buried_by_its_place(tmp_path, log, monkeypatch):
    monkeypatch.setattr(chat_source, "_MAX_EVENT_BYTES", 100)
    path = write(tmp_path / "a.jsonl", b"x" * 101, b"y" * 100)
    assert lines_of(path, log) == [b"y" * 100]
    (letter,) = objects(tmp_path, "_dead")
    assert letter == {"reason": "an event has at most 100 bytes", "body": {"file": str(path), "offset": 0}}


def test_a_torn_file_is_an_error_that_names_it(tmp_path, log):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b"{}\n" * 1000)[:-5])
    with pytest.raises(StorageError, match=r"a\.jsonl\.gz ends in the middle.*replace it"):
        lines_of(path, log)
