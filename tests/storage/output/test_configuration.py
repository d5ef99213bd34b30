import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from llmdo.storage.errors import ObjectChanged
from llmdo.storage.objects.local import LocalStore
from llmdo.storage.output.configuration import NAME, agree
from llmdo.storage.output.jobs import JobRecord, Jobs
from llmdo.storage.runs.runs import Presence

MODEL = {"model": "fake/m", "parameters": {"seed": 1}}


def dead(run_id):
    return False


def alive(run_id):
    return True


@pytest.fixture
def store(tmp_path):
    return LocalStore(tmp_path)


def beat(store, run_id, **said):
    body = {"run_id": run_id, "host": "elsewhere", "pid": 1, "process_start": "", **said}
    store.put(f"out/_runs/{run_id}.json", json.dumps(body).encode())


def fingerprint(store, prefix="out/"):
    return json.loads(store.read(prefix + NAME)[0])["fingerprint"]


def claim(store, configuration, run_id="other"):
    record = JobRecord(
        store_url="r2://bucket",
        key="a.jsonl",
        etag="e",
        size=1,
        notification={},
        configuration=configuration,
        run_id=run_id,
    )
    Jobs(store, "out/").claim(record, dead)


def test_the_first_run_writes_its_configuration_and_the_same_agrees(store):
    assert agree(store, "out/", "one", MODEL, dead) is None
    assert json.loads(store.read("out/" + NAME)[0]) == {"fingerprint": "one", **MODEL}
    _, etag = store.read("out/" + NAME)
    assert agree(store, "out/", "one", MODEL, alive) is None
    assert store.read("out/" + NAME)[1] == etag


# The last ones: answers to local files, whose folders have their names.
@pytest.mark.parametrize(
    "name", ["bucket/a.jsonl/e/shard-0.jsonl", "_a.jsonl/e/shard-0.jsonl", "_open.jsonl/e/_manifest.json"]
)
def test_another_configuration_is_told_where_answers_are(store, name):
    agree(store, "out/", "one", MODEL, dead)
    store.put("out/" + name, b"{}\n")
    assert agree(store, "out/", "two", {"model": "fake/n"}, dead) == {"fingerprint": "one", **MODEL}
    assert fingerprint(store) == "one"
    assert agree(store, "out/", "one", MODEL, dead) is None


def test_another_configuration_is_told_where_a_living_run_works_by_it(store):
    agree(store, "out/", "one", MODEL, dead)
    claim(store, "one", "run-1")
    asked = []
    assert agree(store, "out/", "two", {}, lambda run_id: asked.append(run_id) or True) == {
        "fingerprint": "one",
        **MODEL,
    }
    assert asked == ["run-1"]
    assert fingerprint(store) == "one"


def test_a_living_run_that_has_no_file_yet_keeps_its_configuration(store):
    agree(store, "out/", "one", MODEL, dead)
    beat(store, "run-1", configuration="one")
    beat(store, "run-2", configuration="two")
    asked = []
    told = agree(store, "out/", "two", {}, lambda run_id: asked.append(run_id) or True)
    assert told == {"fingerprint": "one", **MODEL}
    assert asked == ["run-1"]
    assert fingerprint(store) == "one"


def test_a_dead_runs_heartbeat_keeps_nothing_nor_does_one_that_says_no_configuration(store):
    agree(store, "out/", "one", MODEL, dead)
    beat(store, "run-1", configuration="one")
    assert agree(store, "out/", "two", {}, dead) is None
    beat(store, "run-1")
    assert agree(store, "out/", "three", {}, alive) is None


def test_a_run_that_begins_while_another_one_replaces_its_configuration_keeps_it(store):
    class Late(LocalStore):
        def put_if_match(self, key, body, etag):
            if b"two" in body:  # after the look at the heartbeats, before the write
                beat(store, "run-1", configuration="one")
                assert agree(store, "out/", "one", MODEL, alive) is None
            return super().put_if_match(key, body, etag)

    agree(store, "out/", "one", MODEL, dead)
    assert agree(Late(Path(store.url)), "out/", "two", {}, alive) == {"fingerprint": "one", **MODEL}
    assert fingerprint(store) == "one"


def test_of_two_that_begin_together_by_different_configurations_one_is_refused(store):
    starts = threading.Barrier(2)

    def begin(name):
        presence = Presence(store, "out/", f"run-{name}", name)
        starts.wait()
        try:
            return agree(store, "out/", name, {}, presence.is_alive)
        finally:
            starts.wait()
            presence.stop()

    with ThreadPoolExecutor(2) as pool:
        for _ in range(20):
            store.delete("out/" + NAME)
            one, two = pool.map(begin, ("one", "two"))
            assert (one is None) != (two is None)
            assert fingerprint(store) == ("one" if one is None else "two")


def test_a_mistake_without_answers_is_replaced(store):
    agree(store, "out/", "one", MODEL, dead)
    assert agree(store, "out/", "two", {"model": "fake/n"}, alive) is None
    assert json.loads(store.read("out/" + NAME)[0]) == {"fingerprint": "two", "model": "fake/n"}


def test_heartbeats_and_records_of_dead_runs_are_no_answers(store):
    agree(store, "out/", "one", MODEL, dead)
    claim(store, "one")
    store.put("out/_runs/other.json", b"{}")
    assert agree(store, "out/", "two", {}, dead) is None
    assert fingerprint(store) == "two"


@pytest.mark.parametrize("name", ["_ledger.sqlite", "_ledger.sqlite-wal", "_dead/aa.json", "_ledger/ab/abc.json"])
def test_a_ledger_and_dead_letters_are_no_answers(store, name):
    agree(store, "out/", "one", MODEL, dead)
    store.put("out/" + name, b"x")
    assert agree(store, "out/", "two", {"model": "fake/n"}, dead) is None


def test_a_living_run_of_a_third_configuration_keeps_nothing(store):
    agree(store, "out/", "one", MODEL, dead)
    claim(store, "three")
    assert agree(store, "out/", "two", {}, alive) is None


def test_a_record_that_cannot_be_read_keeps_nothing(store):
    agree(store, "out/", "one", MODEL, dead)
    store.put("out/_open/torn.json", b"{")
    assert agree(store, "out/", "two", {}, alive) is None


def test_another_output_beside_it_does_not_count(store):
    agree(store, "out/", "one", MODEL, dead)
    store.put("out-2/bucket/a.jsonl/e/shard-0.jsonl", b"{}\n")
    assert agree(store, "out/", "two", {}, dead) is None


def test_an_output_at_the_top_of_its_store_has_one_too(store):
    assert agree(store, "", "one", MODEL, dead) is None
    store.put("a.jsonl/e/shard-0.jsonl", b"{}\n")
    assert agree(store, "", "two", {}, dead) == {"fingerprint": "one", **MODEL}


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[]", b"1", b"{}", b'{"fingerprint": 1}'])
def test_an_object_that_is_no_configuration_is_named_and_stays(store, body):
    store.put("out/" + NAME, body)
    with pytest.raises(ValueError, match=r"out/_configuration\.json is not a configuration: remove it"):
        agree(store, "out/", "one", MODEL, dead)
    assert store.read("out/" + NAME)[0] == body


@pytest.mark.parametrize(("winner", "told"), [("three", {"fingerprint": "three"}), ("two", None)])
def test_one_that_changes_while_it_is_replaced_is_read_again(store, winner, told):
    class Raced(LocalStore):
        raced = False

        def put_if_match(self, key, body, etag):
            if not self.raced:
                self.raced = True
                agree(store, "out/", winner, {}, dead)
                store.put("out/bucket/a.jsonl/e/shard-0.jsonl", b"{}\n")
            return super().put_if_match(key, body, etag)

    agree(store, "out/", "one", MODEL, dead)
    raced = Raced(Path(store.url))
    assert agree(raced, "out/", "two", {}, dead) == told
    assert raced.raced
    assert fingerprint(store) == winner


def test_one_that_is_removed_between_two_looks_is_written_anew(store):
    class Removed(LocalStore):
        def put_if_match(self, key, body, etag):
            self.delete(key)
            raise ObjectChanged(key)

    agree(store, "out/", "one", MODEL, dead)
    assert agree(Removed(Path(store.url)), "out/", "two", {}, dead) is None
    assert fingerprint(store) == "two"
