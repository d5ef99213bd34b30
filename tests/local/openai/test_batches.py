from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from openai.types import Batch

from llmdo.local.openai import lines
from tests.fakes.clocks import AheadClock
from tests.local.cloudflare import Running
from tests.local.openai.batching import MODEL, client_of, ended, ids, jsonl, prompts, request, rows, submit, until


def test_a_batch_is_answered_and_each_line_is_paid_once(cloudflare: Running) -> None:
    client = client_of(cloudflare)
    made = submit(client, prompts(3), metadata={"nonce": "abc"})
    assert (made.status, made.object, made.metadata) == ("validating", "batch", {"nonce": "abc"})
    assert made.expires_at == made.created_at + 86_400
    done = ended(client, made)
    assert (done.status, done.error_file_id, done.errors, done.model) == ("completed", None, None, MODEL)
    assert done.request_counts
    assert done.request_counts.to_dict() == {"total": 3, "completed": 3, "failed": 0}
    assert done.usage
    assert (done.usage.input_tokens, done.usage.output_tokens, done.usage.total_tokens) == (3, 6, 9)
    times = [done.created_at, done.in_progress_at, done.finalizing_at, done.completed_at]
    assert times == sorted(at for at in times if at is not None)
    first, *_ = found = rows(client, done.output_file_id)
    assert list(first) == ["id", "custom_id", "response", "error"]
    assert (first["id"].startswith("batch_req_"), first["custom_id"], first["error"]) == (True, "r0", None)
    assert (list(first["response"]), first["response"]["status_code"]) == (["status_code", "request_id", "body"], 200)
    assert [row["response"]["body"]["choices"][0]["message"]["content"] for row in found] == [
        "echo: r0",
        "echo: r1",
        "echo: r2",
    ]
    assert cloudflare.stats()["paid"]["by_line"] == {"r0": 1, "r1": 1, "r2": 1}
    assert cloudflare.stats()["paid"]["calls"] == 3
    assert cloudflare.stats()["batches"]["submitted"] == 1


@pytest.mark.parametrize(
    ("endpoint", "body", "found"),
    [
        ("/v1/embeddings", {"model": "text-embedding-3-small", "input": "a"}, ["data", 0, "object"]),
        ("/v1/completions", {"model": "gpt-3.5-turbo-instruct", "prompt": "a"}, ["choices", 0, "text"]),
        ("/v1/responses", {"model": "gpt-5-mini", "input": "a"}, ["output", 0, "content", 0, "text"]),
    ],
)
def test_a_batch_has_one_endpoint(cloudflare: Running, endpoint: str, body: dict[str, Any], found: list[Any]) -> None:
    client = client_of(cloudflare)
    done = ended(client, submit(client, [{**request("r0"), "url": endpoint, "body": body}], endpoint))
    (row,) = rows(client, done.output_file_id)
    value = row["response"]["body"]
    for step in found:
        value = value[step]
    assert value in ("echo: a", "embedding")
    assert done.usage
    assert done.usage.input_tokens == 1


def test_a_line_that_the_endpoint_refuses_is_in_the_error_file(cloudflare: Running) -> None:
    client = client_of(cloudflare)
    bad, streamed = request("bad"), request("streamed")
    bad["body"]["messages"] = []
    streamed["body"]["stream"] = True
    done = ended(client, submit(client, [request("good"), bad, streamed]))
    assert (done.status, ids(client, done.output_file_id)) == ("completed", ["good"])
    first, second = rows(client, done.error_file_id)
    assert (first["custom_id"], first["response"]["status_code"], first["error"]) == ("bad", 400, None)
    assert first["response"]["body"]["error"]["type"] == "invalid_request_error"
    assert second["response"]["body"]["error"]["param"] == "stream"
    assert done.request_counts
    assert done.request_counts.to_dict() == {"total": 3, "completed": 1, "failed": 2}
    assert cloudflare.stats()["paid"]["by_line"] == {"good": 1}


def test_without_an_answer_there_is_no_output_file(cloudflare: Running) -> None:
    client = client_of(cloudflare)
    bad = request("bad")
    bad["body"]["messages"] = []
    done = ended(client, submit(client, [bad]))
    assert (done.status, done.output_file_id, ids(client, done.error_file_id)) == ("completed", None, ["bad"])


def failed(cloudflare: Running, data: bytes) -> list[tuple[str | None, int | None, str | None]]:
    client = client_of(cloudflare)
    file = client.files.create(file=("in.jsonl", data), purpose="batch")
    made = client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", metadata={}
    )
    done = ended(client, made)
    assert (done.status, done.output_file_id, done.error_file_id) == ("failed", None, None)
    assert done.failed_at
    assert done.errors
    assert cloudflare.stats()["paid"]["calls"] == 0
    return [(error.code, error.line, error.param) for error in done.errors.data or []]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([], ("empty_file", None, None)),
        ([request("a"), request("b"), request("a")], ("duplicate_custom_id", 3, "custom_id")),
        ([request("a"), "b"], ("invalid_json_line", 2, None)),
        (
            [{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions"}],
            ("missing_required_parameter", 1, "body"),
        ),
        ([request("a", method="GET")], ("invalid_method", 1, "method")),
        ([request("a", url="/v1/embeddings")], ("url_mismatch", 1, "url")),
        ([request("a", custom_id=7)], ("invalid_type", 1, None)),
        ([request("a", body={"model": "no-such"})], ("model_not_found", 1, "body.model")),
        ([request("a"), request("b", body={"model": "gpt-4o", "messages": []})], ("model_mismatch", 2, "body.model")),
    ],
)
def test_one_bad_line_fails_the_batch_before_any_is_answered(
    cloudflare: Running, lines: list[Any], expected: tuple[str, int | None, str | None]
) -> None:
    assert failed(cloudflare, jsonl(lines)) == [expected]


def test_all_bad_lines_are_named(cloudflare: Running) -> None:
    assert failed(cloudflare, b"{\n\n" + jsonl(prompts(1))) == [
        ("invalid_json_line", 1, None),
        ("invalid_json_line", 2, None),
    ]


def test_a_file_of_too_many_lines_or_bytes_or_inputs_fails(
    cloudflare: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "MAX_LINES", 2)
    assert failed(cloudflare, jsonl(prompts(3))) == [("too_many_tasks", None, None)]
    monkeypatch.setattr(lines, "MAX_INPUT_BYTES", 100)
    assert failed(cloudflare, jsonl(prompts(2))) == [("file_too_large", None, None)]
    monkeypatch.undo()
    monkeypatch.setattr(lines, "MAX_EMBEDDING_INPUTS", 2)
    client = client_of(cloudflare)
    body = {"model": "text-embedding-3-small", "input": ["a", "b", "c"]}
    made = submit(client, [{**request("a"), "url": "/v1/embeddings", "body": body}], "/v1/embeddings")
    done = ended(client, made)
    assert done.errors
    assert [error.code for error in done.errors.data or []] == ["too_many_tasks"]


def test_lists_are_paged_and_newest_first(cloudflare: Running) -> None:
    client = client_of(cloudflare)
    assert [*client.batches.list()] == []
    made = [submit(client, prompts(1)).id for _ in range(5)]
    assert [batch.id for batch in client.batches.list(limit=2)] == made[::-1]
    page = client.batches.list(limit=2, after=made[3])
    assert ([batch.id for batch in page.data], page.has_more) == ([made[2], made[1]], True)
    for wrong in ({"limit": 101}, {"limit": 0}, {"after": "batch_unknown"}):
        with pytest.raises(openai.BadRequestError):
            client.batches.list(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"endpoint": None}, "endpoint"),
        ({"endpoint": "/v1/nothing"}, "endpoint"),
        ({"completion_window": "1h"}, "completion_window"),
        ({"input_file_id": "file-none"}, "id"),
        ({"metadata": {"a": "b" * 513}}, "metadata"),
        ({"metadata": {"a" * 65: "b"}}, "metadata"),
        ({"metadata": {str(n): "b" for n in range(17)}}, "metadata"),
        ({"metadata": {"a": 7}}, "metadata"),
    ],
)
def test_what_is_no_batch_is_refused(cloudflare: Running, change: dict[str, Any], param: str) -> None:
    client = client_of(cloudflare)
    file = client.files.create(file=("in.jsonl", jsonl(prompts(1))), purpose="batch")
    body = {"input_file_id": file.id, "endpoint": "/v1/chat/completions", "completion_window": "24h", **change}
    with pytest.raises(openai.APIStatusError) as refused:
        client.post("/batches", body=body, cast_to=Batch)
    assert refused.value.status_code == (404 if param == "id" else 400)
    assert refused.value.body["param"] == param  # type: ignore[index]
    assert [*client.batches.list()] == []


def test_a_file_for_something_else_is_no_input(cloudflare: Running) -> None:
    client = client_of(cloudflare)
    file = client.files.create(file=("in.jsonl", jsonl(prompts(1))), purpose="fine-tune")
    with pytest.raises(openai.BadRequestError, match="purpose"):
        client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")


def test_nobody_knows_a_batch_that_is_not_there(cloudflare: Running) -> None:
    client = client_of(cloudflare)
    with pytest.raises(openai.NotFoundError):
        client.batches.retrieve("batch_none")
    with pytest.raises(openai.NotFoundError):
        client.batches.cancel("batch_none")


def test_a_cancelled_batch_has_the_answers_until_then(cloudflare: Running) -> None:
    client = client_of(cloudflare)
    cloudflare.fault("openai", batch="hold", share=0.5)
    made = submit(client, prompts(4))
    until(client, made, lambda one: one.request_counts is not None and one.request_counts.completed == 2)
    assert client.batches.cancel(made.id).status == "cancelling"
    done = ended(client, made)
    assert (done.status, bool(done.cancelling_at), bool(done.cancelled_at)) == ("cancelled", True, True)
    assert ids(client, done.output_file_id) == ["r0", "r1"]
    left = rows(client, done.error_file_id)
    assert [(row["custom_id"], row["response"], row["error"]["code"]) for row in left] == [
        ("r2", None, "batch_cancelled"),
        ("r3", None, "batch_cancelled"),
    ]
    assert cloudflare.stats()["paid"]["by_line"] == {"r0": 1, "r1": 1}
    with pytest.raises(openai.ConflictError):
        client.batches.cancel(made.id)


def test_a_batch_expires_by_the_clock_with_its_partial_results(cloudflare: Running, queue_clock: AheadClock) -> None:
    client = client_of(cloudflare)
    cloudflare.fault("openai", batch="hold", share=0.75)
    made = submit(client, prompts(4))
    until(client, made, lambda one: one.request_counts is not None and one.request_counts.completed == 3)
    queue_clock.ahead += 86_401
    done = ended(client, made)
    assert (done.status, bool(done.expired_at)) == ("expired", True)
    assert ids(client, done.output_file_id) == ["r0", "r1", "r2"]
    (row,) = rows(client, done.error_file_id)
    assert (row["custom_id"], row["error"]["code"]) == ("r3", "batch_expired")


def test_a_batch_whose_file_is_gone_fails(cloudflare: Running) -> None:
    client = client_of(cloudflare)
    cloudflare.fault("openai", batch="hold", state="validating")
    made = submit(client, prompts(1))
    client.files.delete(made.input_file_id)
    cloudflare.clear_faults()
    done = ended(client, made)
    assert done.errors
    assert [error.code for error in done.errors.data or []] == ["file_not_found"]


def test_rows_are_one_json_object_a_line(cloudflare: Running) -> None:
    client = client_of(cloudflare)
    done = ended(client, submit(client, [request("a", "two\nlines \u2028 and ä")]))
    text = client.files.content(str(done.output_file_id)).read().decode()
    assert (text.count("\n"), text[-1]) == (1, "\n")
    assert json.loads(text)["response"]["body"]["choices"][0]["message"]["content"] == "echo: two\nlines \u2028 and ä"
