from __future__ import annotations

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import httpx
import pytest
from botocore.exceptions import ClientError
from botocore.exceptions import ConnectionClosedError as ClosedByServer
from pydantic import ValidationError

from llmdo.local.faults import Fault, Faults
from tests.local.clients import queue_id, rest, s3_client
from tests.local.cloudflare import Running

MODEL = "@cf/echo/chat"


def ask(server: Running, prompt: str = "a", **more: Any) -> httpx.Response:
    return rest(server, "POST", f"/ai/run/{MODEL}", {"prompt": prompt, **more})


def test_a_status_comes_in_the_shape_of_workers_ai(cloudflare: Running) -> None:
    cloudflare.fault("ai", status=429, code=3040, retry_after=2, count=1)
    refused = ask(cloudflare)
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "2")
    assert refused.json() == {
        "result": None,
        "success": False,
        "errors": [
            {
                "code": 3040,
                "message": "InferenceUpstreamError: 3040: Capacity temporarily exceeded, please try again.",
            }
        ],
        "messages": [],
    }
    assert ask(cloudflare).status_code == 200
    assert cloudflare.stats()["ai"]["by_status"] == {"429": 1, "200": 1}
    assert cloudflare.stats()["paid"]["calls"] == 1


def test_a_gateway_error_is_a_page_not_json(cloudflare: Running) -> None:
    cloudflare.fault("ai", status=502)
    refused = ask(cloudflare)
    assert (refused.status_code, refused.headers["content-type"]) == (502, "text/html; charset=UTF-8")


def test_a_status_comes_in_the_shape_of_queues(cloudflare: Running) -> None:
    path = f"/queues/{queue_id(cloudflare)}/messages/pull"
    cloudflare.fault("queue", status=429, match="/messages/pull")
    refused = rest(cloudflare, "POST", path)
    assert (refused.status_code, refused.json()["errors"][0]["code"]) == (429, 10250)
    assert rest(cloudflare, "GET", "/queues").status_code == 200


@pytest.mark.parametrize(
    ("effect", "code"),
    [
        ({"status": 503}, "ServiceUnavailable"),
        ({"status": 429, "code": 10058}, "TooManyRequests"),
        ({"status": 404, "code": "NoSuchBucket"}, "NoSuchBucket"),
    ],
)
def test_a_status_comes_in_the_shape_of_r2(cloudflare: Running, effect: dict[str, Any], code: str) -> None:
    s3 = s3_client(cloudflare)
    cloudflare.fault("r2", **effect, match="secret place", count=1)
    s3.put_object(Bucket="llmdo", Key="elsewhere", Body=b"1")
    with pytest.raises(ClientError) as error:
        s3.put_object(Bucket="llmdo", Key="secret place/a", Body=b"1")
    assert error.value.response["Error"]["Code"] == code
    assert error.value.response["ResponseMetadata"]["HTTPStatusCode"] == effect["status"]
    s3.put_object(Bucket="llmdo", Key="secret place/a", Body=b"1")


def test_a_fault_can_be_meant_for_some_prompts(cloudflare: Running) -> None:
    cloudflare.fault("ai", status=408, match="bad ä")
    assert [ask(cloudflare, prompt).status_code for prompt in ("good", "a bad ä one")] == [200, 408]
    cloudflare.clear_faults()
    assert ask(cloudflare, "a bad ä one").status_code == 200


def test_a_call_dropped_before_the_work_is_not_paid_one_dropped_after_it_is(cloudflare: Running) -> None:
    for after, paid in ((False, 0), (True, 1)):
        cloudflare.fault("ai", drop=True, after=after, count=1)
        with pytest.raises(httpx.RemoteProtocolError):
            ask(cloudflare)
        assert cloudflare.stats()["paid"]["calls"] == paid
    assert cloudflare.stats()["ai"]["by_status"] == {"drop": 2}


def test_a_lost_reply_of_a_put_leaves_the_object_and_its_event(cloudflare: Running) -> None:
    s3 = s3_client(cloudflare)
    cloudflare.fault("r2", drop=True, after=True, count=1)
    with pytest.raises(ClosedByServer):
        s3.put_object(Bucket="llmdo", Key="input/a.jsonl", Body=b"1")
    assert s3.head_object(Bucket="llmdo", Key="input/a.jsonl")["ContentLength"] == 1
    assert rest(cloudflare, "GET", f"/queues/{queue_id(cloudflare)}/metrics").json()["result"]["backlog_count"] == 1


def test_a_lost_reply_of_a_pull_hides_the_messages(cloudflare: Running) -> None:
    path = f"/queues/{queue_id(cloudflare)}/messages"
    rest(cloudflare, "POST", path, {"body": 1})
    cloudflare.fault("queue", drop=True, after=True, count=1, match="/pull")
    with pytest.raises(httpx.RemoteProtocolError):
        rest(cloudflare, "POST", f"{path}/pull")
    assert rest(cloudflare, "POST", f"{path}/pull").json()["result"]["messages"] == []


@pytest.mark.parametrize(("status", "shown"), [(None, 200), (503, 503)])
def test_a_page_stands_in_for_the_reply_of_any_service(cloudflare: Running, status: int | None, shown: int) -> None:
    for target in ("ai", "queue", "r2"):
        cloudflare.fault(target, page=True, status=status, retry_after=3, count=1)
    replies = [ask(cloudflare), rest(cloudflare, "GET", "/queues"), httpx.get(f"{cloudflare.url}/llmdo/a", timeout=60)]
    for reply in replies:
        assert (reply.status_code, reply.headers["content-type"]) == (shown, "text/html; charset=UTF-8")
        assert reply.headers["retry-after"] == "3"
        assert reply.text.startswith("<!DOCTYPE html>")
    assert cloudflare.stats()["paid"]["calls"] == 0


@pytest.mark.parametrize("after", [False, True])
def test_an_empty_success_has_nothing_of_the_service_and_the_work_is_done_or_not(
    cloudflare: Running, after: bool
) -> None:
    s3 = s3_client(cloudflare)
    for target in ("ai", "queue", "r2"):
        cloudflare.fault(target, empty=True, after=after, count=1)
    asked = ask(cloudflare, "a b c", stream=True)
    assert (asked.status_code, asked.content, asked.headers.get("content-type")) == (200, b"", None)
    assert rest(cloudflare, "GET", "/queues").content == b""
    assert "ETag" not in s3.put_object(Bucket="llmdo", Key="a", Body=b"1")
    assert cloudflare.stats()["paid"]["calls"] == after
    assert s3.list_objects_v2(Bucket="llmdo")["KeyCount"] == after


def test_a_refusal_stays_one_where_a_success_would_have_been_emptied(cloudflare: Running) -> None:
    cloudflare.fault("ai", empty=True, after=True)
    assert rest(cloudflare, "POST", "/ai/run/@cf/none/such", {"prompt": "a"}).status_code == 400
    cloudflare.fault("r2", empty=True, after=True)
    with pytest.raises(ClientError, match="404"):
        s3_client(cloudflare).head_object(Bucket="llmdo", Key="absent")


def test_a_truncated_reply_promises_its_whole_length(cloudflare: Running) -> None:
    s3 = s3_client(cloudflare)
    s3.put_object(Bucket="llmdo", Key="a", Body=b"x" * 1000)
    cloudflare.fault("r2", truncate=True, count=1)
    cloudflare.fault("ai", truncate=True, count=1)
    body = s3.get_object(Bucket="llmdo", Key="a")
    assert body["ContentLength"] == 1000
    with pytest.raises(Exception, match=r"500 bytes read|IncompleteRead"):
        body["Body"].read()
    with pytest.raises(httpx.RemoteProtocolError, match="without sending complete message body"):
        ask(cloudflare)


def test_a_truncated_stream_ends_without_its_end_mark(cloudflare: Running) -> None:
    cloudflare.fault("ai", truncate=True, count=1)
    cut = ask(cloudflare, "a b c", stream=True)
    assert cut.status_code == 200
    assert cut.text.startswith('data: {"response":"echo: "}')
    assert "[DONE]" not in cut.text
    assert "[DONE]" in ask(cloudflare, "a b c", stream=True).text


def test_latency_alone_delays_and_calls_wait_side_by_side(cloudflare: Running) -> None:
    cloudflare.fault("ai", latency_s=0.3)
    began = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(lambda n: ask(cloudflare, str(n)).status_code, range(8)))
    assert statuses == [200] * 8
    assert time.monotonic() - began >= 0.3
    assert cloudflare.stats()["ai"]["max_in_flight"] > 1


def test_slow_answers_hold_up_no_other_service(cloudflare: Running) -> None:
    def ask_in_vain() -> None:
        with suppress(httpx.HTTPError):
            ask(cloudflare)

    cloudflare.fault("ai", latency_s=60)
    slow = threading.Thread(target=ask_in_vain)
    slow.start()
    while not cloudflare.stats()["ai"]["in_flight"]:
        time.sleep(0.01)
    s3_client(cloudflare).put_object(Bucket="llmdo", Key="a", Body=b"1")
    rest(cloudflare, "GET", "/queues")
    assert cloudflare.stats()["ai"]["in_flight"] == 1


def test_draws_are_repeatable_and_near_the_probability() -> None:
    def strikes() -> list[bool]:
        faults = Faults()
        faults.active.append(Fault(target="ai", probability=0.2, status=429, seed=7))
        return [faults.draw("ai", "path")[1] is not None for _ in range(1000)]

    first = strikes()
    assert first == strikes()
    assert 150 < sum(first) < 250


def test_heavy_tailed_latency_has_its_median() -> None:
    fault = Fault.model_validate({"target": "ai", "latency_s": {"median": 2.0, "sigma": 1.0}, "seed": 1})
    delays = sorted(fault.delay() for _ in range(2001))
    assert 1.8 < delays[1000] < 2.2
    assert delays[-1] > 20


def test_latency_adds_to_another_fault_and_only_the_first_other_counts() -> None:
    faults = Faults()
    faults.active += [
        Fault(target="ai", latency_s=1.0),
        Fault(target="ai", status=429, count=1),
        Fault(target="ai", status=500, latency_s=0.5),
        Fault(target="r2", latency_s=9.0),
    ]
    first, second = faults.draw("ai", "path"), faults.draw("ai", "path")
    assert first == (1.0, faults.active[1])
    assert second == (1.5, faults.active[2])


def test_a_rate_is_a_bucket_one_second_deep() -> None:
    now = [100.0]
    faults = Faults(clock=lambda: now[0])
    faults.active.append(Fault(target="ai", rate_per_s=10))

    def burst() -> int:
        return sum(faults.draw("ai", "path")[1] is None for _ in range(30))

    assert burst() == 10
    now[0] += 0.5
    assert burst() == 5
    now[0] += 60
    assert burst() == 10


def test_beyond_the_rate_comes_3021(cloudflare: Running) -> None:
    cloudflare.fault("ai", rate_per_s=1, retry_after=1)
    assert ask(cloudflare).status_code == 200
    refused = ask(cloudflare)
    assert (refused.status_code, refused.json()["errors"][0]["code"]) == (429, 3021)


@pytest.mark.parametrize(
    "wrong",
    [
        {"target": "ai"},
        {"target": "moon", "status": 429},
        {"target": "ai", "status": 200},
        {"target": "ai", "probability": 2, "status": 429},
        {"target": "ai", "latency_s": -1.0},
        {"target": "ai", "status": 429, "code": "NoSuchKey"},
        {"target": "ai", "status": 429, "misspelt": 1},
    ],
)
def test_what_is_no_fault_is_refused(cloudflare: Running, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Fault.model_validate(wrong)
    reply = httpx.post(
        f"{cloudflare.url}/_faults",
        json=wrong,
        headers={"Authorization": f"Bearer {cloudflare.env['CLOUDFLARE_API_TOKEN']}"},
        trust_env=False,
    )
    assert reply.status_code == 400
    assert reply.json()["problems"]


def test_faults_and_stats_need_the_token(cloudflare: Running) -> None:
    for method, path in (("POST", "/_faults"), ("DELETE", "/_faults"), ("GET", "/_stats")):
        reply = httpx.request(
            method, cloudflare.url + path, json={"target": "ai", "drop": True}, trust_env=False, timeout=60
        )
        assert reply.status_code == 401
    assert ask(cloudflare).status_code == 200


def test_without_a_seed_two_faults_draw_apart() -> None:
    random.seed(0)
    one, other = (Fault(target="ai", probability=0.5, status=429) for _ in range(2))
    draws = [(one.strikes("ai", ("",), 0.0), other.strikes("ai", ("",), 0.0)) for _ in range(64)]
    assert len(set(draws)) > 2
