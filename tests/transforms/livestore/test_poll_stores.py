"""The events of stores get into their logs of chats, and messages come out to be answered."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest

from llmdo.storage.chat.log import ChatLog
from llmdo.storage.chat.records import LoggedAnswer
from llmdo.storage.errors import AccessDenied
from llmdo.storage.livestore.frames import Cursor, StoredEvent
from llmdo.storage.livestore.stores import TakenEvent
from llmdo.storage.objects.local import LocalStore
from llmdo.storage.objects.store import Location
from llmdo.transforms.chat.events import completed, received
from llmdo.transforms.livestore import connections, poll_stores
from llmdo.transforms.livestore.claims import Claims
from llmdo.transforms.livestore.connections import READ_AGAIN_S, Reader, StoreSettings, close_links
from llmdo.transforms.livestore.poll_stores import _StoredEvents
from llmdo.transforms.run import Run
from tests.states import run_state
from tests.transforms.livestore.instances import CREATED, RECEIVED, SENT, message, respond, say


@pytest.fixture
def look(backend, tmp_path, monkeypatch):
    """Starts reading; the returned function gives the ids of the next messages, ``count`` of them, and what is open."""
    monkeypatch.delenv("LIVESTORE_PAYLOAD", raising=False)
    states = []

    def start(since=0.0, stores=("s",), name="run-1"):
        logs = {store: Location(str(tmp_path / store), "") for store in stores}
        with_state = run_state(name)
        states.append(with_state)
        source = _StoredEvents(StoreSettings(backend.url, logs, since=since), Run(name, Location(str(tmp_path), "")))

        def go(count=0, until=lambda: True):
            found = []
            end = time.monotonic() + 55
            while len(found) < count or not until():
                assert time.monotonic() < end, found
                found += [one.message.id for one in source.look()[0]]
            return found

        go.source = source
        return go

    yield start
    for state in states:
        close_links(state)


def log_of(tmp_path, store="s"):
    return ChatLog(LocalStore(tmp_path / store), "")


def test_messages_come_out_and_are_logged_and_open(backend, look, tmp_path):
    go = look()
    say(backend, "m1")
    say(backend, "m2")
    assert go(2) == ["m1", "m2"]
    assert sorted(one.id for one in log_of(tmp_path).open_messages()) == ["m1", "m2"]


def test_other_events_stay_in_the_store(backend, look, tmp_path):
    backend.write("s", "v1.TaskCreated", {"id": "t"})
    backend.write("s", SENT, {"id": "bad"})
    say(backend, "m1")
    assert look()(1) == ["m1"]
    assert not (tmp_path / "s/_events").exists() and len(list((tmp_path / "s/_dead").iterdir())) == 1


def test_a_message_counts_as_sent_when_it_reached_the_store(backend, look):
    """It was typed offline, or its page has a wrong clock."""
    go = look(since=None)  # the first start
    time.sleep(0.01)
    say(backend, "m1")  # created in January
    assert go(1) == ["m1"]


def test_messages_before_since_are_logged_and_not_answered(backend, look, tmp_path):
    say(backend, "m1")
    time.sleep(0.01)
    go = look(since=time.time())
    time.sleep(0.01)
    say(backend, "m2")
    assert go(1) == ["m2"]
    log = log_of(tmp_path)
    assert [one.id for one in log.conversation("c").unanswered] == ["m1", "m2"] and log.count_open() == 1


def test_a_response_of_the_first_version_answers_the_last_message_of_its_conversation(backend, look, tmp_path):
    """Also if its service's clock is behind that of the page."""
    go = look()
    args = {"id": "m1", "conversationId": "c", "message": "?", "role": "user", "createdAt": "2027-01-01T00:00:00Z"}
    backend.write("s", SENT, args)
    assert go(1) == ["m1"]
    respond(backend, None, "r1", createdAt=CREATED)
    log = log_of(tmp_path)
    go(until=lambda: log.count_open() == 0)
    assert log.conversation("c").answers["m1"].response_id == "r1"


def test_an_answer_that_was_not_pushed_is_not_pushed_once_the_store_has_another(backend, look, tmp_path):
    """The cursor passes that one, and a later run would not know of it."""
    log = log_of(tmp_path)
    say(backend, "m1")
    look()(1)
    ours = received(message("m1"), "Ours.", "m", 1.0, {})
    log.answer(LoggedAnswer(conversation="c", message_id="m1", events=(ours,)))
    respond(backend, "m1", "theirs")
    go = look(name="run-2")
    go(until=lambda: log.count_open() == 0)
    assert log.conversation("c").answers["m1"].text == "Ours."


def test_with_many_messages_in_work_others_wait_in_the_log_and_none_is_lost(backend, look, tmp_path, monkeypatch):
    working = [0]
    monkeypatch.setattr(poll_stores, "messages_in_work", lambda _: working[0])
    go = look()
    say(backend, "first")
    assert go(1) == ["first"]  # the log was looked through once
    working[0] = poll_stores._MOST_IN_WORK
    for number in range(30):
        say(backend, f"m{number}")
    log = log_of(tmp_path)
    assert go(until=lambda: log.count_open() == 31) == []
    working[0] = 0
    assert {f"m{number}" for number in range(30)} <= set(go(31))


def test_a_store_that_is_refused_is_an_error_for_all(backend, look, monkeypatch):
    go = look(stores=("s", "t"))
    say(backend, "m1")
    go(1)
    go.source._links.stores._stores["t"].refused = AccessDenied("store t: refused")
    say(backend, "m2")
    with pytest.raises(AccessDenied, match="store t"):
        go(1)


def taken(number, stored, life=0):
    event = StoredEvent("n", {}, number, number - 1, "c", "s", stored)
    return TakenEvent("s", event, Cursor(f"log{life}", number), life)


@pytest.fixture
def reader(tmp_path, monkeypatch):
    """A reader of a store, and the clock of its claims."""
    now = SimpleNamespace(time=1_000_000.0)
    claims = Claims(lambda: now.time)
    found, _ = connections.progress.begin_progress(LocalStore(tmp_path), "", 0.0, 0.0)
    monkeypatch.setattr(connections, "_WRITE_SECONDS", 0.0)
    reader = Reader(Location(str(tmp_path), ""), found, claims)
    reader.claims, reader.now = claims, now
    reader.written = lambda: connections.progress.begin_progress(LocalStore(tmp_path), "", None, 0.0)[0].cursor
    return reader


def log_events(reader, *events):
    for one in events:
        reader.claims.hear(one.event)
    reader.logged(events)
    reader.keep()


def test_the_cursor_stays_behind_so_that_living_claims_are_read_again(reader):
    log_events(reader, taken(1, 999_000.0), taken(2, 999_900.0), taken(3, 1_000_000.0))
    assert reader.written() == Cursor("log0", 1)
    reader.now.time += READ_AGAIN_S - 50
    reader.keep()
    assert reader.written() == Cursor("log0", 2)
    reader.now.time += 51
    reader.keep()
    assert reader.written() == Cursor("log0", 3)


def test_a_hundred_thousand_events_of_one_moment_are_not_remembered_one_by_one(reader):
    log_events(reader, *(taken(number, 999_990.0 + number / 10_000) for number in range(1, 100_001)))
    assert len(reader._recent) <= 12 and reader.written() is None
    reader.now.time += READ_AGAIN_S + 20
    reader.keep()
    assert reader.written() == Cursor("log0", 100_000)


def test_a_time_that_goes_back_moves_no_cursor_too_early(reader):
    log_events(reader, taken(1, 1_000_000.0), taken(2, 999_000.0))
    reader.keep()
    assert reader.written() is None


def test_another_log_is_read_from_its_start_also_next_time(reader):
    log_events(reader, taken(5, 999_000.0))
    log_events(reader, taken(6, 1_000_000.0))
    assert reader.written() == Cursor("log0", 5)
    log_events(reader, taken(1, 1_000_000.0, life=1))
    assert reader.written() is None


def test_an_answer_of_ours_that_comes_back_closes_its_message(backend, look, tmp_path):
    go = look()
    say(backend, "m1")
    assert go(1) == ["m1"]
    event = received(message("m1"), "Hello.", "m", time.time(), {"source": "x"})
    backend.write("s", RECEIVED, event["args"], "llmdo-x")
    backend.write("s", completed(message("m1"), time.time(), 1, True)["name"], {}, "llmdo-x")
    log = log_of(tmp_path)
    go(until=lambda: log.count_open() == 0)
