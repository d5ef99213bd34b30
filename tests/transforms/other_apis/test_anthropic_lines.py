"""Anthropic's batch lines, and what each field of its own client's types becomes."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmdo.backends.media.parts import with_samples
from llmdo.backends.requests import ChatRequest, Message, RawRequest
from llmdo.transforms.media import MediaSettings
from llmdo.transforms.other_apis.anthropic_messages import chat_messages
from llmdo.transforms.other_apis.anthropic_requests import chat_of_messages
from llmdo.transforms.other_apis.translation import Untranslatable
from llmdo.transforms.prompts.line_json import BadLine
from llmdo.transforms.prompts.parse import Defaults, parse_prompt

HI = [{"role": "user", "content": "hi"}]
CACHED = {"cache_control": {"type": "ephemeral"}}
PDF = {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0="}
PNG = {"type": "base64", "media_type": "image/png", "data": "iVBORw0="}
NO_PLACE = "a chat request has no place for it"


def parse(line, model="openai/m", **defaults):
    return parse_prompt(json.dumps(line).encode(), "r", Defaults(model, **defaults), lambda *_: 1)


def translated(**params):
    """The body of the chat, and the warnings."""
    warnings = []
    return chat_of_messages({"messages": HI, **params}, warnings.append), warnings


def messages(*turns):
    return chat_messages(list(turns), lambda _: None)


@pytest.mark.parametrize(
    "around",
    [
        lambda params: {"custom_id": "a", "params": params},
        lambda params: {"custom_id": "a", "request": {"anthropic_version": "vertex-2023-10-16", **params}},
        lambda params: {"recordId": "a", "modelInput": {"anthropic_version": "bedrock-2023-05-31", **params}},
        lambda params: {"custom_id": "a", "method": "POST", "url": "/v1/messages", "body": params},
    ],
)
def test_a_batch_line_is_a_chat_with_the_runs_model(around):
    params = {"max_tokens": 9, "system": "Be brief.", "messages": HI, "temperature": 0.5, "stop_sequences": ["END"]}
    found = parse({**around(params), "team": 7}, parameters={"max_tokens": 99, "seed": 3}, system="Be kind.")
    asked = (Message("system", "Be brief."), Message("user", "hi"))
    parameters = {"max_tokens": 9, "seed": 3, "temperature": 0.5, "stop": ["END"]}
    assert found.request == ChatRequest("m", asked, parameters, "r")
    assert (found.id, found.custom_id, found.metadata, found.own_model) == ("a", "a", {"team": 7}, False)
    assert found.warnings == ()


def test_the_runs_system_prompt_and_a_model_of_the_line_are_as_in_other_lines():
    found = parse({"custom_id": "a", "params": {"model": "house-x", "max_tokens": 9, "messages": HI}}, system="Kind.")
    assert found.request.messages[0] == Message("system", "Kind.")
    assert (found.request.model, found.own_model) == ("house-x", True)


def test_a_line_with_a_prompt_of_its_own_or_a_template_may_have_params():
    own = {"prompt": "hello", "params": {"messages": HI}}
    assert (parse(own).request.messages, parse(own).metadata) == (
        (Message("user", "hello"),),
        {"params": {"messages": HI}},
    )
    asked = parse({"q": "x", "params": {"messages": HI}}, prompt="{q}")
    assert asked.request.messages == (Message("user", "x"),)


def test_blocks_become_parts_calls_and_answers_of_tools():
    call = {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Oslo"}, **CACHED}
    found = messages(
        {"role": "user", "content": [{"type": "text", "text": "And this?"}, {"type": "image", "source": PNG}]},
        {"role": "assistant", "content": [{"type": "text", "text": "Let me look."}, call]},
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "sunny"}]},
                {"type": "text", "text": "So?"},
            ],
        },
    )
    function = {"name": "weather", "arguments": '{"city":"Oslo"}'}
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0="}}
    assert found == [
        {"role": "user", "content": [{"type": "text", "text": "And this?"}, image]},
        {
            "role": "assistant",
            "content": "Let me look.",
            "tool_calls": [{"id": "t1", "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": "t1", "content": "sunny"},
        {"role": "user", "content": "So?"},
    ]


@pytest.mark.parametrize(
    ("block", "parts"),
    [
        (
            {"type": "image", "source": {"type": "url", "url": "https://h/a.png"}},
            [{"type": "image_url", "image_url": {"url": "https://h/a.png"}}],
        ),
        (
            {"type": "image", "source": {"type": "url", "url": "r2://b/a.png"}},
            [{"type": "image_url", "image_url": {"url": "r2://b/a.png"}}],
        ),
        (
            {"type": "document", "source": PDF, "title": "report.pdf", "context": "Of May."},
            [
                {"type": "text", "text": "Of May."},
                {
                    "type": "file",
                    "file": {"filename": "report.pdf", "file_data": "data:application/pdf;base64,JVBERi0="},
                },
            ],
        ),
        (
            {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "T"}, "title": "A"},
            [{"type": "text", "text": "A"}, {"type": "text", "text": "T"}],
        ),
        (
            {"type": "document", "source": {"type": "content", "content": [{"type": "text", "text": "T"}]}},
            [{"type": "text", "text": "T"}],
        ),
        (
            {"type": "search_result", "title": "A", "source": "https://h", "content": [{"type": "text", "text": "T"}]},
            [{"type": "text", "text": "A\nhttps://h"}, {"type": "text", "text": "T"}],
        ),
    ],
)
def test_images_documents_and_search_results_are_parts(block, parts):
    (message,) = messages({"role": "user", "content": [block, {"type": "text", "text": "Q"}]})
    assert message == {"role": "user", "content": [*parts, {"type": "text", "text": "Q"}]}


def test_an_image_that_a_tool_sent_is_in_the_users_message_behind_its_answer():
    warnings = []
    result = {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "image", "source": PNG}]}
    found = chat_messages([{"role": "user", "content": [result]}], warnings.append)
    assert [one["role"] for one in found] == ["tool", "user"]
    assert (found[0]["content"], found[1]["content"][0]["type"]) == ("", "image_url")
    assert warnings == [
        "images and files of a tool's answer are in a message of the user behind it: a tool's answer is text"
    ]


def test_what_changes_no_answer_is_left_out_with_a_warning():
    thought = {"type": "thinking", "thinking": "Hm", "signature": "s"}
    body, warnings = translated(
        system=[{"type": "text", "text": "A", **CACHED}, {"type": "text", "text": "B"}],
        messages=[*HI, {"role": "assistant", "content": [thought]}, {"role": "user", "content": "so?"}],
        thinking={"type": "enabled", "budget_tokens": 2048},
        inference_geo="us",
        brand_new=1,
        stream=None,
    )
    assert body["messages"] == [
        {"role": "system", "content": [{"type": "text", "text": "A"}, {"type": "text", "text": "B"}]},
        *HI,
        {"role": "user", "content": "so?"},
    ]
    assert body.keys() == {"messages"}
    assert warnings == [
        "thinking of an earlier answer was left out: only the model that thought it can read it",
        f"cache_control was left out: {NO_PLACE}",
        "thinking was left out: other models have no budget for it; output_config.effort is translated",
        f"brand_new was left out: {NO_PLACE}",
        f"inference_geo was left out: {NO_PLACE}",
    ]


@pytest.mark.parametrize(
    ("more", "metadata"),
    [
        ({"system": [{"type": "text", "text": "A"}], "stop_sequences": ["END"]}, {}),
        (
            {"system": "A", "tools": [{"name": "w", "input_schema": {}}], "team": 7, "metadata": {"a": 1}},
            {"team": 7, "a": 1},
        ),
        ({"system": "A", "anthropic_version": "vertex-2023-10-16", "max_tokens": 5}, {}),
    ],
)
def test_a_request_without_anything_around_it_is_known_by_what_only_anthropic_has(more, metadata):
    found = parse({"id": "a", "messages": HI, **more})
    assert found.request.messages == (Message("system", "A"), Message("user", "hi"))
    assert (found.id, found.metadata) == ("a", metadata)
    block = {"role": "user", "content": [{"type": "image", "source": PNG}]}
    assert parse({"messages": [block]}).request.messages[0].content[0]["type"] == "image_url"


@pytest.mark.parametrize(
    "line",
    [
        {"messages": HI, "system": "A", "stop_sequences": ["x"], "max_tokens": 5},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image"}]}]},
        {"messages": HI, "tools": [{"type": "function", "function": {"name": "w", "parameters": {}}}]},
    ],
)
def test_messages_that_openai_has_as_well_are_asked_as_they_are(line):
    found = parse(line)
    given = line["messages"][0]["content"]
    assert found.request.messages[-1].content == (given if isinstance(given, str) else tuple(given))
    assert found.request.parameters.get("tools") == line.get("tools")
    assert found.metadata == ({"stop_sequences": ["x"]} if "stop_sequences" in line else {})


@pytest.mark.parametrize(
    ("params", "asked"),
    [
        ({"max_tokens": 5, "top_p": 0.9, "top_k": 40}, {"max_tokens": 5, "top_p": 0.9, "top_k": 40}),
        ({"metadata": {"user_id": "u"}}, {"user": "u"}),
        ({"service_tier": "auto"}, {}),
        ({"service_tier": "standard_only"}, {"service_tier": "default"}),
        ({"thinking": {"type": "disabled"}, "tools": [], "system": ""}, {}),
        ({"tool_choice": {"type": "auto"}}, {"tool_choice": "auto"}),
        ({"tool_choice": {"type": "any"}}, {"tool_choice": "required"}),
        ({"tool_choice": {"type": "none"}}, {"tool_choice": "none"}),
        (
            {"tool_choice": {"type": "tool", "name": "w", "disable_parallel_tool_use": True}},
            {"tool_choice": {"type": "function", "function": {"name": "w"}}, "parallel_tool_calls": False},
        ),
        (
            {"tools": [{"name": "w", "description": "D", "input_schema": {"type": "object"}, "strict": True}]},
            {
                "tools": [
                    {
                        "type": "function",
                        "function": {
                            "name": "w",
                            "description": "D",
                            "strict": True,
                            "parameters": {"type": "object"},
                        },
                    }
                ]
            },
        ),
        (
            {"output_config": {"effort": "low", "format": {"type": "json_schema", "schema": {"type": "object"}}}},
            {
                "reasoning_effort": "low",
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "answer", "schema": {"type": "object"}},
                },
            },
        ),
    ],
)
def test_parameters_have_the_names_of_a_chat(params, asked):
    body, warnings = translated(**params)
    assert {name: value for name, value in body.items() if name != "messages"} == asked
    assert warnings == []


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"messages": "hi"}, "messages must be an array, not a string"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role is 'tool': write one of user, assistant"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content must be an array, not a number"),
        ({"messages": [{"role": "user", "content": ["a"]}]}, "messages.0.content.0 must be an object, not a string"),
        (
            {"messages": [{"role": "user", "content": [{"type": "container_upload"}]}]},
            "messages.0.content.0 is of the type 'container_upload', which only Anthropic's API knows",
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image", "source": {"type": "file", "file_id": "f"}}]}
                ]
            },
            "messages.0.content.0.source is of a type that only Anthropic can read, such as a file kept there: give",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "document", "source": {"type": "url", "url": "h"}}]}]},
            "is a URL, by which a chat takes no document: give base64, or r2://BUCKET/KEY",
        ),
        ({"tools": [{"type": "web_search_20250305", "name": "w"}]}, "tools.0 is 'web_search_20250305', which only"),
        ({"tools": [{"name": "w"}]}, "tools.0.input_schema must be an object, not null"),
        ({"tool_choice": {"type": "some"}}, "tool_choice.type is 'some': write one of auto, any, none, tool"),
        (
            {"mcp_servers": [{"url": "https://h"}]},
            "mcp_servers is used by Anthropic's servers, and by no other: omit it",
        ),
        ({"service_tier": "gold"}, "service_tier must be auto or standard_only, not 'gold'"),
        ({"system": 5}, "system must be an array, not a number"),
    ],
)
def test_what_would_change_the_answer_or_is_wrong_is_refused_with_its_place(params, says):
    with pytest.raises(BadLine) as caught:
        parse({"custom_id": "a", "params": {"max_tokens": 5, "messages": HI, **params}})
    assert says in caught.value.message


def test_params_without_messages_are_named():
    with pytest.raises(BadLine, match="'params' has no messages, which Anthropic's API needs: add them"):
        parse({"custom_id": "a", "params": {"prompt": "hi"}})


# Against the types of Anthropic's own client.


def test_every_parameter_of_anthropics_client_is_translated_refused_or_warned_of():
    types = pytest.importorskip("anthropic.types.message_create_params")
    # Fields with which a request is sent, and a value each that asks for something.
    values = {
        "max_tokens": 5,
        "messages": HI,
        "model": "m",
        "temperature": 0.5,
        "top_p": 0.5,
        "top_k": 5,
        "stop_sequences": ["x"],
        "system": "s",
        "metadata": {"user_id": "u"},
        "service_tier": "standard_only",
        "thinking": {"type": "adaptive"},
        "tool_choice": {"type": "any"},
        "tools": [{"name": "w", "input_schema": {"type": "object"}}],
        "output_config": {"effort": "low"},
        "stream": True,
        "container": "c",
    }
    silent = []
    for name in types.MessageCreateParamsNonStreaming.__annotations__ | types.MessageCreateParamsBase.__annotations__:
        given = values.get(name, {"a": 1})
        try:
            body, warnings = translated(**{name: given})
        except Untranslatable:
            continue
        if not warnings and body == {"messages": HI} and name != "messages":
            silent.append(name)
    assert silent == []


def test_every_block_of_anthropics_client_is_translated_or_refused():
    types = pytest.importorskip("anthropic.types")
    from typing import get_args, get_type_hints

    kinds = {
        get_args(get_type_hints(block)["type"])[0] for block in get_args(types.ContentBlockParam) if block is not None
    }
    assert len(kinds) > 10
    sources = {"image": PNG, "document": PDF, "search_result": "https://h"}
    for kind in kinds:
        block = {
            "type": kind,
            "text": "t",
            "id": "i",
            "name": "n",
            "input": {},
            "tool_use_id": "i",
            "content": [{"type": "text", "text": "t"}],
            "title": "T",
            "source": sources.get(kind),
        }
        warnings = []
        try:
            found = chat_messages([{"role": "user", "content": [block]}], warnings.append)
        except Untranslatable as refused:
            assert f"'{kind}', which only Anthropic's API knows" in str(refused)
        else:
            assert found or warnings


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                "type text source data media_type content role id name input tool_use_id title input_schema url".split()
            ),
            inner | st.sampled_from("text image document tool_use tool_result base64 url user assistant tool".split()),
            max_size=5,
        )
    ),
    max_leaves=20,
)
PARAMETERS = st.sampled_from(
    "messages system tools tool_choice metadata service_tier thinking output_config container stop_sequences".split()
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(PARAMETERS, JSON, max_size=6), st.lists(JSON, max_size=3))
def test_whatever_a_line_holds_it_is_a_request_or_a_bad_line(params, blocks):
    turns = [{"role": "user", "content": blocks}]
    for line in ({"messages": HI, **params}, {**params, "messages": turns}):
        try:
            found = parse({"custom_id": "a", "params": line})
        except BadLine as error:
            assert error.message
        else:
            json.dumps([message.content for message in found.request.messages])


NATIVE = {
    "messages": [{"role": "user", "content": [{"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}}]}],
    "thinking": {"type": "adaptive"},
    "tools": [{"type": "web_search_20250305", "name": "web_search"}],
    "container": "c",
}


@pytest.mark.parametrize(
    "line",
    [
        {"custom_id": "c", "params": NATIVE},
        {"custom_id": "c", "params": {**NATIVE, "model": "claude-opus-5"}},
        {"recordId": "c", "modelInput": {**NATIVE, "anthropic_version": "bedrock-2023-05-31"}},
        {"custom_id": "c", "url": "/v1/messages", "body": NATIVE},
        {"custom_id": "c", "system": [{"type": "text", "text": "s"}], **NATIVE},
    ],
)
def test_anthropics_own_models_get_a_line_as_it_is(line):
    found = parse_prompt(json.dumps(line).encode(), "r", Defaults("anthropic/claude-x"), lambda *_: 1)
    assert isinstance(found.request, RawRequest)
    assert found.request.path == "messages"
    assert {**found.request.input, **NATIVE} == found.request.input
    named = line.get("params", {}).get("model", "claude-x")
    assert (found.provider, found.request.model, found.custom_id, found.warnings) == ("anthropic", named, "c", ())


def test_a_line_that_names_a_model_of_anthropics_is_for_it_in_any_run():
    line = {"custom_id": "c", "params": {**NATIVE, "model": "anthropic/claude-opus-5"}}
    defaults = Defaults("openai/m", line_models="any")
    found = parse_prompt(json.dumps(line).encode(), "r", defaults, lambda *_: 1)
    assert (found.provider, found.request.model) == ("anthropic", "claude-opus-5")
    assert isinstance(found.request, RawRequest)


def test_a_line_that_is_sent_as_it_is_gets_what_the_run_says_and_it_does_not():
    schema = {"type": "object"}
    run = {
        "max_tokens": 9,
        "temperature": 0.5,
        "seed": 1,
        "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}},
    }
    defaults = Defaults("anthropic/claude-x", run, system="be brief")
    line = {"custom_id": "c", "params": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}}
    found = parse_prompt(json.dumps(line).encode(), "r", defaults, lambda *_: 1)
    assert found.request.input == {
        **line["params"],
        "temperature": 0.5,
        "system": "be brief",
        "output_config": {"format": {"type": "json_schema", "schema": schema}},
    }
    assert [warning.split()[0] for warning in found.warnings] == ["seed"]


def test_an_image_of_the_runs_bucket_is_fetched_for_anthropic_too():
    source = {"type": "url", "url": "r2://bucket/a.png"}
    line = {
        "custom_id": "c",
        "params": {"messages": [{"role": "user", "content": [{"type": "image", "source": source}]}]},
    }
    request = parse_prompt(json.dumps(line).encode(), "r", Defaults("anthropic/claude-x"), lambda *_: 1).request
    sent = with_samples(MediaSettings().marked(request, "r2://bucket")).input["messages"][0]["content"][0]
    assert sent == {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}
