import pytest

from llmdo.backends.errors import InvalidRequest
from llmdo.backends.limits.sizes import DEFAULT_MAX_TOKENS
from llmdo.backends.requests import ChatRequest, EmbedRequest, Message, RawRequest
from llmdo.backends.workers_ai.requests import body_of, chat_body

LLAMA = "@cf/meta/llama-3.3-70b-instruct-fp8-fast"
GEMMA = "@cf/google/gemma-4-26b-a4b-it"
HELLO = (Message("user", "Hello"),)
SCHEMA = {"type": "object"}
WRAPPED = {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA, "strict": True}}
BARE = {"type": "json_schema", "json_schema": SCHEMA}
NAMED = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}
LIMIT = {"max_tokens": DEFAULT_MAX_TOKENS}


@pytest.mark.parametrize(
    ("shape", "parameters", "sent", "warned"),
    [
        ("native", {}, {}, ()),
        ("native", {"max_tokens": 7}, {"max_tokens": 7}, ()),
        ("native", {"max_completion_tokens": 7}, {"max_tokens": 7}, ()),
        ("native", {"max_tokens": None, "temperature": None}, {}, ()),
        ("native", {"stream": True, "seed": 3, "n": 1}, {"seed": 3}, ("stream",)),
        ("native", {"response_format": {"type": "json_object"}}, {"response_format": {"type": "json_object"}}, ()),
        ("native", {"response_format": WRAPPED}, {"response_format": BARE}, ()),
        ("native", {"response_format": BARE}, {"response_format": BARE}, ()),
        ("native", {"tools": [{"name": "f"}]}, {"tools": [{"name": "f"}]}, ()),
        ("native", {"temperature": 9, "top_p": 0, "top_k": 100, "seed": 0},
         {"temperature": 5, "top_p": 0.001, "top_k": 50, "seed": 1}, ("temperature", "top_p", "top_k", "seed")),
        ("native", {"stop": "x", "logit_bias": {"1": 1}}, {}, ("stop", "logit_bias")),
        ("native", {"verbosity": "low", "service_tier": "flex", "new": 1}, {}, ("verbosity", "service_tier", "new")),
        ("chat", {}, {}, ()),
        ("chat", {"verbosity": "low", "service_tier": "flex"}, {"service_tier": "flex"}, ("verbosity",)),
        ("chat", {"max_completion_tokens": 7}, {"max_tokens": 7}, ()),
        ("chat", {"response_format": WRAPPED}, {"response_format": WRAPPED}, ()),
        ("chat", {"response_format": BARE}, {"response_format": NAMED}, ()),
        ("chat", {"stop": ["x"], "reasoning_effort": "low"}, {"stop": ["x"], "reasoning_effort": "low"}, ()),
        ("chat", {"temperature": 9, "top_k": 5, "raw": True}, {"temperature": 2}, ("temperature", "top_k", "raw")),
        ("chat", {"n": 3}, {}, ("n",)),
    ],
)  # fmt: skip
def test_parameters_fit_the_models_schema_and_every_change_is_warned_of(shape, parameters, sent, warned):
    warnings = []
    body = chat_body(ChatRequest(LLAMA, HELLO, parameters), shape, warnings.append)
    assert body.pop("messages") == [{"role": "user", "content": "Hello"}]
    assert body == {**LIMIT, **sent}
    assert sorted(warning.split()[0] for warning in warnings) == sorted(warned)


@pytest.mark.parametrize("shape", ["native", "chat"])
def test_messages_keep_their_parts_and_never_have_null_content(shape):
    parts = ({"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": "data:x"}})
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = (
        Message("user", parts),
        Message("assistant", None, {"tool_calls": [call]}),
        Message("tool", "42", {"tool_call_id": "1"}),
        Message("tool", "43", {"tool_call_id": "1", "name": "own"}),
        Message("tool", "44", {"tool_call_id": "unheard of"}),
    )
    assert chat_body(ChatRequest(LLAMA, messages), shape)["messages"] == [
        {"role": "user", "content": list(parts)},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "42", "tool_call_id": "1", "name": "f"},
        {"role": "tool", "content": "43", "tool_call_id": "1", "name": "own"},
        {"role": "tool", "content": "44", "tool_call_id": "unheard of"},
    ]


VISION = "@cf/meta/llama-3.2-11b-vision-instruct"


def image(url):
    return {"type": "image_url", "image_url": {"url": url}}


def test_an_older_vision_model_gets_one_image_as_bytes_beside_the_text():
    warnings = []
    parts = (image("data:image/png;base64,AQ=="), {"type": "text", "text": "What?"}, image("data:;base64,Ag=="))
    body = chat_body(ChatRequest(VISION, (Message("user", parts),)), "native", warnings.append)
    assert body == {**LIMIT, "image": [2], "messages": [{"role": "user", "content": "What?"}]}
    assert warnings == [f"an image was left out: {VISION} takes one, and got the last"]
    with pytest.raises(InvalidRequest, match="takes no URL for image"):
        chat_body(ChatRequest(VISION, (Message("user", (image("https://example.com/a.png"),)),)))


def test_a_newer_vision_model_gets_urls_and_data_as_they_are():
    parts = (image("https://example.com/a.png"), image("data:image/png;base64,AQ=="))
    body = chat_body(ChatRequest(GEMMA, (Message("user", parts),)), "chat")
    assert body["messages"] == [{"role": "user", "content": list(parts)}]


def test_an_image_given_as_numbers_stays():
    assert chat_body(ChatRequest(VISION, HELLO, {"image": [1, 2]}))["image"] == [1, 2]


def test_any_request_has_a_body():
    assert body_of(ChatRequest(LLAMA, HELLO))["max_tokens"] == DEFAULT_MAX_TOKENS
    assert body_of(EmbedRequest("@cf/baai/bge-m3", ("a",), {"truncate_inputs": True})) == {
        "text": ["a"],
        "truncate_inputs": True,
    }
    assert body_of(RawRequest("@cf/x/y", {"a": 1})) == {"a": 1}


LLAVA = "@cf/llava-hf/llava-1.5-7b-hf"


def test_what_a_model_that_describes_images_cannot_be_told_is_warned_of():
    sound = {"type": "input_audio", "input_audio": {"data": "AQ==", "format": "wav"}}
    messages = (
        Message("system", "Be brief."),
        Message("user", (image("data:image/png;base64,AQ=="), {"type": "text", "text": "What?"}, sound), {"name": "x"}),
    )
    warnings = []
    body = chat_body(ChatRequest(LLAVA, messages), "native", warnings.append)
    assert body == {**LIMIT, "image": [1], "prompt": "Be brief.\nWhat?"}
    assert warnings == [
        f"input_audio was left out: {LLAVA} takes text with an image",
        f"name was left out: {LLAVA} cannot use it",
        f"the messages were joined to one prompt, without their roles: {LLAVA} takes no conversation",
    ]
    assert chat_body(ChatRequest(LLAVA, HELLO), "native", pytest.fail)["prompt"] == "Hello"


@pytest.mark.parametrize("shape", ["native", "chat"])
@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        ("json", 'write {"type": …} with one of text, json_object, json_schema'),
        ({"type": "yaml"}, "response_format is"),
    ],
)
def test_a_response_format_that_cannot_be_kept_to_is_refused(shape, wanted, says):
    with pytest.raises(InvalidRequest, match=says):
        chat_body(ChatRequest(LLAMA, HELLO, {"response_format": wanted}), shape)


@pytest.mark.parametrize("shape", ["native", "chat"])
def test_roles_that_only_openai_knows_go_by_the_names_that_all_models_know(shape):
    messages = (
        Message("developer", "Be brief."),
        Message("user", "weather?"),
        Message("function", "sunny", {"name": "w"}),
    )
    body = body_of(ChatRequest("@cf/x/y", messages), shape)
    assert [(message["role"], message["content"]) for message in body["messages"]] == [
        ("system", "Be brief."),
        ("user", "weather?"),
        ("tool", "sunny"),
    ]


@pytest.mark.parametrize("path", ["completions", "responses", "embeddings"])
def test_the_body_of_another_route_is_no_models_own_input(path):
    with pytest.raises(
        InvalidRequest, match=f"does not ask Workers AI by /v1/{path}: write the url /v1/chat/completions"
    ):
        body_of(RawRequest("@cf/x/y", {"input": "a"}, path=path))
