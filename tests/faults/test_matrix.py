"""Each service fails in each way: the run ends whole, or stops with one clear sentence; later runs reach the same end.

The short form has every kind of fault at one probability, with waits between tries a hundredth of what they are; the
long form (LLMDO_SOAK=1) has both probabilities and real waits.
"""

from __future__ import annotations

import json
import signal
import time
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from llmdo.backends.limits import breaker
from llmdo.backends.limits.retry import Retry
from llmdo.runners.cli.main import main
from llmdo.runners.inspecting.verify import verify
from llmdo.settings.environment import cloudflare_account
from llmdo.storage.objects import sigv4
from llmdo.storage.queues.api import QueueApi
from llmdo.storage.queues.client import QueueClient, find_queue
from llmdo.storage.runs import runs
from tests.fakes.clocks import AheadClock
from tests.faults.recorder import HOUR, SOAK
from tests.integration.cloud import MODEL, OUTPUT, Cloud, prompts
from tests.local.cloudflare import running

pytestmark = pytest.mark.timeout(3600 if SOAK else 300)

PROBABILITIES = (0.1, 0.5) if SOAK else (0.5,)
KINDS = {
    "latency": {"latency_s": 5.0 if SOAK else 0.1},
    "dropped connection": {"drop": True},
    "lost reply": {"drop": True, "after": True},
    "truncated body": {"truncate": True},
    "500": {"status": 500},
    "503": {"status": 503},
    "429 with Retry-After": {"status": 429, "retry_after": 1},
    "429 without": {"status": 429},
    "error page": {"status": 502, "page": True},
    "page as success": {"page": True},
    "empty success": {"empty": True},
    "empty success after the work": {"empty": True, "after": True},
}
# The model was asked, and its answer lost: the call is made again, three times in all.
ANSWERS_LOST = {"lost reply", "truncated body", "empty success after the work"}
FILES = {
    "a.jsonl": prompts(20),
    "b.jsonl": b'{"prompt": "one"}\n\n{broken\n{"prompt": "two"}',
    "empty.jsonl": b"",
}
CALLS, LINES, BLANK, WINDOW = 22, 23, 1, 8
INPUT = "r2://llmdo/input/"
# Every kind of object that a run writes or reads, by a part of its key.
OBJECTS = ("_runs/", "_configuration", "_open/", "/input/", "shard-", "_manifest.json")


@dataclass(frozen=True)
class Ended:
    """How a run of llmdo ended; ``said`` on stderr, with single spaces, ``told`` on stdout."""

    code: int
    said: str
    told: str = ""


class Matrix:
    """A stand-in for Cloudflare that has the files, and llmdo's command line in this process."""

    def __init__(self, cloud: Cloud, queue_clock: AheadClock, capsys) -> None:
        self.cloud = cloud
        self._queue_clock = queue_clock
        self._capsys = capsys

    def run(self, *source: str) -> Ended:
        """``llmdo run``."""
        given = ["run", *(source or ("--queue", "llmdo-input")), "--output", OUTPUT, "--model", MODEL, "--json"]
        self._capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([*given, "--batch-size", "8", "--concurrency", str(WINDOW), "--poll-seconds", "0.25"])
        out, err = self._capsys.readouterr()
        assert not out or json.loads(out)["exit_code"] == ended.value.code
        return Ended(ended.value.code, " ".join(err.split()), out)

    def check_nothing_lost(self, ended: Ended) -> bool:
        """The run ended whole, but for messages that the queue still has; or it stopped, and said why.

        Says whether nothing is left to do.
        """
        verified = verify(OUTPUT, [INPUT])
        unfinished = len(FILES) - verified.files
        messages, records = self.cloud.backlog(), len(self.cloud.keys("output/_open/"))
        if ended.code == 1:
            assert ended.said.startswith("llmdo: ") and ended.said.count("llmdo:") == 1, ended
            assert "Traceback" not in ended.said and len(ended.said) < 400
            assert unfinished <= messages + records
        else:
            assert (ended.code in (0, 3), ended.said) == (True, "")
            assert unfinished <= messages
            assert verified.ok or unfinished
        return verified.ok and not messages and not records

    def finish(self) -> None:
        """What a user does once the services are well again: the same command, then a listing if a file is missing."""
        self.cloud.no_faults()
        self._queue_clock.ahead += HOUR  # messages whose lease was lost show again
        ended = self.run()
        assert (ended.code in (0, 3), ended.said) == (True, "")
        if not verify(OUTPUT, [INPUT]).ok:  # the queue gave up on a message
            ended = self.run("--input", INPUT)
            assert (ended.code in (0, 3), ended.said) == (True, "")

    def check_whole(self) -> None:
        """Every line of every file exactly once, nothing in work, no message left."""
        found = verify(OUTPUT, [INPUT])
        assert (found.differences, found.in_work) == ((), ())
        assert (found.files, found.compared, found.lines, found.blank) == (len(FILES), len(FILES), LINES, BLANK)
        assert self.cloud.keys("output/_open/") == []
        assert self.cloud.backlog() == 0

    @property
    def paid(self) -> int:
        """Calls that the model answered."""
        return self.cloud.stats()["paid"]["calls"]


@pytest.fixture(scope="module")
def services(tmp_path_factory):
    """One server for all, since it takes a while to start; and the clock of its queue."""
    clock = AheadClock()
    with running(tmp_path_factory.mktemp("cloudflare"), clock=clock) as server:
        yield server, clock


@pytest.fixture
def matrix(services, tmp_path, monkeypatch, capsys):
    server, clock = services
    for name, value in server.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))  # where ledgers of outputs in R2 are
    # This process stands for one after the other: the one of the run before is gone, though its pid is there.
    monkeypatch.setattr("llmdo.storage.runs.runs._is_running", lambda pid, start: False)
    cloud = Cloud(server)
    clear(cloud, clock)
    for name, body in FILES.items():
        cloud.upload(name, body)
    if not SOAK:
        shorten_waits(monkeypatch)
    return Matrix(cloud, clock, capsys)


def clear(cloud: Cloud, clock: AheadClock) -> None:
    """Takes away what the test before has left."""
    cloud.no_faults()
    for key in cloud.keys(""):
        cloud.store.delete(key)
    clock.ahead += HOUR
    with QueueClient(cloudflare_account(), find_queue(cloudflare_account(), "llmdo-input")) as queue:
        while messages := queue.pull().messages:
            queue.settle([message.lease_id for message in messages])
    cloud.api.delete("/_stats").raise_for_status()


def shorten_waits(patch: pytest.MonkeyPatch) -> None:
    """Makes every wait between two tries a hundredth; how many tries there are stays as it is."""
    sleep, wait_s, open_api = time.sleep, Retry.wait_s, QueueApi.__init__

    def briefly(seconds: float) -> None:
        sleep(seconds / 100)

    def brief(*args, **named) -> float | None:
        wait = wait_s(*args, **named)
        return None if wait is None else wait / 100

    patch.setattr(time, "sleep", briefly)
    patch.setattr(Retry, "wait_s", brief)
    for name in ("FIRST_PAUSE_S", "LONGEST_PAUSE_S"):
        patch.setattr(breaker, name, getattr(breaker, name) / 100)
    patch.setattr(QueueApi, "__init__", lambda api, account, transport, _: open_api(api, account, transport, briefly))


@pytest.mark.fast(
    "ai-lost reply-*",
    "ai-page as success-*",
    "queue-dropped connection-*",
    "queue-429 without-*",
    "r2-truncated body-*",
    "r2-503-*",
)
@pytest.mark.parametrize("probability", PROBABILITIES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("target", ["ai", "queue", "r2"])
def test_a_fault_is_outlived_or_stops_the_run_with_one_clear_sentence(matrix, target, kind, probability):
    matrix.cloud.fault(target=target, probability=probability, **KINDS[kind])
    ended = matrix.run()
    matrix.cloud.no_faults()
    if not matrix.check_nothing_lost(ended) or SOAK:
        matrix.finish()
    matrix.check_whole()
    if target == "ai" and kind in ANSWERS_LOST:
        assert matrix.paid <= 3 * CALLS
    elif ended.code == 1:  # the calls in flight when it stopped
        assert matrix.paid <= CALLS + WINDOW
    else:
        assert matrix.paid <= CALLS


@pytest.mark.fast("_manifest.json-*")
@pytest.mark.parametrize("kind", KINDS if SOAK else ["empty success after the work"])
@pytest.mark.parametrize("what", OBJECTS)
def test_one_kind_of_object_that_always_fails_stops_the_run_at_worst(matrix, what, kind):
    matrix.cloud.fault(target="r2", match=what, **KINDS[kind])
    ended = matrix.run()
    matrix.cloud.no_faults()
    matrix.check_nothing_lost(ended)
    matrix.finish()
    matrix.check_whole()
    assert matrix.paid <= CALLS + WINDOW


@pytest.mark.fast("queue")
@pytest.mark.parametrize("source", [(), ("--input", INPUT)], ids=["queue", "listing"])
def test_a_listing_with_nothing_in_it_is_no_empty_bucket(matrix, source):
    matrix.cloud.fault(target="r2", match="list-type=2", empty=True)
    ended = matrix.run(*source)
    assert (ended.code, "not R2's" in ended.said) == (1, True)
    matrix.finish()
    matrix.check_whole()


@pytest.mark.fast("*-ahead")
@pytest.mark.parametrize("seconds", [HOUR, -HOUR], ids=["ahead", "back"])
@pytest.mark.parametrize("asked", range(1, 20, 2) if SOAK else [10])
def test_a_clock_that_jumps_loses_nothing_and_pays_nothing_twice(matrix, monkeypatch, seconds, asked):
    matrix.cloud.fault(target="ai", latency_s=0.05)
    with Jump(monkeypatch, seconds, asked) as clocks:
        ended = matrix.run()
        assert clocks.jumped, ended
        matrix.finish()
    matrix.check_nothing_lost(ended)
    matrix.check_whole()
    assert matrix.paid == CALLS


@pytest.mark.fast("back")
@pytest.mark.parametrize("seconds", [HOUR, -HOUR], ids=["ahead", "back"])
def test_a_clock_that_r2_refuses_is_said_and_nothing_is_paid_twice_when_it_is_right_again(matrix, monkeypatch, seconds):
    matrix.cloud.fault(target="ai", latency_s=0.05)
    with Jump(monkeypatch, seconds, asked=8, signing=True) as clocks:
        ended = matrix.run()
        assert clocks.jumped, ended
    assert (ended.code, "this machine's clock is wrong; set it" in ended.said) == (1, True)
    assert 0 < matrix.paid < CALLS + 1
    matrix.check_nothing_lost(ended)
    matrix.finish()
    matrix.check_whole()
    assert matrix.paid <= CALLS + WINDOW


class Jump:
    """The heartbeat's clocks jump by ``seconds`` after ``asked`` calls.

    With ``signing`` it is the time in requests to R2 instead, which takes 15 minutes' difference.
    """

    def __init__(self, patch: pytest.MonkeyPatch, seconds: float, asked: int, *, signing: bool = False) -> None:
        self.jumped = False
        self._seconds, self._signing = seconds, signing
        self._left = iter(range(asked))
        self._context = patch.context()

    def __enter__(self) -> Jump:
        patch = self._context.__enter__()
        patch.setattr(runs, "time", self)
        patch.setattr(runs, "_now", self.monotonic)
        if self._signing:
            ahead = {"time": lambda: time.time() + self._ahead}
            patch.setattr(sigv4, "time", SimpleNamespace(**{**vars(time), **ahead}))
        return self

    def __exit__(self, *error: object) -> None:
        self._context.__exit__(*error)

    @property
    def _ahead(self) -> float:
        return self._seconds if self.jumped else 0.0

    def __getattr__(self, name: str):
        """What the module ``time`` has, each of its clocks jumping."""
        real = getattr(time, name)
        if name not in ("time", "monotonic", "clock_gettime"):
            return real

        def jumping(*which) -> float:
            self.jumped = self.jumped or next(self._left, None) is None
            return real(*which) + (0.0 if self._signing else self._ahead)

        return jumping


def test_a_machine_whose_clock_is_an_hour_ahead_takes_nothing_from_a_living_run(cloud, monkeypatch):
    cloud.upload("a.jsonl", prompts(30))
    cloud.fault(target="ai", latency_s=2.0)
    source = ["run", "--queue", "llmdo-input", "--output", OUTPUT, "--model", MODEL, "--json", "--ledger", "none"]
    other = cloud.command(*source, "--concurrency", "4")
    try:
        while cloud.stats()["paid"]["calls"] < 4:
            assert other.poll() is None, other.communicate()
            time.sleep(0.02)
        other.send_signal(signal.SIGSTOP)  # so that it does not end before the other one has looked
        cloud.no_faults()
        with Jump(monkeypatch, HOUR, asked=0):
            summary = cloud.run(input=INPUT, ledger="none")
        other.send_signal(signal.SIGCONT)
        out, _ = other.communicate(timeout=240)
    finally:
        other.kill()
    assert (summary.exit_code, summary.settled, len(summary.others)) == (0, (), 1)
    assert json.loads(out)["exit_code"] == 0
    cloud.check()
    assert cloud.stats()["paid"]["calls"] == 30
