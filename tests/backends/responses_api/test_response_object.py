"""Answers of chats as responses, which OpenAI's own types read."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import Response

from llmdo.backends.openai.raw import read_response
from llmdo.backends.openai.shapes import read_completion
from llmdo.backends.responses import ChatResponse
from llmdo.backends.responses_api.response_object import response_object
from llmdo.backends.usage import Usage
from tests.backends.zoo.answers import ROWS

CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
CUSTOM = {"id": "c2", "type": "custom", "custom": {"name": "sql", "input": "select 1"}}
ASKED = {
    "model": "m",
    "input": "hi",
    "instructions": "Be short",
    "tools": [{"type": "function", "name": "f", "parameters": {}}, {"type": "function", "function": {"name": "g"}}],
    "tool_choice": {"type": "function", "function": {"name": "g"}},
    "text": {"format": {"type": "json_schema", "name": "n", "schema": {}}, "verbosity": "low"},
    "reasoning": {"effort": "low"},
    "max_output_tokens": 9,
    "metadata": {"k": "v"},
    "temperature": 0.5,
    "parallel_tool_calls": False,
}


def made(response, asked=ASKED):
    body = response_object(response, "r", asked)
    return Response.model_validate(body), body


def test_an_answer_has_text_usage_and_the_settings_that_were_asked_for():
    found, body = made(ChatResponse("Hello", "stop", Usage(7, 4, 2, 1), "m-1", "req"))
    assert (found.output_text, found.status, found.model, found.id) == ("Hello", "completed", "m-1", "req")
    assert (found.usage.input_tokens, found.usage.output_tokens, found.usage.total_tokens) == (7, 4, 11)
    assert found.usage.input_tokens_details.cached_tokens == 2
    assert found.usage.output_tokens_details.reasoning_tokens == 1
    for name in ("instructions", "max_output_tokens", "metadata", "temperature", "parallel_tool_calls", "text"):
        assert body[name] == ASKED[name]
    assert [tool.name for tool in found.tools] == ["f", "g"]
    assert found.tool_choice.name == "g"
    assert (found.error, found.incomplete_details) == (None, None)


def test_nothing_that_was_asked_for_has_defaults():
    found, _ = made(ChatResponse("Hello", "stop", Usage(), "m"), {"input": "hi"})
    assert (found.tool_choice, found.tools, found.parallel_tool_calls, found.metadata) == ("auto", [], True, {})


def test_reasoning_and_calls_are_items():
    found, _ = made(ChatResponse(None, "tool_calls", Usage(), "m", reasoning="hm", tool_calls=(CALL, CUSTOM)))
    assert [item.type for item in found.output] == ["reasoning", "function_call", "custom_tool_call"]
    thought, call, custom = found.output
    assert thought.content[0].text == "hm"
    assert (call.call_id, call.name, call.arguments) == ("c1", "f", "{}")
    assert (custom.call_id, custom.name, custom.input) == ("c2", "sql", "select 1")


def test_an_answer_that_is_cut_off_is_incomplete():
    found, _ = made(ChatResponse("Hel", "length", Usage(1, 9), "m"))
    assert (found.status, found.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    only_thought, _ = made(ChatResponse(None, "length", Usage(1, 9), "m", reasoning="hm"))
    assert ([item.type for item in only_thought.output], only_thought.output_text) == (["reasoning"], "")


def test_a_refusal_is_one():
    message = {"content": None, "refusal": "I cannot"}
    found, _ = made(ChatResponse("I cannot", "stop", Usage(), "m", body={"choices": [{"message": message}]}))
    assert found.output[0].content[0].refusal == "I cannot"
    assert found.output_text == ""


def test_citations_logprobs_and_whatever_else_there_is_are_kept():
    token = {
        "token": "é",
        "logprob": -0.1,
        "bytes": None,
        "top_logprobs": [{"token": "é", "logprob": -0.1, "bytes": None}],
    }
    cited = [
        {"type": "url_citation", "url_citation": {"url": "https://h", "title": "t", "start_index": 0, "end_index": 2}},
        {"type": "url_citation", "url": "https://i"},
        {"type": "odd", "x": 1},
    ]
    choice = {"message": {"annotations": cited, "images": [1]}, "logprobs": {"content": [token]}}
    body = {"id": "c-1", "created": 17, "choices": [choice], "system_fingerprint": "fp", "citations": ["a"]}
    found, made_body = made(ChatResponse("é", "stop", Usage(), "m", body=body))
    (part,) = found.output[0].content
    assert [one.url for one in part.annotations] == ["https://h", "https://i"]
    assert part.logprobs[0].bytes == list("é".encode())
    assert (found.id, found.created_at, made_body["system_fingerprint"], made_body["citations"]) == (
        "c-1",
        17,
        "fp",
        ["a"],
    )
    assert made_body["output"][0]["images"] == [1]
    assert made_body["output"][0]["annotations"] == [{"type": "odd", "x": 1}]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_the_answers_of_all_services_are_responses(row):
    response = read_completion(row.body, "m")
    body = response_object(response, "r", {"input": "hi"})
    found = Response.model_validate({**body, "service_tier": None})  # some services have their own words for it
    again = read_response(body)
    assert (again.text or None, again.reasoning) == (response.text or None, response.reasoning)
    assert found.output_text == ("" if response.refused else response.text or "")
    assert [call.get("id") for call in again.tool_calls] == [call["id"] for call in response.tool_calls]


@given(
    text=st.none() | st.text(max_size=9),
    finish=st.sampled_from(["stop", "length", "tool_calls", "odd", None]),
    reasoning=st.none() | st.text(min_size=1, max_size=9),
    calls=st.lists(st.sampled_from([CALL, CUSTOM, {"id": "x", "type": "odd"}]), max_size=3),
    refused=st.booleans(),
)
def test_any_answer_is_a_response(text, finish, reasoning, calls, refused):
    message = {"content": None, "refusal": text} if refused else {}
    body = {"choices": [{"message": message, "logprobs": None}]}
    found, _ = made(ChatResponse(text, finish, Usage(), "m", reasoning=reasoning, tool_calls=tuple(calls), body=body))
    assert found.output_text == ("" if refused and text else text or "")
