"""Which worker gets a stretch, and what becomes of the stretches of one that is not needed. Without processes."""

from __future__ import annotations

import queue
import time
from dataclasses import replace

import pytest

from llmdo.backends.limits.shares import Share
from llmdo.pipelines.options import check_options
from llmdo.runners.workers import crew as module
from llmdo.runners.workers.crew import Crew
from llmdo.runners.workers.wire import Begun, Leave, WorkerEnded
from llmdo.runners.workers.worker_process import UNREAD, WorkerProcess
from llmdo.transforms.elements import FileVersion, OpenFile, Written
from llmdo.transforms.lines.stretches import Stretch
from tests.runners.workers.test_reports import report

LARGE, QUICK = 100_000, 100


class Fake:
    """A worker's process and channel: it says what the test puts into ``says``."""

    def __init__(self):
        self.sent, self.says, self.returncode = [], queue.Queue(), None
        self.send, self.close = self.sent.append, lambda: None

    def receive(self):
        message = self.says.get()
        if message is EOFError:
            raise EOFError
        return message

    def poll(self):
        return self.returncode

    def end(self):
        self.says.put(WorkerEnded())
        self.says.put(EOFError)
        self.returncode = 0

    @property
    def stretches(self):
        return [one for one in self.sent if isinstance(one, Stretch)]


class World:
    """A crew whose processes are Fakes; ``deal`` makes it believe that few calls a second can be made, or more."""

    def __init__(self, folder, monkeypatch):
        self.fakes, self.few_calls = [], False
        monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
        monkeypatch.setattr(module, "start_worker", self.start)
        monkeypatch.setattr(module, "stop_tied", lambda _: None)
        monkeypatch.setattr(module, "SharedLimits", lambda *_: self)
        options = check_options(
            files=(str(folder),), output=str(folder / "out"), model="openai/m", processes=2, ledger="none"
        )
        self.crew = Crew(options, options.run("crew"))

    def start(self, *_):
        fake = Fake()
        self.fakes.append(fake)
        return WorkerProcess(fake, fake, Share(8))

    def first(self, _):
        return Share(8)

    def resize(self, window):
        assert window is None  # nobody has ordered another one

    def deal(self, workers):
        if self.few_calls and len(workers) > 1:
            workers[1].share = Share(0)

    def needless(self, workers):
        return [worker for worker in workers if worker.takes_work and not worker.share.window]

    def offer(self, name, size):
        element = OpenFile(FileVersion("r2://bucket", name, "e1", size, "nonce"), ((0, size),))
        return self.crew.offer(element, 0, size)

    def finish(self, fake, stretch):
        """A worker reads and writes a stretch."""
        fake.says.put(Begun(stretch.number))
        file = replace(stretch.element.file, stretch=stretch.number)
        fake.says.put(Written(file, blanks=((0, stretch.stop),)))
        fake.says.put(Written(file, stretch_length=stretch.stop))


def wait_until(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture
def world(tmp_path, monkeypatch):
    made = World(tmp_path, monkeypatch)
    yield made
    made.crew._state.stop("the test is over")
    for fake in made.fakes:
        fake.end()
    made.crew.close()


def names(fake):
    return [one.element.file.key for one in fake.stretches]


def test_a_worker_that_is_not_needed_leaves_and_another_one_gets_what_it_had(world):
    assert world.offer("a", LARGE) and world.offer("b", LARGE) and world.offer("quick", QUICK)
    one, other = world.fakes
    had = names(other)
    other.says.put(Begun(other.stretches[0].number))
    other.says.put(report(5, per_s=2.0))
    wait_until(lambda: any(dealt.begun for dealt in world.crew._workers[1].dealt.values()))
    world.few_calls = True
    wait_until(lambda: any(isinstance(message, Leave) for message in other.sent))
    assert world.offer("later", QUICK)
    assert names(one)[-1] == "later" and names(other) == had
    other.end()
    wait_until(lambda: world.crew.take(0.0) == [] and len(names(one)) == len(had) + 2 + ("quick" not in had))
    assert set(had) <= set(names(one))
    assert all(dealt.deaths == 0 for worker in world.crew._workers for dealt in worker.dealt.values())
    assert not world.crew._state.stopping
    elsewhere = world.crew.elsewhere()
    assert (elsewhere.calls, elsewhere.limits[0].per_s, elsewhere.limits[0].window) == (5, None, 0)
    assert len(world.fakes) == 2  # nobody is started for few calls


def test_a_quick_stretch_that_is_dealt_again_does_not_wait_for_large_ones(world):
    assert [world.offer(name, LARGE) for name in "abcde"] == [True] * 2 * UNREAD + [False]
    assert world.offer("quick", QUICK)
    one, other = world.fakes
    had, kept = (one, other) if "quick" in names(one) else (other, one)
    world.crew._workers[world.fakes.index(had)].leaving = True
    had.end()
    world.few_calls = True
    wait_until(lambda: world.crew.take(0.0) == [] and "quick" in names(kept))
    assert len(names(kept)) == UNREAD + 1  # and no further large one
    assert world.crew._again and world.offer("later", QUICK) and not world.offer("large", LARGE)


def test_a_stretch_that_a_worker_died_of_waits_for_the_only_worker_and_others_wait_for_it(world):
    world.few_calls = True
    assert world.offer("a", LARGE)
    (one,) = world.fakes
    (first,) = one.stretches
    suspect = world.crew._workers[0].dealt[first.number].rest(99)
    suspect.deaths = 1
    world.crew._suspects.append(suspect)
    assert not world.offer("b", LARGE) and not world.offer("quick", QUICK)
    world.finish(one, first)
    wait_until(lambda: world.crew.take(0.0) is not None and one.stretches[-1].number == 99)
    assert not world.offer("b", LARGE)
    world.finish(one, one.stretches[-1])
    wait_until(lambda: world.offer("b", LARGE))
    assert len(world.fakes) == 1
