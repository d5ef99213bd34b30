"""POSTs written without aiohttp's requests: on the wire as aiohttp writes them, on connections that are kept."""

import asyncio
import contextlib

import aiohttp
import pytest
from yarl import URL

from llmdo.backends.http.client import Call, Network

HEADERS = {"authorization": "Bearer k", "content-type": "application/json"}
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n"


class Server:
    """Keeps connections; ``answer(number, reader, writer)`` replies to the n-th request after its head was read."""

    def __init__(self, answer=None):
        self.connections, self.heads, self.bodies, self._answer = 0, [], [], answer

    @contextlib.asynccontextmanager
    async def running(self):
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        async with server:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"

    async def _connected(self, reader, writer):
        self.connections += 1
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                self.heads.append(await reader.readuntil(b"\r\n\r\n"))
                length = int(self.heads[-1].lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                if self._answer:
                    await self._answer(len(self.heads), reader, writer)
                    continue
                self.bodies.append(await reader.readexactly(length))
                writer.write(OK + b"%02d" % (len(self.bodies) % 100))
        writer.close()


def post(url, content=b"{}", headers=HEADERS):
    return Call("POST", URL(url, encoded=True), headers, content)


async def together(server, scenario):
    async with server.running() as url, asyncio.timeout(60):
        network = Network(url)
        try:
            return await scenario(network, url)
        finally:
            await network.aclose()


def test_a_post_looks_as_aiohttp_writes_it():
    server = Server()

    async def scenario(network, url):
        path = f"{url}/ai/run/@cf/m?a=b%20c"
        await network.send(post(path, b'{"a": 1}'))
        async with (
            aiohttp.ClientSession(headers={"accept-encoding": "gzip, deflate"}) as session,
            session.post(URL(path, encoded=True), headers=HEADERS, data=b'{"a": 1}'),
        ):
            pass

    asyncio.run(together(server, scenario))
    ours, theirs = (head.split(b"\r\n") for head in server.heads)
    assert ours[0] == theirs[0] == b"POST /ai/run/@cf/m?a=b%20c HTTP/1.1"
    assert sorted(line.lower() for line in ours) == sorted(line.lower() for line in theirs)
    assert server.bodies == [b'{"a": 1}'] * 2


def test_a_connection_serves_one_call_after_the_other_each_with_its_own_headers_and_body():
    server = Server()

    async def scenario(network, url):
        calls = [post(url, b"x" * n, {**HEADERS, "x-number": str(n)}) for n in range(3)]
        return [(await network.send(call)).content for call in calls]

    assert asyncio.run(together(server, scenario)) == [b"01", b"02", b"03"]
    assert server.connections == 1
    assert [b"x-number: %d\r\n" % n in head for n, head in enumerate(server.heads)] == [True] * 3
    assert server.bodies == [b"", b"x", b"xx"]


def test_headers_of_each_call_are_not_remembered_without_end():
    server = Server()

    async def scenario(network, url):
        for n in range(300):
            await network.send(post(url, b"", {**HEADERS, "x-number": str(n)}))
        return len(network._posts._heads)

    assert asyncio.run(together(server, scenario)) <= 256
    assert b"x-number: 299\r\n" in server.heads[-1]


def test_a_reply_to_a_call_that_was_cancelled_goes_to_nobody_else():
    """Its connection cannot be used again: the reply may still come."""
    gone = asyncio.Event()

    async def answer(number, reader, writer):
        await reader.readexactly(2)
        if number == 1:
            gone.set()
            await asyncio.sleep(0.1)
            writer.write(OK + b"no")
            await writer.drain()
        else:
            await asyncio.sleep(0.2)
            writer.write(OK + b"ok")

    server = Server(answer)

    async def scenario(network, url):
        first = asyncio.ensure_future(network.send(post(url)))
        await gone.wait()
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        return (await network.send(post(url))).content

    assert asyncio.run(together(server, scenario)) == b"ok"
    assert server.connections == 2


@pytest.mark.parametrize("whole", [True, False])
def test_a_connection_with_half_a_request_or_half_a_reply_is_not_used_again(whole):
    """A service may refuse before it has read the body, and a reply may break off."""

    async def answer(number, reader, writer):
        if number > 1:
            writer.write(OK + b"ok")
        elif whole:
            writer.write(b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\nno")
            await writer.drain()
            await asyncio.sleep(0.5)
        else:
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\nhalf")
            writer.close()

    server = Server(answer)

    async def scenario(network, url):
        content = b"x" * (64 << 20) if whole else b"{}"
        first = await asyncio.gather(network.send(post(url, content)), return_exceptions=True)
        second = await network.send(post(url))
        return first[0], second.content

    first, second = asyncio.run(together(server, scenario))
    assert second == b"ok" and server.connections == 2
    assert first.status == 413 if whole else isinstance(first, aiohttp.ClientPayloadError)


def test_a_reply_before_the_final_one_is_not_taken_for_it():
    async def answer(number, reader, writer):
        await reader.readexactly(2)
        writer.write(b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n")
        await writer.drain()
        await asyncio.sleep(0.05)
        writer.write(OK + b"%02d" % number)

    async def scenario(network, url):
        return [(await network.send(post(url))).content for _ in range(2)]

    assert asyncio.run(together(Server(answer), scenario)) == [b"01", b"02"]


@pytest.mark.parametrize("header", [{"x-a": "b\r\nx-key: c"}, {"x-a": "b\n"}, {"x\r": "b"}, {"x-a": "b\0"}])
def test_no_header_can_bring_another_one(header):
    server = Server()

    async def scenario(network, url):
        with pytest.raises(ValueError):
            await network.send(post(url, b"", header))

    asyncio.run(together(server, scenario))
    assert server.heads == []


def test_a_silent_service_ends_a_call_by_its_time():
    async def answer(number, reader, writer):
        await asyncio.sleep(20)

    async def scenario(_, url):
        network = Network(url, timeout_s=0.2)
        with pytest.raises(aiohttp.SocketTimeoutError):
            await network.send(post(url))
        await network.aclose()

    asyncio.run(together(Server(answer), scenario))
