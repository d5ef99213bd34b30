import json
import logging
import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from llmdo.storage.errors import StorageError, StorageUnavailable
from llmdo.storage.objects.local import LocalStore
from llmdo.storage.runs import runs, schedules
from llmdo.storage.runs.runs import Presence, heartbeats, sweep
from llmdo.storage.runs.schedules import ClaimBusy, ClaimHeld, Schedules, TickDone

T0 = datetime(2026, 11, 21, 14, 0, tzinfo=UTC)
T1, T2 = T0 + timedelta(minutes=15), T0 + timedelta(minutes=30)


@pytest.fixture
def store(tmp_path):
    return LocalStore(tmp_path)


@pytest.fixture
def present(store):
    begun = []

    def present(run_id="me"):
        begun.append(Presence(store, "out/", run_id))
        return begun[-1]

    yield present
    for presence in begun:
        presence.stop()


def book(store, schedule="every quarter"):
    return Schedules(store, "out/", schedule)


def names(store):
    return [info.key.removeprefix("out/_runs/") for info in store.list("out/_runs/")]


def test_a_new_schedule_begins_now_and_a_later_start_knows_its_last_tick(store, present):
    assert book(store).begin(T0) == T0
    held = book(store).take(present(), T1, T0, T1)
    book(store).release(held, done=True)
    assert book(store).begin(T2) == T1


def test_a_schedule_that_began_and_never_ran_knows_when_it_began(store):
    book(store).begin(T0)
    assert book(store).begin(T2) == T0


def test_what_another_schedule_of_the_output_has_run_says_nothing(store, present):
    other = book(store, "every day")
    other.begin(T0)
    other.release(other.take(present("other"), T1, T0, T1), done=True)
    assert book(store).begin(T2) == T2
    assert isinstance(book(store).take(present(), T1, T0, T1), ClaimHeld)


def test_only_one_has_the_claim_while_it_lives(store, present):
    held = book(store).take(present("one"), T1, T0, T1)
    assert isinstance(held, ClaimHeld)
    busy = book(store).take(present("two"), T1, T0, T1)
    assert isinstance(busy, ClaimBusy)
    assert (busy.claim.run_id, busy.claim.tick) == ("one", T1)
    assert isinstance(book(store, "another").take(present("three"), T1, T0, T1), ClaimBusy)
    book(store).release(held, done=True)
    assert book(store).take(present("two"), T1, T0, T1) == TickDone(T1)
    assert isinstance(book(store).take(present("two"), T2, T0, T2), ClaimHeld)


def test_a_claim_that_was_given_back_undone_can_be_taken_for_the_same_tick(store, present):
    book(store).release(book(store).take(present("one"), T1, T0, T1), done=False)
    held = book(store).take(present("two"), T1, T0, T1)
    assert isinstance(held, ClaimHeld)
    assert held.claim.last == T0


def test_the_claim_of_a_dead_process_is_taken_over_and_its_tick_is_not_done(store, present, caplog):
    dead = present("dead")
    book(store).take(dead, T1, T0, T1)
    dead.stop()  # its heartbeat is gone
    held = book(store).take(present(), T2, T0, T2)
    assert isinstance(held, ClaimHeld)
    assert held.claim.last == T0
    assert "dead died while it worked" in caplog.text


def test_of_two_that_try_at_once_one_gets_the_claim(store, present):
    """The other one writes between our look and our write."""
    first, second = present("first"), present("second")
    found = []

    class Late(LocalStore):
        def put_if_absent(self, key, body):
            if not found:
                found.append(book(store).take(second, T1, T0, T1))
            return super().put_if_absent(key, body)

    ours = book(Late(Path(store.url))).take(first, T1, T0, T1)
    assert isinstance(found[0], ClaimHeld)
    assert isinstance(ours, ClaimBusy)


def test_a_write_whose_reply_was_lost_is_known_again(store, present):
    class Lost(LocalStore):
        def put_if_absent(self, key, body):
            super().put_if_absent(key, body)
            return super().put_if_absent(key, body)

        def put_if_match(self, key, body, etag):
            super().put_if_match(key, body, etag)
            return super().put_if_match(key, body, etag)

    lossy = book(Lost(Path(store.url)))
    presence = present()
    held = lossy.take(presence, T1, T0, T1)
    assert isinstance(held, ClaimHeld)
    lossy.release(held, done=True)
    assert isinstance(lossy.take(presence, T2, T0, T2), ClaimHeld)
    assert book(store).begin(T2) == T1


def test_who_was_taken_over_changes_nothing_when_it_ends(store, present, caplog):
    slow = present("slow")
    held = book(store).take(slow, T1, T0, T1)
    slow.stop()
    theirs = book(store).take(present("quick"), T2, T0, T2)
    with caplog.at_level(logging.WARNING, logger="llmdo.storage.runs.schedules"):
        book(store).release(held, done=True)
    assert "another run took over" in caplog.text
    book(store).release(theirs, done=True)
    assert book(store).begin(T2) == T2


def test_a_last_tick_far_in_the_future_was_written_by_a_wrong_clock(store, present):
    ahead = T0 + timedelta(days=4000)
    book(store).release(book(store).take(present("wrong"), ahead, T0, ahead), done=True)
    assert book(store).begin(T1) == T1
    held = book(store).take(present(), T1, T0, T1)
    assert isinstance(held, ClaimHeld)
    assert held.claim.last == T0


def test_a_claim_that_cannot_be_read_is_said(store, present):
    store.put("out/_runs/_schedule.json", b"{")
    for call in (lambda: book(store).begin(T0), lambda: book(store).take(present(), T1, T0, T1)):
        with pytest.raises(StorageError, match=r"out/_runs/_schedule\.json is not a claim that this version can read"):
            call()


def test_a_store_that_is_away_is_no_claim(store, present, monkeypatch):
    presence = present()

    def away(*_):
        raise StorageUnavailable("R2 is away")

    monkeypatch.setattr(LocalStore, "put_if_absent", away)
    with pytest.raises(StorageUnavailable):
        book(store).take(presence, T1, T0, T1)


def test_a_summary_is_named_by_its_tick(store):
    book(store).write(T1, {"exit_code": 0})
    assert json.loads(store.read("out/_runs/2026-11-21T14-15-00Z.json")[0]) == {"exit_code": 0}


def test_a_skipped_tick_does_not_hide_a_run(store):
    book(store).write_skipped(T1, {"skipped": "why"})
    book(store).write(T1, {"exit_code": 0})
    book(store).write_skipped(T1, {"skipped": "why"})
    assert json.loads(store.read("out/_runs/2026-11-21T14-15-00Z.json")[0]) == {"exit_code": 0}


def test_the_newest_summaries_are_kept_and_nothing_else_is_removed(store, present, monkeypatch):
    monkeypatch.setattr(schedules, "KEPT", 3)
    held = book(store).take(present(), T1, T0, T1)
    for hour in range(6):
        book(store).write(T0 - timedelta(hours=hour), {})
    book(store).release(held, done=True)
    assert names(store) == [
        "2026-11-21T12-00-00Z.json",
        *(f"2026-11-21T{h}-00-00Z.json" for h in (13, 14)),
        *("_schedule.json", "me.json"),
    ]


def test_claim_and_summaries_are_no_heartbeats_and_stay_when_old_heartbeats_go(store, present):
    book(store).release(book(store).take(present(), T1, T0, T1), done=True)
    book(store).write(T1, {"run_id": "x", "host": "h", "pid": 1, "process_start": ""})
    body = {"run_id": "old", "host": runs._host(), "pid": os.getpid(), "process_start": ""}
    store.put("out/_runs/old.json", json.dumps(body).encode())
    kept = ["2026-11-21T14-15-00Z.json", "_schedule.json", "me.json"]
    for name in ("old.json", *kept[:2]):
        then = time.time() - 3 * 86_400
        os.utime(Path(store.url) / "out/_runs" / name, (then, then))
    assert sorted(beat.run_id for beat in heartbeats(store, "out/")) == ["me", "old"]
    sweep(store, "out/")
    assert names(store) == kept


CLAIM = {"schedule": "every quarter", "last": T0.isoformat(), "run_id": "other", "tick": T1.isoformat()}


@pytest.mark.parametrize(
    "fields",
    [
        *({"last": last} for last in (1e300, -1e300, "0000-01-01T00:00:00Z", "10000-01-01T00:00:00Z", "soon", None)),
        {"last": "2026-11-21T14:00:00"},
        {"tick": 10**4000},
        *({"run_id": run_id} for run_id in ("..", "../../x", "a/b", "x\0", "x" * 1000, 7)),
    ],
)
def test_a_claim_with_a_field_that_cannot_be_true_is_named(store, fields):
    store.put(f"out/_runs/{runs.CLAIM}", json.dumps(CLAIM | fields).encode())
    with pytest.raises(StorageError, match=r"_schedule.json is not a claim that this version can read: remove it"):
        book(store).begin(T2)


@pytest.mark.parametrize("zone", ["+00:00", "+14:00", "-12:00"])
@pytest.mark.parametrize("year", ["0001-01-01T00:00:00", "9999-12-31T23:59:59"])
def test_a_claim_of_the_first_or_the_last_moment_that_there_is_stops_no_schedule(store, present, year, zone):
    for fields in ({"last": year + zone}, {"tick": year + zone}):
        store.put(f"out/_runs/{runs.CLAIM}", json.dumps(CLAIM | fields).encode())
        last = book(store).begin(T2)
        assert last <= T2
        held = book(store).take(present(), T2, last, T2)
        assert isinstance(held, ClaimHeld)
        book(store).release(held, done=True)
        assert book(store).begin(T2) == T2
