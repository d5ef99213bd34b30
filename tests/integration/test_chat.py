"""Chats from their events to their responses, against the stand-in for Cloudflare."""

from __future__ import annotations

import json
import random
import signal
import threading
import time
import uuid
from collections import Counter
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest

from llmdo.pipelines.chat_options import check_chat_options
from llmdo.runners.inspecting.explain import explain
from llmdo.runners.running.chat import chat
from llmdo.settings.environment import cloudflare_account
from llmdo.storage.chat.log import ChatLog
from llmdo.storage.objects.opening import open_store
from llmdo.storage.objects.store import locate_folder
from llmdo.storage.queues.client import QueueClient, find_queue
from llmdo.storage.runs.histories import is_history
from llmdo.transforms.chat.events import RESPONSE_IDS
from tests.fakes.loopback import Loopback, Reply
from tests.integration.cloud import MODEL
from tests.integration.test_end_to_end import wait_until
from tests.local.cloudflare import running
from tests.signals import drain

EXAMPLE = Path(__file__).parents[2] / "examples" / "chat" / "events.jsonl"
LOG = "r2://llmdo/chat/"
RECEIVED, STARTED = "v1.LLMResponseReceived", "v1.LLMResponseStarted"
COMPLETED, DELTA = "v1.LLMResponseCompleted", "v1.LLMResponseDelta"
runners = pytest.mark.parametrize("runner", ["direct", pytest.param("prism", marks=pytest.mark.prism)])


def example():
    return [json.loads(line) for line in EXAMPLE.read_text().splitlines()]


def questions(events):
    """The messages of users, by id."""
    args = [event["args"] for event in events if event["name"] == "v1.ChatMessageSent"]
    return {one["id"]: one for one in args if one["role"] == "user"}


def sent(name, conversation="c", text=None, at=1000, role="user"):
    args = {"id": name, "conversationId": conversation, "message": text or f"text of {name}", "role": role}
    return {"name": "v1.ChatMessageSent", "args": {**args, "createdAt": at * 1000}}


def check_responses(events, asked):
    """Every message of a user has one response of the right id, in its conversation, with the right text."""
    rows = {}
    for event in events:
        if event["name"] == RECEIVED:  # one that was pushed twice is the same row
            assert rows.setdefault(event["args"]["id"], event["args"]) == event["args"]
    assert {row["responseToMessageId"]: row["id"] for row in rows.values()} == {
        name: str(uuid.uuid5(RESPONSE_IDS, name)) for name in asked
    }
    for row in rows.values():
        question = asked[row["responseToMessageId"]]
        assert row["conversationId"] == question["conversationId"]
        assert row["message"] == f"echo: {question['message']}"
        assert row["modelId"].endswith("llama-3.3-70b-instruct-fp8-fast")


# Files.


@pytest.fixture
def files(cloud, tmp_path, monkeypatch):
    """Answers events of a file into tmp_path/out; gives the summary and the responses."""
    monkeypatch.delenv("STORE_ID", raising=False)

    def go(events, **options):
        path = tmp_path / "in.jsonl"
        if not isinstance(events, Path):
            path.write_text("".join(json.dumps(event) + "\n" for event in events))
            events = path
        given = {"events": (str(events),), "output": str(tmp_path / "out"), "model": MODEL, **options}
        summary = chat(check_chat_options(**given), lambda state: nullcontext())
        return summary, [json.loads(line) for line in (tmp_path / "out/events.jsonl").read_text().splitlines()]

    return go


@pytest.mark.fast("direct")
@runners
def test_every_message_of_an_event_log_is_answered_once_and_a_second_run_pays_nothing(cloud, files, runner, tmp_path):
    asked = questions(example())
    summary, events = files(EXAMPLE, runner=runner)
    assert (summary.exit_code, summary.run.problem, summary.waiting) == (0, None, 0)
    assert (len(asked), summary.run.counts.answered) == (30, 30)
    check_responses(events, asked)
    assert Counter(event["name"] for event in events) == {RECEIVED: 30, COMPLETED: 30}
    received = [asked[event["args"]["responseToMessageId"]] for event in events if event["name"] == RECEIVED]
    assert received == sorted(received, key=lambda one: (one["conversationId"], one["createdAt"]))
    paid = cloud.stats()["paid"]["calls"]
    assert paid == 30
    again, same = files(EXAMPLE, runner=runner)
    assert (again.exit_code, again.run.counts.answered, same) == (0, 0, events)
    assert cloud.stats()["paid"]["calls"] == paid
    (left,) = (tmp_path / "out/_runs").iterdir()  # how the first run went; the second one did nothing
    assert is_history(left.name)
    assert not (tmp_path / "out/_configuration.json").exists()  # a log may have answers of any model


def test_messages_that_are_answered_already_or_too_old_are_left_alone(cloud, files):
    response = {"id": "r", "conversationId": "c", "message": "Theirs.", "role": "assistant", "modelId": "m"}
    events = [sent("old", at=5), sent("done", at=10), {"name": RECEIVED, "args": response | {"createdAt": 11_000}}]
    summary, responses = files([*events, sent("new", at=20)], since="1970-01-01T00:00:08Z")
    assert (summary.exit_code, summary.run.counts.answered) == (0, 1)
    assert [event["args"]["message"] for event in responses if event["name"] == RECEIVED] == [
        "Theirs.",
        "echo: text of new",
    ]


def test_a_message_that_gets_no_answer_gets_an_event_that_says_so_and_the_others_theirs(cloud, files, tmp_path):
    cloud.fault(target="ai", probability=1.0, status=400, code=5006, match="poison", count=1)
    events = [sent("a"), sent("b", text="poison", at=1001), sent("c", at=1002), sent("d", "other")]
    summary, responses = files(events)
    assert (summary.exit_code, summary.run.counts.answered, summary.run.counts.failed) == (3, 3, 1)
    said = {e["args"]["responseToMessageId"]: e["args"] for e in responses if e["name"] == RECEIVED}
    assert list(said) == ["a", "b", "c", "d"]
    assert (said["b"]["modelId"], said["b"]["llmMetadata"]["source"]) == ("error", "input-validation-error")
    assert said["b"]["llmMetadata"]["error"]["class"] == "InvalidRequest"
    assert "5006" not in said["b"]["message"]
    (found,) = explain(locate_folder(str(tmp_path / "out")), "b")
    assert (found.exit_code, "5006" in found.verdict or "InvalidRequest" in found.verdict) == (3, True)


def received(responses):
    return {event["args"]["responseToMessageId"] for event in responses if event["name"] == RECEIVED}


def test_an_allowance_that_is_used_up_ends_the_run_and_the_same_command_goes_on(cloud, files):
    cloud.fault(target="ai", probability=1.0, status=429, code=4006, match="text of b")
    events = [sent("a"), sent("b", at=1001), sent("c", at=1002)]
    summary, responses = files(events)
    assert (summary.exit_code, summary.waiting, received(responses)) == (1, 2, {"a"})
    assert "4006" in summary.run.problem or "allocation" in summary.run.problem
    assert summary.run.until is not None and summary.run.until > time.time()
    cloud.no_faults()
    summary, responses = files(events)
    assert (summary.exit_code, summary.waiting, received(responses)) == (0, 0, {"a", "b", "c"})
    assert (summary.run.counts.answered, summary.failed) == (2, ())


def test_a_budget_that_is_spent_ends_the_run_and_the_same_command_goes_on(cloud, files):
    events = [sent(name, f"c-{name}", text="word " * 60) for name in "abc"]
    budget = {
        "max_tokens_total": 700,
        "max_tokens": 500,
        "system": "Be kind.",
    }  # a call takes 630 at most, and uses 120
    ends = [files(events, **budget) for _ in range(3)]
    assert [(summary.exit_code, summary.waiting, len(received(said))) for summary, said in ends] == [
        *((1, 2, 1), (1, 1, 2), (0, 0, 3))
    ]
    assert "--max-tokens-total" in ends[0][0].run.problem
    assert (ends[-1][0].failed, cloud.stats()["paid"]["calls"]) == ((), 3)


def test_a_model_that_nobody_knows_ends_the_run_and_the_right_one_answers(cloud, files):
    cloud.fault(target="ai", probability=1.0, status=400, code=5007)
    summary, responses = files([sent("a"), sent("b", "other")])
    assert (summary.exit_code, summary.waiting, responses) == (1, 2, [])
    assert summary.run.problem
    cloud.no_faults()
    assert files([sent("a"), sent("b", "other")])[0].exit_code == 0


class _Memory:
    """A model that knows what it is told: it answers with the last thing that the user called a bird."""

    def __init__(self):
        self.requests = []
        self._server = Loopback(self._answer)
        self.url = f"{self._server.origin}/v1"
        self.close = self._server.close

    def _answer(self, asked):
        if asked.method == "GET":
            return Reply({"object": "list", "data": [{"id": "memory", "object": "model", "context_window": 4000}]})
        request = asked.body
        self.requests.append(request)
        said = [one["content"] for one in request["messages"] if one["role"] == "user"]
        birds = [text.split("bird is ")[1] for text in said if "bird is " in text]
        text = f"Your bird is a {birds[-1]}" if birds else "I do not know."
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}
        return Reply({"id": "1", "model": request["model"], "choices": [choice], "usage": usage})


@pytest.fixture
def memory(monkeypatch):
    memory = _Memory()
    monkeypatch.setenv("OPENAI_BASE_URL", memory.url)
    monkeypatch.setenv("OPENAI_API_KEY", "nobody-asks")
    yield memory
    memory.close()


def test_an_answer_that_needs_the_turn_before_is_asked_for_with_that_turn_and_its_answer(files, memory):
    events = [
        sent("q2", text="Which bird did I name?", at=1001),  # comes first, was sent second
        sent("x", "elsewhere", text="Which bird did I name?"),
        sent("q1", text="My bird is heron", at=1000),
    ]
    summary, responses = files(events, model="openai/memory", system="Be kind.", temperature=0.0, max_tokens=7)
    assert summary.exit_code == 0
    said = {e["args"]["responseToMessageId"]: e["args"]["message"] for e in responses if e["name"] == RECEIVED}
    assert said == {"q1": "Your bird is a heron", "q2": "Your bird is a heron", "x": "I do not know."}
    requests = {len(request["messages"]): request for request in memory.requests if "heron" in str(request)}
    assert sorted(requests) == [2, 4] and len(memory.requests) == 3
    assert [(one["role"], one["content"]) for one in requests[4]["messages"]] == [
        ("system", "Be kind."),
        ("user", "My bird is heron"),
        ("assistant", "Your bird is a heron"),
        ("user", "Which bird did I name?"),
    ]
    assert (requests[4]["temperature"], requests[4]["max_tokens"]) == (0.0, 7)


# Queues.


class _Queues:
    """The two queues, from outside."""

    def __init__(self, cloud):
        account = cloudflare_account()
        for name in ("chat-in", "chat-out"):
            made = cloud.api.post(f"{account.url}/queues", json={"queue_name": name}).raise_for_status().json()
            consumer = {"type": "http_pull", "dead_letter_queue": "chat-dead"}
            url = f"{account.url}/queues/{made['result']['queue_id']}/consumers"
            cloud.api.post(url, json=consumer).raise_for_status()
        self.input, self.output = (QueueClient(account, find_queue(account, name)) for name in ("chat-in", "chat-out"))
        self.events = []

    def replies(self):
        """All that has come so far."""
        while pulled := self.output.pull().messages:
            self.events += [message.body for message in pulled]
            self.output.settle([message.lease_id for message in pulled])
        return self.events

    def received(self):
        return {event["args"]["responseToMessageId"] for event in self.replies() if event["name"] == RECEIVED}


@pytest.fixture
def queues(cloud, monkeypatch):
    monkeypatch.delenv("STORE_ID", raising=False)
    return _Queues(cloud)


OPTIONS = ("--queue", "chat-in", "--reply-queue", "chat-out", "--log", LOG, "--model", MODEL)


@pytest.fixture
def start(cloud, queues):
    """Starts ``llmdo chat`` on the queues, and leaves none behind."""
    started = []

    def go(*more):
        started.append(cloud.command("chat", *OPTIONS, "--json", *more))
        return started[-1]

    yield go
    for process in started:
        if process.poll() is None:
            process.kill()
            process.communicate()


def open_marks(cloud):
    return cloud.keys("chat/_open/")


@pytest.mark.prism
def test_messages_of_a_queue_are_answered_by_another_and_sigterm_drains(cloud, queues, start):
    events = example()
    asked = questions(events)
    shuffled = [*events, *random.Random(4).sample(events, 6)]  # some come again
    random.Random(5).shuffle(shuffled)
    process = start()
    queues.input.push_many([*shuffled[:20], {"name": "v1.ChatMessageSent", "args": {"id": "bad"}}, "no event"])
    wait_until(lambda: len(queues.received()) > 5)
    queues.input.push_many(shuffled[20:])
    wait_until(lambda: queues.received() == set(asked))
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=120)
    summary = json.loads(out)
    assert (process.returncode, summary["exit_code"], summary["problem"]) == (0, 0, None), err
    assert (summary["answered"], summary["events"]["dead_letters"]) == (30, 2)
    assert b"Traceback" not in err
    check_responses(queues.replies(), asked)
    assert queues.input.backlog() == 0
    assert (open_marks(cloud), cloud.alive("chat/")) == ([], [])
    assert cloud.stats()["paid"]["calls"] == 30
    assert len(cloud.keys("chat/_dead/")) == 2
    assert len(cloud.keys("chat/_events/")) == 6
    (found,) = explain(locate_folder(LOG), next(iter(asked)))
    stages = [stage for stage, _ in found.stages if stage != "duplicate"]
    assert stages == ["sent", "received", "queued", "begun", "called", "answered", "pushed"]


@pytest.mark.slow
@pytest.mark.prism
def test_what_a_killed_run_has_taken_in_is_answered_by_the_next_one(cloud, queues, start):
    asked = [sent(f"m{i}", f"c{i % 8}", at=1000 + i) for i in range(40)]
    cloud.fault(target="ai", probability=1.0, latency_s=3.0)  # 15 s for all, five after the other
    process = start()
    queues.input.push_many(asked)
    wait_until(lambda: queues.received() and queues.input.backlog() == 0)  # all are in the log
    process.kill()
    process.communicate()
    assert open_marks(cloud)
    cloud.no_faults()
    process = start()
    wait_until(lambda: len(queues.received()) == 40 and not open_marks(cloud))
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    check_responses(queues.replies(), questions(asked))
    assert cloud.stats()["paid"]["calls"] <= 40 + 8


@pytest.mark.prism
def test_ctrl_c_ends_the_calls_in_flight_and_leaves_the_rest_to_the_next_run(cloud, queues, start):
    asked = [sent(f"m{i}", f"c{i % 2}", at=1000 + i) for i in range(6)]
    cloud.fault(target="ai", probability=1.0, latency_s=5.0)
    process = start()
    queues.input.push_many(asked)
    wait_until(lambda: cloud.stats()["ai"]["in_flight"] == 2)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, json.loads(out)["answered"], b"Traceback" in err) == (0, 2, False), err
    assert queues.received() == {"m0", "m1"}
    assert (len(open_marks(cloud)), cloud.alive("chat/")) == (4, [])
    cloud.no_faults()
    process = start()
    wait_until(lambda: len(queues.received()) == 6 and not open_marks(cloud))
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    check_responses(queues.replies(), questions(asked))
    assert cloud.stats()["paid"]["calls"] == 6


@pytest.mark.prism
def test_two_instances_share_a_queue_and_a_log_and_pay_each_message_once(cloud, queues, start):
    asked = [sent(f"m{i}", f"c{i % 12}", at=1000 + i) for i in range(60)]
    cloud.fault(target="ai", probability=1.0, latency_s=0.1)
    processes = [start(), start()]
    for i in range(0, 60, 5):
        queues.input.push_many([*asked[i : i + 5], asked[i]])  # some come twice
        time.sleep(0.2)
    wait_until(lambda: len(queues.received()) == 60 and not open_marks(cloud))
    ended = []
    for process in processes:
        drain(process)  # one of them may have been late
        out, _ = process.communicate(timeout=120)
        ended.append(json.loads(out))
    assert [one["exit_code"] for one in ended] == [0, 0]
    assert sum(one["answered"] for one in ended) == 60
    check_responses(queues.replies(), questions(asked))
    assert cloud.stats()["paid"]["calls"] == 60


@pytest.mark.prism
def test_text_comes_in_numbered_pieces_before_its_answer(cloud, queues):
    text = "word " * 40
    queues.input.push_many([sent("a", text=text)])
    options = {"queue": "chat-in", "reply_queue": "chat-out", "log": LOG, "model": MODEL, "deltas": True}

    @contextmanager
    def watch(state):
        stopper = threading.Thread(target=lambda: (wait_until(queues.received), state.stop("enough")))
        stopper.start()
        yield
        stopper.join()

    summary = chat(check_chat_options(**options), watch)
    assert summary.exit_code == 0
    names = [event["name"] for event in queues.replies()]
    assert (names[0], names[-2:]) == (STARTED, [RECEIVED, COMPLETED])
    pieces = [event["args"] for event in queues.replies() if event["name"] == DELTA]
    assert [piece["number"] for piece in pieces] == list(range(len(pieces))) != []
    assert "".join(piece["text"] for piece in pieces).strip() == f"echo: {text}".strip()


@pytest.mark.prism
def test_a_reply_queue_that_is_down_loses_no_answer(cloud, queues, start):
    process = start()
    queues.input.push_many([sent("a")])
    wait_until(lambda: queues.received() == {"a"} and not open_marks(cloud))
    cloud.fault(target="queue", probability=1.0, status=500, match=f"{queues.output.queue_id}/messages/batch")
    queues.input.push_many([sent("b", at=1001)])
    log = ChatLog(open_store("r2://llmdo"), "chat/")
    # The mark of "a" goes after its push, that of "b" stays.
    wait_until(lambda: "b" in log.conversation("c").answers and len(open_marks(cloud)) == 1)
    time.sleep(0.5)
    assert len(open_marks(cloud)) == 1
    cloud.no_faults()
    wait_until(lambda: queues.received() == {"a", "b"} and not open_marks(cloud))
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert cloud.stats()["paid"]["calls"] == 2


# The embedded model.


@pytest.mark.model
def test_the_embedded_model_answers_in_turn(tmp_path, monkeypatch):
    events = [sent("a", text="What is a project plan?"), sent("b", text="Shorter, please.", at=1001)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    monkeypatch.delenv("STORE_ID", raising=False)
    with running(tmp_path / "cloudflare", model="local/smollm2-135m-instruct") as server:
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        given = {"events": (str(tmp_path / "in.jsonl"),), "output": str(tmp_path / "out"), "max_tokens": 12}
        options = check_chat_options(**given, model="@cf/huggingface/smollm2-135m-instruct", temperature=0.0)
        summary = chat(options, lambda state: nullcontext())
    assert summary.exit_code == 0
    lines = (tmp_path / "out/events.jsonl").read_text().splitlines()
    rows = [event["args"] for event in map(json.loads, lines) if event["name"] == RECEIVED]
    assert [row["responseToMessageId"] for row in rows] == ["a", "b"]
    assert all(row["message"].strip() for row in rows)
    assert rows[1]["llmMetadata"]["usage"]["inputTokens"] > rows[0]["llmMetadata"]["usage"]["inputTokens"]
