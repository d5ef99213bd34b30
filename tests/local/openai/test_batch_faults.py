"""Each fault of batches, and of the calls around them, as the official client sees it."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI
from openai.types import Batch
from pydantic import ValidationError

from llmdo.local.faults import Fault
from tests.local.cloudflare import Running
from tests.local.openai.batching import MODEL, client_of, ended, ids, jsonl, prompts, request, rows, submit, until

ROWS = ["r0", "r1", "r2", "r3"]


def done_with(server: Running, *effects: dict[str, Any], number: int = 4) -> tuple[OpenAI, Batch]:
    """A batch that has ended under these faults of batches."""
    for effect in effects:
        server.fault("openai", **effect)
    client = client_of(server)
    return client, ended(client, submit(client, prompts(number)))


def paid(server: Running) -> list[str]:
    lines: dict[str, int] = server.stats()["paid"]["by_line"]
    assert set(lines.values()) <= {1}
    return [*lines]


@pytest.mark.parametrize("state", ["validating", "scheduling", "in_progress", "finalizing"])
def test_a_batch_stays_in_a_state_for_some_polls(cloudflare: Running, state: str) -> None:
    client = client_of(cloudflare)
    cloudflare.fault("openai", batch="hold", state=state, polls=3)
    made = until(client, submit(client, prompts(4)), lambda one: one.status == state)
    seen = [client.batches.retrieve(made.id).status for _ in range(2)]
    assert seen == [state, state]
    assert ended(client, made).status == "completed"
    assert paid(cloudflare) == ROWS


def test_a_batch_stays_in_a_state_until_the_fault_is_removed(cloudflare: Running) -> None:
    client = client_of(cloudflare)
    cloudflare.fault("openai", batch="hold", state="scheduling", count=1)
    held, other = submit(client, prompts(1)), submit(client, [request("other")])
    assert ended(client, other).status == "completed"
    assert until(client, held, lambda one: str(one.status) == "scheduling")
    cloudflare.clear_faults()
    assert ended(client, held).status == "completed"


def test_a_batch_stays_in_a_state_for_some_seconds(cloudflare: Running) -> None:
    began = time.monotonic()
    _, done = done_with(cloudflare, {"batch": "hold", "state": "validating", "latency_s": 0.3})
    assert (done.status, time.monotonic() - began >= 0.3) == ("completed", True)


def test_a_batch_may_be_cancelling_for_long(cloudflare: Running) -> None:
    client = client_of(cloudflare)
    cloudflare.fault("openai", batch="hold")
    cloudflare.fault("openai", batch="hold", state="cancelling")
    made = until(client, submit(client, prompts(2)), lambda one: one.status == "in_progress")
    client.batches.cancel(made.id)
    assert [client.batches.cancel(made.id).status, client.batches.retrieve(made.id).status] == ["cancelling"] * 2
    cloudflare.clear_faults()
    done = ended(client, made)
    assert (done.status, ids(client, done.output_file_id), ids(client, done.error_file_id)) == (
        "cancelled",
        ["r0"],
        ["r1"],
    )


@pytest.mark.parametrize(("kind", "state"), [("expire", "expired"), ("cancel", "cancelled"), ("fail", "failed")])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_batch_ends_early_with_partial_results(cloudflare: Running, kind: str, state: str, share: float) -> None:
    client, done = done_with(cloudflare, {"batch": kind, "share": share})
    answered = int(4 * share)
    assert done.status == state
    assert ids(client, done.output_file_id) == ROWS[:answered] == paid(cloudflare)
    left = rows(client, done.error_file_id)
    assert [row["custom_id"] for row in left] == ROWS[answered:]
    assert {(row["response"], row["error"]["code"]) for row in left} <= {(None, f"batch_{state}")}
    assert bool(done.errors) == (kind == "fail")


def test_a_batch_fails_with_a_code_and_without_results(cloudflare: Running) -> None:
    _, done = done_with(cloudflare, {"batch": "fail", "code": "billing_hard_limit_reached"})
    assert (done.status, done.output_file_id, bool(done.failed_at)) == ("failed", None, True)
    assert done.errors
    assert [error.code for error in done.errors.data or []] == ["billing_hard_limit_reached"]
    assert paid(cloudflare) == []


def test_more_than_the_enqueued_tokens_of_a_model_fail(cloudflare: Running) -> None:
    client = client_of(cloudflare)
    cloudflare.fault("openai", batch="hold", match="first")
    cloudflare.fault("openai", batch="limit", tokens=5)
    first = submit(client, prompts(3), metadata={"name": "first"})
    until(client, first, lambda one: one.status == "in_progress")
    refused = ended(client, submit(client, [request("a", "three words each")]))
    assert refused.errors
    (error,) = refused.errors.data or []
    assert (refused.status, error.code) == ("failed", "token_limit_exceeded")
    assert error.message
    assert error.message.startswith(f"Enqueued token limit reached for {MODEL} in organization")
    other = request("b", body={"model": "gpt-4o", "messages": [{"role": "user", "content": "1 2 3 4 5"}]})
    assert ended(client, submit(client, [other])).status == "completed"
    client.batches.cancel(first.id)
    ended(client, first)
    assert ended(client, submit(client, [request("a", "three words each")])).status == "completed"


def test_rows_are_out_of_order(cloudflare: Running) -> None:
    client, done = done_with(cloudflare, {"batch": "shuffle", "seed": 1}, number=50)
    found = ids(client, done.output_file_id)
    assert sorted(found) == sorted(f"r{n}" for n in range(50))
    assert found != [f"r{n}" for n in range(50)]


@pytest.mark.parametrize(("share", "again"), [(0.25, 1), (1.0, 4), (0.0, 0)])
def test_rows_are_there_twice(cloudflare: Running, share: float, again: int) -> None:
    client, done = done_with(cloudflare, {"batch": "repeat", "share": share})
    assert ids(client, done.output_file_id) == ROWS + ROWS[:again]
    assert paid(cloudflare) == ROWS


def test_rows_have_names_that_nobody_has_sent(cloudflare: Running) -> None:
    client, done = done_with(cloudflare, {"batch": "foreign", "share": 0.25})
    found = ids(client, done.output_file_id)
    assert (found[:4], len(found), found[4] in ROWS) == (ROWS, 5, False)
    assert paid(cloudflare) == ROWS


def test_an_output_file_is_cut(cloudflare: Running) -> None:
    client, done = done_with(cloudflare, {"batch": "cut", "share": 0.6})
    text = client.files.content(str(done.output_file_id)).text
    assert (text.count("\n"), text.endswith("\n")) == (2, False)


def test_faults_of_an_output_add_up(cloudflare: Running) -> None:
    client, done = done_with(
        cloudflare,
        {"batch": "expire"},
        {"batch": "repeat", "share": 0.5},
        {"batch": "foreign", "share": 1.0},
        {"batch": "shuffle"},
    )
    found = ids(client, done.output_file_id)
    assert (done.status, len(found), sorted(set(found) & set(ROWS))) == ("expired", 6, ["r0", "r1"])


@pytest.mark.parametrize(
    ("effect", "status", "kept", "is_paid"),
    [
        ({"status": 0}, 0, True, False),
        ({"status": 429}, 429, False, False),
        ({"status": 500}, 500, False, False),
        ({"status": 400, "code": "content_policy_violation"}, 400, False, False),
        ({"empty": True, "after": True}, 200, True, True),
    ],
)
def test_single_rows_have_another_reply(
    cloudflare: Running, effect: dict[str, Any], status: int, kept: bool, is_paid: bool
) -> None:
    client, done = done_with(cloudflare, {"batch": "row", "match": "r1", **effect})
    file = done.output_file_id if kept else done.error_file_id
    (row,) = (row for row in rows(client, file) if row["custom_id"] == "r1")
    assert (row["response"]["status_code"], row["error"]) == (status, None)
    if status >= 400:
        assert row["response"]["body"]["error"].keys() == {"message", "type", "param", "code"}
        expected = effect.get("code") or {429: "rate_limit_exceeded"}.get(status)
        assert row["response"]["body"]["error"]["code"] == expected
    assert done.status == "completed"
    assert ("r1" in paid(cloudflare)) == is_paid


@pytest.mark.parametrize("after", [False, True])
def test_single_rows_are_missing(cloudflare: Running, after: bool) -> None:
    client, done = done_with(cloudflare, {"batch": "row", "match": "r1", "drop": True, "after": after})
    assert ids(client, done.output_file_id) + ids(client, done.error_file_id) == ["r0", "r2", "r3"]
    assert ("r1" in paid(cloudflare)) == after


def test_a_row_is_cut_in_the_middle_of_a_file(cloudflare: Running) -> None:
    client, done = done_with(cloudflare, {"batch": "row", "match": "r1", "truncate": True})
    lines = client.files.content(str(done.output_file_id)).text.splitlines()
    assert [line.endswith("}") for line in lines] == [True, False, True, True]


def test_faults_of_calls_leave_rows_alone_and_the_other_way_round(cloudflare: Running) -> None:
    cloudflare.fault("openai", status=500, match="r1")
    client, done = done_with(cloudflare)
    assert ids(client, done.output_file_id) == ROWS
    cloudflare.clear_faults()
    cloudflare.fault("openai", batch="row", status=500)
    answer = client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "a"}])
    assert answer.choices[0].message.content == "echo: a"


def test_lists_lag_behind(cloudflare: Running) -> None:
    client = client_of(cloudflare)
    shown = submit(client, prompts(1))
    cloudflare.fault("openai", batch="hide", polls=2, count=1)
    hidden = submit(client, prompts(1))
    assert client.batches.retrieve(hidden.id).id == hidden.id
    seen = [[one.id for one in client.batches.list()] for _ in range(3)]
    assert seen == [[shown.id], [shown.id], [hidden.id, shown.id]]
    cloudflare.fault("openai", batch="hide", latency_s=600)
    late = submit(client, prompts(1))
    assert [one.id for one in client.batches.list()] == [hidden.id, shown.id]
    cloudflare.clear_faults()
    assert [one.id for one in client.batches.list()] == [late.id, hidden.id, shown.id]


def test_metadata_are_dropped_but_match_a_fault(cloudflare: Running) -> None:
    client = client_of(cloudflare)
    cloudflare.fault("openai", batch="forget", match="mine")
    made = [submit(client, prompts(1), metadata={"nonce": name}) for name in ("mine", "other")]
    assert [one.metadata for one in made] == [None, {"nonce": "other"}]
    assert [one.metadata for one in client.batches.list()] == [{"nonce": "other"}, None]


def test_a_lost_reply_of_a_hand_over_leaves_the_batch(cloudflare: Running) -> None:
    client = client_of(cloudflare)
    cloudflare.fault("openai", match="#batches.create", drop=True, after=True, count=1)
    with pytest.raises(openai.APIConnectionError):
        submit(client, prompts(4), metadata={"nonce": "lost"})
    (found,) = client.batches.list()
    assert found.metadata == {"nonce": "lost"}
    assert ended(client, found).status == "completed"
    assert paid(cloudflare) == ROWS


def test_a_reply_lost_before_the_work_leaves_nothing(cloudflare: Running) -> None:
    client = client_of(cloudflare)
    for name in ("#files.create", "#batches.create"):
        cloudflare.fault("openai", match=name, drop=True, count=1)
        with pytest.raises(openai.APIConnectionError):
            submit(client, prompts(4))
    assert (len([*client.files.list()]), [*client.batches.list()]) == (1, [])


OPERATIONS = """files.create files.list files.retrieve files.content files.delete batches.create batches.retrieve
batches.list batches.cancel chat.completions embeddings responses models""".split()


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize(
    ("effect", "error"),
    [
        ({"status": 429, "retry_after": 7}, openai.RateLimitError),
        ({"status": 503}, openai.InternalServerError),
        ({"status": 502}, openai.InternalServerError),
        ({"drop": True}, openai.APIConnectionError),
        ({"drop": True, "after": True}, openai.APIConnectionError),
    ],
)
def test_each_kind_of_call_fails_on_demand(
    cloudflare: Running, name: str, effect: dict[str, Any], error: type[openai.APIError]
) -> None:
    client = client_of(cloudflare)
    cloudflare.fault("openai", batch="hold")
    file = client.files.create(file=("a.jsonl", jsonl(prompts(1))), purpose="batch").id
    batch = submit(client, prompts(1)).id
    asked: Any = [{"role": "user", "content": "a"}]
    calls = {
        "files.create": lambda: client.files.create(file=("a.jsonl", b"1"), purpose="batch"),
        "files.list": client.files.list,
        "files.retrieve": lambda: client.files.retrieve(file),
        "files.content": lambda: client.files.content(file),
        "files.delete": lambda: client.files.delete(file),
        "batches.create": lambda: client.batches.create(
            input_file_id=file, endpoint="/v1/chat/completions", completion_window="24h"
        ),
        "batches.retrieve": lambda: client.batches.retrieve(batch),
        "batches.list": client.batches.list,
        "batches.cancel": lambda: client.batches.cancel(batch),
        "chat.completions": lambda: client.chat.completions.create(model=MODEL, messages=asked),
        "embeddings": lambda: client.embeddings.create(model="text-embedding-3-small", input="a"),
        "responses": lambda: client.responses.create(model="gpt-5-mini", input="a"),
        "models": client.models.list,
    }
    cloudflare.fault("openai", match=f"#{name}", count=1, **effect)
    with pytest.raises(error) as failed:
        calls[name]()
    if isinstance(failed.value, openai.APIStatusError):
        assert failed.value.status_code == effect["status"]
        assert failed.value.response.headers.get("retry-after") == ("7" if "retry_after" in effect else None)
    if name not in ("files.delete", "batches.cancel"):
        calls[name]()
    done = int(effect.get("after", False))
    assert cloudflare.stats()["paid"]["calls"] == (done + 1 if name in OPERATIONS[9:12] else 0)


def test_a_download_that_breaks_off_is_noticed(cloudflare: Running) -> None:
    client = client_of(cloudflare)
    data = jsonl(prompts(20_000))
    file = client.files.create(file=("a.jsonl", data), purpose="batch")
    cloudflare.fault("openai", match="#files.content", truncate=True, count=1)
    with pytest.raises(openai.APIConnectionError):
        client.files.content(file.id)
    assert client.files.content(file.id).read() == data


def test_an_upload_that_breaks_off_leaves_nothing(cloudflare: Running, tmp_path: Path) -> None:
    head = (
        "POST /openai/v1/files HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer a\r\nContent-Length: 1000000\r\n"
        "Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\n"
        'Content-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n'
    )
    folder = tmp_path / "cloudflare" / "openai"
    with socket.create_connection(("127.0.0.1", cloudflare.port)) as connection:
        connection.sendall(head.encode() + b"1" * 500_000)
        deadline = time.monotonic() + 60
        while not any(folder.glob("*/*")):
            assert time.monotonic() < deadline
            time.sleep(0.01)
    while any(folder.glob("*/*")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert [*client_of(cloudflare).files.list()] == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"target": "ai", "batch": "hold"},
        {"target": "openai", "batch": "row"},
        {"target": "openai", "batch": "misspelt"},
        {"target": "openai", "status": 0},
        {"target": "openai", "batch": "row", "status": 200},
        {"target": "openai", "batch": "cut", "share": 2},
    ],
)
def test_what_is_no_fault_of_batches_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Fault.model_validate(wrong)
