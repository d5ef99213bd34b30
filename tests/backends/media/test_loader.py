"""What is fetched, how often, and how much of it is held."""

from __future__ import annotations

import asyncio
import base64
import threading
import time
from collections import Counter

import pytest

from llmdo.backends.limits import retry
from llmdo.backends.media import loader as module
from llmdo.backends.media.errors import MediaAway, MediaChanged, MediaOutage, MediaUnusable
from llmdo.backends.media.loader import Looked, MediaLoader, encoded_size
from llmdo.backends.media.parts import references_in, renamed
from llmdo.backends.requests import ChatRequest, MediaReference, Message
from tests.fakes.media import png


class Store:
    """Objects by key, with their versions; ``calls`` counts looks and reads."""

    def __init__(self, max_bytes=10_000_000):
        self.max_bytes = max_bytes
        self.objects = {}
        self.calls = Counter()
        self.problems = []
        self.together = self.most_together = 0
        self._lock = threading.Lock()

    def open(self):
        return self

    def marked(self, request, store_url):
        return request

    def look(self, reference):
        self._call("look", reference)
        version, body = self.objects[reference.key]
        return Looked(version, len(body))

    def read(self, reference):
        with self._lock:
            self.together += 1
            self.most_together = max(self.together, self.most_together)
        time.sleep(0.002)
        with self._lock:
            self.together -= 1
        self._call("read", reference)
        version, body = self.objects[reference.key]
        if version != reference.version:
            raise MediaChanged("changed")
        return body

    def _call(self, what, reference):
        with self._lock:
            self.calls[what, reference.key] += 1
            problem = self.problems.pop() if self.problems else None
        if problem:
            raise problem


def asks(*keys):
    parts = tuple({"type": "image_url", "image_url": {"url": f"r2://b/{key}"}} for key in keys)
    request = ChatRequest("m", (Message("user", parts),))
    return renamed(request, lambda name, medium, _: MediaReference.of(name, "r2://b", name[7:], medium))


def with_loader(store, work, patience_s=60.0):
    async def scenario():
        loader = MediaLoader(store, patience_s)
        try:
            return await work(loader)
        finally:
            await loader.aclose()

    return asyncio.run(scenario())


async def sent(loader, request):
    async with loader.filled(await loader.pinned(request)) as filled:
        return [part["image_url"]["url"] for part in filled.messages[0].content]


@pytest.fixture(autouse=True)
def instant():
    retry.set_instant(True)
    yield
    retry.set_instant(False)


def test_calls_at_the_same_time_and_later_share_one_look_and_one_read():
    store = Store()
    store.objects["a"] = "1", png()

    async def work(loader):
        first = await asyncio.gather(*(sent(loader, asks("a", "a")) for _ in range(50)))
        return [*first, await sent(loader, asks("a"))]

    found = with_loader(store, work)
    assert len({url for urls in found for url in urls}) == 1
    assert store.calls == {("look", "a"): 1, ("read", "a"): 1}


def test_a_pinned_request_holds_the_version_and_no_bytes():
    store = Store()
    store.objects["a"] = "etag1", png(1)
    one = with_loader(store, lambda loader: loader.pinned(asks("a")))
    store.objects["a"] = "etag2", png(2)
    other = with_loader(store, lambda loader: loader.pinned(asks("a")))
    assert one.messages[0].content[0]["image_url"]["url"] == "r2://b/a etag1"
    assert other.messages[0].content[0]["image_url"]["url"] == "r2://b/a etag2"
    assert [(ref.size, ref.version) for ref in references_in(one)] == [(len(png(1)), "etag1")]
    assert not any(what == "read" for what, _ in store.calls)


def test_a_look_is_forgotten_after_a_while(monkeypatch):
    store = Store()
    store.objects["a"] = "1", png()
    monkeypatch.setattr(module, "LOOK_LASTS_S", -1.0)

    async def work(loader):
        await sent(loader, asks("a"))
        store.objects["a"] = "2", png(2)
        return await sent(loader, asks("a"))

    assert with_loader(store, work) == [f"data:image/png;base64,{_base64(png(2))}"]


def test_what_is_kept_is_bounded_and_the_least_used_goes_first(monkeypatch):
    store = Store()
    size = len(f"data:image/png;base64,{_base64(png())}")
    for key in "abcde":
        store.objects[key] = "1", png()
    monkeypatch.setattr(module, "KEPT_BYTES", 3 * size)

    async def work(loader):
        for key in "abcd":  # a goes
            await sent(loader, asks(key))
        for key in "bcd":
            await sent(loader, asks(key))
        await sent(loader, asks("b"))
        await sent(loader, asks("e"))  # c goes
        await sent(loader, asks("b"))
        await sent(loader, asks("c"))
        return loader._kept_size

    assert with_loader(store, work) <= 3 * size
    assert {key: count for (what, key), count in store.calls.items() if what == "read"} == {
        "a": 1,
        "b": 1,
        "c": 2,
        "d": 1,
        "e": 1,
    }


def test_a_thing_larger_than_all_that_is_kept_still_goes_through(monkeypatch):
    store = Store()
    store.objects["a"] = "1", png()
    monkeypatch.setattr(module, "KEPT_BYTES", 10)

    async def work(loader):
        return await sent(loader, asks("a")), loader._kept_size, len(loader._kept)

    urls, size, count = with_loader(store, work)
    assert (len(urls), size, count) == (1, 0, 0)


def test_calls_hold_no_more_than_their_room_and_wait_for_it(monkeypatch):
    store = Store()
    for number in range(40):
        store.objects[f"{number}"] = "1", png(number)
    size = encoded_size(len(png()))
    monkeypatch.setattr(module, "IN_HAND_BYTES", 3 * size)
    monkeypatch.setattr(module, "KEPT_BYTES", 0)
    held = most = 0

    async def work(loader):
        async def one(number):
            nonlocal held, most
            async with loader.filled(await loader.pinned(asks(f"{number}"))):
                held += 1
                most = max(most, held)
                if held == 3:
                    full.set()
                await full.wait()  # however long the others take to come as far
                await asyncio.sleep(0.001)
                held -= 1

        full = asyncio.Event()
        await asyncio.gather(*(one(number) for number in range(40)))

    with_loader(store, work)
    assert most == 3
    assert store.most_together <= 3
    assert store.calls.total() == 80


def test_all_that_a_line_names_is_bounded_together(monkeypatch):
    store = Store(max_bytes=100)
    for key in "abc":
        store.objects[key] = "1", png()
    monkeypatch.setattr(module, "MOST_OF_A_LINE", 2 * len(png()))
    assert len(with_loader(store, lambda loader: sent(loader, asks("a", "b", "a")))) == 3
    with pytest.raises(MediaUnusable, match="3 objects"):
        with_loader(store, lambda loader: sent(loader, asks("a", "b", "c")))


def test_a_line_that_names_very_many_is_refused_before_any_look():
    store = Store()
    store.objects["a"] = "1", png()
    with pytest.raises(MediaUnusable, match="names 501 objects"):
        with_loader(store, lambda loader: sent(loader, asks(*["a"] * 501)))
    assert store.calls == {}


def test_one_that_was_replaced_between_look_and_read_is_looked_at_again():
    store = Store()
    store.objects["a"] = "1", png(1)

    async def work(loader):
        pinned = await loader.pinned(asks("a"))
        store.objects["a"] = "2", png(2)
        with pytest.raises(MediaChanged):
            async with loader.filled(pinned):
                pytest.fail("it holds other bytes than its name says")
        return await sent(loader, asks("a"))

    assert with_loader(store, work) == [f"data:image/png;base64,{_base64(png(2))}"]


def test_a_place_that_fails_for_a_while_is_asked_again_and_said_once(caplog):
    store = Store()
    store.objects["a"] = "1", png()
    store.problems += [MediaOutage("r2://b: away")] * 9
    assert len(with_loader(store, lambda loader: sent(loader, asks("a")))) == 1
    said = [record.getMessage() for record in caplog.records if record.name.startswith("llmdo.backends.media")]
    assert said[:2] == ["r2://b: away; trying again until it works", "r2://b can be read again"]
    assert store.calls.total() == 11


def test_a_place_that_stays_away_ends_the_run_and_a_stop_ends_the_wait():
    store = Store()
    store.objects["a"] = "1", png()
    store.problems += [MediaOutage("away")] * 1000
    with pytest.raises(MediaAway, match="away: see that r2://b can be read"):
        with_loader(store, lambda loader: sent(loader, asks("a")), patience_s=0.0)

    async def stopped(loader):
        retry.set_instant(False)
        waiting = asyncio.create_task(sent(loader, asks("a")))
        while not loader._failing:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        loader.stop()
        with pytest.raises(MediaAway):
            await asyncio.wait_for(waiting, 55)

    with_loader(store, stopped, patience_s=float("inf"))


def test_a_call_that_is_cancelled_takes_nothing_from_others():
    store = Store()
    store.objects["a"] = "1", png()

    async def work(loader):
        first, second = (asyncio.create_task(sent(loader, asks("a"))) for _ in range(2))
        while not store.calls["look", "a"]:  # noqa: ASYNC110
            await asyncio.sleep(0)
        first.cancel()
        return await asyncio.wait_for(second, 55)

    assert len(with_loader(store, work)) == 1
    assert store.calls == {("look", "a"): 1, ("read", "a"): 1}


def _base64(data):
    return base64.b64encode(data).decode()
