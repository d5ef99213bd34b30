"""A chat's body as one of /v1/responses: each field the same, translated, asking for nothing, or refused."""

from __future__ import annotations

import re
import typing

import pydantic
import pytest
from openai.types.chat import completion_create_params as chats
from openai.types.responses import response_create_params as responses

from llmdo.backends.errors import InvalidRequest
from llmdo.backends.openai.requests import OPENAI_DIALECT, chat_body
from llmdo.backends.requests import ChatRequest, Message
from llmdo.backends.responses_api.chat_request import as_chat
from llmdo.backends.responses_api.from_chat import responses_body

OFFICIAL = pydantic.TypeAdapter(responses.ResponseCreateParamsNonStreaming)
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
USER = {"role": "user", "content": "hi"}
ITEM = {"type": "message", "role": "user", "content": "hi"}
WEATHER = {"name": "weather", "description": "d", "parameters": SCHEMA}
GRAMMAR = {"syntax": "lark", "definition": "start: /a/"}
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"a":1}'}}
CUSTOM = {"id": "c2", "type": "custom", "custom": {"name": "sql", "input": "select 1"}}


def body(messages=(USER,), **more):
    found = responses_body({"model": "m", "messages": list(messages), **more})
    OFFICIAL.validate_python(found)
    assert found.pop("model") == "m"
    return found


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({"max_completion_tokens": 50}, {"max_output_tokens": 50}),
        ({"max_tokens": 16}, {"max_output_tokens": 16}),
        ({"reasoning_effort": "low"}, {"reasoning": {"effort": "low"}}),
        ({"verbosity": "low"}, {"text": {"verbosity": "low"}}),
        ({"response_format": {"type": "json_object"}}, {"text": {"format": {"type": "json_object"}}}),
        ({"response_format": {"type": "text"}}, {}),
        (
            {
                "verbosity": "high",
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"schema": SCHEMA, "strict": True, "name": "n"},
                },
            },
            {
                "text": {
                    "verbosity": "high",
                    "format": {"type": "json_schema", "name": "n", "schema": SCHEMA, "strict": True},
                }
            },
        ),
        ({"logprobs": True, "top_logprobs": 2}, {"include": ["message.output_text.logprobs"], "top_logprobs": 2}),
        ({"logprobs": False}, {}),
        (
            {"tools": [{"type": "function", "function": WEATHER}]},
            {"tools": [{"type": "function", **WEATHER, "strict": False}]},
        ),
        (
            {"tools": [{"type": "function", "function": {**WEATHER, "strict": True}}]},
            {"tools": [{"type": "function", **WEATHER, "strict": True}]},
        ),
        (
            {
                "tools": [
                    {"type": "custom", "custom": {"name": "sql", "format": {"type": "grammar", "grammar": GRAMMAR}}}
                ]
            },
            {"tools": [{"type": "custom", "name": "sql", "format": {"type": "grammar", **GRAMMAR}}]},
        ),
        ({"tools": []}, {}),
        ({"tool_choice": "required"}, {"tool_choice": "required"}),
        (
            {"tool_choice": {"type": "function", "function": {"name": "weather"}}},
            {"tool_choice": {"type": "function", "name": "weather"}},
        ),
        (
            {
                "tool_choice": {
                    "type": "allowed_tools",
                    "allowed_tools": {"mode": "auto", "tools": [{"type": "function", "function": {"name": "weather"}}]},
                }
            },
            {
                "tool_choice": {
                    "type": "allowed_tools",
                    "mode": "auto",
                    "tools": [{"type": "function", "name": "weather"}],
                }
            },
        ),
        ({"n": 1, "stop": [], "presence_penalty": 0.0, "frequency_penalty": 0, "logit_bias": {}, "seed": None}, {}),
        ({"store": True, "modalities": ["text"], "stream": False}, {}),
        (
            {"temperature": 0.0, "user": "u", "metadata": {"a": "b"}},
            {"temperature": 0.0, "user": "u", "metadata": {"a": "b"}},
        ),
    ],
)
def test_settings(given, found):
    assert body(**given) == {"input": [ITEM], **found}


@pytest.mark.parametrize(
    ("messages", "items"),
    [
        (
            [{"role": "system", "content": "Be kind"}, {"role": "developer", "content": "Be short"}, USER],
            [
                {**ITEM, "role": "system", "content": "Be kind"},
                {**ITEM, "role": "developer", "content": "Be short"},
                ITEM,
            ],
        ),
        (
            [
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "what?"},
                        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}},
                        {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,AA"}},
                    ],
                }
            ],
            [
                {
                    **ITEM,
                    "content": [
                        {"type": "input_text", "text": "what?"},
                        {"type": "input_image", "image_url": "data:image/png;base64,AA", "detail": "auto"},
                        {"type": "input_file", "filename": "a.pdf", "file_data": "data:application/pdf;base64,AA"},
                    ],
                }
            ],
        ),
        (
            [
                USER,
                {"role": "assistant", "content": [{"type": "text", "text": "a"}, {"type": "refusal", "refusal": "no"}]},
            ],
            [ITEM, {**ITEM, "role": "assistant", "content": "ano"}],
        ),
        (
            [USER, {"role": "assistant", "content": [{"text": "a"}], "refusal": None, "tool_calls": []}],
            [ITEM, {**ITEM, "role": "assistant", "content": "a"}],
        ),
        (
            [
                {"role": "assistant", "content": "Let me see.", "tool_calls": [CALL, CUSTOM]},
                {"role": "tool", "tool_call_id": "c1", "content": "rain"},
                {"role": "tool", "tool_call_id": "c2", "content": [{"type": "text", "text": "1"}]},
            ],
            [
                {**ITEM, "role": "assistant", "content": "Let me see."},
                {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": '{"a":1}'},
                {"type": "custom_tool_call", "call_id": "c2", "name": "sql", "input": "select 1"},
                {"type": "function_call_output", "call_id": "c1", "output": "rain"},
                {"type": "custom_tool_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "1"}]},
            ],
        ),
        (
            [{"role": "assistant", "content": None, "tool_calls": [CALL]}],
            [{"type": "function_call", "call_id": "c1", "name": "weather", "arguments": '{"a":1}'}],
        ),
    ],
)
def test_messages_are_items(messages, items):
    assert body(messages)["input"] == items


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"stop": ["x"]}, "no 'stop'"),
        ({"stop": "x"}, "no 'stop'"),
        ({"n": 2}, "no 'n'"),
        ({"seed": 0}, "no 'seed'"),
        ({"presence_penalty": 0.5}, "no 'presence_penalty'"),
        ({"logit_bias": {"1": 2}}, "no 'logit_bias'"),
        ({"store": False}, "kept by the service, and store is false"),
        ({"modalities": ["text", "audio"]}, "no 'modalities'"),
        ({"web_search_options": {}}, "no 'web_search_options'"),
        ({"max_tokens": 15}, "no limit below 16 tokens, and it is 15"),
        ({"top_k": 4}, "no 'top_k'"),
        ({"messages": [{"role": "function", "name": "f", "content": "1"}]}, "no messages of 'function'"),
        ({"messages": [{**USER, "name": "bo"}]}, "no 'name' of a message"),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "input_audio", "input_audio": {"data": "AA", "format": "wav"}}],
                    }
                ]
            },
            "no part 'input_audio'",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "file", "file": {"file_url": "https://a"}}]}]},
            "no 'file_url' of a file",
        ),
        ({"messages": [{"role": "user", "content": ["bare"]}]}, "no part None"),
        (
            {"messages": [{"role": "assistant", "content": [{"type": "image_url", "image_url": {"url": "a"}}]}]},
            "no part 'image_url' of the assistant's",
        ),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"id": "c", "type": "mcp", "mcp": {}}]}]},
            "no tool call 'mcp'",
        ),
        ({"tools": [{"type": "web_search"}]}, "no tool 'web_search'"),
    ],
)
def test_what_has_no_place_there_is_named(given, said):
    with pytest.raises(InvalidRequest, match=re.escape(said)):
        body(**given)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        *(
            ({"messages": [{"role": "assistant", "content": "a", **turn}]}, said)
            for turn, said in (
                ({"tool_calls": 5}, "'tool_calls' must be an array"),
                ({"tool_calls": {"id": "c"}}, "'tool_calls' must be an array"),
                ({"tool_calls": ["c"]}, "no tool call None"),
                ({"tool_calls": [{"id": "c", "type": ["function"]}]}, "no tool call ['function']"),
                ({"refusal": 5}, "'refusal' must be a string"),
                ({"content": 5}, "'content' must be an array"),
            )
        ),
        ({"messages": [{"role": "user", "content": [{"type": ["text"]}]}]}, "no part ['text']"),
        ({"messages": [{"role": "user", "content": [{"type": "file", "file": "a"}]}]}, "must be an object"),
        ({"tools": "sql"}, "'tools' must be an array"),
        ({"tools": [{"type": ["function"]}]}, "no tool ['function']"),
        ({"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": 5}}},
         "'tools' must be an array"),
    ],
)  # fmt: skip
def test_what_has_not_the_form_of_a_chat_is_refused_and_so_called_as_it_is(given, said):
    with pytest.raises(InvalidRequest, match=re.escape(said)):
        body(**given)


def test_ids_and_grammars_of_another_form_are_left_to_the_service():
    calls = [{"id": {"odd": 1}, "type": "custom", "custom": {"name": "sql"}}]
    tool = {"type": "custom", "custom": {"name": "sql", "format": {"type": "grammar", "grammar": "x"}}}
    found = responses_body({"messages": [{"role": "assistant", "tool_calls": calls}], "tools": [tool]})
    assert found == {
        "input": [{"type": "custom_tool_call", "call_id": {"odd": 1}, "name": "sql", "input": ""}],
        "tools": [{"type": "custom", "name": "sql", "format": {"type": "grammar", "grammar": "x"}}],
    }


def test_every_field_of_a_chats_official_types_is_translated_the_same_or_refused_by_name():
    named = {name for kind in typing.get_args(chats.CompletionCreateParams) for name in typing.get_type_hints(kind)}
    assert len(named) > 30
    for name in named - {"messages", "model"}:
        try:
            found = responses_body({"model": "m", "messages": [USER], name: 17})
        except InvalidRequest as refused:
            assert repr(name) in refused.message
        else:
            assert found.keys() - {"model", "input"}, name


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"max_tokens": 100, "temperature": 0.5, "reasoning_effort": "low"},
        {
            "tools": [{"type": "function", "function": {**WEATHER, "strict": True}}],
            "tool_choice": {"type": "function", "function": {"name": "weather"}},
        },
        {
            "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}},
            "verbosity": "low",
        },
        {"logprobs": True, "top_logprobs": 3, "user": "u"},
    ],
)
def test_a_chat_comes_back_from_the_body_that_it_became(parameters):
    messages = (
        Message("system", "Be kind"),
        Message("user", ({"type": "text", "text": "a"}, {"type": "text", "text": "b"})),
        Message("assistant", None, {"tool_calls": [CALL]}),
        Message("tool", "rain", {"tool_call_id": "c1"}),
        Message("user", "so?"),
    )
    request = ChatRequest("gpt-5", messages, parameters, "r")
    chat, warnings = chat_body(request, OPENAI_DIALECT, new_limit=True)
    back = as_chat(responses_body(chat), "gpt-5", "r", pytest.fail)
    assert (back.messages, warnings) == (messages, ())
    assert back.parameters == parameters
