import asyncio
import json

import httpx
import pytest

from backends.errors import (
    CallTimeout,
    ContentFiltered,
    InvalidRequest,
    Overloaded,
    QuotaExhausted,
    StreamError,
)
from backends.ir import ChatRequest, Message, Usage
from backends.workers_ai import WorkersAI
from storage.environment import CloudflareAccount

LLAMA = "@cf/meta/llama-3.3-70b-instruct-fp8-fast"
REQUEST = ChatRequest(LLAMA, (Message("user", "Hello"),), {"max_tokens": 50})
USAGE = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}


def stream(*events, status=200):
    lines = [event if isinstance(event, str) else json.dumps(event) for event in events]
    return httpx.Response(
        status,
        content="".join(f"data: {line}\n\n" for line in lines).encode(),
        headers={"content-type": "text/event-stream; charset=utf-8"},
    )


def delta(text=None, finish=None, **more):
    return {"choices": [{"index": 0, "delta": {"content": text, **more}, "finish_reason": finish}]}


def chunks(*replies):
    """The chunks that come of the replies, and the bodies that were sent."""
    left, bodies = list(replies), []

    def answer(request):
        bodies.append(json.loads(request.content))
        return left.pop(0)

    async def scenario():
        backend = WorkersAI(CloudflareAccount("0" * 32, "t"), httpx.MockTransport(answer), clock=lambda: 0.0)
        return [chunk async for chunk in backend.execute_stream(REQUEST)]

    return asyncio.run(scenario()), bodies


@pytest.mark.parametrize(
    ("reply", "finish", "usage"),
    [
        (stream({"response": "Pa"}, {"response": "ris", "usage": USAGE}, "[DONE]"), None, Usage(5, 3)),
        (stream({"response": "Pa", "p": "abc"}, {"response": "ris"}, "[DONE]"), None, Usage()),
        (stream(delta("Pa"), delta("ris"), delta(finish="stop"), "[DONE]"), "stop", Usage()),
        (stream(delta("Pa"), delta("ris", "stop"), {"choices": [], "usage": USAGE}, "[DONE]"), "stop", Usage(5, 3)),
        (stream(delta("Pa"), delta("ris", "length")), "length", Usage()),
        (stream(delta(reasoning_content="hm"), delta("Paris"), delta(None, "stop", tool_calls=None)), "stop", Usage()),
        (
            stream({"response": "Paris", "usage": {"prompt_tokens": 5, "completion_tokens": 50}}, "[DONE]"),
            "length",
            Usage(5, 50),
        ),
        (stream({"response": "Paris"}, "[DONE]", "{broken after the end"), None, Usage()),
    ],
)
def test_a_stream_becomes_start_content_and_done(reply, finish, usage):
    found, bodies = chunks(reply)
    assert [chunk.sequence for chunk in found] == list(range(len(found)))
    assert [found[0].kind, found[-1].kind] == ["start", "done"]
    assert all(chunk.kind == "content" for chunk in found[1:-1])
    assert "".join(chunk.text for chunk in found) == "Paris"
    assert (found[-1].finish_reason, found[-1].usage) == (finish, usage)
    assert bodies == [{"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 50, "stream": True}]


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (stream({"response": "Pa"}), StreamError),
        (stream(delta("Pa")), StreamError),
        (stream(), StreamError),
        (stream({"response": "Pa"}, '{"response": "r'), StreamError),
        (stream({"errors": [{"code": 3040, "message": "Capacity temporarily exceeded"}]}), Overloaded),
        (stream({"response": "Pa"}, {"error": {"code": 3007, "message": "timeout"}}), CallTimeout),
        (stream({"errors": [{"code": 3036, "message": "used"}]}), QuotaExhausted),
        (stream({"errors": [{"code": 9999, "message": "unheard of"}]}), StreamError),
        (stream(delta("Pa"), delta(finish="content_filter"), "[DONE]"), ContentFiltered),
        (httpx.Response(429, json={"success": False, "errors": [{"code": 3040, "message": "m"}]}), Overloaded),
        (httpx.Response(200, json={"success": False, "errors": [{"code": 5006, "message": "m"}]}), InvalidRequest),
        (httpx.Response(502, html="<h1>502</h1>"), Overloaded),
        (stream({"errors": [{"code": 3040}]}, status=503), Overloaded),
    ],
)
def test_a_stream_that_is_no_whole_answer_is_an_error(reply, kind):
    with pytest.raises(kind):
        chunks(reply)


def test_a_model_that_sends_json_instead_of_a_stream_is_read_whole():
    reply = httpx.Response(200, json={"result": {"response": "Paris", "usage": USAGE}, "success": True})
    found, bodies = chunks(reply)
    assert [(c.kind, c.text) for c in found] == [("start", ""), ("content", "Paris"), ("done", "")]
    assert found[-1].usage == Usage(5, 3)
    assert len(bodies) == 1


def test_a_model_that_sends_empty_json_instead_of_a_stream_is_asked_again_without_streaming():
    empty = httpx.Response(200, json={"result": {}, "success": True})
    found, bodies = chunks(empty, httpx.Response(200, json={"result": {"response": "Paris"}, "success": True}))
    assert "".join(c.text for c in found) == "Paris"
    assert [body.get("stream") for body in bodies] == [True, None]


def test_a_connection_that_breaks_inside_a_stream_is_a_broken_stream():
    class Breaking(httpx.AsyncByteStream):
        async def __aiter__(self):
            yield b'data: {"response": "Pa"}\n\n'
            raise httpx.ReadError("reset")

    with pytest.raises(StreamError, match="broke off"):
        chunks(httpx.Response(200, stream=Breaking(), headers={"content-type": "text/event-stream"}))


def test_pieces_come_as_they_arrive():
    """The server sends the second piece only after the first has come out at the other end."""

    async def scenario():
        first_came = asyncio.Event()

        async def answer(reader, writer):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
            writer.write(b'data: {"response": "one"}\n\n')
            await first_came.wait()
            writer.write(b'data: {"response": "two"}\n\ndata: [DONE]\n\n')
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        backend = WorkersAI(CloudflareAccount("0" * 32, "t", url))
        texts = []
        async with server, asyncio.timeout(10):
            async for chunk in backend.execute_stream(REQUEST):
                texts.append(chunk.text)
                if chunk.text == "one":
                    first_came.set()
        await backend.aclose()
        return texts

    assert asyncio.run(scenario()) == ["", "one", "two", ""]
