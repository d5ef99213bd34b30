"""The Workers AI backend against the local server: what one sends the other takes, and the reverse."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from llmdo.backends.errors import ContentFiltered, Overloaded, Retryable, Unauthorized
from llmdo.backends.json_mode.schema import problem_of_value
from llmdo.backends.requests import ChatRequest, EmbedRequest, Message, RawRequest
from llmdo.backends.responses import ChatResponse, RawResponse, StreamChunk
from llmdo.backends.workers_ai.backend import WorkersAI, open_backend
from tests.local.cloudflare import Running

LLAMA = "@cf/meta/llama-3.3-70b-instruct-fp8-fast"
GEMMA = "@cf/google/gemma-4-26b-a4b-it"
BGE = "@cf/baai/bge-m3"
SOUND = base64.b64encode(b"RIFF").decode()
SCHEMA = {
    "type": "object",
    "required": ["city"],
    "properties": {"city": {"type": "string"}, "size": {"type": "integer"}},
}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}


def use(work: Callable[[WorkersAI], Awaitable[Any]]) -> Any:
    async def scenario() -> Any:
        backend = open_backend()
        try:
            return await work(backend)
        finally:
            await backend.aclose()

    return asyncio.run(scenario())


def chat(model: str = LLAMA, text: str = "a b", request_id: str = "", **parameters: Any) -> ChatRequest:
    return ChatRequest(model, (Message("user", text),), parameters, request_id)


def answer(request: ChatRequest) -> ChatResponse:
    response: ChatResponse = use(lambda backend: backend.execute(request))
    return response


def run(model: str, **given: Any) -> RawResponse:
    response: RawResponse = use(lambda backend: backend.run(RawRequest(model, given)))
    return response


async def collect(chunks: AsyncIterator[StreamChunk]) -> list[StreamChunk]:
    return [chunk async for chunk in chunks]


@pytest.mark.parametrize("model", [LLAMA, GEMMA, "@cf/echo/chat"])
def test_every_shape_of_model_chats_and_streams(cloudflare: Running, model: str) -> None:
    response = answer(chat(model))
    assert (response.text, response.warnings) == ("echo: a b", ())
    assert response.usage.input_tokens == 2
    chunks = use(lambda backend: collect(backend.execute_stream(chat(model))))
    assert "".join(chunk.text for chunk in chunks) == "echo: a b"
    assert chunks[-1].usage.input_tokens == 2


@pytest.mark.parametrize("model", [LLAMA, GEMMA])
def test_both_shapes_keep_to_a_schema(cloudflare: Running, model: str) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA, "strict": True}}
    response = answer(chat(model, response_format=wanted))
    assert problem_of_value(json.loads(response.text or ""), json.dumps(SCHEMA)) is None
    assert cloudflare.stats()["paid"]["calls"] == 1


@pytest.mark.parametrize("model", [LLAMA, GEMMA])
def test_both_shapes_call_tools_and_take_their_answers(cloudflare: Running, model: str) -> None:
    request = chat(model, tools=[TOOL], tool_choice="required")
    response = answer(request)
    (call,) = response.tool_calls
    assert (response.finish_reason, response.text) == ("tool_calls", None)
    assert call["function"]["name"] == "weather"
    assert problem_of_value(json.loads(call["function"]["arguments"]), json.dumps(SCHEMA)) is None
    chunks = use(lambda backend: collect(backend.execute_stream(request)))
    assert [chunk.tool_call["function"] for chunk in chunks if chunk.kind == "tool_use"] == [call["function"]]
    turns = (
        *request.messages,
        Message("assistant", None, {"tool_calls": [call]}),
        Message("tool", "sunny", {"tool_call_id": call["id"]}),
    )
    assert answer(ChatRequest(model, turns, {"tools": [TOOL]})).text == "echo: a b"


@pytest.mark.parametrize(
    ("model", "given", "result"),
    [
        ("@cf/meta/m2m100-1.2b", {"text": "Hello", "target_lang": "fr"}, {"translated_text": "[fr] Hello"}),
        ("@cf/facebook/bart-large-cnn", {"input_text": "a b c", "max_length": 2}, {"summary": "a b"}),
        (
            "@cf/baai/bge-reranker-base",
            {"query": "red fox", "contexts": [{"text": "a dog"}, {"text": "a red fox"}, {"text": "red"}], "top_k": 2},
            {"response": [{"id": 1, "score": 1.0}, {"id": 2, "score": 0.5}]},
        ),
    ],
)
def test_other_tasks_take_their_own_input(
    cloudflare: Running, model: str, given: dict[str, Any], result: dict[str, Any]
) -> None:
    assert run(model, **given).result == result


def test_a_sentiment_is_a_list_of_labels(cloudflare: Running) -> None:
    labels = run("@cf/huggingface/distilbert-sst-2-int8", text="good").result
    assert {one["label"] for one in labels} == {"POSITIVE", "NEGATIVE"}
    assert sum(one["score"] for one in labels) == pytest.approx(1)


@pytest.mark.parametrize("model", ["@cf/openai/whisper", "@cf/openai/whisper-large-v3-turbo"])
def test_a_recording_is_base64_in_a_line_whatever_the_model_takes(cloudflare: Running, model: str) -> None:
    result = run(model, audio=SOUND).result
    assert (result["text"], result["word_count"]) == ("a recording of 4 bytes", 5)


def test_a_picture_is_described_and_labelled(cloudflare: Running) -> None:
    assert run("@cf/microsoft/resnet-50", image=SOUND).result[0]["label"] == "PICTURE"
    described = answer(chat("@cf/llava-hf/llava-1.5-7b-hf", "What?", image=SOUND))
    assert described.text == "a picture of 4 bytes: What?"


def test_pictures_come_back_as_base64_from_both_kinds_of_model(cloudflare: Running) -> None:
    older = run("@cf/stabilityai/stable-diffusion-xl-base-1.0", prompt="a cat").result
    newer = run("@cf/black-forest-labs/flux-1-schnell", prompt="a cat").result
    assert older == {"content_type": "image/png", "base64": newer["image"]}
    assert base64.b64decode(newer["image"]).startswith(b"\x89PNG")


def test_the_list_has_prices_and_what_each_model_can_do(cloudflare: Running) -> None:
    models = {info.name: info for info in use(lambda backend: backend.list_models())}
    llama = models[f"workers-ai/{LLAMA}"]
    assert llama.price is not None
    assert (llama.price.input, llama.price.output, llama.context_tokens) == (0.29, 2.25, 24_000)
    assert llama.capabilities == {"tools", "batch", "json"}
    assert models["workers-ai/@cf/facebook/bart-large-cnn"].deprecated == "2026-05-30"


def test_a_deprecated_model_is_warned_of(cloudflare: Running) -> None:
    async def work(backend: WorkersAI) -> RawResponse:
        await backend.list_models()
        return await backend.run(RawRequest("@cf/facebook/bart-large-cnn", {"input_text": "a"}))

    assert "is deprecated since 2026-05-30" in use(work).warnings[0]


def test_health_needs_the_right_token(cloudflare: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    use(lambda backend: backend.health())
    monkeypatch.setenv("CLOUDFLARE_API_TOKEN", "another-token")
    with pytest.raises(Unauthorized):
        use(lambda backend: backend.health())


@pytest.mark.parametrize("by_url", [False, True])
@pytest.mark.parametrize("model", [LLAMA, GEMMA])
def test_calls_go_by_the_gateway_that_the_environment_names(
    cloudflare: Running, monkeypatch: pytest.MonkeyPatch, model: str, by_url: bool
) -> None:
    address = f"{cloudflare.url}/v1/{cloudflare.env['CLOUDFLARE_ACCOUNT_ID']}/cached"
    monkeypatch.setenv("LLMDO_GATEWAY", address if by_url else "cached")
    first, second = answer(chat(model, request_id="id-1")), answer(chat(model, request_id="id-2"))
    assert (first.details["cache_status"], second.details["cache_status"]) == ("MISS", "HIT")
    assert (first.text, first.details["log_id"] != second.details["log_id"]) == (second.text, True)
    assert cloudflare.stats()["paid"]["calls"] == 1


def test_a_private_gateway_wants_its_token(cloudflare: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMDO_GATEWAY", "private")
    with pytest.raises(Unauthorized, match="CLOUDFLARE_AI_GATEWAY_TOKEN"):
        answer(chat())
    monkeypatch.setenv("CLOUDFLARE_AI_GATEWAY_TOKEN", cloudflare.env["CLOUDFLARE_API_TOKEN"])
    assert answer(chat()).text == "echo: a b"


async def finished(backend: WorkersAI, model: str, name: str, requests: list[Any]) -> tuple[Any, ...]:
    for _ in range(100):
        state = await backend.poll_batch(model, name, requests)
        if state.results is not None:
            results = dict([one async for one in state.results])
            return tuple(results[number] for number in range(len(requests)))
    raise AssertionError("the batch is never done")


@pytest.mark.parametrize("model", [LLAMA, GEMMA])
@pytest.mark.parametrize("ids", [("id-0", "id-1", "id-2"), ("", "", "")])
def test_a_batch_is_answered_in_the_order_of_its_requests(
    cloudflare: Running, model: str, ids: tuple[str, ...]
) -> None:
    requests = [chat(model, f"text {number}", request_id) for number, request_id in enumerate(ids)]

    async def work(backend: WorkersAI) -> tuple[Any, ...]:
        return await finished(backend, model, await backend.submit_batch(model, requests), requests)

    results = use(work)
    assert [one.text for one in results] == [f"echo: text {number}" for number in range(3)]
    assert [one.usage.input_tokens for one in results] == [2, 2, 2]


def test_a_process_that_died_finds_its_batch_by_name_and_pays_nothing_again(cloudflare: Running) -> None:
    requests = [EmbedRequest(BGE, ("a", "b"), request_id="id-0")]
    name = use(lambda backend: backend.submit_batch(BGE, requests))
    (first,) = use(lambda backend: finished(backend, BGE, name, requests))
    (second,) = use(lambda backend: finished(backend, BGE, name, requests))
    assert first.vectors == second.vectors
    assert cloudflare.stats()["paid"]["calls"] == 1


def test_items_that_fail_or_are_lost_are_errors_among_answers(cloudflare: Running) -> None:
    cloudflare.fault("ai", match="flagged", status=400, code=3030)
    cloudflare.fault("ai", match="busy", status=429, code=3040)
    cloudflare.fault("ai", match="lost", drop=True)
    requests = [chat(LLAMA, text, f"id-{text}") for text in ("good", "flagged", "busy", "lost")]

    async def work(backend: WorkersAI) -> tuple[Any, ...]:
        return await finished(backend, LLAMA, await backend.submit_batch(LLAMA, requests), requests)

    good, *errors = use(work)
    assert good.text == "echo: good"
    assert [type(error) for error in errors] == [ContentFiltered, Overloaded, Retryable]
