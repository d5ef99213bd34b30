"""What runs leave behind, and that nobody takes it for anything else."""

from datetime import UTC, datetime, timedelta

import pytest
from pydantic import ValidationError

from llmdo.storage.errors import AlreadyExists, StorageError
from llmdo.storage.runs import histories as module
from llmdo.storage.runs import schedules
from llmdo.storage.runs.histories import MOST_POINTS, Moments, RunHistory, histories, is_history, leave_history
from llmdo.storage.runs.runs import SUMMARY, Presence, heartbeats, seen_runs
from llmdo.storage.runs.schedules import Schedules
from tests.memory_store import MemoryStore

T0 = datetime(2026, 11, 21, 14, 15, 59, tzinfo=UTC)


def history(run_id="r", ended=T0, **more):
    return RunHistory(run_id=run_id, started=ended - timedelta(seconds=9), ended=ended, **more)


def names(store):
    return [info.key.removeprefix("out/_runs/") for info in store.list("out/_runs/")]


def test_each_run_that_ends_in_a_minute_has_a_name_that_no_tick_has():
    store = MemoryStore()
    for number in range(42):
        leave_history(store, "out/", history(str(number)))
    found = names(store)
    assert found[:2] == ["2026-11-21T14-15-60Z.json", "2026-11-21T14-15-61Z.json"]
    assert found[-3:] == ["2026-11-21T14-15-99Z.json", "2026-11-21T14-16-60Z.json", "2026-11-21T14-16-61Z.json"]
    assert all(SUMMARY.fullmatch(name) and is_history(name) for name in found)
    assert not is_history("2026-11-21T14-15-59Z.json") and not is_history("host-1-abc.json")
    assert [one.run_id for one in histories(store, "out/", 3)] == ["39", "40", "41"]


def test_a_history_whose_reply_was_lost_is_there_once():
    class Deaf(MemoryStore):
        def put_if_absent(self, key, body):
            super().put_if_absent(key, body)
            raise AlreadyExists("the reply was lost, and the client tried again")

    store = Deaf()
    leave_history(store, "out/", history())
    assert names(store) == ["2026-11-21T14-15-60Z.json"]


def test_a_store_in_which_every_name_is_taken_is_given_up():
    class Full(MemoryStore):
        def put_if_absent(self, key, body):
            raise AlreadyExists("taken")

    with pytest.raises(StorageError, match="too many runs have ended"):
        leave_history(Full(), "out/", history())


def test_the_newest_stay_and_so_do_the_summaries_of_schedules(monkeypatch):
    monkeypatch.setattr(module, "HISTORIES_KEPT", 3)
    monkeypatch.setattr(schedules, "KEPT", 2)
    store, ticks = MemoryStore(), [T0 + timedelta(minutes=number, seconds=1) for number in range(6)]
    book = Schedules(store, "out/", "every minute")
    for number, tick in enumerate(ticks):
        book.write(tick, {"tick": str(number)})
        leave_history(store, "out/", history(str(number), tick))
    assert [one.run_id for one in histories(store, "out/", 10)] == ["3", "4", "5"]
    summaries = [name for name in names(store) if not is_history(name)]
    assert summaries == ["2026-11-21T14-20-00Z.json", "2026-11-21T14-21-00Z.json"]


def test_who_looks_for_runs_that_are_alive_finds_no_history():
    store = MemoryStore()
    leave_history(store, "out/", history())
    presence = Presence(store, "out/", "alive")
    try:
        assert [beat.run_id for beat in heartbeats(store, "out/")] == ["alive"]
        assert [run.beat.run_id for run in seen_runs(store, "out/")] == ["alive"]
    finally:
        presence.stop()
    assert names(store) == ["2026-11-21T14-15-60Z.json"]


def test_what_cannot_be_read_hides_nothing(monkeypatch):
    monkeypatch.setattr(module, "_LARGEST", 10_000)
    store = MemoryStore()
    leave_history(store, "out/", history("first"))
    for body in (b"torn", b"[]", b'{"version": 2}', b'{"version":1,"run_id":"x","started":"no"}', b" " * 20_000):
        store.put(leave_history(store, "out/", history()), body)
    leave_history(store, "out/", history("last"))
    assert [one.run_id for one in histories(store, "out/", 10)] == ["first", "last"]


@pytest.mark.parametrize(
    "moments",
    [
        {"at": [1.0, 2.0], "lines": [1]},
        {name: [0] * (MOST_POINTS + 1) for name in Moments.model_fields},
        {name: [float("nan")] for name in Moments.model_fields},
    ],
)
def test_figures_that_cannot_be_drawn_are_refused(moments):
    with pytest.raises(ValidationError):
        Moments.model_validate(moments)
