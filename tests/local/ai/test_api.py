from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from cloudflare import APIStatusError

from llmdo.local.ai.json_mode import smallest
from tests.local.clients import account, cloudflare_client, openai_client, rest
from tests.local.cloudflare import Running, running

LLAMA = "@cf/meta/llama-3.3-70b-instruct-fp8-fast"
GEMMA = "@cf/google/gemma-4-26b-a4b-it"
BGE = "@cf/baai/bge-m3"
GPT_OSS = "@cf/openai/gpt-oss-20b"


def run(server: Running, body: Any, model: str = LLAMA) -> httpx.Response:
    return rest(server, "POST", f"/ai/run/{model}", body)


def test_a_native_run_answers_in_cloudflares_envelope(cloudflare: Running) -> None:
    response = run(cloudflare, {"messages": [{"role": "system", "content": "Be."}, {"role": "user", "content": "a b"}]})
    assert response.json() == {
        "result": {
            "response": "echo: a b",
            "usage": {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6, "neurons": 0.692727},
        },
        "success": True,
        "errors": [],
        "messages": [],
    }
    assert response.headers["cf-ai-neurons"] == "0.692727"
    assert response.headers["cf-ai-req-id"]
    assert response.headers["cf-ray"]


def test_prompt_parts_and_the_newer_shape(cloudflare: Running) -> None:
    assert run(cloudflare, {"prompt": "two\n lines "}).json()["result"]["response"] == "echo: two\n lines "
    parts = [{"type": "text", "text": "one"}, {"type": "image_url", "image_url": {"url": "data:"}}]
    reply = run(cloudflare, {"messages": [{"role": "user", "content": parts}]}, GEMMA).json()["result"]
    assert reply["object"] == "chat.completion"
    assert reply["model"] == GEMMA
    assert reply["choices"][0]["message"] == {"role": "assistant", "content": "echo: one"}


def test_an_answer_is_cut_at_max_tokens(cloudflare: Running) -> None:
    long = " ".join(map(str, range(300)))
    usage = run(cloudflare, {"prompt": long}).json()["result"]["usage"]
    assert usage["completion_tokens"] == 256
    reply = run(cloudflare, {"prompt": "a b c", "max_tokens": 2}, GEMMA).json()["result"]["choices"][0]
    assert (reply["message"]["content"], reply["finish_reason"]) == ("echo: a", "length")


def test_a_native_stream_ends_with_usage_and_done(cloudflare: Running) -> None:
    response = run(cloudflare, {"prompt": "a b", "stream": True})
    assert response.headers["content-type"] == "text/event-stream"
    lines = response.text.split("\n\n")
    assert lines[:3] == ['data: {"response":"echo: "}', 'data: {"response":"a "}', 'data: {"response":"b"}']
    assert '"usage":{"prompt_tokens":2' in lines[3]
    assert lines[4:] == ["data: [DONE]", ""]


def test_embeddings_are_unit_vectors_that_depend_on_the_text_alone(cloudflare: Running) -> None:
    result = run(cloudflare, {"text": ["a", "b", "a"], "pooling": "cls"}, BGE).json()["result"]
    assert (result["shape"], result["pooling"]) == ([3, 1024], "cls")
    assert result["data"][0] == result["data"][2] != result["data"][1]
    assert math.isclose(math.fsum(x * x for x in result["data"][0]), 1.0, abs_tol=1e-4)
    single = run(cloudflare, {"text": "a"}, BGE).json()["result"]
    assert (single["shape"], single["data"], single["pooling"]) == ([1, 1024], result["data"][:1], "mean")


@pytest.mark.parametrize(
    ("model", "body", "code"),
    [
        ("@cf/no/such-model", {"prompt": "a"}, 5007),
        (LLAMA, {}, 5006),
        (LLAMA, {"prompt": ""}, 5006),
        (LLAMA, {"messages": []}, 5006),
        (LLAMA, {"messages": [{"role": "user"}]}, 5006),
        (LLAMA, {"messages": [{"role": "nobody", "content": "a"}]}, 5006),
        (LLAMA, {"prompt": "a", "max_tokens": "many"}, 5006),
        (LLAMA, {"prompt": "a " * 23_900}, 5021),
        (LLAMA, {"prompt": "a", "max_tokens": 24_000}, 5021),
        (LLAMA, ["prompt"], 3003),
        (BGE, {"prompt": "a"}, 5006),
        (BGE, {"text": []}, 5006),
        (BGE, {"text": ["a"] * 101}, 5006),
        (BGE, {"text": ["a", ""]}, 5006),
        (BGE, {"text": [1]}, 5006),
        ("@cf/qwen/qwen3-embedding-0.6b", {"text": ["a"] * 33}, 5006),
    ],
)
def test_what_does_not_fit_the_model_is_refused_with_its_code(
    cloudflare: Running, model: str, body: Any, code: int
) -> None:
    response = run(cloudflare, body, model)
    assert response.status_code == 400
    (error,) = response.json()["errors"]
    assert error["code"] == code
    assert response.json()["success"] is False
    assert cloudflare.stats()["paid"]["calls"] == 0


def test_a_hundred_texts_are_taken(cloudflare: Running) -> None:
    result = run(cloudflare, {"text": [str(n) for n in range(100)]}, BGE).json()["result"]
    assert result["shape"] == [100, 1024]


def test_the_official_client_encodes_the_model_and_gets_no_route(cloudflare: Running) -> None:
    client = cloudflare_client(cloudflare)
    with pytest.raises(APIStatusError) as error:
        client.ai.run(LLAMA, account_id=account(cloudflare), prompt="a")
    assert error.value.status_code == 400
    assert error.value.response.json()["errors"][0]["code"] == 7000
    path = f"/accounts/{account(cloudflare)}/ai/run/{LLAMA}"
    reply: Any = client.post(path, body={"prompt": "a"}, cast_to=object)
    assert reply["result"]["response"] == "echo: a"


def test_the_official_client_lists_models(cloudflare: Running) -> None:
    client, at = cloudflare_client(cloudflare), {"account_id": account(cloudflare)}
    everything: list[Any] = list(client.ai.models.list(**at, per_page=3))
    assert len({model["name"] for model in everything}) == len(everything) == 20
    embedding: list[Any] = list(client.ai.models.list(**at, task="Text Embeddings"))
    assert {model["task"]["name"] for model in embedding} == {"Text Embeddings"}
    (llama,) = list(client.ai.models.list(**at, search="LLAMA-3.3"))
    properties = {entry["property_id"]: entry["value"] for entry in llama["properties"]}
    assert properties["context_window"] == "24000"
    assert properties["price"] == [
        {"unit": "per M input tokens", "price": 0.29, "currency": "USD"},
        {"unit": "per M output tokens", "price": 2.25, "currency": "USD"},
    ]


def test_the_openai_client_chats(cloudflare: Running) -> None:
    client = openai_client(cloudflare)
    reply = client.chat.completions.create(model=LLAMA, messages=[{"role": "user", "content": "a b"}])
    assert reply.choices[0].message.content == "echo: a b"
    assert reply.choices[0].finish_reason == "stop"
    assert reply.model == LLAMA
    assert reply.usage is not None
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (2, 3)


def test_the_openai_client_streams(cloudflare: Running) -> None:
    stream = openai_client(cloudflare).chat.completions.create(
        model=LLAMA,
        messages=[{"role": "user", "content": "a b"}],
        max_tokens=2,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "echo: a"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 4


def test_the_openai_client_embeds_and_lists(cloudflare: Running) -> None:
    client = openai_client(cloudflare)
    reply = client.embeddings.create(model=BGE, input=["a", "b"])
    assert [(entry.index, len(entry.embedding)) for entry in reply.data] == [(0, 1024), (1, 1024)]
    assert reply.usage.total_tokens == 2
    assert {BGE, LLAMA} < {model.id for model in client.models.list()}


def test_the_openai_routes_refuse_in_cloudflares_envelope(cloudflare: Running) -> None:
    client = openai_client(cloudflare)
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(model=BGE, messages=[{"role": "user", "content": "a"}])
    assert error.value.response.json()["errors"][0]["code"] == 5007
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").models.list()


def test_paid_calls_are_counted_by_prompt_and_line(cloudflare: Running) -> None:
    for _ in range(2):
        run(cloudflare, {"messages": [{"role": "user", "content": "ä"}], "custom_id": "line-1"})
    rest(cloudflare, "POST", f"/ai/run/{LLAMA}", {"prompt": "b"}, **{"x-llmdo-line": "line-2"})
    run(cloudflare, {"text": ["b", "c"]}, BGE)
    run(cloudflare, {"nothing": 1})
    stats = cloudflare.stats()
    assert stats["paid"] == {
        "calls": 4,
        "by_prompt": {hashlib.sha256(t.encode()).hexdigest(): n for t, n in (("ä", 2), ("b", 2), ("c", 1))},
        "by_line": {"line-1": 2, "line-2": 1},
    }
    assert stats["ai"] == {"calls": 5, "by_status": {"200": 4, "400": 1}, "in_flight": 0, "max_in_flight": 1}
    cloudflare.reset_stats()
    assert cloudflare.stats()["paid"] == {"calls": 0, "by_prompt": {}, "by_line": {}}


@pytest.mark.model
def test_the_embedded_model_answers_behind_the_same_routes(tmp_path: Path) -> None:
    name = "@cf/huggingface/smollm2-135m-instruct"
    with running(tmp_path, "local/smollm2-135m-instruct") as server:
        question = {"messages": [{"role": "user", "content": "What is the capital of France?"}], "max_tokens": 20}
        reply = run(server, question, name).json()["result"]
        assert "Paris" in reply["response"]
        assert reply["usage"]["completion_tokens"] <= 20
        assert run(server, question, LLAMA).json()["result"]["response"] == reply["response"]
        assert run(server, {**question, "stream": True}, name).text.endswith("data: [DONE]\n\n")
        chat = openai_client(server).chat.completions.create(
            model=name, messages=[{"role": "user", "content": "Count to a hundred."}], max_tokens=4
        )
        assert chat.choices[0].finish_reason == "length"
        vectors = run(server, {"text": [f"text {n}" for n in range(40)]}, BGE).json()["result"]
        assert vectors["shape"] == [40, 576]
        too_long = run(server, {"prompt": "word " * 3000}, name)
        assert (too_long.status_code, too_long.json()["errors"][0]["code"]) == (400, 5021)
        assert server.stats()["paid"]["calls"] == 5


def test_the_catalogue_says_what_models_can_do_and_when_they_end(cloudflare: Running) -> None:
    listed = {model["name"]: model for model in rest(cloudflare, "GET", "/ai/models/search").json()["result"]}
    properties = {
        name: {entry["property_id"]: entry["value"] for entry in model["properties"]} for name, model in listed.items()
    }
    assert properties[GEMMA]["vision"] == properties[GEMMA]["async_queue"] == "true"
    assert properties["@cf/facebook/bart-large-cnn"]["planned_deprecation_date"] == "2026-05-30"
    assert "context_window" not in properties["@cf/openai/whisper"]
    assert listed["@cf/openai/whisper"]["task"]["name"] == "Automatic Speech Recognition"


def test_a_models_schema_tells_its_kind(cloudflare: Running) -> None:
    def fields(model: str) -> set[str]:
        schema = rest(cloudflare, "GET", f"/ai/models/schema?model={model}").json()["result"]["input"]
        return {name for option in schema["oneOf"] for name in option["properties"]}

    assert "max_completion_tokens" in fields(GEMMA)
    assert "max_completion_tokens" not in fields(LLAMA)
    assert rest(cloudflare, "GET", "/ai/models/schema?model=@cf/no/such").json()["errors"][0]["code"] == 5007


def test_a_native_tool_call_is_flat_and_json_mode_gives_an_object(cloudflare: Running) -> None:
    tool = {"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}}
    called = run(cloudflare, {"prompt": "x", "tools": [tool], "tool_choice": "required"}).json()["result"]
    assert called["response"] is None
    assert called["tool_calls"] == [{"name": "f", "arguments": {"a": 0}}]
    schema = {"type": "json_schema", "json_schema": tool["parameters"]}
    assert run(cloudflare, {"prompt": "x", "response_format": schema}).json()["result"]["response"] == {"a": 0}


def test_the_openai_client_streams_a_tool_call(cloudflare: Running) -> None:
    parameters = {"type": "object", "properties": {"a": {"type": "integer"}}}
    stream = openai_client(cloudflare).chat.completions.create(
        model=GEMMA,
        messages=[{"role": "user", "content": "x"}],
        tools=[{"type": "function", "function": {"name": "f", "parameters": parameters}}],
        tool_choice="required",
        stream=True,
    )
    deltas = [delta for chunk in stream if chunk.choices for delta in chunk.choices[0].delta.tool_calls or ()]
    assert [delta.index for delta in deltas] == [0, 0]
    assert "".join(d.function.arguments or "" for d in deltas if d.function) == '{"a":0}'
    assert deltas[0].function is not None
    assert (deltas[0].id, deltas[0].function.name) == ("call_0", "f")


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "array", "minItems": 10**12, "items": {"type": "string"}},
        {"type": "array", "minItems": 10**5, "items": {"type": "array", "minItems": 10**5, "items": {}}},
        {"type": "object", "required": ["a"] * 10**5, "properties": {"a": {"type": "array", "minItems": 10**9}}},
    ],
)
def test_the_echo_makes_no_endless_value_of_a_short_schema(schema):
    assert len(json.dumps(smallest(schema))) < 200_000


def test_gpt_oss_has_the_responses_api_and_other_models_have_not(cloudflare: Running) -> None:
    client = openai_client(cloudflare)
    items = [{"role": "user", "content": [{"type": "input_text", "text": "a b"}]}]
    response = client.responses.create(model=GPT_OSS, input=items, instructions="Be.", max_output_tokens=2)
    assert (response.output_text, response.status) == ("echo: a", "incomplete")
    assert (response.incomplete_details.reason, response.usage.output_tokens) == ("max_output_tokens", 2)
    for model, given, code in ((GEMMA, "a b", 5007), (GPT_OSS, "", 5006)):
        with pytest.raises(openai.BadRequestError) as caught:
            client.responses.create(model=model, input=given)
        assert caught.value.response.json()["errors"][0]["code"] == code
