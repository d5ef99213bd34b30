"""What every provider promises, whatever it speaks: the same calls, the same checks, one row for each provider.

A Subject that speaks HTTP answers from a handler instead of a network: its ``service`` stands in for the provider,
after the shapes of its documentation. The others are really asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import pickle
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import aiohttp
import httpx
import pytest

from llmdo.backends.backend import Backend
from llmdo.backends.errors import (
    BadReply,
    CallTimeout,
    ConnectionFailed,
    ContextOverflow,
    InvalidRequest,
    LineError,
    ModelError,
    ModelNotFound,
    Overloaded,
    RateLimited,
    Retryable,
    StopRun,
    StreamError,
    Unauthorized,
)
from llmdo.backends.http.client import Transport
from llmdo.backends.limits.retry import THREE_TRIES
from llmdo.backends.providers import PROVIDERS, split_model
from llmdo.backends.requests import ChatRequest, EmbedRequest, Message, RawRequest
from tests.backends.wire import Wire

SECRET = "hush-hush-hush"  # in every environment variable that holds one
ANSWER = "Grüße aus Paris, a capital city 🎉."
SCHEMA = {
    "type": "object",
    "properties": {"yes": {"type": "boolean"}},
    "required": ["yes"],
    "additionalProperties": False,
}
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
USAGE = {"prompt_tokens": 12, "completion_tokens": 7, "total_tokens": 19}
Handler = Callable[[httpx.Request], httpx.Response]


@dataclass(frozen=True)
class Subject:
    """A provider under test.

    Attributes:
        chat, embedding: models by the provider's own names; "" where it embeds nothing.
        open: a backend; a provider that speaks HTTP gets the transport that stands in for its network.
        service: how the provider answers when all is well; None: it speaks no HTTP.
        stream: the body of a stream that says ANSWER.
        failure: the body of an error event or reply, which is one to try again.
        refusals: error class → status and body, in the provider's own words.
    """

    name: str
    chat: str
    embedding: str
    open: Callable[[Transport | None], Backend]
    service: Handler | None = None
    stream: bytes = b""
    failure: Mapping[str, Any] = field(default_factory=dict)
    refusals: Mapping[type[ModelError], tuple[int, Any]] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name

    def ask(self, **parameters: Any) -> ChatRequest:
        """A question to the chat model."""
        return ChatRequest(self.chat, (Message("user", "Say it."),), {"max_tokens": 60, **parameters}, "f00d")

    @contextlib.asynccontextmanager
    async def backend(self, handler: Handler | None = None) -> AsyncIterator[Backend]:
        """A backend whose calls go to the handler, by default to the service."""
        handler = handler or self.service
        backend = self.open(Wire(handler) if handler else None)
        try:
            yield backend
        finally:
            await backend.aclose()

    @contextlib.asynccontextmanager
    async def replied(self, reply: Callable[[], httpx.Response]) -> AsyncIterator[Backend]:
        """A backend whose calls all get this reply; questions about models are answered as ever."""
        assert self.service is not None
        service = self.service
        async with self.backend(lambda call: reply() if call.method == "POST" else service(call)) as backend:
            yield backend


async def answers_a_conversation(subject: Subject) -> None:
    async with subject.backend() as backend:
        response = await backend.execute(subject.ask())
    assert response.text
    assert response.finish_reason in ("stop", "length", None)
    assert response.usage.input_tokens > 0
    assert response.usage.output_tokens > 0
    assert response.model
    if subject.service:
        assert (response.text, response.model, response.warnings) == (ANSWER, subject.chat, ())


async def answers_in_json(subject: Subject) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True}}
    async with subject.backend() as backend:
        response = await backend.execute(subject.ask(response_format=wanted))
        pieces = [chunk async for chunk in backend.execute_stream(subject.ask(response_format=wanted))]
    assert isinstance(json.loads(response.text)["yes"], bool)
    assert isinstance(json.loads("".join(piece.text for piece in pieces))["yes"], bool)


async def calls_tools_or_says_that_it_cannot(subject: Subject) -> None:
    request = subject.ask(tools=[TOOL], tool_choice="required")
    async with subject.backend() as backend:
        response = await backend.execute(request)
        pieces = [chunk async for chunk in backend.execute_stream(request)]
    streamed = [piece.tool_call for piece in pieces if piece.kind == "tool_use"]
    assert list(response.tool_calls) == streamed
    if not streamed:
        said = [warning for piece in pieces for warning in piece.details.get("warnings", ())]
        assert any("tools" in warning for warning in response.warnings)
        assert any("tools" in warning for warning in said)
        return
    (call,) = streamed
    assert (call["type"], call["function"]["name"]) == ("function", "weather")
    assert isinstance(json.loads(call["function"]["arguments"])["city"], str)
    assert call["id"]
    assert response.finish_reason == pieces[-1].finish_reason == "tool_calls"
    assert response.text is None


async def streams_what_it_would_answer(subject: Subject) -> None:
    async with subject.backend() as backend:
        whole = await backend.execute(subject.ask())
        pieces = [chunk async for chunk in backend.execute_stream(subject.ask())]
    assert (pieces[0].kind, pieces[-1].kind) == ("start", "done")
    assert {piece.kind for piece in pieces[1:-1]} <= {"content", "tool_use", "metadata"}
    assert "".join(piece.text for piece in pieces) == whole.text
    assert sum(piece.kind == "content" for piece in pieces) > 1
    assert pieces[-1].finish_reason == whole.finish_reason
    # How much of a prompt is in a cache depends on what was asked before.
    assert replace(pieces[-1].usage, cached_tokens=0) == replace(whole.usage, cached_tokens=0)


async def embeds_in_the_order_of_the_texts(subject: Subject) -> None:
    texts = ("one", "two and more", "three", "one")
    async with subject.backend() as backend:
        if not subject.embedding:
            with pytest.raises(InvalidRequest, match="name one of another provider"):
                await backend.embed(EmbedRequest(subject.chat, texts))
            return
        assert backend.max_texts(subject.embedding) >= len(texts)
        assert backend.max_texts(subject.chat) == 1
        together = await backend.embed(EmbedRequest(subject.embedding, texts))
        alone = [await backend.embed(EmbedRequest(subject.embedding, (text,))) for text in texts]
    assert len({len(vector) for vector in together.vectors}) == 1
    # A real model gives a text another last digit in other company: the right one is the nearest.
    for position, vector in enumerate(together.vectors):
        distances = [math.dist(vector, one.vectors[0]) for one in alone]
        assert min(distances) == pytest.approx(distances[position], abs=0.02)
    assert math.dist(together.vectors[0], together.vectors[1]) > 0.1
    assert together.usage.input_tokens > 0


async def leaves_no_parameter_out_without_a_word(subject: Subject) -> None:
    sent: dict[str, Any] = {}

    def keep(call: httpx.Request) -> httpx.Response:
        if call.method == "POST":
            sent.update(json.loads(call.content))
        return subject.service(call)

    given = {"temperature": 0.5, "top_p": 0.9, "seed": 4, "pooling": "cls", "instruction": "x", "n": 2}
    async with subject.backend(keep if subject.service else None) as backend:
        response = await backend.execute(subject.ask(**given))
        pieces = [chunk async for chunk in backend.execute_stream(subject.ask(**given))]
    streamed = [warning for piece in pieces for warning in piece.details.get("warnings", ())]
    for warnings in (response.warnings, streamed):
        named = {warning.split()[0] for warning in warnings}
        assert {"pooling", "instruction"} <= named
        if subject.service:
            assert {name for name in given if name not in sent} <= named


async def takes_the_limit_of_tokens_by_both_names_and_refuses_nonsense(subject: Subject) -> None:
    async with subject.backend() as backend:
        for name in ("max_tokens", "max_completion_tokens"):
            request = ChatRequest(subject.chat, (Message("user", "a b c d e f"),), {name: 2})
            response = await backend.execute(request)
            assert subject.service or response.usage.output_tokens <= 2
        for no_limit_or_whole in (-1, None, 2.0):
            assert await backend.execute(ChatRequest(subject.chat, request.messages, {"max_tokens": no_limit_or_whole}))
        for limit in (0, -2, 1.5, "many", True):
            with pytest.raises(LineError, match="max_tokens"):
                await backend.execute(subject.ask(max_tokens=limit))


async def refuses_what_is_no_input_of_its_own(subject: Subject) -> None:
    refused = httpx.Response(400, json={"errors": [{"code": 5006, "message": "no"}], "success": False})
    async with subject.backend(lambda _: refused if subject.service else None) as backend:
        with pytest.raises(LineError) as caught:
            await backend.run(RawRequest(subject.chat, {"nonsense": 1}))
    check_error(caught.value, subject)


async def does_not_know_a_model_that_is_not_there(subject: Subject) -> None:
    refusal = subject.refusals.get(ModelNotFound)
    handler = (lambda _: httpx.Response(refusal[0], json=refusal[1])) if refusal else None
    async with subject.backend(handler) as backend:
        with pytest.raises(ModelNotFound) as caught:
            await backend.execute(ChatRequest("no-such-model", (Message("user", "x"),)))
        if subject.embedding:
            with pytest.raises(ModelNotFound):
                await backend.embed(EmbedRequest("no-such-embed", ("x",)))
    check_error(caught.value, subject)


async def lists_models_by_names_that_can_be_asked_for(subject: Subject) -> None:
    async with subject.backend() as backend:
        models = await backend.list_models()
        provider = backend.name
    assert subject.chat in {model.name.removeprefix(f"{provider}/") for model in models}
    if provider in PROVIDERS:
        assert {split_model(model.name)[0] for model in models} == {provider}


async def is_healthy_and_closes_as_often_as_one_likes(subject: Subject) -> None:
    async with subject.backend() as backend:
        await backend.health()
        await backend.aclose()


PROMISES = (
    answers_a_conversation,
    answers_in_json,
    calls_tools_or_says_that_it_cannot,
    streams_what_it_would_answer,
    embeds_in_the_order_of_the_texts,
    leaves_no_parameter_out_without_a_word,
    takes_the_limit_of_tokens_by_both_names_and_refuses_nonsense,
    refuses_what_is_no_input_of_its_own,
    does_not_know_a_model_that_is_not_there,
    lists_models_by_names_that_can_be_asked_for,
    is_healthy_and_closes_as_often_as_one_likes,
)


def check_error(error: ModelError, subject: Subject) -> None:
    """An error names its provider, is one line, survives pickling, and holds no secret."""
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), vars(again)) == (type(error), vars(error))
    assert error.provider
    assert "\n" not in error.message
    assert SECRET not in f"{error!r} {error} {vars(error)}"


async def failing(subject: Subject, reply: Callable[[], httpx.Response]) -> list[ModelError]:
    """The errors of a chat, a stream and an embedding, if there are any, that all get this reply."""
    errors = []
    async with subject.replied(reply) as backend:
        with pytest.raises(ModelError) as caught:
            await backend.execute(subject.ask())
        errors.append(caught.value)
        pieces = []
        with pytest.raises(ModelError) as caught:
            async for piece in backend.execute_stream(subject.ask()):
                pieces.append(piece)
        assert (pieces[-1].kind, pieces[-1].error) == ("error", caught.value.message)
        errors.append(caught.value)
        if subject.embedding:
            with pytest.raises(ModelError) as caught:
                await backend.embed(EmbedRequest(subject.embedding, ("x",)))
            errors.append(caught.value)
    for error in errors:
        check_error(error, subject)
    return errors


PAGES: Mapping[int, type[ModelError]] = {
    200: ConnectionFailed,
    301: BadReply,
    401: Unauthorized,
    403: StopRun,
    404: ModelNotFound,
    408: CallTimeout,
    413: ContextOverflow,
    429: RateLimited,
    500: Overloaded,
    502: Overloaded,
    503: Overloaded,
    504: CallTimeout,
    520: Overloaded,
    522: CallTimeout,
    524: CallTimeout,
}


async def knows_what_an_html_page_means_by_its_status(subject: Subject) -> None:
    page = f"<!DOCTYPE html><html><head><style>p {{}}</style></head><body><h1>Sorry</h1>\n{SECRET}</body></html>"
    for status, kind in PAGES.items():
        for error in await failing(subject, lambda status=status: httpx.Response(status, html=page)):
            assert isinstance(error, kind), (status, error)
            assert (error.status, error.code) == (status, None)
            assert "<h1>" not in error.message
            assert "{}" not in error.message


async def knows_its_own_refusals(subject: Subject) -> None:
    for kind, (status, body) in subject.refusals.items():
        headers = {"retry-after": "7", **dict.fromkeys(("x-request-id", "cf-ai-req-id", "request-id"), "req-1")}
        reply = lambda status=status, body=body, headers=headers: httpx.Response(status, json=body, headers=headers)  # noqa: E731
        for error in await failing(subject, reply):
            assert type(error) is kind, error
            assert (error.status, error.retry_after, error.request_id) == (status, 7.0, "req-1")


async def takes_an_error_inside_a_success_for_one(subject: Subject) -> None:
    for error in await failing(subject, lambda: httpx.Response(200, json=subject.failure)):
        assert isinstance(error, Retryable)


async def knows_what_the_network_did(subject: Subject) -> None:
    for raised, kind in (
        (aiohttp.SocketTimeoutError("slow"), CallTimeout),
        (aiohttp.ConnectionTimeoutError("no"), ConnectionFailed),
        (aiohttp.ClientConnectionError("no"), ConnectionFailed),
        (aiohttp.ServerDisconnectedError(), ConnectionFailed),
        (aiohttp.ClientPayloadError("cut"), ConnectionFailed),
        (ConnectionResetError("reset"), ConnectionFailed),
    ):

        def broken(raised: Exception = raised) -> httpx.Response:
            raise raised

        for error in await failing(subject, broken):
            assert type(error) is kind, error
            assert THREE_TRIES.wait_s(error, 3, None) is None  # retried, but not forever


async def reads_any_json_without_breaking(subject: Subject) -> None:
    odd = [None, [], {}, 1, "x", {"choices": []}, {"choices": [1]}, {"choices": [{"message": 1}]}, {"result": None}]
    odd += [{"result": [], "success": True}, {"success": True, "result": {"response": None, "usage": 3}}]
    odd += [{"data": [{}]}, {"choices": [{"message": {"content": {"a": 1}, "tool_calls": [1, {}]}}], "usage": [1]}]
    for body in odd:
        async with subject.replied(lambda body=body: httpx.Response(200, content=json.dumps(body))) as backend:
            with contextlib.suppress(ModelError):
                response = await backend.execute(subject.ask())
                assert response.text is None or isinstance(response.text, str)
            with contextlib.suppress(ModelError):
                assert [piece async for piece in backend.execute_stream(subject.ask())][-1].kind == "done"
            with pytest.raises(ModelError):
                await backend.embed(EmbedRequest(subject.embedding, ("x",)))


async def gives_a_stream_cut_at_any_byte_whole_or_not_at_all(subject: Subject) -> None:
    whole = 0
    for end in range(len(subject.stream) + 1):
        pieces = []
        async with subject.replied(lambda end=end: event_stream(subject.stream[:end])) as backend:
            try:
                async for piece in backend.execute_stream(subject.ask()):
                    pieces.append(piece)
            except StreamError as error:
                assert (pieces[-1].kind, pieces[-1].error) == ("error", error.message)
                continue
        assert pieces[-1].kind == "done"
        assert "".join(piece.text for piece in pieces) == ANSWER
        whole += 1
    assert 0 < whole < len(subject.stream) / 2


async def tells_a_broken_connection_from_the_end_of_a_stream(subject: Subject) -> None:
    class Breaking(httpx.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            yield subject.stream[: len(subject.stream) // 2]
            raise aiohttp.ClientPayloadError("reset")

    headers = {"content-type": "text/event-stream"}
    async with subject.replied(lambda: httpx.Response(200, stream=Breaking(), headers=headers)) as backend:
        with pytest.raises(StreamError, match="broke off") as caught:
            [piece async for piece in backend.execute_stream(subject.ask())]
    check_error(caught.value, subject)


async def takes_an_error_event_for_one_first_or_later(subject: Subject) -> None:
    event = f"data: {json.dumps(subject.failure)}\n\n".encode()
    first, *_ = subject.stream.partition(b"\n\n")
    for body in (event, first + b"\n\n" + event, first + b"\n\n" + event + subject.stream):
        async with subject.replied(lambda body=body: event_stream(body)) as backend:
            with pytest.raises(Retryable) as caught:
                [piece async for piece in backend.execute_stream(subject.ask())]
        check_error(caught.value, subject)


async def lets_go_of_a_stream_that_nobody_reads_on(subject: Subject) -> None:
    closed = asyncio.Event()

    class Endless(httpx.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            yield subject.stream[: len(subject.stream) // 2]
            await asyncio.Event().wait()

        async def aclose(self) -> None:
            closed.set()

    headers = {"content-type": "text/event-stream"}
    async with subject.replied(lambda: httpx.Response(200, stream=Endless(), headers=headers)) as backend:
        pieces = backend.execute_stream(subject.ask())
        async for piece in pieces:
            if piece.kind == "content":
                break
        await pieces.aclose()
        assert closed.is_set()


async def sends_the_same_bytes_and_id_when_it_is_asked_again(subject: Subject) -> None:
    sent: list[tuple[str, bytes, list[tuple[str, str]]]] = []

    def refuse_once(call: httpx.Request) -> httpx.Response:
        if call.method != "POST":
            return subject.service(call)
        sent.append((str(call.url), call.content, sorted(call.headers.items())))
        return httpx.Response(503) if len(sent) == 1 else subject.service(call)

    request = subject.ask(temperature=0.5)
    async with subject.backend(refuse_once) as backend:
        with pytest.raises(Retryable):
            await backend.execute(request)
        await backend.execute(request)
    assert len(sent) == 2
    assert sent[0] == sent[1]


async def shows_its_secret_to_nobody(subject: Subject) -> None:
    seen: list[httpx.Request] = []

    def quote(call: httpx.Request) -> httpx.Response:
        seen.append(call)
        return httpx.Response(400, text=f"Bad request with headers {dict(call.headers)}")

    async with subject.backend(quote) as backend:
        assert SECRET not in f"{backend!r} {backend} {vars(backend)}"
        with pytest.raises(ModelError) as caught:
            await backend.execute(subject.ask())
    check_error(caught.value, subject)
    assert all(SECRET in str(call.headers.raw) for call in seen)
    assert not any(SECRET in f"{call.url} {call.content!r}" for call in seen)


HTTP_PROMISES = (
    knows_what_an_html_page_means_by_its_status,
    knows_its_own_refusals,
    takes_an_error_inside_a_success_for_one,
    knows_what_the_network_did,
    reads_any_json_without_breaking,
    gives_a_stream_cut_at_any_byte_whole_or_not_at_all,
    tells_a_broken_connection_from_the_end_of_a_stream,
    takes_an_error_event_for_one_first_or_later,
    lets_go_of_a_stream_that_nobody_reads_on,
    sends_the_same_bytes_and_id_when_it_is_asked_again,
    shows_its_secret_to_nobody,
)


def event_stream(body: bytes) -> httpx.Response:
    """A reply with server-sent events."""
    return httpx.Response(200, content=body, headers={"content-type": "text/event-stream; charset=utf-8"})


def events(*values: Any) -> bytes:
    """Server-sent events, each one JSON value, and the end mark."""
    lines = [json.dumps(value, ensure_ascii=False) for value in values]
    return "".join(f"data: {line}\n\n" for line in (*lines, "[DONE]")).encode()
