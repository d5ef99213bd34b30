"""Chats in LiveStore's event logs: whole commands against a stand-in for its sync backend, with its faults."""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.integration.cloud import MODEL
from tests.signals import drain
from tests.storage.livestore.fake_backend import FakeBackend, Faults

pytestmark = pytest.mark.prism
SENT, STARTED = "v1.ChatMessageSent", "v1.LLMResponseStarted"
RECEIVED, COMPLETED = "v1.LLMResponseReceived", "v1.LLMResponseCompleted"
TOKEN = {"authToken": "a secret for the backend"}
CLAIM_S = 8.0  # a busy machine may stop a process for seconds, whose claim then must not be over
SHORT = f"import llmdo.transforms.livestore.claims as claims; claims.CLAIM_S, claims.RENEW_S = {CLAIM_S}, 1.0; "


class Chat:
    """A backend, and instances of ``llmdo chat`` that answer its stores."""

    def __init__(self, cloud, folder):
        self.cloud, self.folder = cloud, folder
        self.backend = FakeBackend(payload=TOKEN)
        self.processes = []

    def start(self, *more, stores="s", log="log", first="", payload=TOKEN, level="WARNING"):
        where = ["--livestore", self.backend.url, "--store", stores, "--log", str(self.folder / log)]
        process = self.cloud.command(
            *("chat", *where, "--model", MODEL, "--json", *more),
            first=first,
            LIVESTORE_PAYLOAD=json.dumps(payload),
            LLMDO_LOG_LEVEL=level,
        )
        self.processes.append(process)
        return process

    def wait_for_begin(self, *stores):
        """Until each process reads the stores, and these folders say from when on messages are answered."""
        self.backend.wait_for_count("pulls", max(len(stores), len(self.processes)))
        end = time.monotonic() + 110
        while not all((self.folder / store / "_cursor.json").exists() for store in stores):
            assert time.monotonic() < end, "a store is not read"
            time.sleep(0.05)

    def say(self, identity, store="s", conversation="c", text=None):
        args = {
            "id": identity,
            "conversationId": conversation,
            "message": text or f"text of {identity}",
            "role": "user",
        }
        at = time.strftime("%Y-%m-%dT%H:%M:%S.999Z", time.gmtime())
        self.backend.write(store, SENT, {**args, "createdAt": at})

    def of(self, name, store="s"):
        return [event["args"] for event in self.backend.logs[store] if event["name"] == name]

    def answers(self, store="s"):
        return Counter(args["responseToMessageId"] for args in self.of(RECEIVED, store))

    def wait(self, asked, store="s", seconds=110):
        """Until all of these are answered; no process may have ended meanwhile."""
        end = time.monotonic() + seconds
        while set(asked) - set(self.answers(store)):
            for process in self.processes:
                assert process.poll() is None, process.communicate()[1].decode()[-3000:]
            assert time.monotonic() < end, f"no answer to {set(asked) - set(self.answers(store))}"
            time.sleep(0.05)

    def end(self):
        """SIGTERM for all; gives their summaries."""
        ended = []
        drain(*self.processes)
        for process in self.processes:
            out, err = process.communicate(timeout=240)
            assert process.returncode == 0, err.decode()[-3000:]
            assert b"Traceback" not in err and b"a secret for" not in err + out, err.decode()[-3000:]
            ended.append(json.loads(out))
        self.processes.clear()
        return ended

    def numbers(self, store="s"):
        return [(event["parentSeqNum"], event["seqNum"]) for event in self.backend.logs[store]]

    def paid(self):
        return self.cloud.stats()["paid"]["calls"]


@pytest.fixture
def chat(cloud, tmp_path, monkeypatch):
    for name in ("STORE_ID", "STORE_IDS", "LIVESTORE_SYNC_URL", "LIVESTORE_PAYLOAD"):
        monkeypatch.delenv(name, raising=False)
    chat = Chat(cloud, tmp_path)
    yield chat
    for process in chat.processes:
        process.kill()
        process.communicate()
    chat.backend.stop()


def contiguous(chat, store="s"):
    numbers = chat.numbers(store)
    return numbers == [(at, at + 1) for at in range(len(numbers))]


def test_messages_of_two_stores_are_answered_each_in_its_own(chat):
    chat.say("old")
    process = chat.start(stores="s,t")
    chat.wait_for_begin("log/s", "log/t")  # what was sent before is not answered
    chat.say("m1")
    chat.say("m1", store="t", text="the same ids in another store")
    chat.wait(["m1"])
    chat.wait(["m1"], store="t")
    (summary,) = chat.end()
    assert (summary["answered"], summary["failed"], summary["waiting"]) == (2, 0, 0)
    assert process.returncode == 0
    assert [event["name"] for event in chat.backend.logs["s"]] == [SENT, SENT, STARTED, RECEIVED, COMPLETED]
    assert chat.of(RECEIVED, "t")[0]["message"] == "echo: the same ids in another store"
    assert chat.answers() == {"m1": 1} and contiguous(chat) and contiguous(chat, "t")
    received = chat.of(RECEIVED)[0]
    assert all(value is not None for value in received.values()) and received["createdAt"].endswith("Z")


def test_a_second_run_goes_on_where_the_first_one_ended_and_answers_what_came_meanwhile(chat):
    chat.start()
    chat.wait_for_begin("log/s")
    chat.say("m1")
    chat.wait(["m1"])
    chat.end()
    chat.say("m2")
    chat.start()
    chat.wait(["m2"])
    chat.end()
    assert chat.answers() == {"m1": 1, "m2": 1} and chat.paid() == 2


def test_a_wrong_payload_ends_the_run_with_one_sentence(chat):
    process = chat.start(payload={"authToken": "an outdated secret"})
    out, err = process.communicate(timeout=240)
    chat.processes.clear()
    summary = json.loads(out)
    assert process.returncode == 1
    assert "LIVESTORE_PAYLOAD" in summary["problem"] and "HTTP 400" in summary["problem"]
    assert b"an outdated secret" not in out + err and b"Traceback" not in err


def test_one_store_of_several_that_is_refused_ends_the_run_and_the_others_stay_open(chat):
    process = chat.start("--since", "0", stores="s,t")
    chat.say("m1")
    chat.wait(["m1"])
    chat.backend.refused.add("t")
    chat.backend.cut()
    out, _ = process.communicate(timeout=240)
    chat.processes.clear()
    summary = json.loads(out)
    assert process.returncode == 1 and summary["problem"].startswith("store t: ") and "HTTP 400" in summary["problem"]
    chat.backend.refused.clear()
    chat.say("m2")
    chat.start(stores="s,t")
    chat.wait(["m2"])
    chat.end()
    assert chat.answers() == {"m1": 1, "m2": 1} and chat.paid() == 2


def test_the_payload_is_in_nothing_that_a_run_says_or_writes(chat, tmp_path):
    """At the level DEBUG, with a backend that repeats it in its errors."""
    backend, pull, push = chat.backend, chat.backend._pull, chat.backend._push
    echo = json.dumps(TOKEN)

    async def pull_second(store, one, request, cursor):
        backend.counts["tries"] += 1
        if backend.counts["tries"] < 2:
            await backend._send(one, {"_tag": "Defect", "defect": f"you sent {echo}"})
        else:
            await pull(store, one, request, cursor)

    async def push_third(store, one, request, payload):
        backend.counts["pushed"] += 1
        if backend.counts["pushed"] < 3:
            error = {"_tag": "UnknownError", "cause": {"name": "Error", "message": f"no: {echo}"}, "payload": payload}
            failure = {"_tag": "Failure", "cause": {"_tag": "Fail", "error": error}}
            await backend._send(one, {"_tag": "Exit", "requestId": request, "exit": failure})
        else:
            await push(store, one, request, payload)

    backend._pull, backend._push = pull_second, push_third
    process = chat.start("--since", "0", level="DEBUG")
    chat.say("m1")
    chat.wait(["m1"])
    commands = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            commands.append(entry.read_bytes())
    process.terminate()
    out, err = process.communicate(timeout=240)
    chat.processes.clear()
    assert process.returncode == 0 and b"<LIVESTORE_PAYLOAD>" in err and chat.answers() == {"m1": 1}
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 3
    secret = TOKEN["authToken"]
    for form in (secret, quote(secret), quote(quote(secret))):
        for text in (out, err, *written, *commands):
            assert form.encode() not in text


@pytest.mark.parametrize("shared", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_three_instances_answer_each_message_once_while_everything_fails(chat, shared):
    for number in range(3):
        chat.start(log="log" if shared else f"log{number}")
    chat.wait_for_begin(*(["log/s"] if shared else [f"log{number}/s" for number in range(3)]))
    chat.backend.faults = Faults(0.02, 0.2, 0.01, 0.03, 0.0, 0.0, chunk=10)
    asked = [f"m{number}" for number in range(40)]
    for number, identity in enumerate(asked):
        chat.say(identity, conversation=f"c{number % 7}")
        if number % 10 == 5:
            chat.backend.cut()
        if number == 20:
            chat.backend.kill()
            time.sleep(0.5)
            chat.backend.start()
        time.sleep(0.05)
    chat.wait(asked)
    chat.backend.faults = Faults()
    chat.end()
    assert chat.answers() == dict.fromkeys(asked, 1)
    assert chat.paid() == len(asked)
    assert contiguous(chat)


@pytest.mark.parametrize("shared", [False, True])
def test_another_instance_takes_over_what_a_killed_one_had_claimed(chat, cloud, shared):
    cloud.fault(target="ai", probability=1.0, latency_s=110.0)
    both = [chat.start(log="log" if shared else f"log{number}", first=SHORT) for number in range(2)]
    chat.wait_for_begin(*(["log/s"] if shared else [f"log{number}/s" for number in range(2)]))
    chat.say("m1")
    claimed = []
    while not claimed or claimed[-1] - claimed[0] < CLAIM_S + 2.0:  # it is repeated, so it holds
        time.sleep(0.05)
        events = [event for event in chat.backend.logs["s"] if event["name"] == STARTED]
        claimed = [datetime.fromisoformat(event["_at"]).timestamp() for event in events]
    claims = [event["clientId"] for event in events]
    assert len(set(claims)) == 1
    (first,) = (process for process in both if f"-{process.pid}-" in claims[0])
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    chat.processes.remove(first)
    cloud.no_faults()
    chat.wait(["m1"])
    chat.end()
    (taken,) = [one for one in chat.backend.logs["s"] if "takesOver" in one["args"]]
    assert taken["args"]["takesOver"] == claims[0] != taken["clientId"]
    assert chat.answers() == {"m1": 1}
