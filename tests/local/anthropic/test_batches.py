from __future__ import annotations

import json
from collections import Counter
from typing import Any

import anthropic
import httpx
import pytest

from llmdo.local.anthropic import batches
from tests.fakes.clocks import AheadClock
from tests.local.anthropic.batching import client_of, done, ended, paid, request, requests, results, until
from tests.local.cloudflare import Running


def test_a_batch_is_in_progress_and_then_ended(cloudflare: Running) -> None:
    client = client_of(cloudflare)
    cloudflare.fault("anthropic", batch="hold", polls=2, share=0)
    made = client.messages.batches.create(requests=requests(3))
    assert (made.processing_status, made.results_url, made.ended_at) == ("in_progress", None, None)
    assert made.request_counts.to_dict() == {
        "processing": 3,
        "succeeded": 0,
        "errored": 0,
        "canceled": 0,
        "expired": 0,
    }
    assert (made.expires_at - made.created_at).total_seconds() == 86_400
    over = ended(client, made)
    assert (over.request_counts.succeeded, over.request_counts.processing, bool(over.ended_at)) == (3, 0, True)
    found = {one.custom_id: one.result for one in client.messages.batches.results(made.id)}
    assert [*found] == ["r1", "r2", "r0"]  # in another order than they were sent
    assert found["r0"].type == "succeeded"
    assert getattr(found["r0"].message.content[0], "text", None) == "echo: r0"
    assert found["r0"].message.usage.service_tier == "batch"
    stats = cloudflare.stats()
    assert stats["paid"]["by_line"] == {"r0": 1, "r1": 1, "r2": 1}
    assert (stats["batches"]["submitted"], stats["batches"]["polled"] > 2) == (1, True)


def test_results_stay_until_the_batch_is_deleted(cloudflare: Running) -> None:
    client = client_of(cloudflare)
    over = done(client, requests(2))
    assert results(client, over) == results(client, over)
    assert cloudflare.stats()["paid"]["calls"] == 2
    assert client.messages.batches.delete(over.id).type == "message_batch_deleted"
    with pytest.raises(anthropic.NotFoundError):
        client.messages.batches.retrieve(over.id)
    assert [*client.messages.batches.list()] == []


def test_a_bad_request_errors_alone(cloudflare: Running) -> None:
    client = client_of(cloudflare)
    given = [request("good"), request("bad", max_tokens=0), request("streamed", stream=True), request("x", model="y")]
    over = done(client, given)
    found = {one.custom_id: one.result for one in client.messages.batches.results(over.id)}
    assert {name: one.type for name, one in found.items()} == {
        "good": "succeeded",
        "bad": "errored",
        "streamed": "errored",
        "x": "errored",
    }
    assert found["bad"].type == "errored"
    assert found["bad"].error.error.type == "invalid_request_error"
    assert (over.request_counts.succeeded, over.request_counts.errored) == (1, 3)
    assert cloudflare.stats()["paid"]["by_line"] == {"good": 1}


@pytest.mark.parametrize(
    "given",
    [
        [],
        [request("a"), request("a")],
        [request("a.b")],
        [request("a" * 65)],
        [request("")],
        [{"custom_id": "a"}],
    ],
)
def test_what_is_no_batch_is_refused(cloudflare: Running, given: list[Any]) -> None:
    client = client_of(cloudflare)
    with pytest.raises(anthropic.BadRequestError):
        client.messages.batches.create(requests=given)
    assert [*client.messages.batches.list()] == []


def test_a_batch_of_too_many_requests_or_bytes_is_refused(cloudflare: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    client = client_of(cloudflare)
    monkeypatch.setattr(batches, "MAX_REQUESTS", 2)
    with pytest.raises(anthropic.BadRequestError):
        client.messages.batches.create(requests=requests(3))
    monkeypatch.setattr(batches, "MAX_BATCH_SIZE", 100)
    with pytest.raises(anthropic.APIStatusError) as refused:
        client.messages.batches.create(requests=requests(1))
    assert refused.value.status_code == 413


def test_lists_are_paged_both_ways_and_newest_first(cloudflare: Running) -> None:
    client = client_of(cloudflare)
    made = [client.messages.batches.create(requests=requests(1)).id for _ in range(5)][::-1]
    assert [batch.id for batch in client.messages.batches.list(limit=2)] == made
    page = client.messages.batches.list(limit=2, after_id=made[1])
    assert ([batch.id for batch in page.data], page.has_more) == (made[2:4], True)
    page = client.messages.batches.list(limit=2, before_id=made[2])
    assert ([batch.id for batch in page.data], page.has_more) == (made[:2], False)
    for wrong in ({"limit": 1001}, {"limit": 0}, {"after_id": "msgbatch_none"}):
        with pytest.raises(anthropic.BadRequestError):
            client.messages.batches.list(**wrong)  # type: ignore[arg-type]


def test_a_key_has_batches_of_its_own(cloudflare: Running) -> None:
    made = client_of(cloudflare).messages.batches.create(requests=requests(1))
    other = client_of(cloudflare, "sk-ant-other")
    assert [*other.messages.batches.list()] == []
    with pytest.raises(anthropic.NotFoundError):
        other.messages.batches.retrieve(made.id)


def test_a_canceled_batch_has_the_answers_until_then(cloudflare: Running) -> None:
    client = client_of(cloudflare)
    cloudflare.fault("anthropic", batch="hold", share=0.5)
    cloudflare.fault("anthropic", batch="hold", state="canceling", polls=1)
    made = client.messages.batches.create(requests=requests(4))
    paid(cloudflare, 2)
    with pytest.raises(anthropic.BadRequestError):
        client.messages.batches.delete(made.id)
    canceled = client.messages.batches.cancel(made.id)
    assert (canceled.processing_status, bool(canceled.cancel_initiated_at)) == ("canceling", True)
    over = ended(client, made)
    assert Counter(results(client, over).values()) == {"succeeded": 2, "canceled": 2}
    assert (over.request_counts.succeeded, over.request_counts.canceled) == (2, 2)
    assert cloudflare.stats()["paid"]["by_line"] == {"r0": 1, "r1": 1}
    with pytest.raises(anthropic.BadRequestError):
        client.messages.batches.cancel(made.id)


def test_a_batch_expires_by_the_clock_with_its_partial_results(cloudflare: Running, queue_clock: AheadClock) -> None:
    client = client_of(cloudflare)
    cloudflare.fault("anthropic", batch="hold", share=0.75)
    made = client.messages.batches.create(requests=requests(4))
    paid(cloudflare, 3)
    queue_clock.ahead += 86_401
    over = ended(client, made)
    assert Counter(results(client, over).values()) == {"succeeded": 3, "expired": 1}


@pytest.mark.parametrize(("kind", "name"), [("expire", "expired"), ("cancel", "canceled")])
def test_a_fault_ends_a_batch_early(cloudflare: Running, kind: str, name: str) -> None:
    client = client_of(cloudflare)
    cloudflare.fault("anthropic", batch=kind, share=0.25)
    over = done(client, requests(4))
    assert Counter(results(client, over).values()) == {"succeeded": 1, name: 3}
    assert cloudflare.stats()["paid"]["calls"] == 1


def test_a_batch_may_be_hidden_from_lists(cloudflare: Running) -> None:
    client = client_of(cloudflare)
    cloudflare.fault("anthropic", batch="hide", polls=2)
    made = client.messages.batches.create(requests=requests(1))
    shown = [[batch.id for batch in client.messages.batches.list().data] for _ in range(3)]
    assert shown == [[], [], [made.id]]


def lines(cloudflare: Running, batch: str) -> list[str]:
    url = f"{cloudflare.env['LOCAL_ANTHROPIC_BASE_URL']}/v1/messages/batches/{batch}/results"
    headers = {"x-api-key": "sk-ant-any", "anthropic-version": "2023-06-01"}
    return httpx.get(url, headers=headers, trust_env=False, timeout=60).text.splitlines()


def test_results_may_come_twice_foreign_or_cut(cloudflare: Running) -> None:
    client = client_of(cloudflare)
    for kind in ("repeat", "foreign", "shuffle"):
        cloudflare.fault("anthropic", batch=kind, share=1.0, count=1)
    names = [json.loads(line)["custom_id"] for line in lines(cloudflare, done(client, requests(2)).id)]
    assert (names.count("r0"), names.count("r1"), len(names)) == (2, 2, 8)
    cloudflare.clear_faults()
    cloudflare.fault("anthropic", batch="cut", share=0.9)
    assert not lines(cloudflare, done(client, requests(1)).id)[-1].endswith("}")


def test_single_requests_fail_by_faults_of_rows(cloudflare: Running) -> None:
    client = client_of(cloudflare)
    cloudflare.fault("anthropic", batch="row", status=529, match="r0")
    cloudflare.fault("anthropic", batch="row", drop=True, match="r1")
    over = done(client, requests(3))
    assert results(client, over) == {"r0": "errored", "r2": "succeeded"}
    (error,) = [one.result for one in client.messages.batches.results(over.id) if one.result.type == "errored"]
    assert error.type == "errored"
    assert error.error.error.type == "overloaded_error"


def test_a_lost_reply_of_a_new_batch_leaves_it_there(cloudflare: Running) -> None:
    client = client_of(cloudflare)
    cloudflare.fault("anthropic", match="#batches.create", drop=True, after=True, count=1)
    with pytest.raises(anthropic.APIConnectionError):
        client.messages.batches.create(requests=requests(2))
    (batch,) = client.messages.batches.list().data
    over = until(client, batch, lambda one: one.processing_status == "ended")
    assert {*results(client, over)} == {"r0", "r1"}
    with pytest.raises(anthropic.APIConnectionError):
        cloudflare.fault("anthropic", match="#batches.create", drop=True, count=1)
        client.messages.batches.create(requests=requests(2))
    assert len(client.messages.batches.list().data) == 1
