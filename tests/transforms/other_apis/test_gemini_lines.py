"""Gemini's batch lines, and what each field of Google's own client's types becomes."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmdo.backends.requests import ChatRequest, EmbedRequest, Message
from llmdo.transforms.other_apis.gemini_contents import Contents
from llmdo.transforms.other_apis.gemini_requests import chat_of_contents
from llmdo.transforms.other_apis.gemini_schemas import json_schema
from llmdo.transforms.other_apis.translation import Untranslatable
from llmdo.transforms.prompts.line_json import BadLine
from llmdo.transforms.prompts.parse import Defaults, parse_prompt

HI = [{"role": "user", "parts": [{"text": "hi"}]}]
ASKED = [{"role": "user", "content": "hi"}]
NO_PLACE = "a chat request has no place for it"


def parse(line, model="openai/m", **defaults):
    return parse_prompt(
        json.dumps(line).encode(), "r", Defaults(model, **defaults), lambda _, name: 100 if "bge" in name else 1
    )


def translated(**request):
    """The body of the chat, and the warnings."""
    warnings = []
    return chat_of_contents({"contents": HI, **request}, warnings.append), warnings


def settings_of(**config):
    body, warnings = translated(generationConfig=config)
    return {name: value for name, value in body.items() if name != "messages"}, warnings


def messages(*turns):
    return Contents(lambda _: None).messages(list(turns))


@pytest.mark.parametrize(
    ("around", "named"),
    [
        (lambda request: {"key": "a", "request": request}, "a"),
        (lambda request: {"key": 7, "request": request}, 7),
        (lambda request: {"request": request}, None),
        (lambda request: {"id": "a", **request}, "a"),
        (lambda request: {"custom_id": "a", "url": "/v1beta/models/g:generateContent", "body": request}, "a"),
    ],
)
@pytest.mark.parametrize(
    "request_",
    [
        {
            "contents": HI,
            "systemInstruction": {"parts": [{"text": "Be brief."}]},
            "generationConfig": {"temperature": 0.5, "topP": 0.9, "maxOutputTokens": 9, "stopSequences": ["END"]},
        },
        {
            "contents": [{"parts": [{"text": "hi"}]}],
            "system_instruction": {"role": "system", "parts": [{"text": "Be brief."}]},
            "generation_config": {"temperature": 0.5, "top_p": 0.9, "max_output_tokens": 9, "stop_sequences": ["END"]},
        },
    ],
)
def test_a_batch_line_is_a_chat_with_the_runs_model(around, named, request_):
    found = parse({**around(request_), "team": 7}, parameters={"max_tokens": 99, "seed": 3}, system="Be kind.")
    asked = (Message("system", "Be brief."), Message("user", "hi"))
    parameters = {"max_tokens": 9, "seed": 3, "temperature": 0.5, "top_p": 0.9, "stop": ["END"]}
    assert found.request == ChatRequest("m", asked, parameters, "r")
    assert (found.id, found.metadata, found.own_model, found.warnings) == (named, {"team": 7}, False, ())
    assert found.custom_id == (None if named is None else str(named))


def test_a_model_in_the_request_is_the_lines_model():
    found = parse({"key": "a", "request": {"model": "models/house-x", "contents": HI}})
    assert (found.request.model, found.own_model) == ("house-x", True)


def test_a_batch_line_of_embeddings_is_an_embedding():
    request = {"content": {"parts": [{"text": "hi"}]}, "output_dimensionality": 9, "task_type": "RETRIEVAL_QUERY"}
    found = parse({"key": "a", "request": request}, "openai/bge")
    assert found.request == EmbedRequest("bge", ("hi",), {"dimensions": 9}, "r")
    assert found.warnings == (f"taskType was left out: {NO_PLACE}",)


def test_parts_become_parts_calls_and_answers_of_functions():
    call = {"functionCall": {"name": "weather", "args": {"big_city": "Oslo"}}}
    found = messages(
        {"role": "user", "parts": [{"text": "And this?"}, {"inline_data": {"mime_type": "image/png", "data": "_-8"}}]},
        {"role": "model", "parts": [call, call]},
        {"role": "user", "parts": [{"functionResponse": {"name": "weather", "response": {"big_sky": "blue"}}}] * 2},
        {"role": "user", "parts": [{"text": "So?"}]},
    )
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,/+8="}}
    function = {"name": "weather", "arguments": '{"big_city":"Oslo"}'}
    calls = [{"id": f"call_{number}", "type": "function", "function": function} for number in (0, 1)]
    assert found == [
        {"role": "user", "content": [{"type": "text", "text": "And this?"}, image]},
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "tool_call_id": "call_0", "content": '{"big_sky":"blue"}'},
        {"role": "tool", "tool_call_id": "call_1", "content": '{"big_sky":"blue"}'},
        {"role": "user", "content": "So?"},
    ]


def test_a_functions_answer_finds_its_call_by_its_id():
    calls = [{"functionCall": {"id": name, "name": "w", "args": {}}} for name in ("x", "y")]
    answer = {"functionResponse": {"id": "y", "name": "w", "response": {}}}
    found = messages({"role": "model", "parts": calls}, {"role": "function", "parts": [answer]})
    assert [one["tool_call_id"] for one in found[1:]] == ["y"]


@pytest.mark.parametrize(
    ("part", "content"),
    [
        (
            {"fileData": {"mimeType": "image/png", "fileUri": "https://h/a.png"}},
            {"type": "image_url", "image_url": {"url": "https://h/a.png"}},
        ),
        (
            {"file_data": {"mime_type": "image/png", "file_uri": "r2://b/a.png"}},
            {"type": "image_url", "image_url": {"url": "r2://b/a.png"}},
        ),
        (
            {"inlineData": {"mimeType": "audio/mpeg", "data": "AAAA"}},
            {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "mp3"}},
        ),
        (
            {"inlineData": {"mimeType": "application/pdf", "data": "AAAA", "displayName": "a.pdf"}},
            {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,AAAA"}},
        ),
        (
            {"fileData": {"mimeType": "application/pdf", "fileUri": "r2://b/a.pdf"}},
            {"type": "file", "file": {"filename": "file.pdf", "file_data": "r2://b/a.pdf"}},
        ),
        (
            {"fileData": {"mimeType": "audio/wav", "fileUri": "r2://b/a.wav"}},
            {"type": "input_audio", "input_audio": {"data": "r2://b/a.wav", "format": "wav"}},
        ),
        ({"inlineData": {"mimeType": "text/plain", "data": "aGk="}}, {"type": "text", "text": "hi"}),
    ],
)
def test_media_are_parts(part, content):
    (message,) = messages({"role": "user", "parts": [part, {"text": "Q"}]})
    assert message["content"] == [content, {"type": "text", "text": "Q"}]


@pytest.mark.parametrize(
    ("config", "asked"),
    [
        ({"topK": 40.0, "candidateCount": 2, "seed": 1}, {"top_k": 40, "n": 2, "seed": 1}),
        ({"responseLogprobs": True, "logprobs": 3}, {"logprobs": True, "top_logprobs": 3}),
        ({"presencePenalty": 1, "frequency_penalty": 0.5}, {"presence_penalty": 1, "frequency_penalty": 0.5}),
        ({"responseMimeType": "application/json"}, {"response_format": {"type": "json_object"}}),
        ({"responseMimeType": "text/plain", "responseModalities": ["TEXT"]}, {}),
        ({"thinkingConfig": {"thinkingLevel": "LOW"}}, {"reasoning_effort": "low"}),
    ],
)
def test_settings_have_the_names_of_a_chat(config, asked):
    assert settings_of(**config) == (asked, [])


@pytest.mark.parametrize(
    "config",
    [
        {
            "responseMimeType": "application/json",
            "responseSchema": {"type": "OBJECT", "properties": {"a": {"type": "STRING"}}},
        },
        {
            "response_mime_type": "application/json",
            "response_json_schema": {"type": "object", "properties": {"a": {"type": "string"}}},
        },
        {
            "responseFormat": {
                "text": {
                    "mimeType": "application/json",
                    "schema": {"type": "object", "properties": {"a": {"type": "string"}}},
                }
            }
        },
    ],
)
def test_a_schema_of_the_answer_is_the_chats(config):
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    wanted = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    assert settings_of(**config) == ({"response_format": wanted}, [])


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        (
            {"type": "OBJECT", "additionalProperties": {"type": "STRING"}},
            {"type": "object", "additionalProperties": {"type": "string"}},
        ),
        ({"type": "TYPE_UNSPECIFIED", "maxItems": "9" * 5000}, {"maxItems": "9" * 5000}),
        (
            {"oneOf": [{"type": "STRING"}], "const": "a", "example": "a", "additionalProperties": False},
            {"oneOf": [{"type": "string"}], "const": "a", "examples": ["a"], "additionalProperties": False},
        ),
        ({"type": "INTEGER", "minimum": 1, "format": "int32"}, {"type": "integer", "minimum": 1, "format": "int32"}),
        (
            {"type": "ARRAY", "items": {"type": "NUMBER"}, "min_items": "2"},
            {"type": "array", "items": {"type": "number"}, "minItems": 2},
        ),
        ({"type": "STRING", "enum": ["a"], "nullable": True}, {"type": ["string", "null"], "enum": ["a", None]}),
        ({"anyOf": [{"type": "STRING"}], "nullable": True}, {"anyOf": [{"type": "string"}, {"type": "null"}]}),
        (
            {
                "type": "OBJECT",
                "properties": {"max_items": {"type": "BOOLEAN"}},
                "required": ["max_items"],
                "propertyOrdering": ["max_items"],
            },
            {"type": "object", "properties": {"max_items": {"type": "boolean"}}, "required": ["max_items"]},
        ),
        (
            {"defs": {"A": {"type": "STRING"}}, "ref": "#/defs/A"},
            {"$defs": {"A": {"type": "string"}}, "$ref": "#/$defs/A"},
        ),
    ],
)
def test_a_schema_in_openapis_words_is_a_json_schema(schema, expected):
    assert json_schema(schema, "schema") == expected


def test_properties_are_in_the_order_that_is_asked_for():
    properties = {name: {"type": "STRING"} for name in "abc"}
    made = json_schema({"type": "OBJECT", "properties": properties, "propertyOrdering": ["c", "a", "x"]}, "schema")
    assert list(made["properties"]) == ["c", "a", "b"]
    assert made.keys() == {"type", "properties"}


def test_every_keyword_of_googles_schemas_is_kept():
    types = pytest.importorskip("google.genai.types")
    other = {"defs": "$defs", "ref": "$ref", "example": "examples", "propertyOrdering": None, "nullable": None}
    for field in types.Schema.model_fields.values():
        value = {"anyOf": [{}], "defs": {}, "properties": {}, "items": {}}.get(field.alias, "1")
        made = json_schema({field.alias: value}, "schema")
        kept = other.get(field.alias, field.alias)
        assert made.keys() == ({kept} if kept else set()), field.alias


def test_a_schema_may_be_nested_as_deeply_as_a_line_of_json_can_be():
    deep = {"type": "STRING"}
    for _ in range(180):
        deep = {"type": "ARRAY", "items": deep}
    found = parse({"key": "a", "request": {"contents": HI, "generationConfig": {"responseSchema": deep}}})
    assert json.dumps(found.request.parameters).count('"array"') == 180


def test_functions_are_tools_and_only_those_that_may_be_called():
    declared = [
        {"name": "a", "description": "D", "parameters": {"type": "OBJECT", "properties": {}}},
        {"name": "b", "parameters_json_schema": {"type": "object"}},
    ]
    body, warnings = translated(
        tools=[{"function_declarations": declared}],
        tool_config={"function_calling_config": {"mode": "ANY", "allowed_function_names": ["b"]}},
    )
    function = {"name": "b", "parameters": {"type": "object"}}
    assert (body["tools"], body["tool_choice"]) == ([{"type": "function", "function": function}], "required")
    assert warnings == []
    body, _ = translated(tools=[{"functionDeclarations": declared}])
    assert [tool["function"]["name"] for tool in body["tools"]] == ["a", "b"]
    assert body["tools"][0]["function"]["parameters"] == {"type": "object", "properties": {}}
    assert "tool_choice" not in body


def test_what_changes_no_answer_is_left_out_with_a_warning():
    body, warnings = translated(
        contents=[*HI, {"role": "model", "parts": [{"text": "Hm", "thought": True}]}, *HI],
        safetySettings=[{"category": "HARM_CATEGORY_HATE_SPEECH", "threshold": "BLOCK_NONE"}],
        labels={"team": "x"},
        generationConfig={"thinkingConfig": {"thinkingBudget": 0}, "mediaResolution": "MEDIA_RESOLUTION_LOW"},
    )
    assert body == {"messages": [*ASKED, *ASKED]}
    assert warnings == [
        "thoughts of an earlier answer were left out: only the model that thought them needs them",
        "thinkingBudget was left out: other models have no budget for it; thinkingLevel is translated",
        f"mediaResolution was left out: {NO_PLACE}",
        f"labels was left out: {NO_PLACE}",
        f"safetySettings was left out: {NO_PLACE}",
    ]


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        ({"contents": 5}, "contents must be an array, not a number"),
        ({"contents": [{"role": "assistant", "parts": []}]}, "contents.0.role is 'assistant': write user or model"),
        ({"contents": [{"role": "user"}]}, "contents.0.parts must be an array, not null"),
        ({"contents": [{"parts": [{"executableCode": {}}]}]}, "contents.0.parts.0 (executableCode) is nothing that a"),
        (
            {"contents": [{"parts": [{"inlineData": {"mimeType": "video/mp4", "data": "AAAA"}}]}]},
            "inlineData is 'video/mp4': a chat takes images, sounds, PDFs and text, so give one of these",
        ),
        (
            {"contents": [{"parts": [{"fileData": {"mimeType": "image/png", "fileUri": "gs://b/a.png"}}]}]},
            "fileUri 'gs://b/a.png' cannot be read from here: give inlineData, or r2://BUCKET/KEY",
        ),
        (
            {"contents": [{"parts": [{"fileData": {"mimeType": "application/pdf", "fileUri": "https://h/a.pdf"}}]}]},
            "fileUri 'https://h/a.pdf' cannot be read from here",
        ),
        (
            {"contents": [{"parts": [{"functionResponse": {"name": "w", "response": {}}}]}]},
            "answers 'w', which no functionCall before it calls: add the call",
        ),
        ({"cachedContent": "cachedContents/x"}, "cachedContent is kept at Google"),
        ({"tools": [{"googleSearch": {}}]}, "tools.0 has 'googleSearch', which only Google runs"),
        ({"generationConfig": {"responseModalities": ["IMAGE"]}}, "responseModalities asks for 'IMAGE'"),
        ({"generationConfig": {"responseMimeType": "text/x.enum"}}, "responseMimeType 'text/x.enum' cannot be asked"),
        ({"generationConfig": 5}, "generationConfig must be an object, not a number"),
    ],
)
def test_what_would_change_the_answer_or_is_wrong_is_refused_with_its_place(request_, says):
    with pytest.raises(BadLine) as caught:
        parse({"key": "a", "request": {"contents": HI, **request_}})
    assert says in caught.value.message


def test_a_request_without_contents_is_named():
    with pytest.raises(BadLine, match="'request' has no contents, which Gemini's API needs: add them"):
        parse({"key": "a", "request": {"prompt": "hi"}})


# Against the types of Google's own client.


def test_every_setting_of_googles_client_is_translated_refused_or_warned_of():
    types = pytest.importorskip("google.genai.types")
    values = {
        "responseMimeType": "application/json",
        "responseModalities": ["AUDIO"],
        "thinkingConfig": {"thinkingLevel": "low"},
        "responseSchema": {"type": "STRING"},
    }
    silent = []
    for field in types.GenerationConfig.model_fields.values():
        try:
            asked, warnings = settings_of(**{field.alias: values.get(field.alias, {"a": 1})})
        except Untranslatable:
            continue
        if not asked and not warnings:
            silent.append(field.alias)
    assert silent == []
    assert len(types.GenerationConfig.model_fields) > 20


def test_every_part_of_googles_client_is_translated_or_refused():
    types = pytest.importorskip("google.genai.types")
    for field in types.Part.model_fields.values():
        warnings = []
        turn = {"parts": [{"text": "t", field.alias: "t" if field.alias == "text" else {"a": 1}}]}
        try:
            found = Contents(warnings.append).messages([turn])
        except Untranslatable:
            continue
        assert found[0]["content"] == "t" if found else warnings
        assert warnings or field.alias == "text"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                """text parts role inlineData inline_data mimeType data fileData fileUri functionCall functionResponse
                name args response id type properties items anyOf functionDeclarations parameters functionCallingConfig
                mode thinkingConfig responseSchema responseMimeType responseFormat schema""".split()
            ),
            inner | st.sampled_from("image/png application/json user model ANY OBJECT".split()),
            max_size=5,
        )
    ),
    max_leaves=20,
)
FIELDS = st.sampled_from(
    """contents systemInstruction system_instruction generationConfig generation_config tools toolConfig serviceTier
    cachedContent model""".split()
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(FIELDS, JSON, max_size=6), st.lists(JSON, max_size=3))
def test_whatever_a_line_holds_it_is_a_request_or_a_bad_line(request_, parts):
    for one in (
        {"contents": HI, **request_},
        {**request_, "contents": [{"parts": parts}]},
        {"content": {"parts": parts}},
    ):
        try:
            found = parse({"key": "a", "request": one})
        except BadLine as error:
            assert error.message
        else:
            assert found.request
