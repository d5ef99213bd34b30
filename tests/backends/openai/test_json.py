"""JSON mode at a service that speaks OpenAI's API: no answer passes that does not keep to its format."""

import asyncio
import json

import httpx
import pytest

from llmdo.backends.errors import BadReply, Overloaded
from llmdo.backends.openai.backend import OpenAI, Service
from llmdo.backends.requests import ChatRequest, Message
from llmdo.backends.usage import Usage
from tests.backends.wire import Wire

SCHEMA = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
BY_SCHEMA = {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}
OBJECT = {"type": "json_object"}
LOOK_AROUND = {"type": "json_schema", "json_schema": {"pattern": r"^(?=.*\d)x"}}
FENCED = '```json\n{"age": 3}\n```'


def said(text, finish="stop", **message):
    choice = {"message": {"role": "assistant", "content": text, **message}, "finish_reason": finish}
    return httpx.Response(200, json={"choices": [choice], "usage": {"prompt_tokens": 5, "completion_tokens": 2}})


def ask(replies, wanted, how="execute"):
    """The answer, or the chunks of a stream, and the messages of each call."""
    sent, left = [], list(replies)

    def answer(call):
        sent.append(json.loads(call.content)["messages"])
        return left.pop(0)

    async def scenario():
        backend = OpenAI(Service("openai", "http://127.0.0.1:8000/v1", {}, "OPENAI_API_KEY"), Wire(answer))
        request = ChatRequest("m", (Message("user", "How old?"),), {"response_format": wanted} if wanted else {})
        if how == "execute":
            return await backend.execute(request)
        return [chunk async for chunk in backend.execute_stream(request)]

    try:
        return asyncio.run(scenario()), sent
    except Exception as error:  # noqa: BLE001 - returned to be looked at
        return error, sent


@pytest.mark.parametrize("wanted", [BY_SCHEMA, OBJECT])
def test_an_answer_that_is_not_json_is_asked_for_once_more_and_both_calls_count(wanted):
    response, sent = ask([said("Sure! It is 3."), said('{"age": 3}')], wanted)
    assert (response.text, response.usage) == ('{"age": 3}', Usage(10, 4))
    assert "the model was asked twice" in response.warnings[0]
    assert [message["role"] for message in sent[1]] == ["user", "assistant", "user"]


@pytest.mark.parametrize("wanted", [BY_SCHEMA, OBJECT])
def test_one_that_never_is_ends_as_an_error_after_two_calls(wanted):
    error, sent = ask([said("Sure!"), said("It is 3.")], wanted)
    assert (type(error), error.usage, error.code, len(sent)) == (BadReply, Usage(10, 4), None, 2)
    assert "also when asked again" in error.message


def test_the_first_call_counts_also_where_the_second_one_fails():
    error, _ = ask([said("Sure!"), httpx.Response(503, json={"error": {"message": "busy"}})], BY_SCHEMA)
    assert (type(error), error.usage) == (Overloaded, Usage(5, 2))


@pytest.mark.parametrize("wanted", [BY_SCHEMA, OBJECT])
def test_a_fence_around_the_json_is_taken_off(wanted):
    response, sent = ask([said(FENCED)], wanted)
    assert (response.text, len(sent)) == ('{"age": 3}', 1)
    assert response.warnings == ("a code fence around the JSON was removed",)


def test_a_fence_stays_where_no_json_was_asked_for():
    response, _ = ask([said(FENCED)], None)
    assert (response.text, response.warnings) == (FENCED, ())


def test_tool_calls_and_refusals_are_not_checked():
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    called, _ = ask([said(None, "tool_calls", tool_calls=[call])], BY_SCHEMA)
    assert called.tool_calls == (call,)
    refused, sent = ask([said(None, refusal="I will not.")], BY_SCHEMA)
    assert (refused.text, refused.warnings, len(sent)) == ("I will not.", ("the model refused",), 1)


def test_json_that_is_cut_off_is_an_error_and_whole_json_before_the_limit_is_not():
    error, sent = ask([said('{"age":', "length")], BY_SCHEMA)
    assert (type(error), len(sent), error.usage) == (BadReply, 1, Usage(5, 2))
    assert "cut off at 2 tokens: raise max_tokens" in error.message
    whole, _ = ask([said('{"age": 3}\n\n\n', "length")], BY_SCHEMA)
    assert (whole.text, whole.finish_reason) == ('{"age": 3}\n\n\n', "length")


def test_a_schema_that_cannot_be_checked_is_the_services_to_keep_and_a_warning_says_so():
    response, _ = ask([said('"x1"')], LOOK_AROUND)
    assert (response.text, len(response.warnings)) == ('"x1"', 1)
    assert "was not checked by its JSON Schema" in response.warnings[0]


def test_a_stream_in_json_mode_is_checked_and_comes_in_one_piece():
    chunks, sent = ask([said("Sure!"), said('{"age": 3}')], BY_SCHEMA, "execute_stream")
    assert [chunk.text for chunk in chunks if chunk.kind == "content"] == ['{"age": 3}']
    assert (chunks[-1].usage, len(sent)) == (Usage(10, 4), 2)
