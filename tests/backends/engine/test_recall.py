import asyncio
import hashlib
import json
import math
import threading
from dataclasses import fields, replace

import pytest

from llmdo.backends.engine import recall
from llmdo.backends.engine.engine import Engine
from llmdo.backends.engine.recall import Recall
from llmdo.backends.engine.settings import CallSettings
from llmdo.backends.errors import InvalidRequest, Overloaded, StopRun
from llmdo.backends.limits.retry import set_instant
from llmdo.backends.openai.vectors import Vector
from llmdo.backends.openai.written_vectors import vector_json
from llmdo.backends.requests import ChatRequest, EmbedRequest, Message, RawRequest
from llmdo.backends.responses import ChatResponse, EmbedResponse, RawResponse
from llmdo.backends.usage import Usage
from llmdo.storage.ledger.opening import open_ledger
from tests.fakes.ledger import MemoryLedger

SOON = 60.0  # seconds until a test gives up waiting
ODD = "half a pair \ud800, \x00, ä, 😀"


class Provider:
    """Stands for a provider: ``script(request)`` may raise, or give something to await."""

    def __init__(self, script=lambda request: None):
        self.script = script
        self.calls = []
        self.closed = False

    async def _call(self, request):
        self.calls.append(request)
        result = self.script(request)
        await (result if asyncio.iscoroutine(result) else asyncio.sleep(0))

    async def execute(self, request):
        await self._call(request)
        return ChatResponse(request.request_id, "stop", Usage(2, 1), request.model)

    async def embed(self, request):
        await self._call(request)
        vectors = tuple((float(len(text)), 0.1) for text in request.texts)
        return EmbedResponse(vectors, Usage(sum(map(len, request.texts)), neurons=1.5), request.model)

    async def run(self, request):
        await self._call(request)
        return RawResponse(dict(request.input), Usage(), request.model)

    def max_texts(self, model):
        return 100

    async def aclose(self):
        self.closed = True


class Results:
    """Collects deliveries by key, and waits for a number of them."""

    def __init__(self):
        self.done = []
        self.changed = threading.Condition()

    def deliver(self, key=None):
        def deliver(*found):
            with self.changed:
                self.done.append(((key, *found[:-1]) if key is not None else found[0], found[-1]))
                self.changed.notify_all()

        return deliver

    def wait(self, count):
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.done) >= count, SOON), f"{len(self.done)} of {count}"
        return dict(self.done)


@pytest.fixture
def start():
    engines = []

    def start(provider, ledger, reuse="same-line", window=4, **settings):
        recall = Recall(ledger, reuse)
        engines.append(Engine(CallSettings(window, **settings), lambda _: provider, recall))
        return engines[-1]

    set_instant(True)
    yield start
    set_instant(False)
    for each in engines:
        each.close()


def chat(line="1", text="hello", model="m", **parameters):
    return ChatRequest(model, (Message("user", text),), parameters, str(line))


def ask(engine, *requests):
    """The Done of each request, in their order."""
    results = Results()
    for index, request in enumerate(requests):
        engine.submit("fake", request, results.deliver(index))
    found = results.wait(len(requests))
    return [found[index,] for index in range(len(requests))]


def embed(engine, texts, line_ids=()):
    results = Results()
    engine.submit_texts("fake", "m", texts, {}, results.deliver(), line_ids=line_ids)
    found = results.wait(len(texts))
    return [found[index] for index in range(len(texts))]


def answered(provider, reuse, *requests, ledger=None):
    """Responses of a Recall alone, one request after the other."""

    async def call(request):
        kinds = {ChatRequest: provider.execute, EmbedRequest: provider.embed, RawRequest: provider.run}
        return await kinds[type(request)](request)

    async def answer():
        recall = Recall(ledger or MemoryLedger(), reuse)
        return [await recall.answer("fake", request, call) for request in requests]

    return asyncio.run(answer())


def test_a_miss_calls_once_and_keeps_and_a_hit_makes_no_call(start):
    provider, ledger = Provider(), MemoryLedger()
    engine = start(provider, ledger)
    (first,) = ask(engine, chat())
    assert (first.attempts, len(ledger.kept)) == (1, 1)
    (second,) = ask(engine, chat())
    assert second.response == first.response
    assert (second.attempts, len(provider.calls), engine.stats().calls) == (0, 1, 1)


def test_an_answer_may_wait_for_others_for_a_little_of_the_time_that_it_took(start, monkeypatch):
    ledger = MemoryLedger()
    engine = start(Provider(lambda _: asyncio.sleep(0.2)), ledger)
    ask(engine, chat(1))
    embed(engine, ["a"])
    assert all(0.003 <= patience_s <= 0.02 for patience_s in ledger.patience_s)
    monkeypatch.setattr(recall, "PATIENCE", 10.0)
    ask(engine, chat(2))
    assert ledger.patience_s[2:] == [recall.MOST_PATIENCE_S]


def test_only_successes_are_kept(start):
    def script(request):
        raise InvalidRequest("no")

    provider, ledger = Provider(script), MemoryLedger()
    engine = start(provider, ledger)
    for _ in range(2):
        (done,) = ask(engine, chat())
        assert isinstance(done.error, InvalidRequest)
    assert ledger.kept == {}
    assert len(provider.calls) == 2


def test_a_retry_counts_its_calls_and_keeps_its_answer(start):
    def script(request):
        if len(provider.calls) < 3:
            raise Overloaded("later")

    provider, ledger = Provider(script), MemoryLedger()
    (done,) = ask(start(provider, ledger), chat())
    assert done.error is None
    assert (done.attempts, len(ledger.kept)) == (3, 1)


@pytest.mark.parametrize(("reuse", "calls"), [("same-line", 2), ("same-request", 1)])
def test_an_equal_request_of_another_line_is_answered_as_reuse_says(start, reuse, calls):
    provider = Provider()
    engine = start(provider, MemoryLedger(), reuse)
    ask(engine, chat("1"))
    ask(engine, chat("2"))
    assert len(provider.calls) == calls


@pytest.mark.parametrize("reuse", ["same-line", "same-request"])
def test_the_order_of_parameters_makes_no_other_request(reuse):
    provider = Provider()
    answered(provider, reuse, chat(seed=1, stop=["a"]), chat(stop=["a"], seed=1))
    raw = [RawRequest("m", {"a": 1, "b": {"c": 2, "d": 3}}), RawRequest("m", {"b": {"d": 3, "c": 2}, "a": 1})]
    answered(provider, reuse, *raw)
    assert len(provider.calls) == 2


@pytest.mark.parametrize("reuse", ["same-line", "same-request"])
def test_the_route_of_a_body_is_in_the_key_but_for_embeddings_which_were_the_only_one(reuse):
    provider = Provider()
    paths = ("", "embeddings", "completions", "responses")
    answered(provider, reuse, *(RawRequest("m", {"input": "a"}, path=path) for path in paths))
    assert len(provider.calls) == 3


@pytest.mark.parametrize("reuse", ["same-line", "same-request"])
def test_whatever_decides_an_answer_is_in_the_key(reuse):
    requests = [
        chat(),
        chat(model="n"),
        chat(text="hello "),
        chat(seed=1),
        chat(seed=2),
        ChatRequest("m", (Message("system", "hello"),), {}, "1"),
        ChatRequest("m", (Message("user", "hello", {"name": "x"}),), {}, "1"),
        ChatRequest("m", (Message("user", ({"type": "text", "text": "hello"},)),), {}, "1"),
        RawRequest("m", {"prompt": "hello"}, "1"),
        RawRequest("m", {"prompt": ODD}, "1"),
        EmbedRequest("m", ("hello",), {}, "1"),
        EmbedRequest("m", ("hello",), {"pooling": "cls"}, "1"),
    ]
    provider, ledger = Provider(), MemoryLedger()
    answered(provider, reuse, *requests, *requests, ledger=ledger)
    assert len(provider.calls) == len(ledger.kept) == len(requests)


def test_providers_do_not_share_answers(start):
    provider, results = Provider(), Results()
    engine = start(provider, MemoryLedger(), "same-request")
    for name in ("one", "two"):
        engine.submit(name, chat(), results.deliver(name))
    results.wait(2)
    assert len(provider.calls) == 2


def test_equal_requests_in_flight_share_one_call(start):
    provider, ledger = Provider(lambda _: asyncio.sleep(0.02)), MemoryLedger()
    done = ask(start(provider, ledger, "same-request"), *(chat(line) for line in range(4)))
    assert len(provider.calls) == 1
    assert sorted(each.attempts for each in done) == [0, 0, 0, 1]
    assert len({each.response.text for each in done}) == 1


def test_equal_requests_in_flight_share_the_error_of_their_call(start):
    submitted = threading.Event()

    async def refuse():
        while not submitted.is_set():  # noqa: ASYNC110 - a thread sets it, not the loop
            await asyncio.sleep(0.001)
        for _ in range(100):  # turns of the loop, in which the others come as far as the call
            await asyncio.sleep(0)
        raise InvalidRequest("no")

    provider, results = Provider(lambda _: refuse()), Results()
    engine = start(provider, MemoryLedger(), "same-request")
    for line in range(4):
        engine.submit("fake", chat(line), results.deliver(line))
    submitted.set()
    done = results.wait(4).values()
    assert len(provider.calls) == 1
    assert {type(each.error) for each in done} == {InvalidRequest}


def test_lines_that_share_a_call_that_fails_for_a_moment_are_all_answered(start):
    def script(request):
        if len(provider.calls) < 3:
            raise Overloaded("later")

    provider = Provider(script)
    done = ask(start(provider, MemoryLedger(), "same-request"), *(chat(line) for line in range(4)))
    assert [each.error for each in done] == [None] * 4


def test_a_look_up_that_began_before_the_answer_was_kept_does_not_pay_again():
    class Slow(MemoryLedger):
        async def get(self, key):
            value = self.kept.get(key)
            await looked.wait()  # the answer of the other one is kept meanwhile
            return value

    async def both():
        nonlocal looked
        looked = asyncio.Event()
        recall = Recall(Slow(), "same-request")
        first = asyncio.ensure_future(recall.answer("fake", chat("1"), provider.execute))
        await asyncio.sleep(0)
        second = asyncio.ensure_future(recall.answer("fake", chat("2"), provider.execute))
        await asyncio.sleep(0)
        looked.set()
        return await asyncio.gather(first, second)

    looked, provider = None, Provider()
    first, second = asyncio.run(both())
    assert replace(first, shared=True) == second
    assert len(provider.calls) == 1


def test_same_lines_in_flight_are_not_shared(start):
    provider = Provider(lambda _: asyncio.sleep(0.01))
    ask(start(provider, MemoryLedger()), *(chat(line) for line in range(3)))
    assert len(provider.calls) == 3


def test_of_one_message_the_answer_stays_whatever_is_asked_under_its_id_and_no_other_gets_it():
    provider, ledger = Provider(), MemoryLedger()
    asked = [chat("c1/m1", "hello"), chat("c1/m1", "hello, and more", seed=1), chat("c1/m2", "hello")]
    first, again, _ = answered(provider, "same-message", *asked, ledger=ledger)
    assert again == first
    assert provider.calls == [asked[0], asked[2]]
    answered(provider, "same-message", chat("c1/m1", model="other"), ledger=ledger)
    assert len(provider.calls) == 3
    (key, *_) = ledger.kept
    assert key[:8] == "3d1c4009"  # another key for the same message would pay for it again: see recall.FORMAT


def test_equal_requests_of_two_messages_do_not_share_a_call(start):
    provider = Provider(lambda request: asyncio.sleep(0.01))
    ask(start(provider, MemoryLedger(), "same-message"), chat("c1/m1"), chat("c2/m1"))
    assert len(provider.calls) == 2


def test_only_the_missing_texts_of_an_array_are_called_and_each_gets_its_vector(start):
    provider = Provider()
    engine = start(provider, MemoryLedger())
    embed(engine, ["aa", "bbbb"], ["2", "4"])
    done = embed(engine, ["a", "aa", "bbb", "bbbb", "ccccc"], ["1", "2", "3", "4", "5"])
    assert [request.texts for request in provider.calls] == [("aa", "bbbb"), ("a", "bbb", "ccccc")]
    assert [each.response.vectors for each in done] == [((float(n), 0.1),) for n in range(1, 6)]
    again = embed(engine, ["ccccc", "a"], ["5", "1"])
    assert [(each.attempts, each.response.vectors[0][0]) for each in again] == [(0, 5.0), (0, 1.0)]
    assert len(provider.calls) == 2


def test_the_usage_of_an_array_is_that_of_its_calls_and_of_what_was_kept():
    asked = [EmbedRequest("m", texts) for texts in (("aa",), ("b", "aa", "cccc"), ("aa", "cccc"))]
    one, three, two = (response.usage for response in answered(Provider(), "same-request", *asked))
    assert (one.input_tokens, three.input_tokens, two.input_tokens) == (2, 7, 6)
    assert three.neurons == pytest.approx(3.0)
    assert two.neurons == pytest.approx(1.5 + 1.5 * 4 / 5)


def test_every_count_of_usage_is_added_up_and_unknown_neurons_stay_unknown():
    class Thinking(Provider):
        async def embed(self, request):
            return EmbedResponse(((0.0,),) * len(request.texts), Usage(5, 4, 3, 2), "m")

    (response,) = answered(Thinking(), "same-line", EmbedRequest("m", ("a", "b")))
    assert response.usage == Usage(5, 4, 3, 2, None)


@pytest.mark.parametrize(("reuse", "calls"), [("same-line", 2), ("same-request", 1)])
def test_equal_texts_of_two_lines_are_answered_as_reuse_says(start, reuse, calls):
    provider = Provider()
    engine = start(provider, MemoryLedger(), reuse)
    embed(engine, ["a"], ["1"])
    embed(engine, ["a"], ["2"])
    assert len(provider.calls) == calls


def test_a_split_array_keeps_line_ids_with_their_texts(start):
    def script(request):
        if "bad" in request.texts:
            raise InvalidRequest("no")

    provider, ledger = Provider(script), MemoryLedger()
    texts, lines = ["a", "bb", "bad", "dddd", "eeeee"], list("12345")
    done = embed(start(provider, ledger), texts, lines)
    assert [each.error is None for each in done] == [True, True, False, True, True]
    assert len(ledger.kept) == 4
    other = Provider()
    again = embed(start(other, ledger), texts[::-1], lines[::-1])
    assert [request.texts for request in other.calls] == [("bad",)]
    assert [each.response.vectors[0][0] for each in again] == [5.0, 4.0, 3.0, 2.0, 1.0]


def test_a_ledger_that_cannot_be_asked_stops_the_run_before_a_call(start):
    provider, ledger = Provider(), MemoryLedger()
    ledger.get_error = OSError("the disk is gone")
    engine = start(provider, ledger)
    done = ask(engine, chat(), EmbedRequest("m", ("a", "b")), chat("2"))
    assert {type(each.error) for each in done} == {StopRun}
    assert "the disk is gone" in done[0].error.message
    assert {each.attempts for each in done} == {0}
    assert provider.calls == []
    assert engine.stopped is not None


def test_a_ledger_that_cannot_keep_does_not_lose_the_paid_answer_but_stops_the_run(start):
    provider, ledger = Provider(), MemoryLedger()
    ledger.put_error = OSError("the disk is full")
    engine = start(provider, ledger, window=1)
    first, second = ask(engine, chat("1"), chat("2"))
    assert first.response.text == "1"
    assert isinstance(second.error, StopRun)
    assert "the disk is full" in second.error.message
    assert len(provider.calls) == 1


@pytest.mark.parametrize("entry", [b"", b"\xff", b"{", b"[]", b'{"text": 1}', b"null"])
def test_an_entry_that_cannot_be_read_is_a_miss_with_a_warning(start, entry, caplog):
    provider, ledger = Provider(), MemoryLedger()
    engine = start(provider, ledger)
    ask(engine, chat())
    ledger.kept = dict.fromkeys(ledger.kept, entry)
    with caplog.at_level("WARNING", logger="llmdo.backends.engine.recall"):
        (done,) = ask(engine, chat())
    assert done.response.text == "1"
    assert len(provider.calls) == 2
    assert caplog.messages == ["the ledger holds an answer that this version cannot read: its call is made again"]


@pytest.mark.parametrize("reuse", ["same-line", "same-request"])
def test_an_answer_of_another_format_is_paid_again_and_neither_read_nor_replaced(start, reuse, monkeypatch, caplog):
    provider, ledger = Provider(), MemoryLedger()
    requests = chat(), RawRequest("m", {"a": 1}, "1"), EmbedRequest("m", ("a",), {}, "1", ("1",))
    ask(start(provider, ledger, reuse), *requests)
    before = dict(ledger.kept)
    monkeypatch.setattr(recall, "FORMAT", recall.FORMAT + 1)
    ask(start(provider, ledger, reuse), *requests)
    assert len(provider.calls) == len(ledger.kept) == 2 * len(requests)
    assert before.items() <= ledger.kept.items()
    assert caplog.messages == []


def test_an_answer_that_an_earlier_version_kept_without_its_body_is_not_paid_again():
    ledger, provider = MemoryLedger(), Provider()
    (paid,) = answered(provider, "same-line", chat(), ledger=ledger)
    ((key, value),) = ledger.kept.items()
    kept = json.loads(value)
    del kept["body"]
    ledger.kept[key] = json.dumps(kept).encode()
    assert (answered(provider, "same-line", chat(), ledger=ledger), len(provider.calls)) == ([paid], 1)


def test_a_vector_that_an_earlier_version_kept_is_not_paid_again_and_has_its_digits():
    request = EmbedRequest("m", ("a",), {}, "1")
    ledger, provider = MemoryLedger(), Provider()
    answered(provider, "same-line", request, ledger=ledger)
    before = (
        b'{"vectors": [[0.10000000149011612, -2.50]], "usage": {"input_tokens": 1, "output_tokens": 0, '
        b'"cached_tokens": 0, "reasoning_tokens": 0, "neurons": 1.5}, "model": "m", "request_id": null, '
        b'"warnings": [], "details": {}}'
    )
    ledger.kept = dict.fromkeys(ledger.kept, before)
    (again,) = answered(provider, "same-line", request, ledger=ledger)
    assert (again.vectors, again.usage) == (((0.10000000149011612, -2.5),), Usage(1, neurons=1.5))
    assert vector_json(again.vectors[0]) == b"[0.10000000149011612,-2.50]"
    assert len(provider.calls) == 1


def test_packed_vectors_are_kept_packed():
    class Packs(Provider):
        async def embed(self, request):
            return replace(await super().embed(request), vectors=(Vector(packed=b"\0\0\0\x3f" * 1024),))

    request, ledger, provider = EmbedRequest("m", ("a",), {}, "1"), MemoryLedger(), Packs()
    first, again = answered(provider, "same-line", request, request, ledger=ledger)
    assert first.vectors == again.vectors == ((0.5,) * 1024,)
    ((value),) = ledger.kept.values()
    assert (len(provider.calls), len(value) < 6000) == (1, True)


def test_a_vector_that_cannot_be_used_is_not_kept(start):
    ledger, provider = MemoryLedger(), Provider()
    provider.embed = bad_vectors(provider.embed, "bad")
    first = embed(start(provider, ledger), ["a", "bad", "b"])
    assert [type(done.error).__name__ for done in first] == ["NoneType", "BadReply", "NoneType"]
    assert len(ledger.kept) == 2
    embed(start(provider, ledger), ["a", "bad", "b"])
    assert [call.texts for call in provider.calls] == [("a", "bad", "b"), ("bad",)]


def bad_vectors(call, text):
    async def embedded(request):
        response = await call(request)
        vectors = tuple(
            () if one == text else vector for one, vector in zip(request.texts, response.vectors, strict=True)
        )
        return replace(response, vectors=vectors)

    return embedded


def test_the_shapes_of_answers_and_keys_are_those_of_the_format():
    # Where this fails: see the comment at FORMAT, and write the new values here.
    kinds = (ChatResponse, EmbedResponse, RawResponse, Usage)
    shape = [f"{kind.__name__}.{field.name}: {field.type}" for kind in kinds for field in fields(kind)]
    digest = hashlib.sha256("\n".join(shape).encode()).hexdigest()[:8]
    ledger = MemoryLedger()
    answered(Provider(), "same-line", chat(seed=1), ledger=ledger)
    assert (recall.FORMAT, digest, *(key[:8] for key in ledger.kept)) == (1, "e2db6771", "7d0923b1")


def test_a_place_in_the_window_is_free_only_when_the_answer_is_durable(start):
    now = most = 0  # calls begun whose answers are not kept yet

    class Slow(MemoryLedger):
        async def put(self, key, value, patience_s):
            nonlocal now
            while most < 3:  # noqa: ASYNC110 - however late a thread submits the next ones
                await asyncio.sleep(0.001)
            await asyncio.sleep(0.005)
            await super().put(key, value, patience_s)
            now -= 1

    def script(request):
        nonlocal now, most
        now += 1
        most = max(most, now)
        return asyncio.sleep(0.001)

    ledger = Slow()
    done = ask(start(Provider(script), ledger, window=3), *(chat(line) for line in range(20)))
    assert [each.error for each in done] == [None] * 20
    assert (now, most, len(ledger.kept)) == (0, 3, 20)


@pytest.mark.parametrize(
    ("request_", "response"),
    [
        (
            chat(),
            ChatResponse(
                ODD,
                "tool_calls",
                Usage(1, 2, 3, 4, 0.1),
                "m-2",
                "ray",
                "thought",
                ({"id": "1", "function": {"name": "f", "arguments": '{"a": 1}'}},),
                ("cut", "dropped"),
            ),
        ),
        (chat(), ChatResponse(None, None, Usage(), "m")),
        (EmbedRequest("m", ("a",)), EmbedResponse(((0.1, -1e-300, 5e300, 3.0),), Usage(1), "m", "ray")),
        (RawRequest("m", {}), RawResponse({"a": [ODD, 1, 1.0, True, None, 2**70], "b": {}}, Usage(), "m")),
        (RawRequest("m", {}), RawResponse("text", Usage(neurons=2.5), "m")),
        (RawRequest("m", {}), RawResponse(None, Usage(), "m")),
        (RawRequest("m", {}), RawResponse([math.inf, -math.inf], Usage(), "m")),
    ],
)
def test_every_kind_of_response_comes_back_as_it_was(tmp_path, request_, response):
    async def call(request):
        calls.append(request)
        return response

    async def twice():
        recall = Recall(open_ledger(f"sqlite:///{tmp_path}/ledger.sqlite"), "same-line")
        try:
            return [await recall.answer("fake", request_, call) for _ in range(2)], recall.broken
        finally:
            await recall.aclose()

    calls = []
    (first, second), broken = asyncio.run(twice())
    assert first == second == response
    assert repr(second) == repr(response)  # 1, 1.0 and True are equal
    assert (len(calls), broken) == (1, None)


def test_a_vector_that_is_not_a_number_comes_back():
    class Odd(Provider):
        async def embed(self, request):
            await super().embed(request)
            return EmbedResponse(((math.nan, 1.0),), Usage(), "m")

    provider, request = Odd(), EmbedRequest("m", ("a",))
    _, second = answered(provider, "same-line", request, request)
    assert math.isnan(second.vectors[0][0])
    assert len(provider.calls) == 1


def test_an_error_of_the_gate_stops_the_engine_before_a_further_call(start):
    def script(request):
        closed.append(StopRun("asleep"))

    closed, provider = [], Provider(script)
    engine = start(provider, MemoryLedger(), window=1, gate=lambda: closed[0] if closed else None)
    first, second, third = ask(engine, chat("1"), chat("2"), chat("3"))
    assert first.response.text == "1"
    assert second.error is third.error is closed[0]
    assert (second.attempts, len(provider.calls)) == (0, 1)
    assert engine.stopped is closed[0]


def test_the_gate_is_asked_before_a_retry(start):
    def script(request):
        closed.append(StopRun("asleep"))
        raise Overloaded("later")

    closed, provider = [], Provider(script)
    (done,) = ask(start(provider, MemoryLedger(), gate=lambda: closed[0] if closed else None), chat())
    assert done.error is closed[0]
    assert (done.attempts, len(provider.calls)) == (1, 1)


def test_closing_the_engine_closes_the_ledger(start):
    ledger = MemoryLedger()
    engine = start(Provider(), ledger)
    engine.close()
    assert ledger.closed


@pytest.mark.parametrize("reuse", ["same-line", "same-request"])
def test_a_second_engine_on_the_same_ledger_makes_no_call(start, tmp_path, reuse):
    def all_of_it(provider):
        engine = start(provider, open_ledger(f"sqlite:///{tmp_path}/ledger.sqlite"), reuse, window=8)
        lines = [chat(line, f"text {line}") for line in range(50)]
        done = ask(engine, *lines, RawRequest("m", {"a": 1}, "r"))
        done += embed(engine, ["a", "bb", "ccc"], ["e1", "e2", "e3"])
        engine.close()
        return [each.response for each in done], {each.attempts for each in done}

    first, second = Provider(), Provider()
    answers, attempts = all_of_it(first)
    assert (attempts, len(first.calls)) == ({1}, 52)
    assert all_of_it(second) == (answers, {0})
    assert second.calls == []


# Who counts what was paid.


def test_of_equal_requests_in_flight_only_the_one_that_called_counts(start):
    provider = Provider(lambda _: asyncio.sleep(0.02))
    done = ask(start(provider, MemoryLedger(), "same-request"), *(chat(line) for line in range(4)))
    assert len(provider.calls) == 1
    assert [each.response.shared for each in done] == [each.attempts == 0 for each in done]
    assert [each.response.shared for each in done].count(False) == 1
    assert {each.response.usage for each in done} == {Usage(2, 1)}


def test_a_kept_answer_counts_for_the_line_that_paid_for_it_in_any_later_run(start):
    ledger = MemoryLedger()
    ask(start(Provider(), ledger, "same-request"), chat("payer"))
    later = Provider(lambda _: asyncio.sleep(0.02))
    for _ in range(2):  # also where others ask for it first, at the same time
        lines = ["a", "payer", "b"]
        done = ask(start(later, ledger, "same-request"), *map(chat, lines))
        assert [each.response.shared for each in done] == [True, False, True]
    assert later.calls == []


def test_a_line_that_waits_for_its_own_call_made_twice_counts_in_both():
    """Two bundles of one line: only one of their rows will count."""
    provider = Provider(lambda _: asyncio.sleep(0.02))

    async def both():
        recall = Recall(MemoryLedger(), "same-request")
        asked = [recall.answer("fake", chat("1"), provider.execute) for _ in range(2)]
        return await asyncio.gather(*asked)

    assert [response.shared for response in asyncio.run(both())] == [False, False]
    assert len(provider.calls) == 1


def test_when_a_shared_call_fails_whoever_calls_next_counts(start):
    def script(request):
        if len(provider.calls) < 3:
            raise Overloaded("later")

    provider = Provider(script)
    done = ask(start(provider, MemoryLedger(), "same-request"), *(chat(line) for line in range(4)))
    assert [each.response.shared for each in done].count(False) == 1


@pytest.mark.parametrize("reuse", ["same-line", "same-request"])
def test_an_answer_that_an_earlier_version_has_kept_counts_as_it_did(start, reuse):
    ledger = MemoryLedger()
    ask(start(Provider(), ledger, reuse), chat("1"))
    for key, value in ledger.kept.items():
        entry = json.loads(value)
        entry.pop("paid_by", None)
        assert not {"shared", "parts"} & entry.keys()
        ledger.kept[key] = json.dumps(entry).encode()
    (done,) = ask(start(Provider(), ledger, reuse), chat("1"))
    assert (done.attempts, done.response.shared, done.response.usage) == (0, False, Usage(2, 1))


def test_without_line_ids_whoever_waits_shares_and_kept_answers_count():
    provider, ledger = Provider(lambda _: asyncio.sleep(0.02)), MemoryLedger()

    async def three():
        recall = Recall(ledger, "same-request")
        asked = [recall.answer("fake", chat(""), provider.execute) for _ in range(3)]
        return await asyncio.gather(*asked), await recall.answer("fake", chat(""), provider.execute)

    waited, kept = asyncio.run(three())
    assert [response.shared for response in waited] == [False, True, True]
    assert not kept.shared


@pytest.mark.parametrize("reuse", ["same-line", "same-request"])
def test_equal_texts_of_an_array_are_sent_once_and_counted_once_now_and_later(start, reuse):
    ledger, provider = MemoryLedger(), Provider()
    texts, lines = ["aa", "b", "aa", "aa", "cccc"], ["1", "1", "1", "2", "2"]
    done = embed(start(provider, ledger, reuse), texts, lines)
    one_more = reuse == "same-line"  # an equal text of another line is another one
    assert [request.texts for request in provider.calls] == [("aa", "b", *(("aa",) if one_more else ()), "cccc")]
    shared = [False, False, True, not one_more, False]
    later = Provider()
    again = embed(start(later, ledger, reuse), texts, lines)
    others_first = embed(start(later, ledger, reuse), texts[::-1], lines[::-1])[::-1]
    assert later.calls == []
    for found in (done, again, others_first):
        assert [each.response.vectors[0][0] for each in found] == [2.0, 1.0, 2.0, 2.0, 4.0]
        counted = [each.response for each in found if not each.response.shared]
        assert sum(response.usage.input_tokens for response in counted) == 7 + 2 * one_more
        assert sum(response.usage.neurons for response in counted) == pytest.approx(1.5)
    assert [each.response.shared for each in done] == [each.response.shared for each in again] == shared


def test_texts_that_another_line_paid_for_are_shared_and_the_others_have_the_usage_of_their_call(start):
    ledger = MemoryLedger()
    engine = start(Provider(), ledger, "same-request")
    embed(engine, ["aa", "bbbb"], ["1", "1"])
    done = embed(engine, ["aa", "ccccc", "bbbb", "d"], ["2", "2", "2", "3"])
    assert [each.response.shared for each in done] == [True, False, True, False]
    assert [each.response.usage.input_tokens for each in done] == [2, 5, 4, 1]
