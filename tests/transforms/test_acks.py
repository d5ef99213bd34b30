"""One policy for the acks of all sources: what passes is waited out, what will not pass stops the run."""

from __future__ import annotations

import json
import threading
import time

import httpx
import pytest

from llmdo.settings.environment import CloudflareAccount
from llmdo.storage.errors import QueueNotFound, QueueUnauthorized
from llmdo.storage.queues.client import QueueClient
from llmdo.transforms import acks as acking
from llmdo.transforms.acks import VISIBILITY_TIMEOUT, Acks
from tests.states import run_state

ACCOUNT = CloudflareAccount("a" * 32, "token-of-the-tests", "https://api.test/client/v4")
OK = httpx.Response(200, json={"success": True, "errors": [], "result": {}})


def refused(status, code=None, retry_after=None):
    headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
    body = {"success": False, "errors": [{"code": code, "message": "no"}]}
    return httpx.Response(status, json=body, headers=headers)


TOO_MANY = refused(429, None, 60)
PASSING = [
    refused(500, 15000),
    httpx.Response(502, text="<html>Bad gateway"),
    httpx.ConnectError("reset by peer"),
    httpx.ReadTimeout(""),
    httpx.Response(200, text="<html>Log in"),
]


class Queue:
    """The queue's API: fails as it is told, then takes everything. Its clock stands still until it is moved."""

    def __init__(self):
        self.faults = []
        self.calls = 0
        self.acked = []
        self.now = 1_000.0
        self.acks = Acks(QueueClient(ACCOUNT, "q", httpx.MockTransport(self.answer)), run_state(), lambda: self.now)

    def answer(self, request):
        self.calls += 1
        if self.faults:
            fault = self.faults.pop(0)
            if isinstance(fault, Exception):
                raise fault
            return fault
        self.acked += [ack["lease_id"] for ack in json.loads(request.content)["acks"]]
        return OK

    def later(self, seconds):
        """Time goes on."""
        self.now += seconds
        self.acks.add(())

    def wait_until(self, done):
        end = time.monotonic() + 60
        while not done():
            assert time.monotonic() < end
            time.sleep(0.005)

    def wait_for_calls(self, count):
        """Waits for this number of calls, and for the end of the last: then the time of the next one is known."""
        self.wait_until(lambda: self.calls == count and not self.acks._calling)


@pytest.fixture
def queue():
    made = Queue()
    yield made
    made.acks.close(patient=False)


def warnings(caplog):
    """Those of acks, and of their outages: another test's threads may have a last word, too."""
    found = [record for record in caplog.records if record.levelname == "WARNING"]
    return [record.message for record in found if record.name.startswith("llmdo.transforms")]


def test_leases_are_acked_many_in_a_call(queue):
    leases = [f"l{i}" for i in range(250)]
    queue.acks.add(leases)
    queue.acks.flush()
    assert (queue.acked, queue.calls) == (leases, 3)
    assert queue.acks.close(patient=True) == 0


def test_few_leases_wait_for_more_and_are_acked_in_time_also_after_a_hurry_with_nothing_left(queue):
    for number in range(20):
        queue.acks.hurry()
        time.sleep(0.01)  # so that its thread waits again
        queue.acks.add([f"a{number}"], within_s=0.05)
        queue.acks.add([f"b{number}"], within_s=0.05)
        assert queue.calls == number
        queue.now += 0.05
        queue.wait_for_calls(number + 1)
        queue.acks.flush()
    assert queue.acked == [f"{letter}{number}" for number in range(20) for letter in "ab"]


def test_too_many_calls_are_waited_out_as_long_as_the_service_asks_and_said_once(queue, caplog):
    queue.faults = [TOO_MANY, TOO_MANY]
    queue.acks.add(["a"])
    queue.acks.flush()  # waits for nothing that fails
    for calls in (1, 2):
        queue.later(59.0)
        queue.acks.add([f"b{calls}"])
        assert (queue.calls, queue.acked) == (calls, [])
        queue.later(1.0)
        queue.wait_for_calls(calls + 1)
    queue.wait_until(lambda: queue.acked == ["a", "b1", "b2"])
    queue.acks.flush()
    assert run_state().stop_reason is None
    begun, over = warnings(caplog)
    assert "too many calls" in begun and begun.endswith("trying again until it works")
    assert over.startswith("ack to queue q works again after ")


def test_every_fault_that_passes_is_waited_out_with_growing_waits(queue, caplog):
    queue.faults = list(PASSING)
    queue.acks.add(["a"])
    for calls, wait in enumerate([0.5, 1.0, 2.0, 4.0, 8.0], start=1):
        queue.wait_for_calls(calls)
        queue.later(wait - 0.01)
        assert queue.calls == calls
        queue.later(0.01)
    queue.wait_for_calls(len(PASSING) + 1)
    assert queue.acked == ["a"]
    assert (run_state().stop_reason, len(warnings(caplog))) == (None, 2)


@pytest.mark.parametrize(
    ("reply", "kind"),
    [(refused(401, 10000), QueueUnauthorized), (refused(403), QueueUnauthorized), (refused(404, 10104), QueueNotFound)],
)
def test_what_will_not_pass_stops_the_run_with_its_sentence(queue, reply, kind):
    queue.faults = [reply] * 3
    queue.acks.add(["a"])
    queue.acks.flush()
    assert type(run_state().stop_reason) is kind
    assert str(run_state().stop_reason).startswith("ack to queue q: ")
    assert queue.acks.close(patient=True) == 0


def test_a_surprise_stops_the_run_and_lets_nobody_wait(queue):
    queue.faults = [error := RuntimeError("a bug")]
    queue.acks.add(["a"])
    queue.acks.flush()
    assert run_state().stop_reason is error


def test_a_lease_that_ended_meanwhile_is_dropped_since_its_message_comes_again(queue):
    queue.faults = [refused(429, None, 10_000)]
    queue.acks.add(["old"])
    queue.acks.flush()
    queue.later(VISIBILITY_TIMEOUT - 1)
    queue.acks.add(["new"])
    queue.later(1)
    queue.wait_until(lambda: list(queue.acks._left) == ["new"])
    queue.later(VISIBILITY_TIMEOUT)
    assert queue.acks.close(patient=True) == 2  # there is nothing left to wait for
    assert queue.acked == []


def test_the_end_of_a_run_waits_for_a_queue_that_fails(queue):
    queue.faults = [refused(500)]
    queue.acks.add(["a"])
    queue.acks.flush()
    assert queue.acked == []
    closing = threading.Thread(target=lambda: left.append(queue.acks.close(patient=True)))
    left = []
    closing.start()
    queue.later(0.5)
    closing.join(60)
    assert (left, queue.acked) == ([0], ["a"])


def test_a_run_that_is_told_to_stop_does_not_wait_for_a_queue_that_fails(queue):
    queue.faults = [TOO_MANY] * 9
    queue.acks.add(["a", "b"])
    queue.acks.flush()
    threading.Timer(0.1, lambda: run_state().stop("SIGTERM")).start()
    assert queue.acks.close(patient=True) == 2
    assert queue.calls == 1


def test_a_last_try_that_is_refused_for_good_changes_nothing_about_a_run_that_is_over(queue):
    queue.acks._closed = True
    queue.faults = [refused(401, 10000)]
    queue.acks.add(["a"])
    assert queue.acks.close(patient=False) == 1
    assert run_state().stop_reason is None


def test_what_was_not_tried_yet_is_tried_at_the_end(queue):
    queue.acks.add(["a"])
    assert queue.acks.close(patient=False) == 0
    assert queue.acked == ["a"]


def test_a_process_has_one_for_each_queue_until_it_closes_them_and_says_what_is_left(monkeypatch, caplog):
    queue = Queue()
    monkeypatch.setattr(acking, "cloudflare_account", lambda: ACCOUNT)
    monkeypatch.setattr(acking, "QueueClient", lambda account, name: QueueClient(account, name, transport))
    transport = httpx.MockTransport(queue.answer)
    queue.faults = [TOO_MANY]
    assert acking.acks_of(run_state(), "q") is acking.acks_of(run_state(), "q")
    acking.acks_of(run_state(), "q").add(["a", "b"])
    acking.acks_of(run_state(), "q").flush()
    assert acking.close_acks(run_state()) == {"q": 2}
    assert "queue q: 2 message(s) could not be acked: they will come again, at no cost" in caplog.text
    assert acking.close_acks(run_state()) == {}
