"""Which failed calls may be billed: those that were sent and not refused."""

import asyncio
import pickle
import socket
from types import SimpleNamespace

import aiohttp
import pytest
from yarl import URL

from llmdo.backends.errors import (
    BadReply,
    BudgetSpent,
    CallTimeout,
    ConnectionFailed,
    ContentFiltered,
    InvalidRequest,
    Overloaded,
    ProviderUnusable,
    RateLimited,
    Retryable,
    StopRun,
    StreamError,
)
from llmdo.backends.http.client import Call, Network
from llmdo.backends.http.network_errors import network_errors
from llmdo.backends.money.billing import maybe_billed
from llmdo.backends.openai import errors as openai_errors
from llmdo.backends.usage import Usage
from llmdo.backends.workers_ai import errors as workers_ai_errors
from tests.backends.http.test_client import serving


@pytest.mark.parametrize(
    ("error", "billed"),
    [
        (CallTimeout("no answer"), True),
        (ConnectionFailed("broke off"), True),
        (ConnectionFailed("not reached", lost=False), False),
        (StreamError("broke off"), True),
        (Retryable("an item that the batch has lost"), True),
        (Retryable("the answer is no JSON", status=400, code=5024), True),
        (BadReply("no shape", status=200), True),
        (BadReply("unexpected"), True),
        (BadReply("redirects elsewhere", status=302), False),
        (BadReply("two vectors for one text", usage=Usage(3)), False),
        (BadReply("no JSON, and the second call was lost", usage=Usage(3), lost=True), True),
        (ContentFiltered("withheld"), True),
        (ContentFiltered("the prompt", status=400), False),
        (Overloaded("failed", status=500), True),
        (Overloaded("out of capacity", status=429, code=3040), False),
        (Overloaded("out of capacity, in a stream", status=200, code=3040), False),
        (RateLimited("slower", status=429), False),
        (InvalidRequest("no", status=400), False),
        (ProviderUnusable("no", status=401), False),
        (BudgetSpent("no"), False),
    ],
    ids=lambda value: getattr(value, "message", None),
)
def test_a_call_may_be_billed_where_it_was_sent_and_not_refused(error, billed):
    assert maybe_billed(error) is billed
    assert maybe_billed(pickle.loads(pickle.dumps(error))) is billed


HERE = SimpleNamespace(host="api.example", port=443, is_ssl=True, ssl=True)
STATUSES = {
    **dict.fromkeys((400, 401, 402, 403, 404, 409, 410, 413, 422, 429, 498, 503, 529), False),
    **dict.fromkeys((408, 500, 502, 504, 520, 522, 524), True),
}


@pytest.mark.parametrize("status", STATUSES)
def test_of_an_http_error_its_status_says_whether_a_model_may_have_worked(status):
    for error in (
        openai_errors.refusal(status, {}, {"error": {"message": "no"}}, "m", "openai", "KEY", 0.0),
        openai_errors.refusal(status, {}, "<html>no</html>", "m", "openai", "KEY", 0.0),
        workers_ai_errors.refusal(status, {}, {"errors": [{"message": "no"}]}, "m", 0.0),
        workers_ai_errors.refusal(status, {}, "<html>no</html>", "m", 0.0),
    ):
        assert maybe_billed(error) is STATUSES[status], repr(error)


@pytest.mark.parametrize(
    ("code", "status", "billed"),
    [(3007, 408, True), (3046, 408, True), (3030, 400, True), (2017, 424, True), (5024, 400, True), (5021, 413, False)],
)
def test_of_workers_ai_the_code_says_more_than_the_status(code, status, billed):
    body = {"errors": [{"code": code, "message": "no"}]}
    assert maybe_billed(workers_ai_errors.refusal(status, {}, body, "m", 0.0)) is billed


@pytest.mark.parametrize(
    ("raised", "billed"),
    [
        (aiohttp.ConnectionTimeoutError("no answer"), False),
        (aiohttp.ClientConnectorDNSError(HERE, OSError(1, "no such host")), False),
        (aiohttp.ClientConnectorCertificateError(HERE, OSError(1, "self-signed")), False),
        (aiohttp.ServerDisconnectedError(), True),
        (aiohttp.ClientPayloadError("cut off"), True),
        (aiohttp.SocketTimeoutError("silent"), True),
        (ConnectionResetError("reset"), True),
        (BrokenPipeError("while it was sent"), True),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_connection_that_was_never_made_is_not_billed(raised, billed):
    with pytest.raises((ConnectionFailed, CallTimeout, StopRun)) as caught, network_errors("https://api.example"):
        raise raised
    assert maybe_billed(caught.value) is billed


async def failure_of(url):
    network = Network(url)
    try:
        with pytest.raises((ConnectionFailed, CallTimeout)) as caught, network_errors(url):
            await network.send(Call("POST", URL(url), {}, b"{}"))
    finally:
        await network.aclose()
    return caught.value


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_nothing_is_billed_where_nobody_listens_or_speaks_tls(scheme):
    async def scenario():
        if scheme == "https":
            async with serving(lambda head: b"not TLS") as url:
                return await failure_of(url.replace("http:", "https:"))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            return await failure_of(f"http://127.0.0.1:{free.getsockname()[1]}")

    assert not maybe_billed(asyncio.run(scenario()))


def test_nothing_is_billed_where_the_proxy_makes_no_tunnel(monkeypatch):
    async def scenario():
        async with serving(lambda head: b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n") as url:
            monkeypatch.setenv("https_proxy", url)
            monkeypatch.delenv("no_proxy", raising=False)
            return await failure_of("https://elsewhere.example")

    error = asyncio.run(scenario())
    assert "the proxy does not connect to elsewhere.example" in error.message
    assert not maybe_billed(error)


@pytest.mark.parametrize("reply", [b"", b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\nshort"])
def test_a_reply_that_is_lost_on_its_way_may_be_billed(reply):
    async def scenario():
        async with serving(lambda head: reply) as url:
            return await failure_of(url)

    assert maybe_billed(asyncio.run(scenario()))
