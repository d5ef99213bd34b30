import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from llmdo.storage.errors import ObjectNotFound, StorageUnavailable
from llmdo.storage.objects.local import LocalStore
from llmdo.storage.runs import runs
from llmdo.storage.runs.runs import (
    ASLEEP_SECONDS,
    DEAD_SECONDS,
    Presence,
    attempt_of,
    heartbeats,
    owner_of,
    run_of,
    sweep,
)
from tests.fakes.clocks import Clock

SOON = 60.0  # seconds until a test gives up waiting


class Watched(LocalStore):
    """Counts beats, and can refuse them."""

    def __init__(self, root):
        super().__init__(root)
        self.beats = self.refused = 0
        self.error = None
        self.changed = threading.Condition()

    def put(self, key, body, metadata=None):
        with self.changed:
            if self.error:
                self.refused += 1
            else:
                self.beats += 1
                super().put(key, body, metadata)
            self.changed.notify_all()
            if self.error:
                raise self.error
        return ""

    def wait(self, done):
        with self.changed:
            assert self.changed.wait_for(done, SOON)


@pytest.fixture
def clock(monkeypatch):
    clock = Clock(1000.0)
    monkeypatch.setattr(runs, "_now", clock)
    return clock


@pytest.fixture
def store(tmp_path):
    return Watched(tmp_path)


@pytest.fixture
def begin(store):
    begun = []

    def begin(run_id="me"):
        begun.append(Presence(store, "out/", run_id))
        return begun[-1]

    yield begin
    store.error = None
    for presence in begun:
        presence.stop()


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(runs, "BEAT_SECONDS", 0.002)
    monkeypatch.setattr(runs, "BEAT_AGAIN_SECONDS", 0.002)


def beat(store, run_id="other", age=0.0, **changes):
    """Another run's heartbeat; by default of this process, which lives."""
    body = {"run_id": run_id, "host": runs._host(), "pid": os.getpid(), "process_start": runs._start(os.getpid())}
    LocalStore.put(store, f"out/_runs/{run_id}.json", json.dumps(body | changes).encode())
    when = time.time() - age
    os.utime(Path(store.url) / f"out/_runs/{run_id}.json", (when, when))


def test_a_run_has_a_heartbeat_until_it_stops(store, begin):
    presence = begin()
    found = json.loads(store.read("out/_runs/me.json")[0])
    assert (found["run_id"], found["pid"], found["host"]) == ("me", os.getpid(), runs._host())
    assert presence.is_alive("me")
    presence.stop()
    with pytest.raises(ObjectNotFound):
        store.stat("out/_runs/me.json")
    assert not presence._thread.is_alive()


def test_a_heartbeat_names_the_configuration_also_when_it_beats_again(store, quick):
    presence = Presence(store, "out/", "me", "one")
    store.wait(lambda: store.beats >= 3)
    assert [(found.run_id, found.configuration) for found in heartbeats(store, "out/")] == [("me", "one")]
    presence.stop()


def test_heartbeats_of_earlier_versions_say_no_configuration_and_torn_ones_nothing(store):
    beat(store, "old")
    beat(store, "new", configuration="one")
    LocalStore.put(store, "out/_runs/torn.json", b"{")
    LocalStore.put(store, "other/_runs/elsewhere.json", b"{}")
    assert [(found.run_id, found.configuration) for found in heartbeats(store, "out/")] == [("new", "one"), ("old", "")]


DAY = 86_400.0


def test_a_run_that_begins_removes_the_heartbeats_of_runs_killed_over_a_day_ago(store, begin):
    for run_id, age in {"killed": 2 * DAY, "older": 30 * DAY, "paused": DAY / 2, "other": 0.0}.items():
        beat(store, run_id, age=age)
    begin("me").stop()
    assert [info.key for info in store.list("out/")] == ["out/_runs/other.json", "out/_runs/paused.json"]


def test_the_age_of_a_heartbeat_is_told_by_the_youngest_and_no_machines_clock(store):
    for run_id, age in {"one": 40 * DAY, "two": 41.5 * DAY, "three": 40.5 * DAY}.items():
        beat(store, run_id, age=age)
    sweep(store, "out/")
    assert sorted(info.key for info in store.list("out/")) == ["out/_runs/one.json", "out/_runs/three.json"]
    sweep(store, "empty/")


def test_old_heartbeats_that_cannot_be_removed_do_not_end_the_run(store, begin, quick, monkeypatch):
    def fail(prefix):
        raise StorageUnavailable("no network")

    monkeypatch.setattr(store, "list", fail)
    presence = begin()
    store.wait(lambda: store.beats >= 3)
    assert not presence.asleep


def test_a_run_beats_again_and_again(store, begin, quick):
    presence = begin()
    store.wait(lambda: store.beats >= 4)
    assert not presence.asleep


def test_two_runs_see_each_other_until_one_stops(clock, begin):
    one, two = begin("one"), begin("two")
    assert one.is_alive("two")
    assert two.is_alive("one")
    one.stop()
    clock.now += 11  # what is known of a run is believed for 10 s
    assert not two.is_alive("one")


def test_a_run_that_was_never_there_is_dead(begin):
    assert not begin().is_alive("unknown")


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b'{"version": 2}'])
def test_a_heartbeat_that_cannot_be_read_is_none(store, begin, body):
    LocalStore.put(store, "out/_runs/other.json", body)
    assert not begin().is_alive("other")


@pytest.mark.parametrize(("age", "alive"), [(0, True), (DEAD_SECONDS - 20, True), (DEAD_SECONDS + 20, False)])
@pytest.mark.parametrize("host", [{}, {"host": "elsewhere", "pid": 2**22 + 1}])
def test_a_run_is_alive_while_its_heartbeat_is_young(store, begin, age, alive, host):
    beat(store, age=age, **host)
    assert begin().is_alive("other") is alive


def test_a_heartbeat_grows_old_while_we_look(store, clock, begin):
    beat(store, host="elsewhere")
    presence = begin()
    clock.now += DEAD_SECONDS - 20
    assert presence.is_alive("other")
    clock.now += 40
    assert not presence.is_alive("other")


def test_age_is_by_the_clock_of_the_store(store, begin, monkeypatch):
    beat(store, host="elsewhere", age=1000)
    stat = store.stat
    late = store.stat("out/_runs/other.json").modified

    def stat_of_a_store_that_is_late(key):
        info = stat(key)
        return type(info)(info.key, info.etag, info.size, late)

    monkeypatch.setattr(store, "stat", stat_of_a_store_that_is_late)
    assert begin().is_alive("other")


def test_what_is_known_of_a_run_is_believed_for_a_moment_only(store, clock, begin):
    beat(store)
    presence = begin()
    assert presence.is_alive("other")
    store.delete("out/_runs/other.json")
    clock.now += 9
    assert presence.is_alive("other")
    clock.now += 2
    assert not presence.is_alive("other")


def test_a_process_of_this_machine_that_ended_is_dead_at_once(store, begin):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait(SOON)
    beat(store, pid=ended.pid, process_start="1")
    assert not begin().is_alive("other")


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="this system has no /proc")
def test_a_process_that_ended_and_was_not_waited_for_is_dead_too(store, begin):
    """Where its parent was killed, that may be for some time."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    beat(store, pid=process.pid, process_start=runs._start(process.pid))
    assert begin().is_alive("other")
    process.stdin.close()
    while runs._stat(process.pid)[0] != "Z":
        time.sleep(0.01)
    assert not begin("later").is_alive("other")
    process.wait(SOON)


def test_a_later_process_with_the_same_pid_is_another_one(store, begin, monkeypatch):
    monkeypatch.setattr(runs, "_start", lambda pid: "2")
    beat(store, process_start="1")
    assert not begin().is_alive("other")


def test_a_process_whose_start_is_not_known_is_told_by_its_pid(store, begin):
    beat(store, process_start="")
    assert begin().is_alive("other")


def test_a_machine_of_the_same_name_is_another_one(store, begin):
    name, *_ = runs._host().split("/")
    beat(store, host=name + "/another boot/pid:[1]", process_start="1")
    assert begin().is_alive("other")


def test_a_store_that_does_not_answer_is_not_taken_for_a_dead_run(store, begin, monkeypatch):
    presence = begin()

    def fail(key):
        raise StorageUnavailable(key)

    monkeypatch.setattr(store, "stat", fail)
    with pytest.raises(StorageUnavailable):
        presence.is_alive("other")


def test_a_run_that_was_not_heard_for_long_is_asleep_for_good(clock, begin):
    presence = begin()
    clock.now += ASLEEP_SECONDS - 1
    assert not presence.asleep
    clock.now += 2
    assert presence.asleep
    presence._last = clock.now
    assert presence.asleep


def test_a_run_that_is_asleep_beats_no_more(store, clock, begin, quick):
    presence = begin()
    store.wait(lambda: store.beats >= 3)
    clock.now += 1000
    presence._thread.join(SOON)
    assert not presence._thread.is_alive()
    assert presence.asleep


def test_a_beat_that_took_too_long_does_not_wake_its_run(store, clock, begin, monkeypatch):
    presence, put = begin(), store.put

    def put_in_a_frozen_process(key, body):
        clock.now += ASLEEP_SECONDS + 1
        return put(key, body)

    monkeypatch.setattr(store, "put", put_in_a_frozen_process)
    presence._beat()
    assert presence.asleep


def test_a_store_that_cannot_be_reached_for_long_puts_the_run_to_sleep(store, clock, begin, quick):
    presence = begin()
    with store.changed:
        store.error = StorageUnavailable("no network")
    store.wait(lambda: store.refused >= 2)
    assert not presence.asleep
    clock.now += ASLEEP_SECONDS + 1
    presence._thread.join(SOON)
    assert presence.asleep
    assert not presence._thread.is_alive()


def test_a_beat_that_failed_is_soon_made_again(store, clock, begin, monkeypatch):
    waits = []
    presence = begin()
    presence._over.set()  # its own thread would wait by the clock below too
    presence._thread.join()

    class Over:
        def wait(self, seconds):
            waits.append(seconds)
            store.error = StorageUnavailable("a moment") if len(waits) < 3 else None
            return len(waits) > 4

    monkeypatch.setattr(presence, "_over", Over())
    presence._live()
    monkeypatch.undo()
    again = runs.BEAT_AGAIN_SECONDS
    assert waits == [runs.BEAT_SECONDS, again, again, runs.BEAT_SECONDS, runs.BEAT_SECONDS]
    assert runs.BEAT_SECONDS + 2 * again < ASLEEP_SECONDS < DEAD_SECONDS


def test_a_run_whose_first_beat_fails_does_not_begin(store):
    store.error = StorageUnavailable("no network")
    with pytest.raises(StorageUnavailable):
        Presence(store, "out/", "me")


def test_a_heartbeat_that_cannot_be_removed_does_not_fail_the_run(store, caplog, monkeypatch):
    def fail(key):
        raise StorageUnavailable("no network")

    presence = Presence(store, "out/", "me")
    monkeypatch.setattr(store, "delete", fail)
    presence.stop()
    assert "no network" in caplog.text


def test_an_owner_names_its_run_and_the_attempt():
    assert (owner_of("r", ""), owner_of("r", "7.5")) == ("r", "r@7.5")
    assert (run_of("r@7.5"), attempt_of("r@7.5"), run_of("r"), attempt_of("r")) == ("r", "7.5", "r", "")


def beat_of_another(**fields):
    """A heartbeat of this host, as JSON, with what somebody has put into it."""
    beat = {"run_id": "other", "host": runs._host(), "pid": os.getpid(), "process_start": runs._start(os.getpid())}
    return json.dumps(beat | fields).encode()


@pytest.mark.parametrize(
    "fields",
    [
        *({"pid": pid} for pid in (0, -1, -(2**70), 2**31, 2**63, 10**4000, 1.5, "many", None, [1], {})),
        *({"run_id": run_id} for run_id in ("..", "../../x", "a/b", "x\0", "x" * 1000, 7, None)),
        {"host": 7},
        {"process_start": []},
        {"version": 2},
    ],
)
def test_a_heartbeat_with_a_field_that_cannot_be_true_is_none(store, begin, fields):
    store.put("out/_runs/other.json", beat_of_another())
    presence = begin()
    assert presence.is_alive("other")  # as it was, it counts
    presence._known.clear()
    store.put("out/_runs/other.json", beat_of_another(**fields))
    assert not presence.is_alive("other")
    assert [beat.run_id for beat in heartbeats(store, "out/")] == ["me"]


@pytest.mark.parametrize("pid", [2**31 - 1, 2**22 + 1])
def test_a_heartbeat_with_the_pid_of_no_process_is_of_a_dead_run(store, begin, pid):
    store.put("out/_runs/other.json", beat_of_another(pid=pid))
    assert not begin().is_alive("other")
