"""/v1/responses bodies as chats: each field passed, translated, named in a warning or refused."""

import typing

import pytest
from openai.types.responses import response_create_params as official

from llmdo.backends.errors import InvalidRequest
from llmdo.backends.requests import ChatRequest, Message
from llmdo.backends.responses_api.chat_request import FIELDS, as_chat, response_format, text_format

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
WEATHER = {"name": "weather", "description": "d", "parameters": SCHEMA, "strict": True}


def chat(**body):
    warnings = []
    request = as_chat({"model": "m", "input": "hi", **body}, "m", "r", warnings.append)
    return request, warnings


def test_every_field_of_openais_own_types_is_known():
    named = {name for kind in typing.get_args(official.ResponseCreateParams) for name in typing.get_type_hints(kind)}
    assert named == set(FIELDS)


def test_a_text_with_instructions_and_settings_is_a_chat():
    request, warnings = chat(
        instructions="Be short", max_output_tokens=9, temperature=0.5, top_p=0.9, user="u", top_k=4
    )
    asked = {"max_tokens": 9, "temperature": 0.5, "top_p": 0.9, "user": "u", "top_k": 4}
    assert request == ChatRequest("m", (Message("system", "Be short"), Message("user", "hi")), asked, "r")
    assert warnings == []


@pytest.mark.parametrize(
    ("items", "messages"),
    [
        ([{"role": "user", "content": "hi"}], [Message("user", "hi")]),
        (["hi"], [Message("user", "hi")]),
        ([{"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "Be kind"}]}],
         [Message("developer", "Be kind")]),
        ([{"role": "user", "content": [
            {"type": "input_text", "text": "what?"},
            {"type": "input_image", "image_url": "data:image/png;base64,AA", "detail": "low"},
            {"type": "input_file", "filename": "a.pdf", "file_data": "data:application/pdf;base64,AA"},
            {"type": "input_audio", "input_audio": {"data": "AA", "format": "wav"}},
        ]}], [Message("user", (
            {"type": "text", "text": "what?"},
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA", "detail": "low"}},
            {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,AA"}},
            {"type": "input_audio", "input_audio": {"data": "AA", "format": "wav"}},
        ))]),
        ([{"id": "msg_1", "type": "message", "role": "assistant", "status": "completed", "content": [
            {"type": "output_text", "text": "a", "annotations": []}, {"type": "refusal", "refusal": "no"}]}],
         [Message("assistant", "ano")]),
        ([{"role": "assistant", "content": "Let me see."},
          {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": '{"a":1}'},
          {"type": "function_call", "id": "c2", "name": "weather", "arguments": {"a": 2}},
          {"type": "function_call_output", "call_id": "c1", "output": "rain"},
          {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "sun"}]}],
         [Message("assistant", "Let me see.", {"tool_calls": [
             {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"a":1}'}},
             {"id": "c2", "type": "function", "function": {"name": "weather", "arguments": '{"a":2}'}}]}),
          Message("tool", "rain", {"tool_call_id": "c1"}), Message("tool", "sun", {"tool_call_id": "c2"})]),
        ([{"type": "custom_tool_call", "call_id": "c", "name": "sql", "input": "select 1"},
          {"type": "custom_tool_call_output", "call_id": "c", "output": "1"}],
         [Message("assistant", None, {"tool_calls": [
             {"id": "c", "type": "custom", "custom": {"name": "sql", "input": "select 1"}}]}),
          Message("tool", "1", {"tool_call_id": "c"})]),
    ],
)  # fmt: skip
def test_items_are_messages(items, messages):
    request, warnings = chat(input=items)
    assert (list(request.messages), warnings) == (messages, [])


def test_reasoning_of_earlier_turns_is_left_out_with_a_warning():
    items = [
        {"type": "reasoning", "id": "rs", "summary": [], "encrypted_content": "x"},
        {"role": "user", "content": "hi"},
    ]
    request, warnings = chat(input=items)
    assert request.messages == (Message("user", "hi"),)
    assert warnings == ["input.0 was left out: a chat has no place for the reasoning of earlier turns"]


@pytest.mark.parametrize(
    ("given", "parameters"),
    [
        ({"tools": [{"type": "function", **WEATHER}]}, {"tools": [{"type": "function", "function": WEATHER}]}),
        ({"tools": [{"type": "function", "function": WEATHER}]},
         {"tools": [{"type": "function", "function": WEATHER}]}),
        ({"tools": [{"type": "custom", "name": "sql", "format": {
            "type": "grammar", "syntax": "lark", "definition": "d"}}]},
         {"tools": [{"type": "custom", "custom": {"name": "sql", "format": {
             "type": "grammar", "grammar": {"syntax": "lark", "definition": "d"}}}}]}),
        ({"tools": []}, {}),
        ({"tool_choice": "required"}, {"tool_choice": "required"}),
        ({"tool_choice": {"type": "function", "name": "weather"}},
         {"tool_choice": {"type": "function", "function": {"name": "weather"}}}),
        ({"tool_choice": {"type": "custom", "name": "sql"}},
         {"tool_choice": {"type": "custom", "custom": {"name": "sql"}}}),
        ({"tool_choice": {"type": "allowed_tools", "mode": "required", "tools": [
            {"type": "function", "name": "weather"}]}},
         {"tool_choice": {"type": "allowed_tools", "allowed_tools": {
             "mode": "required", "tools": [{"type": "function", "function": {"name": "weather"}}]}}}),
        ({"text": {"verbosity": "low", "format": {
            "type": "json_schema", "name": "n", "schema": SCHEMA, "strict": True}}},
         {"verbosity": "low", "response_format": {
             "type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA, "strict": True}}}),
        ({"text": {"format": {"type": "json_object"}}}, {"response_format": {"type": "json_object"}}),
        ({"text": {"format": {"type": "text"}}}, {}),
        ({"reasoning": {"effort": "low", "summary": None}}, {"reasoning_effort": "low"}),
        ({"include": ["message.output_text.logprobs"]}, {"logprobs": True}),
        ({"top_logprobs": 2}, {"logprobs": True, "top_logprobs": 2}),
        ({"parallel_tool_calls": False, "service_tier": "flex", "prompt_cache_key": "k", "safety_identifier": "s"},
         {"parallel_tool_calls": False, "service_tier": "flex", "prompt_cache_key": "k", "safety_identifier": "s"}),
        ({"metadata": {"a": "b"}, "store": False, "truncation": "disabled", "previous_response_id": None}, {}),
    ],
)  # fmt: skip
def test_settings_have_the_names_and_forms_of_a_chat(given, parameters):
    request, warnings = chat(**given)
    assert (request.parameters, warnings) == (parameters, [])


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"store": True}, "store was left out"),
        ({"truncation": "auto"}, "truncation was left out"),
        ({"include": ["reasoning.encrypted_content"]}, "include of 'reasoning.encrypted_content' was left out"),
        ({"reasoning": {"summary": "auto"}}, "reasoning.summary was left out"),
        ({"max_tool_calls": 3}, "max_tool_calls was left out"),
        ({"context_management": [{"type": "compaction"}]}, "context_management was left out"),
    ],
)
def test_what_can_be_left_out_is_named(given, says):
    request, (warning,) = chat(**given)
    assert says in warning
    assert request.parameters == {}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        *(({"tools": [{"type": kind}]}, f"tools.0: '{kind}' runs at OpenAI") for kind in
          ("web_search", "web_search_preview", "file_search", "code_interpreter", "image_generation", "mcp", "computer",
           "local_shell", "shell", "apply_patch", "tool_search", "namespace")),
        ({"tool_choice": {"type": "web_search"}}, "tool_choice: 'web_search' runs at OpenAI"),
        ({"previous_response_id": "resp_1"}, "'previous_response_id' cannot be used: a line is answered by itself"),
        ({"conversation": "conv_1"}, "'conversation' cannot be used"),
        ({"prompt": {"id": "pmpt_1"}}, "cannot have 'prompt': it is kept by OpenAI"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input.0: a chat cannot have item_reference"),
        ({"input": [{"type": "web_search_call", "id": "ws_1"}]}, "input.0: a chat cannot have items of the type"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]},
         "input.0.content.0: a chat cannot have input_image by file_id"),
        ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "input_file by nothing: give its bytes"),
        ({"input": [{"role": "user", "content": [{"type": "odd"}]}]}, "a part of the type 'odd'"),
        ({"input": [{"role": "model", "content": "x"}]}, "input.0.role is 'model'"),
        ({"input": [{"role": "user", "content": 5}]}, "input.0.content must be"),
        ({"input": [5]}, "input.0 must be an object"),
        ({"input": 5}, "'input' must be a string or an array"),
        ({"input": [{"type": "function_call_output", "call_id": "c", "output": [
            {"type": "input_image", "image_url": "data:,"}]}]}, "input.0.output.0: in a chat a tool's output"),
        ({"reasoning": "high"}, "'reasoning' must be an object"),
        ({"tools": {}}, "'tools' must be an array"),
    ],
)  # fmt: skip
def test_what_would_be_answered_otherwise_is_refused_with_a_reason(given, says):
    with pytest.raises(InvalidRequest) as caught:
        chat(**given)
    assert says in caught.value.message


def test_formats_come_back_as_they_were():
    flat = {"type": "json_schema", "name": "n", "schema": SCHEMA, "strict": True}
    assert text_format(response_format(flat)) == flat
    assert text_format({"type": "json_schema", "json_schema": SCHEMA}) == {
        "type": "json_schema",
        "name": "answer",
        "schema": SCHEMA,
    }
    assert text_format({"type": "json_object"}) == {"type": "json_object"}
