import asyncio
import threading
import time

import pytest

from llmdo.backends.engine import intake as intakes
from llmdo.backends.engine.intake import Intake, Room
from llmdo.backends.engine.jobs import Job, Reservation
from llmdo.backends.errors import EngineClosed
from llmdo.backends.limits.sizes import memory_size
from llmdo.backends.requests import ChatRequest, EmbedRequest, Message, RawRequest


class Loop:
    """Stands for the loop: what it is asked to do is done when ``turn`` is called."""

    def __init__(self):
        self.waiting = []

    def call_soon_threadsafe(self, work):
        self.waiting.append(work)

    def turn(self):
        for work in self.waiting:
            work()
        self.waiting.clear()


def job(text, deliveries=1):
    return Job("fake", ChatRequest("m", (Message("user", text),)), lambda *_: None, Reservation(deliveries))


def take_all(intake, *texts):
    return [intake.take(job(text), wait=False) for text in texts]


def test_no_more_than_so_many_jobs_are_held_and_an_ended_one_makes_room():
    begun = []
    intake = Intake(Loop(), Room(2), lambda: True, begun.extend)
    first = job("a")
    assert intake.take(first, wait=False)
    assert take_all(intake, "b", "c") == [True, False]
    assert not intake.wait(0)
    intake.free(first.reservation)
    assert intake.wait(0)
    assert take_all(intake, "c", "d") == [True, False]


def test_more_are_taken_in_while_the_engine_looks_further_and_none_until_these_have_ended():
    intake = Intake(Loop(), Room(2), lambda: True, lambda jobs: None)
    first = [job("a") for _ in range(2)]
    assert all(intake.take(one, wait=False) for one in first)
    woken = threading.Thread(target=intake.wait, args=(60.0,))
    woken.start()
    intake.look_further(2)
    woken.join(60)
    assert not woken.is_alive()
    assert take_all(intake, "b", "c", "d") == [True, True, False]
    intake.look_further(0)
    for one in first:
        intake.free(one.reservation)
    assert not intake.wait(0)


def test_who_waits_for_room_is_woken_for_an_eighth_of_it(monkeypatch):
    monkeypatch.setattr(intakes, "LOOK_S", 60.0)
    intake = Intake(Loop(), Room(16), lambda: True, lambda jobs: None)
    held = [job("a") for _ in range(16)]
    for one in held:
        intake.take(one, wait=False)
    waiting = [threading.Thread(target=intake.take, args=(job("b"),), kwargs={"wait": True}) for _ in range(2)]
    for thread in waiting:
        thread.start()
    while len(intake.lock._waiters) < 2:  # else one finds the place free as soon as it looks
        time.sleep(0.01)
    intake.free(held[0].reservation)
    waiting[0].join(0.1)
    assert [thread.is_alive() for thread in waiting] == [True, True]
    intake.free(held[1].reservation)
    for thread in waiting:
        thread.join(60)
    assert [thread.is_alive() for thread in waiting] == [False, False]
    assert not intake.wait(0)


def test_a_job_of_many_deliveries_leaves_after_the_last():
    intake = Intake(Loop(), Room(1), lambda: True, lambda jobs: None)
    texts = job("a", deliveries=2)
    intake.take(texts, wait=False)
    intake.free(texts.reservation)
    assert not intake.wait(0)
    intake.free(texts.reservation)
    assert intake.wait(0)


def test_more_are_held_while_all_of_them_are_small():
    intake = Intake(Loop(), Room(2, more=3, size=100), lambda: True, lambda jobs: None)
    assert take_all(intake, *"abcdef") == [True] * 5 + [False]


def test_large_ones_fill_the_room_sooner_but_the_first_ones_always_fit():
    intake = Intake(Loop(), Room(2, more=3, size=100), lambda: True, lambda jobs: None)
    large = [job("x" * 500) for _ in range(3)]
    assert [intake.take(one, wait=False) for one in large] == [True, True, False]
    intake.free(large[0].reservation)
    intake.free(large[1].reservation)
    assert take_all(intake, *"abcdef") == [True] * 5 + [False]


def test_jobs_reach_the_loop_once_and_in_order():
    loop, begun = Loop(), []
    intake = Intake(loop, Room(9), lambda: True, begun.append)
    take_all(intake, "a", "b")
    assert len(loop.waiting) == 1
    loop.turn()
    take_all(intake, "c")
    loop.turn()
    assert [[one.request.messages[0].content for one in jobs] for jobs in begun] == [["a", "b"], ["c"]]
    assert intake.left() == []


def test_a_closed_engine_takes_nothing_and_what_was_not_begun_with_can_be_had():
    usable = [True]
    intake = Intake(Loop(), Room(9), lambda: usable[0], lambda jobs: None)
    take_all(intake, "a")
    usable[0] = False
    with pytest.raises(EngineClosed):
        take_all(intake, "b")
    with pytest.raises(EngineClosed):
        intake.wait(1)
    assert len(intake.left()) == 1


def test_the_loops_own_thread_never_waits_for_room():
    async def scenario():
        intake = Intake(asyncio.get_running_loop(), Room(1), lambda: True, lambda jobs: None)
        intake.take(job("a"), wait=True)
        await asyncio.sleep(0)
        intake.take(job("b"), wait=True)

    with pytest.raises(RuntimeError, match="wait=False"):
        asyncio.run(scenario())


@pytest.mark.parametrize(
    ("request_", "size"),
    [
        (
            ChatRequest("m", (Message("user", "abc"), Message("tool", "de", {"name": "fg"})), {"stop": ["hi"], "n": 1}),
            9,
        ),
        (ChatRequest("m", (Message("user", ({"type": "text", "text": "abc"},)),)), 7),
        (EmbedRequest("m", ("abc", "de")), 5),
        (RawRequest("m", {"image": "x" * 1000, "n": None}), 1000),
    ],
)
def test_the_size_of_a_request_is_that_of_its_text_and_pictures(request_, size):
    assert memory_size(request_) == size
