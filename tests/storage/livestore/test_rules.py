"""What a client of sync-cf must do, and has to expect: the rules that its real one was seen to need."""

from __future__ import annotations

import asyncio
import json
import threading
import time

import pytest

from llmdo.storage.errors import AccessDenied, StorageError
from llmdo.storage.livestore import synced_store
from llmdo.storage.livestore.frames import NewEvent
from llmdo.storage.livestore.places import StorePlace
from llmdo.storage.livestore.pushes import UnfitEvent
from llmdo.storage.livestore.stores import LiveStores
from llmdo.storage.livestore.synced_store import SyncedStore
from tests.storage.livestore.store_client import SECRET, contiguous, ids


def say(backend, *names, **more):
    for name in names:
        backend.write("s", "Message", {"id": name}, **more)


def seen(condition, seconds=55):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def test_an_event_that_comes_twice_is_read_once(backend, client):
    backend.faults.repeat_broadcast = 1.0
    reader = client()
    say(backend, "m1", "m2")
    assert reader.read(2) == ["m1", "m2"]
    assert reader.answer("m1").result(55) and contiguous(backend)
    say(backend, "m3")
    assert reader.read(2) == ["a-m1", "m3"]
    assert backend.counts["connects"] == 1


def test_holes_within_a_chunk_are_the_logs_own_and_cost_no_new_pull(backend, client):
    """Clients that renumber under load write such ones, by the dozen."""
    say(backend, "m0")
    for number in range(3, 103, 2):
        say(backend, f"m{number}", numbers=(number - 1, number))
    reader = client()
    assert len(reader.read(51)) == 51
    assert backend.counts["connects"] == 1
    assert reader.answer("m3").result(55)
    assert backend.logs["s"][-1]["parentSeqNum"] == 101


def test_a_push_that_was_taken_and_not_confirmed_is_looked_for_and_not_repeated(backend, client):
    reader = client()
    say(backend, "m1")
    reader.read(1)
    backend.faults.cut_after_push = 1.0
    push = reader.answer("m1")
    backend.wait(lambda: ids(backend) == ["m1"])
    backend.faults.cut_after_push = 0.0
    push.result(55)
    assert ids(backend) == ["m1"] and backend.counts["pushes"] == 1


def test_a_pull_that_gets_no_reply_is_made_again_though_pings_are_answered(backend, client, monkeypatch):
    monkeypatch.setattr(synced_store, "SILENCE_S", 0.2)
    monkeypatch.setattr(synced_store, "PULL_REPLY_S", 2.0)  # a loop that stands still meanwhile must not miss a ping
    say(backend, "m1")
    backend.faults.deaf = 1.0
    reader = client()
    backend.wait_for_count("deaf")
    backend.faults.deaf = 0.0
    assert reader.read(1) == ["m1"]
    assert backend.counts["pings"] >= 1


def test_a_silent_connection_is_pinged_and_given_up_without_an_answer(backend, client, monkeypatch):
    monkeypatch.setattr(synced_store, "SILENCE_S", 1.0)  # in which an answer comes on a busy machine, too
    reader = client()
    say(backend, "m1")
    reader.read(1)
    seen(lambda: backend.counts["pings"] >= 2)
    assert backend.counts["connects"] == 1
    backend.faults.no_pong = True
    seen(lambda: backend.counts["connects"] >= 2)


def test_a_store_that_says_nothing_for_long_is_pulled_again_since_broadcasts_get_lost(backend, client, monkeypatch):
    monkeypatch.setattr(synced_store, "SILENCE_S", 0.2)
    monkeypatch.setattr(synced_store, "RECHECK_S", 0.5)
    reader = client()
    say(backend, "m1")
    reader.read(1)
    backend.faults.lose_broadcast = 1.0
    say(backend, "m2")
    assert reader.read(1) == ["m2"]
    assert reader.stores.problem is None


def test_an_answer_whose_broadcast_is_lost_is_found_by_a_pull(backend, client, monkeypatch):
    monkeypatch.setattr(synced_store, "BROADCAST_S", 0.2)
    reader = client()
    say(backend, "m1")
    reader.read(1)
    backend.faults.lose_broadcast = 1.0
    assert reader.answer("m1").result(55)
    backend.faults.lose_broadcast = 0.0
    assert reader.read(1) == ["a-m1"]


def test_a_handshake_without_an_end_is_given_up(monkeypatch):
    """workerd that is about to end accepts connections, and serves none."""
    monkeypatch.setattr(synced_store, "CONNECT_S", 0.3)
    loop, accepted = asyncio.new_event_loop(), []

    async def listen():
        async def hold(reader, writer):
            accepted.append(writer)
            await reader.read()

        return await asyncio.start_server(hold, "127.0.0.1", 0)

    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    server = asyncio.run_coroutine_threadsafe(listen(), loop).result(30)
    place = StorePlace(f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}", "s", SECRET)
    stores = LiveStores([place], {"s": "me"}, {}, lambda _, event: event, lambda _: None)
    try:
        seen(lambda: len(accepted) >= 2)
        assert "no connection within 0.3 s" in str(stores.problem)
    finally:
        stores.close()
        loop.call_soon_threadsafe(server.close)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)


def test_chunks_of_several_megabytes_are_read(backend, client):
    for number in range(60):
        backend.write("s", "Message", {"id": f"m{number}", "text": "x" * 100_000})
    assert len(client().read(60)) == 60


def test_ids_of_requests_are_decimal_and_a_connection_has_one_pull(backend, client, monkeypatch):
    requests = []
    heard = type(backend)._heard
    monkeypatch.setattr(
        type(backend),
        "_heard",
        lambda self, store, one, text: (requests.append((one, text)), heard(self, store, one, text)),
    )
    reader = client()
    say(backend, "m1", "m2")
    reader.read(2)
    for name in ("m1", "m2"):
        assert reader.answer(name).result(55)
    backend.cut()
    say(backend, "m3")
    while "m3" not in reader.read(1):
        pass
    asked = [(one, json.loads(text)) for one, text in requests if '"Request"' in text]
    assert all(isinstance(frame["id"], str) and frame["id"].isdecimal() for _, frame in asked)
    pulls = [one for one, frame in asked if frame["tag"] == "SyncWsRpc.Pull"]
    assert len(pulls) == len(set(pulls)) == backend.counts["connects"]


def test_another_log_on_a_living_connection_holds_nothing_up(backend, client):
    """What waits to be pushed is pushed to the new one."""
    reader = client()
    say(backend, "m1", "m2")
    reader.read(2)
    backend.logs["s"].clear()
    backend.backends["s"] = "another"
    pushes = [reader.answer("m1")]
    say(backend, "n1")
    pushes.append(reader.answer("n1"))
    assert all(push.result(55) for push in pushes)
    assert sorted(ids(backend)) == ["m1", "n1"] and reader.resets == ["s"] and contiguous(backend)


def test_events_that_are_not_taken_do_not_pile_up_also_new_ones(backend, client, monkeypatch):
    monkeypatch.setattr(synced_store, "MOST_UNTAKEN", 50)
    monkeypatch.setattr(synced_store, "MOST_BEHIND", 100)
    backend.faults.chunk = 10
    reader = client()
    say(backend, "m0")
    reader.read(1)
    for number in range(1, 1_000):
        say(backend, f"m{number}")
    seen(lambda: backend.counts["connects"] >= 2 or reader.stores._waiting["s"] >= 100)
    assert reader.stores._waiting["s"] <= 120
    while len(reader.events) < 1_000:
        reader.read(1)
        assert reader.stores._waiting["s"] <= 120
    assert [one.event.number for one in reader.events] == list(range(1, 1_001))


def test_a_refusal_that_says_nothing_new_is_no_reason_to_push_at_once_for_ever(backend, client):
    reader = client()
    say(backend, "m1")
    reader.read(1)

    async def refuse(store, one, request, payload):
        backend.counts["pushes"] += 1
        error = {"minimumExpectedNum": 1, "providedNum": 0, "_tag": "ServerAheadError"}
        failure = {"_tag": "Failure", "cause": {"_tag": "Fail", "error": error}}
        await backend._send(one, {"_tag": "Exit", "requestId": request, "exit": failure})

    backend._push = refuse
    with pytest.raises(StorageError, match="refuses an event: ServerAheadError"):
        reader.answer("m1").result(55)
    assert backend.counts["pushes"] == 1


def test_one_event_that_is_refused_does_not_keep_others_back(backend, client):
    """A backend's onPush may refuse some."""
    reader = client()
    say(backend, "m1")
    reader.read(1)
    push = backend._push

    async def choosy(store, one, request, payload):
        if any(event["args"]["to"] == "bad" for event in payload["batch"]):
            backend.counts["refused"] += 1
            error = {"cause": {"name": "Error", "message": "not allowed"}, "payload": payload, "_tag": "UnknownError"}
            failure = {"_tag": "Failure", "cause": {"_tag": "Fail", "error": error}}
            await backend._send(one, {"_tag": "Exit", "requestId": request, "exit": failure})
        else:
            await push(store, one, request, payload)

    backend._push = choosy
    pushes = {name: reader.answer(name) for name in ("a", "bad", "b", "c")}
    with pytest.raises(StorageError, match="store s refuses an event: UnknownError; Error: not allowed"):
        pushes.pop("bad").result(55)
    assert all(push.result(55) for push in pushes.values())
    assert sorted(ids(backend)) == ["a", "b", "c"] and backend.counts["refused"] <= 2


def test_what_no_store_can_hold_is_told_from_what_one_refuses(backend, client):
    push = client().stores.push("s", lambda: [NewEvent("Answer", {"to": "x", "text": "x" * 900_000})])
    with pytest.raises(UnfitEvent, match="850,000"):
        push.result(55)


def test_a_store_that_is_refused_ends_all_even_if_others_have_events(backend):
    """Which one it is, is said; nothing of the others is lost, since their cursors stay behind."""
    say(backend, *(f"m{number}" for number in range(50)))
    places = [StorePlace(backend.url, "s", SECRET), StorePlace(backend.url, "t", {"authToken": "an old one"})]
    stores = LiveStores(places, {"s": "me", "t": "me"}, {}, lambda _, event: event, lambda _: None)
    try:
        seen(lambda: stores._refused is not None)
        with pytest.raises(AccessDenied, match=r"store t: .* refuses the payload \(HTTP 400\)"):
            stores.take(1, 0.0)
    finally:
        stores.close()


def test_a_push_after_the_end_is_cancelled(backend, client):
    reader = client()
    say(backend, "m1")
    reader.read(1)
    reader.stores.close()
    assert reader.answer("m1").cancelled()
    assert ids(backend) == []


def test_an_unexpected_error_ends_the_store_and_what_waits_for_it(backend, client, monkeypatch):
    def fail(*_):
        raise ZeroDivisionError("a bug")

    reader = client()
    say(backend, "m1")
    reader.read(1)
    monkeypatch.setattr(SyncedStore, "_take", fail)
    backend.kill()
    push = reader.answer("m1")
    backend.start()
    with pytest.raises(StorageError, match="store s: unexpected ZeroDivisionError"):
        push.result(55)
    with pytest.raises(StorageError, match="unexpected"):
        reader.stores.take(1, 55.0)


def test_a_hundred_and_fifty_stores_have_a_connection_each(backend):
    places = [StorePlace(backend.url, f"s{number}", SECRET) for number in range(150)]
    names = dict.fromkeys((place.store for place in places), "me")
    stores = LiveStores(places, names, {}, lambda _, event: event, lambda _: None)
    try:
        for place in places:
            backend.write(place.store, "Message", {"id": "m"})
        taken = set()
        seen(lambda: taken.update(one.store for one in stores.take(500, 0.1)) or len(taken) == 150)
    finally:
        stores.close()
