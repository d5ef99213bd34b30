"""The embedded model, really loaded and really asked."""

import asyncio
import os
import subprocess
import sys
import threading
import time

import pytest

from llmdo.backends.engine.engine import Engine
from llmdo.backends.engine.settings import CallSettings
from llmdo.backends.errors import ContextOverflow, InvalidRequest, ModelNotFound
from llmdo.backends.llama_cpp import weights as llama_weights
from llmdo.backends.llama_cpp.backend import CHAT_MODEL, EMBEDDING_MODEL, LlamaCpp
from llmdo.backends.llama_cpp.weights import Weights
from llmdo.backends.requests import ChatRequest, EmbedRequest, Message, RawRequest

pytestmark = pytest.mark.model

CAPITAL = "What is the capital of France?"


def ask(text=CAPITAL, system=(), **parameters):
    return ChatRequest(CHAT_MODEL, (*system, Message("user", text)), {"max_tokens": 24, **parameters})


@pytest.fixture(scope="module", autouse=True)
def loaded():
    """Keeps the weights loaded over the tests of this module."""
    weights = Weights()
    yield
    weights.close()


def call(method, request):
    async def scenario():
        backend = LlamaCpp()
        try:
            return await getattr(backend, method)(request)
        finally:
            await backend.aclose()

    return asyncio.run(scenario())


def stream(request):
    async def scenario():
        return [chunk async for chunk in LlamaCpp().execute_stream(request)]

    return asyncio.run(scenario())


def test_a_real_question_gets_a_real_answer_twice_the_same():
    first, second = call("execute", ask()), call("execute", ask())
    assert "Paris" in first.text
    assert (first.text, first.finish_reason, first.model) == (second.text, "stop", CHAT_MODEL)
    assert first.usage.input_tokens > 10
    assert 0 < first.usage.output_tokens < 24
    assert first.warnings == ()


def test_many_at_once_get_the_same_answers_as_one_by_one():
    requests = [ask(f"Name the colour of {thing}.", max_tokens=12) for thing in ("snow", "grass", "blood", "coal")]

    async def scenario():
        backend = LlamaCpp()
        return await asyncio.gather(*(backend.execute(request) for request in requests))

    together = asyncio.run(scenario())
    assert [answer.text for answer in together] == [call("execute", request).text for request in requests]
    assert len({answer.text for answer in together}) > 1


def test_max_tokens_is_kept_and_the_cut_is_said():
    answer = call("execute", ask("Tell me a long story about a river.", max_tokens=5))
    assert (answer.usage.output_tokens, answer.finish_reason) == (5, "length")
    assert answer.warnings == ("the answer is cut off at 5 tokens: raise max_tokens",)


def test_a_stream_says_the_same_as_the_whole_answer():
    request = ask("List three colours.", max_tokens=16)
    chunks, whole = stream(request), call("execute", request)
    assert "".join(chunk.text for chunk in chunks) == whole.text
    assert [chunks[0].kind, chunks[1].kind, chunks[-1].kind] == ["start", "content", "done"]
    assert chunks[-1].finish_reason == whole.finish_reason
    assert chunks[-1].usage.output_tokens == whole.usage.output_tokens


def test_a_system_message_is_heeded_instead_of_ours():
    system = (Message("system", "You speak only French."),)
    assert call("execute", ask(system=system)).text != call("execute", ask()).text


def test_json_can_be_enforced():
    schema = {"type": "object", "properties": {"answer": {"type": "boolean"}}, "required": ["answer"]}
    wanted = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    answer = call("execute", ask("Is Paris in France?", response_format=wanted, max_tokens=30))
    assert answer.text.replace("\n", "").replace(" ", "") in ('{"answer":true}', '{"answer":false}')


def test_tools_are_left_out_with_a_warning():
    answer = call("execute", ask(tools=[{"type": "function", "function": {"name": "f", "parameters": {}}}]))
    assert "Paris" in answer.text
    assert answer.warnings == (f"tools was left out: {CHAT_MODEL} cannot use it",)


def test_what_llama_cpp_would_ignore_is_named():
    answer = call("execute", ask(service_tier="flex", max_tokens=3, top_k=4))
    assert answer.warnings[:-1] == (f"service_tier was left out: {CHAT_MODEL} cannot use it",)
    vectors = call("embed", EmbedRequest(EMBEDDING_MODEL, ("a",), {"dimensions": 9, "encoding_format": "base64"}))
    assert vectors.warnings == (f"dimensions was left out: {EMBEDDING_MODEL} cannot use it",)


@pytest.mark.parametrize(
    ("request_", "kind", "says"),
    [
        (ask("word " * 3000), ContextOverflow, "2048"),
        (ask(temperature="hot"), InvalidRequest, "temperature"),
        (ask(max_tokens=0), InvalidRequest, "max_tokens"),
        (ask(response_format={"type": "json_schema", "json_schema": {"schema": {"type": "no"}}}), InvalidRequest, "no"),
        (ask(({"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},)), InvalidRequest, "image"),
        (ChatRequest(CHAT_MODEL, ()), InvalidRequest, "no messages"),
        (ChatRequest(EMBEDDING_MODEL, (Message("user", "x"),)), InvalidRequest, f"name local/{CHAT_MODEL}"),
        (ChatRequest("gpt-4o", (Message("user", "x"),)), ModelNotFound, f"local/{CHAT_MODEL}, local/{EMBEDDING_MODEL}"),
    ],
)
def test_what_the_model_cannot_do_is_an_error_that_says_what_to_do(request_, kind, says):
    with pytest.raises(kind, match=says) as caught:
        call("execute", request_)
    assert caught.value.provider == "local"
    with pytest.raises(kind, match=says):
        stream(request_)


def test_embeddings_have_length_one_and_the_same_text_the_same_vector():
    texts = ("Stock markets fell sharply on Monday.", "Shares dropped at the start of the week.", "The cat sat there.")
    response = call("embed", EmbedRequest(EMBEDDING_MODEL, (*texts, texts[0])))
    assert [len(vector) for vector in response.vectors] == [576] * 4
    assert [sum(x * x for x in vector) for vector in response.vectors] == pytest.approx([1.0] * 4, abs=1e-4)

    def likeness(a, b):
        return sum(x * y for x, y in zip(response.vectors[a], response.vectors[b], strict=True))

    assert likeness(0, 3) > 0.999
    assert likeness(0, 3) > likeness(0, 1) > likeness(0, 2)
    assert response.usage.input_tokens > 20


@pytest.mark.parametrize(
    ("request_", "kind"),
    [
        (EmbedRequest(EMBEDDING_MODEL, ("a", "")), InvalidRequest),
        (EmbedRequest(EMBEDDING_MODEL, ("word " * 3000,)), ContextOverflow),
        (EmbedRequest(CHAT_MODEL, ("a",)), InvalidRequest),
    ],
)
def test_a_text_that_cannot_be_embedded_is_an_error(request_, kind):
    with pytest.raises(kind):
        call("embed", request_)


def test_an_array_with_a_bad_text_gives_vectors_for_the_others():
    backend, done, all_there = LlamaCpp(), {}, threading.Event()
    texts = ["one", "", "three", "four"]

    def deliver(index, result):
        done[index] = result
        if len(done) == len(texts):
            all_there.set()

    engine = Engine(CallSettings(2), lambda _: backend)
    try:
        engine.submit_texts("local", EMBEDDING_MODEL, texts, {}, deliver)
        assert all_there.wait(60)
    finally:
        engine.close()
    assert {index for index, result in done.items() if result.error} == {1}
    assert all(len(done[index].response.vectors[0]) == 576 for index in (0, 2, 3))


def test_there_is_no_native_input():
    with pytest.raises(InvalidRequest, match="image"):
        call("run", RawRequest(CHAT_MODEL, {"image": [1]}))


def test_its_models_are_listed_with_names_for_the_command_line():
    models = asyncio.run(LlamaCpp().list_models())
    assert [model.name for model in models] == [f"local/{CHAT_MODEL}", f"local/{EMBEDDING_MODEL}"]
    assert (LlamaCpp().max_texts(EMBEDDING_MODEL), LlamaCpp().max_texts(CHAT_MODEL)) == (32, 1)


def test_a_cancelled_answer_stops_and_leaves_the_slot_to_others():
    async def scenario():
        backend = LlamaCpp()
        await backend.execute(ask(max_tokens=1))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await backend.execute(ask("Tell me a very long story.", max_tokens=2000))
        return await backend.execute(ask())

    assert "Paris" in asyncio.run(scenario()).text
    end = time.monotonic() + 60
    while any(thread.name == "llmdo-llama" for thread in threading.enumerate()):
        assert time.monotonic() < end
        time.sleep(0.01)


def test_the_event_loop_goes_on_while_the_model_thinks():
    async def scenario():
        backend, ticks = LlamaCpp(), 0
        answering = asyncio.create_task(backend.execute(ask("Tell me a story.", max_tokens=24)))
        while not answering.done():
            await asyncio.sleep(0.001)
            ticks += 1
        return ticks

    assert asyncio.run(scenario()) > 10


def test_weights_are_loaded_once_and_freed_with_their_last_user(monkeypatch):
    loads = []

    def load(embedding):
        loads.append(embedding)
        return object()

    monkeypatch.setattr(llama_weights, "_servers", {})
    monkeypatch.setattr(llama_weights, "_users", set())
    monkeypatch.setattr(llama_weights, "_load", load)
    first, second = Weights(), Weights()
    servers = []
    threads = [threading.Thread(target=lambda: servers.append(first.server(embedding=False))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert second.server(embedding=False) is servers[0]
    assert loads == [False]
    first.close()
    assert second.server(embedding=False) is servers[0]
    second.close()
    assert llama_weights._servers == {}


def test_nothing_is_written_to_the_console_and_the_process_ends_while_an_answer_is_running():
    script = """
import asyncio
from llmdo.backends.requests import ChatRequest, Message
from llmdo.backends.llama_cpp.backend import CHAT_MODEL, LlamaCpp

async def main():
    backend = LlamaCpp()
    request = ChatRequest(CHAT_MODEL, (Message("user", "A long story!"),), {"max_tokens": 2000})
    asyncio.create_task(backend.execute(request))
    await asyncio.sleep(1)

asyncio.run(main())
"""
    ended = subprocess.run(
        [sys.executable, "-c", script],
        check=False,
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "PYTHONPATH": "."},
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


DOUBLING = {f"a{n}": {"anyOf": [{"$ref": f"#/$defs/a{n + 1}"}] * 2} for n in range(30)}
CHAIN = {f"a{n}": {"$ref": f"#/$defs/a{n + 1}"} for n in range(5000)}


@pytest.mark.parametrize(
    "schema",
    [
        {"$defs": {**DOUBLING, "a30": {"type": "string"}}, "$ref": "#/$defs/a0"},
        {"$defs": {**CHAIN, "a5000": {"type": "string"}}, "$ref": "#/$defs/a0"},
        {"enum": [f"value {n}" for n in range(50_000)]},
        {"type": "string", "pattern": "^" + "(a|b)*" * 20_000 + "$"},
    ],
    ids=["references that double", "a chain of references", "a long enum", "a long pattern"],
)
def test_a_schema_whose_grammar_would_take_minutes_is_refused_before(schema):
    wanted = {"type": "json_schema", "json_schema": {"schema": schema}}
    with pytest.raises(InvalidRequest, match="over 10,000 parts, counting references: make it smaller"):
        LlamaCpp().check(ask(response_format=wanted))


@pytest.mark.parametrize("more", [{}, {"enum": ["a"] * 1000}, {"$ref": "#/$defs/none"}, {"$ref": "#/$defs/tree"}])
def test_a_schema_of_usual_size_is_taken(more):
    tree = {"properties": {"below": {"items": {"$ref": "#/$defs/tree"}}, "next": {"$ref": "#/$defs/tree"}}}
    wanted = {"type": "json_schema", "json_schema": {"schema": {"$defs": {"tree": tree}, **more}}}
    LlamaCpp().check(ask(response_format=wanted))
