"""A plain call whose reply is a stream: it is read as the one answer that it is, and paid once; through real HTTP."""

import asyncio
import json

import pytest

from llmdo.backends.errors import InvalidRequest, StreamError
from llmdo.backends.openai.backend import OpenAI
from llmdo.backends.openai.backend import Service as OpenAIService
from llmdo.backends.requests import ChatRequest, Message
from llmdo.backends.usage import Usage
from llmdo.backends.workers_ai.backend import WorkersAI
from llmdo.settings.environment import CloudflareAccount
from tests.company_network import Service, clean, completion, listening

USAGE = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}


def chunk(delta=None, finish=None, **more):
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish}]
    return {"id": "c", "object": "chat.completion.chunk", "model": "m", "choices": choices, **more}


CHUNKS = [
    chunk({"role": "assistant", "content": ""}),
    chunk({"content": "two "}),
    chunk({"content": "words"}),
    chunk({}, "stop"),
    chunk(usage=USAGE),
]


def events(chunks, end="\n", last=True):
    lines = [f"data: {json.dumps(one)}{end}{end}" for one in chunks]
    return ("".join(lines) + (f"data: [DONE]{end}{end}" if last else "")).encode()


def ask(monkeypatch, kind, content, provider="openai", asked=None):
    clean(monkeypatch)
    headers = {"content-type": kind} if kind else {}
    with listening(Service, reply=lambda *_: (200, headers, content)) as (url, server):

        async def scenario():
            if provider == "openai":
                backend = OpenAI(OpenAIService("openai", f"{url}/v1", {}, "OPENAI_API_KEY"))
            else:
                backend = WorkersAI(CloudflareAccount("0" * 32, "token-1234", f"{url}/client/v4"))
            try:
                model = "m" if provider == "openai" else "@cf/meta/llama-3.1-8b-instruct"
                return await backend.execute(ChatRequest(model, (Message("user", "hi"),)))
            finally:
                await backend.aclose()

        try:
            return asyncio.run(scenario())
        finally:
            assert len(server.seen) == 1


@pytest.mark.parametrize("first", [0, 1])
def test_of_several_answers_in_one_stream_the_first_is_read_and_a_warning_says_so(monkeypatch, first):
    said = [chunk({"content": text}) for text in ("one ", "other ", "answer", "words")] + [chunk({}, "stop")] * 2
    said = [
        {**event, "choices": [{**event["choices"][0], "index": first if place % 2 == 0 else 7}]}
        for place, event in enumerate(said)
    ]
    answer = ask(monkeypatch, "text/event-stream", events(said))
    assert (answer.text, answer.finish_reason) == ("one answer", "stop")
    assert sum("several answers" in warning for warning in answer.warnings) == 1


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("text/event-stream", events(CHUNKS)),
        (
            "text/event-stream; charset=utf-8",
            b": OPENROUTER PROCESSING\n\n" * 2 + events(CHUNKS),
        ),
        ("text/plain", events(CHUNKS, "\r\n")),
        ("application/json", b"\n\n" + events(CHUNKS)),
        ("", b"event: message\n" + events(CHUNKS)),
        ("text/event-stream", b"\xef\xbb\xbf" + events(CHUNKS, last=False)),
        ("application/x-ndjson", b"\n".join(json.dumps(one).encode() for one in CHUNKS) + b"\n"),
        ("application/json", b"\r\n".join(json.dumps(one).encode() for one in CHUNKS)),
    ],
)
def test_a_stream_is_one_answer(monkeypatch, kind, content):
    response = ask(monkeypatch, kind, content)
    assert (response.text, response.finish_reason, response.model) == ("two words", "stop", "m")
    assert (response.usage.input_tokens, response.usage.output_tokens) == (5, 2)


@pytest.mark.parametrize("before", [b": OPENROUTER PROCESSING\n\n", b"\xef\xbb\xbf \n", b":\n:\n\n   \n", b"\n" * 5000])
@pytest.mark.parametrize("indent", [None, 1])
def test_what_keeps_the_connection_open_before_a_whole_reply_is_left_out(monkeypatch, before, indent):
    content = before + json.dumps(completion("fine"), indent=indent).encode()
    assert ask(monkeypatch, "application/json", content).text == "fine"


def test_a_stream_of_tool_calls_is_one_answer(monkeypatch):
    call = {"index": 0, "id": "t1", "type": "function", "function": {"name": "look", "arguments": '{"a"'}}
    rest = {"index": 0, "function": {"arguments": ": 1}"}}
    chunks = [chunk({"tool_calls": [call]}), chunk({"tool_calls": [rest]}), chunk({}, "tool_calls")]
    response = ask(monkeypatch, "text/event-stream", events(chunks))
    assert response.tool_calls[0]["function"] == {"name": "look", "arguments": '{"a": 1}'}


def test_a_stream_that_broke_off_is_no_answer(monkeypatch):
    with pytest.raises(StreamError, match="ended before its end mark"):
        ask(monkeypatch, "text/event-stream", events(CHUNKS[:3], last=False))


def test_an_error_in_a_stream_is_the_services(monkeypatch):
    refused = {"error": {"message": "bad parameter", "type": "invalid_request_error", "code": 400}}
    with pytest.raises(InvalidRequest, match="bad parameter"):
        ask(monkeypatch, "text/event-stream", events([refused]))


@pytest.mark.parametrize("kind", ["text/event-stream", "application/json"])
def test_a_stream_of_workers_ai_is_one_answer_too(monkeypatch, kind):
    pieces = [{"response": "two "}, {"response": "words"}, {"response": "", "usage": USAGE}]
    response = ask(monkeypatch, kind, events(pieces), "workers-ai")
    assert response.text == "two words"
    assert response.usage == Usage(5, 2)
