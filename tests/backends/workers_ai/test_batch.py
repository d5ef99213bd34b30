"""The asynchronous batch API: bodies and replies as documented and as users report them."""

import asyncio
import json

import httpx
import pytest

from llmdo.backends.backend import BatchBackend
from llmdo.backends.errors import (
    BadReply,
    ContentFiltered,
    ContextOverflow,
    InvalidRequest,
    Overloaded,
    Retryable,
)
from llmdo.backends.requests import ChatRequest, EmbedRequest, Message, RawRequest, batch_places
from llmdo.backends.responses import BatchState
from llmdo.backends.usage import Usage
from llmdo.backends.workers_ai.backend import WorkersAI
from llmdo.backends.workers_ai.batch import MAX_BYTES
from llmdo.settings.environment import CloudflareAccount
from tests.backends.wire import Wire

LLAMA = "@cf/meta/llama-3.3-70b-instruct-fp8-fast"
GEMMA = "@cf/google/gemma-4-26b-a4b-it"
BGE = "@cf/baai/bge-m3"


def chat(text, request_id="", model=LLAMA, **parameters):
    return ChatRequest(model, (Message("user", text),), parameters, request_id)


THREE = [chat("a", "id-a"), chat("b", "id-b"), chat("c", "id-c")]


def ok(result, status=200):
    return httpx.Response(status, json={"result": result, "success": True, "errors": [], "messages": []})


class Service:
    def __init__(self, reply):
        self.reply = reply
        self.requests = []
        account = CloudflareAccount("0" * 32, "the-token")
        self.backend = WorkersAI(account, Wire(self.answer), clock=lambda: 0.0)

    def answer(self, request):
        self.requests.append(request)
        return self.reply


def submit(requests, reply, model=LLAMA):
    service = Service(reply)
    return asyncio.run(service.backend.submit_batch(model, requests)), service.requests


def poll(requests, result, model=LLAMA):
    reply = result if isinstance(result, httpx.Response) else ok(result)
    return results_of(Service(reply).backend.poll_batch(model, "batch-1", requests))


def results_of(polled):
    """All results of a poll, in the order of the requests; None while the service works on the batch."""

    async def collected():
        results = (await polled).results
        return None if results is None else dict([one async for one in results])

    found = asyncio.run(collected())
    return None if found is None else [found[number] for number in range(len(found))]


def item(number, text, reference=None, **more):
    result = {"response": text, "usage": {"prompt_tokens": 1, "completion_tokens": 2}}
    return {"id": number, "result": result, "success": True, "external_reference": reference, **more}


def texts(state):
    return [one if isinstance(one, Exception) else one.text for one in state]


def test_a_backend_of_workers_ai_takes_batches():
    assert isinstance(Service(ok({})).backend, BatchBackend)


@pytest.mark.parametrize("status", [200, 202])
def test_requests_are_handed_over_with_their_ids_in_the_query_that_queues(status):
    requests = [chat("a", "id-a", temperature=0), chat("b", "id-b")]
    name, (sent,) = submit(requests, ok({"status": "queued", "request_id": "batch-1", "model": LLAMA}, status))
    assert name == "batch-1"
    assert sent.url.raw_path == f"/client/v4/accounts/{'0' * 32}/ai/run/{LLAMA}?queueRequest=true".encode()
    body = json.loads(sent.content)
    assert body == {
        "requests": [
            {"messages": [{"role": "user", "content": "a"}], "max_tokens": 2048, "temperature": 0,
             "external_reference": "id-a"},
            {"messages": [{"role": "user", "content": "b"}], "max_tokens": 2048, "external_reference": "id-b"},
        ]
    }  # fmt: skip


@pytest.mark.parametrize("ids", [("", ""), ("same", "same"), ("one", "")])
def test_requests_whose_ids_do_not_tell_them_apart_go_by_number(ids):
    _, (sent,) = submit([chat("a", ids[0]), chat("b", ids[1])], ok({"request_id": "batch-1"}))
    assert [one["external_reference"] for one in json.loads(sent.content)["requests"]] == ["0", "1"]


def test_embeddings_and_other_inputs_can_be_handed_over():
    _, (sent,) = submit([EmbedRequest(BGE, ("a", "b"), request_id="x")], ok({"request_id": "n"}), BGE)
    assert json.loads(sent.content) == {"requests": [{"text": ["a", "b"], "external_reference": "x"}]}
    raw = RawRequest("@cf/meta/m2m100-1.2b", {"text": "a", "target_lang": "fr"}, "y")
    _, (sent,) = submit([raw], ok({"request_id": "n"}), raw.model)
    assert json.loads(sent.content) == {"requests": [{"text": "a", "target_lang": "fr", "external_reference": "y"}]}


def test_ten_megabytes_are_refused_before_the_call():
    service = Service(ok({"request_id": "n"}))
    with pytest.raises(InvalidRequest, match="hand over fewer") as caught:
        asyncio.run(service.backend.submit_batch(LLAMA, [chat("x" * MAX_BYTES)]))
    assert (caught.value.code, service.requests) == (3006, [])


def test_a_model_that_answers_at_once_takes_no_batches():
    with pytest.raises(BadReply, match="does not take batches"):
        submit(THREE, ok({"response": "Hi"}))


@pytest.mark.parametrize(("status", "kind"), [(400, InvalidRequest), (429, Overloaded)])
def test_a_refusal_is_the_error_that_a_call_would_get(status, kind):
    code = {400: 5006, 429: 3040}[status]
    with pytest.raises(kind):
        submit(THREE, httpx.Response(status, json={"success": False, "errors": [{"code": code, "message": "m"}]}))


def test_a_poll_sends_the_batchs_name_to_the_same_address():
    service = Service(ok({"status": "running", "request_id": "batch-1"}))
    assert asyncio.run(service.backend.poll_batch(LLAMA, "batch-1", THREE)) == BatchState(None)
    (sent,) = service.requests
    assert sent.url.query == b"queueRequest=true"
    assert json.loads(sent.content) == {"request_id": "batch-1"}


@pytest.mark.parametrize("status", ["queued", "running", "QUEUED"])
def test_a_batch_that_is_worked_on_has_no_results(status):
    assert poll(THREE, {"status": status, "request_id": "batch-1"}) is None


@pytest.mark.parametrize(
    "result",
    [
        {"responses": [item(2, "C", "id-c"), item(0, "A", "id-a"), item(1, "B", "id-b")]},
        {"responses": [item(2, "C"), item(0, "A"), item(1, "B")]},  # references come back as null
        {"responses": [item(2, "C", "theirs"), item(0, "A", 0), item(1, "B", ["x"])]},  # references that are not ours
        {"responses": [item(7, "C", "id-c"), item(7, "A", "id-a"), item(7, "B", "id-b")]},
        {"responses": [{"id": n, "success": True, "result": {"result": {"response": t}}} for n, t in
                       ((2, "C"), (0, "A"), (1, "B"))]},
        {"results": [{"index": n, "success": True, "result": {"response": t}} for n, t in
                     ((1, "B"), (0, "A"), (2, "C"))]},
        {"results": [{"id": f"resp_{t}", "object": "response", "status": "completed", "error": None,
                      "output": [{"type": "message", "content": [{"type": "output_text", "text": t}]}]}
                     for t in "ABC"]},
        {"status": "done", "responses": [item(0, "A"), item(1, "B"), item(2, "C")]},
    ],
)  # fmt: skip
def test_items_of_every_shape_find_their_requests(result):
    assert texts(poll(THREE, result)) == ["A", "B", "C"]


def test_a_reference_that_stands_twice_says_nothing():
    first, second, third = texts(poll(THREE, {"responses": [item(0, "A", "id-a"), item(1, "B", "id-a")]}))
    assert all(isinstance(one, Retryable) for one in (first, second, third))


def test_an_item_that_is_missing_is_to_be_asked_for_alone():
    a, b, c = texts(poll(THREE, {"responses": [item(2, "C", "id-c"), item(0, "A", "id-a")]}))
    assert (a, c) == ("A", "C")
    assert type(b) is Retryable
    assert "ask for it alone" in str(b)


@pytest.mark.parametrize(
    ("failed", "kind"),
    [
        ({"error": {"code": 3040, "message": "m"}}, Overloaded),
        ({"errors": [{"code": 3030, "message": "m"}]}, ContentFiltered),
        ({"error": "AiError: 3030: flagged"}, ContentFiltered),
        ({"result": {"error": {"code": 3030, "message": "m"}}}, ContentFiltered),
        ({"result": {"errors": [{"code": 3030, "message": "m"}]}}, ContentFiltered),
        ({"error": "nobody knows"}, Retryable),
        ({}, Retryable),
        ({"result": None}, Retryable),
    ],
)
def test_an_item_that_failed_is_its_own_error_and_the_others_are_answers(failed, kind):
    result = {"responses": [item(0, "A", "id-a"), {"id": 1, "success": False, **failed}, item(2, "C", "id-c")]}
    a, b, c = texts(poll(THREE, result))
    assert (a, c) == ("A", "C")
    assert type(b) is kind


@pytest.mark.parametrize(("limit", "kind"), [({}, Retryable), ({"max_tokens": 9000}, ContextOverflow)])
def test_an_overflow_that_our_own_limit_made_is_to_be_asked_for_alone(limit, kind):
    failed = {"id": 0, "success": False, "error": {"code": 5021, "message": "tokens (9) … limit (8)"}}
    (error,) = poll([chat("a", **limit)], {"responses": [failed]})
    assert type(error) is kind


def test_an_answer_that_is_none_is_that_items_error():
    (error,) = poll([chat("a")], {"responses": [{"id": 0, "success": True, "result": {"label": "x"}}]})
    assert type(error) is BadReply


def test_an_answer_that_breaks_the_schema_is_to_be_asked_for_alone():
    wanted = {"type": "json_schema", "json_schema": {"type": "object", "required": ["a"]}}
    requests = [chat("a", response_format=wanted), chat("b", response_format=wanted)]
    good, bad = poll(requests, {"responses": [item(0, {"a": 1}), item(1, {"b": 1})]})
    assert good.text == '{"a":1}'
    assert (type(bad), bad.code, bad.usage) == (Retryable, 5024, Usage(1, 2))


def test_a_request_whose_schema_cannot_be_used_has_no_share():
    wanted = {"type": "json_schema", "json_schema": {"pattern": "(?=a)"}}
    with pytest.raises(InvalidRequest, match="without look-around"):
        asyncio.run(Service(ok({})).backend.batch_share(chat("a", response_format=wanted)))


def test_each_item_has_its_own_usage_and_warnings():
    state = poll([chat("a", stop=["."])], {"responses": [item(0, "A")], "usage": {"prompt_tokens": 99}})
    (answer,) = state
    assert answer.usage == Usage(1, 2)
    assert answer.warnings == (f"stop was left out: {LLAMA} cannot use it",)


def test_a_usage_that_only_the_batch_tells_is_shared_out_among_the_answers():
    plain = [{"id": n, "success": True, "result": {"response": t}} for n, t in enumerate("AB")]
    state = poll(THREE, {"responses": plain, "usage": {"prompt_tokens": 11, "completion_tokens": 5}})
    answers = state[:2]
    assert sum(one.usage.input_tokens for one in answers) == 11
    assert sum(one.usage.output_tokens for one in answers) == 5
    assert all(one.usage.input_tokens for one in answers)


def test_vectors_and_raw_results_are_read():
    texts_ = EmbedRequest(BGE, ("a", "b"))
    (vectors,) = poll([texts_], {"responses": [{"id": 0, "success": True, "result": {"data": [[1], [2]]}}]}, BGE)
    assert vectors.vectors == ((1.0,), (2.0,))
    raw = RawRequest("@cf/meta/m2m100-1.2b", {"text": "a"})
    result = {"responses": [{"id": 0, "success": True, "result": {"translated_text": "b"}}]}
    assert poll([raw], result, raw.model)[0].result == {"translated_text": "b"}


@pytest.mark.parametrize("status", ["failed", "error", "cancelled"])
def test_a_batch_that_failed_as_a_whole_is_to_be_asked_for_one_by_one(status):
    results = poll(THREE, {"status": status})
    assert [type(one) for one in results] == [Overloaded] * 3
    assert repr(status) in str(results[0])


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (
            httpx.Response(500, json={"success": False, "errors": [{"code": 5001, "message": "batch failed"}]}),
            Overloaded,
        ),
        (httpx.Response(404, json={"success": False, "errors": [{"code": 5006, "message": "no id"}]}), InvalidRequest),
        (httpx.Response(502, html="<h1>502</h1>"), Overloaded),
        (ok({}), BadReply),
        (ok(None), BadReply),
    ],
)
def test_a_poll_that_says_nothing_of_the_batch_raises(reply, kind):
    with pytest.raises(kind):
        poll(THREE, reply)


@pytest.mark.parametrize(
    ("items", "kinds"),
    [
        ([None, 7, "x"], [Retryable] * 3),
        ([{"id": -1, "success": True}, {"id": 9, "success": True}, {"id": "x", "success": True}], [Retryable] * 3),
        ([{"id": 0, "success": True, "result": []}], [BadReply, Retryable, Retryable]),
    ],
)
def test_malformed_items_never_crash(items, kinds):
    assert [type(one) for one in poll(THREE, {"responses": items})] == kinds


def test_the_catalogue_says_who_takes_batches_and_before_it_is_read_the_name_does():
    entries = [{"name": "@cf/x/new", "properties": [{"property_id": "async_queue", "value": "true"}]},
               {"name": "@cf/x/old", "properties": []}]  # fmt: skip
    backend = Service(ok(entries)).backend
    assert [backend.takes_batches(model) for model in (LLAMA, "@cf/x/new", "@cf/x/old")] == [True, False, False]
    asyncio.run(backend.list_models())
    assert [backend.takes_batches(model) for model in (LLAMA, "@cf/x/new", "@cf/x/old")] == [True, True, False]


def poll_part(requests, numbers, result):
    """Polls for those of the requests with these numbers."""
    places, reply = batch_places(requests), ok(result)
    part = [requests[number] for number in numbers]
    polled = Service(reply).backend.poll_batch(LLAMA, "batch-1", part, [places[number] for number in numbers])
    return results_of(polled)


@pytest.mark.parametrize("ids", [("id-a", "id-b", "id-c"), ("", "", ""), ("same", "same", "same")])
@pytest.mark.parametrize("numbers", [[1], [2, 0], [0, 1, 2]])
@pytest.mark.parametrize("shape", ["references", "ids", "index"])
def test_a_part_of_a_batch_gets_its_own_items(ids, numbers, shape):
    requests = [chat(text, request_id) for text, request_id in zip("abc", ids, strict=True)]
    texts_ = list(enumerate("ABC"))[::-1]
    if shape == "index":
        result = {"results": [{"index": n, "success": True, "result": {"response": t}} for n, t in texts_]}
    else:
        given = [place.reference for place in batch_places(requests)] if shape == "references" else [None] * 3
        result = {"responses": [item(n, t, given[n]) for n, t in texts_]}
    assert texts(poll_part(requests, numbers, result)) == ["ABC"[number] for number in numbers]


def test_an_item_of_a_request_that_is_not_asked_for_is_never_taken_for_another():
    # Its id, which is wrong here, would say that it is ours.
    result = {"responses": [item(1, "C", "id-c"), item(0, "A", "id-a")]}
    a, b = texts(poll_part(THREE, [0, 1], result))
    assert a == "A"
    assert type(b) is Retryable


@pytest.mark.parametrize(("count", "kinds"), [(3, [str, str, str]), (2, [Retryable] * 3)])
def test_items_that_only_their_order_tells_apart_are_used_only_if_all_are_there(count, kinds):
    items = [{"id": f"resp_{t}", "object": "response", "status": "completed",
              "output": [{"type": "message", "content": [{"type": "output_text", "text": t}]}]}
             for t in "ABC"[:count]]  # fmt: skip
    assert [type(one) for one in texts(poll(THREE, {"results": items}))] == kinds


def test_a_part_gets_its_part_of_a_usage_that_only_the_batch_tells():
    plain = [{"id": n, "success": True, "result": {"response": t}} for n, t in enumerate("ABC")]
    whole = {"responses": plain, "usage": {"prompt_tokens": 30, "completion_tokens": 6}}
    parts = [poll_part(THREE, [0, 1], whole), poll_part(THREE, [2], whole)]
    assert [sum(one.usage.input_tokens for one in part) for part in parts] == [20, 10]
    assert [sum(one.usage.output_tokens for one in part) for part in parts] == [4, 2]


@pytest.mark.parametrize("ids", ["", "id-{:03}", "the same", "ü\n\n\n\n\n\n\n\n-{:03}"])
def test_requests_whose_shares_are_a_whole_batch_at_most_can_be_handed_over(ids):
    service = Service(ok({"request_id": "n"}))
    requests = [chat("x" * 90_000, ids.format(number)) for number in range(200)]
    share, most = asyncio.run(service.backend.batch_share(requests[0])), 0
    while (most + 1) * share <= 1:
        most += 1
    assert asyncio.run(service.backend.submit_batch(LLAMA, requests[:most])) == "n"
    with pytest.raises(InvalidRequest):
        asyncio.run(service.backend.submit_batch(LLAMA, requests[: most + 2]))


def test_the_shares_of_requests_are_never_less_than_what_is_sent():
    for ids in ("", "id-{}", "the same"):
        requests = [chat("x", ids.format(number)) for number in range(300)]
        _, (sent,) = submit(requests, ok({"request_id": "n"}))
        shares = sum(asyncio.run(Service(ok({})).backend.batch_share(request)) for request in requests)
        assert len(sent.content) <= shares * MAX_BYTES


def test_a_request_that_cannot_be_sent_has_no_share():
    with pytest.raises(InvalidRequest):
        asyncio.run(Service(ok({})).backend.batch_share(chat("half a pair \ud800")))


@pytest.mark.parametrize("of_batch", [False, True])
def test_without_requests_all_that_a_batch_has_is_counted(of_batch):
    used = {"usage": {"prompt_tokens": 30, "completion_tokens": 6}}
    items = [item(n, text, f"id-{n}") for n, text in enumerate("ABC")]
    for one in items:
        one["result"] |= {"usage": {} if of_batch else {"prompt_tokens": 10, "completion_tokens": 2}}
    found = poll([], {"responses": items, **(used if of_batch else {})})
    assert len(found) == 3
    assert sum(one.usage.input_tokens for one in found) == 30
    assert sum(one.usage.output_tokens for one in found) == 6
