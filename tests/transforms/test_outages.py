import threading

import pytest

from llmdo.storage.errors import AccessDenied, QueueError, StorageUnavailable
from llmdo.transforms import outages
from llmdo.transforms.outages import STORE_PATIENCE_S, Outage, patiently, pause, persistently
from tests.states import fresh_state, run_state


@pytest.fixture
def slept(monkeypatch):
    """The seconds that this thread slept, without sleeping."""
    steps, mine, sleep = [], threading.get_ident(), outages.time.sleep
    monkeypatch.setattr(outages.time, "sleep", lambda s: steps.append(s) if threading.get_ident() == mine else sleep(s))
    return steps


def said(caplog):
    """Of outages: another test's threads may have a last word, too."""
    return [record.message for record in caplog.records if record.name == outages.__name__]


def test_waits_grow_to_a_minute_and_begin_anew_when_the_service_works():
    outage = Outage(run_state(), "R2")
    waits = [outage.wait_after(StorageUnavailable("no")) for _ in range(9)]
    assert waits == [0.5, 1, 2, 4, 8, 16, 32, 60, 60]
    assert outage.lasted_s == sum(waits)
    outage.over()
    assert outage.lasted_s == 0
    assert outage.wait_after(StorageUnavailable("no")) == 0.5


@pytest.mark.parametrize(
    ("error", "wait"),
    [
        (QueueError("", 429, 10250, 17.0), 17.0),
        (QueueError("", 429, None, 3600.0), 3600.0),
        (QueueError("", 429, None, 0.0), 0.5),
        (QueueError("", 429, 10253), 300.0),
        (QueueError("", 503), 0.5),
        (QueueError("", 0), 0.5),
    ],
)
def test_a_service_that_says_how_long_to_wait_is_obeyed(error, wait):
    assert Outage(run_state(), "q").wait_after(error) == wait


def test_an_error_that_will_not_pass_is_raised():
    with pytest.raises(AccessDenied):
        Outage(run_state(), "R2").wait_after(AccessDenied("wrong key"))


def test_it_is_said_when_it_begins_and_when_it_is_over_and_not_in_between(caplog):
    outage = Outage(run_state(), "R2")
    outage.over()
    for _ in range(3):
        outage.wait_after(StorageUnavailable("R2 sleeps"))
    outage.over()
    outage.over()
    assert said(caplog) == [
        "R2 sleeps; trying again until it works",
        "R2 works again after 4 s",
    ]


def test_callers_that_find_the_same_service_failing_say_it_once(caplog):
    one, other = Outage(run_state(), "R2"), Outage(run_state(), "R2")
    for outage in (one, other):
        outage.wait_after(StorageUnavailable("R2 sleeps"))
    one.over()
    other.over()
    assert len(said(caplog)) == 2
    other.wait_after(StorageUnavailable("R2 sleeps again"))
    fresh_state()  # the next pipeline says so, too
    Outage(run_state(), "R2").wait_after(StorageUnavailable("R2 still sleeps"))
    assert len(said(caplog)) == 4


def test_a_pause_ends_when_the_run_stops(slept):
    pause(run_state(), 1.1)
    assert sum(slept) == pytest.approx(1.1)
    slept.clear()
    run_state().stop("SIGTERM")
    pause(run_state(), 300.0)
    assert slept == []


def test_what_fails_for_now_is_done_again_and_what_will_not_pass_is_not(slept):
    errors = [AccessDenied("wrong key"), StorageUnavailable("later"), StorageUnavailable("still")]

    def work():
        if len(errors) > 1:
            raise errors.pop()
        return "done"

    assert patiently(run_state(), work) == "done"
    assert sum(slept) == pytest.approx(1.5)
    slept.clear()
    with pytest.raises(AccessDenied):
        patiently(run_state(), lambda: (_ for _ in ()).throw(errors[0]))
    assert slept == []


def test_a_listing_that_breaks_is_taken_up_again_and_gives_each_thing_once(slept):
    errors = [StorageUnavailable("later"), StorageUnavailable("still")]

    def find():
        yield from "ab"
        if errors:
            raise errors.pop()
        yield from "cd"

    assert list(persistently(run_state(), find, str)) == ["a", "b", "c", "d"]
    assert sum(slept) == pytest.approx(1.5)


def test_a_listing_that_never_works_fails_after_a_while_and_at_once_where_the_run_stops(slept):
    def find():
        raise StorageUnavailable("never")
        yield ""

    with pytest.raises(StorageUnavailable):
        list(persistently(run_state(), find, str))
    assert STORE_PATIENCE_S / 2 < sum(slept) <= STORE_PATIENCE_S
    slept.clear()
    run_state().stop("SIGTERM")
    with pytest.raises(StorageUnavailable):
        list(persistently(run_state(), find, str))
    assert slept == []
