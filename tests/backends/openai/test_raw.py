"""Bodies of other routes, which go to the user as they came: a failure among them is none that is answered."""

import asyncio

import httpx
import pytest

from llmdo.backends.errors import BadReply, ModelError
from llmdo.backends.openai.backend import OpenAI, Service
from llmdo.backends.openai.raw import raw_warnings, without_bad_vectors
from llmdo.backends.requests import RawRequest
from llmdo.backends.usage import Usage
from tests.backends.wire import Wire

FILTERED = {"reason": "content_filter"}
USAGE = {
    "input_tokens": 8,
    "output_tokens": 3,
    "total_tokens": 11,
    "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
    "output_tokens_details": {"reasoning_tokens": 0},
}
SETTINGS = {"model": "m", "created_at": 1, "parallel_tool_calls": True, "tool_choice": "auto", "tools": []}


def response(status="completed", **more):
    part = {"type": "output_text", "text": "Half", "annotations": []}
    said = {"id": "msg_1", "type": "message", "role": "assistant", "status": status, "content": [part]}
    fixed = {"id": "resp_1", "object": "response", "status": status, "output": [said], "usage": USAGE}
    return {**fixed, **SETTINGS, **more}


def completion(finish="stop", **more):
    choice = {"index": 0, "text": "Half", "finish_reason": finish, "logprobs": None, **more}
    return {"id": "c", "object": "text_completion", "choices": [choice], "usage": USAGE}


def ask(body, path):
    async def scenario():
        service = Service("openai", "http://127.0.0.1:8000/v1", {}, "OPENAI_API_KEY")
        backend = OpenAI(service, Wire(lambda _: httpx.Response(200, json=body)))
        try:
            return await backend.run(RawRequest("m", {"input": "?"}, path=path))
        finally:
            await backend.aclose()

    return asyncio.run(scenario())


@pytest.mark.parametrize(
    ("body", "path", "warns"),
    [
        (response(error=None, incomplete_details=None), "responses", ""),
        (
            response("incomplete", incomplete_details={"reason": "max_output_tokens"}),
            "responses",
            "cut off at 3 tokens",
        ),
        (response("incomplete", incomplete_details={"reason": "odd"}), "responses", "unknown reason (odd)"),
        (completion(), "completions", ""),
        (completion("length"), "completions", "cut off at 3 tokens"),
        (completion("odd"), "completions", "unknown reason (odd)"),
        ({"object": "list", "data": [], "status": "failed"}, "embeddings", ""),
    ],
)
def test_what_is_an_answer_comes_out_as_it_came(body, path, warns):
    answer = ask(body, path)
    assert (answer.result, bool(answer.warnings)) == (body, bool(warns))
    assert warns in "".join(answer.warnings)


@pytest.mark.parametrize(
    ("body", "path", "error", "says"),
    [
        (response("failed", error={"code": "odd", "message": "it fell over"}), "responses", "*", "it fell over"),
        (response("failed"), "responses", "Retryable", "finish reason failed"),
        (response("cancelled"), "responses", "Retryable", "finish reason cancelled"),
        (response("incomplete"), "responses", "Retryable", "finish reason incomplete"),
        (response("incomplete", incomplete_details=FILTERED), "responses", "ContentFiltered", "filter"),
        (response("queued", output=[]), "responses", "BadReply", "omit background"),
        (completion("error"), "completions", "Retryable", "finish reason error"),
        (completion("abort"), "completions", "Retryable", "broke the answer off"),
        (completion(None, error={"message": "it fell over"}), "completions", "Retryable", "it fell over"),
        (completion("content_filter"), "completions", "ContentFiltered", "change the prompt"),
        ({**completion(), "choices": []}, "completions", "Retryable", "without any choice"),
    ],
)  # fmt: skip
def test_what_is_not_is_an_error_with_its_usage(body, path, error, says):
    with pytest.raises(ModelError, match=says) as caught:
        ask(body, path)
    assert error in ("*", type(caught.value).__name__)
    assert caught.value.usage == Usage(8, 3)


def embeddings(*vectors):
    rows = [{"object": "embedding", "index": number, "embedding": vector} for number, vector in enumerate(vectors)]
    return {"object": "list", "data": rows, "model": "m", "usage": {"prompt_tokens": 8, "output_tokens": 3}}


def test_of_several_vectors_only_the_one_with_nan_is_an_error():
    warnings = []
    body = without_bad_vectors(embeddings([1.0], [float("nan")]), "m", warnings.append)
    assert body["data"][0] == {"object": "embedding", "index": 0, "embedding": [1.0]}
    assert (body["data"][1]["embedding"], "NaN" in body["data"][1]["error"]["message"]) == (None, True)
    assert warnings[0].startswith("text 1 has no vector")


def test_vectors_that_are_all_of_nan_are_a_bad_reply_and_others_are_not_touched():
    with pytest.raises(BadReply, match="NaN") as caught:
        without_bad_vectors(embeddings([float("inf")]), "m", pytest.fail)
    assert caught.value.usage == Usage(8, 3)
    for body in (embeddings([1, 2]), {"data": 3}, [None], {"data": [None, {"embedding": []}]}):
        assert without_bad_vectors(body, "m", pytest.fail) is body


@pytest.mark.parametrize(
    ("code", "error"), [("rate_limit_exceeded", "Retryable"), ("image_content_policy_violation", "ContentFiltered")]
)
def test_a_failed_response_is_judged_by_its_code(code, error):
    body = response("failed", error={"code": code, "message": "why"})
    with pytest.raises(ModelError, match="why") as caught:
        raw_warnings(body, "m")
    assert type(caught.value).__name__ == error
