"""A worker process, whose other side is this test."""

from __future__ import annotations

import json
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest

from llmdo.backends.limits.shares import Share
from llmdo.pipelines.options import check_options
from llmdo.runners.servers import has_ended, own_modules, start_tied, stop_tied
from llmdo.runners.workers.dealt_stretches import spans_of
from llmdo.runners.workers.wire import Alive, Begin, Begun, Channel, Leave, NoMore, WorkerEnded, WorkerReport
from llmdo.transforms.elements import FileVersion, OpenFile, Written
from llmdo.transforms.lines.stretches import Stretch
from tests.fakes.loopback import Loopback, Reply

SECONDS = 120  # at most, for what takes a moment on an idle machine


@dataclass
class Parent:
    """What a worker said, and the means to talk to it."""

    process: object
    channel: Channel
    heard: list[object] = field(default_factory=list)
    gone: threading.Event = field(default_factory=threading.Event)

    def hear(self):
        try:
            while True:
                self.heard.append(self.channel.receive())
        except EOFError:
            self.gone.set()

    def all(self, kind):
        return [one for one in list(self.heard) if isinstance(one, kind)]

    def wait(self, condition):
        end = time.monotonic() + SECONDS
        while not condition():
            assert time.monotonic() < end, self.heard[-5:]
            assert not self.gone.is_set() or condition(), self.heard[-5:]
            time.sleep(0.02)


@contextmanager
def worker(begin=None, grace_s=10):
    ours, theirs = socket.socketpair()
    with theirs:
        command = [sys.executable, "-P", "-m", "llmdo.runners.workers.child", str(theirs.fileno())]
        process = start_tied(
            command, subprocess.DEVNULL, None, own_modules(), pass_fds=(theirs.fileno(),), grace_s=grace_s
        )
    parent = Parent(process, Channel(ours.detach()))
    hearing = threading.Thread(target=parent.hear, daemon=True)
    hearing.start()
    if begin is not None:
        parent.channel.send(begin)
    try:
        yield parent
    finally:
        process.kill()
        stop_tied(process)


class Holding:
    """OpenAI's chats on loopback; calls of the ``held`` prompts of a world wait until it lets them go."""

    def __init__(self, world):
        self.world, self.prompts = world, []
        self._server = Loopback(self.reply)
        self.url, self.close = f"{self._server.origin}/v1", self._server.close

    def reply(self, asked):
        if asked.method == "GET":
            return Reply({"object": "list", "data": [{"id": "m"}]})
        prompt = asked.body["messages"][-1]["content"]
        self.prompts.append(prompt)
        if prompt in self.world.held:
            self.world.let_go.wait(SECONDS)
        message = {"role": "assistant", "content": f"echo: {prompt}"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return Reply({"model": asked.body["model"], "choices": [choice]})


class World:
    """A file of lines, an output folder, and a service whose calls of certain prompts wait."""

    def __init__(self, folder, monkeypatch, lines=12, **options):
        self.share = None
        self.held, self.let_go = set(), threading.Event()
        self.service = Holding(self)
        monkeypatch.setenv("OPENAI_BASE_URL", self.service.url)
        monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
        self.output = folder / "out"
        self.ledger = folder / "ledger.sqlite"
        source = folder / "a.jsonl"
        rows = [json.dumps({"id": number, "prompt": f"p {number}"}).encode() + b"\n" for number in range(lines)]
        self.starts = [sum(map(len, rows[:number])) for number in range(lines + 1)]
        source.write_bytes(b"".join(rows))
        self.file = FileVersion(str(folder), "a.jsonl", "e1", self.starts[-1], "nonce")
        self.element = OpenFile(self.file, ((0, self.starts[-1]),), source.read_bytes())
        self.options = check_options(
            files=(str(source),),
            output=str(self.output),
            model="openai/m",
            ledger=f"sqlite:///{self.ledger}",
            **options,
        )

    def begin(self):
        return Begin("run-of-this-test", self.options, self.share or Share(self.options.concurrency.calls))

    def stretch(self, number, first, last):
        """Lines [first, last) of the file."""
        return Stretch(number, self.element, self.starts[first], self.starts[last])

    def kept(self):
        if not self.ledger.exists():
            return 0
        with sqlite3.connect(self.ledger, timeout=60) as database:
            return database.execute("SELECT count(*) FROM answers").fetchone()[0]


@pytest.fixture
def world(tmp_path, monkeypatch):
    made = World(tmp_path, monkeypatch)
    yield made
    made.let_go.set()
    made.service.close()


def test_a_worker_answers_its_stretches_and_ends_when_there_are_no_more(world):
    with worker(world.begin()) as parent:
        for number, first in ((1, 0), (2, 4), (3, 8)):
            parent.channel.send(world.stretch(number, first, first + 4))
        # Without another word from here each is written and reported.
        parent.wait(lambda: sum(one.stretch_length is not None for one in parent.all(Written)) == 3)
        parent.channel.send(NoMore())
        assert has_ended(parent.process, SECONDS)
        parent.wait(lambda: parent.all(WorkerEnded))
    assert parent.process.returncode == 0
    assert [one.number for one in parent.all(Begun)] == [1, 2, 3]
    spans = sorted(span for one in parent.all(Written) for span in spans_of(one))
    assert spans == [(world.starts[n], world.starts[n + 4]) for n in (0, 4, 8)]
    ends = {one.file.stretch: one.stretch_length for one in parent.all(Written) if one.stretch_length is not None}
    assert ends == {n: world.starts[4 * n] - world.starts[4 * n - 4] for n in (1, 2, 3)}
    assert parent.all(WorkerEnded) == [WorkerEnded()]
    last = parent.all(WorkerReport)[-1]
    assert (last.calls, last.member.counts["answered"], last.member.in_flight) == (12, 12, 0)
    assert len(list(world.output.rglob("shard-*.jsonl"))) == 3


def test_calls_in_flight_are_kept_when_the_other_side_is_gone_and_no_shard_is_written(world):
    world.held.update({"p 2", "p 3"})
    with worker(world.begin()) as parent:
        parent.channel.send(world.stretch(1, 0, 4))
        parent.channel.send(world.stretch(2, 4, 12))
        parent.wait(lambda: len(world.service.prompts) == 12)
        parent.wait(lambda: world.kept() == 10)
        parent.wait(lambda: len(list(world.output.rglob("shard-*.jsonl"))) == 1)
        parent.process.stdin.close()  # as when this process dies: its watcher waits
        hang_up(parent)
        time.sleep(0.5)
        world.let_go.set()
        assert has_ended(parent.process, SECONDS)
    assert world.kept() == 12
    assert len(list(world.output.rglob("shard-*.jsonl"))) == 1


def hang_up(parent):
    """As the kernel does for a process that was killed."""
    sock = socket.socket(fileno=parent.channel._connection.fileno())
    sock.shutdown(socket.SHUT_RDWR)
    sock.detach()


def test_a_worker_is_killed_when_its_calls_do_not_end_and_the_other_side_is_gone(world):
    world.held.add("p 0")
    with worker(world.begin(), grace_s=2) as parent:
        parent.channel.send(world.stretch(1, 0, 4))
        parent.wait(lambda: len(world.service.prompts) == 4)
        parent.process.stdin.close()
        hang_up(parent)
        assert has_ended(parent.process, SECONDS)
    assert parent.process.returncode in (-signal.SIGKILL, 1)


def waiting(parent):
    """How many calls wait for their turn, by the worker's last report."""
    demands = [one.demand for one in parent.all(WorkerReport) if one.demand is not None]
    return demands[-1].waiting if demands else 0


def test_a_worker_that_is_to_leave_ends_its_calls_writes_and_makes_no_other(world):
    world.options = world.options.model_copy(update={"concurrency": type(world.options.concurrency)(2)})
    world.held.update(f"p {n}" for n in range(12))
    with worker(world.begin()) as parent:
        parent.channel.send(world.stretch(1, 0, 12))
        parent.wait(lambda: len(world.service.prompts) == 2)
        parent.wait(lambda: waiting(parent))
        parent.channel.send(Leave("stopped by a test"))
        parent.wait(lambda: not waiting(parent))
        world.let_go.set()
        assert has_ended(parent.process, SECONDS)
        parent.wait(lambda: parent.all(WorkerEnded))
    assert len(world.service.prompts) == world.kept() == 2
    assert sum(one.shard.lines for one in parent.all(Written) if one.shard) == 2
    assert parent.all(WorkerEnded) == [WorkerEnded()]


def test_a_worker_whose_run_had_no_heartbeat_for_too_long_makes_no_call_and_says_so(world):
    with worker(world.begin()) as parent:
        parent.channel.send(Alive(float("-inf"), answered=False))
        parent.channel.send(world.stretch(1, 0, 12))
        parent.wait(lambda: parent.all(WorkerEnded))
    assert parent.all(WorkerReport)[-1].member.stopped.error == "RunAsleep"
    assert len(world.service.prompts) == 0


def test_why_its_pipeline_failed_is_the_last_word_of_a_worker(world):
    world.ledger.write_bytes(b"this is no database" * 100)
    with worker(world.begin()) as parent:
        parent.channel.send(world.stretch(1, 0, 4))
        parent.wait(lambda: parent.all(WorkerEnded))
        assert has_ended(parent.process, SECONDS)
    (ended,) = parent.all(WorkerEnded)
    assert "LedgerError: " in ended.problem and "ledger.sqlite" in ended.problem
    assert (len(world.service.prompts), parent.process.returncode) == (0, 1)


@pytest.mark.parametrize("first", [None, NoMore()])
def test_a_worker_without_a_beginning_ends(first):
    with worker(first) as parent:
        if first is None:
            hang_up(parent)
        assert has_ended(parent.process, SECONDS)
    assert parent.process.returncode == 1
