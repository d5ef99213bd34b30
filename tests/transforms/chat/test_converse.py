import asyncio
import threading
import time
import types
from collections import Counter
from functools import partial
from pathlib import Path

import apache_beam as beam
import pytest
from apache_beam.io.restriction_trackers import OffsetRange, OffsetRestrictionTracker
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing.test_pipeline import TestPipeline
from apache_beam.transforms.core import RestrictionProvider
from apache_beam.transforms.window import FixedWindows, TimestampedValue
from apache_beam.utils.timestamp import Duration
from apache_beam.utils.windowed_value import WindowedValue

from llmdo.backends.engine import registry
from llmdo.backends.engine.registry import close_engines
from llmdo.backends.engine.settings import SAME_MESSAGE, CallSettings
from llmdo.backends.errors import InvalidRequest, QuotaExhausted
from llmdo.backends.limits import retry
from llmdo.backends.responses import ChatResponse
from llmdo.backends.usage import Usage
from llmdo.runners.prism.binary import find_prism
from llmdo.runners.prism.runner import prism_arguments, running_prism
from llmdo.storage.chat.log import ChatLog
from llmdo.storage.chat.records import ChatMessage
from llmdo.storage.objects.local import LocalStore
from llmdo.storage.objects.store import Location
from llmdo.transforms.answers.ledger_settings import LedgerSettings
from llmdo.transforms.chat import converse, lasting_engine
from llmdo.transforms.chat.conversations import (
    BLOCKING_THREADS,
    Conversations,
    close_conversations,
    open_conversations,
)
from llmdo.transforms.chat.converse import ConversationDesk, Converse, conversations_of
from llmdo.transforms.chat.elements import Answered, ChatDefaults, WaitingMessage
from llmdo.transforms.run import Run
from tests.fakes.clocks import Clock
from tests.states import run_state

SOON = 60.0  # seconds until a test gives up waiting
# Module globals, since Beam pickles closures: what a step puts into a local list is never seen here.
FOUND = []
SENT = []


class Provider:
    """Stands for a provider: ``script(request)`` may raise, give a text or something to await."""

    name = "openai"

    def __init__(self):
        self.calls = {}
        self.script = lambda request: None

    async def execute(self, request):
        self.calls.setdefault(request.request_id, []).append(time.monotonic())
        said = self.script(request)
        said = await said if asyncio.iscoroutine(said) else said
        return ChatResponse(said or f"re: {request.messages[-1].content}", "stop", Usage(3, 2), "fake-1")

    async def aclose(self):
        pass


@pytest.fixture
def provider(monkeypatch):
    scripted = Provider()
    monkeypatch.setattr(registry, "connect", lambda name, gateway: scripted)
    retry.set_instant(True)
    FOUND.clear()
    SENT.clear()
    yield scripted
    retry.set_instant(False)
    close_engines()


def message(identity="m1", conversation="c1", created=None):
    return ChatMessage(
        event={"name": "v1.ChatMessageSent"},
        id=identity,
        conversation=conversation,
        text=f"say {identity}",
        role="user",
        created=float(identity.lstrip("m")) if created is None else created,
        arrived=100.0,
    )


def logged(folder, *messages):
    log = ChatLog(LocalStore(Path(folder)), "chat/")
    for one in messages:
        log.add(one)
    return log


def step(folder, run_id="run-1", **fields):
    run = Run(run_id, Location(str(folder), "chat/"))
    return Converse(ChatDefaults("openai/fake"), **{"calls": CallSettings(256), "run": run, **fields})


def kept(ledger):
    return CallSettings(256, kept=LedgerSettings(ledger, SAME_MESSAGE))


def until(condition):
    end = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


def collect(element):
    FOUND.append(element)


class CollectWindows(beam.DoFn):
    def process(self, found, window=beam.DoFn.WindowParam, timestamp=beam.DoFn.TimestampParam):
        FOUND.append((int(found.message_id.lstrip("m")), int(window.start), int(timestamp)))


def answer(folder, messages, **fields):
    with TestPipeline(runner="FnApiRunner") as pipeline:
        _ = (
            pipeline
            | beam.Create([WaitingMessage(one) for one in messages], reshuffle=False)
            | step(folder, **fields)
            | beam.Map(collect)
        )
    return {(found.conversation, found.message_id): found.outcome for found in FOUND}


def test_each_message_has_one_outcome_and_the_pipeline_ends_when_all_are_answered(provider, tmp_path):
    provider.script = lambda request: asyncio.sleep(0.01)
    said = [message(f"m{n}", f"c{c}") for c in range(6) for n in range(4, 0, -1)]
    log = logged(tmp_path, *said)
    found = answer(tmp_path, said)
    assert found == {(one.conversation, one.id): "answered" for one in said}
    assert len(FOUND) == len(said)
    assert [answer.text for answer in log.conversation("c3").answers.values()] == [f"re: say m{n}" for n in range(1, 5)]
    assert log.conversation("c3").answers["m4"].history == ("m1", "m2", "m3")
    counts = run_state().counts
    assert (counts.answered, counts.failed, counts.input_tokens, counts.output_tokens) == (24, 0, 72, 48)
    assert list(log.open_messages()) == []
    assert open_conversations(run_state()) == 0


def test_twenty_conversations_with_slow_calls_do_not_keep_another_one_waiting(provider, tmp_path):
    gate = threading.Event()

    async def script(request):
        while request.request_id != "quick/m1" and not gate.is_set():  # noqa: ASYNC110 - a thread opens it
            await asyncio.sleep(0.005)

    def done(answered):
        FOUND.append(answered.conversation)

    provider.script = script
    slow, quick = [message("m1", f"slow{n}") for n in range(20)], message("m1", "quick")
    logged(tmp_path, *slow, quick)
    conversations = converse.conversations_of(step(tmp_path))
    try:
        for one in slow:
            conversations.submit(WaitingMessage(one), done)
        until(lambda: len(provider.calls) == 20)
        conversations.submit(WaitingMessage(quick), done)
        until(lambda: FOUND == ["quick"])
    finally:
        gate.set()
    until(lambda: len(FOUND) == 21)
    assert FOUND[0] == "quick"


def test_a_failed_message_is_counted_and_the_others_go_on(provider, tmp_path):
    def script(request):
        if request.request_id == "c1/m1":
            raise InvalidRequest("does not fit")

    provider.script = script
    said = [message("m1"), message("m2")]
    logged(tmp_path, *said)
    assert answer(tmp_path, said) == {("c1", "m1"): "failed", ("c1", "m2"): "answered"}
    assert (run_state().counts.answered, run_state().counts.failed, run_state().stop_reason) == (1, 1, None)


def test_a_quota_that_is_used_up_does_not_stop_the_run(provider, tmp_path):
    def script(request):
        raise QuotaExhausted("used up", until=time.time() + 3600)

    provider.script = script
    said = [message("m1"), message("m2"), message("m1", "c2")]
    logged(tmp_path, *said)
    assert set(answer(tmp_path, said).values()) == {"failed"}
    assert run_state().stop_reason is None
    assert sum(map(len, provider.calls.values())) <= 2


def test_outcomes_keep_the_window_of_their_message(provider, tmp_path):
    said = [message(f"m{n}", f"c{n % 3}") for n in range(1, 31)]
    logged(tmp_path, *said)
    with TestPipeline(runner="FnApiRunner") as pipeline:
        _ = (
            pipeline
            | beam.Create([TimestampedValue(WaitingMessage(one), 10 * one.created) for one in said], reshuffle=False)
            | beam.WindowInto(FixedWindows(100))
            | step(tmp_path)
            | beam.ParDo(CollectWindows())
        )
    assert sorted(FOUND) == [(n, 10 * n // 100 * 100, 10 * n) for n in range(1, 31)]


def test_a_run_that_is_stopped_leaves_what_is_not_under_way_and_the_next_one_answers_it(
    provider, tmp_path, monkeypatch
):
    noticed, stop = threading.Event(), Conversations._stop
    monkeypatch.setattr(Conversations, "_stop", lambda self: (stop(self), noticed.set()))

    async def script(request):
        if request.request_id == "c1/m1":
            await asyncio.sleep(0.1)
            run_state().stop("stopped by SIGTERM")
            assert await asyncio.to_thread(noticed.wait, SOON)  # the bundle's thread looks for it now and then

    provider.script = script
    said = [message(f"m{n}") for n in range(1, 6)]
    log = logged(tmp_path, *said)
    found = answer(tmp_path, said)
    assert found == {("c1", "m1"): "answered"} | {("c1", f"m{n}"): "left" for n in range(2, 6)}
    assert [one.id for one in log.open_messages()] == ["m2", "m3", "m4", "m5"]
    FOUND.clear()
    assert set(answer(tmp_path, said, run_id="run-2").values()) == {"answered"}
    assert {len(calls) for calls in provider.calls.values()} == {1}


def test_a_ledger_that_cannot_be_opened_ends_the_pipeline_before_a_call(provider, tmp_path):
    with pytest.raises(Exception, match="names no file"):
        answer(tmp_path, [message()], calls=kept("sqlite:///"))
    assert provider.calls == {}


def test_an_answer_that_was_paid_for_is_not_paid_again_by_another_log(provider, tmp_path):
    ledger = f"sqlite:///{tmp_path}/ledger.sqlite"
    for run, folder in enumerate(("one", "two")):
        (tmp_path / folder).mkdir()
        earlier = message("m0").model_copy(update={"role": "assistant", "text": f"hello from {folder}"})
        logged(tmp_path / folder, earlier, message())
        FOUND.clear()
        assert answer(tmp_path / folder, [message()], calls=kept(ledger), run_id=f"run-{run}")["c1", "m1"] == "answered"
        close_engines()
    assert len(provider.calls["c1/m1"]) == 1


class Stores:
    """The conversations of several stores of one run."""

    def __init__(self, folder, count):
        self.outcomes = {}
        logs = {f"s{n}": Location(str(folder), f"s{n}/") for n in range(count)}
        self._step = step(folder, logs=logs)
        self._logs = {store: ChatLog(LocalStore(folder), where.key) for store, where in logs.items()}

    def say(self, store, identity):
        said = message(identity)
        self._logs[store].add(said)
        conversations = run_state().shared(Conversations, lambda: conversations_of(self._step, store), store)
        conversations.submit(WaitingMessage(said, store=store), partial(self._done, store))

    def wait(self, store, identity):
        until(lambda: (store, identity) in self.outcomes)
        return self.outcomes[store, identity]

    def _done(self, store, answered):
        self.outcomes[store, answered.message_id] = answered.outcome


def test_forty_stores_have_the_threads_of_one(provider, tmp_path):
    gate = threading.Event()

    async def script(request):
        await asyncio.to_thread(gate.wait, SOON)

    provider.script = script
    before = Counter(thread.name for thread in threading.enumerate())  # earlier tests' may not have ended
    stores = Stores(tmp_path, 40)
    for n in range(40):
        for identity in ("m1", "m2"):
            stores.say(f"s{n}", identity)
    until(lambda: len(provider.calls) == 40)
    more = Counter(thread.name for thread in threading.enumerate()) - before
    gate.set()
    assert {stores.wait(f"s{n}", identity) for n in range(40) for identity in ("m1", "m2")} == {"answered"}
    assert more["llmdo-conversations"] == 1
    assert sum(more.values()) <= BLOCKING_THREADS + 20  # the engine's, and the log's readers
    close_conversations(run_state())


def test_an_engine_is_not_replaced_for_one_store_while_a_call_of_another_is_under_way(provider, tmp_path, monkeypatch):
    gate, clock = threading.Event(), Clock(time.time())
    monkeypatch.setattr(lasting_engine, "time", types.SimpleNamespace(time=clock))

    async def script(request):
        if request.request_id == "s0/c1/m1":
            while not gate.is_set():  # noqa: ASYNC110  a thread opens it
                await asyncio.sleep(0.005)
        if request.request_id == "s1/c1/m1":
            raise QuotaExhausted("today's allowance is used up")

    provider.script = script
    stores = Stores(tmp_path, 2)
    stores.say("s0", "m1")
    until(lambda: "s0/c1/m1" in provider.calls)
    for identity in ("m1", "m2"):
        stores.say("s1", identity)
        assert stores.wait("s1", identity) == "failed"
    clock.now += lasting_engine.LONGEST_STOP_S + 1  # from now on it may be replaced
    stores.say("s1", "m3")
    assert stores.wait("s1", "m3") == "failed"
    gate.set()
    assert stores.wait("s0", "m1") == "answered"
    stores.say("s1", "m4")
    assert stores.wait("s1", "m4") == "answered"
    close_conversations(run_state())


class Later:
    """Stands for Conversations: messages are done when the test says so."""

    def __init__(self):
        self.dones = []
        self.stopped = False

    def submit(self, incoming, done):
        message = incoming.message
        self.dones.append(lambda: done(Answered(message.conversation, message.id, "answered")))

    def stop(self):
        self.stopped = True
        for done in self.dones:
            done()

    def close(self, timeout_s):
        """Nothing is open."""


def later_desk():
    later, state = Later(), run_state()
    return later, ConversationDesk(lambda store: state.shared(Conversations, lambda: later, store), state)


def fetching(desk):
    """A bundle that ends, in a thread; what it got, and the thread."""
    got = []

    def end():
        got.extend(found.value.message_id for found in desk.fetch_all())

    thread = threading.Thread(target=end, daemon=True)
    thread.start()
    return got, thread


def test_only_the_newest_bundle_waits_and_it_waits_for_the_messages_of_all():
    later, desk = later_desk()
    context = WindowedValue(None, 0, ())
    desk.hand_in(WaitingMessage(message("m1")), context)
    first, one = fetching(desk)
    one.join(0.2)
    assert one.is_alive()
    desk.hand_in(WaitingMessage(message("m2")), context)
    second, two = fetching(desk)
    one.join(SOON)
    assert (one.is_alive(), two.is_alive(), first) == (False, True, [])
    for done in later.dones:
        done()
    two.join(SOON)
    assert (two.is_alive(), second) == (False, ["m1", "m2"])
    assert list(desk.fetch_all()) == []


def test_a_stop_reaches_a_bundle_that_waits():
    later, desk = later_desk()
    desk.hand_in(WaitingMessage(message("m1")), WindowedValue(None, 0, ()))
    got, thread = fetching(desk)
    run_state().stop("stopped by SIGTERM")
    thread.join(SOON)
    assert (later.stopped, got) == (True, ["m1"])


def test_a_bundle_waits_when_too_many_messages_are_open(monkeypatch):
    monkeypatch.setattr(converse, "MOST_OPEN", 2)
    later, desk = later_desk()
    context = WindowedValue(None, 0, ())
    desk.hand_in(WaitingMessage(message("m1")), context)
    assert list(desk.fetch()) == []
    desk.hand_in(WaitingMessage(message("m2")), context)
    threading.Timer(0.2, later.dones[0]).start()
    began = time.monotonic()
    assert [found.value.message_id for found in desk.fetch()] == ["m1"]
    assert time.monotonic() - began > 0.1


class Trickle(beam.DoFn, RestrictionProvider):
    """A message each tenth of a second, for as long as the run goes on."""

    class _Endless(OffsetRestrictionTracker):
        def is_bounded(self):
            return False

    def initial_restriction(self, _):
        return OffsetRange(0, 1 << 62)

    def create_tracker(self, restriction):
        return self._Endless(restriction)

    def restriction_size(self, _, restriction):
        return 1

    @beam.DoFn.unbounded_per_element()
    def process(self, folder, tracker=beam.DoFn.RestrictionParam()):
        number = tracker.current_restriction().start
        if number == COUNT:
            tracker.try_claim(1 << 62)
            return
        tracker.try_claim(number)
        one = message(f"m{number + 1}", f"c{number + 1}")
        logged(folder, one)
        SENT.append(f"{one.conversation}/{one.id}")
        yield WaitingMessage(one)
        tracker.defer_remainder(Duration(0.1))


COUNT = 25  # messages


@pytest.mark.prism
def test_a_slow_model_does_not_keep_new_messages_out_on_prism(provider, tmp_path):
    async def slow(request):
        """Until it has been asked everything."""
        async with asyncio.timeout(SOON):
            while len(provider.calls) < COUNT:  # noqa: ASYNC110 - messages come from threads
                await asyncio.sleep(0.01)

    provider.script = slow
    with running_prism(find_prism(None)) as prism:
        pipeline = beam.Pipeline(options=PipelineOptions(prism_arguments(prism)))
        _ = (
            pipeline
            | beam.Create([str(tmp_path)], reshuffle=False)
            | beam.ParDo(Trickle())
            | beam.Reshuffle()
            | step(tmp_path)
            | beam.Map(collect)
        )
        pipeline.run().wait_until_finish()
    assert {name: len(times) for name, times in provider.calls.items()} == dict.fromkeys(SENT, 1)
    assert len(SENT) == COUNT
    assert {found.message_id: found.outcome for found in FOUND} == {f"m{n}": "answered" for n in range(1, COUNT + 1)}
    assert len(FOUND) == COUNT
