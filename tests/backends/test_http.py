import asyncio
import socket

import httpx
import pytest

from backends.errors import CallTimeout, ConnectionFailed
from backends.http import CONNECTIONS, network_errors, next_midnight_utc, open_client, retry_after_s

NOW = 1_795_262_400.0  # 2026-11-21 12:00:00 UTC


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("7", 7.0),
        ("1.5", 1.5),
        ("0", 0.0),
        ("-3", 0.0),
        ("Sat, 21 Nov 2026 12:00:30 GMT", 30.0),
        ("Sat, 21 Nov 2026 11:00:00 GMT", 0.0),
        ("soon", None),
        ("inf", None),
        ("nan", None),
        ("", None),
    ],
)
def test_retry_after_is_read_as_seconds_or_as_a_date(text, seconds):
    assert retry_after_s(httpx.Headers({"retry-after": text}), NOW) == seconds


def test_no_retry_after_is_none():
    assert retry_after_s({}, NOW) is None


def test_the_day_ends_at_midnight_utc():
    assert next_midnight_utc(NOW) == NOW + 12 * 3600
    assert next_midnight_utc(NOW + 12 * 3600) == NOW + 36 * 3600


@pytest.mark.parametrize(
    ("raised", "kind"),
    [
        (httpx.ConnectError("refused"), ConnectionFailed),
        (httpx.ConnectTimeout(""), ConnectionFailed),
        (httpx.ReadTimeout(""), CallTimeout),
        (httpx.ReadError("reset"), ConnectionFailed),
        (httpx.RemoteProtocolError("no HTTP"), ConnectionFailed),
        (httpx.DecodingError("bad gzip"), ConnectionFailed),
        (ConnectionResetError("reset"), ConnectionFailed),
    ],
)
def test_what_httpx_raises_becomes_an_error_of_ours(raised, kind):
    with pytest.raises(kind) as caught, network_errors("workers-ai", "https://api.example/ai"):
        raise raised
    assert caught.value.provider == "workers-ai"
    assert "example" in caught.value.message


def test_other_errors_pass_through():
    with pytest.raises(KeyError), network_errors("workers-ai", "https://api.example"):
        raise KeyError("a bug of ours")


async def _get(url):
    async with open_client({}) as client:
        with network_errors("workers-ai", url):
            return await client.get(url)


def test_a_refused_connection_is_a_failed_connection():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/"
        with pytest.raises(ConnectionFailed, match=r"127\.0\.0\.1 could not be reached"):
            asyncio.run(_get(url))


@pytest.mark.parametrize(
    "sent", [b"", b"no HTTP at all\r\n\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\nshort"]
)
def test_a_broken_reply_is_a_failed_connection(sent):
    async def scenario():
        async def answer(reader, writer):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(sent)
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        async with server:
            await _get(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/")

    with pytest.raises(ConnectionFailed):
        asyncio.run(scenario())


def test_the_client_keeps_no_cookies_and_has_room_for_the_widest_window():
    async def scenario():
        client = open_client({}, httpx.MockTransport(lambda _: httpx.Response(200, headers={"set-cookie": "a=b"})))
        async with client:
            await client.get("https://api.example/")
            return list(client.cookies.jar), (await client.get("https://api.example/")).request.headers

    cookies, headers = asyncio.run(scenario())
    assert cookies == []
    assert "cookie" not in headers
    assert CONNECTIONS >= 256


def test_more_connections_than_httpx_would_allow_are_open_at_once():
    """httpx's own limit is 100; aiohttp's connector gets ours."""
    at_once = 150

    async def scenario():
        most = now = 0
        everybody = asyncio.Event()

        async def answer(reader, writer):
            nonlocal most, now
            await reader.readuntil(b"\r\n\r\n")
            now += 1
            most = max(most, now)
            if now == at_once:
                everybody.set()
            await everybody.wait()
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        async with server, open_client({}) as client, asyncio.timeout(30):
            await asyncio.gather(*(client.get(url) for _ in range(at_once)))
        return most

    assert asyncio.run(scenario()) == at_once
