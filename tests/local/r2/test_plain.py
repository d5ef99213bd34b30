"""What is answered without moto's way through a request is what moto answers."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import canonicalize

import pytest
from multidict import CIMultiDict

from llmdo.local.queues.notifications import ObjectEvent
from llmdo.local.r2.object_file import Stored
from llmdo.local.r2.objects import Objects
from llmdo.local.r2.plain import SMALL
from llmdo.local.settings import Credentials
from llmdo.local.wire import HttpCall, HttpReply
from llmdo.storage.objects.sigv4 import Signer, encode_query

CREDENTIALS = Credentials("0" * 32, "key-id-of-the-tests", "token-of-the-tests")
SIGNER = Signer(CREDENTIALS.token_id, CREDENTIALS.secret, "r2.test")
LISTING = {"list-type": "2", "encoding-type": "url"}
HELLO = '"5d41402abc4b2a76b9719d911017c592"'


class World:
    def __init__(self, path: Path) -> None:
        self.events: list[ObjectEvent] = []
        self.objects = Objects(path, CREDENTIALS, self.events.append)
        self.plain = 0
        answer = self.objects._plain.answer

        def counted(*call: Any) -> Any:
            replied = answer(*call)
            self.plain += replied is not None
            return replied

        self.objects._plain.answer = counted  # type: ignore[method-assign]

    def call(self, method: str, path: str, query: dict[str, str], headers: dict[str, str], body: bytes) -> HttpReply:
        encoded = encode_query(query)
        signed = SIGNER.headers(method, path, encoded, headers, body)
        given = CIMultiDict({**signed, "Host": "r2.test", "Content-Length": str(len(body))})
        return asyncio.run(self.objects.answer(HttpCall(method, path, encoded, given, body)))


@pytest.fixture
def both(tmp_path: Path) -> Iterator[tuple[World, World]]:
    ours, motos = World(tmp_path / "ours.sqlite"), World(tmp_path / "motos.sqlite")
    motos.objects._plain.answer = lambda *_: None  # type: ignore[method-assign]
    yield ours, motos
    for world in (ours, motos):
        world.objects.close()


def shown(reply: HttpReply) -> tuple[int, dict[str, str], bytes]:
    headers = {name.lower(): value for name, value in reply.headers.items()}
    if "last-modified" in headers:
        assert re.fullmatch(r"\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT", headers.pop("last-modified"))
    body = canonicalize(reply.body.decode()).encode() if b"<ListBucketResult" in reply.body else reply.body
    return reply.status, headers, re.sub(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", b"TIME", body)


def kept(row: Stored) -> tuple[Any, ...]:
    headers = {name: value for name, value in row.headers.items() if name != "x-amz-content-sha256"}  # never sent
    return row.bucket, row.key, row.etag, headers, row.body


# Method, path, query, headers, body; and whether it is plain.
CALLS: list[tuple[str, str, dict[str, str], dict[str, str], bytes, bool]] = [
    ("PUT", "/bucket/first", {}, {}, b"makes the bucket", False),
    ("PUT", "/bucket/a", {}, {"x-amz-meta-tiles": "0+5", "x-amz-meta-a_b": "c d"}, b"hello", True),
    ("PUT", "/bucket/a", {}, {"if-none-match": "*"}, b"other", False),
    ("PUT", "/bucket/new", {}, {"if-none-match": "*"}, b"", True),
    ("PUT", "/bucket/a", {}, {"if-match": '"0"'}, b"other", False),
    ("PUT", "/bucket/d/%C3%BC%20%26%3Cb%3E+%22", {}, {"content-type": "text/plain"}, b"hello", True),
    ("PUT", "/bucket/d//e", {}, {}, b"x", True),
    ("PUT", "/bucket/d/", {}, {}, b"", True),
    ("PUT", "/bucket/big", {}, {}, b"x" * (SMALL + 1), False),
    ("PUT", "/bucket/zipped", {}, {"content-encoding": "gzip"}, b"x", False),
    ("GET", "/bucket/a", {}, {}, b"", True),
    ("GET", "/bucket/a", {}, {"if-match": HELLO, "range": "bytes=1-2"}, b"", True),
    ("GET", "/bucket/a", {}, {"range": "bytes=1-"}, b"", True),
    ("GET", "/bucket/a", {}, {"range": "bytes=1-99"}, b"", True),
    ("GET", "/bucket/a", {}, {"range": "bytes=5-"}, b"", False),
    ("GET", "/bucket/a", {}, {"range": "bytes=-2"}, b"", False),
    ("GET", "/bucket/a", {}, {"if-match": '"0"'}, b"", False),
    ("GET", "/bucket/a", {}, {"if-none-match": HELLO}, b"", False),
    ("GET", "/bucket/a", {"response-content-type": "x/y"}, {}, b"", False),
    ("GET", "/bucket/d/%C3%BC%20%26%3Cb%3E+%22", {}, {}, b"", True),
    ("GET", "/bucket/d//e", {}, {}, b"", True),
    ("GET", "/bucket/new", {}, {}, b"", True),
    ("GET", "/bucket/new", {}, {"range": "bytes=0-"}, b"", False),
    ("GET", "/bucket/big", {}, {}, b"", False),
    ("GET", "/bucket/zipped", {}, {}, b"", True),
    ("HEAD", "/bucket/a", {}, {}, b"", False),
    ("GET", "/bucket/never", {}, {}, b"", False),
    ("GET", "/never/a", {}, {}, b"", False),
    ("GET", "/bucket", {**LISTING, "prefix": ""}, {}, b"", True),
    ("GET", "/bucket", {**LISTING, "prefix": "d/"}, {}, b"", True),
    ("GET", "/bucket", {**LISTING, "prefix": "d/ü &<"}, {}, b"", True),
    ("GET", "/bucket", {"list-type": "2", "prefix": "d/"}, {}, b"", True),
    ("GET", "/bucket", {**LISTING, "prefix": "none"}, {}, b"", True),
    ("GET", "/bucket", {**LISTING, "prefix": "d/", "delimiter": "/"}, {}, b"", False),
    ("GET", "/bucket", {**LISTING, "max-keys": "2"}, {}, b"", True),
    ("GET", "/bucket", {**LISTING, "max-keys": "2", "start-after": "d/"}, {}, b"", True),
    ("GET", "/bucket", {**LISTING, "prefix": "d/", "max-keys": "20", "start-after": "d//"}, {}, b"", True),
    ("GET", "/bucket", {**LISTING, "prefix": "d/", "max-keys": "3", "start-after": ""}, {}, b"", True),
    ("GET", "/bucket", {"list-type": "2", "start-after": "d/ü &"}, {}, b"", True),
    ("GET", "/bucket", {**LISTING, "start-after": "d/ü &"}, {}, b"", True),
    ("GET", "/bucket", {**LISTING, "start-after": "zz"}, {}, b"", True),
    ("GET", "/bucket", {**LISTING, "max-keys": "0"}, {}, b"", False),
    ("GET", "/bucket", {"prefix": "d/"}, {}, b"", False),
    ("GET", "/never", LISTING, {}, b"", False),
    ("DELETE", "/bucket/a", {}, {}, b"", False),
    ("GET", "/bucket/a", {}, {}, b"", False),
    ("PUT", "/bucket/a", {}, {"if-none-match": "*"}, b"again", True),
    ("GET", "/bucket", LISTING, {}, b"", True),
]


def test_plain_calls_are_answered_as_moto_answers_them(both: tuple[World, World]) -> None:
    ours, motos = both
    for *call, plain in CALLS:
        before = ours.plain
        assert shown(ours.call(*call)) == shown(motos.call(*call)), call
        assert (ours.plain > before) == plain, call
    assert ours.events == motos.events
    stored, expected = ([kept(row) for row in world.objects._file.objects()] for world in both)
    assert stored == expected


def test_a_listing_of_several_pages_is_that_of_moto(both: tuple[World, World]) -> None:
    for number in range(25):
        for world in both:
            world.call("PUT", f"/bucket/{number:02d}", {}, {}, b"")
    for listing in ({"prefix": ""}, {"prefix": "1"}, {"prefix": "", "start-after": "07"}, {"prefix": "none"}):
        asked, pages = {**LISTING, **listing, "max-keys": "4"}, 0
        while asked:
            before = both[0].plain
            ours, motos = (shown(world.call("GET", "/bucket", asked, {}, b"")) for world in both)
            assert ours == motos
            assert both[0].plain == before + 1
            following = re.search(rb"<NextContinuationToken>([^<]+)<", ours[2])
            asked = {**asked, "continuation-token": following[1].decode()} if following else {}
            pages += 1
        assert pages == {"": 7, "1": 3, "none": 1}[listing["prefix"]] - ("start-after" in listing) * 2


def test_moto_continues_a_listing_that_was_begun_plainly(both: tuple[World, World]) -> None:
    world, _ = both
    for number in range(5):
        world.call("PUT", f"/bucket/{number}", {}, {}, b"")
    begun = world.call("GET", "/bucket", {**LISTING, "max-keys": "2"}, {}, b"")
    token = re.search(rb"<NextContinuationToken>([^<]+)<", begun.body)
    assert token
    before, asked = world.plain, {**LISTING, "continuation-token": token[1].decode(), "fetch-owner": "true"}
    continued = world.call("GET", "/bucket", asked, {}, b"")
    assert world.plain == before
    assert re.findall(rb"<Key>(.)<", continued.body) == [b"2", b"3", b"4"]
