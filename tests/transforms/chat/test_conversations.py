import asyncio
import itertools
import random
import threading
import time
import types
from collections import Counter, defaultdict

import pytest

from llmdo.backends.engine.engine import Engine
from llmdo.backends.engine.recall import Recall
from llmdo.backends.engine.settings import SAME_MESSAGE, CallSettings
from llmdo.backends.errors import (
    BudgetSpent,
    ContextOverflow,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    QuotaExhausted,
    Retryable,
    StopRun,
    Unauthorized,
)
from llmdo.backends.limits.retry import set_instant
from llmdo.backends.limits.sizes import DEFAULT_MAX_TOKENS
from llmdo.backends.responses import ChatResponse, StreamChunk
from llmdo.backends.usage import Usage
from llmdo.storage.chat.log import ChatLog, mark_name
from llmdo.storage.chat.records import ChatMessage
from llmdo.storage.errors import AccessDenied, QueueError, StorageUnavailable
from llmdo.transforms.chat import answers as chat_answers
from llmdo.transforms.chat import conversation
from llmdo.transforms.chat import lasting_engine as chat_engine
from llmdo.transforms.chat.answers import Answers
from llmdo.transforms.chat.conversations import (
    BLOCKING_THREADS,
    ChatLoop,
    Conversations,
    InWork,
    close_conversations,
    open_conversations,
)
from llmdo.transforms.chat.elements import Answered, ChatDefaults, ConversationSettings, WaitingMessage
from llmdo.transforms.chat.events import response_id
from llmdo.transforms.chat.lasting_engine import LastingEngine
from llmdo.transforms.chat.replies import BURST, Replies
from llmdo.transforms.run_state import RunAsleep
from tests.fakes.clocks import Clock
from tests.fakes.ledger import MemoryLedger
from tests.memory_store import MemoryStore
from tests.states import run_state

SOON = 60.0  # seconds until a test gives up waiting
PREFIX = "chat/"


class Store(MemoryStore):
    """In memory, for many threads; ``script(name, key)`` is asked before each call, and may raise."""

    def __init__(self):
        super().__init__()
        self.lock = threading.RLock()
        self.script = lambda name, key: None

    def view(self, script):
        """The same objects, by another process's connection."""
        other = Store()
        other.lock, other._objects, other.script = self.lock, self._objects, script
        return other


def locked(name):
    plain = getattr(MemoryStore, name)

    def call(self, key, *args):
        self.script(name, key)
        with self.lock:
            found = plain(self, key, *args)
            return iter(list(found)) if name == "list" else found

    return call


for _name in ("stat", "read", "put", "put_if_absent", "put_if_match", "delete", "list"):
    setattr(Store, _name, locked(_name))


def until_open(gate):
    """A script for Provider: no call ends before a thread opens the gate."""

    async def script(request, calls):
        while not gate.is_set():  # noqa: ASYNC110 - a thread opens it, not the loop
            await asyncio.sleep(0.005)

    return script


class Provider:
    """Stands for a provider: ``script(request, calls of this message so far)`` may raise, answer or be awaited."""

    name = "fake"

    def __init__(self, script=lambda request, calls: None):
        self.script = script
        self.calls = Counter()
        self.requests = []
        self.now = self.most = self.cut = 0

    async def _said(self, request):
        self.requests.append(request)
        self.calls[request.request_id] += 1
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            said = self.script(request, self.calls[request.request_id])
            said = await said if asyncio.iscoroutine(said) else said
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            self.cut += 1
            raise
        finally:
            self.now -= 1
        return said

    async def execute(self, request):
        said = await self._said(request)
        if isinstance(said, ChatResponse):
            return said
        return ChatResponse(said or f"re: {request.messages[-1].content}", "stop", Usage(3, 2), "fake-1")

    async def execute_stream(self, request):
        yield StreamChunk("start")
        for word in "one two three".split():
            yield StreamChunk("content", f"{word} ")
            await self._said(request)
        yield StreamChunk("metadata", details={"model": "fake-2", "warnings": ("odd",), "reasoning": "hm"})
        yield StreamChunk("done", finish_reason="stop", usage=Usage(3, 2))

    async def aclose(self):
        pass


class Queue:
    """Stands for the reply queue; ``error`` is raised as long as it is set."""

    def __init__(self):
        self.events = []
        self.pushes = 0
        self.error = None

    def push_many(self, events):
        self.pushes += 1
        if self.error:
            raise self.error
        self.events += events

    def named(self, name):
        return [event["args"] for event in list(self.events) if event["name"] == f"v1.LLMResponse{name}"]

    @property
    def received(self):
        return {args["responseToMessageId"]: args for args in self.named("Received")}


class Rig:
    """One process's conversations on a store, with a fake provider and a fake queue."""

    def __init__(self, store, provider, queue=None, run_id="run-1", ledger=None, **fields):
        self.name = f"rig {id(self)}"
        self.over = []
        self.counted = []
        self.engines = []
        self.dones = defaultdict(list)
        self.changed = threading.Condition()
        self.log = ChatLog(store, PREFIX)
        names = ("system", "parameters", "context_tokens")
        defaults = ChatDefaults("openai/fake", **{name: fields.pop(name) for name in names if name in fields})
        replies = (
            Replies(queue.push_many, fields.pop("every_s", 0.0), fields.pop("patience_s", 20.0)) if queue else None
        )

        def open_engine():
            if not self.engines or not self.engines[-1].usable:
                recall = None if ledger is None else Recall(ledger, SAME_MESSAGE)
                self.engines.append(Engine(CallSettings(window, fixed=True, gate=gate), lambda _: provider, recall))
            return self.engines[-1]

        window, gate = fields.pop("window", 256), fields.pop("gate", lambda: None)
        answers = Answers(
            defaults,
            LastingEngine(open_engine, window),
            replies=replies,
            deltas=replies.tell if fields.pop("deltas", False) else None,
            stops=fields.pop("stops", False),
            stopping=fields.pop("stopping", lambda: False),
        )
        fields = {"look_again_s": 0.02, "linger_s": 0.05} | fields
        settings = ConversationSettings(run_id, counted=self.counted.append, over=self.over.append, **fields)
        state = run_state(run_id)
        self.loop = state.shared(ChatLoop, ChatLoop, name=self.name)
        self.conversations = state.shared(
            Conversations, lambda: Conversations(self.log, answers, replies, settings, self.loop), name=self.name
        )

    def submit(self, *messages, accepted=False):
        for message in messages:
            self.conversations.submit(WaitingMessage(message, accepted), self._done)

    def say(self, *messages):
        """Logs all, then submits all."""
        for message in messages:
            self.log.add(message)
        self.submit(*messages)

    def wait(self, count):
        """What became of the messages, once ``count`` are done."""
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.dones) >= count, SOON), f"{len(self.dones)} of {count}"
            return {key[1]: found[0] for key, found in self.dones.items()}

    def _done(self, answered):
        with self.changed:
            self.dones[answered.conversation, answered.message_id].append(answered)
            self.changed.notify_all()

    def close(self):
        for engine in self.engines:
            engine.close()
        self.conversations.close()
        self.loop.close()


@pytest.fixture
def rigs():
    opened = []

    def open_rig(*args, **kwargs):
        opened.append(Rig(*args, **kwargs))
        return opened[-1]

    set_instant(True)
    yield open_rig
    set_instant(False)
    for rig in opened:
        rig.close()


@pytest.fixture
def store():
    return Store()


@pytest.fixture
def clock(monkeypatch):
    """The time by which an engine is replaced."""
    clock = Clock(time.time())
    monkeypatch.setattr(chat_engine, "time", types.SimpleNamespace(time=clock))
    return clock


def message(identity="m1", conversation="c1", created=None, text=None, role="user"):
    number = int(identity.lstrip("m") or 0) if identity.lstrip("m").isdecimal() else 0
    return ChatMessage(
        event={"name": "v1.ChatMessageSent"},
        id=identity,
        conversation=conversation,
        text=f"say {identity}" if text is None else text,
        role=role,
        created=float(number if created is None else created),
        arrived=100.0,
    )


def rig_wait_all(rig, said):
    """Outcomes by conversation and message, once all are done."""
    rig.wait(len({(one.conversation, one.id) for one in said}))
    return {key: found[0].outcome for key, found in rig.dones.items()}


def until(condition):
    end = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


def marks(store):
    return [info.key for info in store.list(f"{PREFIX}_open/")]


def logged(store, conversation="c1"):
    return ChatLog(store, PREFIX).conversation(conversation)


def histories(requests):
    """Message → the texts that its last call had before it."""
    return {one.request_id: [turn.content for turn in one.messages[:-1]] for one in requests}


def test_a_message_is_answered_logged_pushed_and_its_mark_removed(rigs, store):
    provider, queue = Provider(), Queue()
    rig = rigs(store, provider, queue, system="be kind", parameters={"temperature": 0.7})
    rig.say(message())
    assert rig.wait(1) == {"m1": Answered("c1", "m1", "answered")}
    (request,) = provider.requests
    assert [(turn.role, turn.content) for turn in request.messages] == [("system", "be kind"), ("user", "say m1")]
    assert (request.model, request.parameters, request.request_id) == ("fake", {"temperature": 0.7}, "c1/m1")
    assert [event["name"] for event in queue.events] == [
        f"v1.LLMResponse{name}" for name in ("Started", "Received", "Completed")
    ]
    received = queue.received["m1"]
    assert (received["id"], received["message"], received["modelId"]) == (response_id("m1"), "re: say m1", "fake-1")
    assert received["llmMetadata"]["usage"]["inputTokens"] == 3
    (found,) = rig.log.find("m1", "c1")
    assert (found.answer.events, found.open) == (tuple(queue.events[1:]), False)
    assert [stage for stage, _ in found.trace.stages] == ["pushed"]
    stages = list(found.answer.trace)
    assert stages == ["received", "queued", "begun", "called", "answered"]
    times = list(found.answer.trace.values())[1:]
    assert times == sorted(times)
    assert rig.counted == [found.answer]


def test_a_conversation_is_let_go_when_nothing_comes_for_a_while(rigs, store):
    rig = rigs(store, Provider())
    rig.say(message())
    rig.wait(1)
    owner = f"{PREFIX}c1/_owner.json"
    until(lambda: owner not in [info.key for info in store.list(PREFIX)])
    until(lambda: rig.conversations.open == 0)
    rig.say(message("m2"))
    assert rig.wait(2)["m2"].outcome == "answered"


def test_histories_are_the_log_before_the_message_whatever_the_order_of_coming(rigs, store):
    def script(request, calls):
        return asyncio.sleep(random.random() / 200, f"re: {request.messages[-1].content}")

    provider, queue = Provider(script), Queue()
    rig = rigs(store, provider, queue)
    said = [message(f"m{n}", f"c{c}", text=f"{c}.{n}") for c in range(12) for n in range(1, 9)]
    random.shuffle(said)
    rig.say(*said)
    for again in random.sample(said, 20):
        rig.submit(again)
    found = rig_wait_all(rig, said)
    assert set(found.values()) == {"answered"}
    assert set(provider.calls.values()) == {1}
    for c in range(12):
        conversation = logged(store, f"c{c}")
        texts = []
        for n, one in enumerate(conversation.messages, 1):
            assert histories(provider.requests)[f"c{c}/{one.id}"] == texts
            assert conversation.answers[one.id].history == tuple(f"m{i}" for i in range(1, n))
            texts += [one.text, f"re: {one.text}"]
    until(lambda: marks(store) == [])
    ids = Counter((args["conversationId"], args["id"]) for args in queue.named("Received"))
    assert set(ids.values()) == {1}
    assert len(ids) == len(said)


def test_256_conversations_go_side_by_side_and_a_slow_one_holds_up_no_other(rigs, store):
    gate = threading.Event()

    async def script(request, calls):
        slow = request.request_id == "c0/m1"
        while slow and not gate.is_set():  # noqa: ASYNC110 - a thread opens it, not the loop
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)

    provider = Provider(script)
    rig = rigs(store, provider)
    said = [message(f"m{n}", f"c{c}") for c in range(256) for n in (1, 2)]
    for one in said:
        rig.log.add(one)
    rig.submit(*said)
    until(lambda: len(rig.dones) == 510)
    assert provider.most > 200
    assert rig.conversations.open == 1
    gate.set()
    assert set(rig_wait_all(rig, said).values()) == {"answered"}


def test_while_the_model_answers_no_thread_is_held(rigs, store):
    gate = threading.Event()
    script = until_open(gate)
    rig = rigs(store, provider := Provider(script))
    said = [message("m1", f"c{c}") for c in range(200)]
    rig.say(*said)
    until(lambda: provider.now == 200)
    assert provider.now > BLOCKING_THREADS
    rig.say(message("m1", "c200"))  # which is read and taken by a thread
    until(lambda: provider.now == 201)
    gate.set()
    rig.wait(201)


def test_the_hundred_and_first_that_waits_is_told_so_at_once(rigs, store):
    gate = threading.Event()
    script = until_open(gate)
    provider, queue = Provider(script), Queue()
    rig = rigs(store, provider, queue)
    rig.say(message("m1"))
    until(lambda: provider.now == 1)
    rig.say(*(message(f"m{n}") for n in range(2, 104)))
    found = rig.wait(2)
    assert {identity: one.outcome for identity, one in found.items()} == {"m102": "failed", "m103": "failed"}
    until(lambda: "m103" in queue.received)
    assert queue.received["m103"]["modelId"] == "error"
    assert queue.received["m103"]["metadata"]["source"] == "queue-overflow-error"
    gate.set()
    found = rig.wait(103)
    assert Counter(one.outcome for one in found.values()) == {"answered": 101, "failed": 2}


def test_messages_that_were_accepted_before_wait_however_many_they_are(rigs, store):
    gate = threading.Event()
    script = until_open(gate)
    rig = rigs(store, provider := Provider(script))
    left = [message(f"m{n}") for n in range(1, 131)]
    for one in left:
        rig.log.add(one)
    rig.submit(*left, accepted=True)
    until(lambda: provider.now == 1)
    rig.say(message("m131"))  # which is new, and finds too many waiting
    assert rig.wait(1)["m131"].outcome == "failed"
    gate.set()
    found = rig.wait(131)
    assert Counter(one.outcome for one in found.values()) == {"answered": 130, "failed": 1}


def test_a_message_that_is_submitted_again_while_it_is_in_work_is_answered_once_and_all_are_told(rigs, store):
    gate = threading.Event()
    script = until_open(gate)
    provider = Provider(script)
    rig = rigs(store, provider)
    rig.say(message())
    until(lambda: provider.now == 1)
    assert mark_name(message()) in InWork(run_state(), rig.name)
    assert open_conversations(run_state()) == 1
    rig.submit(message(), message())
    gate.set()
    until(lambda: len(rig.dones["c1", "m1"]) == 3)
    assert provider.calls == {"c1/m1": 1}
    assert mark_name(message()) not in InWork(run_state(), rig.name)


def test_what_has_an_answer_whose_push_is_open_is_pushed_again_and_what_is_pushed_is_not(rigs, store):
    provider, queue = Provider(), Queue()
    queue.error = QueueError("no reply")
    first = rigs(store, provider, queue, patience_s=0.0)
    first.say(message())
    assert first.wait(1) == {"m1": Answered("c1", "m1", "answered")}
    first.close()
    assert marks(store) == [f"{PREFIX}_open/c1/m1.json"]
    queue.error = None
    second = rigs(store, provider, queue, run_id="run-2")
    (left,) = second.log.open_messages()
    second.submit(left)
    assert second.wait(1) == {"m1": Answered("c1", "m1", "answered")}
    assert [event["name"] for event in queue.events] == ["v1.LLMResponseReceived", "v1.LLMResponseCompleted"]
    assert marks(store) == []
    assert second.counted == []
    second.dones.clear()
    second.submit(message())
    assert second.wait(1) == {"m1": Answered("c1", "m1", "answered")}
    assert len(queue.events) == 2
    assert provider.calls == {"c1/m1": 1}


def test_a_queue_that_fails_for_a_while_loses_nothing_and_holds_up_no_turn(rigs, store, monkeypatch):
    monkeypatch.setattr("llmdo.transforms.chat.replies._LONGEST_WAIT_S", 0.05)
    provider, queue = Provider(), Queue()
    queue.error = QueueError("overloaded", 503)
    rig = rigs(store, provider, queue)
    said = [message(f"m{n}", f"c{c}") for c in range(5) for n in range(1, 5)]
    rig.say(*said)
    until(lambda: len(provider.requests) == 20)
    assert rig.dones == {}
    assert len(marks(store)) == 20
    rig.submit(*said)  # as a sweep of the log might
    time.sleep(0.05)
    queue.error = None
    assert set(rig_wait_all(rig, said).values()) == {"answered"}
    until(lambda: marks(store) == [])
    assert len(queue.named("Received")) == 20


def test_many_answers_go_out_with_few_pushes(rigs, store):
    queue = Queue()
    rig = rigs(store, Provider(), queue, every_s=0.1)
    began = time.monotonic()
    rig.say(*(message("m1", f"c{c}") for c in range(150)))
    until(lambda: len(rig.dones) == 150)
    took_s = time.monotonic() - began
    assert len(queue.received) == 1  # all of one id
    assert len(queue.events) == 450
    assert queue.pushes <= BURST + took_s / 0.1 + 1


@pytest.mark.parametrize(
    ("error", "source"),
    [
        (InvalidRequest("does not fit", status=400), "input-validation-error"),
        (Overloaded("busy", status=503), "resource-limit-exceeded"),
        (ValueError("a bug"), "error"),
    ],
)
def test_an_error_of_the_model_is_an_answer_and_the_conversation_goes_on(rigs, store, error, source):
    def script(request, calls):
        if request.request_id == "c1/m1":
            raise error

    provider, queue = Provider(script), Queue()
    rig = rigs(store, provider, queue)
    rig.say(message("m1"), message("m2"))
    assert [found.outcome for found in rig.wait(2).values()] == ["failed", "answered"]
    args = queue.received["m1"]
    assert (args["modelId"], args["metadata"]["source"]) == ("error", source)
    assert logged(store).answers["m1"].failed
    assert histories(provider.requests)["c1/m2"] == ["say m1"]
    assert [args["success"] for args in queue.named("Completed")] == [False, True]


def test_tries_are_counted_and_the_trace_tells_of_them(rigs, store):
    def script(request, calls):
        if calls < 3:
            raise Overloaded("busy", status=503)

    rig = rigs(store, Provider(script))
    rig.say(message())
    rig.wait(1)
    answer = logged(store).answers["m1"]
    assert answer.attempts == 3
    assert list(answer.trace) == ["received", "queued", "begun", "called", "retried", "answered"]
    assert answer.trace["called"] <= answer.trace["retried"] <= answer.trace["answered"]


@pytest.mark.parametrize("late_s", [0.0, 0.5])
def test_the_trace_tells_when_the_first_and_the_last_call_began(rigs, store, monkeypatch, late_s):
    """Also where the conversations' loop is too busy to learn at once of a call's end."""
    began, learn = [], chat_engine._set
    monkeypatch.setattr(chat_engine, "_set", lambda *ended: (time.sleep(late_s), learn(*ended)))

    async def script(request, calls):
        began.append(time.time())
        await asyncio.sleep(0.3)
        if calls < 3:
            raise Retryable("no JSON")

    rig = rigs(store, Provider(script))
    rig.say(message())
    rig.wait(1)
    answer = logged(store).answers["m1"]
    assert answer.trace["begun"] <= answer.trace["called"] < began[1] - 0.1
    assert began[1] + 0.2 < answer.trace["retried"] < answer.trace["answered"] - 0.2
    assert 200 < answer.response["metadata"]["latencyMs"] < 1000 * (answer.trace["answered"] - began[0]) - 400


def test_a_call_that_waits_for_its_turn_is_not_yet_called(rigs, store):
    ended = []

    async def script(request, calls):
        while not ended and not rig.engines[0].demand().waiting:  # noqa: ASYNC110 - the other message's thread
            await asyncio.sleep(0.005)
        if not ended:
            await asyncio.sleep(0.5)
        ended.append(time.time())

    rig = rigs(store, Provider(script), window=1)
    rig.say(message("m1"), message("m2", "c2"))
    rig.wait(2)
    first, second = sorted(
        (logged(store, name).answers[one] for name, one in (("c1", "m1"), ("c2", "m2"))),
        key=lambda answer: answer.trace["answered"],
    )
    assert first.trace["called"] < ended[0] - 0.4
    assert second.trace["begun"] < ended[0] - 0.4
    assert second.trace["called"] > ended[0] - 0.01  # the engine's clock shows whole ms
    # Without the half second in which it waited.
    assert second.response["metadata"]["latencyMs"] < 1000 * (second.trace["answered"] - ended[0]) + 100


def test_what_was_never_called_has_no_such_stage(rigs, store):
    def script(request, calls):
        raise QuotaExhausted("used up")

    rig = rigs(store, provider := Provider(script))
    rig.say(message("m1"), message("m2"), message("m3", text=" "))
    assert {one.outcome for one in rig.wait(3).values()} == {"failed"}
    answers = logged(store).answers
    assert len(provider.requests) == 1
    assert ["called" in answers[name].trace for name in ("m1", "m2", "m3")] == [True, False, False]


@pytest.mark.parametrize(
    ("said", "source"),
    [
        (ChatResponse(None, "stop", Usage(), "m"), "error"),
        (ChatResponse(" ", "stop", Usage(), "m"), "error"),
        (ChatResponse(None, "tool_calls", Usage(), "m", tool_calls=({"id": "1"},)), "tool-error"),
        (ChatResponse("x" * 130_000, "stop", Usage(), "m"), "error"),
    ],
)
def test_an_answer_without_text_or_too_long_for_a_queue_says_so(rigs, store, said, source):
    queue = Queue()
    rig = rigs(store, Provider(lambda request, calls: said), queue)
    rig.say(message())
    assert rig.wait(1)["m1"].outcome == "failed"
    assert queue.received["m1"]["metadata"]["source"] == source


def test_an_empty_message_is_refused_without_a_call(rigs, store):
    provider, queue = Provider(), Queue()
    rig = rigs(store, provider, queue)
    rig.say(message(text=" \n"))
    assert rig.wait(1)["m1"].outcome == "failed"
    assert queue.received["m1"]["metadata"]["source"] == "input-validation-error"
    assert provider.requests == []


def test_a_conversation_that_overflows_the_model_is_shortened_once(rigs, store):
    def script(request, calls):
        if len(request.messages) > 3:
            raise ContextOverflow("too long")
        return f"{request.messages[-1].content[:5]} {'y' * 2000}"

    provider = Provider(script)
    rig = rigs(store, provider, parameters={"max_tokens": 100})
    rig.say(*(message(f"m{n}", text=f"m{n} " + "x" * 2000) for n in (1, 2, 3)))
    found = rig.wait(3)
    assert [one.outcome for one in found.values()] == ["answered"] * 3
    assert provider.calls == {"c1/m1": 1, "c1/m2": 1, "c1/m3": 2}
    answer = logged(store).answers["m3"]
    assert (answer.history, answer.attempts) == (("m2",), 2)
    assert "left out" in answer.response["metadata"]["warnings"][0]


@pytest.mark.parametrize(
    "limits", [{"max_tokens": 4000, "max_completion_tokens": 100}, {"max_tokens": 100, "max_completion_tokens": 4000}]
)
def test_the_lower_of_two_limits_says_how_much_of_the_context_is_the_answers(rigs, store, limits):
    rig = rigs(store, Provider(), parameters=limits, context_tokens=1000)
    rig.say(message("m1"), message("m2"))
    rig.wait(2)
    assert logged(store).answers["m2"].history == ("m1",)


def test_a_limit_that_is_none_takes_nothing_of_the_context(rigs, store):
    rig = rigs(store, Provider(), parameters={"max_tokens": True}, context_tokens=DEFAULT_MAX_TOKENS + 1)
    rig.say(message("m1"), message("m2"))
    rig.wait(2)
    assert logged(store).answers["m2"].history == ()


def test_a_message_that_does_not_fit_at_all_is_told_so(rigs, store):
    def script(request, calls):
        raise ContextOverflow("too long")

    queue = Queue()
    rig = rigs(store, provider := Provider(script), queue)
    rig.say(message())
    assert rig.wait(1)["m1"].outcome == "failed"
    assert queue.received["m1"]["metadata"]["source"] == "input-validation-error"
    assert provider.calls == {"c1/m1": 2}


@pytest.mark.parametrize("error", [QuotaExhausted("used"), Unauthorized("wrong"), BudgetSpent("spent"), StopRun("no")])
def test_an_error_that_stops_the_engine_is_an_answer_and_the_engine_is_replaced_later(rigs, store, clock, error):
    def script(request, calls):
        if request.messages[-1].content == "say m1":
            raise error

    provider = Provider(script)
    rig = rigs(store, provider, Queue())
    rig.say(message("m1"))
    rig.wait(1)
    rig.say(message("m2"))
    assert [one.outcome for one in rig.wait(2).values()] == ["failed", "failed"]
    assert len(provider.requests) == 1
    clock.now += chat_engine.STOP_S + 1
    rig.say(message("m3"))
    assert rig.wait(3)["m3"].outcome == "answered"
    assert len(rig.engines) == 2
    assert rig.over == []


@pytest.mark.parametrize(
    "error", [QuotaExhausted("used"), Unauthorized("wrong"), BudgetSpent("spent"), ModelNotFound("no such model")]
)
def test_an_error_that_stops_all_calls_is_no_answer_where_the_run_can_be_begun_again(rigs, store, error):
    def script(request, calls):
        if request.request_id != "c1/m1":
            raise error

    queue = Queue()
    rig = rigs(store, provider := Provider(script), queue, stops=True)
    rig.say(message("m1"))
    rig.wait(1)
    rig.say(message("m2"), message("m3"), message("m4", "c2"))
    assert [one.outcome for one in rig.wait(4).values()] == ["answered", "left", "left", "left"]
    assert [type(each) for each in rig.over] == [type(error)]
    assert list(queue.received) == ["m1"]
    assert len(marks(store)) == 3
    rig.close()
    again = rigs(store, provider, run_id="run-2", stops=True)
    provider.script = lambda request, calls: None
    again.submit(*again.log.open_messages(), accepted=True)
    assert {one.outcome for one in again.wait(3).values()} == {"answered"}


def test_an_error_about_one_message_is_its_answer_in_any_run(rigs, store):
    def script(request, calls):
        raise InvalidRequest("does not fit")

    rig = rigs(store, Provider(script), stops=True)
    rig.say(message())
    assert (rig.wait(1)["m1"].outcome, rig.over) == ("failed", [])


def test_an_engine_is_not_replaced_before_the_error_says_so_nor_while_its_calls_run(rigs, store, clock, monkeypatch):
    gate = threading.Event()

    async def script(request, calls):
        if request.request_id == "c1/m1":
            raise QuotaExhausted("used", until=clock.now + 60)
        while request.request_id == "slow/m1" and not gate.is_set():  # noqa: ASYNC110 - a thread opens it
            await asyncio.sleep(0.005)

    monkeypatch.setattr(chat_engine, "STOP_S", 0.0)
    provider = Provider(script)
    rig = rigs(store, provider)
    rig.say(message("m1", "slow"))
    until(lambda: provider.now == 1)
    rig.say(message("m1"))
    rig.wait(1)
    rig.say(message("m2"))
    rig.wait(2)
    clock.now += 61
    rig.say(message("m3"))
    assert [one.outcome for one in rig.wait(3).values()] == ["failed"] * 3
    gate.set()
    until(lambda: ("slow", "m1") in rig.dones)
    rig.say(message("m4"))
    until(lambda: ("c1", "m4") in rig.dones)
    outcomes = {key: found[0].outcome for key, found in rig.dones.items()}
    assert (outcomes["slow", "m1"], outcomes["c1", "m4"], len(rig.engines)) == ("answered", "answered", 2)


def test_an_engine_is_not_replaced_before_the_time_that_the_error_names(rigs, store, monkeypatch):
    def script(request, calls):
        if request.request_id == "c1/m1":
            raise QuotaExhausted("used", until=time.time() + 3_600.0)

    monkeypatch.setattr(chat_engine, "STOP_S", 0.0)
    rig = rigs(store, Provider(script))
    rig.say(message("m1"), message("m2"))
    assert {one.outcome for one in rig.wait(2).values()} == {"failed"}
    assert len(rig.engines) == 1


def test_an_engine_that_was_stopped_for_long_is_replaced_now_and_then(rigs, store, clock, monkeypatch):
    def script(request, calls):
        if request.request_id in ("c1/m1", "c1/m3"):
            raise QuotaExhausted("used", until=clock.now + 3_600.0)

    monkeypatch.setattr(chat_engine, "STOP_S", 0.0)
    provider = Provider(script)
    rig = rigs(store, provider)
    outcomes = []
    for n, longer in enumerate((False, False, True, False, True), 1):
        clock.now += longer * (chat_engine.LONGEST_STOP_S + 1)
        rig.say(message(f"m{n}"))
        outcomes.append(rig.wait(n)[f"m{n}"].outcome)
    assert outcomes == ["failed", "failed", "failed", "failed", "answered"]
    assert list(provider.calls) == ["c1/m1", "c1/m3", "c1/m5"]


def test_a_stop_ends_what_only_waits(rigs, store):
    queue = Queue()
    queue.error = QueueError("full", 429, 10251)  # tried again after a minute
    rig = rigs(store, Provider(), queue, linger_s=60.0, patience_s=100.0)
    other = rigs(store, Provider(), linger_s=60.0)
    rig.say(message("m1"))
    other.say(message("m1", "c2"))
    other.wait(1)
    until(lambda: queue.pushes == 2)
    close_conversations(run_state())
    assert rig.wait(1) == {"m1": Answered("c1", "m1", "answered")}
    assert not rig.loop._thread.is_alive()
    assert not other.loop._thread.is_alive()


def test_a_stop_lets_calls_under_way_end_and_leaves_the_rest_to_the_next_run(rigs, store):
    gate, stopping = threading.Event(), threading.Event()
    script = until_open(gate)
    provider, queue = Provider(script), Queue()
    rig = rigs(store, provider, queue, window=3, stopping=stopping.is_set)
    rig.say(*(message(f"m{n}", f"c{c}") for c in range(5) for n in (1, 2)))
    until(lambda: provider.now == 3)
    stopping.set()
    rig.engines[0].stop(StopRun("the run is being stopped"))
    rig.conversations.stop()
    until(lambda: len(rig.dones) == 4)  # of the conversations that have no call under way
    gate.set()
    until(lambda: len(rig.dones) == 10)
    assert Counter(found[0].outcome for found in rig.dones.values()) == {"answered": 3, "left": 7}
    assert len(queue.named("Received")) == 3
    assert len(marks(store)) == 7
    rig.conversations.close()
    assert not any(info.key.endswith("_owner.json") for info in store.list(PREFIX))
    assert rig.conversations._ended.is_set()
    rig.submit(message("late"))
    until(lambda: ("c1", "late") in rig.dones)
    assert rig.dones["c1", "late"][0].outcome == "left"


def test_a_closed_engine_is_no_answer(rigs, store):
    async def script(request, calls):
        await asyncio.sleep(SOON)

    rig = rigs(store, provider := Provider(script), queue := Queue())
    rig.say(message("m1"), message("m2"))
    until(lambda: provider.now == 1)
    rig.engines[0].close()
    assert [one.outcome for one in rig.wait(2).values()] == ["left", "left"]
    assert queue.received == {}
    assert len(marks(store)) == 2
    close_conversations(run_state())
    assert not rig.loop._thread.is_alive()


def test_a_run_that_is_asleep_answers_nothing_and_ends(rigs, store):
    rig = rigs(store, provider := Provider(), gate=lambda: RunAsleep("asleep"))
    rig.say(message())
    assert rig.wait(1)["m1"].outcome == "left"
    assert [type(error) for error in rig.over] == [RunAsleep]
    assert provider.requests == []
    assert len(marks(store)) == 1


def test_messages_from_before_a_time_are_left_alone(rigs, store):
    rig = rigs(store, provider := Provider(), since=5.0)
    rig.say(message("m4"), message("m5"))
    found = rig.wait(2)
    assert (found["m4"].outcome, found["m5"].outcome) == ("left", "answered")
    assert list(provider.calls) == ["c1/m5"]


def test_an_open_message_that_nobody_has_brought_yet_is_answered_in_its_place(rigs, store):
    rig = rigs(store, provider := Provider())
    unwanted, brought_later, brought = message("m1"), message("m2"), message("m3")
    rig.log.add(unwanted, wanted=False)
    rig.log.add(brought_later)
    rig.say(brought)
    rig.wait(1)
    assert list(provider.calls) == ["c1/m2", "c1/m3"]
    assert histories(provider.requests)["c1/m3"] == ["say m1", "say m2", "re: say m2"]
    rig.submit(brought_later)
    assert rig.wait(2)["m2"].outcome == "answered"
    assert len(provider.requests) == 2


def test_a_log_that_cannot_be_reached_for_a_while_costs_no_second_call(rigs, store, monkeypatch):
    monkeypatch.setattr(conversation, "_FIRST_WAIT_S", 0.01)
    failing = random.Random(3)

    def script(name, key):
        if name in ("put_if_absent", "list", "put_if_match") and failing.random() < 0.4:
            raise StorageUnavailable("out")

    provider = Provider()
    rig = rigs(store.view(script), provider)
    said = [message(f"m{n}", f"c{c}") for c in range(4) for n in range(1, 5)]
    log = ChatLog(store, PREFIX)
    for one in said:
        log.add(one)
    rig.submit(*said)
    assert set(rig_wait_all(rig, said).values()) == {"answered"}
    assert set(provider.calls.values()) == {1}


def test_a_log_that_may_not_be_used_ends_the_run(rigs, store):
    def script(name, key):
        if name == "list":
            raise AccessDenied("wrong key")

    log = ChatLog(store, PREFIX)
    log.add(message())
    rig = rigs(store.view(script), Provider())
    rig.submit(message())
    assert rig.wait(1)["m1"].outcome == "left"
    assert [type(error) for error in rig.over] == [AccessDenied]


def test_a_conversation_that_cannot_be_read_is_told_so_and_others_go_on(rigs, store):
    provider, queue = Provider(), Queue()
    rig = rigs(store, provider, queue)
    store.put(f"{PREFIX}c1/messages/m0.json", b"{broken")
    rig.say(message("m1"), message("m1", "c2"))
    found = rig_wait_all(rig, [message("m1"), message("m1", "c2")])
    assert found == {("c1", "m1"): "failed", ("c2", "m1"): "answered"}
    assert [args["metadata"]["source"] for args in queue.named("Received") if args["conversationId"] == "c1"] == [
        "context-load-error"
    ]


def test_a_surprise_in_one_conversation_leaves_its_message_open_and_ends_no_other(rigs, store):
    def script(name, key):
        if "c1/answers/m1" in key and name == "put_if_absent":
            raise ZeroDivisionError("a bug")

    rig = rigs(store.view(script), Provider())
    rig.say(message("m1"), message("m2"), message("m1", "c2"))
    found = rig_wait_all(rig, [message("m1"), message("m2"), message("m1", "c2")])
    assert found == {("c1", "m1"): "left", ("c1", "m2"): "answered", ("c2", "m1"): "answered"}
    assert marks(store) == [f"{PREFIX}_open/c1/m1.json"]


def test_a_conversation_that_cannot_be_let_go_keeps_nobody_waiting_for_its_messages(rigs, store):
    def script(name, key):
        if name == "delete" and "_owner" in key:
            raise RuntimeError("nobody expected this")

    called, gate = threading.Event(), threading.Event()

    async def slow(request, calls):
        called.set()
        while not gate.is_set():  # noqa: ASYNC110 - a thread opens it, not the loop
            await asyncio.sleep(0.005)

    rig = rigs(store.view(script), Provider(slow))
    rig.say(*(message(name) for name in ("m1", "m2", "m3")))
    assert called.wait(SOON)
    rig.conversations.stop()
    gate.set()
    assert {name: one.outcome for name, one in rig.wait(3).items()} == {"m1": "answered", "m2": "left", "m3": "left"}


def test_a_conversation_of_a_live_run_is_left_to_it_and_taken_over_when_it_dies(rigs, store):
    alive = threading.Event()
    alive.set()
    ChatLog(store, PREFIX).take("c1", "other", lambda run_id: True)
    rig = rigs(store, provider := Provider(), is_alive=lambda run_id: alive.is_set())
    other = ChatLog(store, PREFIX)
    rig.say(message("m1"), message("m2"))
    time.sleep(0.1)
    assert provider.requests == []
    answers = Rig(Store(), Provider())
    answers.say(message("m1"))
    answers.wait(1)
    other.answer(logged(answers.log._store).answers["m1"])
    answers.close()
    assert rig.wait(1) == {"m1": Answered("c1", "m1", "elsewhere")}
    alive.clear()
    assert rig.wait(2)["m2"].outcome == "answered"
    assert histories(provider.requests) == {"c1/m2": ["say m1", "re: say m1"]}


def test_two_that_take_each_other_for_dead_deliver_one_answer_and_the_loser_lets_go(rigs, store):
    gate, alive = threading.Event(), threading.Event()

    async def script(request, calls):
        while request.request_id == "c1/m1" and calls == 1 and not gate.is_set():  # noqa: ASYNC110 - a thread opens it
            await asyncio.sleep(0.005)
        return f"answer {calls} to {request.messages[-1].content}"

    provider, queue = Provider(script), Queue()
    one, two = (
        rigs(store, provider, queue, f"run-{n}", is_alive=lambda _: alive.is_set(), linger_s=60.0) for n in (1, 2)
    )
    one.say(message("m1"))
    until(lambda: provider.now == 1)
    two.submit(message("m1"))
    assert two.wait(1)["m1"].outcome == "answered"
    alive.set()
    two.log.take("c1", "run-2", lambda _: True)
    one.say(message("m2"))
    gate.set()
    assert one.wait(1) == {"m1": Answered("c1", "m1", "answered")}
    time.sleep(0.1)
    assert provider.calls == {"c1/m1": 2}
    two.submit(message("m2"))
    assert one.wait(2)["m2"].outcome == "elsewhere"
    assert two.wait(2)["m2"].outcome == "answered"
    assert marks(store) == []
    assert {args["message"] for args in queue.named("Received")} == {"answer 2 to say m1", "answer 1 to say m2"}
    assert (len(one.counted), len(two.counted)) == (0, 2)


def test_two_processes_on_one_log_answer_each_message_once_and_in_order(rigs, store):
    def script(request, calls):
        return asyncio.sleep(random.random() / 200, f"re: {request.messages[-1].content}")

    provider, queue = Provider(script), Queue()
    two = [rigs(store, provider, queue, run_id=f"run-{n}", is_alive=lambda run_id: True) for n in (1, 2)]
    said = [message(f"m{n}", f"c{c}", text=f"{c}.{n}") for c in range(8) for n in range(1, 11)]
    random.shuffle(said)
    for one in said:
        two[0].log.add(one)
    for one in said:
        random.choice(two).submit(one)
        if random.random() < 0.1:  # a duplicate
            random.choice(two).submit(one)
    until(lambda: len(two[0].dones.keys() | two[1].dones.keys()) == len(said) and marks(store) == [])
    assert set(provider.calls.values()) == {1}
    ids = Counter((args["conversationId"], args["responseToMessageId"]) for args in queue.named("Received"))
    assert (len(ids), set(ids.values())) == (len(said), {1})
    for c in range(8):
        conversation = logged(store, f"c{c}")
        texts = []
        for one in conversation.messages:
            assert histories(provider.requests)[f"c{c}/{one.id}"] == texts
            texts += [one.text, f"re: {one.text}"]


def test_kills_at_any_moment_cost_one_answer_each_and_the_calls_in_flight_at_most(rigs, store):
    """A kill: the store, the queue and the model are cut off from a process in the middle of what it does."""
    rng = random.Random(7)

    def slowly(request, calls):
        return asyncio.sleep(random.random() / 300, f"re: {request.messages[-1].content}")

    provider, queue, ledger = Provider(slowly), Queue(), MemoryLedger()
    said = [message(f"m{n}", f"c{c}", text=f"{c}.{n}") for c in range(10) for n in range(1, 9)]
    log = ChatLog(store, PREFIX)
    for one in said:
        log.add(one)
    kills = 0
    while marks(store):
        dead, left = threading.Event(), [rng.randrange(5, 120) if kills < 20 else 10**9]

        def script(name, key, dead=dead, left=left):
            left[0] -= 1
            if left[0] <= 0:
                dead.set()
            if dead.is_set():
                raise SystemError("killed")

        class Cut(Queue):
            def push_many(self, events, dead=dead):
                if dead.is_set():
                    raise SystemError("killed")
                queue.push_many(events)

        rig = rigs(store.view(script), provider, Cut(), f"run-{kills}", ledger, patience_s=0.0)
        waiting = list(log.open_messages())
        rng.shuffle(waiting)
        rig.submit(*waiting)
        until(lambda: dead.is_set() or not marks(store))  # noqa: B023 - it is called at once
        kills += dead.is_set()
        rig.close()
    assert kills >= 20
    assert sum(provider.calls.values()) <= len(said) + provider.cut + kills  # one may end in the moment of a kill
    ids = {(args["conversationId"], args["id"]) for args in queue.named("Received")}
    assert ids == {(one.conversation, response_id(one.id)) for one in said}
    texts_of = defaultdict(set)
    for args in queue.named("Received"):
        texts_of[args["conversationId"], args["responseToMessageId"]].add(args["message"])
    assert {len(texts) for texts in texts_of.values()} == {1}
    for c in range(10):
        conversation = logged(store, f"c{c}")
        assert [conversation.answers[one.id].text for one in conversation.messages] == [
            f"re: {c}.{n}" for n in range(1, 9)
        ]
        for n, one in enumerate(conversation.messages, 1):
            assert conversation.answers[one.id].history == tuple(f"m{i}" for i in range(1, n))


def test_an_answer_that_was_paid_for_is_found_in_the_ledger_although_the_history_has_changed(rigs, store):
    provider, ledger = Provider(), MemoryLedger()
    first = rigs(store, provider, ledger=ledger)
    first.say(message("m2"))
    first.wait(1)
    first.close()
    again = Store()
    second = rigs(again, provider, ledger=ledger, run_id="run-2")
    second.log.add(message("m1", role="assistant", text="late news"))
    second.say(message("m2"))
    assert second.wait(1)["m2"].outcome == "answered"
    assert len(provider.requests) == 1
    answer = logged(again).answers["m2"]
    assert (answer.attempts, answer.text) == (0, "re: say m2")
    assert list(answer.trace) == ["received", "queued", "begun", "recalled", "answered"]
    assert answer.response["metadata"]["latencyMs"] == 0


def test_the_text_goes_out_while_it_is_generated_in_numbered_pieces(rigs, store, monkeypatch):
    monkeypatch.setattr(chat_answers, "DELTAS_EVERY_S", 0.01)
    pieces = itertools.count(1)

    async def script(request, calls):
        piece = next(pieces)
        while len(queue.named("Delta")) < piece:  # noqa: ASYNC110 - another loop sends it
            await asyncio.sleep(0.005)
        if piece == 2:
            raise Overloaded("cut off", status=503)

    queue = Queue()
    rig = rigs(store, Provider(script), queue, deltas=True)
    rig.say(message())
    assert rig.wait(1)["m1"].outcome == "answered"
    deltas = queue.named("Delta")
    assert [(args["attempt"], args["number"], args["text"]) for args in deltas] == [
        (1, 0, "one "),
        (1, 1, "two "),
        (2, 0, "one "),
        (2, 1, "two "),
        (2, 2, "three "),
    ]
    assert {(args["id"], args["responseToMessageId"]) for args in deltas} == {(response_id("m1"), "m1")}
    received = queue.received["m1"]
    assert (received["message"], received["modelId"]) == ("one two three ", "fake-2")
    assert received["metadata"]["warnings"] == ["odd"]
    assert [event["name"].removeprefix("v1.LLMResponse") for event in queue.events] == [
        "Started",
        *["Delta"] * 5,
        "Received",
        "Completed",
    ]


def test_the_text_of_a_try_that_failed_does_not_go_out_with_the_next_ones(rigs, store, monkeypatch):
    monkeypatch.setattr(chat_answers, "DELTAS_EVERY_S", 60.0)
    tries = []

    def script(request, calls):
        tries.append(calls)
        if len(tries) == 2:
            raise Overloaded("cut off", status=503)

    queue = Queue()
    rig = rigs(store, Provider(script), queue, deltas=True)
    rig.say(message())
    rig.wait(1)
    assert [(args["attempt"], args["number"], args["text"]) for args in queue.named("Delta")] == [
        (2, 0, "one two three ")
    ]
