import base64
import json
import logging

import httpx
import pytest

from llmdo.settings.environment import CloudflareAccount, cloudflare_account
from llmdo.storage.errors import (
    AccessDenied,
    QueueError,
    QueueNotFound,
    QueueUnauthorized,
    StorageUnavailable,
    is_passing,
)
from llmdo.storage.queues.client import Consumer, Pacer, Pulled, QueueClient, find_queue
from tests.local.cloudflare import running

ACCOUNT = CloudflareAccount("a" * 32, "token-of-the-tests", "https://api.test/client/v4")
QUEUE = "0123456789abcdef0123456789abcdef"
ROOT = f"/client/v4/accounts/{ACCOUNT.account_id}/queues"


class Api:
    """Cloudflare's API as a list of replies; keeps the requests."""

    def __init__(self, *replies):
        self.replies = list(replies)
        self.requests = []
        self.waits = []

    def __call__(self, request):
        self.requests.append(request)
        reply = self.replies.pop(0)
        if isinstance(reply, Exception):
            raise reply
        return reply

    def client(self):
        return QueueClient(ACCOUNT, QUEUE, httpx.MockTransport(self), self.waits.append)

    def bodies(self):
        return [json.loads(request.content) for request in self.requests]


def ok(result=None, **more):
    return httpx.Response(200, json={"success": True, "errors": [], "messages": [], "result": result} | more)


def refused(status, code, headers=None, **more):
    errors = [{"code": code, "message": "as the test wants"}]
    return httpx.Response(status, headers=headers, json={"success": False, "errors": errors, "result": None} | more)


def wire(number=1, **changes):
    body = base64.b64encode(json.dumps({"number": number}).encode()).decode()
    return {
        "body": body,
        "id": f"id-{number}",
        "timestamp_ms": 1689615013586,
        "attempts": 1,
        "metadata": {"CF-sourceMessageSource": "dash", "CF-Content-Type": "json"},
        "lease_id": f"lease-{number}",
    } | changes


def test_a_pull_asks_for_what_is_documented_and_reads_the_reply():
    api = Api(ok({"message_backlog_count": 10, "messages": [wire()], "metadata": {"metrics": {}}}))
    pulled = api.client().pull(batch_size=50, visibility_timeout_s=6.5)
    [request] = api.requests
    assert (request.method, request.url.path) == ("POST", f"{ROOT}/{QUEUE}/messages/pull")
    assert request.headers["authorization"] == "Bearer token-of-the-tests"
    assert api.bodies() == [{"batch_size": 50, "visibility_timeout_ms": 6500}]
    [message] = pulled.messages
    assert pulled.backlog == 10
    assert (message.id, message.lease_id, message.attempts) == ("id-1", "lease-1", 1)
    assert (message.body, message.decodable, message.content_type) == ({"number": 1}, True, "json")
    assert (message.raw, message.timestamp_ms) == (wire()["body"], 1689615013586)


@pytest.mark.parametrize("result", [None, {}, {"messages": None}, {"messages": []}])
def test_an_empty_queue_gives_nothing(result):
    assert Api(ok(result, messages=[{"code": 1, "message": "a notice"}])).client().pull() == Pulled((), None)


def test_a_pull_takes_what_is_missing_lightly(caplog):
    bare = {"lease_id": "bare", "body": "hello", "id": None, "attempts": None, "timestamp_ms": None, "metadata": None}
    odd = wire(2, metadata={"CF-Content-Type": "V8"}, timestamp_ms="yesterday")
    pulled = Api(ok({"messages": [bare, odd, wire(3, lease_id=None), "nonsense", wire(4)]})).client().pull()
    assert [message.lease_id for message in pulled.messages] == ["bare", "lease-2", "lease-4"]
    first, second, _ = pulled.messages
    assert (first.id, first.attempts, first.content_type, first.decodable) == ("", 1, "json", False)
    assert first.timestamp_ms == second.timestamp_ms == 0
    assert (second.content_type, second.decodable, second.body) == ("v8", False, odd["body"])
    assert caplog.text.count("without a usable lease") == 2


@pytest.mark.parametrize(
    "fault", [refused(429, 10250), refused(503, 15000), httpx.ReadTimeout("slow"), httpx.Response(200, text="<html>")]
)
def test_a_pull_is_never_tried_again_by_itself(fault):
    api = Api(fault, ok())
    with pytest.raises(QueueError, match=f"^pull from queue {QUEUE}: ") as raised:
        api.client().pull()
    assert len(api.requests) == 1
    assert is_passing(raised.value)


def test_acks_go_in_one_call():
    api = Api(ok({"ackCount": 2, "retryCount": 0, "warnings": {}}))
    api.client().settle(["l1", "l2"])
    assert api.requests[0].url.path == f"{ROOT}/{QUEUE}/messages/ack"
    assert api.bodies() == [{"acks": [{"lease_id": "l1"}, {"lease_id": "l2"}], "retries": []}]


def test_nothing_to_settle_is_no_call():
    api = Api()
    api.client().settle([])
    assert api.requests == []


def test_many_leases_go_in_calls_of_a_hundred():
    api = Api(ok({"ackCount": 100}), ok({"ackCount": 100}), ok({"ackCount": 30}))
    api.client().settle([f"a{n}" for n in range(230)])
    assert [len(body["acks"]) for body in api.bodies()] == [100, 100, 30]
    assert len({lease["lease_id"] for body in api.bodies() for lease in body["acks"]}) == 230


@pytest.mark.parametrize(
    ("result", "logged"),
    [
        ({"ackCount": 2, "retryCount": 0}, None),
        (None, None),
        ({"ackCount": None, "retryCount": None, "warnings": None}, None),
        ({"ackCount": 1}, "1 of 2"),
        ({"ackCount": 1, "warnings": {"l1": "expired"}}, "1 of 2 … l1…: expired"),
        ({"warnings": ["l1 expired", "l2 expired", "?"]}, "2 of 2 … l1 expired; l2 expired; ?"),
        ({"warnings": {"l2": "gone"}}, "1 of 2 … l2…: gone"),
    ],
)
def test_leases_that_were_not_taken_are_noticed(result, logged, caplog):
    Api(ok(result)).client().settle(["l1", "l2"])
    count, _, warnings = (logged or "").partition(" … ")
    sentence = f"ack to queue {QUEUE}: {count} leases were not settled; their messages will be delivered again. "
    assert caplog.messages == ([sentence + warnings] if logged else [])


@pytest.mark.parametrize(
    "fault",
    [refused(429, 10250), refused(500, 15000), httpx.ConnectError("refused"), httpx.Response(502, text="<html>")],
)
def test_an_ack_is_tried_again(fault):
    api = Api(fault, fault, ok({"ackCount": 1}))
    api.client().settle(["l1"])
    assert len(api.requests) == 3
    assert len(api.waits) == 2
    assert api.waits[0] <= 0.5


def test_an_ack_waits_as_long_as_it_is_told():
    api = Api(refused(429, None, {"Retry-After": "7"}), ok())
    api.client().settle(["l1"])
    assert api.waits == [7.0]


def test_a_long_wait_is_left_to_the_caller():
    api = Api(refused(429, None, {"Retry-After": "300"}))
    with pytest.raises(QueueError) as raised:
        api.client().settle(["l1"])
    assert (raised.value.retry_after, api.waits) == (300.0, [])


@pytest.mark.parametrize("reply", [refused(403, 10106), refused(404, 10104), refused(400, 10207), refused(429, 10253)])
def test_what_a_repeat_cannot_cure_is_not_repeated(reply):
    api = Api(reply)
    with pytest.raises(QueueError, match=f"ack to queue {QUEUE}"):
        api.client().settle(["l1"])
    assert len(api.requests) == 1


def test_an_ack_is_given_up_after_four_tries():
    api = Api(*[refused(503, 15000)] * 9)
    with pytest.raises(QueueError, match="is failing"):
        api.client().settle(["l1"])
    assert len(api.requests) == 4


@pytest.mark.parametrize(
    ("body", "sent"),
    [
        ({"a": 1}, {"body": {"a": 1}, "content_type": "json"}),
        ("text", {"body": "text", "content_type": "text"}),
        ([1], {"body": [1], "content_type": "json"}),
    ],
)
def test_a_push_says_what_it_is(body, sent):
    api = Api(ok())
    api.client().push_many([body])
    assert api.bodies() == [{"messages": [sent]}]


def test_many_messages_go_in_batches_of_a_hundred_or_256_kb():
    api = Api(*[ok()] * 4)
    api.client().push_many([{"n": n} for n in range(250)])
    assert api.requests[0].url.path == f"{ROOT}/{QUEUE}/messages/batch"
    assert [len(body["messages"]) for body in api.bodies()] == [100, 100, 50]
    api = Api(*[ok()] * 4)
    api.client().push_many(["x" * 100_000] * 5)
    assert [len(body["messages"]) for body in api.bodies()] == [2, 2, 1]
    assert all(len(request.content) <= 256_000 for request in api.requests)
    Api().client().push_many([])  # makes no call, for which it has no reply


def test_a_message_that_is_too_long_is_refused_before_it_is_sent():
    api = Api()
    with pytest.raises(QueueError, match="over 128 KB; put it into the bucket"):
        api.client().push_many(["x" * 128_000])
    assert api.requests == []


def test_the_backlog():
    api = Api(ok({"backlog_bytes": 1234, "backlog_count": 10, "oldest_message_timestamp_ms": 1689615013586}))
    assert api.client().backlog() == 10
    assert (api.requests[0].method, api.requests[0].url.path) == ("GET", f"{ROOT}/{QUEUE}/metrics")


def test_consumers():
    http = {
        "type": "http_pull",
        "dead_letter_queue": "dlq",
        "settings": {"batch_size": 10, "max_retries": 3, "visibility_timeout_ms": 5000, "retry_delay": 0},
    }
    api = Api(ok([http, {"type": "worker", "dead_letter_queue": "", "settings": None}]))
    assert api.client().consumers() == (
        Consumer(type="http_pull", dead_letter_queue="dlq", max_retries=3),
        Consumer(type="worker", dead_letter_queue=""),
    )
    assert Api(ok(None)).client().consumers() == ()


def test_a_reply_of_another_shape_names_the_field():
    with pytest.raises(QueueError, match="not as documented, 'backlog_count' is wrong: it must be a number"):
        Api(ok({"backlog_count": "many"})).client().backlog()


def queues(*names):
    return [{"queue_id": f"{number:032x}", "queue_name": name, "settings": {}} for number, name in enumerate(names)]


def test_an_id_is_not_looked_up():
    assert find_queue(ACCOUNT, QUEUE, httpx.MockTransport(Api())) == QUEUE


def test_a_name_is_found_on_any_page():
    first, second = queues(*(f"q{n}" for n in range(3)))[:2], queues("x", "y", "z", "jobs")[2:]
    api = Api(ok(first, result_info={"total_pages": 2}), ok(second, result_info={"total_pages": 2}))
    assert find_queue(ACCOUNT, "jobs", httpx.MockTransport(api)) == f"{3:032x}"
    assert [request.url.params["page"] for request in api.requests] == ["1", "2"]
    assert api.requests[0].url.path == ROOT


@pytest.mark.parametrize(
    "replies",
    [
        [ok(queues("b", "a"), result_info={"total_pages": 1})],
        [ok(queues("b", "a")), ok(queues("b", "a"))],  # a server that knows no pages
        [ok(queues("b", "a")), ok([])],
    ],
)
def test_a_name_that_is_not_there_tells_those_that_are(replies):
    with pytest.raises(QueueNotFound, match="no queue of this name, the account has a, b; create it"):
        find_queue(ACCOUNT, "jobs", httpx.MockTransport(Api(*replies)))


def test_an_account_without_queues_is_said():
    with pytest.raises(QueueNotFound, match="the account has none"):
        find_queue(ACCOUNT, "jobs", httpx.MockTransport(Api(ok([]))))


@pytest.mark.parametrize(
    ("reply", "kind", "remedy"),
    [
        (refused(404, 10104), QueueNotFound, "create it"),
        (refused(404, 7003), QueueNotFound, "CLOUDFLARE_ACCOUNT_ID"),
        (refused(400, 7000), QueueNotFound, "CLOUDFLARE_ACCOUNT_ID"),
        (refused(400, 10107), QueueNotFound, "32 hexadecimal"),
        (refused(401, 10000), QueueUnauthorized, "Queues: Edit"),
        (refused(403, 10106), QueueUnauthorized, "Queues: Edit"),
        (refused(403, None), QueueUnauthorized, "Queues: Edit"),
        (refused(400, 10105), QueueUnauthorized, "enable it"),
        (refused(200, 10104), QueueNotFound, "create it"),
        (refused(200, 10106, success=True), QueueUnauthorized, "Queues: Edit"),  # as the documentation's sample
        (refused(429, 10250), QueueError, "ask less often"),
        (refused(429, 10251), QueueError, "25 GB"),
        (refused(429, 10252), QueueError, "resume"),
        (refused(429, 10253), QueueError, "next day"),
        (refused(429, None), QueueError, "5,000 messages a second for a queue; of others 1,200 in 5 minutes"),
        (refused(400, 10207), QueueError, "refused this call"),
        (refused(500, 15000), QueueError, "try again later"),
        (httpx.Response(502, text="<html>Bad gateway"), QueueError, "try again later"),
        (httpx.Response(403, text="<html>", headers={"cf-mitigated": "challenge"}), QueueError, "not the token"),
        (httpx.Response(404, text="<html>"), QueueNotFound, "CLOUDFLARE_ACCOUNT_ID"),
        (httpx.Response(200, text="<html>Log in"), QueueError, "CLOUDFLARE_BASE_URL"),
        (httpx.Response(200, json=[]), QueueError, "CLOUDFLARE_BASE_URL"),
        (httpx.Response(200, json={"result": None}), QueueError, "refused"),
        (httpx.ConnectError("[Errno 111] Connection refused"), QueueError, "check the network"),
        (httpx.ReadTimeout(""), QueueError, "ReadTimeout"),
    ],
)
def test_every_refusal_is_one_sentence_with_a_remedy(reply, kind, remedy):
    with pytest.raises(QueueError, match=rf"^pull from queue {QUEUE}: .*{remedy}") as raised:
        Api(reply).client().pull()
    assert type(raised.value) is kind
    assert "token-of-the-tests" not in f"{raised.value}{raised.value!r}"
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("header", "seconds"), [("30", 30.0), ("0", 0.0), ("soon", None), ("", None), ("-1", None)])
def test_the_error_tells_how_long_to_wait(header, seconds):
    with pytest.raises(QueueError) as raised:
        Api(refused(429, 10250, {"Retry-After": header})).client().pull()
    assert (raised.value.status, raised.value.code, raised.value.retry_after) == (429, 10250, seconds)


@pytest.mark.parametrize(
    ("error", "transient"),
    [
        (StorageUnavailable("R2 sleeps"), True),
        (AccessDenied("the keys are wrong"), False),
        (QueueError("", 0), True),
        (QueueError("", 200), True),
        (QueueError("", 429, 10253), True),
        (QueueError("", 503), True),
        (QueueError("", 400), False),
        (QueueNotFound("", 200), False),
        (QueueUnauthorized("", 500), False),
    ],
)
def test_what_may_pass_is_told_from_what_will_not(error, transient):
    assert is_passing(error) == transient


def test_no_log_line_and_no_repr_holds_the_token(caplog):
    caplog.set_level(logging.DEBUG)
    client = Api(ok({"messages": [wire()]}), refused(500, 15000), ok()).client()
    client.pull()
    client.settle(["l1"])
    assert "httpx" in {record.name for record in caplog.records}
    assert ACCOUNT.token not in f"{caplog.text}{client!r}{vars(client)!r}"


def test_a_client_is_closed_by_its_with():
    with Api(ok()).client() as client:
        client.pull()
    with pytest.raises(RuntimeError, match="closed"):
        client.pull()


def test_it_works_over_real_http(tmp_path, monkeypatch):
    with running(tmp_path) as server:
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        queue = find_queue(cloudflare_account(), server.env["LLMDO_QUEUE"])
        with QueueClient(cloudflare_account(), queue) as client:
            assert client.pull() == Pulled((), 0)
            client.push_many([{"n": 1}])
            client.push_many(["two", [3]])
            assert client.backlog() == 3
            pulled = client.pull(visibility_timeout_s=60)
            assert sorted(str(message.body) for message in pulled.messages) == ["[3]", "two", "{'n': 1}"]
            first, *others = [message.lease_id for message in pulled.messages]
            client.settle(others)
            assert client.backlog() == 1
            client.settle([first])
            assert client.backlog() == 0
            assert [consumer.type for consumer in client.consumers()] == ["http_pull"]
        with pytest.raises(QueueNotFound, match="create it"):
            find_queue(cloudflare_account(), "no-such-queue")
        monkeypatch.setenv("CLOUDFLARE_API_TOKEN", "wrong")
        with pytest.raises(QueueUnauthorized, match="Queues: Edit"):
            QueueClient(cloudflare_account(), queue).pull()


def test_a_full_batch_is_followed_at_once():
    pacer = Pacer(0.5)
    assert [pacer.wait(100), pacer.wait(100), pacer.wait(7, batch_size=7)] == [0.0, 0.0, 0.0]


def test_an_idle_queue_is_asked_once_a_second():
    pacer = Pacer(poll_seconds=0.3)
    assert [pacer.wait(0) for _ in range(4)] == [0.3, 0.6, 1.0, 1.0]
    assert pacer.wait(5) == 0.3
    assert pacer.wait(0) == 0.3
    assert [Pacer(poll_seconds=5).wait(0) for _ in range(2)] == [5, 5]
    assert [pacer.wait(0) for _ in range(5000)][-1] == 1.0


def test_an_hour_of_idleness_stays_below_the_accounts_limit():
    pacer, clock, pulls = Pacer(0.5), 0.0, []
    while clock < 3600:
        pulls.append(clock)
        clock += pacer.wait(0)
    busiest = max(sum(1 for at in pulls if begin <= at < begin + 300) for begin in range(0, 3300, 60))
    assert busiest <= 1200 / 3
