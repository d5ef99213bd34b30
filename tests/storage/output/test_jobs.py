import json

import pytest

from llmdo.storage.errors import AlreadyExists
from llmdo.storage.objects.local import LocalStore
from llmdo.storage.output.jobs import Claim, JobRecord, Jobs, record_name


def record(run_id="run-1", etag="e1"):
    return JobRecord(
        store_url="r2://bucket",
        key="input/ä b.jsonl",
        etag=etag,
        size=10,
        notification={"action": "PutObject"},
        configuration="c",
        run_id=run_id,
    )


def dead(run_id):
    return False


def alive(run_id):
    return True


@pytest.fixture
def jobs(tmp_path):
    return Jobs(LocalStore(tmp_path), "output/")


def test_a_record_is_found_by_the_sweep_until_it_is_removed(jobs):
    mine = record()
    jobs.claim(mine, dead)
    assert list(jobs.sweep()) == [mine]
    jobs.remove(("r2://bucket", "input/ä b.jsonl", "e1"))
    jobs.remove(("r2://bucket", "input/ä b.jsonl", "e1"))
    assert list(jobs.sweep()) == []


def test_two_versions_of_a_key_have_two_records(jobs):
    jobs.claim(record(etag="e1"), dead)
    jobs.claim(record(etag="e2"), dead)
    assert {found.etag for found in jobs.sweep()} == {"e1", "e2"}


def test_a_later_run_takes_over_what_a_dead_one_left(jobs):
    jobs.claim(record("run-1"), dead)
    jobs.claim(record("run-2"), dead)
    assert [found.run_id for found in jobs.sweep()] == ["run-2"]


def test_a_record_of_a_living_run_is_left_to_it(jobs):
    theirs, mine = record("run-1"), record("run-2")
    assert jobs.claim(theirs, dead) == Claim(theirs)
    assert jobs.claim(mine, alive) == Claim(theirs)
    assert list(jobs.sweep()) == [theirs]


def test_the_same_claim_may_come_again_and_another_of_the_same_run_does_not_replace_it(jobs):
    mine, again = record("run-1"), record("run-1")
    assert jobs.claim(mine, dead) == jobs.claim(mine, dead) == Claim(mine)
    assert jobs.claim(again, dead) == Claim(mine)


def test_a_released_record_is_free_and_keeps_what_is_known(jobs):
    mine = record("run-1")
    jobs.claim(mine, alive)
    jobs.release(mine.model_copy(update={"failures": 2, "problem": "no such bucket"}))
    (free,) = jobs.sweep()
    assert (free.run_id, free.failures, free.problem) == ("", 2, "no such bucket")
    claim = jobs.claim(record("run-2"), alive)
    assert (claim.record.run_id, claim.record.failures, claim.before) == ("run-2", 2, free)


def test_a_record_of_the_dead_letters_starts_anew_when_it_is_asked_for(jobs):
    mine = record("run-1")
    jobs.claim(mine, alive)
    jobs.release(mine.model_copy(update={"failures": 3, "problem": "no such bucket", "dead": True}))
    claim = jobs.claim(record("run-2"), alive)
    assert (claim.record.failures, claim.record.dead) == (0, False)


def test_what_another_claim_has_taken_over_is_not_released(jobs):
    mine, theirs = record("run-1"), record("run-2")
    jobs.claim(mine, dead)
    jobs.claim(theirs, dead)
    jobs.release(mine)
    assert list(jobs.sweep()) == [theirs]
    jobs.remove(("r2://bucket", "input/ä b.jsonl", "e1"))
    jobs.release(mine)
    assert list(jobs.sweep()) == []


def test_the_sweep_does_not_read_what_is_known(jobs):
    jobs.claim(record(etag="e1"), dead)
    jobs.claim(record(etag="e2"), dead)
    known = {record_name("r2://bucket", "input/ä b.jsonl", "e1")}
    assert [found.etag for found in jobs.sweep(known)] == ["e2"]
    assert jobs.read(("r2://bucket", "input/ä b.jsonl", "e1")).etag == "e1"
    assert jobs.read(("r2://bucket", "input/ä b.jsonl", "e3")) is None


def test_a_put_whose_first_reply_was_lost_finds_its_own_record(jobs, monkeypatch):
    mine = record()
    put = jobs.store.put_if_absent

    def lost_reply(key, body):
        put(key, body)
        raise AlreadyExists(key)

    replaced = []
    monkeypatch.setattr(type(jobs.store), "put_if_absent", lambda self, key, body: lost_reply(key, body))
    monkeypatch.setattr(type(jobs.store), "put_if_match", lambda self, *args: replaced.append(args))
    jobs.claim(mine, dead)
    assert replaced == []
    assert list(jobs.sweep()) == [mine]


def test_a_record_that_cannot_be_read_does_not_hide_the_others(jobs):
    jobs.claim(record(), dead)
    jobs.store.put("output/_open/" + record_name("a", "b", "c"), b'{"version": 99}')
    found = list(jobs.sweep())
    assert [f for f in found if isinstance(f, JobRecord)] == [f for f in found if not isinstance(f, ValueError)]
    assert len(found) == 2
    assert any("send the file again" in str(f) for f in found)


def test_a_record_that_cannot_be_read_is_taken_over_by_a_new_claim(jobs):
    mine = record()
    jobs.store.put("output/_open/" + record_name("r2://bucket", "input/ä b.jsonl", "e1"), b"torn")
    jobs.claim(mine, dead)
    assert list(jobs.sweep()) == [mine]


@pytest.mark.parametrize(
    "fields",
    [
        *({"size": size} for size in (-1, 2**63, 10**4000, "many", None)),
        *({"failures": failures} for failures in (-1, 2**31, 10**4000, "some")),
        *({"run_id": run_id} for run_id in ("..", "../../x", "a/b", "x\0", "x" * 1000, 7)),
        {"notification": []},
        {"etag": 7},
        {"version": 2},
    ],
)
def test_a_record_with_a_field_that_cannot_be_true_is_named_and_may_be_taken_over(jobs, fields):
    mine = record()
    name = record_name(mine.store_url, mine.key, mine.etag)
    jobs.store.put(f"output/_open/{name}", json.dumps(mine.model_dump() | fields).encode())
    (found,) = jobs.sweep()
    assert isinstance(found, ValueError)
    assert name in str(found)
    assert jobs.read((mine.store_url, mine.key, mine.etag)) is None
    assert jobs.claim(mine, alive) == Claim(mine)
