from __future__ import annotations

import io
from typing import Any

import httpx
import openai
import pytest

from llmdo.local.openai import files
from tests.local.cloudflare import Running
from tests.local.openai.batching import MODEL, client_of, jsonl, prompts, submit

LONG = {"model": "gpt-3.5-turbo-instruct", "prompt": "a b", "max_tokens": 4095}
ASKED: Any = [{"role": "user", "content": "a b"}]


def test_chats_are_answered_by_the_official_client(cloudflare: Running) -> None:
    client = client_of(cloudflare)
    answer = client.chat.completions.create(model=MODEL, messages=ASKED, service_tier="flex")
    (choice,) = answer.choices
    assert (choice.message.content, choice.message.refusal, choice.finish_reason) == ("echo: a b", None, "stop")
    assert (answer.model, answer.service_tier) == (MODEL, "flex")
    assert answer.usage
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (2, 3, 5)
    assert "neurons" not in answer.usage.to_dict()
    cut = client.chat.completions.create(
        model=MODEL, messages=ASKED, max_completion_tokens=2, extra_headers={"x-llmdo-line": "line 1"}
    )
    assert (cut.choices[0].message.content, cut.choices[0].finish_reason) == ("echo: a", "length")
    assert cloudflare.stats()["paid"]["calls"] == 2
    assert cloudflare.stats()["paid"]["by_line"] == {"line 1": 1}
    assert cloudflare.stats()["openai"] == {"calls": 2, "by_status": {"200": 2}}


def test_chats_are_streamed(cloudflare: Running) -> None:
    chunks = [
        *client_of(cloudflare).chat.completions.create(
            model=MODEL, messages=ASKED, stream=True, stream_options={"include_usage": True}
        )
    ]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == "echo: a b"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage
    assert chunks[-1].usage.total_tokens == 5
    assert cloudflare.stats()["paid"]["calls"] == 1
    assert cloudflare.stats()["ai"]["in_flight"] == 0


def test_embeddings_come_as_asked(cloudflare: Running) -> None:
    client = client_of(cloudflare)
    encoded = client.embeddings.create(model="text-embedding-3-small", input=["a", "b"])
    plain = client.embeddings.create(model="text-embedding-3-small", input="a", encoding_format="float")
    assert [len(one.embedding) for one in encoded.data] == [1536, 1536]
    assert encoded.data[0].embedding == pytest.approx(plain.data[0].embedding, abs=1e-6)
    short = client.embeddings.create(model="text-embedding-3-small", input="a", dimensions=3).data[0].embedding
    assert len(short) == 3
    assert sum(number * number for number in short) == pytest.approx(1.0)
    for wrong in (0, 1537):
        with pytest.raises(openai.BadRequestError):
            client.embeddings.create(model="text-embedding-3-small", input="a", dimensions=wrong)


def test_responses_and_completions_are_answered(cloudflare: Running) -> None:
    client = client_of(cloudflare)
    response = client.responses.create(model="gpt-5-mini", input="a b", max_output_tokens=50)
    assert (response.output_text, response.status, response.model) == ("echo: a b", "completed", "gpt-5-mini")
    assert response.usage
    assert response.usage.total_tokens == 5
    completion = client.completions.create(model="gpt-3.5-turbo-instruct", prompt=["a", "b"])
    assert [choice.text for choice in completion.choices] == ["echo: a", "echo: b"]
    with pytest.raises(openai.BadRequestError):
        client.responses.create(model="gpt-5-mini", input="a", stream=True)


def test_models_are_listed(cloudflare: Running) -> None:
    client = client_of(cloudflare)
    assert {MODEL, "text-embedding-3-small"} <= {model.id for model in client.models.list()}
    assert client.models.retrieve(MODEL).object == "model"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("no-such")


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("/chat/completions", {"model": "no-such", "messages": ASKED}, 404, "model_not_found"),
        ("/chat/completions", {"messages": ASKED}, 400, None),
        ("/chat/completions", {"model": MODEL}, 400, "missing_required_parameter"),
        ("/chat/completions", {"model": MODEL, "messages": []}, 400, "invalid_value"),
        ("/chat/completions", {"model": "text-embedding-3-small", "messages": ASKED}, 400, "unsupported_model"),
        ("/completions", LONG, 400, "context_length_exceeded"),
        ("/embeddings", {"model": MODEL, "input": "a"}, 400, "unsupported_model"),
        ("/chat/completions", [], 400, None),
        ("/nothing", {}, 404, None),
    ],
)  # fmt: skip
def test_what_cannot_be_answered_is_refused_as_openai_does(
    cloudflare: Running, path: str, body: Any, status: int, code: str | None
) -> None:
    with pytest.raises(openai.APIStatusError) as refused:
        client_of(cloudflare).post(path, body=body, cast_to=object)
    error: Any = refused.value.body
    assert (refused.value.status_code, error["code"], error["type"]) == (status, code, "invalid_request_error")
    assert refused.value.request_id
    assert cloudflare.stats()["paid"]["calls"] == 0


def test_any_key_will_do_but_none(cloudflare: Running) -> None:
    assert client_of(cloudflare, "anything").models.list()
    url = cloudflare.env["LOCAL_OPENAI_BASE_URL"]
    for headers in ({}, {"Authorization": "Bearer"}, {"Authorization": "Basic eA=="}):
        refused = httpx.get(f"{url}/models", headers=headers, trust_env=False, timeout=60)
        assert (refused.status_code, refused.json()["error"]["type"]) == (401, "invalid_request_error")
    sent = httpx.post(f"{url}/files", files={"file": ("a.jsonl", b"1")}, trust_env=False, timeout=60)
    assert sent.status_code == 401


def test_a_key_sees_its_own_files_and_batches_alone(cloudflare: Running) -> None:
    mine, other = client_of(cloudflare, "mine"), client_of(cloudflare, "other")
    made = submit(mine, prompts(1))
    assert ([*other.files.list()], [*other.batches.list()]) == ([], [])
    with pytest.raises(openai.NotFoundError):
        other.files.content(made.input_file_id)
    with pytest.raises(openai.NotFoundError):
        other.batches.cancel(made.id)
    with pytest.raises(openai.NotFoundError):
        other.batches.create(input_file_id=made.input_file_id, endpoint="/v1/chat/completions", completion_window="24h")
    assert [one.id for one in mine.batches.list()] == [made.id]


def test_files_keep_their_name_and_bytes(cloudflare: Running) -> None:
    client = client_of(cloudflare)
    data = bytes(range(256)) * 4096 + b"\r\n--boundary\r\n"
    made = client.files.create(file=("ä b.jsonl", io.BytesIO(data)), purpose="batch")
    assert (made.filename, made.bytes, made.purpose, made.status) == ("ä b.jsonl", len(data), "batch", "processed")
    assert made.expires_at == made.created_at + 30 * 86_400
    assert client.files.content(made.id).read() == data
    assert client.files.retrieve(made.id) == made
    assert client.files.delete(made.id).deleted
    for call in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError):
            call(made.id)


def test_files_are_listed_by_purpose_and_order(cloudflare: Running) -> None:
    client = client_of(cloudflare)
    made = [client.files.create(file=("a.jsonl", b"1"), purpose=one).id for one in ("batch", "fine-tune", "batch")]  # type: ignore[arg-type]
    assert [file.id for file in client.files.list()] == made[::-1]
    assert [file.id for file in client.files.list(order="asc", limit=1)] == made
    assert [file.id for file in client.files.list(purpose="batch")] == [made[2], made[0]]


def test_an_empty_file_is_kept(cloudflare: Running) -> None:
    client = client_of(cloudflare)
    made = client.files.create(file=("a.jsonl", b""), purpose="batch")
    assert (made.bytes, client.files.content(made.id).read()) == (0, b"")


def test_files_expire_as_asked(cloudflare: Running) -> None:
    client = client_of(cloudflare)
    made = client.files.create(
        file=("a.jsonl", b"1"), purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert made.expires_at == made.created_at + 3600
    with pytest.raises(openai.BadRequestError):
        client.files.create(
            file=("a.jsonl", b"1"), purpose="batch", expires_after={"anchor": "created_at", "seconds": 1}
        )


def test_what_is_no_upload_is_refused(cloudflare: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    client = client_of(cloudflare)
    with pytest.raises(openai.BadRequestError, match=r"Must be \.jsonl"):
        client.files.create(file=("a.txt", b"1"), purpose="batch")
    with pytest.raises(openai.BadRequestError):
        client.files.create(file=("a.jsonl", b"1"), purpose="nothing")  # type: ignore[arg-type]
    url, headers = f"{cloudflare.env['LOCAL_OPENAI_BASE_URL']}/files", {"Authorization": "Bearer a"}
    plain = httpx.post(url, json={}, headers=headers, trust_env=False, timeout=60)
    broken = {**headers, "Content-Type": "multipart/form-data; boundary=x"}
    cut = httpx.post(url, content=b"--x\r\nnonsense", headers=broken, trust_env=False, timeout=60)
    no_file = httpx.post(
        url, data={"purpose": "batch"}, files={"other": b"1"}, headers=headers, trust_env=False, timeout=60
    )
    assert [reply.status_code for reply in (plain, cut, no_file)] == [400, 400, 400]
    monkeypatch.setattr(files, "MAX_FILE_BYTES", 1_000_000)
    with pytest.raises(openai.APIStatusError) as refused:
        client.files.create(file=("a.jsonl", jsonl(prompts(20_000))), purpose="batch")
    assert refused.value.status_code == 413
    assert [*client.files.list()] == []
