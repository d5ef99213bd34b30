import asyncio
import gc
import os
import subprocess
import sys
import threading

import httpx
import pytest

from llmdo import Model, connect, connect_async
from llmdo.backends.errors import InvalidRequest, ModelNotFound, Overloaded
from llmdo.backends.openai.backend import OpenAI, Service
from llmdo.backends.requests import ChatRequest, EmbedRequest, Message, RawRequest
from llmdo.local.ai.echo import Echo
from tests.backends.conformance import ANSWER
from tests.backends.services import OPENAI_STREAM, openai_shape
from tests.backends.wire import Wire
from tests.local.ai.tasks import MODELS

ROWS = {row.name: row for row in MODELS}
CHAT, EMBED = "@cf/echo/chat", "@cf/echo/embed"


@pytest.fixture
def model():
    with Model(Echo(ROWS), CHAT) as model:
        yield model


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "llmdo-model"]


def test_a_prompt_and_a_request_are_answered(model):
    assert model.execute("a b c", max_tokens=2).text == "echo: a"
    assert model.execute(ChatRequest(CHAT, (Message("user", "a"),))).text == "echo: a"
    assert model.name == f"echo/{CHAT}"


def test_keywords_go_before_a_requests_own_parameters(model):
    request = ChatRequest(CHAT, (Message("user", "a b c"),), {"max_tokens": 3})
    assert model.execute(request, max_tokens=2).text == "echo: a"
    seen = []

    class Seeing(Echo):
        async def embed(self, request):
            seen.append(request.parameters)
            return await super().embed(request)

    with Model(Seeing(ROWS), EMBED) as embedder:
        embedder.embed(EmbedRequest(EMBED, ("a",), {"pooling": "cls"}), truncate_inputs=True)
    assert seen == [{"pooling": "cls", "truncate_inputs": True}]


@pytest.mark.parametrize("name", ["stream", "messages", "model", "stream_options"])
def test_a_keyword_that_is_no_parameter_is_refused(model, name):
    with pytest.raises(InvalidRequest, match=f"{name} is not a parameter"):
        model.execute("a", **{name: "x"})


def test_pieces_come_one_by_one(model):
    pieces = model.execute_stream("a b")
    assert [next(pieces).kind for _ in range(2)] == ["start", "content"]
    assert "".join(piece.text for piece in pieces) == "a b"


def test_more_texts_than_a_call_takes_are_embedded_in_their_order():
    texts = [f"text {number}" for number in range(250)]
    calls = []

    class Counting(Echo):
        async def embed(self, request):
            calls.append(len(request.texts))
            return await super().embed(request)

    with Model(Counting(ROWS), EMBED) as model:
        response = model.embed(texts)
        assert calls == [100, 100, 50]
        assert [model.embed(text).vectors[0] for text in texts[99:101]] == list(response.vectors[99:101])
        assert model.embed(EmbedRequest(EMBED, ("a",))).usage.input_tokens == 1
        with pytest.raises(InvalidRequest, match="no texts"):
            model.embed([])
    assert (len(response.vectors), response.usage.input_tokens) == (250, 500)


def test_errors_come_as_they_are(model):
    with pytest.raises(ModelNotFound):
        model.execute(ChatRequest("none", (Message("user", "a"),)))
    with pytest.raises(InvalidRequest):
        model.run({"image": [1]})
    with pytest.raises(InvalidRequest):
        model.run(RawRequest(CHAT, {}))
    with pytest.raises(ModelNotFound):
        next(piece for piece in model.execute_stream(ChatRequest("none", ())) if piece.kind == "done")
    model.health()


def test_a_provider_without_a_model_lists_and_says_what_is_missing(monkeypatch):
    with connect("local") as provider:
        assert "local/smollm2-135m-instruct" in {info.name for info in provider.list_models().models}
        assert repr(provider) == "<Model local>"
        with pytest.raises(InvalidRequest, match="connect to local/MODEL"):
            provider.execute("a")
    with pytest.raises(ModelNotFound):
        connect("nobody/x")


def test_closing_ends_the_thread_and_the_second_time_does_nothing(model):
    before = len(threads())
    pieces = model.execute_stream("a b")
    next(pieces)
    model.close()
    model.close()
    assert len(threads()) == before - 1
    with pytest.raises(RuntimeError, match="connect again"):
        model.execute("a")
    with pytest.raises(RuntimeError, match="connect again"):
        next(pieces)


def test_a_model_that_is_forgotten_is_closed():
    closed = threading.Event()

    class Watched(Echo):
        async def aclose(self):
            closed.set()

    model = Model(Watched(ROWS), CHAT)
    model.execute("a")
    del model
    gc.collect()
    assert closed.wait(60)


def test_many_threads_may_call_one_model(model):
    said = []
    callers = [threading.Thread(target=lambda i=i: said.append(model.execute(f"{i}").text)) for i in range(20)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert sorted(said) == sorted(f"echo: {i}" for i in range(20))


def test_it_works_inside_a_program_that_has_a_loop_and_beside_the_async_one():
    async def scenario():
        backend = connect_async("local")
        try:
            with Model(Echo(ROWS), CHAT) as model:
                return model.execute("a").text, await backend.list_models()
        finally:
            await backend.aclose()

    text, listed = asyncio.run(scenario())
    assert text == "echo: a"
    assert len(listed) == 2


def test_a_stream_that_is_left_gives_its_connection_back():
    closed = threading.Event()

    class Body(httpx.AsyncByteStream):
        async def __aiter__(self):
            yield OPENAI_STREAM[:-20]
            await asyncio.Event().wait()

        async def aclose(self):
            closed.set()

    reply = httpx.Response(200, stream=Body(), headers={"content-type": "text/event-stream"})
    backend = OpenAI(Service("openai", "http://127.0.0.1:1/v1", {}, "K"), Wire(lambda _: reply))
    with Model(backend, "m") as model:
        for piece in model.execute_stream("a"):
            if piece.text:
                break
        gc.collect()
        assert closed.wait(60)


def test_a_backend_over_http_is_called_from_plain_code():
    service = Service("openai", "http://127.0.0.1:1/v1", {}, "K")
    with Model(OpenAI(service, Wire(openai_shape)), "gpt-4o") as model:
        assert model.execute("?").text == ANSWER
        assert "".join(piece.text for piece in model.execute_stream("?")) == ANSWER
    with (
        Model(OpenAI(service, Wire(lambda _: httpx.Response(500))), "m") as model,
        pytest.raises(Overloaded),
    ):
        model.execute("?")


def test_a_program_that_closes_nothing_ends_without_a_word():
    script = """
import http.server, threading
from llmdo import Model
from llmdo.backends.openai.backend import OpenAI, Service

class Answer(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        body = b'{"model": "m", "choices": [{"message": {"content": "Paris"}, "finish_reason": "stop"}]}'
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_): pass

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
server.daemon_threads = True
threading.Thread(target=server.serve_forever, daemon=True).start()
url = f"http://127.0.0.1:{server.server_port}/v1"
print(Model(OpenAI(Service("openai", url, {}, "K")), "m").execute("?").text)
model = Model(OpenAI(Service("openai", url, {}, "K")), "m")
print(model.execute("?").text)
"""
    ended = subprocess.run(
        [sys.executable, "-c", script],
        check=False,
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "PYTHONPATH": "."},
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "Paris\nParis\n", "")
