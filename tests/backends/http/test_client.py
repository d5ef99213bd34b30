import asyncio
import contextlib
import gzip
import socket
import sys
import tracemalloc
import warnings
import zlib
from tempfile import TemporaryFile

import aiohttp
import httpx
import pytest
import zstandard
from yarl import URL

from llmdo.backends.errors import BadReply, CallTimeout, ConnectionFailed, StopRun
from llmdo.backends.http import client as http
from llmdo.backends.http.base_url import base_url
from llmdo.backends.http.client import Call, Network, next_midnight_utc, retry_after_s
from llmdo.backends.http.network_errors import network_errors

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
        (aiohttp.ConnectionTimeoutError("no answer"), ConnectionFailed),
        (aiohttp.ClientConnectionError("refused"), ConnectionFailed),
        (aiohttp.ServerDisconnectedError(), ConnectionFailed),
        (aiohttp.ClientPayloadError("bad gzip"), ConnectionFailed),
        (aiohttp.SocketTimeoutError("silent"), CallTimeout),
        (TimeoutError(), CallTimeout),
        (ConnectionResetError("reset"), ConnectionFailed),
    ],
)
def test_what_aiohttp_raises_becomes_an_error_of_ours(raised, kind):
    with pytest.raises(kind) as caught, network_errors("https://api.example/ai"):
        raise raised
    assert "example" in caught.value.message


def test_other_errors_pass_through():
    with pytest.raises(KeyError), network_errors("https://api.example"):
        raise KeyError("a bug of ours")


@pytest.fixture(params=["GET", "POST"])
def method(request):
    """A POST is written without aiohttp's help, see llmdo.backends.http.posts."""
    return request.param


async def _ask(method, url, headers=None):
    network = Network(url)
    try:
        with network_errors(url):
            return await network.send(Call(method, URL(url, encoded=True), headers or {}))
    finally:
        await network.aclose()


@contextlib.asynccontextmanager
async def serving(answer):
    """A server on a free port, its URL; ``answer(head)`` gives what is sent for a request, then it hangs up."""

    async def connected(reader, writer):
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            head = await reader.readuntil(b"\r\n\r\n")
            reply = answer(head)
            writer.write(await reply if asyncio.iscoroutine(reply) else reply)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


def ok(body=b"", *headers):
    lines = [b"HTTP/1.1 200 OK", b"content-length: %d" % len(body), b"connection: close", *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def test_a_refused_connection_is_a_failed_connection(method):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/"
        with pytest.raises(ConnectionFailed, match=r"127\.0\.0\.1 could not be reached"):
            asyncio.run(_ask(method, url))


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"no HTTP at all\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\nshort",
        ok(gzip.compress(b"damaged" * 9)[:15] + b"!" * 40, b"content-encoding: gzip"),
        ok(zstandard.compress(b"damaged" * 9)[:8] + b"!" * 40, b"content-encoding: zstd"),
    ],
)
def test_a_broken_reply_is_a_failed_connection(sent, method):
    async def scenario():
        async with serving(lambda _: sent) as url:
            await _ask(method, url)

    with pytest.raises(ConnectionFailed):
        asyncio.run(scenario())


def test_a_reply_comes_whole_decompressed_and_with_headers_in_any_case(method):
    async def scenario():
        body = gzip.compress(b"whole")
        async with serving(
            lambda _: ok(body, b"Content-Encoding: gzip", b"CF-Ray: r1", b"Content-Type: A/B; x")
        ) as url:
            return await _ask(method, url)

    reply = asyncio.run(scenario())
    assert (reply.status, reply.ok, reply.content) == (200, True, b"whole")
    assert (reply.headers["cf-ray"], reply.content_type) == ("r1", "a/b")


WHOLE = b'{"answer": 42}' * 5
PACKED = gzip.compress(WHOLE)
RAW_DEFLATE = zlib.compress(WHOLE, wbits=-15)


BODIES = [
    (WHOLE, None),
    (WHOLE, "identity"),
    (WHOLE, "utf-8"),
    (WHOLE, "gzip"),
    (WHOLE, "br"),
    (PACKED, "gzip"),
    (PACKED, "X-GZIP"),
    (PACKED, "gzip, identity"),
    (gzip.compress(WHOLE[:9]) + gzip.compress(WHOLE[9:]), "gzip"),
    (PACKED + bytes(4), "gzip"),
    (PACKED, None),
    (gzip.compress(PACKED), "gzip, gzip"),
    (zlib.compress(WHOLE), "deflate"),
    (RAW_DEFLATE, "deflate"),
    (zstandard.compress(WHOLE), "zstd"),
    (zstandard.compress(WHOLE[:9]) + zstandard.compress(WHOLE[9:]), "zstd"),
    (zstandard.compress(PACKED), "gzip, zstd"),
    (b"", "gzip"),
    (b"", "br"),
]


@pytest.mark.parametrize("size", [1, 7, 10_000])
@pytest.mark.parametrize(("sent", "coding"), BODIES, ids=map(str, range(len(BODIES))))
def test_a_body_is_read_whatever_its_head_says_of_its_compression(sent, coding, size, method):
    """In chunks of any size, as proxies send them; what a head promises may have been taken off, or never put on."""
    chunks = [sent[at : at + size] for at in range(0, len(sent), size)]
    body = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nconnection: close\r\n"
    head += f"content-encoding: {coding}\r\n".encode() if coding else b""
    asked = []

    async def scenario():
        async with serving(lambda request: asked.append(request) or head + b"\r\n" + body) as url:
            return await _ask(method, url)

    assert asyncio.run(scenario()).content == (WHOLE if sent else b"")
    assert b"accept-encoding: gzip, deflate\r\n" in asked[0].lower()


BROTLI = bytes.fromhex("0b0280") + b"hello" + b"\x03"


@pytest.mark.parametrize("coding", ["br", "compress", "gzip, br"])
def test_an_answer_in_a_coding_that_cannot_be_read_stops_the_run_and_a_refusal_has_no_words(coding, method):
    async def scenario(status):
        reply = ok(BROTLI, f"content-encoding: {coding}".encode()).replace(b"200 OK", status)
        async with serving(lambda _: reply) as url:
            return await _ask(method, url)

    name = coding.rpartition(" ")[2]
    with pytest.raises(StopRun, match=rf"127\.0\.0\.1 compresses its replies as {name}, which was not requested"):
        asyncio.run(scenario(b"200 OK"))
    refused = asyncio.run(scenario(b"503 Away"))
    assert (refused.status, refused.content) == (503, b"")


BOMB = bytes(100 << 20)


@pytest.mark.parametrize("opened", [False, True])
@pytest.mark.parametrize(("pack", "coding"), [(gzip.compress, "gzip"), (zstandard.compress, "zstd")])
def test_a_reply_without_an_end_is_not_read_to_it(opened, monkeypatch, pack, coding, method):
    monkeypatch.setattr(http, "MOST_REPLY", 1 << 20)
    bomb = ok(pack(BOMB), f"Content-Encoding: {coding}".encode())

    async def scenario():
        async with serving(lambda _: bomb) as url:
            if not opened:
                return await _ask(method, url)
            network = Network(url)
            try:
                async with network.open(Call("GET", URL(url, encoded=True), {})) as reply:
                    return await reply.read()
            finally:
                await network.aclose()

    with pytest.raises(BadReply, match="over 1 MiB, and is not read to its end"):
        asyncio.run(scenario())


def test_a_redirect_without_a_place_is_a_reply(method):
    async def scenario():
        async with serving(lambda _: b"HTTP/1.1 304 Not Modified\r\nconnection: close\r\n\r\n") as url:
            return await _ask(method, url)

    assert asyncio.run(scenario()).status == 304


@pytest.mark.parametrize("status", [301, 302, 303])
def test_a_sign_in_page_is_not_asked_for(status, method):
    asked = []

    def answer(head):
        asked.append(head)
        return b"HTTP/1.1 %d Found\r\nlocation: /login?to=x\r\ncontent-length: 0\r\nconnection: close\r\n\r\n" % status

    async def scenario():
        async with serving(answer) as url:
            await _ask(method, url)

    with pytest.raises(StopRun, match=rf"redirects to http://127.0.0.1:\d+/login \(HTTP {status}\)"):
        asyncio.run(scenario())
    assert len(asked) == 1


def test_a_url_goes_out_as_it_is_written(method):
    asked = []

    async def scenario():
        async with serving(lambda head: asked.append(head) or ok()) as url:
            await _ask(method, f"{url}/ai/run/@cf/meta/x-1.5?a=b%20c")

    asyncio.run(scenario())
    assert asked[0].split(b"\r\n")[0] == f"{method} /ai/run/@cf/meta/x-1.5?a=b%20c HTTP/1.1".encode()


def test_cookies_are_not_sent_back(method):
    asked = []

    async def scenario():
        async with serving(lambda head: asked.append(head) or ok(b"", b"set-cookie: a=b; path=/")) as url:
            network = Network(url)
            for _ in range(2):
                await network.send(Call(method, URL(url), {}))
            await network.aclose()

    asyncio.run(scenario())
    assert len(asked) == 2
    assert b"cookie" not in asked[1].lower()


def test_a_large_body_arrives_whole():
    got = []

    async def scenario():
        async def connected(reader, writer):
            head = await reader.readuntil(b"\r\n\r\n")
            size = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            got.append(await reader.readexactly(size))
            writer.write(ok())
            await writer.drain()
            writer.close()

        async with await asyncio.start_server(connected, "127.0.0.1", 0) as server:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            network = Network(url)
            await network.send(Call("POST", URL(url), {"content-type": "x/y"}, b"ab" * 1_000_000))
            await network.aclose()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        asyncio.run(scenario())
    assert got == [b"ab" * 1_000_000]


@pytest.mark.parametrize(("no_proxy", "way"), [("", "http://elsewhere.example/x"), ("elsewhere.example", None)])
def test_the_environments_proxy_is_used_but_for_what_it_excepts(no_proxy, way, monkeypatch):
    asked = []

    async def scenario():
        async with serving(lambda head: asked.append(head) or ok(b"by proxy")) as url:
            monkeypatch.setenv("http_proxy", url)
            monkeypatch.setenv("no_proxy", no_proxy)
            if way is None:
                assert Network("http://elsewhere.example")._proxy is None
            else:
                network = Network("http://elsewhere.example")
                reply = await network.send(Call("GET", URL(way), {}))
                await network.aclose()
                assert reply.content == b"by proxy"

    asyncio.run(scenario())
    assert [head.split(b" ")[1].decode() for head in asked] == ([way] if way else [])


def test_nothing_that_is_printed_shows_the_key():
    assert "hush" not in repr(Call("GET", URL("http://a"), {"authorization": "Bearer hush"}, b"hush"))


def test_no_limit_of_connections_holds_a_window_back(method):
    """aiohttp's own limit is 100."""
    at_once = 150

    async def scenario():
        most = now = 0
        everybody = asyncio.Event()

        async def answer():
            nonlocal most, now
            now += 1
            most = max(most, now)
            if now == at_once:
                everybody.set()
            await everybody.wait()
            return ok()

        async with serving(lambda _: answer()) as url, asyncio.timeout(60):
            network = Network(url)
            await asyncio.gather(*(network.send(Call(method, URL(url), {})) for _ in range(at_once)))
            await network.aclose()
        return most

    assert asyncio.run(scenario()) == at_once


@pytest.mark.parametrize("url", ["", "api.example", "ftp://api.example", "http://", "http://[", "http://a:b"])
def test_a_base_url_that_cannot_be_called_stops_the_run(url):
    with pytest.raises(StopRun, match="base URL"):
        base_url("openai", url)


def test_a_base_url_is_written_in_ascii_without_its_last_slash():
    assert base_url("openai", "http://münchen.example/a b/").root == "http://xn--mnchen-3ya.example/a%20b"


def test_a_file_goes_out_from_its_start_also_where_the_call_is_redirected_and_is_never_in_memory():
    got, size = [], 40 << 20

    async def scenario():
        async def connected(reader, writer):
            head = await reader.readuntil(b"\r\n\r\n")
            left = length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            while left:
                left -= len(await reader.read(min(left, 1 << 16)))
            got.append((head.split(b" ")[1], length))
            writer.write(
                b"HTTP/1.1 307 Go\r\nlocation: /b\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
                if len(got) == 1
                else ok()
            )
            await writer.drain()
            writer.close()

        async with await asyncio.start_server(connected, "127.0.0.1", 0) as server:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/a"
            network = Network(url)
            with TemporaryFile() as file:
                for _ in range(size >> 20):
                    file.write(bytes(1 << 20))
                tracemalloc.start()
                reply = await network.send(Call("POST", URL(url), {"content-type": "x/y"}, file=file))
                peak = tracemalloc.get_traced_memory()[1]
                tracemalloc.stop()
            await network.aclose()
            return reply.ok, peak

    answered, peak = asyncio.run(scenario())
    assert (answered, got) == (True, [(b"/a", size), (b"/b", size)])
    assert peak < size / 4


def test_a_reply_may_be_as_long_as_its_call_allows(monkeypatch):
    monkeypatch.setattr(http, "MOST_REPLY", 1 << 10)

    async def scenario():
        async with serving(lambda _: ok(b"x" * 100_000)) as url:
            network = Network(url)
            whole = await network.send(Call("GET", URL(url), {}, most=sys.maxsize))
            with pytest.raises(BadReply, match="not read to its end"):
                await network.send(Call("GET", URL(url), {}))
            await network.aclose()
            return len(whole.content)

    assert asyncio.run(scenario()) == 100_000
