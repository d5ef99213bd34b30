import json
import re

import pytest

from llmdo.backends.requests import ChatRequest, EmbedRequest, Message, RawRequest
from llmdo.transforms.prompts.line_json import BadLine
from llmdo.transforms.prompts.parse import Defaults, parse_prompt

DEFAULTS = Defaults("workers-ai/@cf/meta/llama", {"max_tokens": 99})
ERROR = {
    "class": "Overloaded",
    "code": None,
    "status": 503,
    "message": "…",
    "retryable": True,
    "attempts": 3,
    "offset": 0,
    "length": 10,
}


def parse(line, defaults=DEFAULTS):
    data = line if isinstance(line, bytes) else json.dumps(line).encode()
    return parse_prompt(data, "request-1", defaults, lambda provider, model: 100 if "bge" in model else 1)


def test_a_prompt_becomes_a_user_message_with_the_runs_parameters():
    prompt = parse({"prompt": "Hello"})
    assert prompt.provider == "workers-ai"
    assert prompt.request == ChatRequest("@cf/meta/llama", (Message("user", "Hello"),), {"max_tokens": 99}, "request-1")
    assert not prompt.own_model


def test_parameters_in_the_line_win_over_the_runs():
    request = parse({"prompt": "x", "max_tokens": 5, "temperature": 0}).request
    assert request.parameters == {"max_tokens": 5, "temperature": 0}


def test_messages_keep_roles_parts_and_further_fields():
    parts = [{"type": "text", "text": "what is this?"}]
    request = parse(
        {"messages": [{"role": "developer", "content": "be brief"}, {"role": "user", "content": parts, "name": "a"}]}
    ).request
    assert request.messages == (Message("developer", "be brief"), Message("user", tuple(parts), {"name": "a"}))


def test_an_openai_batch_line_is_its_body():
    body = {"model": "local/other", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 7}
    line = {"custom_id": "c-1", "method": "POST", "url": "/v1/chat/completions", "body": body}
    prompt = parse(line, Defaults(DEFAULTS.model, DEFAULTS.parameters, line_models="any"))
    assert (prompt.provider, prompt.request.model) == ("local", "other")
    assert prompt.request.parameters == {"max_tokens": 7}
    assert (prompt.id, prompt.custom_id) == ("c-1", "c-1")
    assert prompt.metadata == {}
    assert prompt.own_model


def test_an_openai_embedding_line_is_an_embedding():
    line = {
        "custom_id": "e",
        "method": "POST",
        "url": "/v1/embeddings",
        "body": {"model": "@cf/baai/bge-m3", "input": "a"},
    }
    assert parse(line).request == EmbedRequest("@cf/baai/bge-m3", ("a",), {}, "request-1")


def test_a_text_for_an_embedding_model_is_an_embedding_and_else_the_models_own_input():
    assert isinstance(parse({"text": "a", "model": "@cf/baai/bge-m3"}).request, EmbedRequest)
    raw = parse({"id": 1, "text": "a", "target_lang": "de", "model": "@cf/meta/m2m100"}).request
    assert raw == RawRequest("@cf/meta/m2m100", {"text": "a", "target_lang": "de"}, "request-1")


@pytest.mark.parametrize(
    "line",
    [
        {"text": ["a", "b"]},
        {"input": ["a", "b"]},
        {"custom_id": "e", "url": "/v1/embeddings", "body": {"input": ["a", "b"]}},
    ],
)
@pytest.mark.parametrize("model", ["workers-ai/@cf/baai/bge-m3", "openai/bge-m3"])
def test_an_array_of_texts_is_one_request_to_embed(line, model):
    found = parse(line, Defaults(model))
    assert found.request == EmbedRequest(model.partition("/")[2], ("a", "b"), {}, "request-1")
    assert found.metadata == {}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ([], "'text' is an empty array"),
        (["a", 5], r"'text' must be an array of strings, but \[1\] is a number"),
        ([1, 2], "'text' holds numbers of tokens, which workers-ai does not take: give the text that they stand for"),
        ([[1, 2]], "'text' holds numbers of tokens, which workers-ai does not take: give the text that they stand for"),
        ([1, "a"], r"\[0\] is a number"),
        ([["a"]], r"\[0\] is an array"),
    ],
)
def test_an_array_that_is_no_text_is_a_bad_line(given, says):
    with pytest.raises(BadLine, match=says):
        parse({"text": given, "model": "@cf/baai/bge-m3"})


def test_numbers_of_tokens_go_to_a_service_that_knows_them_as_they_are():
    line = {"url": "/v1/embeddings", "body": {"model": "bge-large", "input": [[1, 2], [3]]}}
    assert isinstance(parse(line, Defaults("openai/gpt")).request, RawRequest)


def test_parameters_by_openais_names_are_no_metadata():
    given = {"verbosity": "low", "service_tier": "flex", "reasoning_effort": "low", "prompt_cache_key": "k"}
    prompt = parse({"prompt": "x", **given, "store": "Berlin", "dimensions": "2 x 3 m"})
    assert prompt.request.parameters == {"max_tokens": 99, **given}
    assert prompt.metadata == {"store": "Berlin", "dimensions": "2 x 3 m"}  # chats do not have these parameters


@pytest.mark.parametrize(
    "defaults", [DEFAULTS, Defaults("workers-ai/@cf/meta/llama", prompt="{text}", line_parameters=True)]
)
def test_an_embeddings_dimensions_are_a_parameter(defaults):
    line = {"text": "a", "model": "@cf/baai/bge-m3", "dimensions": 256, "encoding_format": "base64", "team": 1}
    prompt = parse(line, defaults)
    assert prompt.request.parameters == {"dimensions": 256, "encoding_format": "base64"}
    assert prompt.metadata == {"team": 1}
    assert parse(line | {"encoding_format": "float"}, defaults).request.parameters == {"dimensions": 256}


def test_all_of_a_batch_lines_body_is_asked_for():
    """A body that OpenAI would take has no field that is left out without a word: the backend warns of each."""
    given = {"store": True, "metadata": {"a": "b"}, "prediction": {"type": "content"}, "new_parameter": 1}
    content = {"model": "@cf/meta/llama", "messages": [{"role": "user", "content": "hi"}], "stream": False}
    prompt = parse({"custom_id": "c", "url": "/v1/chat/completions", "body": {**content, **given}})
    assert prompt.request.parameters == {"max_tokens": 99, **given}
    body = {"model": "@cf/baai/bge-m3", "input": "a", "dimensions": 9, "encoding_format": "float", "new_parameter": 1}
    prompt = parse({"custom_id": "e", "url": "/v1/embeddings", "body": body})
    assert prompt.request.parameters == {"dimensions": 9, "new_parameter": 1}


def test_unknown_fields_ride_along_in_metadata():
    prompt = parse({"prompt": "x", "customer": 7, "metadata": {"batch": "b"}})
    assert prompt.metadata == {"batch": "b", "customer": 7}
    assert parse({"prompt": "x", "metadata": "note"}).metadata == {"metadata": "note"}


@pytest.mark.parametrize(
    ("given", "own", "custom"),
    [
        ({"id": 5}, 5, "5"),
        ({"custom_id": 5}, 5, "5"),
        ({"id": 5, "custom_id": "c"}, 5, "c"),
        ({"id": "a", "custom_id": 1.5}, "a", "1.5"),
        ({"custom_id": "c"}, "c", "c"),
        ({"id": None, "custom_id": "c"}, "c", "c"),
        ({"id": 0, "custom_id": None}, 0, "0"),
        ({"id": True}, True, "true"),
        ({"id": {"a": [1]}}, {"a": [1]}, '{"a":[1]}'),
        ({"id": 2**70}, 2**70, str(2**70)),
        ({}, None, None),
        ({"id": None}, None, None),
    ],
)
def test_a_custom_id_is_text_an_id_is_as_it_was_and_one_stands_for_the_other(given, own, custom):
    prompt = parse({"prompt": "x", **given})
    assert (prompt.id, prompt.custom_id) == (own, custom)
    assert prompt.metadata == {}


def test_a_system_prompt_is_put_first_unless_the_line_has_one():
    defaults = Defaults("workers-ai/@cf/meta/llama", {}, "Be kind.")
    assert parse({"prompt": "x"}, defaults).request.messages[0] == Message("system", "Be kind.")
    own = {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "x"}]}
    assert [m.content for m in parse(own, defaults).request.messages] == ["Be brief.", "x"]
    assert parse({"prompt": "x", "system": "Mine."}, defaults).request.messages[0].content == "Mine."


@pytest.mark.parametrize(
    "kept",
    [
        {"id": "a", "prompt": "again"},
        {"raw": '{"id": "a", "prompt": "again"}'},
        {"raw_base64": "eyJpZCI6ICJhIiwgInByb21wdCI6ICJhZ2FpbiJ9"},
    ],
)
def test_an_error_line_can_be_fed_back_unchanged(kept):
    prompt = parse({**kept, "error": ERROR})
    assert prompt.id == "a"
    assert prompt.request.messages == (Message("user", "again"),)
    assert prompt.metadata == {}


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b"{not json", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b'{"prompt": NaN}', "not valid JSON"),
        (b'{"prompt": "x", "seed": [1e400]}', "too large"),
        (b"[1, 2]", "must be a JSON object, not an array"),
        (b'"text"', "must be a JSON object, not a string"),
        (b"null", "must be a JSON object, not null"),
        ({"id": "only"}, "nothing to answer"),
        ({"prompt": ""}, "nothing to answer"),
        ({"prompt": "  "}, "nothing to answer"),
        ({"messages": []}, "nothing to answer"),
        ({"messages": [{"role": "system", "content": " "}]}, "nothing to answer"),
        ({"prompt": 5}, "'prompt' must be a string, not a number"),
        ({"prompt": None}, "'prompt' must be a string, not null"),
        ({"messages": "hi"}, "'messages' is wrong at its top: it must be an array"),
        (
            {"messages": [{"role": "wizard", "content": "x"}]},
            "'messages' is wrong at 0.role: 'wizard' is not a role: write one of system, ",
        ),
        ({"messages": [{"role": "user", "content": 5}]}, "'messages' is wrong at 0.content: it must be a string"),
        ({"prompt": "x", "model": 5}, "'model' must be a string"),
        ({"prompt": "x", "system": 5}, "'system' must be a string"),
        ({"custom_id": "a", "url": "/v1/images", "body": {}}, "'url' '/v1/images' is not one"),
        ({"custom_id": "a", "url": "/v1/chat/completions", "body": 5}, "'body' must be an object"),
    ],
)
def test_a_line_that_is_no_request_says_why(line, says):
    with pytest.raises(BadLine, match=re.escape(says)):
        parse(line)


@pytest.mark.parametrize("raw", ["a", "====", "é"])
def test_an_error_line_with_damaged_base64_is_a_bad_line(raw):
    with pytest.raises(BadLine):
        parse({"raw_base64": raw, "error": ERROR})


def test_a_field_named_raw_beside_others_is_a_field_like_any_other():
    prompt = parse({"prompt": "p", "raw": "note", "error": ERROR})
    assert (prompt.request.messages, prompt.metadata) == ((Message("user", "p"),), {"raw": "note"})


# Templates and models by key

TEMPLATED = Defaults("workers-ai/@cf/meta/llama", {"max_tokens": 99}, prompt="Summarise in {language}: {text}")


def test_a_template_asks_about_a_lines_fields_and_the_others_ride_along():
    line = {"id": 7, "text": "a story", "language": "German", "team": "x", "prompt": "unused", "seed": 3}
    prompt = parse(line, TEMPLATED)
    assert prompt.request.messages == (Message("user", "Summarise in German: a story"),)
    assert prompt.request.parameters == {"max_tokens": 99}
    assert prompt.metadata == {"team": "x", "prompt": "unused", "seed": 3}
    assert prompt.id == 7


def test_a_batch_line_is_asked_about_by_its_bodys_fields():
    line = {"custom_id": "c", "url": "/v1/chat/completions", "body": {"text": "t", "language": "French", "n": 1}}
    assert parse(line, TEMPLATED).request.messages[0].content == "Summarise in French: t"
    assert parse(line, TEMPLATED).metadata == {"n": 1}


def test_a_field_of_a_template_is_content_also_where_a_parameter_or_the_model_has_its_name():
    defaults = Defaults("workers-ai/@cf/meta/llama", prompt="{user} bought {model}, {system}")
    prompt = parse({"user": "Ann", "model": "a bike", "system": "online"}, defaults)
    assert prompt.request == ChatRequest(
        "@cf/meta/llama", (Message("user", "Ann bought a bike, online"),), {}, "request-1"
    )
    assert prompt.metadata == {}
    assert not prompt.own_model


@pytest.mark.parametrize("line", [{"text": "x"}, {"text": "x", "language": None}, {"messages": []}])
def test_a_line_without_a_field_of_the_template_is_a_bad_line_that_names_it(line):
    with pytest.raises(BadLine, match=r"the line has no '(language|text)', which the template needs"):
        parse(line, TEMPLATED)


def test_for_an_embedding_model_the_template_gives_the_text():
    defaults = Defaults("workers-ai/@cf/baai/bge-m3", prompt="query: {q}")
    prompt = parse({"q": "cats", "lang": "en"}, defaults)
    assert prompt.request == EmbedRequest("@cf/baai/bge-m3", ("query: cats",), {}, "request-1")
    assert prompt.metadata == {"lang": "en"}


def test_a_template_that_gives_nothing_is_a_bad_line():
    with pytest.raises(BadLine, match="nothing to answer"):
        parse({"text": " "}, Defaults("workers-ai/@cf/meta/llama", prompt="{text}"))


def test_a_system_prompt_with_fields_is_filled_in_and_one_without_is_left_as_it_is():
    polite = Defaults("workers-ai/@cf/meta/llama", {}, "Answer in {language}.")
    prompt = parse({"prompt": "x", "language": "Dutch"}, polite)
    assert prompt.request.messages[0] == Message("system", "Answer in Dutch.")
    assert prompt.metadata == {}
    json_only = Defaults("workers-ai/@cf/meta/llama", {}, 'Answer as {"a": {{}}}.')
    assert parse({"prompt": "x"}, json_only).request.messages[0] == Message("system", 'Answer as {"a": {{}}}.')
    with pytest.raises(BadLine, match="no 'language'"):
        parse({"prompt": "x"}, polite)
    own = {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "x"}]}
    assert parse(own, polite).request.messages[0].content == "Be brief."


def test_an_error_line_goes_through_the_template_again():
    line = {"text": "t", "language": "Thai", "error": ERROR}
    assert parse(line, TEMPLATED).request.messages[0].content == "Summarise in Thai: t"


@pytest.mark.parametrize(
    ("key", "model"),
    [
        ("embed/a.jsonl", "@cf/baai/bge-m3"),
        ("embed/deep/a.jsonl", "@cf/baai/bge-m3"),
        ("chat/a.jsonl", "@cf/meta/llama"),
        ("EMBED/a.jsonl", "@cf/meta/llama"),
        ("both-embed.jsonl", "first"),
    ],
)
def test_the_first_pattern_that_fits_the_key_chooses_the_model(key, model):
    rules = (("both-*", "local/first"), ("*embed*", "workers-ai/@cf/baai/bge-m3"))
    defaults = Defaults("workers-ai/@cf/meta/llama", models=rules, line_models="any")

    def parsed(line):
        return parse_prompt(json.dumps(line).encode(), "r", defaults, lambda _, m: 100 if "bge" in m else 1, key)

    line = {"text": "x"} if "bge" in model else {"prompt": "x"}
    assert parsed(line).request.model == model
    assert not parsed(line).own_model
    assert parsed({"prompt": "x", "model": "openai/own"}).request.model == "own"


def test_a_prompt_for_a_model_that_makes_no_text_is_its_own_input():
    line = {"id": 7, "prompt": "a red fox", "model": "@cf/black-forest-labs/flux-1-schnell", "steps": 4}
    assert parse(line).request == RawRequest(
        "@cf/black-forest-labs/flux-1-schnell", {"prompt": "a red fox", "steps": 4}, "request-1"
    )


CHATS = "/v1/chat/completions"
SAYS = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize(
    ("line", "metadata", "warned"),
    [
        ({"messages": SAYS, "prompt": "x"}, {"prompt": "x"}, ["prompt"]),
        ({"url": CHATS, "body": {"messages": SAYS, "prompt": "x", "stream": True}}, {}, ["prompt", "stream"]),
        ({"url": CHATS, "body": {"messages": SAYS, "stream": False}}, {}, []),
        ({"messages": [{"role": "system", "content": "A"}, *SAYS], "system": "B"}, {"system": "B"}, ["system"]),
        ({"messages": SAYS, "system": "B"}, {}, []),
        ({"prompt": "x", "text": "t"}, {"text": "t"}, ["text"]),
        ({"text": "t", "input": "u", "model": "@cf/baai/bge-m3"}, {"input": "u"}, ["input"]),
        ({"text": "t", "prompt": "u", "model": "@cf/baai/bge-m3"}, {"text": "t"}, ["text"]),
    ],
)
def test_content_that_the_request_has_no_place_for_is_warned_of(line, metadata, warned):
    prompt = parse(line)
    assert prompt.metadata == metadata
    assert [warning.split()[0] for warning in prompt.warnings] == warned


def test_a_lines_limit_of_tokens_goes_before_the_runs_by_either_name():
    assert parse({"prompt": "x", "max_completion_tokens": 500}).request.parameters == {"max_completion_tokens": 500}
    assert parse({"prompt": "x", "max_tokens": 5}).request.parameters == {"max_tokens": 5}


def test_of_wrong_messages_and_parts_the_first_is_named():
    parts = [{"type": "text", "text": "a"}, 7, 8]
    for messages, says in (
        (
            [{"role": "user", "content": parts}],
            "wrong at 0.content.1: it must be a string or a part such as .*, not a number",
        ),
        (
            [{"role": "user", "content": "a"}, 1, 2],
            "'messages' is wrong at 1: ",
        ),
    ):
        with pytest.raises(BadLine, match=says):
            parse({"messages": messages})


def test_a_model_that_is_a_book_is_a_bad_line():
    with pytest.raises(BadLine, match=r"'model' 'x{70,80}\.\.\. has 5,000 characters: write a model's name"):
        parse({"prompt": "a", "model": "x" * 5000})


def test_a_null_of_a_table_is_no_value_where_the_field_means_something() -> None:
    row = b'{"id":null,"prompt":null,"messages":[{"role":"user","content":"x"}],"temperature":null,"note":null}'
    prompt = parse_prompt(row, "r", Defaults("openai/gpt-4o-mini"), lambda *_: 1, of_table=True)
    assert isinstance(prompt.request, ChatRequest)
    assert (prompt.request.parameters, prompt.metadata, prompt.warnings) == ({}, {"note": None}, ())
    with pytest.raises(BadLine, match="messages"):
        parse_prompt(b'{"prompt":"x","messages":null}', "r", Defaults("openai/gpt-4o-mini"), lambda *_: 1)
