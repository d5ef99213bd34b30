import json

import pytest

from llmdo.backends.errors import InvalidRequest
from llmdo.backends.requests import ChatRequest, EmbedRequest, Message, RawRequest
from llmdo.transforms.prompts.line_json import BadLine
from llmdo.transforms.prompts.parse import Defaults, parse_prompt

LLAMA = "workers-ai/@cf/meta/llama-3.3-70b-instruct-fp8-fast"
HI = [{"role": "user", "content": "hi"}]


def parse(line, model="openai/m", **defaults):
    data = json.dumps(line).encode()
    return parse_prompt(data, "r", Defaults(model, **defaults), lambda _, name: 100 if "bge" in name else 1)


@pytest.mark.parametrize(
    "line",
    [
        {"instruction": "Give tips", "input": "", "output": "Eat"},
        {"instruction": "Give tips", "input": "x", "output": "Eat"},
        {"text": "lovely", "label": 1},
        {"input": "lovely"},
        {"input": ["a", "b"]},
        {"input": [1, 2]},
        {"input": HI, "instructions": "Be short"},
        {"input": [{"type": "message"}]},
        {"input": [{"role": "user", "content": [{"type": "input_text", "text": "hi"}]}]},
        {"question": "Why?", "answer": "42"},
        {"conversations": [{"from": "human", "value": "x"}]},
        {"contents": "a book's"},
        {"custom_id": "a", "body": {"question": "Why?"}},
        {"custom_id": "a", "body": {}},
    ],
)
@pytest.mark.parametrize("model", ["openai/gpt-4o", "braintrust/gpt-4o", "local/smollm2-135m-instruct", LLAMA])
def test_a_line_that_does_not_say_what_to_ask_is_no_request(line, model):
    with pytest.raises(BadLine, match=f"does not say what to ask {model}|there is nothing to answer"):
        parse(line, model)


def test_a_remedy_holds_nothing_of_a_line_that_a_shell_would_run():
    with pytest.raises(BadLine) as caught:
        parse({"q'; rm -rf ~; '": "x", "good_name": 1, "x" * 1000: 2, **{f"f{n}": n for n in range(1000)}})
    remedy = caught.value.message.partition("--prompt")[2]
    assert remedy.startswith(" '{good_name} {f0} {f1}'")
    assert len(caught.value.message) < 400


def test_a_line_of_sharegpt_is_told_how_to_write_its_conversation():
    with pytest.raises(
        BadLine, match=r"write 'conversations' as messages, with role and content .*human is user, gpt is"
    ):
        parse({"id": "a", "conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y"}]})


@pytest.mark.parametrize("model", ["openai/gpt-4o", LLAMA])
def test_messages_in_input_are_a_chat_as_in_openais_evals(model):
    prompt = parse({"input": HI, "ideal": "4"}, model)
    assert prompt.request.messages == (Message("user", "hi"),)
    assert (prompt.metadata, prompt.warnings) == ({"ideal": "4"}, ())


def test_a_model_that_is_known_to_embed_embeds_what_a_data_set_calls_input_or_text():
    alpaca = parse({"instruction": "Give tips", "input": "x", "output": "Eat"}, "openai/bge-m3")
    assert alpaca.request == EmbedRequest("bge-m3", ("x",), {}, "r")
    assert alpaca.metadata == {"instruction": "Give tips", "output": "Eat"}
    with pytest.raises(BadLine, match=r"'input' must be an array of strings, but \[0\] is an object"):
        parse({"input": HI, "ideal": "4"}, "openai/bge-m3")


def test_tokens_go_to_an_embedding_model_without_the_lines_own_fields():
    found = parse({"input": [[1, 2], [3]], "customer": 7, "dimensions": 9}, "openai/bge-m3")
    assert found.request == RawRequest("bge-m3", {"input": [[1, 2], [3]], "dimensions": 9}, "r", path="embeddings")
    assert found.metadata == {"customer": 7}


def test_a_url_of_embeddings_says_that_a_model_of_any_name_embeds_unless_it_is_known_to_chat():
    line = {"url": "/v1/embeddings", "body": {"input": "a", "encoding_format": "base64"}}
    expected = RawRequest("house-model", {"input": "a", "encoding_format": "base64"}, "r", path="embeddings")
    assert parse(line, "openai/house-model").request == expected
    with pytest.raises(BadLine, match="does not embed: name an embedding model"):
        parse(line, LLAMA)


@pytest.mark.parametrize(
    "url", ["/v1/chat/completions", "https://h/v1/chat/completions/?api-version=1", None, "absent"]
)
def test_a_batch_line_with_the_url_of_chats_or_none_is_a_chat(url):
    line = {"custom_id": "0", "url": url, "body": {"messages": HI, "max_tokens": 9, "new": 1}}
    if url == "absent":
        del line["url"]
    found = parse(line)
    assert found.request == ChatRequest("m", (Message("user", "hi"),), {"max_tokens": 9, "new": 1}, "r")
    assert (found.custom_id, found.metadata, found.warnings) == ("0", {}, ())


def test_a_line_with_content_may_have_a_url_and_a_body_of_its_own():
    found = parse({"prompt": "Summarise it", "url": "https://example.org", "body": "A page."})
    assert found.request.messages == (Message("user", "Summarise it"),)
    assert found.metadata == {"url": "https://example.org", "body": "A page."}


def test_bodies_of_other_routes_are_passed_on_with_what_the_run_sets():
    run = {"parameters": {"max_tokens": 9, "temperature": 0.5}, "system": "Be kind."}
    body = {"input": "hi", "metadata": {"k": "v"}, "background": True, "stream": False, "store": True}
    found = parse({"custom_id": "a", "url": "/v1/responses", "body": {"model": "n", **body}}, **run)
    given = {"input": "hi", "metadata": {"k": "v"}, "store": True}
    sent = {**given, "instructions": "Be kind.", "max_output_tokens": 9, "temperature": 0.5}
    assert found.request == RawRequest("n", sent, "r", path="responses")
    assert found.warnings == ("background was left out: an answer is written when it is complete",)
    own = {"instructions": "Mine.", "max_output_tokens": 5, "temperature": 1}
    assert parse({"url": "/v1/responses", "body": {"input": "hi", **own}}, **run).request.input == {
        "input": "hi",
        **own,
    }
    told = {"input": [{"role": "developer", "content": "Mine."}, *HI]}
    assert "instructions" not in parse({"url": "/v1/responses", "body": told}, **run).request.input
    completion = parse({"url": "/v1/completions", "body": {"prompt": ["a", "b"], "echo": True}}, **run)
    assert completion.request.input == {"prompt": ["a", "b"], "echo": True, "max_tokens": 9, "temperature": 0.5}
    assert completion.warnings == ("the run's system prompt was left out: /v1/completions has no place for one",)
    with pytest.raises(BadLine, match="'body' has no prompt"):
        parse({"url": "/v1/completions", "body": {"messages": HI}})


def test_a_responses_body_gets_the_runs_format_unless_it_has_its_own():
    schema = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}}
    flat = {"type": "json_schema", "name": "n", "schema": {"type": "object"}}
    run = {"parameters": {"response_format": schema}}
    line = {"url": "/v1/responses", "body": {"input": "hi", "text": {"verbosity": "low"}}}
    assert parse(line, **run).request.input["text"] == {"format": flat, "verbosity": "low"}
    assert parse(line, LLAMA, **run).request.parameters == {"verbosity": "low", "response_format": schema}
    own = {"input": "hi", "text": {"format": {"type": "text"}}}
    found = parse({"url": "/v1/responses", "body": own}, **run)
    assert (found.request.input, found.warnings) == (own, ())


@pytest.mark.parametrize("model", [LLAMA, "local/smollm2-135m-instruct"])
def test_a_provider_with_chats_alone_gets_a_responses_body_as_one(model):
    run = {"parameters": {"max_tokens": 9, "temperature": 0.5, "seed": 1}, "system": "Be kind."}
    body = {"model": "", "input": "hi", "stream": True, "truncation": "auto", "temperature": 1, "metadata": {"k": "v"}}
    found = parse({"custom_id": "a", "url": "/v1/responses", "body": body, "mine": 1}, model, **run)
    assert found.request.messages == (Message("system", "Be kind."), Message("user", "hi"))
    assert (
        parse({"url": "/v1/responses", "body": {**body, "instructions": None}}, model, **run).request == found.request
    )
    assert found.request.parameters == {"max_tokens": 9, "temperature": 1, "seed": 1}
    assert [warning.split()[0] for warning in found.warnings] == ["stream", "truncation"]
    assert (found.metadata, found.response_to["metadata"]) == ({"mine": 1}, {"k": "v"})
    assert parse({"url": "/v1/responses", "body": {**body, "max_output_tokens": 5}}, model, **run).request.parameters[
        "max_tokens"
    ] == 5  # fmt: skip


@pytest.mark.parametrize("model", ["openai/m", LLAMA])
@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"input": "hi", "previous_response_id": "resp_1"}, "'previous_response_id' cannot be used"),
        ({"input": "hi", "conversation": {"id": "c"}}, "'conversation' cannot be used"),
        ({"instructions": "Be short"}, "'body' has no input"),
        ({"input": []}, "'body' has no input"),
    ],
)
def test_a_responses_body_that_cannot_be_answered_alone_makes_no_call(body, says, model):
    with pytest.raises(InvalidRequest, match=says):
        parse({"url": "/v1/responses", "body": body}, model)


@pytest.mark.parametrize("more", [{}, {"suffix": "}"}, {"echo": True}])
def test_a_prompt_in_a_body_without_a_url_makes_no_call_but_where_it_can_only_be_a_chat(more):
    line = {"custom_id": "a", "body": {"prompt": "def f(", **more}}
    with pytest.raises(BadLine, match=r'add "url": "/v1/completions", or write messages'):
        parse(line)
    remedy = parse({**line, "url": "/v1/completions"}).request
    assert (remedy.path, remedy.input["prompt"]) == ("completions", "def f(")
    assert parse(line, model="workers-ai/@cf/meta/llama-3.1-8b-instruct").request.messages == (
        Message("user", "def f("),
    )


@pytest.mark.parametrize(
    ("run", "base_url", "named", "in_body", "asked"),
    [
        ("openai/openai/gpt-oss-20b", "http://s/v1", "openai/gpt-oss-20b", False, "openai/openai/gpt-oss-20b"),
        ("openai/openai/gpt-oss-20b", "http://s/v1", "openai/gpt-oss-20b", True, "openai/openai/gpt-oss-20b"),
        ("openai/openai/gpt-oss-20b", "http://s/v1", "openai/openai/gpt-oss-20b", True, "openai/openai/gpt-oss-20b"),
        ("openai/openai/gpt-oss-20b", "http://s/v1", "qwen", False, "openai/qwen"),
        ("openai/qwen/qwen3-8b", "http://s/v1", "openai/gpt-oss-20b", False, "openai/openai/gpt-oss-20b"),
        ("openai/qwen/qwen3-8b", "http://s/v1", "openai/mistral/small", False, "openai/mistral/small"),
        ("openai/m", "http://s/v1", "openai/gpt-oss-20b", True, "openai/openai/gpt-oss-20b"),
        ("openai/m", "http://s/v1", "openai/llama3.2", False, "openai/llama3.2"),
        ("openai/gpt-4o", "", "openai/gpt-4o-mini", True, "openai/gpt-4o-mini"),
        ("openai/gpt-4o", "https://api.openai.com/v1/", "openai/gpt-4o-mini", True, "openai/gpt-4o-mini"),
        ("braintrust/gpt-4o", "http://s/v1", "openai/gpt-4o", True, "openai/gpt-4o"),
        (LLAMA, "http://s/v1", "workers-ai/@cf/a/b", True, "workers-ai/@cf/a/b"),
        (LLAMA, "http://s/v1", "openai/gpt-4o", True, "openai/gpt-4o"),
    ],
)
def test_a_servers_own_id_keeps_its_prefix(run, base_url, named, in_body, asked, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", base_url)
    content = {"messages": HI, "model": named}
    line = {"url": "/v1/chat/completions", "body": content} if in_body else content
    found = parse(line, run, line_models="any")
    assert f"{found.provider}/{found.request.model}" == asked
    assert found.own_model


# Whose fields they are


def test_with_a_template_nothing_is_a_parameter_unless_asked_for():
    data = {
        "temperature": 38.5,
        "model": "a bike",
        "system": "s",
        "tools": "hammer",
        "metadata": {"a": 1},
        "error": None,
    }
    found = parse({"q": "x", **data}, prompt="{q}", system="Be kind.")
    assert found.request == ChatRequest("m", (Message("system", "Be kind."), Message("user", "x")), {}, "r")
    assert (found.metadata, found.own_model) == (data, False)
    line = {"q": "x", "temperature": 0.5, "model": "n", "system": "Mine.", "team": "t"}
    counted = parse(line, prompt="{q}", system="Be kind.", line_parameters=True)
    messages = (Message("system", "Mine."), Message("user", "x"))
    assert counted.request == ChatRequest("n", messages, {"temperature": 0.5}, "r")
    assert (counted.metadata, counted.own_model) == ({"team": "t"}, True)


def test_a_template_may_ask_about_a_url_and_a_body_and_about_a_batch_lines_body():
    page = parse({"url": "https://example.org", "body": "A page.", "id": 1}, prompt="Summarise {body}")
    assert page.request.messages[0].content == "Summarise A page."
    assert page.metadata == {"url": "https://example.org"}
    line = {"custom_id": "c", "url": "/v1/x", "note": 1, "body": {"q": "x", "note": 2}}
    found = parse(line, prompt="{q}")
    assert (found.request.messages[0].content, found.metadata) == ("x", {"note": 1, "body": {"note": 2}})


@pytest.mark.parametrize(
    ("own", "metadata"),
    [
        ({"error": "E", "raw": "r", "usage": 1, "answer": 2}, {"error": "E", "raw": "r", "usage": 1, "answer": 2}),
        ({"metadata": {"a": 1}, "b": 2}, {"a": 1, "b": 2}),
        ({"metadata": {"a": 1}, "a": 2}, {"metadata": {"a": 1}, "a": 2}),
        ({"instruction": "i", "image": "a.png", "lora": "l"}, {"instruction": "i", "image": "a.png", "lora": "l"}),
    ],
)
def test_fields_that_are_in_no_request_come_back_and_none_hides_another(own, metadata):
    assert parse({"prompt": "x", **own}).metadata == metadata


def test_of_workers_ais_own_parameters_a_text_called_raw_is_the_users():
    found = parse({"prompt": "x", "raw": "a note", "lora": "l"}, LLAMA)
    assert (found.request.parameters, found.metadata) == ({"lora": "l"}, {"raw": "a note"})
    assert parse({"prompt": "x", "raw": True}, LLAMA).request.parameters == {"raw": True}


# Conversations


@pytest.mark.parametrize(
    ("messages", "asked"),
    [
        ([{"role": "system", "content": "Say hi"}], (Message("system", "Say hi"),)),
        ([{"role": "developer", "content": "Say hi"}], (Message("developer", "Say hi"),)),
        (
            [{"role": "user", "content": ["a", "b"]}],
            (Message("user", ({"type": "text", "text": "a"}, {"type": "text", "text": "b"})),),
        ),
        (
            [{"role": "assistant", "content": None, "tool_calls": [{"id": "c"}]}],
            (Message("assistant", None, {"tool_calls": [{"id": "c"}]}),),
        ),
        (
            [*HI, {"role": "function", "name": "w", "content": None}],
            (Message("user", "hi"), Message("function", None, {"name": "w"})),
        ),
        ([*HI, {"role": "assistant", "content": "Well,"}], (Message("user", "hi"), Message("assistant", "Well,"))),
    ],
)
def test_any_conversation_is_asked_as_it_is(messages, asked):
    assert parse({"messages": messages}).request.messages == asked


BEGUN = "the last message is an assistant's, as the beginning of an answer: not every model continues it"
CALL = {"id": "c", "type": "function", "function": {"name": "w", "arguments": "{}"}}


@pytest.mark.parametrize(
    ("line", "warnings"),
    [
        ({"messages": [*HI, {"role": "assistant", "content": "{"}]}, (BEGUN,)),
        ({"url": "/v1/chat/completions", "body": {"messages": [*HI, {"role": "assistant", "content": "{"}]}}, (BEGUN,)),
        ({"custom_id": "a", "params": {"messages": [*HI, {"role": "assistant", "content": "{"}]}}, (BEGUN,)),
        ({"key": "a", "request": {"contents": [{"role": "model", "parts": [{"text": "{"}]}]}}, (BEGUN,)),
        ({"messages": [*HI, {"role": "assistant", "content": None, "tool_calls": [CALL]}]}, ()),
        ({"messages": [{"role": "assistant", "content": "{"}, *HI]}, ()),
        ({"prompt": "x"}, ()),
    ],
)
def test_the_beginning_of_an_answer_is_sent_with_a_warning(line, warnings):
    assert parse(line).warnings == warnings


def test_a_developers_instructions_replace_the_runs_system_prompt():
    told = [{"role": "developer", "content": "Mine."}, *HI]
    assert [m.content for m in parse({"messages": told}, system="Be kind.").request.messages] == ["Mine.", "hi"]


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ({"role": "user"}, "its top: it must be an array of objects with role and content, not an object"),
        ([{"from": "human", "value": "x"}], "0.role: it is null: write one of system, developer, user, assistant"),
        ([{"role": ["user"], "content": "x"}], "0.role: it is an array"),
        ([{"role": "model", "content": "x"}], "0.role: 'model' is not a role: write one of"),
        ([*HI, {"role": "user", "content": {"type": "text"}}], "1.content: it must be a string or an array of parts"),
        ([*HI, {"role": "assistant", "tool_calls": 5}], "1.tool_calls: it must be an array, not a number"),
    ],
)
def test_wrong_messages_are_told_in_our_own_words(messages, says):
    with pytest.raises(BadLine) as caught:
        parse({"messages": messages})
    assert f"'messages' is wrong at {says}" in caught.value.message


@pytest.mark.parametrize(
    "messages", [[], [{"role": "user", "content": ""}], [{"role": "user", "name": "A", "content": []}]]
)
def test_messages_without_content_are_told(messages):
    with pytest.raises(BadLine, match="there is nothing to answer"):
        parse({"messages": messages})


# Moderations, tokens, and what no chat can answer


@pytest.mark.parametrize("given", ["hi", ["hi", "ho"], [{"type": "text", "text": "hi"}]])
def test_moderations_are_passed_on_with_the_lines_model_or_the_runs(given):
    run = {"parameters": {"max_tokens": 9}, "system": "Be kind."}
    line = {"custom_id": "a", "url": "/v1/moderations", "body": {"input": given}}
    found = parse(line, "braintrust/m", **run)
    assert found.request == RawRequest("m", {"input": given}, "r", path="moderations")
    assert (found.metadata, found.warnings) == ({}, ())
    line["body"]["model"] = "omni-moderation-latest"
    assert parse(line, "openai/gpt-4o").request == RawRequest(
        "omni-moderation-latest", {"input": given}, "r", path="moderations"
    )


@pytest.mark.parametrize(
    ("model", "url", "body", "says"),
    [
        ("openai/gpt-4o", "/v1/moderations", {"input": "hi"}, "as the model, such as omni-moderation-latest"),
        (
            "openai/omni-moderation-latest",
            "/v1/moderations",
            {"input": []},
            "'body' has no input, which /v1/moderations needs",
        ),
        (LLAMA, "/v1/moderations", {"input": "hi"}, "workers-ai has no /v1/moderations: name a model of openai/…, or"),
        ("local/m", "/v1/moderations", {"input": "hi"}, "local has no /v1/moderations: name a model of openai/…, or"),
        ("openai/m", "/v1/chat/moderations", {"input": HI}, "is not one that can be answered: use one of"),
        ("openai/m", "/v1/images/generations", {"prompt": "x"}, "is not one that can be answered: use one of"),
        ("openai/m", "/v1/images/edits", {"prompt": "x"}, "is not one that can be answered: use one of"),
        ("openai/m", "/v1/videos", {"prompt": "x"}, "is not one that can be answered: use one of"),
        ("openai/m", "/v1/audio/transcriptions", {"file": "x"}, "is not one that can be answered: use one of"),
        ("local/m", "/v1/embeddings", {"input": [[1, 2]]}, "'input' holds numbers of tokens, which local does not"),
        ("workers-ai/@cf/baai/bge-m3", "/v1/embeddings", {"input": [1]}, "give the text that they stand for"),
    ],
)
def test_what_a_provider_cannot_answer_is_refused_with_a_remedy(model, url, body, says, monkeypatch):
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(BadLine) as caught:
        parse({"custom_id": "a", "url": url, "body": body}, model)
    assert says in caught.value.message


def test_a_server_of_ones_own_may_moderate_with_a_model_of_any_name(monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", "http://s/v1")
    assert parse({"url": "/v1/moderations", "body": {"input": "hi"}}, "openai/guard").request.path == "moderations"


@pytest.mark.parametrize("tokens", [[1, 2], [[1, 2], [3]]])
def test_tokens_are_passed_on_to_services_that_know_them(tokens):
    embedded = parse({"url": "/v1/embeddings", "body": {"input": tokens}})
    assert embedded.request == RawRequest("m", {"input": tokens}, "r", path="embeddings")
    completed = parse({"url": "/v1/completions", "body": {"prompt": tokens, "max_tokens": 3}})
    assert completed.request == RawRequest("m", {"prompt": tokens, "max_tokens": 3}, "r", path="completions")
