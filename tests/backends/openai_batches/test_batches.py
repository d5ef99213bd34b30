"""Batches by files: what is handed over, and what comes of it, at services of each shape."""

import asyncio
import json
from pathlib import Path

import httpx
import pytest

from llmdo.backends.errors import (
    BatchUnclear,
    ConnectionFailed,
    InvalidRequest,
    ModelError,
    Overloaded,
    RateLimited,
    Retryable,
)
from llmdo.backends.openai.backend import Service
from llmdo.backends.openai_batches.backend import OpenAIWithBatches
from llmdo.backends.openai_batches.services import BATCH_SERVICES, batch_service
from llmdo.backends.requests import ChatRequest, Message, RawRequest, batch_places
from llmdo.backends.usage import Usage
from tests.backends.openai_batches.batch_host import BatchHost, chat_row, error_row
from tests.backends.wire import Wire

NONCE = "abcdefghijklmnopqrstuvwx26"
URLS = {
    "openai": "https://api.openai.com/v1",
    "together": "https://api.together.xyz/v1",
    "mistral": "https://api.mistral.ai/v1",
    "aibrix": "http://127.0.0.1:8090/v1",
}
SHAPES = pytest.mark.parametrize("shape", URLS)


def chats(count=3, **parameters):
    asked = [(Message("user", "x" * (number + 1)),) for number in range(count)]
    return [ChatRequest("m", messages, parameters, f"line {n} ✓/…") for n, messages in enumerate(asked)]


class World:
    """A service and its adapter, on a clock of their own."""

    def __init__(self, shape="openai", **how):
        self.host = BatchHost("openai" if shape == "aibrix" else shape, **how)
        self.backend = OpenAIWithBatches(
            Service("openai", URLS[shape], {"authorization": "Bearer k"}, "OPENAI_API_KEY"),
            Wire(self.host),
            lambda: self.host.now,
        )

    def submit(self, requests, nonce=NONCE):
        return asyncio.run(self.backend.submit_batch("m", requests, nonce))

    def poll(self, batch, requests, places=None):
        """None while the service works; else the results by position, and the error that ended them."""

        async def look():
            state = await self.backend.poll_batch("m", batch, requests, places or batch_places(requests))
            if state.results is None:
                return None
            found = []
            try:
                async for one in state.results:
                    found.append(one)
            except ModelError as error:
                return dict(found), error
            assert len(dict(found)) == len(found), "each at most once"
            return dict(found), None

        return asyncio.run(look())

    def find(self, nonce=NONCE, since=0.0):
        return asyncio.run(self.backend.find_batch("m", nonce, 3, since))


def texts(results):
    return {number: one.text for number, one in results.items()}


@SHAPES
def test_a_batch_is_uploaded_made_looked_at_and_read(shape):
    states = {"together": ["VALIDATING", "IN_PROGRESS", "COMPLETED"], "mistral": ["QUEUED", "RUNNING", "SUCCESS"]}
    world = World(shape, states=states.get(shape, ["scheduling", "no-such-state", "finalizing", "completed"]))
    requests = chats()
    batch = world.submit(requests)
    (made,), (name, _) = world.host.created, world.host.files["in-0"]
    assert (made["endpoint"], name) == ("/v1/chat/completions", f"llmdo-{NONCE}.jsonl")
    assert made.get("metadata") == (None if shape == "together" else {"llmdo": NONCE})
    lines = world.host.lines()
    assert [line["body"]["messages"][0]["content"] for line in lines] == ["x", "xx", "xxx"]
    assert all(line["custom_id"].isascii() and len(line["custom_id"]) <= 64 for line in lines)
    assert all(("url" in line, "model" in line["body"]) == ((shape != "mistral"),) * 2 for line in lines)
    for _ in world.host.states[1:]:
        assert world.poll(batch, requests) is None
    results, error = world.poll(batch, requests)
    assert (texts(results), error) == ({0: "1", 1: "2", 2: "3"}, None)
    assert (results[0].usage, results[0].request_id) == (Usage(7, 2), f"req-{lines[0]['custom_id']}")
    assert world.host.deleted == ["in-0"], "only what was uploaded, and once it was read"


def test_answers_come_once_whatever_their_order_and_none_that_is_not_of_these_requests():
    world = World()
    other = {"custom_id": "1-deadbeefdeadbeef"}

    def output(lines):
        rows = [chat_row(line) for line in lines]
        return [
            rows[2],
            error_row(lines[0], 500, message="boom"),
            chat_row({**lines[0], **other}),
            rows[0],
            rows[0],
            rows[1],
        ]

    world.host.output = output
    world.host.errors = lambda lines: [error_row(lines[1], 400, message="no")]
    requests = chats()
    batch = world.submit(requests)
    assert texts(world.poll(batch, requests)[0]) == {0: "1", 1: "2", 2: "3"}
    places = batch_places(requests)
    assert texts(world.poll(batch, requests[1:2], places[1:2])[0]) == {0: "2"}, "a part is asked for by its places"


def test_requests_with_equal_or_no_ids_have_names_of_their_own():
    world = World()
    requests = [ChatRequest("m", (Message("user", "x" * number),), {}, "same") for number in range(1, 4)]
    batch = world.submit(requests)
    assert len({line["custom_id"] for line in world.host.lines()}) == 3
    assert texts(world.poll(batch, requests)[0]) == {0: "1", 1: "2", 2: "3"}


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        (lambda line: error_row(line, 429, message="slow down", code="rate_limit_exceeded"), RateLimited),
        (lambda line: error_row(line, 500, message="boom"), Overloaded),
        (lambda line: {**chat_row(line), "response": {"status_code": 0, "body": None}}, Overloaded),
        (lambda line: error_row(line, None, message="odd", code="server_error"), Retryable),
        (lambda line: error_row(line, 400, message="bad temperature", type="invalid_request_error"), InvalidRequest),
        (lambda line: error_row(line, None, code="batch_expired", message="not executed"), None),
        (lambda line: error_row(line, None, code="batch_cancelled", message="not executed"), None),
    ],
)
def test_a_row_with_an_error_is_what_a_calls_refusal_would_be_and_one_that_was_not_run_is_left_out(row, kind):
    world = World(states=["completed"])
    world.host.output = lambda lines: [chat_row(lines[0])]
    world.host.errors = lambda lines: [row(lines[1])]
    requests = chats(2)
    results, error = world.poll(world.submit(requests), requests)
    assert (results.pop(0).text, error) == ("1", None)
    assert [isinstance(one, kind) for one in results.values()] == ([True] if kind else [])
    assert all(one.provider == "openai" for one in results.values())


@pytest.mark.parametrize("state", ["expired", "cancelled", "failed", "EXPIRED", "TIMEOUT_EXCEEDED"])
def test_what_a_batch_answered_before_it_ended_is_taken_and_the_rest_left_out(state, caplog):
    world = World(states=["in_progress", state])
    world.host.output = lambda lines: [chat_row(lines[1])]
    world.host.errors = lambda lines: [error_row(lines[0], None, code="batch_expired", message="not executed")]
    world.host.job = {"errors": {"data": [{"code": "odd", "message": "words of the service", "line": 2}]}}
    requests = chats()
    batch = world.submit(requests)
    assert world.poll(batch, requests) is None
    results, error = world.poll(batch, requests)
    assert (texts(results), error) == ({1: "2"}, None)
    assert f"{state.lower()!r}" in caplog.text
    assert "words of the service" in caplog.text


@pytest.mark.parametrize("how", ["cut", "page", "fewer", "none"])
def test_a_file_that_lacks_answers_is_read_again_and_given_up_after_a_while(how):
    world = World()
    requests = chats()
    batch = world.submit(requests)
    rows = [json.dumps(chat_row(line)).encode() + b"\n" for line in world.host.lines()]
    damaged = {"cut": b"".join(rows)[:-20], "page": b"<html>\n<body>", "fewer": b"".join(rows[:2]), "none": b""}[how]
    world.host.output = lambda lines: damaged
    world.host.job = {"request_counts": {"total": 3, "completed": 3, "failed": 0}} if how != "cut" else {}
    there = {"cut": 2, "page": 0, "fewer": 2, "none": 0}[how]
    done = world.poll(batch, requests)
    if how == "none":
        assert done is None, "its files are not made yet"
    else:
        assert isinstance(done[1], Retryable)
        assert (len(done[0]), done[1].lost) == (there, False)
    assert not world.host.deleted
    world.host.output = lambda lines: b"".join(rows)
    assert len(world.poll(batch, requests)[0]) == 3
    world.host.output = lambda lines: damaged
    world.host.now += 3600
    results, error = world.poll(batch, requests)
    assert (len(results), error) == (there, None), "nobody waits for ever"


def test_a_broken_connection_leaves_what_came_and_is_read_again():
    world = World()
    requests = chats()
    batch = world.submit(requests)
    row = json.dumps(chat_row(world.host.lines()[0])).encode() + b"\n"

    def broken():
        async def pieces():
            yield row
            raise ConnectionResetError("gone")

        return httpx.Response(200, content=pieces())

    world.host.replies["GET", "files/.*/content"] = broken
    results, error = world.poll(batch, requests)
    assert (texts(results), type(error)) == ({0: "1"}, ConnectionFailed)


def test_an_answer_in_json_is_checked_by_its_format():
    world = World()
    requests = chats(2, response_format={"type": "json_object"})

    def output(lines):
        rows = [chat_row(line) for line in lines]
        rows[0]["response"]["body"]["choices"][0]["message"]["content"] = '```json\n{"a": 1}\n```'
        rows[1]["response"]["body"]["choices"][0]["message"]["content"] = "Sure!"
        return rows

    world.host.output = output
    results, _ = world.poll(world.submit(requests), requests)
    assert results[0].text == '{"a": 1}'
    assert (type(results[1]), results[1].usage, results[1].lost) == (Retryable, Usage(7, 2), False)


def test_responses_have_a_batch_of_their_own_route():
    world = World()
    asked = RawRequest("m", {"input": "hi"}, "a", "responses")
    item = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Yes."}]}
    body = {"id": "r", "object": "response", "status": "completed", "model": "m", "output": [item]}
    body |= {"usage": {"input_tokens": 3, "output_tokens": 1}}
    world.host.output = lambda lines: [
        {"custom_id": line["custom_id"], "response": {"status_code": 200, "body": body}} for line in lines
    ]
    results, _ = world.poll(world.submit([asked]), [asked])
    assert world.host.created[0]["endpoint"] == world.host.lines()[0]["url"] == "/v1/responses"
    assert (results[0].result["output"][0]["content"][0]["text"], results[0].usage) == ("Yes.", Usage(3, 1))
    with pytest.raises(InvalidRequest, match="one route"):
        world.submit([asked, *chats(1)])
    with pytest.raises(InvalidRequest, match="Together takes no batches of /v1/responses"):
        World("together").submit([asked])


# Handing over.


@pytest.mark.parametrize("status", [404, 405, 501])
def test_a_server_without_batches_says_so(status):
    world = World("aibrix")
    world.host.replies["POST", "files"] = httpx.Response(status, json={"detail": "Not Found"})
    with pytest.raises(InvalidRequest, match="has no Batch API"):
        world.submit(chats())


def test_what_fails_before_the_batch_is_made_costs_nothing_and_what_fails_then_may():
    world = World()
    world.host.replies["POST", "files"] = httpx.Response(500, text="oh")
    with pytest.raises(Overloaded) as failed:
        world.submit(chats())
    assert failed.value.lost is False
    world.host.replies = {("POST", "batches"): httpx.Response(200, json={"id": 3, "odd": True})}
    with pytest.raises(ConnectionFailed) as failed:
        world.submit(chats())
    assert failed.value.lost is True
    assert not world.host.deleted
    world.host.replies = {
        ("POST", "batches"): httpx.Response(400, json={"error": {"message": "the endpoint is not allowed"}})
    }
    with pytest.raises(InvalidRequest):
        world.submit(chats())
    assert world.host.deleted == ["in-1"]


def test_a_limit_of_waiting_tokens_is_learnt_from_its_refusal(caplog):
    world = World(states=["validating", "failed"])
    words = "Enqueued token limit reached for m in organization o. Limit: 90 enqueued tokens. Please try again once"
    world.host.job = {"errors": {"data": [{"code": "token_limit_exceeded", "message": words}]}}
    world.host.output = lambda lines: b""
    requests = [ChatRequest("m", (Message("user", "x" * 200),), {}, f"{number}") for number in range(2)]
    batch = world.submit(requests)
    assert asyncio.run(world.backend.batch_share(requests[0])) < 0.001
    assert world.poll(batch, requests) is None
    results, error = world.poll(batch, requests)
    assert ([type(one) for one in results.values()], error) == ([RateLimited] * 2, None), "to be handed over later"
    assert "of 90 tokens at most" in caplog.text
    assert asyncio.run(world.backend.batch_share(requests[0])) == pytest.approx(50 / 90)
    world.submit(requests[:1])
    with pytest.raises(RateLimited, match="at most 90 may") as refused:
        world.submit(requests[1:], "other")
    assert (refused.value.lost, refused.value.retry_after > 0, len(world.host.batches)) == (False, True, 2)


# Found again.


@SHAPES
def test_a_batch_is_found_by_its_nonce_and_none_is_where_there_is_none(shape):
    world = World(shape)
    assert world.find() is None
    world.submit(chats(), "another1another2another3an")
    assert world.find() is None
    batch = world.submit(chats())
    world.host.now += 60
    for number in range(0 if shape == "together" else 205):
        world.host.batches[f"c{number}"] = {**world.host.created[0], "created": world.host.now}
    assert world.find(since=world.host.now - 60) == batch


def test_metadata_that_got_lost_is_made_up_for_by_the_files_name():
    world = World("aibrix")
    world.host.now = 1e6
    for nonce in ("one", NONCE):
        world.submit(chats(), nonce)
    for batch in world.host.batches.values():
        batch["metadata"] = None
    world.host.batches["old"] = {**world.host.created[0], "input_file_id": "gone", "created": 5, "metadata": None}
    assert world.find(since=1e6) == "b/1"
    assert world.find("missing", since=1e6) is None, "what is older is not looked at"
    world.host.batches["b/0"]["input_file_id"] = "gone"
    with pytest.raises(BatchUnclear, match="b/0"):
        world.find("missing", since=1e6)


def test_a_batch_that_was_refused_whole_is_none():
    world = World()
    world.submit(chats())
    world.host.job = {"status": "failed"}
    world.host.output = lambda lines: b""
    assert world.find() is None


@pytest.mark.parametrize(
    "reply", [httpx.Response(404, json={"detail": "Not Found"}), httpx.Response(200, json={"id": 1})]
)
def test_where_batches_are_not_listed_nobody_can_tell(reply):
    world = World("aibrix")
    world.host.replies["GET", "batches"] = reply
    with pytest.raises(BatchUnclear):
        world.find()


def test_a_list_without_an_end_tells_nothing():
    world = World()
    world.submit(chats(), "another")
    entry = {"id": "b", "status": "completed", "metadata": {"llmdo": "another"}}
    world.host.replies["GET", "batches"] = httpx.Response(200, json={"data": [entry], "has_more": True})
    with pytest.raises(BatchUnclear):
        world.find()


def test_a_cancelled_batch_is_looked_at_until_its_answers_are_there():
    world = World(states=["in_progress"])
    requests = chats()
    batch = world.submit(requests)
    asyncio.run(world.backend.cancel_batch("m", batch))
    world.host.output = lambda lines: [chat_row(lines[0])]
    assert texts(world.poll(batch, requests)[0]) == {0: "1"}


# The table.


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://api.openai.com/v1", "OpenAI"),
        ("https://eu.api.openai.com/v1", "OpenAI"),
        ("https://api.groq.com/openai/v1", "Groq"),
        ("https://api.together.ai/v1", "Together"),
        ("https://api.mistral.ai/v1", "Mistral"),
        ("https://api.doubleword.ai/v1", "Doubleword"),
        ("https://not-api.openai.com.example.com/v1", "other services"),
        ("http://127.0.0.1:8090/v1", "other services"),
    ],
)
def test_a_service_is_known_by_its_host(url, name):
    assert batch_service(url).name == name


def test_limits_are_those_of_the_row_and_shares_those_of_the_limits():
    for row in BATCH_SERVICES:
        assert 0 < row.size <= 200_000_000
        assert row.source
    world = World()
    limits = world.backend.batch_limits("m")
    assert (limits.items, limits.size, limits.window_s, limits.finds) == (50_000, 200_000_000, 86_400, True)
    assert asyncio.run(world.backend.batch_share(chats(1)[0])) == 1 / 50_000
    large = ChatRequest("m", (Message("user", "x" * 2_000_000),), {}, "a")
    assert asyncio.run(world.backend.batch_share(large)) == pytest.approx(0.01, rel=0.01)


def test_the_documents_have_the_table():
    by = {True: "its metadata", False: "its file's name", None: "its metadata, or its file's name"}
    page = (Path(__file__).parents[3] / "docs" / "models.md").read_text()
    for row in BATCH_SERVICES:
        hosts = ", ".join(f"`{host}`" for host in row.hosts) or "any other"
        routes = ", ".join(f"`{route.removeprefix('/v1/')}`" for route in sorted(row.routes))
        most = f"{row.items:,} requests, {row.size // 1_000_000} MB"
        cells = (row.name, hosts, most, f"{row.window_s / 3600:.0f} h", routes, by[row.keeps_metadata], row.source)
        assert f"| {' | '.join(cells)} |" in page
