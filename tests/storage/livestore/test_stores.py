"""A store's events come once and in order, and what is pushed is there once, whatever the backend does."""

from __future__ import annotations

import asyncio
import logging
import threading
import time

import pytest

from llmdo.storage.errors import AccessDenied, StorageError
from llmdo.storage.livestore.frames import Cursor, NewEvent
from llmdo.storage.livestore.places import StorePlace
from tests.storage.livestore.fake_backend import Faults
from tests.storage.livestore.store_client import SECRET, contiguous, ids


def test_stored_events_come_in_chunks_then_those_that_are_stored_later(backend, client):
    backend.faults = Faults(chunk=7)
    for number in range(100):
        backend.write("s", "Message", {"id": f"m{number}"})
    reader = client()
    assert reader.read(100) == [f"m{number}" for number in range(100)]
    backend.write("s", "Message", {"id": "later"})
    assert reader.read(1) == ["later"]
    assert reader.events[-1].cursor == Cursor(backend.backends["s"], 101)
    assert backend.counts["chunks"] == 15
    assert abs(reader.events[-1].event.stored - time.time()) < 60


def test_a_client_begins_behind_its_cursor(backend, client):
    for number in range(5):
        backend.write("s", "Message", {"id": f"m{number}"})
    assert client(cursor=Cursor(backend.backends["s"], 3)).read(2) == ["m3", "m4"]


def test_a_reader_who_is_busy_is_not_sent_the_whole_log(backend, client):
    backend.faults = Faults(chunk=100)
    for number in range(3_000):
        backend._append("s", [_message(number)])
    reader = client()
    assert len(reader.read(1)) >= 1
    while backend.counts["chunks"] < 10:
        time.sleep(0.01)
    while len(reader.events) < 3_000:
        waiting = reader.stores._waiting["s"]
        assert waiting <= 1_100
        reader.read(1)
    assert [one.event.number for one in reader.events] == list(range(1, 3_001))


def _message(number):
    return {
        "name": "Message",
        "args": {"id": f"m{number}"},
        "seqNum": number + 1,
        "parentSeqNum": number,
        "clientId": "page",
        "sessionId": "s",
    }


def test_the_payload_is_encoded_as_the_official_client_does_and_shown_nowhere(backend, client, caplog):
    caplog.set_level(logging.DEBUG)
    reader = client()
    backend.write("s", "Message", {"id": "m"})
    assert reader.read(1) == ["m"]
    wrong = client(payload={"authToken": "an old token"})
    with pytest.raises(AccessDenied, match="LIVESTORE_PAYLOAD") as refused:
        wrong.stores.take(1, 55.0)
    with pytest.raises(AccessDenied):
        wrong.answer("m").result(55)
    backend.cut()
    backend.write("s", "Message", {"id": "n"})
    assert reader.read(1) == ["n"]
    assert backend.urls[0].startswith("/?storeId=s&payload=%257B%2522authToken%2522%253A%2522not%2520to%2520be")
    shown = caplog.text + str(refused.value) + repr(StorePlace("ws://x", "s", SECRET)) + repr(reader.stores.__dict__)
    assert "not to be shown" not in shown and "an old token" not in shown and "%257B" not in shown


def test_a_push_is_refused_while_others_push_and_is_made_again_unless_another_has_answered(backend, client):
    ours, theirs = client(name="one"), client(name="two")
    for number in range(30):
        backend.write("s", "Message", {"id": f"m{number}"})
    ours.read(30), theirs.read(30)
    pushes = [one.answer(f"m{number}") for number in range(30) for one in (ours, theirs)]
    outcomes = [push.result(55) for push in pushes]
    assert sorted(ids(backend)) == sorted(f"m{number}" for number in range(30))
    assert sum(outcomes) == 30 and contiguous(backend)
    assert backend.counts["connects"] == 2  # what another pushed is waited for, not pulled


def test_what_waits_is_pushed_in_few_frames(backend, client):
    reader = client()
    backend.write("s", "Message", {"id": "m"})
    reader.read(1)
    given, push = threading.Event(), backend._push

    async def once_all_are_given(*words):
        while not given.is_set():  # noqa: ASYNC110  another thread sets it
            await asyncio.sleep(0.01)
        await push(*words)

    backend._push = once_all_are_given
    pushes = [reader.answer(f"x{number}") for number in range(500)]
    given.set()
    assert all(one.result(55) for one in pushes)
    assert ids(backend) == [f"x{number}" for number in range(500)]
    assert backend.counts["pushes"] <= 12


def test_an_event_that_no_store_can_take_is_refused_here_and_others_are_pushed(backend, client):
    reader = client()
    large = reader.stores.push("s", lambda: [NewEvent("Answer", {"to": "x", "text": "x" * 900_000})])
    nan = reader.stores.push("s", lambda: [NewEvent("Answer", {"to": "x", "n": float("nan")})])
    lost = reader.stores.push("s", lambda: {}["no such key"])
    good = reader.answer("m")
    with pytest.raises(StorageError, match="850,000"):
        large.result(55)
    with pytest.raises(StorageError, match="JSON"):
        nan.result(55)
    with pytest.raises(KeyError):
        lost.result(55)
    assert good.result(55) and ids(backend) == ["m"]


def test_a_push_that_the_backend_refuses_fails_alone(backend, client):
    reader = client()
    backend.faults.refuse_push = 1.0
    push = reader.answer("m")
    with pytest.raises(StorageError, match="SQLITE_BUSY") as refused:
        push.result(55)
    assert "not to be shown" not in str(refused.value)
    backend.faults.refuse_push = 0.0
    assert reader.answer("m").result(55)


def test_a_hole_in_the_log_is_pulled_once_more_and_then_accepted(backend, client):
    reader = client()
    backend.write("s", "Message", {"id": "m1"})
    assert reader.read(1) == ["m1"]
    connects = backend.counts["connects"]
    backend.write("s", "Message", {"id": "m4"}, numbers=(3, 4))
    backend.write("s", "Message", {"id": "m5"})
    assert reader.read(2) == ["m4", "m5"]
    assert backend.counts["connects"] == connects + 1
    assert reader.answer("m5").result(55)
    assert backend.logs["s"][-1]["parentSeqNum"] == 5


def test_a_lost_broadcast_is_noticed_at_the_next_event(backend, client):
    reader = client()
    backend.write("s", "Message", {"id": "m1"})
    assert reader.read(1) == ["m1"]
    backend.faults.lose_broadcast = 1.0
    backend.write("s", "Message", {"id": "m2"})
    backend.faults.lose_broadcast = 0.0
    backend.write("s", "Message", {"id": "m3"})
    assert reader.read(2) == ["m2", "m3"]


def test_a_deaf_connection_is_noticed_at_a_push(backend, client, monkeypatch):
    monkeypatch.setattr("llmdo.storage.livestore.synced_store.REPLY_S", 0.5)
    reader = client()
    backend.write("s", "Message", {"id": "m1"})
    reader.read(1)
    backend.faults.deaf = 1.0
    push = reader.answer("m1")
    backend.wait_for_count("deaf")
    backend.faults.deaf = 0.0
    assert push.result(55) and ids(backend) == ["m1"]


@pytest.mark.parametrize("restored", [True, False])
def test_a_store_that_was_restored_or_replaced_is_read_from_its_start(backend, client, restored, caplog):
    reader = client()
    for number in range(5):
        backend.write("s", "Message", {"id": f"m{number}"})
    reader.read(5)
    if restored:
        backend.rewind("s", 3)
        expected = ["m0", "m1", "m2"]
    else:
        backend.replace_log("s")
        backend.write("s", "Message", {"id": "new"})
        expected = ["new"]
    assert reader.answer("x").result(55)  # what the log lacks is noticed by a push
    assert reader.read(len(expected) + 1)[: len(expected)] == expected
    assert reader.resets == ["s"] and "is read from its start again" in caplog.text
    assert ids(backend) == ["x"] and contiguous(backend)


def test_a_backend_that_is_away_is_waited_for(backend, client):
    reader = client()
    backend.write("s", "Message", {"id": "m1"})
    reader.read(1)
    backend.kill()
    push = reader.answer("m1")
    while reader.stores.problem is None:
        reader.stores.take(1, 0.05)
    assert reader.stores.problem.args[0].startswith(f"store s at {backend.url}: ")
    backend.start()
    assert push.result(55) and ids(backend) == ["m1"]
    assert reader.stores.problem is None


@pytest.mark.parametrize("seed", range(4))
def test_chaos(backend, client, seed, monkeypatch):
    for name, seconds in (("REPLY_S", 0.5), ("BROADCAST_S", 0.2), ("SILENCE_S", 0.5), ("PULL_REPLY_S", 1.0)):
        monkeypatch.setattr(f"llmdo.storage.livestore.synced_store.{name}", seconds)
    backend._random.seed(seed)
    backend.faults = Faults(0.05, 0.3, 0.02, 0.05, 0.005, 0.0, chunk=10, repeat_broadcast=0.2)
    clients = [client(name=f"c{number}") for number in range(3)]
    pushes = []
    for number in range(60):
        backend.write("s", "Message", {"id": f"m{number}"})
        pushes += [one.answer(f"m{number}") for one in clients]
        if number % 20 == 10:
            backend.cut()
    outcomes = [push.result(110) for push in pushes]
    assert sorted(ids(backend)) == sorted(f"m{number}" for number in range(60))
    assert len(outcomes) == 180 and contiguous(backend)
    backend.faults = Faults()
    backend.cut()  # what was lost is pulled
    for one in clients:
        while len(one.events) < 120:
            one.read(120 - len(one.events))
        assert [taken.event.number for taken in one.events] == list(range(1, 121))
