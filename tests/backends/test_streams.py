"""Answers that are heard while they are generated: whole ones all the same, through the engine as well."""

import asyncio
import threading
from dataclasses import replace

import pytest

from llmdo.backends.connections import Connections
from llmdo.backends.engine.engine import Engine
from llmdo.backends.engine.settings import CallSettings
from llmdo.backends.errors import Overloaded, StreamError
from llmdo.backends.limits.retry import set_instant
from llmdo.backends.requests import ChatRequest, Message
from llmdo.backends.responses import ChatResponse, StreamChunk
from llmdo.backends.streams import heard
from llmdo.backends.usage import Usage
from tests.backends.conformance import SECRET
from tests.backends.services import SUBJECTS

HTTP = [subject for subject in SUBJECTS if subject.service]
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]


@pytest.fixture(autouse=True)
def secrets(monkeypatch):
    for variable in ("CLOUDFLARE_API_TOKEN", "OPENAI_API_KEY", "BRAINTRUST_API_KEY"):
        monkeypatch.setenv(variable, SECRET)


class Streaming:
    """Stands for a provider: gives these chunks, or raises where one is an error."""

    name = "fake"

    def __init__(self, *tries):
        self.tries = list(tries)

    async def execute_stream(self, request):
        for chunk in self.tries.pop(0):
            if isinstance(chunk, Exception):
                raise chunk
            await asyncio.sleep(0)
            yield chunk

    async def execute(self, request):
        return ChatResponse("whole", "stop", Usage(), request.model)

    async def aclose(self):
        pass


def ask(listen=None):
    return ChatRequest("m", (Message("user", "?"),), {}, "1", listen)


@pytest.mark.parametrize("subject", HTTP, ids=str)
@pytest.mark.parametrize("tools", [{}, {"tools": TOOLS, "tool_choice": "required"}], ids=["text", "tools"])
def test_what_is_heard_is_what_would_be_answered(subject, tools):
    chunks = []

    async def both():
        async with subject.backend() as backend:
            request = subject.ask(**tools)
            return await backend.execute(request), await heard(backend, replace(request, listen=chunks.append))

    whole, said = asyncio.run(both())
    fields = ("text", "finish_reason", "usage", "model", "reasoning", "tool_calls")
    assert {name: getattr(said, name) for name in fields} == {name: getattr(whole, name) for name in fields}
    assert (chunks[0].kind, chunks[-1].kind) == ("start", "done")
    assert "".join(chunk.text for chunk in chunks) == (whole.text or "")


def test_all_that_a_stream_tells_is_in_the_answer():
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    stream = Streaming(
        [
            StreamChunk("start"),
            StreamChunk("metadata", details={"model": "m-2", "warnings": ("other",)}),
            StreamChunk("metadata", details={"reasoning": "so "}),
            StreamChunk("metadata", details={"reasoning": "so"}),
            StreamChunk("content", "a"),
            StreamChunk("content", "b"),
            StreamChunk("tool_use", tool_call=call),
            StreamChunk("metadata", details={"log_id": "x", "warnings": ("cut",)}),
            StreamChunk("done", finish_reason="length", usage=Usage(1, 2)),
        ]
    )
    assert asyncio.run(heard(stream, ask())) == ChatResponse(
        "ab", "length", Usage(1, 2), "m-2", None, "so so", (call,), ("other", "cut"), {"log_id": "x"}
    )


def test_a_stream_that_breaks_off_is_no_answer():
    chunks = []
    stream = Streaming([StreamChunk("start"), StreamChunk("content", "a"), StreamError("broken")])
    with pytest.raises(StreamError):
        asyncio.run(heard(stream, ask(chunks.append)))
    assert [chunk.kind for chunk in chunks] == ["start", "content"]


def test_only_a_request_that_is_listened_to_is_streamed():
    async def both():
        connections = Connections(lambda name: Streaming([StreamChunk("content", "piece")]))
        return [(await connections.answer("fake", ask(listen), 5.0)).text for listen in (None, lambda chunk: None)]

    assert asyncio.run(both()) == ["whole", "piece"]


def test_each_try_of_the_engine_is_heard_from_its_start():
    chunks, ended, done = [], [], threading.Event()
    stream = Streaming(
        [StreamChunk("start"), StreamChunk("content", "a"), Overloaded("busy")],
        [StreamChunk("start"), StreamChunk("content", "a"), StreamChunk("content", "b")],
    )
    set_instant(True)
    engine = Engine(CallSettings(1), lambda _: stream)
    try:
        engine.submit("fake", ask(chunks.append), lambda each: (ended.append(each), done.set()))
        assert done.wait(60.0)
    finally:
        engine.close()
        set_instant(False)
    assert (ended[0].response.text, ended[0].attempts) == ("ab", 2)
    assert "".join(chunk.text or chunk.kind[0] for chunk in chunks) == "sasab"
