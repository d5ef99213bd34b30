import base64
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from openai.types import CreateEmbeddingResponse
from openai.types.chat import ChatCompletion
from openai.types.responses import Response
from pydantic_core import from_json

from llmdo.backends.errors import InvalidRequest, Overloaded
from llmdo.backends.openai.vectors import Vector
from llmdo.backends.responses import ChatResponse, EmbedResponse, RawResponse
from llmdo.backends.usage import Usage
from llmdo.transforms.answers.rows import answer_row, failure_row
from llmdo.transforms.elements import FileVersion, Line, TooLong
from llmdo.transforms.prompts.parse import Defaults, parse_prompt

BGE = "@cf/baai/bge-m3"
GOLDEN = Path(__file__).parents[2] / "golden"
FILE = FileVersion("r2://bucket", "input/a.jsonl", "5d41", 1000)
DEFAULTS = Defaults("workers-ai/@cf/meta/llama")


def line_of(document, start=0):
    data = document if isinstance(document, bytes) else json.dumps(document).encode()
    return Line(FILE, start, start + len(data) + 1, data)


def answer(document, response, start=0, cost_usd=None):
    line = line_of(document, start)
    prompt = parse_prompt(line.data, "req-1", DEFAULTS, lambda provider, model: 100 if "bge" in model else 1)
    return answer_row(prompt, line, response, attempts=2, latency_s=0.1234, cost_usd=cost_usd)


def test_a_shared_answer_says_so_and_shows_what_it_used():
    shared = answer({"prompt": "Hi"}, ChatResponse("Hello", "stop", Usage(3, 2), "m", shared=True), cost_usd=0.0)
    row, own = json.loads(shared), json.loads(answer({"prompt": "Hi"}, ChatResponse("Hello", "stop", Usage(3, 2), "m")))
    assert (row["shared"], "shared" in own) == (True, False)
    assert (row["usage"]["input_tokens"], row["usage"]["output_tokens"], row["usage"]["cost_usd"]) == (3, 2, 0.0)


def test_answer_rows_are_as_the_golden_file_says():
    rows = [
        answer(
            {"id": "a", "prompt": "Hi", "team": "x"},
            ChatResponse("Hello", "stop", Usage(3, 2, 1, 0, 0.5), "@cf/meta/llama", "cf-1", warnings=("cut",)),
            cost_usd=0.00000537,
        ),
        answer(
            {"prompt": "Why?"},
            ChatResponse(
                None,
                "tool_calls",
                Usage(5, 4, reasoning_tokens=3),
                "@cf/meta/llama",
                reasoning="because",
                tool_calls=({"id": "t", "type": "function", "function": {"name": "f", "arguments": "{}"}},),
            ),
            start=41,
        ),
        answer(
            {"custom_id": "e", "text": "x", "model": "@cf/baai/bge-m3"},
            EmbedResponse(((0.5, -0.25),), Usage(1), "@cf/baai/bge-m3", "cf-2", warnings=("old",)),
            start=60,
            cost_usd=1.18e-8,
        ),
        answer(
            {"text": "x", "target_lang": "de", "model": "@cf/meta/m2m100"},
            RawResponse({"translated_text": "y"}, Usage(), "@cf/meta/m2m100", "cf-3", details={"log_id": "aig-7"}),
            start=120,
        ),
        answer(
            {
                "custom_id": "f",
                "url": "/v1/responses",
                "body": {"input": "Why?", "instructions": "Be short", "max_output_tokens": 9, "truncation": "auto"},
            },
            ChatResponse("Sin", "length", Usage(5, 9, 1, 3), "@cf/meta/llama", "cf-4", reasoning="because"),
            start=190,
            cost_usd=0.00000537,
        ),
    ]
    assert b"\n".join(rows) + b"\n" == (GOLDEN / "answers.jsonl").read_bytes()
    Response.model_validate(json.loads(rows[-1])["response"]["body"])


def test_error_rows_are_as_the_golden_file_says():
    error = InvalidRequest("not valid JSON", status=400, code=5006)
    rows = [
        failure_row(line_of({"id": "a", "prompt": "Hi", "team": "x"}), Overloaded("busy", status=429, code=3040), 3),
        failure_row(line_of(b"{broken", 40), error, 0),
        failure_row(line_of(b"\xff\xfe", 80), error, 0),
        failure_row(line_of(b"[1]", 120), error, 0),
        failure_row(TooLong(FILE, 160, 5160), error, 0),
    ]
    assert b"\n".join(rows) + b"\n" == (GOLDEN / "errors.jsonl").read_bytes()


def test_an_error_row_keeps_every_byte_of_a_line_that_is_not_utf8():
    row = from_json(failure_row(line_of(b'{"prompt": "\xe9"}'), InvalidRequest("x"), 0))
    assert base64.b64decode(row["raw_base64"]) == b'{"prompt": "\xe9"}'


def test_an_error_row_is_valid_json_also_for_a_number_that_no_json_can_hold_again():
    row = from_json(failure_row(line_of(b'{"prompt": 1e400}'), InvalidRequest("x"), 0), allow_inf_nan=False)
    assert row["raw"] == '{"prompt": 1e400}'


def test_a_second_failure_replaces_the_first_ones_error():
    fed_back = {"id": "a", "prompt": "Hi", "error": {"class": "Overloaded", "offset": 7, "length": 9}}
    row = from_json(failure_row(line_of(fed_back, 100), InvalidRequest("again"), 1))
    assert row["error"]["class"] == "InvalidRequest"
    assert row["error"]["offset"] == 100
    assert {k: v for k, v in row.items() if k != "error"} == {"id": "a", "prompt": "Hi"}


def test_a_text_without_a_vector_stands_at_its_place_with_its_error():
    line = line_of({"text": ["x", "", "y"], "model": BGE})
    prompt = parse_prompt(line.data, "req-1", DEFAULTS, lambda provider, model: 100)
    response = EmbedResponse(((0.5,), (), (1.5,)), Usage(2), BGE)
    refused = InvalidRequest("an empty text", status=400, code=5006)
    body = json.loads(answer_row(prompt, line, response, 1, 0.1, errors={1: refused}))["response"]["body"]
    assert body["data"] == [
        {"object": "embedding", "index": 0, "embedding": [0.5]},
        {"object": "embedding", "index": 1, "embedding": None, "error": {"code": 5006, "message": "an empty text"}},
        {"object": "embedding", "index": 2, "embedding": [1.5]},
    ]


def test_what_the_line_has_too_much_is_told_before_what_the_provider_says():
    line = line_of({"messages": [{"role": "user", "content": "hi"}], "prompt": "x"})
    prompt = parse_prompt(line.data, "req-1", DEFAULTS, lambda provider, model: 1)
    row = json.loads(answer_row(prompt, line, ChatResponse("a", "stop", Usage(), "m", warnings=("cut",)), 1, 0.1))
    assert row["warnings"] == ["prompt was left out: the line has other content that was used", "cut"]


def test_openais_own_types_read_the_bodies_of_both_kinds():
    row = json.loads(answer({"prompt": "Hi"}, ChatResponse("Hello", None, Usage(3, 2), "m")))
    said = ChatCompletion.model_validate(row["response"]["body"], strict=True)
    assert (said.choices[0].message.content, said.choices[0].finish_reason, said.created) == ("Hello", "stop", 0)
    row = json.loads(answer({"text": "x", "model": BGE}, EmbedResponse(((0.5, -1.0),), Usage(1), BGE)))
    assert CreateEmbeddingResponse.model_validate(row["response"]["body"], strict=True).data[0].embedding == [0.5, -1.0]


def test_numbers_that_json_does_not_have_are_null_in_a_row_and_a_warning_says_so():
    response = ChatResponse("NaN", "stop", Usage(3, 2), "m", body={"choices": [{}], "scores": [math.nan, -math.inf, 1]})
    row = json.loads(answer({"prompt": "Hi"}, response))
    assert (row["response"]["body"]["scores"], len(row["warnings"])) == ([None, None, 1], 1)
    assert row["response"]["body"]["choices"][0]["message"]["content"] == "NaN"
    assert "warnings" not in json.loads(answer({"prompt": "Hi"}, replace(response, body={})))


@pytest.mark.parametrize(("own", "vectors"), [({}, "base64"), ({"encoding_format": "base64"}, "float")])
def test_vectors_are_written_as_base64_if_the_run_or_the_line_says_so(own, vectors):
    line = line_of({"text": ["x", "y"], "model": BGE, **own})
    prompt = parse_prompt(line.data, "req-1", DEFAULTS, lambda provider, model: 100)
    response = EmbedResponse((Vector(b"[0.5]"), ()), Usage(2), BGE)
    row = json.loads(answer_row(prompt, line, response, 1, 0.1, vectors=vectors))
    assert [item["embedding"] for item in row["response"]["body"]["data"]] == ["AAAAPw==", None]


def test_a_rows_vectors_have_the_digits_of_the_service_whatever_else_is_in_the_row():
    line = line_of({"text": ["x", "y"], "model": BGE, "note": '"vector 0" [1,2]'})
    prompt = parse_prompt(line.data, "req-1", DEFAULTS, lambda provider, model: 100)
    response = EmbedResponse((Vector(b"[0.50,1E-7]"), Vector(b"[7]")), Usage(2), BGE)
    row = answer_row(prompt, line, response, 1, 0.1)
    assert b'"embedding":[0.50,1E-7]}' in row and b'"embedding":[7]}' in row
    assert json.loads(row)["metadata"] == {"note": '"vector 0" [1,2]'}
