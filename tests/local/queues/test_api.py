from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from cloudflare import APIStatusError

from tests.local.clients import account, cloudflare_client, queue_id, rest
from tests.local.cloudflare import Running, running


def error_of(server: Running, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, int]:
    response = rest(server, method, path, body, **headers)
    envelope = response.json()
    assert envelope["success"] is False
    assert envelope["messages"] == []
    return response.status_code, envelope["errors"][0]["code"]


def test_the_official_client_pushes_pulls_acks_and_retries(cloudflare: Running) -> None:
    client, at = cloudflare_client(cloudflare), {"account_id": account(cloudflare)}
    queue = queue_id(cloudflare)
    client.queues.messages.push(queue, **at, body={"n": 1}, content_type="json")
    client.queues.messages.bulk_push(
        queue, **at, messages=[{"body": "zwei", "content_type": "text"}, {"body": [3], "content_type": "json"}]
    )
    pulled = client.queues.messages.pull(queue, **at, batch_size=100, visibility_timeout_ms=60_000)
    assert pulled is not None
    assert pulled.message_backlog_count == 3
    assert pulled.metadata is not None
    messages = pulled.messages or []
    assert [message.attempts for message in messages] == [1, 1, 1]
    assert [message.metadata["CF-Content-Type"] for message in messages] == ["json", "text", "json"]
    assert json.loads(base64.b64decode(messages[0].body or "")) == {"n": 1}
    assert messages[1].body == "zwei"
    leases = [message.lease_id or "" for message in messages]
    settled = client.queues.messages.ack(
        queue, **at, acks=[{"lease_id": leases[0]}, {"lease_id": "gone"}], retries=[{"lease_id": leases[1]}]
    )
    assert settled is not None
    assert (settled.ack_count, settled.retry_count, list(settled.warnings or {})) == (1, 1, ["gone"])
    again = client.queues.messages.pull(queue, **at)
    assert again is not None
    assert [(message.body, message.attempts) for message in again.messages or []] == [("zwei", 2)]
    metrics = client.queues.get_metrics(queue, **at)
    assert metrics is not None
    assert metrics.backlog_count == 2


def test_the_wire_shape_of_a_pull_and_an_ack(cloudflare: Running) -> None:
    path = f"/queues/{queue_id(cloudflare)}/messages"
    assert rest(cloudflare, "POST", path, {"body": {"a": "ü"}}).json()["success"] is True
    reply = rest(cloudflare, "POST", f"{path}/pull", {}).json()
    assert {key: reply[key] for key in ("success", "errors", "messages")} == {
        "success": True,
        "errors": [],
        "messages": [],
    }
    (message,) = reply["result"]["messages"]
    assert sorted(message) == ["attempts", "body", "id", "lease_id", "metadata", "timestamp_ms"]
    assert base64.b64decode(message["body"]) == '{"a":"ü"}'.encode()
    acked = rest(cloudflare, "POST", f"{path}/ack", {"acks": [{"lease_id": message["lease_id"]}]}).json()
    assert acked["result"] == {"ackCount": 1, "retryCount": 0, "warnings": {}}
    assert rest(cloudflare, "POST", f"{path}/pull", {}).json()["result"]["messages"] == []


def test_bytes_stay_bytes(cloudflare: Running) -> None:
    path = f"/queues/{queue_id(cloudflare)}/messages"
    body = base64.b64encode(b"\x00\xff").decode()
    rest(cloudflare, "POST", path, {"body": body, "content_type": "bytes"})
    (message,) = rest(cloudflare, "POST", f"{path}/pull").json()["result"]["messages"]
    assert (message["body"], message["metadata"]["CF-Content-Type"]) == (body, "bytes")


def test_queues_are_made_listed_in_pages_changed_and_deleted(cloudflare: Running) -> None:
    client, at = cloudflare_client(cloudflare), {"account_id": account(cloudflare)}
    made = client.queues.create(queue_name="mine", **at)
    assert made is not None
    assert made.queue_id
    names = [queue.queue_name for queue in client.queues.list(**at)]
    assert sorted(filter(None, names)) == ["llmdo-input", "llmdo-input-dlq", "mine"]
    pages = [rest(cloudflare, "GET", f"/queues?per_page=2&page={page}").json() for page in (1, 2, 3)]
    assert [len(page["result"]) for page in pages] == [2, 1, 0]
    assert pages[0]["result_info"]["total_count"] == 3
    changed = client.queues.edit(made.queue_id, **at, settings={"delivery_delay": 7})
    assert changed is not None
    assert changed.settings is not None
    assert changed.settings.delivery_delay == 7
    assert error_of(cloudflare, "POST", "/queues", {"queue_name": "mine"}) == (409, 11009)
    client.queues.delete(made.queue_id, **at)
    assert error_of(cloudflare, "GET", f"/queues/{made.queue_id}") == (404, 10104)


def test_the_default_queue_has_an_http_consumer_with_dead_letters(cloudflare: Running) -> None:
    client, at = cloudflare_client(cloudflare), {"account_id": account(cloudflare)}
    (consumer,) = client.queues.consumers.list(queue_id(cloudflare), **at)
    assert (consumer.type, consumer.dead_letter_queue) == ("http_pull", "llmdo-input-dlq")
    assert consumer.settings is not None
    assert consumer.settings.max_retries == 10


def test_a_queue_is_found_by_its_name_as_wrangler_looks_for_it(cloudflare: Running) -> None:
    rest(cloudflare, "POST", "/queues", {"queue_name": "mine"})
    for name, found in (("mine", ["mine"]), ("llmdo-input", ["llmdo-input"]), ("nobody's", [])):
        page = rest(cloudflare, "GET", f"/queues?name={name}").json()
        assert [queue["queue_name"] for queue in page["result"]] == found
        assert page["result_info"]["total_count"] == len(found)


def test_consumers_are_made_changed_and_deleted(cloudflare: Running) -> None:
    client, at = cloudflare_client(cloudflare), {"account_id": account(cloudflare)}
    made = client.queues.create(queue_name="mine", **at)
    assert made is not None
    assert made.queue_id
    settings = {"max_retries": 1, "visibility_timeout_ms": 5000}
    consumer = client.queues.consumers.create(made.queue_id, **at, type="http_pull", settings=settings)
    assert consumer is not None
    assert consumer.consumer_id
    body = {"type": "http_pull", "dead_letter_queue": "fresh-dlq", "settings": {"max_retries": 2}}
    path = f"/queues/{made.queue_id}/consumers"
    changed = rest(cloudflare, "PUT", f"{path}/{consumer.consumer_id}", body).json()["result"]
    assert changed["settings"] == {
        "batch_size": 5,
        "max_retries": 2,
        "retry_delay": 0,
        "visibility_timeout_ms": 5000,
    }
    assert queue_id(cloudflare, "fresh-dlq")
    assert error_of(cloudflare, "POST", path, body) == (409, 11004)
    assert error_of(cloudflare, "DELETE", f"{path}/{'0' * 32}") == (404, 10104)
    client.queues.consumers.delete(consumer.consumer_id, **at, queue_id=made.queue_id)
    assert rest(cloudflare, "GET", path).json()["result"] == []


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        ("/messages/pull", {"batch_size": 101}, (400, 10206)),
        ("/messages/pull", {"batch_size": 0}, (400, 10206)),
        ("/messages/pull", {"visibility_timeout_ms": 43_200_001}, (400, 10207)),
        ("/messages/ack", {"acks": ["lease"]}, (400, 10207)),
        ("/messages", {"content_type": "text"}, (400, 10207)),
        ("/messages", {"body": {}, "content_type": "text"}, (400, 10207)),
        ("/messages", {"body": 1, "delay_seconds": 86_401}, (400, 10202)),
        ("/messages", {"body": "x" * 128_000}, (400, 10204)),
        ("/messages/batch", {"messages": []}, (400, 10206)),
        ("/messages/batch", {"messages": [{"body": 1}] * 101}, (400, 10206)),
        ("/messages/batch", {"messages": [{"body": "x" * 100_000}] * 3}, (400, 10205)),
        ("/pull", {}, (400, 7000)),
    ],
)
def test_what_the_service_refuses_is_refused_with_its_code(
    cloudflare: Running, path: str, body: Any, expected: tuple[int, int]
) -> None:
    assert error_of(cloudflare, "POST", f"/queues/{queue_id(cloudflare)}{path}", body) == expected


def test_unknown_queues_paused_queues_and_broken_json(cloudflare: Running) -> None:
    assert error_of(cloudflare, "POST", f"/queues/{'0' * 32}/messages/pull") == (404, 10104)
    assert error_of(cloudflare, "POST", "/queues/llmdo-input/messages/pull") == (400, 10107)
    path = f"/queues/{queue_id(cloudflare)}"
    client = cloudflare_client(cloudflare)
    with pytest.raises(APIStatusError) as error:
        client.post(f"/accounts/{account(cloudflare)}{path}/messages", cast_to=object, content=b"{not json")
    assert error.value.status_code == 400
    assert error.value.response.json()["errors"][0]["code"] == 10208
    rest(cloudflare, "PATCH", path, {"settings": {"delivery_paused": True}})
    assert error_of(cloudflare, "POST", f"{path}/messages/pull") == (429, 10252)


def test_wrong_token_and_wrong_account(cloudflare: Running) -> None:
    assert error_of(cloudflare, "GET", "/queues", Authorization="Bearer wrong") == (401, 10000)
    with pytest.raises(APIStatusError) as error:
        cloudflare_client(cloudflare).queues.list(account_id="0" * 32)
    assert error.value.status_code == 404
    assert error.value.response.json()["errors"][0]["code"] == 7003


def test_the_token_can_be_verified(cloudflare: Running) -> None:
    verified = cloudflare_client(cloudflare).user.tokens.verify()
    assert verified is not None
    assert (verified.id, verified.status) == (cloudflare.env["R2_ACCESS_KEY_ID"], "active")


def test_a_lease_runs_out_by_the_servers_clock(tmp_path: Path) -> None:
    now = [1_800_000_000.0]
    with running(tmp_path, clock=lambda: now[0]) as server:
        path = f"/queues/{queue_id(server)}/messages"
        rest(server, "POST", path, {"body": 1})
        for attempt in range(1, 11):
            (message,) = rest(server, "POST", f"{path}/pull", {"visibility_timeout_ms": 1000}).json()["result"][
                "messages"
            ]
            assert message["attempts"] == attempt
            now[0] += 1
        assert rest(server, "POST", f"{path}/pull").json()["result"]["messages"] == []
        dead = f"/queues/{queue_id(server, 'llmdo-input-dlq')}/messages/pull"
        assert len(rest(server, "POST", dead).json()["result"]["messages"]) == 1
