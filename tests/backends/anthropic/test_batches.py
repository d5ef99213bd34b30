"""Batches of messages: what is handed over, what is taken of results, and how a batch is found again."""

import asyncio
import json
import time

import httpx
import pytest

from llmdo.backends.anthropic.batches import AnthropicWithBatches
from llmdo.backends.errors import (
    BatchUnclear,
    ConnectionFailed,
    ContentFiltered,
    InvalidRequest,
    LineError,
    Overloaded,
    QuotaExhausted,
    Retryable,
)
from llmdo.backends.requests import ChatRequest, EmbedRequest, Message, RawRequest, batch_places
from llmdo.backends.responses import ChatResponse
from llmdo.settings.environment import AnthropicAccess
from tests.backends.anthropic.service import ACCESS, error, message
from tests.backends.wire import Wire

MODEL = "claude-haiku-4-5"
NONCE = "abcdefghijklmnopqrstuvwxyz"
OTHER = "z" * 26


def chats(count, model=MODEL, **parameters):
    return [
        ChatRequest(model, (Message("user", f"p{number}"),), {"max_tokens": 50, **parameters}, f"line-{number}")
        for number in range(count)
    ]


def with_local(server, act, clock=time.time):
    async def scenario():
        access = AnthropicAccess(server.env["LOCAL_ANTHROPIC_BASE_URL"], "k")
        backend = AnthropicWithBatches(access, clock=clock)
        try:
            return await act(backend)
        finally:
            await backend.aclose()

    return asyncio.run(scenario())


async def polled(backend, batch, requests, places=None):
    """The results by position, once the batch has ended."""
    deadline = time.monotonic() + 60
    while (state := await backend.poll_batch(MODEL, batch, requests, places or batch_places(requests))).results is None:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)
    found = [one async for one in state.results]
    assert len(found) == len(dict(found))
    return dict(found)


async def handed_over(backend, requests):
    batch = await backend.submit_batch(MODEL, requests, NONCE)
    return await polled(backend, batch, requests)


def texts(results):
    return {number: one.text if isinstance(one, ChatResponse) else type(one) for number, one in results.items()}


@pytest.mark.parametrize("fault", [None, "shuffle", "repeat", "foreign"])
def test_each_request_gets_its_own_answer_whatever_order_and_company(cloudflare, fault):
    if fault:
        cloudflare.fault("anthropic", batch=fault, share=1.0)
    results = with_local(cloudflare, lambda backend: handed_over(backend, chats(5)))
    assert texts(results) == {number: f"echo: p{number}" for number in range(5)}
    assert cloudflare.stats()["paid"]["calls"] == 5


def test_a_part_of_a_batch_is_looked_for_by_its_places(cloudflare):
    async def act(backend):
        requests = chats(4)
        batch = await backend.submit_batch(MODEL, requests, NONCE)
        return await polled(backend, batch, requests[2:], batch_places(requests)[2:])

    assert texts(with_local(cloudflare, act)) == {0: "echo: p2", 1: "echo: p3"}


@pytest.mark.parametrize("fault", ["shuffle", "repeat"])
def test_without_requests_all_that_a_batch_has_is_counted_once(cloudflare, fault):
    cloudflare.fault("anthropic", batch=fault, share=1.0)

    async def act(backend):
        requests = chats(4)
        batch = await backend.submit_batch(MODEL, requests, NONCE)
        answered = await polled(backend, batch, requests)
        return answered, await polled(backend, batch, (), ())

    answered, counted = with_local(cloudflare, act)
    assert len(counted) == 4
    assert sum(one.usage.output_tokens for one in counted.values()) == sum(
        one.usage.output_tokens for one in answered.values()
    )


@pytest.mark.parametrize("ending", ["expire", "cancel"])
def test_what_was_answered_before_the_end_is_taken_and_the_rest_has_no_result(cloudflare, ending):
    cloudflare.fault("anthropic", batch=ending, share=0.5)
    results = with_local(cloudflare, lambda backend: handed_over(backend, chats(4)))
    assert texts(results) == {0: "echo: p0", 1: "echo: p1"}


def test_a_batch_that_is_canceled_gives_what_it_has(cloudflare):
    cloudflare.fault("anthropic", batch="hold", share=0.5)

    async def act(backend):
        requests = chats(4)
        batch = await backend.submit_batch(MODEL, requests, NONCE)
        assert (await backend.poll_batch(MODEL, batch, requests, batch_places(requests))).results is None
        deadline = time.monotonic() + 60
        while (await asyncio.to_thread(cloudflare.stats))["paid"]["calls"] < 2:
            assert time.monotonic() < deadline
        await backend.cancel_batch(MODEL, batch)
        found = await polled(backend, batch, requests)
        with pytest.raises(LineError):
            await backend.cancel_batch(MODEL, batch)
        return found

    assert texts(with_local(cloudflare, act)) == {0: "echo: p0", 1: "echo: p1"}


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ({"status": 529}, Overloaded),
        ({"status": 500}, Overloaded),
        ({"status": 400}, InvalidRequest),
        ({"status": 400, "code": "credit_balance"}, QuotaExhausted),
    ],
)
def test_an_error_of_one_request_means_what_it_does_in_a_call(cloudflare, fault, expected):
    cloudflare.fault("anthropic", batch="row", match="p1", **fault)
    results = with_local(cloudflare, lambda backend: handed_over(backend, chats(2)))
    assert texts(results) == {0: "echo: p0", 1: expected}
    assert results[1].provider == "anthropic"


def test_results_that_are_cut_off_are_read_later_and_then_taken_as_they_are(cloudflare):
    cloudflare.fault("anthropic", batch="cut", share=0.6)
    now = [time.time()]

    async def act(backend):
        requests = chats(2)
        batch = await backend.submit_batch(MODEL, requests, NONCE)
        with pytest.raises(Retryable, match="read later"):
            await polled(backend, batch, requests)
        now[0] += 61
        return await polled(backend, batch, requests)

    assert texts(with_local(cloudflare, act, lambda: now[0])) == {1: "echo: p1"}  # the first of the results


def test_a_schema_is_kept_to_or_asked_for_alone(cloudflare):
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    wanted = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    results = with_local(cloudflare, lambda backend: handed_over(backend, chats(1, response_format=wanted)))
    assert texts(results) == {0: '{"n":0}'}
    wrong = {**wanted, "json_schema": {"name": "a", "schema": {**schema, "properties": {"n": {"type": "string"}}}}}
    text = {"type": "text", "text": '{"n": 0}'}
    assert isinstance(one_result({"type": "succeeded", "message": message(text)}, response_format=wrong), Retryable)
    assert isinstance(one_result(errored("invalid_request_error"), response_format=wanted), Retryable)
    use = {"type": "tool_use", "id": "t", "name": "json_answer", "input": {"answer": {"n": 1}}}
    by_tool = {"type": "succeeded", "message": message(use, stop="tool_use")}
    assert one_result(by_tool, "claude-3-haiku", response_format=wanted).text == '{"n":1}'


def test_requests_of_this_api_are_handed_over_as_they_are(cloudflare):
    given = {"max_tokens": 9, "messages": [{"role": "user", "content": "p"}], "thinking": {"type": "adaptive"}}
    request = RawRequest(MODEL, given, "line", path="messages")
    results = with_local(cloudflare, lambda backend: handed_over(backend, [request]))
    assert results[0].result["choices"][0]["message"]["content"] == "echo: p"


def errored(kind):
    return {"type": "errored", "error": error(400, kind)[1]}


def serving(batches, rows=(), **replies):
    """A stand-in whose list has these batches, and whose results are these rows by batch."""

    def answer(call):
        path = call.url.path.removeprefix("/v1/messages/batches").strip("/")
        if path in replies:
            return replies[path]
        if not path and call.method == "GET":
            after = call.url.params.get("after_id")
            names = [one["id"] for one in batches]
            start = names.index(after) + 1 if after else 0
            page = batches[start : start + 2]
            more = start + 2 < len(batches)
            return httpx.Response(
                200, json={"data": page, "has_more": more, "last_id": page[-1]["id"] if page else None}
            )
        if path.endswith("/results"):
            lines = dict(rows)[path.removesuffix("/results")]
            return httpx.Response(200, content="".join(json.dumps(one) + "\n" for one in lines))
        return httpx.Response(200, json=next(one for one in batches if one["id"] == path))

    return answer


def batch(name, count=2, status="ended", created="2027-01-15T08:00:00Z"):
    counts = {"processing": 0, "succeeded": 0, "errored": 0, "canceled": 0, "expired": 0}
    counts["succeeded" if status == "ended" else "processing"] = count
    return {
        "id": name,
        "type": "message_batch",
        "processing_status": status,
        "request_counts": counts,
        "created_at": created,
    }


def call(answer, act):
    async def scenario():
        backend = AnthropicWithBatches(ACCESS, Wire(answer), clock=lambda: 1_800_000_000.0)
        try:
            return await act(backend)
        finally:
            await backend.aclose()

    return asyncio.run(scenario())


def one_result(result, model=MODEL, **parameters):
    requests = chats(1, model, **parameters)
    (place,) = batch_places(requests)
    sent = []

    def answer(request):
        if request.method == "POST":
            sent.append(json.loads(request.content))
            return httpx.Response(200, json=batch("b", 1, "in_progress"))
        row = {"custom_id": sent[0]["requests"][0]["custom_id"], "result": result}
        return serving([batch("b", 1)], [("b", [row])])(request)

    async def act(backend):
        name = await backend.submit_batch(MODEL, requests, NONCE)
        return (await polled(backend, name, requests, [place])).get(0)

    return call(answer, act)


def test_ids_have_the_nonce_and_are_what_the_service_takes():
    sent = []

    def answer(request):
        sent.append(json.loads(request.content))
        return httpx.Response(200, json=batch("b"))

    requests = [ChatRequest(MODEL, (Message("user", "x"),), {}, f"öä.{n}" * 40) for n in range(2)]
    call(answer, lambda backend: backend.submit_batch(MODEL, requests, NONCE))
    ids = [one["custom_id"] for one in sent[0]["requests"]]
    assert len(set(ids)) == 2
    for one in ids:
        assert one.startswith(f"{NONCE}-")
        assert one.replace("-", "").isalnum() and one.isascii() and len(one) <= 64
    assert sent[0]["requests"][0]["params"] == {
        "model": MODEL,
        "max_tokens": 2048,
        "messages": [{"role": "user", "content": "x"}],
    }


def test_a_refusal_and_an_unknown_result_are_told_apart():
    assert isinstance(one_result({"type": "succeeded", "message": message(stop="refusal")}), ContentFiltered)
    assert isinstance(one_result(errored("something_new")), Retryable)
    assert isinstance(one_result(errored("not_found_error")), LineError)
    assert one_result({"type": "paused"}) is None


SINCE = 1_800_000_000.0  # 2027-01-15T08:00:00Z
MINE, THEIRS = ([{"custom_id": f"{nonce}-0-x", "result": {"type": "expired"}}] for nonce in (NONCE, OTHER))


def found(batches, rows=(), **replies):
    return call(serving(batches, rows, **replies), lambda backend: backend.find_batch(MODEL, NONCE, 2, SINCE))


def test_a_batch_is_found_by_its_first_result_on_any_page():
    batches = [batch("other-count", 3), batch("theirs"), batch("running", 5, "in_progress"), batch("mine")]
    assert found(batches, [("theirs", THEIRS), ("mine", MINE)]) == "mine"


def test_a_batch_that_is_surely_not_there_is_not_found():
    assert found([]) is None
    assert found([batch("theirs")], [("theirs", THEIRS)]) is None
    old = batch("old", status="in_progress", created="2027-01-15T06:00:00Z")
    assert found([old]) is None


def test_one_of_as_many_requests_that_is_not_done_makes_it_unclear():
    with pytest.raises(BatchUnclear, match="running"):
        found([batch("running", status="in_progress"), batch("theirs")], [("theirs", THEIRS)])
    assert found([batch("running", status="in_progress"), batch("mine")], [("mine", MINE)]) == "mine"


def test_a_batch_whose_results_cannot_be_read_makes_it_unclear():
    gone = httpx.Response(404, json=error(404, "not_found_error")[1])
    with pytest.raises(BatchUnclear):
        found([batch("gone")], **{"gone/results": gone})
    with pytest.raises(BatchUnclear):
        found([batch("empty")], [("empty", [])])
    with pytest.raises(Overloaded):
        found([], **{"": httpx.Response(529, json=error(529, "overloaded_error")[1])})


def test_a_lost_reply_is_found_by_the_next_process(cloudflare):
    cloudflare.fault("anthropic", match="#batches.create", drop=True, after=True, count=1)
    cloudflare.fault("anthropic", batch="hide", polls=1)
    cloudflare.fault("anthropic", batch="hold", polls=1, share=0)
    began, requests = time.time(), chats(3)

    async def lose(backend):
        with pytest.raises(ConnectionFailed):
            await backend.submit_batch(MODEL, requests, NONCE)

    async def find(backend):
        assert await backend.find_batch(MODEL, NONCE, 3, began) is None  # not yet in the list
        assert await backend.find_batch(MODEL, OTHER, 4, began) is None
        with pytest.raises(BatchUnclear):
            await backend.find_batch(MODEL, NONCE, 3, began)
        await asyncio.to_thread(cloudflare.clear_faults)
        deadline = time.monotonic() + 60
        while True:
            try:
                name = await backend.find_batch(MODEL, NONCE, 3, began)
                break
            except BatchUnclear:
                assert time.monotonic() < deadline
        assert await backend.find_batch(MODEL, OTHER, 3, began) is None
        return await polled(backend, name, requests)

    with_local(cloudflare, lose)
    assert texts(with_local(cloudflare, find)) == {number: f"echo: p{number}" for number in range(3)}
    assert cloudflare.stats()["paid"]["calls"] == 3


def test_a_batch_of_this_process_is_known_while_it_runs(cloudflare):
    cloudflare.fault("anthropic", batch="hold", share=0)

    async def act(backend):
        began = time.time()
        name = await backend.submit_batch(MODEL, chats(2), NONCE)
        return name, await backend.find_batch(MODEL, NONCE, 2, began), await backend.find_batch(MODEL, OTHER, 2, began)

    name, mine, theirs = with_local(cloudflare, act)
    assert (mine, theirs) == (name, None)


def test_shares_are_of_requests_and_bytes():
    async def act(backend):
        limits = backend.batch_limits(MODEL)
        small = await backend.batch_share(chats(1)[0])
        large = await backend.batch_share(ChatRequest(MODEL, (Message("user", "x" * 2_560_000),)))
        for wrong in (EmbedRequest(MODEL, ("x",)), RawRequest(MODEL, {"betas": ["b"]}, path="messages")):
            with pytest.raises(InvalidRequest):
                await backend.batch_share(wrong)
        return limits, small, large

    limits, small, large = call(lambda _: None, act)
    assert (limits.items, limits.size, limits.window_s, limits.finds) == (100_000, 256_000_000, 86_400, True)
    assert (small, round(large, 3)) == (1 / 100_000, 0.01)


def test_a_batch_that_nobody_knows_is_a_lines_error(cloudflare):
    with pytest.raises(LineError):
        with_local(cloudflare, lambda backend: backend.poll_batch(MODEL, "msgbatch_none", chats(1), ()))


def test_a_reply_that_is_no_batch_may_be_one():
    with pytest.raises(ConnectionFailed) as caught:
        call(lambda _: httpx.Response(200, json={}), lambda backend: backend.submit_batch(MODEL, chats(1), NONCE))
    assert caught.value.lost
