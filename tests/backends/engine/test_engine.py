import asyncio
import math
import random
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, fields
from functools import partial

import pytest

from llmdo.backends.engine import registry, scheduler
from llmdo.backends.engine.engine import Engine
from llmdo.backends.engine.recall import Recall
from llmdo.backends.engine.registry import close_engines, drain_engines, get_engine, limits_of_engines
from llmdo.backends.engine.settings import CallSettings
from llmdo.backends.errors import (
    BadReply,
    CallTimeout,
    ContextOverflow,
    EngineClosed,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    QuotaExhausted,
    Retryable,
    StopRun,
    StreamError,
    Unauthorized,
)
from llmdo.backends.lanes.ready_by import ReadyBy
from llmdo.backends.limits.rates import Rates
from llmdo.backends.limits.retry import Retry, set_instant
from llmdo.backends.money.limits import Limits
from llmdo.backends.money.money import Budget
from llmdo.backends.requests import ChatRequest, EmbedRequest, RawRequest
from llmdo.backends.responses import ChatResponse, EmbedResponse, Price, RawResponse
from llmdo.backends.usage import Usage
from llmdo.settings.environment import MissingSettings
from llmdo.transforms.media import MediaSettings
from tests.fakes.ledger import MemoryLedger, MemoryRecords

SOON = 60.0  # seconds until a test gives up waiting


async def opened(gate):
    while not gate.is_set():  # noqa: ASYNC110 - a thread opens it, not the loop
        await asyncio.sleep(0.001)


class Provider:
    """Stands for a provider: ``script(request, calls of this request so far)`` answers, or raises."""

    name = "fake"

    def __init__(self, script=lambda request, calls: None, texts=100):
        self.script = script
        self.texts = texts
        self.calls = Counter()
        self.now = self.most = 0
        self.closed = False
        self.lock = threading.Lock()

    async def _call(self, request):
        key = request.texts if isinstance(request, EmbedRequest) else request.request_id
        self.calls[key] += 1
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            result = self.script(request, self.calls[key])
            if asyncio.iscoroutine(result):
                await result
            else:
                await asyncio.sleep(0)
        finally:
            self.now -= 1

    async def execute(self, request):
        await self._call(request)
        return ChatResponse(request.request_id, "stop", Usage(2, 1), request.model)

    async def embed(self, request):
        await self._call(request)
        vectors = tuple((float(len(text)),) for text in request.texts)
        return EmbedResponse(vectors, Usage(sum(map(len, request.texts))), request.model)

    async def run(self, request):
        await self._call(request)
        return RawResponse(dict(request.input), Usage(), request.model)

    def max_texts(self, model):
        return self.texts

    async def aclose(self):
        self.closed = True


class Results:
    """Collects deliveries, in order, and waits for a number of them."""

    def __init__(self):
        self.done = []
        self.changed = threading.Condition()

    def deliver(self, key):
        def deliver(*found):
            with self.changed:
                self.done.append((key, *found))
                self.changed.notify_all()

        return deliver

    def wait(self, count):
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.done) >= count, SOON), f"{len(self.done)} of {count}"
        return self.done


@pytest.fixture
def start():
    engines = []

    def start(provider, window=4, **settings):
        engines.append(Engine(CallSettings(window, **settings), lambda _: provider))
        return engines[-1]

    set_instant(True)
    yield start
    set_instant(False)
    for each in engines:
        each.close()


def chat(key):
    return ChatRequest("m", (), request_id=str(key))


def submit_all(engine, results, keys):
    for key in keys:
        engine.submit("fake", chat(key), results.deliver(key))


def test_every_kind_of_request_gets_its_kind_of_response(start):
    engine, results = start(Provider()), Results()
    engine.submit("fake", chat(1), results.deliver("chat"))
    engine.submit("fake", EmbedRequest("m", ("a", "bc")), results.deliver("embed"))
    engine.submit("fake", RawRequest("m", {"a": 1}), results.deliver("raw"))
    found = dict(results.wait(3))
    assert found["chat"].response.text == "1"
    assert found["embed"].response.vectors == ((1.0,), (2.0,))
    assert found["raw"].response.result == {"a": 1}
    assert {done.attempts for done in found.values()} == {1}
    assert all(done.error is None and done.latency_s >= 0 for done in found.values())


def test_results_come_in_the_order_in_which_calls_end(start):
    gates = {str(n): threading.Event() for n in range(4)}

    def script(request, calls):
        return opened(gates[request.request_id])

    engine, results = start(Provider(script)), Results()
    submit_all(engine, results, range(4))
    for count, key in enumerate([2, 0, 3, 1], 1):
        gates[str(key)].set()
        assert results.wait(count)[-1][0] == key


def test_the_window_is_used_whole_and_never_exceeded(start):
    async def until_it_was_full():
        while provider.most < 5:  # noqa: ASYNC110 - other calls fill it
            await asyncio.sleep(0.001)

    provider = Provider(lambda *_: until_it_was_full())
    engine, results = start(provider, window=5), Results()
    submit_all(engine, results, range(100))
    results.wait(100)
    assert provider.most == 5
    stats = engine.stats()
    assert (stats.in_flight, stats.calls) == (0, 100)
    assert {done.response.usage for _, done in results.done} == {Usage(2, 1)}


@pytest.mark.parametrize(("first", "at_once"), [({}, 20), ({"first_window": 30}, 30)])
def test_calls_that_do_not_end_keep_others_waiting_only_beyond_the_first_window(start, first, at_once):
    gate = threading.Event()
    provider = Provider(lambda *_: opened(gate))
    engine, results = start(provider, window=40, **first), Results()
    submit_all(engine, results, range(40))
    end = time.monotonic() + SOON
    while provider.now < at_once:
        assert time.monotonic() < end
        time.sleep(0.005)
    time.sleep(0.05)
    assert provider.now == at_once
    gate.set()
    results.wait(40)


def test_every_job_is_delivered_once_whatever_fails_and_from_whatever_thread():
    kinds = [StreamError, InvalidRequest, Retryable, ModelNotFound]  # none looks like an outage

    def script(request, calls):
        dice = random.Random(f"{request.request_id}/{calls}")
        if dice.random() < 0.4:
            raise dice.choice(kinds)("no")
        return asyncio.sleep(dice.random() / 500)

    set_instant(True)
    provider, results, threads = Provider(script), Results(), 8
    engine = Engine(CallSettings(7), lambda _: provider)
    try:
        workers = [
            threading.Thread(target=submit_all, args=(engine, results, range(n * 100, n * 100 + 100)))
            for n in range(threads)
        ]
        for worker in workers:
            worker.start()
        done = results.wait(threads * 100)
        for worker in workers:
            worker.join(SOON)
    finally:
        set_instant(False)
        engine.close()
    assert sorted(key for key, _ in done) == list(range(threads * 100))
    for key, each in done:
        assert (each.response is None) != (each.error is None)
        assert each.attempts == provider.calls[str(key)] <= 3
    stats = engine.stats()
    assert provider.most <= 7
    assert stats.calls == sum(provider.calls.values())
    assert stats.retries == stats.calls - threads * 100 > 0
    assert sum(each.error is not None for _, each in done) > 0


def test_a_failed_call_is_tried_three_times_in_all(start):
    def script(request, calls):
        if request.request_id == "never" or calls < 3:
            raise Overloaded("busy")

    provider, results = Provider(script), Results()
    submit_all(start(provider), results, ["third", "never"])
    found = dict(results.wait(2))
    assert (found["third"].attempts, found["third"].error) == (3, None)
    assert (found["never"].attempts, type(found["never"].error)) == (3, Overloaded)
    assert provider.calls == {"third": 3, "never": 3}


def test_an_error_of_the_line_is_not_tried_again(start):
    def script(request, calls):
        raise InvalidRequest("no")

    results = Results()
    submit_all(start(Provider(script)), results, [1])
    assert results.wait(1)[0][1].attempts == 1


def test_retry_after_holds_back_all_calls_of_that_model_and_no_others(start):
    times, other = {}, ChatRequest("other", (), request_id="other model")

    def script(request, calls):
        times.setdefault(request.request_id, []).append(time.monotonic())
        if request.request_id == "asked" and calls == 1:
            # Only from here it comes in time however late this test's own thread gets its turn.
            assert engine.submit("fake", other, results.deliver("other model"), wait=False)
            raise Overloaded("busy", status=503, retry_after=0.3)

    set_instant(False)
    engine, results = start(Provider(script), window=2, retry=Retry(base_s=0.001)), Results()
    submit_all(engine, results, ["asked", "same model"])
    assert next(key for key, _ in results.wait(3)) == "other model"
    for key in ("asked", "same model"):
        assert times[key][-1] - times["asked"][0] >= 0.3
    assert engine.stats().throttled_s >= 0.25


def test_a_stop_error_stops_everything_that_is_not_in_flight(start):
    stop = threading.Event()

    def script(request, calls):
        if request.request_id == "waits":
            raise CallTimeout("slow")

        async def wait():
            await opened(stop)
            if request.request_id == "quota":
                raise QuotaExhausted("used up", until=5.0)
            await asyncio.sleep(0.05)

        return wait()

    set_instant(False)
    provider, results = Provider(script), Results()
    engine = start(provider, window=2, retry=Retry(base_s=400.0, cap_s=400.0))
    submit_all(engine, results, ["waits"])
    while engine.stats().calls == 0 or engine.stats().in_flight:
        time.sleep(0.001)
    submit_all(engine, results, ["quota", "in flight"])
    while engine.stats().in_flight < 2:
        time.sleep(0.001)
    assert engine.submit("fake", chat("queued"), results.deliver("queued"), wait=False)
    assert engine.stopped is None
    stop.set()
    results.wait(4)
    submit_all(engine, results, ["later"])
    found = dict(results.wait(5))
    assert found["in flight"].response.text == "in flight"
    for key, attempts in [("quota", 1), ("queued", 0), ("waits", 1), ("later", 0)]:
        assert (type(found[key].error), found[key].error.until, found[key].attempts) == (QuotaExhausted, 5.0, attempts)
    assert engine.stopped is found["quota"].error
    assert set(provider.calls) == {"waits", "quota", "in flight"}


def test_a_call_in_flight_that_would_be_repeated_is_left_to_a_later_run(start):
    both, stop = threading.Event(), threading.Event()

    def script(request, calls):
        async def fail():
            if request.request_id == "quota":
                await opened(both)
                raise QuotaExhausted("used up")
            both.set()
            await opened(stop)
            raise Overloaded("busy")

        return fail()

    engine, results = start(Provider(script)), Results()
    submit_all(engine, results, ["quota", "busy"])
    results.wait(1)
    stop.set()
    found = dict(results.wait(2))
    assert (type(found["busy"].error), found["busy"].attempts) == (QuotaExhausted, 1)


def test_a_provider_that_sends_too_few_vectors_mixes_up_no_lines(start):
    provider, results = Provider(), Results()

    async def embed(request):
        return EmbedResponse(((1.0,),), Usage(1), request.model)

    provider.embed = embed
    start(provider).submit_texts("fake", "m", ["a", "b", "c"], {}, results.deliver("array"))
    done = {index: each for _, index, each in results.wait(3)}
    assert [each.response.vectors for each in done.values()] == [((1.0,),)] * 3  # one by one it sends what it should
    assert start(provider).submit_texts("fake", "m", [], {}, results.deliver("nothing"))


def test_a_model_that_is_not_found_does_not_stop_the_others(start):
    def script(request, calls):
        if request.request_id == "1":
            raise ModelNotFound("no such model")

    engine, results = start(Provider(script)), Results()
    submit_all(engine, results, [1, 2])
    assert dict(results.wait(2))[2].error is None
    assert engine.stopped is None


def test_submitting_blocks_without_room_and_goes_on_with_it(start):
    gate = threading.Event()

    engine, results = start(Provider(lambda *_: opened(gate)), window=2), Results()
    accepted = [engine.submit("fake", chat(n), results.deliver(n), wait=False) for n in range(6)]
    assert accepted == [True] * 4 + [False] * 2  # two in flight, and as many ahead
    assert not engine.submit_texts("fake", "m", ["a"], {}, results.deliver("text"), wait=False)
    assert not engine.wait_for_room(0.01)
    blocked = threading.Thread(target=submit_all, args=(engine, results, ["late"]))
    blocked.start()
    blocked.join(0.05)
    assert blocked.is_alive()
    gate.set()
    blocked.join(SOON)
    assert not blocked.is_alive()
    assert engine.wait_for_room(SOON)
    assert sorted(str(key) for key, _ in results.wait(5)) == ["0", "1", "2", "3", "late"]


def test_deliver_finds_room_for_the_next_job(start):
    engine, results = start(Provider(), window=1), Results()
    accepted = []

    def deliver(done):
        accepted.append(engine.submit("fake", chat("next"), results.deliver("next"), wait=False))

    engine.submit("fake", chat(1), deliver)
    assert results.wait(1)[0][0] == "next"
    assert accepted == [True]


def test_deliver_that_waits_for_room_is_told_instead_of_hanging(start, caplog):
    gate = threading.Event()

    def script(request, calls):
        return None if request.request_id == "first" else opened(gate)

    engine, results = start(Provider(script), window=1), Results()

    def deliver(done):
        engine.submit("fake", chat("a"), results.deliver("a"))
        engine.submit("fake", chat("b"), results.deliver("b"))
        engine.submit("fake", chat("c"), results.deliver("c"))

    engine.submit("fake", chat("first"), deliver)
    while "submit with wait=False" not in caplog.text:
        time.sleep(0.001)
    gate.set()
    assert {key for key, _ in results.wait(2)} == {"a", "b"}


@pytest.mark.parametrize("bad", [{0}, {63}, {99}, {37, 38}, set()])
def test_an_array_is_split_until_each_bad_text_stands_alone(start, bad):
    texts = [f"bad {n}" if n in bad else f"good {n}" for n in range(100)]

    def script(request, calls):
        if any(text.startswith("bad") for text in request.texts):
            raise InvalidRequest("a text does not fit")

    provider, results = Provider(script), Results()
    engine = start(provider)
    assert engine.submit_texts("fake", "m", texts, {}, results.deliver("array"))
    done = {index: each for _, index, each in results.wait(100)}
    assert len(results.done) == len(done) == 100
    assert {index for index, each in done.items() if each.error} == bad
    for index, each in done.items():
        if index not in bad:
            assert each.response.vectors == ((float(len(texts[index])),),)
            assert each.response.usage == Usage(len(texts[index]))
    assert sum(provider.calls.values()) <= 1 + 2 * math.ceil(math.log2(100)) * len(bad)
    assert {done[index].attempts for index in bad} <= {7, 8}  # the whole, then six or seven parts


def test_an_array_is_not_split_for_what_is_no_texts_fault(start):
    def script(request, calls):
        raise ModelNotFound("no such model")

    provider, results = Provider(script), Results()
    start(provider).submit_texts("fake", "m", ["a"] * 50, {}, results.deliver("array"))
    assert {type(each.error) for _, _, each in results.wait(50)} == {ModelNotFound}
    assert sum(provider.calls.values()) == 1


def test_parts_of_an_array_are_tried_again_like_any_call(start):
    def script(request, calls):
        if "bad" in request.texts:
            raise ContextOverflow("too long")
        if calls < 3:
            raise Overloaded("busy")

    provider, results = Provider(script), Results()
    start(provider).submit_texts("fake", "m", ["bad", "b", "c", "d"], {}, results.deliver("array"))
    done = {index: each for _, index, each in results.wait(4)}
    assert [type(done[n].error) for n in range(4)] == [ContextOverflow, type(None), type(None), type(None)]
    assert provider.calls == {("bad", "b", "c", "d"): 1, ("bad", "b"): 1, ("bad",): 1, ("b",): 3, ("c", "d"): 3}
    assert [done[n].attempts for n in range(4)] == [3, 5, 4, 4]


def test_an_array_takes_one_place_until_its_last_text_is_delivered(start):
    gate = threading.Event()

    def script(request, calls):
        if len(request.texts) == 2:
            raise InvalidRequest("split it")
        return opened(gate) if request.texts == ("b",) else None

    engine, results = start(Provider(script), window=1), Results()
    engine.submit_texts("fake", "m", ["a", "b"], {}, results.deliver("array"))
    results.wait(1)
    assert engine.submit_texts("fake", "m", ["b"], {}, results.deliver("other"), wait=False)
    assert not engine.wait_for_room(0)
    gate.set()
    results.wait(3)
    assert engine.wait_for_room(SOON)


@pytest.mark.parametrize("surprise", [KeyError("x"), RecursionError(), asyncio.CancelledError()])
def test_a_surprise_ends_one_line_and_not_the_others(start, surprise):
    def script(request, calls):
        if request.request_id == "1":
            raise surprise

    results = Results()
    submit_all(start(Provider(script)), results, [1, 2])
    found = dict(results.wait(2))
    assert found[2].error is None
    assert found[1].error.provider == "fake"
    assert isinstance(found[1].error, BadReply) or found[1].attempts == 3


def test_a_deliver_that_fails_does_not_stop_the_others(start, caplog):
    engine, results = start(Provider()), Results()

    def deliver(done):
        raise ValueError("a bug")

    engine.submit("fake", chat(1), deliver)
    submit_all(engine, results, [2, 3])
    results.wait(2)
    assert "a bug" in caplog.text


def test_a_provider_without_its_settings_stops_the_run(start):
    def connect(provider):
        raise MissingSettings(["CLOUDFLARE_API_TOKEN is not set"])

    results = Results()
    engine = Engine(CallSettings(2), connect)
    try:
        submit_all(engine, results, [1, 2])
        assert {type(done.error) for _, done in results.wait(2)} == {Unauthorized}
        with pytest.raises(Unauthorized, match="CLOUDFLARE_API_TOKEN is not set"):
            engine.max_texts("fake", "m")
    finally:
        engine.close()


def test_the_provider_says_how_long_arrays_are(start):
    assert start(Provider(texts=32)).max_texts("fake", "m") == 32


def test_closing_cancels_what_runs_delivers_the_rest_and_refuses_more(start):
    provider, results = Provider(lambda *_: asyncio.sleep(3600)), Results()
    engine = start(provider, window=2)
    submit_all(engine, results, range(4))
    while engine.stats().in_flight < 2:
        time.sleep(0.001)
    engine.close()
    engine.close()
    assert sorted(key for key, _ in results.done) == [0, 1, 2, 3]
    assert {type(done.error) for _, done in results.done} == {EngineClosed}
    assert provider.closed
    assert provider.now == 0
    for submit in (engine.submit, partial(engine.submit, wait=False)):
        with pytest.raises(StopRun, match="closed"):
            submit("fake", chat(5), results.deliver(5))
    with pytest.raises(StopRun):
        engine.wait_for_room(1)


def test_closing_wakes_a_submitter_that_waits(start):
    engine, results = start(Provider(lambda *_: asyncio.sleep(3600)), window=1), Results()
    submit_all(engine, results, [1, 2])
    raised = []

    def blocked():
        try:
            engine.submit("fake", chat(3), results.deliver(3))
        except StopRun as error:
            raised.append(error)

    thread = threading.Thread(target=blocked)
    thread.start()
    engine.close()
    thread.join(SOON)
    assert len(raised) == 1
    assert len(results.done) == 2


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # the death is the point
def test_a_dead_loop_is_noticed_and_nothing_waits_for_ever(start):
    engine, results = start(Provider(lambda *_: asyncio.sleep(3600)), window=2), Results()
    submit_all(engine, results, range(4))

    def die():
        raise SystemExit

    engine._loop.call_soon_threadsafe(die)
    found = results.wait(4)
    assert {type(done.error) for _, done in found} == {EngineClosed}
    engine._thread.join(SOON)
    assert not engine.usable
    with pytest.raises(StopRun):
        engine.submit("fake", chat(5), results.deliver(5))
    engine.close()


@pytest.fixture
def no_engines(monkeypatch):
    monkeypatch.setattr(registry, "_engines", {})
    yield registry._engines
    close_engines()


def test_a_process_has_one_engine_for_the_same_settings(no_engines):
    found = []
    threads = [threading.Thread(target=lambda: found.append(get_engine(CallSettings(3)))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SOON)
    assert len({id(engine) for engine in found}) == 1
    found[0].close()
    assert get_engine(CallSettings(3)).usable
    assert get_engine(CallSettings(3)) is not found[0]
    engines = list(no_engines.values())
    close_engines()
    assert len(engines) == 1
    assert not any(engine.usable for engine in engines)


@dataclass(frozen=True)
class Kept:
    """A ledger by its name; nothing is kept."""

    name: str

    def open(self):
        return None


OTHERS = {
    "window": 4,
    "first_window": 2,
    "fixed": True,
    "retry": Retry(deadline_s=5.0),
    "rates": Rates(rpm=60),
    "workers": 2,
    "mode": "batch",
    "lane": "flex",
    "detached": True,
    "ready_by": ReadyBy(2e9, 1e9),
    "batches": MemoryRecords(),
    "own": frozenset({"openai"}),
    "kept": Kept("a"),
    "gate": lambda: None,
    "limits": Limits(max_tokens=9),
    "prices": (("openai/*", Price(1.0)),),
    "budget": Budget(),
    "gateway": "mine",
    "headers": ("api-key=KEY",),
    "call_timeout_s": 5.0,
    "patience_s": 3.0,
    "answered_before": lambda: True,
    "run_id": "another run",
    "media": MediaSettings(),
}


@pytest.mark.parametrize("name", [field.name for field in fields(CallSettings)])
def test_an_engine_is_shared_only_where_all_settings_are_the_same(no_engines, name):
    plain = get_engine(CallSettings(3))
    other = get_engine(CallSettings(**{"window": 3, name: OTHERS[name]}))
    assert other is not plain
    assert get_engine(CallSettings(**{"window": 3, name: OTHERS[name]})) is other


def test_a_ledger_is_the_same_by_its_name_and_a_budget_only_as_the_same_object(no_engines):
    first = get_engine(CallSettings(3, kept=Kept("a")))
    assert get_engine(CallSettings(3, kept=Kept("a"))) is first
    assert get_engine(CallSettings(3, kept=Kept("b"))) is not first
    assert get_engine(CallSettings(3, budget=Budget())) is not get_engine(CallSettings(3, budget=Budget()))


def test_the_engine_of_a_process_keeps_to_the_callers_rates_and_then_to_the_published_ones(no_engines, monkeypatch):
    monkeypatch.setattr(scheduler, "published_rates", lambda provider, model: Rates(rpm=300, tpm=4000))
    monkeypatch.setattr(registry, "connect", lambda provider, gateway: Provider())
    results = Results()
    for settings in (CallSettings(4), CallSettings(4, rates=Rates(rpm=60), workers=2)):
        get_engine(settings).submit("fake", chat(1), results.deliver(1))
    results.wait(2)
    assert [limits.rates for limits in limits_of_engines()] == [Rates(300, 4000), Rates(30, 2000)]
    assert [limits.model for limits in limits_of_engines()] == ["m", "m"]
    get_engine(CallSettings(4, first_window=2)).submit("fake", chat(1), results.deliver(1))
    results.wait(3)
    assert [limits.window for limits in limits_of_engines()] == [4, 4, 2]


def test_an_engine_leaves_the_garbage_collector_of_its_process_alone():
    script = (
        "import gc; before = gc.get_threshold(), gc.get_freeze_count()\n"
        "from llmdo.backends.engine.settings import CallSettings\n"
        "from llmdo.backends.engine.registry import close_engines, get_engine\n"
        "engine = get_engine(CallSettings(3)); assert engine.usable; close_engines()\n"
        "assert before == (gc.get_threshold(), gc.get_freeze_count()), (gc.get_threshold(), gc.get_freeze_count())"
    )
    ended = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True, timeout=240)
    assert (ended.returncode, ended.stderr) == (0, "")


class Memory(MemoryLedger):
    """Named so that engines are told apart by it."""

    def __init__(self):
        super().__init__(0.01)

    def open(self):
        return Recall(self, "same-line")


class Slow(Provider):
    """Answers when ``gate`` is set; ``cancelled`` are the calls that were cut off."""

    def __init__(self, error=None):
        super().__init__(lambda request, calls: self.answer(request))
        self.gate, self.cancelled, self.error = threading.Event(), [], error

    async def answer(self, request):
        try:
            await opened(self.gate)
        except asyncio.CancelledError:
            self.cancelled.append(request.request_id)
            raise
        if self.error:
            raise self.error


@pytest.fixture
def slow(no_engines, monkeypatch):
    """``begin()`` has four calls in flight of eight jobs on an engine of the process."""
    set_instant(True)

    def begin(provider, ledger):
        monkeypatch.setattr(registry, "connect", lambda name, gateway: provider)
        engine, results = get_engine(CallSettings(4, kept=ledger)), Results()
        submit_all(engine, results, range(8))
        deadline = time.monotonic() + SOON
        while provider.now < 4:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        return results

    yield begin
    set_instant(False)


def test_a_drain_lets_the_calls_in_flight_end_keeps_their_answers_and_starts_no_other(slow):
    provider, ledger, told = Slow(), Memory(), []
    results = slow(provider, ledger)

    def tell(calls):
        told.append(calls)
        provider.gate.set()

    assert drain_engines(SOON, tell) == 0
    assert (told, provider.cancelled, sum(provider.calls.values()), len(ledger.kept)) == ([4], [], 4, 4)
    assert [done.error for _, done in results.wait(4)] == [None] * 4
    close_engines()
    assert {type(done.error) for _, done in results.wait(8)[4:]} == {EngineClosed}
    assert sum(provider.calls.values()) == 4


def test_a_drain_ends_when_its_time_is_over_and_says_how_many_calls_are_left(slow):
    provider = Slow()
    slow(provider, Memory())
    assert drain_engines(0.05, lambda calls: None) == 4
    close_engines()
    assert len(provider.cancelled) == 4


def test_a_call_that_fails_in_the_drain_is_not_made_again(slow):
    provider, told = Slow(Overloaded("busy", status=503)), []
    results = slow(provider, Memory())
    provider.gate.set()
    assert drain_engines(SOON, told.append) == 0
    time.sleep(0.05)
    assert sum(provider.calls.values()) == 4
    close_engines()
    assert {type(done.error) for _, done in results.wait(8)} == {EngineClosed}


class BreakingLedger(Memory):
    """Keeps nothing, and each answer takes longer than the one before to fail: others are still on their way then."""

    async def put(self, key, value, patience_s):
        self.takes_s += 0.05
        await asyncio.sleep(self.takes_s)
        raise OSError("the disk is full")


def test_a_ledger_that_breaks_in_the_drain_neither_holds_it_up_nor_loses_an_answer(slow):
    provider = Slow()
    results = slow(provider, BreakingLedger())
    provider.gate.set()
    assert drain_engines(SOON, lambda calls: None) == 0
    errors = {str(key): type(done.error) for key, done in results.wait(8)}
    assert {key for key, error in errors.items() if error is type(None)} == set(provider.calls)
    assert sorted(error.__name__ for error in errors.values()) == ["NoneType"] * 4 + ["StopRun"] * 4
    close_engines()


def test_nobody_waits_for_calls_whose_answers_are_not_kept(slow):
    provider, told = Slow(), []
    slow(provider, None)
    assert drain_engines(SOON, told.append) == 0
    assert told == []


def test_engines_that_are_closed_in_the_drain_end_it(slow):
    slow(Slow(), Memory())
    threading.Timer(0.1, close_engines).start()
    assert drain_engines(SOON, lambda calls: None) == 0


def test_a_program_that_ends_with_calls_in_flight_keeps_their_answers(tmp_path):
    script = (
        "import asyncio, sys, time\n"
        "from llmdo.backends.engine import registry as engine\n"
        "from llmdo.backends.engine.settings import CallSettings\n"
        "from llmdo.backends.requests import ChatRequest\nfrom llmdo.backends.responses import ChatResponse, Usage\n"
        "from llmdo.transforms.answers.ledger_settings import LedgerSettings\n"
        "class Slow:\n"
        "    name = 'slow'\n"
        "    async def execute(self, request):\n"
        "        while not told: await asyncio.sleep(0.01)\n"
        "        return ChatResponse('re', 'stop', Usage(1, 1), request.model)\n"
        "    async def aclose(self): pass\n"
        "engine.connect = lambda name, gateway: Slow()\n"
        "told, drain = [], engine.drain_engines\n"
        "engine.drain_engines = lambda s, tell: drain(s, lambda calls: (tell(calls), told.append(calls)))\n"
        "calls = engine.get_engine(CallSettings(4, kept=LedgerSettings(sys.argv[1])))\n"
        "for key in range(8): calls.submit('slow', ChatRequest('m', (), request_id=str(key)), lambda done: None)\n"
        "while calls.stats().in_flight < 4: time.sleep(0.01)\n"
        "raise RuntimeError('the pipeline failed')"
    )
    command = [sys.executable, "-c", script, f"sqlite:///{tmp_path}/ledger.sqlite"]
    ended = subprocess.run(command, check=False, capture_output=True, text=True, timeout=240)
    assert ended.returncode == 1
    assert "waiting for 4 calls in flight" in ended.stderr
    with closing(sqlite3.connect(tmp_path / "ledger.sqlite")) as ledger:
        (table,) = [name for (name,) in ledger.execute("select name from sqlite_master where type = 'table'")]
        assert ledger.execute(f"select count(*) from {table}").fetchone() == (4,)
