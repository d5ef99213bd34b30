"""What a chat becomes in Anthropic's API."""

import base64
import json

import pytest
from anthropic.types import message_create_params
from pydantic import TypeAdapter

from llmdo.backends.anthropic.requests import chat_body, raw_message_body
from llmdo.backends.anthropic.schemas import native_schema
from llmdo.backends.errors import InvalidRequest
from llmdo.backends.requests import ChatRequest, Message, RawRequest
from tests.backends.conformance import TOOL

OLD, MIDDLE, NEW = "claude-3-5-haiku-latest", "claude-sonnet-4-5", "claude-opus-5-5"
PNG = "data:image/png;base64,aGk="
PDF = "data:application/pdf;base64,aGk="
CALL = {"id": "call.1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}


def body_of(*messages, model=MIDDLE, **parameters):
    """The body, and the warnings; Anthropic's own types read the body."""
    warnings = []
    body = chat_body(ChatRequest(model, messages, parameters), warnings.append)
    known = {name: value for name, value in body.items() if name not in ("temperature", "top_k", "top_p")}
    TypeAdapter(message_create_params.MessageCreateParamsNonStreaming).validate_json(json.dumps(known))
    return body, warnings


def user(*parts):
    return Message("user", parts if len(parts) != 1 or isinstance(parts[0], dict) else parts[0])


def test_instructions_stand_before_the_conversation_and_a_later_one_is_named():
    body, warnings = body_of(Message("system", "a"), user("hi"), Message("developer", "b"), user("ho"))
    assert body["system"] == [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    texts = [{"type": "text", "text": "hi"}, {"type": "text", "text": "ho"}]
    assert body["messages"] == [{"role": "user", "content": texts}]
    assert warnings == ["a developer message was moved to the beginning, where Anthropic has the instructions"]
    assert body_of(Message("system", "a"), user("hi"))[0]["system"] == "a"
    assert "system" not in body_of(user("hi"))[0]


def test_tool_calls_and_their_answers_are_blocks_of_alternating_turns():
    body, _ = body_of(
        user("hi"),
        Message("assistant", None, {"tool_calls": [CALL, {**CALL, "id": "2"}]}),
        Message("tool", "sun", {"tool_call_id": "call.1"}),
        Message("tool", "rain", {"tool_call_id": "2"}),
        user("and?"),
    )
    _, asked, answered = body["messages"]
    use = {"type": "tool_use", "id": "call_1", "name": "weather", "input": {"city": "Paris"}}
    assert asked == {"role": "assistant", "content": [use, {**use, "id": "2"}]}
    assert [block["type"] for block in answered["content"]] == ["tool_result", "tool_result", "text"]
    assert answered["content"][0] == {"type": "tool_result", "tool_use_id": "call_1", "content": "sun"}


def test_a_tools_answer_stands_first_in_its_turn():
    body, _ = body_of(user("look"), Message("tool", "sun", {"tool_call_id": "1"}))
    assert [block["type"] for block in body["messages"][0]["content"]] == ["tool_result", "text"]


def test_functions_of_openais_older_api_are_tools():
    legacy = Message("assistant", None, {"function_call": {"name": "f", "arguments": ""}})
    body, _ = body_of(
        user("hi"),
        legacy,
        Message("function", "1", {"name": "f"}),
        functions=[{"name": "f"}],
        function_call={"name": "f"},
    )
    assert body["messages"][1]["content"] == [{"type": "tool_use", "id": "f", "name": "f", "input": {}}]
    assert body["messages"][2]["content"][0]["tool_use_id"] == "f"
    assert body["tools"] == [{"name": "f", "input_schema": {"type": "object", "properties": {}}}]
    assert body["tool_choice"] == {"type": "tool", "name": "f"}


def test_images_and_files_are_blocks_with_their_source():
    text = "data:text/csv;base64," + base64.b64encode("ä,b".encode()).decode()
    mark = {"cache_control": {"type": "ephemeral"}}
    body, _ = body_of(
        user(
            {"type": "text", "text": "see", **mark},
            {"type": "image_url", "image_url": {"url": PNG}},
            {"type": "image_url", "image_url": "https://example.org/a.png"},
            {"type": "file", "file": {"filename": "a.pdf", "file_data": PDF}},
            {"type": "file", "file": {"file_data": text}},
            {"type": "file", "file": {"file_id": "file_1"}},
        )
    )
    assert body["messages"][0]["content"] == [
        {"type": "text", "text": "see", **mark},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}},
        {"type": "image", "source": {"type": "url", "url": "https://example.org/a.png"}},
        {
            "type": "document",
            "source": {"type": "base64", "media_type": "application/pdf", "data": "aGk="},
            "title": "a.pdf",
        },
        {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "ä,b"}},
        {"type": "document", "source": {"type": "file", "file_id": "file_1"}},
    ]


@pytest.mark.parametrize(
    "part",
    [
        {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "x"}, "context": "c"},
        {"type": "search_result", "source": "s", "title": "t", "content": [{"type": "text", "text": "x"}]},
        {"type": "image", "source": {"type": "file", "file_id": "file_1"}},
    ],
)
def test_a_part_of_anthropics_own_is_passed_on(part):
    assert body_of(user(part))[0]["messages"][0]["content"] == [part]


def test_an_earlier_answer_keeps_its_own_blocks():
    blocks = [{"type": "thinking", "thinking": "so", "signature": "s"}, {"type": "text", "text": "yes"}]
    body, _ = body_of(user("a"), Message("assistant", "yes", {"content_parts": blocks, "tool_calls": []}), user("b"))
    assert body["messages"][1]["content"] == blocks


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (user({"type": "input_audio", "input_audio": {"data": "x", "format": "wav"}}), "messages.0.content.0"),
        (user({"type": "image_url", "image_url": {"url": "a.png"}}), "neither a URL nor a data: URI"),
        (Message("assistant", None, {"tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]}), "JSON object"),
        (Message("assistant", None, {"tool_calls": ["f"]}), "calls no function"),
    ],
)
def test_what_claude_cannot_read_is_refused_before_any_call(message, said):
    with pytest.raises(InvalidRequest, match=said):
        body_of(message)


ADAPTIVE = {"thinking": {"type": "adaptive"}}


def budget(tokens):
    return {"thinking": {"type": "enabled", "budget_tokens": tokens}}


@pytest.mark.parametrize(
    ("model", "given", "sent", "warned"),
    [
        (MIDDLE, {"temperature": 0.5, "top_k": 4}, {"temperature": 0.5, "top_k": 4}, []),
        (MIDDLE, {"temperature": 2}, {"temperature": 1.0}, ["temperature"]),
        (MIDDLE, {"temperature": 0.5, "top_p": 0.5}, {"temperature": 0.5}, ["top_p"]),
        (NEW, {"temperature": 0.5, "top_p": 0.5, "top_k": 4}, {}, ["temperature", "top_p", "top_k"]),
        (NEW, {"stop": "x", "user": "u"}, {"stop_sequences": ["x"], "metadata": {"user_id": "u"}}, []),
        (NEW, {"metadata": {"user_id": "u", "k": 1}}, {"metadata": {"user_id": "u"}}, ["metadata"]),
        (NEW, {"service_tier": "default"}, {"service_tier": "standard_only"}, []),
        (NEW, {"service_tier": "flex", "seed": 1, "n": 2}, {}, ["seed", "n", "service_tier"]),
        (NEW, {"max_completion_tokens": 9}, {"max_tokens": 9}, []),
        (NEW, {"max_tokens": -1}, {"max_tokens": 2048}, ["max_tokens"]),
        (NEW, {"reasoning_effort": "high"}, {"output_config": {"effort": "high"}, **ADAPTIVE}, []),
        (NEW, {"reasoning_effort": "none"}, {"output_config": {"effort": "low"}, **ADAPTIVE}, ["reasoning_effort"]),
        (MIDDLE, {"reasoning_effort": "none"}, {}, []),
        (MIDDLE, {"reasoning_effort": "medium", "max_tokens": 9000}, {"max_tokens": 9000, **budget(4500)}, []),
        (MIDDLE, {"reasoning_effort": "low", "top_k": 4}, budget(1024), ["top_k"]),
        (MIDDLE, {"reasoning_effort": "low", "max_tokens": 1000}, {"max_tokens": 1000}, ["reasoning_effort"]),
        (OLD, {"reasoning_effort": "low"}, {}, ["reasoning_effort"]),
        (NEW, {**ADAPTIVE, "speed": "fast"}, {**ADAPTIVE, "speed": "fast"}, []),
        (NEW, {"tool_choice": "required"}, {}, ["tool_choice"]),
        (NEW, {"cache_control": False}, {}, []),
    ],
)  # fmt: skip
def test_parameters_are_sent_as_anthropic_has_them_or_named(model, given, sent, warned):
    body, warnings = body_of(user("hi"), model=model, **given)
    limit = {"max_tokens": 2048} if "max_tokens" not in sent else {}
    base = {"model": model, "messages": [{"role": "user", "content": "hi"}], **limit}
    assert body == {**base, **sent}
    assert [warning.split()[0] for warning in warnings] == warned


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ({"tool_choice": "auto"}, {"type": "auto"}),
        ({"tool_choice": "required"}, {"type": "any"}),
        ({"tool_choice": "none", "parallel_tool_calls": False}, {"type": "none"}),
        ({"tool_choice": {"type": "function", "function": {"name": "weather"}}}, {"type": "tool", "name": "weather"}),
        ({"tool_choice": {"type": "any"}}, {"type": "any"}),
        ({"parallel_tool_calls": False}, {"type": "auto", "disable_parallel_tool_use": True}),
    ],
)
def test_tools_and_their_choice_are_anthropics(given, sent):
    search = {"type": "web_search_20250305", "name": "web_search"}
    body, _ = body_of(user("hi"), tools=[TOOL, search], **given)
    function = TOOL["function"]
    ours = {"name": "weather", "description": function["description"], "input_schema": function["parameters"]}
    assert body["tools"] == [ours, search]
    assert body["tool_choice"] == sent


SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer", "minimum": 1}, "s": {"type": "string", "nullable": True}},
    "required": ["n"],
}
NATIVE = {
    "type": "object",
    "properties": {"n": {"type": "integer", "description": '{"minimum":1}'}, "s": {"type": ["string", "null"]}},
    "required": ["n"],
    "additionalProperties": False,
}


def json_mode(schema):
    return {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}


def test_a_schema_is_sent_by_the_way_that_the_model_has():
    config = body_of(user("hi"), model=NEW, response_format=json_mode(SCHEMA), reasoning_effort="low")[0][
        "output_config"
    ]
    assert config == {"effort": "low", "format": {"type": "json_schema", "schema": NATIVE}}
    body, _ = body_of(user("hi"), model=OLD, response_format=json_mode(SCHEMA))
    assert body["tool_choice"] == {"type": "any"}
    assert body["tools"][0]["input_schema"]["properties"]["answer"] == SCHEMA
    thinking = {"model": "claude-3-7-sonnet-latest", "reasoning_effort": "low"}
    assert "thinking" in body_of(user("hi"), **thinking)[0]
    assert "thinking" not in body_of(user("hi"), response_format=json_mode(SCHEMA), **thinking)[0]
    free = {"type": "object", "additionalProperties": {"type": "string"}}
    body, _ = body_of(Message("system", "s"), user("hi"), model=NEW, response_format=json_mode(free))
    assert body["system"].startswith("s\n\nAnswer with nothing but JSON")
    assert '"additionalProperties"' in body["system"]
    body, _ = body_of(user("hi"), model=NEW, response_format={"type": "json_object"})
    assert body["system"] == "Answer with nothing but one JSON object."


@pytest.mark.parametrize("schema", [{"type": "object"}, {"type": "array", "items": {"type": "object"}}])
def test_a_schema_for_fields_of_any_name_has_no_native_form(schema):
    assert native_schema(schema) is None


def test_a_body_of_this_api_is_passed_on_with_a_limit():
    given = {"messages": [], "thinking": {"type": "adaptive"}, "betas": ["a"], "stream": True, "anthropic_version": "v"}
    request = RawRequest(NEW, {**given, "output_format": {"type": "json_schema", "schema": {}}}, path="messages")
    assert raw_message_body(request) == {
        "model": NEW,
        "max_tokens": 2048,
        "messages": [],
        "thinking": {"type": "adaptive"},
        "output_config": {"format": {"type": "json_schema", "schema": {}}},
    }
    with pytest.raises(InvalidRequest, match="/v1/completions"):
        raw_message_body(RawRequest(NEW, {}, path="completions"))
