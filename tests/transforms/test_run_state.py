"""Each run of a process has its own state; what its steps share is found by the run's id, and goes with the run."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest
from apache_beam.internal import pickler

from llmdo.backends.engine.engine import Engine
from llmdo.backends.engine.registry import close_engines, get_engine
from llmdo.backends.engine.settings import CallSettings
from llmdo.backends.errors import EngineClosed
from llmdo.backends.money.limits import NO_LIMITS
from llmdo.storage.objects.opening import open_store
from llmdo.storage.objects.store import locate_folder
from llmdo.transforms import acks as acking
from llmdo.transforms.acks import acks_of, close_acks
from llmdo.transforms.chat.conversations import Conversations, InWork, close_conversations, open_conversations
from llmdo.transforms.elements import FileVersion, Notice, Settled
from llmdo.transforms.files.open_files import Opening, open_file
from llmdo.transforms.lines.lanes import Lanes
from llmdo.transforms.lines.read_lines import _ReadRange
from llmdo.transforms.lines.reading import Reading
from llmdo.transforms.members import Member, ReportSettled, join
from llmdo.transforms.run import Run
from llmdo.transforms.run_state import end_run

FILE = FileVersion("r2://b", "a.jsonl", "e", 10)


@pytest.fixture
def runs(tmp_path):
    output = locate_folder(str(tmp_path))
    return Run("one", output, remote=True), Run("two", output, remote=True)


def test_a_run_that_travels_finds_the_state_of_its_process_and_no_other_runs(runs):
    one, two = runs
    one.state.add(answered=3)
    one.state.stop("enough")
    travelled = pickler.loads(pickler.dumps(one))
    assert travelled.state is one.state
    assert (two.state.counts.answered, two.state.stop_reason, two.state.stopping) == (0, None, False)


def test_threads_that_ask_for_a_run_at_the_same_time_find_one_state_and_share_its_parts(runs):
    one, _ = runs
    barrier, found = threading.Barrier(8), []

    def ask():
        barrier.wait(60)
        found.append((one.state, one.state.shared(Lanes, Lanes)))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 8
    assert all(state is one.state and lanes is one.state.find(Lanes)[0] for state, lanes in found)


def test_a_stop_ends_the_calls_of_its_own_run_alone(runs, monkeypatch):
    stopped = []
    monkeypatch.setattr(Engine, "stop", lambda engine, error: stopped.append(engine))
    engines = [get_engine(CallSettings(run_id=run.run_id, budget=run.state.budget_within(NO_LIMITS))) for run in runs]
    for run in runs:
        run.state.stops_calls = True
    runs[0].state.stop("stopped by SIGTERM")
    assert stopped == engines[:1]
    close_engines("one")
    assert [engine.usable for engine in engines] == [False, True]
    close_engines("two")
    assert [engine.usable for engine in engines] == [False, False]


def test_acks_of_one_run_are_not_those_of_another_and_end_with_their_run(runs, monkeypatch):
    acked = []

    class Client:
        def __init__(self, account, queue_id):
            self.queue_id, self.open = queue_id, True

        def settle(self, leases, tries):
            assert self.open
            acked.extend(leases)

        def close(self):
            self.open = False

    monkeypatch.setattr(acking, "QueueClient", Client)
    monkeypatch.setattr(acking, "cloudflare_account", lambda: None)
    one, two = (acks_of(run.state, "q") for run in runs)
    assert one is not two
    assert one is acks_of(runs[0].state, "q")
    one.add(["a"])
    assert close_acks(runs[0].state) == {}
    two.add(["b"])
    two.flush()
    assert acked == ["a", "b"]


def test_bundles_take_turns_with_those_of_their_own_run_alone(runs):
    reading = Reading(checkpoint_seconds=30.0, lanes=1)
    turns = []
    for run in (*runs, runs[0]):
        do_fn = _ReadRange(reading, run)
        do_fn.start_bundle()
        turns.append(do_fn._turn)
    assert [turn.wait(fresh=False) for turn in turns] == [None, None, 0.5]  # the third waits for the first


def test_a_process_is_a_member_of_each_run_and_reports_to_each_what_it_did_for_it(runs):
    for number, run in enumerate(runs, start=1):
        tell = ReportSettled(run)
        tell.setup()
        run.state.settle(Settled(FILE, "done", number, 0))
        run.state.add(answered=number)
        tell.finish_bundle()
    for run in runs:
        join(run)
        assert len(run.state.find(Member)) == 1
    assert [[report.counts["answered"] for report in run.notes.reports().values()] for run in runs] == [[1], [2]]
    store = open_store(runs[0].output.store_url)
    beats = [info.key for info in store.list("_runs/") if "report" not in info.key]
    assert {beat.split("/")[1] for beat in beats} == {"one", "two"}
    assert runs[1].state.is_alive("one")


def test_a_conversation_in_work_for_one_run_is_not_in_work_for_another(runs):
    closed = []

    class Held(set):
        open = 1

        def stop(self):
            """Nothing is under way."""

        def close(self, timeout_s):
            closed.extend(self)

    for run, name in zip(runs, ("c/m1", "c/m2"), strict=True):
        run.state.shared(Conversations, lambda name=name: Held([name]))
    assert ["c/m1" in InWork(run.state) for run in runs] == [True, False]
    close_conversations(runs[0].state)
    assert closed == ["c/m1"]
    assert [open_conversations(run.state) for run in runs] == [0, 1]


def test_what_is_left_of_a_run_that_is_over_opens_nothing(runs):
    one, two = runs
    one.state.presence = two.state.presence = SimpleNamespace(is_alive=lambda owner: False, asleep=False)
    end_run("one")
    assert (one.state.over, one.state.stopping, two.state.over) == (True, True, False)
    assert open_file(one, Notice(FILE, "lease", {})) == Opening(ack=False)
    for opens in (lambda: one.state.shared(Lanes, Lanes), lambda: one.state.budget_within(NO_LIMITS)):
        with pytest.raises(EngineClosed, match="run one is over"):
            opens()
    assert isinstance(two.state.shared(Lanes, Lanes), Lanes)
