"""Every refusal of the zoo, through the backend that meets it."""

import asyncio
import json

import httpx
import pytest

from llmdo.backends.errors import BadReply, ModelError, StreamError
from llmdo.backends.openai.backend import OpenAI, Service
from llmdo.backends.requests import ChatRequest, EmbedRequest, Message
from llmdo.backends.workers_ai.backend import WorkersAI
from llmdo.settings.environment import CloudflareAccount
from tests.backends.wire import Wire
from tests.backends.zoo.refusals import NOW, ROWS

MODEL = "m"
SERVICE = Service("openai", "http://127.0.0.1:8000/v1", {}, "OPENAI_API_KEY")


def reply(row):
    if isinstance(row.body, str):
        return httpx.Response(row.status, text=row.body, headers=row.headers)
    return httpx.Response(row.status, json=row.body, headers=row.headers)


def error_of(row, backend, request):
    async def scenario():
        try:
            if isinstance(request, EmbedRequest):
                await backend.embed(request)
            else:
                await backend.execute(request)
        finally:
            await backend.aclose()

    with pytest.raises(ModelError) as caught:
        asyncio.run(scenario())
    return caught.value


def check(row, error):
    assert type(error) is row.error, error.message
    assert row.about in (None, error.about)
    assert row.says in error.message
    assert error.retry_after == pytest.approx(row.wait, abs=1e-6)
    wait = None if row.wait is None else NOW + row.wait
    assert error.until == pytest.approx(wait if row.until is None else row.until, abs=1e-3)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
@pytest.mark.parametrize("embeds", [False, True])
def test_a_refusal_is_what_its_user_expects(row, embeds):
    request = EmbedRequest(MODEL, ("a",)) if embeds else ChatRequest(MODEL, (Message("user", "?"),))
    check(row, error_of(row, OpenAI(SERVICE, Wire(lambda _: reply(row)), clock=lambda: NOW), request))


@pytest.mark.parametrize("row", [row for row in ROWS if row.status != 200], ids=lambda row: row.name)
def test_workers_ai_understands_the_refusals_of_the_services_behind_it(row):
    account = CloudflareAccount("a" * 32, "token", "http://127.0.0.1:8000/client/v4")
    backend = WorkersAI(account, transport=Wire(lambda _: reply(row)), clock=lambda: NOW)
    request = ChatRequest("@cf/meta/llama-3.3-70b-instruct-fp8-fast", (Message("user", "?"),))
    error = error_of(row, backend, request)
    own = row.status in (401, 402, 403) and row.about == "unclear"  # it has a better word for these
    assert own or type(error) is row.error, error.message
    assert row.about in (None, error.about)
    assert row.says in error.message


def test_every_row_names_its_source_and_no_two_are_the_same():
    assert all("." in row.source for row in ROWS)
    assert len({row.name for row in ROWS}) == len(ROWS)
    assert len({json.dumps([row.status, row.body, row.headers]) for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize(
    "row", [row for row in ROWS if row.status == 200 or row.provider == "gemini"], ids=lambda r: r.name
)
def test_a_refusal_in_a_stream_is_understood_too(row):
    """In a stream that began well, and whose events may be lists."""
    events = f'data: {{"choices": []}}\n\ndata: {json.dumps(row.body)}\n\n'
    stream = httpx.Response(200, text=events, headers={"content-type": "text/event-stream"})
    backend = OpenAI(SERVICE, Wire(lambda _: stream), clock=lambda: NOW)

    async def scenario():
        async for _ in backend.execute_stream(ChatRequest(MODEL, (Message("user", "?"),))):
            pass

    with pytest.raises(ModelError) as caught:
        asyncio.run(scenario())
    assert type(caught.value) is (StreamError if row.error is BadReply else row.error), caught.value
    assert row.says in caught.value.message
