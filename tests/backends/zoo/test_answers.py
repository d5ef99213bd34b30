"""Every answer of the zoo, through the backend that meets it, to the row that its user finds."""

import asyncio
import json
from dataclasses import replace

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion

from llmdo.backends.errors import ContentFiltered, ModelError
from llmdo.backends.http.reply_json import read_json
from llmdo.backends.openai.backend import OpenAI, Service
from llmdo.backends.openai.shapes import read_completion
from llmdo.backends.requests import ChatRequest, Message
from llmdo.backends.usage import Usage
from llmdo.backends.workers_ai.backend import WorkersAI
from llmdo.runners.inspecting.oracle import parse_row
from llmdo.settings.environment import CloudflareAccount
from llmdo.transforms.answers.rows import answer_row
from llmdo.transforms.elements import FileVersion, Line
from llmdo.transforms.prompts.parse import Defaults, parse_prompt
from tests.backends.wire import Wire
from tests.backends.zoo.answers import FAILED, ROWS, WORKERS_AI, chat

SERVICE = Service("openai", "http://127.0.0.1:8000/v1", {}, "OPENAI_API_KEY")
ACCOUNT = CloudflareAccount("a" * 32, "token", "http://127.0.0.1:8000/client/v4")
STREAMED = [one for one in FAILED if one.body["choices"] and one.body["choices"][0]["message"] is not None]
NATIVE = "@cf/meta/llama-3.3-70b-instruct-fp8-fast"


def asked(backend, model, **parameters):
    async def scenario():
        try:
            return await backend.execute(ChatRequest(model, (Message("user", "?"),), parameters))
        finally:
            await backend.aclose()

    return asyncio.run(scenario())


def openai(body):
    return asked(OpenAI(SERVICE, Wire(lambda _: httpx.Response(200, json=body))), "m")


def workers_ai(body):
    reply = {"result": body, "success": True, "errors": [], "messages": []}
    return asked(WorkersAI(ACCOUNT, Wire(lambda _: httpx.Response(200, json=reply))), NATIVE)


def row_of(response, model="openai/m"):
    """The row's bytes, and what a strict reader makes of them."""
    line = Line(FileVersion("r2://b", "a.jsonl", "e", 20), 0, 16, b'{"prompt": "x"}')
    data = answer_row(parse_prompt(line.data, "line-1", Defaults(model), lambda *_: 1), line, response, 1, 0.1)
    parse_row(data, "answers", "shard")
    return json.loads(data, parse_constant=pytest.fail)


def at(value, place):
    for step in place.split("."):
        value = value[int(step) if step.isdigit() else step]
    return value


def check(expected, response):
    row = row_of(response)
    body = row["response"]["body"]
    message = body["choices"][0]["message"]
    assert (message["content"], body["choices"][0]["finish_reason"]) == (expected.text, expected.finish)
    assert message.get("reasoning_content") == expected.reasoning
    assert tuple(message.get("tool_calls", ())) == expected.calls
    assert bool(row.get("warnings")) == bool(expected.warns)
    assert expected.warns in "".join(row.get("warnings", ()))
    for place in expected.kept:
        assert at(body, place) == at(expected.body, place), place
    if expected.strict:
        ChatCompletion.model_validate(body, strict=True)


@pytest.mark.parametrize("expected", ROWS, ids=lambda row: row.name)
def test_an_answer_comes_out_with_all_that_its_service_told(expected):
    check(expected, openai(expected.body))


@pytest.mark.parametrize("expected", WORKERS_AI, ids=lambda row: row.name)
def test_workers_ais_shapes_become_the_same_row_and_keep_what_they_have_besides(expected):
    check(expected, workers_ai(expected.body))


@pytest.mark.parametrize("failed", FAILED, ids=lambda row: row.name)
@pytest.mark.parametrize("ask", [openai, workers_ai])
def test_a_failure_inside_a_success_is_an_error_that_tells_what_it_used(failed, ask):
    with pytest.raises(ModelError) as caught:
        ask(failed.body)
    assert (type(caught.value).__name__, failed.says in caught.value.message) == (failed.error, True)
    assert caught.value.usage == (Usage(9, 4) if failed.paid else None)


@pytest.mark.parametrize("failed", STREAMED, ids=lambda row: row.name)
@pytest.mark.parametrize("backend", [OpenAI, WorkersAI])
def test_a_stream_that_ends_with_a_failure_is_no_short_answer(failed, backend):
    choice = failed.body["choices"][0]
    ending = {name: value for name, value in choice.items() if name != "message"}
    events = [{"choices": [{"index": 0, "delta": {"content": "Half"}}]}, {"choices": [{**ending, "delta": {}}]}]
    events.append({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 4}})
    body = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
    reply = httpx.Response(200, text=body, headers={"content-type": "text/event-stream"})
    access = SERVICE if backend is OpenAI else ACCOUNT

    async def scenario():
        async for _ in backend(access, Wire(lambda _: reply)).execute_stream(
            ChatRequest(NATIVE, (Message("user", "?"),))
        ):
            pass

    with pytest.raises(ModelError) as caught:
        asyncio.run(scenario())
    assert (type(caught.value).__name__, caught.value.usage) == (failed.error, Usage(9, 4))
    assert failed.says in caught.value.message


def test_parts_with_more_than_text_are_kept_beside_it():
    parts = [{"type": "text", "text": "H"}, {"type": "reference", "reference_ids": [1]}, {"type": "text", "text": "i"}]
    row = row_of(openai(chat({"role": "assistant", "content": parts})))
    message = row["response"]["body"]["choices"][0]["message"]
    assert (message["content"], message["content_parts"]) == ("Hi", parts)


def test_a_choice_that_failed_beside_others_is_warned_of_and_asks_for_none_again():
    choices = chat({"content": "Hi"})["choices"] * 3
    choices[1] = {**choices[1], "finish_reason": "error", "error": {"message": "it fell over"}}
    choices[2] = {**choices[2], "finish_reason": "odd"}
    row = row_of(openai(chat(None, choices=choices)))
    failed, odd = row["warnings"]
    assert ("choice 1" in failed, "it fell over" in failed) == (True, True)
    assert ("choice 2" in odd, "(odd)" in odd) == (True, True)
    assert [choice["finish_reason"] for choice in row["response"]["body"]["choices"]] == ["stop", "error", "odd"]


def test_a_filter_is_named_by_the_services_own_word():
    with pytest.raises(ContentFiltered, match="PROHIBITED_CONTENT"):
        openai(chat({"content": None}, "PROHIBITED_CONTENT"))


# Whatever a service writes into a completion, the row is JSON that the strictest reader takes.

TEXTS = st.text(st.characters(codec=None, categories=("L", "N", "Cc", "Cs", "So")), max_size=12)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.just(10**400) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)


def fields(*names):
    return st.dictionaries(st.sampled_from(names), VALUES, max_size=len(names))


@given(
    fields("content", "refusal", "reasoning", "reasoning_content", "tool_calls", "function_call", "role", "odd"),
    fields("finish_reason", "index", "logprobs", "text", "odd"),
    fields("id", "created", "model", "usage", "object", "odd", "system_fingerprint"),
)
@settings(max_examples=300)
def test_every_row_is_strict_json_whatever_a_completion_holds(message, choice, more):
    whole = {"choices": [{"message": message, **choice}, {"message": message}], **more}
    warnings = []
    body = read_json(json.dumps(whole).encode(), warnings.append)
    try:
        response = read_completion(body, "m")
    except ModelError:
        return
    first = row_of(replace(response, warnings=(*warnings, *response.warnings)))["response"]["body"]["choices"][0]
    assert isinstance(first["message"]["content"], str | None)
    assert isinstance(first["finish_reason"], str)
    assert isinstance(first["index"], int)
