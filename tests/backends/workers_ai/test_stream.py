import asyncio
import json

import aiohttp
import httpx
import pytest

from llmdo.backends.errors import (
    CallTimeout,
    ConnectionFailed,
    ContentFiltered,
    InvalidRequest,
    ModelError,
    Overloaded,
    QuotaExhausted,
    StreamError,
)
from llmdo.backends.money.billing import maybe_billed
from llmdo.backends.requests import ChatRequest, Message
from llmdo.backends.usage import Usage
from llmdo.backends.workers_ai.backend import WorkersAI
from llmdo.settings.environment import AiGateway, CloudflareAccount
from tests.backends.wire import Wire

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
        backend = WorkersAI(CloudflareAccount("0" * 32, "t"), Wire(answer), clock=lambda: 0.0)
        return [chunk async for chunk in backend.execute_stream(REQUEST)]

    return asyncio.run(scenario()), bodies


def kinds(found):
    return [chunk.kind for chunk in found]


CUT = "the answer is cut off at 50 tokens: raise max_tokens"


@pytest.mark.parametrize(
    ("reply", "finish", "usage", "told"),
    [
        (stream({"response": "Pa"}, {"response": "ris", "usage": USAGE}, "[DONE]"), None, Usage(5, 3), []),
        (stream({"response": "Pa", "p": "abc"}, {"response": "ris"}, "[DONE]"), None, Usage(), []),
        (stream(delta("Pa"), delta("ris"), delta(finish="stop"), "[DONE]"), "stop", Usage(), []),
        (
            stream(delta("Pa"), delta("ris", "stop"), {"choices": [], "usage": USAGE}, "[DONE]"),
            "stop",
            Usage(5, 3),
            [],
        ),
        (stream(delta("Pa"), delta("ris", "length")), "length", Usage(), [{"warnings": (CUT,)}]),
        (
            stream(delta(reasoning_content="hm"), delta("Paris"), delta(None, "stop", tool_calls=None)),
            "stop",
            Usage(),
            [{"reasoning": "hm"}],
        ),
        (
            stream({"response": "Paris", "usage": {"prompt_tokens": 5, "completion_tokens": 50}}, "[DONE]"),
            "length",
            Usage(5, 50),
            [{"warnings": (CUT,)}],
        ),
        (stream({"response": "Paris"}, "[DONE]", "{broken after the end"), None, Usage(), []),
    ],
)
def test_a_stream_becomes_start_content_metadata_and_done(reply, finish, usage, told):
    found, bodies = chunks(reply)
    assert [found[0].kind, found[-1].kind] == ["start", "done"]
    assert "".join(chunk.text for chunk in found if chunk.kind == "content") == "Paris"
    assert [chunk.details for chunk in found if chunk.kind == "metadata"] == told
    assert (found[-1].finish_reason, found[-1].usage) == (finish, usage)
    assert bodies == [{"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 50, "stream": True}]


CALL = {"id": "call_7", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}


@pytest.mark.parametrize(
    ("reply", "calls"),
    [
        (
            stream(
                delta(tool_calls=[{"index": 0, "id": "call_7", "function": {"name": "f", "arguments": ""}}]),
                delta(tool_calls=[{"index": 0, "function": {"arguments": '{"a"'}}]),
                delta(tool_calls=[{"index": 0, "function": {"arguments": ":1}"}}]),
                delta(tool_calls=[{"index": 0, "function": None}]),
                delta(finish="tool_calls"),
                "[DONE]",
            ),
            [CALL],
        ),
        (
            stream({"response": "", "tool_calls": [{"name": "f", "arguments": {"a": 1}}]}, "[DONE]"),
            [{**CALL, "id": "call_0"}],
        ),
    ],
)
def test_a_tool_call_comes_whole_however_it_was_sent(reply, calls):
    found, _ = chunks(reply)
    assert kinds(found) == ["start", *["tool_use"] * len(calls), "done"]
    assert [chunk.tool_call for chunk in found if chunk.tool_call] == calls
    assert found[-1].finish_reason == "tool_calls"


def test_a_substituted_model_and_an_answer_without_text_are_said():
    found, _ = chunks(stream({**delta(), "model": "@cf/x/other"}, {**delta(), "model": "@cf/x/other"}, "[DONE]"))
    warning = f"model substituted: @cf/x/other answered instead of {LLAMA}"
    assert [chunk.details for chunk in found if chunk.kind == "metadata"] == [
        {"model": "@cf/x/other", "warnings": (warning,)},
        {"warnings": ("the model sent no text",)},
    ]


def failing(*replies, request=REQUEST):
    """The chunks that come before the error, and the error."""

    async def scenario():
        left, found = list(replies), []
        backend = WorkersAI(CloudflareAccount("0" * 32, "t"), Wire(lambda _: left.pop(0)), clock=lambda: 0.0)
        try:
            async for chunk in backend.execute_stream(request):
                found.append(chunk)
        except ModelError as error:
            return found, error
        return found, None

    return asyncio.run(scenario())


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
        (httpx.Response(200), ConnectionFailed),
        (stream({"errors": [{"code": 3040}]}, status=503), Overloaded),
    ],
)
def test_a_stream_that_is_no_whole_answer_ends_with_an_error_chunk_and_raises_it(reply, kind):
    found, error = failing(reply)
    assert type(error) is kind
    assert (found[-1].kind, found[-1].error) == ("error", error.message)
    assert "done" not in kinds(found)


@pytest.mark.parametrize(
    ("reply", "usage", "billed"),
    [
        (stream({"errors": [{"code": 3040, "message": "m"}]}), None, False),
        (stream({"response": "Pa"}, {"errors": [{"code": 3040, "message": "m"}]}), None, True),
        (stream(delta("Pa"), delta(finish="content_filter"), "[DONE]"), None, True),
        (stream({**delta(finish="content_filter"), "usage": USAGE}, "[DONE]"), Usage(5, 3), False),
    ],
)
def test_what_a_stream_said_before_it_failed_is_billed(reply, usage, billed):
    _, error = failing(reply)
    assert (error.usage, maybe_billed(error)) == (usage, billed)


WHOLE = {
    "native": stream({"response": "Grüße"}, {"response": " 🐈 \u2028", "usage": USAGE}, "[DONE]"),
    "chat": stream(
        delta("Grüße"),
        delta(" 🐈 \u2028"),
        delta(tool_calls=[{"index": 0, "id": "c", "function": {"name": "f", "arguments": "{}"}}]),
        delta(finish="stop"),
        {"choices": [], "usage": USAGE},
        "[DONE]",
    ),
}


class Pieces(httpx.AsyncByteStream):
    def __init__(self, *pieces):
        self.pieces = pieces

    async def __aiter__(self):
        for piece in self.pieces:
            yield piece


def in_pieces(*pieces):
    return httpx.Response(200, stream=Pieces(*pieces), headers={"content-type": "text/event-stream"})


@pytest.mark.parametrize("shape", WHOLE)
def test_a_stream_that_arrives_in_two_pieces_is_the_same_wherever_it_is_parted(shape):
    body = WHOLE[shape].content
    whole, error = failing(in_pieces(body))
    assert error is None
    for at in range(len(body)):
        assert failing(in_pieces(body[:at], body[at:])) == (whole, None)


@pytest.mark.parametrize("shape", WHOLE)
def test_a_stream_cut_at_any_byte_is_never_a_short_answer(shape):
    body = WHOLE[shape].content
    whole, _ = failing(in_pieces(body))
    answer = [(chunk.kind, chunk.text, chunk.tool_call) for chunk in whole if chunk.kind in ("content", "tool_use")]
    # All that the answer needs is there: its end mark, or the finish reason, after which only the usage is missing.
    needed = b"data: [DONE]" if shape == "native" else b'"finish_reason": "stop"}]}'
    least = body.index(needed) + len(needed)
    for at in range(len(body)):
        found, error = failing(in_pieces(body[:at]))
        said = [(chunk.kind, chunk.text, chunk.tool_call) for chunk in found if chunk.kind in ("content", "tool_use")]
        if at < least:
            assert isinstance(error, StreamError), at
            assert (found[-1].kind, said) == ("error", answer[: len(said)])
        else:
            assert error is None or isinstance(error, StreamError), at
            assert said == answer or error, at


def test_json_mode_comes_in_one_piece_since_it_has_no_streams():
    request = ChatRequest(LLAMA, REQUEST.messages, {"response_format": {"type": "json_object"}})
    reply = httpx.Response(200, json={"result": {"response": {"a": 1}}, "success": True})
    found, error = failing(reply, request=request)
    assert (kinds(found), error) == (["start", "content", "done"], None)
    assert found[1].text == '{"a":1}'


def test_a_dropped_parameter_is_said_in_a_stream():
    request = ChatRequest(LLAMA, REQUEST.messages, {"logit_bias": {"1": 1}, "max_tokens": 50})
    found, _ = failing(stream({"response": "Paris"}, "[DONE]"), request=request)
    assert found[-2].details == {"warnings": (f"logit_bias was left out: {LLAMA} cannot use it",)}


def test_the_default_limit_is_lowered_for_a_stream_too():
    text = "input and maximum output tokens (2148) exceeded this model context window limit (2048)"
    refused = httpx.Response(400, json={"success": False, "errors": [{"code": 5021, "message": text}]})
    request = ChatRequest(LLAMA, REQUEST.messages)
    found, error = failing(refused, stream({"response": "Paris"}, "[DONE]"), request=request)
    assert (kinds(found), error) == (["start", "content", "metadata", "done"], None)
    assert "lowered from 2048 to 1948" in found[2].details["warnings"][0]


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
            raise aiohttp.ClientPayloadError("reset")

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
        async with server, asyncio.timeout(60):
            async for chunk in backend.execute_stream(REQUEST):
                texts.append(chunk.text)
                if chunk.text == "one":
                    first_came.set()
        await backend.aclose()
        return texts

    assert asyncio.run(scenario()) == ["", "one", "two", ""]


def test_what_the_headers_of_a_stream_tell_is_kept():
    reply = stream({"response": "Paris"}, "[DONE]")
    reply.headers.update({"cf-ai-neurons": "1.5", "cf-aig-log-id": "log-1", "cf-aig-cache-status": "MISS"})

    async def scenario():
        backend = WorkersAI(CloudflareAccount("0" * 32, "t"), Wire(lambda _: reply), lambda: 0.0, AiGateway("mine"))
        return [chunk async for chunk in backend.execute_stream(REQUEST)]

    found = asyncio.run(scenario())
    assert found[-2].details == {"cache_status": "MISS", "log_id": "log-1"}
    assert found[-1].usage == Usage(neurons=1.5)
