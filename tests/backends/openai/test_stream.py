import asyncio
import json

import httpx
import pytest

from llmdo.backends.errors import ContentFiltered, InvalidRequest, ModelError, Overloaded, RateLimited, StreamError
from llmdo.backends.money.billing import maybe_billed
from llmdo.backends.openai.backend import OpenAI, Service
from llmdo.backends.requests import ChatRequest, Message
from llmdo.backends.usage import Usage
from tests.backends.conformance import event_stream, events
from tests.backends.wire import Wire

SERVICE = Service("openai", "http://127.0.0.1:1/v1", {}, "OPENAI_API_KEY")


def delta(finish=None, **delta):
    return {"model": "m", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


def stream(reply, **parameters):
    """The chunks of a reply, without the start, and the body that was sent."""
    sent = []

    def answer(request):
        sent.append(json.loads(request.content))
        return reply

    async def scenario():
        backend = OpenAI(SERVICE, Wire(answer))
        request = ChatRequest("m", (Message("user", "?"),), parameters)
        return [chunk async for chunk in backend.execute_stream(request)]

    return asyncio.run(scenario())[1:], sent[0]


def test_usage_is_asked_for_and_comes_with_the_end():
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "completion_tokens_details": {"reasoning_tokens": 1}}
    body = events(delta(content="Paris"), delta("stop"), {"choices": [], "usage": usage})
    chunks, sent = stream(event_stream(body), max_tokens=5)
    assert (sent["stream"], sent["stream_options"], sent["max_tokens"]) == (True, {"include_usage": True}, 5)
    assert (chunks[-1].finish_reason, chunks[-1].usage) == ("stop", Usage(3, 2, 0, 1))


@pytest.mark.parametrize(
    "pieces",
    [
        [
            [{"index": 0, "id": "a", "function": {"name": "f", "arguments": ""}}],
            [{"index": 0, "function": {"arguments": '{"x"'}}],
            [{"index": 1, "id": "b", "function": {"name": "g", "arguments": "{}"}}],
            [{"index": 0, "function": {"arguments": ": 1}"}}],
        ],
        [  # as Ollama does: whole calls, each with index 0
            [{"index": 0, "id": "a", "function": {"name": "f", "arguments": '{"x": 1}'}}],
            [{"index": 0, "id": "b", "function": {"name": "g", "arguments": {}}}],
        ],
        [[{"id": "a", "function": {"name": "f", "arguments": '{"x": 1}'}}, {"id": "b", "function": {"name": "g"}}]],
    ],
)
def test_pieces_of_tool_calls_become_whole_calls(pieces):
    body = events(*(delta(tool_calls=piece) for piece in pieces), delta("tool_calls"))
    calls = [chunk.tool_call for chunk in stream(event_stream(body))[0] if chunk.kind == "tool_use"]
    assert [(call["id"], call["function"]["name"]) for call in calls] == [("a", "f"), ("b", "g")]
    assert [json.loads(call["function"]["arguments"]) for call in calls] == [{"x": 1}, {}]


def test_reasoning_the_model_and_warnings_are_metadata():
    body = events({**delta(reasoning_content="hm"), "model": "other"}, delta(content="Paris"), delta("stop"))
    chunks, _ = stream(event_stream(body), lora="x", max_tokens=9)
    details = [chunk.details for chunk in chunks if chunk.kind == "metadata"]
    assert {"warnings": ("lora was left out: m cannot use it",)} in details
    assert {"model": "other", "warnings": ("other answered instead of m",)} in details
    assert {"reasoning": "hm"} in details
    assert "".join(chunk.text for chunk in chunks) == "Paris"


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (event_stream(b""), StreamError),
        (event_stream(events(delta(content="Pa")).removesuffix(b"data: [DONE]\n\n")), StreamError),
        (event_stream(events()), StreamError),  # an end mark, and nothing before it
        (event_stream(events({"error": {"message": "busy", "code": 503}})), Overloaded),
        (event_stream(events({"error": {"message": "slow", "code": "rate_limit_exceeded"}})), RateLimited),
        (event_stream(events(delta(content="Pa"), {"error": "odd"})), StreamError),
        (event_stream(events(delta(content="Pa"), delta("content_filter"))), ContentFiltered),
        (httpx.Response(400, json={"error": {"message": "no"}}), InvalidRequest),
        (httpx.Response(503, headers={"content-type": "text/event-stream"}), Overloaded),
    ],
)
def test_a_stream_that_is_no_whole_answer_is_an_error(reply, kind):
    with pytest.raises(kind):
        stream(reply)


@pytest.mark.parametrize(
    ("sent", "usage", "billed"),
    [
        (events({"error": {"message": "busy", "code": 503}}), None, False),
        (events(delta(content="Pa"), {"error": {"message": "busy", "code": 503}}), None, True),
        (events(delta(content="Pa"), delta("content_filter")), None, True),
        (events(delta("content_filter"), {"choices": [], "usage": {"prompt_tokens": 3}}), Usage(3), False),
    ],
)
def test_what_a_stream_said_before_it_failed_is_billed(sent, usage, billed):
    with pytest.raises(ModelError) as caught:
        stream(event_stream(sent))
    assert (caught.value.usage, maybe_billed(caught.value)) == (usage, billed)


def test_a_server_that_sends_no_end_mark_after_its_finish_reason_is_believed():
    body = events(delta(content="Paris"), delta("length")).removesuffix(b"data: [DONE]\n\n")
    chunks, _ = stream(event_stream(body))
    assert (chunks[-1].kind, chunks[-1].finish_reason) == ("done", "length")


def test_a_server_that_passes_over_stream_is_read_whole():
    message = {"content": "Paris", "reasoning": "hm"}
    reply = httpx.Response(200, json={"choices": [{"message": message, "finish_reason": "stop"}], "model": "m"})
    chunks, _ = stream(reply, lora="x")
    assert [chunk.kind for chunk in chunks] == ["metadata", "metadata", "content", "done"]
    assert chunks[0].details == {"warnings": ("lora was left out: m cannot use it",)}


def test_custom_calls_parts_and_what_else_the_service_tells_come_too():
    call = {"index": 0, "id": "c", "type": "custom", "custom": {"name": "shell", "input": "ls"}}
    note = {"type": "url_citation", "url_citation": {"url": "https://e.org"}}
    thought = {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}
    body = events(
        {**delta(content=[thought]), "system_fingerprint": "fp", "citations": ["u"], "obfuscation": "x"},
        {**delta(content=[{"type": "text", "text": "Hi"}], annotations=[note]), "citations": ["u"]},
        delta(annotations=[{**note, "end": 1}], tool_calls=[call]),
        delta("odd", tool_calls=[{"index": 0, "custom": {"input": " -l"}}]),
    )
    chunks, _ = stream(event_stream(body))
    told = [chunk.details for chunk in chunks if chunk.kind == "metadata"]
    assert [chunk.text for chunk in chunks if chunk.kind == "content"] == ["Hi"]
    assert told[1] == {"reasoning": "hm"}
    assert "(odd)" in told[2].pop("warnings")[0]
    assert told[2] == {"system_fingerprint": "fp", "citations": ["u"], "annotations": [note, {**note, "end": 1}]}
    (used,) = (chunk.tool_call for chunk in chunks if chunk.kind == "tool_use")
    assert used == {"id": "c", "type": "custom", "custom": {"name": "shell", "input": "ls -l"}}
    assert chunks[-1].finish_reason == "odd"


def test_a_stream_that_is_cut_off_says_so_like_a_whole_answer():
    usage = {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}
    reply = event_stream(events(delta(content="Pa"), delta("length"), usage))
    reply.headers["x-request-id"] = "req_1"
    chunks, _ = stream(reply)
    cut = "the answer is cut off at 2 tokens: raise max_tokens"
    assert chunks[-2].details == {"warnings": (cut,), "request_id": "req_1"}
    assert chunks[-1].finish_reason == "length"
