"""Listings of many pages, from a source of pages that answers as R2 does, and from the local R2."""

from __future__ import annotations

import hashlib
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmdo.storage.errors import StorageUnavailable
from llmdo.storage.objects.r2 import R2Store
from llmdo.storage.objects.store import ObjectInfo
from llmdo.storage.paging import key_ahead, list_pages

PATIENCE_S = 60.0
EPOCH = datetime(2026, 1, 1, tzinfo=UTC)


def by_utf8(key: str) -> bytes:
    return key.encode()


def by_utf16(key: str) -> bytes:
    return key.encode("utf-16-be")


class Pages:
    """Objects as pages, in an order of their keys."""

    def __init__(
        self, keys: Sequence[str], size: int = 10, order: Callable[[str], bytes] = by_utf8, prefix: str = "p/"
    ) -> None:
        self.order, self.size, self.prefix = order, size, prefix
        self.keys = sorted({prefix + key for key in keys}, key=order)
        self.asked: list[Mapping[str, str]] = []
        self.changed = threading.Condition()
        self.in_flight = self.most = 0

    def __call__(self, asked: Mapping[str, str]) -> tuple[Sequence[ObjectInfo], str]:
        with self.changed:
            self.asked.append(asked)
            self.in_flight += 1
            self.most = max(self.most, self.in_flight)
            self.changed.notify_all()
        try:
            return self.page(asked)
        finally:
            with self.changed:
                self.in_flight -= 1
                self.changed.notify_all()

    def page(self, asked: Mapping[str, str]) -> tuple[Sequence[ObjectInfo], str]:
        after = asked.get("continuation-token") or asked.get("start-after")
        at = 0 if after is None else bisect_right(self.keys, self.order(after), key=self.order)
        found = self.keys[at : at + self.size]
        more = at + self.size < len(self.keys)
        return [ObjectInfo(key, "etag", 1, EPOCH) for key in found], found[-1] if more else ""

    @property
    def plainly(self) -> int:
        """How many pages there are."""
        return max(1, -(-len(self.keys) // self.size))

    def listed(self) -> list[str]:
        return [info.key for info in list_pages(self, self.prefix)]


def digest(number: int) -> str:
    return hashlib.md5(str(number).encode(), usedforsecurity=False).hexdigest()


SHAPES: dict[str, list[str]] = {
    "nothing": [],
    "one": ["a"],
    "a page": [str(number) for number in range(10)],
    "four pages": [f"{number:02d}" for number in range(40)],
    "numbered": [f"b/{n:06d}.jsonl/{digest(n)}/{x}" for n in range(1500) for x in ("_manifest.json", "shard-0")],
    "not padded": [f"file-{number}.jsonl" for number in range(3000)],
    "hashes": [digest(number) for number in range(3000)],
    "one folder": [f"{digest(1)}/shard-{n * 40960:012d}-{digest(n)[:16]}.jsonl" for n in range(3000)],
    "days": [
        f"2026/{m:02d}/{d:02d}/host-{h}/part-{p:03d}"
        for m in (1, 2)
        for d in range(28)
        for h in "ab"
        for p in range(25)
    ],
    "growing gaps": [f"{int(1.004**number):012d}-{number}" for number in range(3000)],
    "holes": [f"{number // 200 * 1_000_000 + number % 200:012d}" for number in range(3000)],
    "two clusters": [f"a{n:08d}" for n in range(1500)] + [f"zzz/{digest(n)}" for n in range(1500)],
    "long common prefix": ["x" * 900 + f"{number:05d}" for number in range(3000)],
    "each longer": ["a" * number for number in range(1, 600)],
    "slashes": ["/" * (number % 40) + str(number) for number in range(2000)],
    "accents": [f"données/été {number:05d}é" for number in range(2000)],
    "Chinese": [chr(0x4E00 + number * 7 % 20000) + chr(0x4E00 + number) for number in range(3000)],
    "beyond surrogates": [f"{'ﬀ😀é'[number % 3]}{number:05d}" for number in range(3000)],
    "controls": [f"{chr(1 + number % 31)}{number}" for number in range(1000)],
}


@pytest.mark.parametrize("order", [by_utf8, by_utf16])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_key_comes_once_in_order_with_few_more_operations(shape: str, order: Callable[[str], bytes]) -> None:
    pages = Pages(SHAPES[shape], order=order)
    assert pages.listed() == pages.keys
    assert len(pages.asked) <= pages.plainly * 9 / 8 + 10


@settings(deadline=None, max_examples=150)
@given(
    keys=st.one_of(
        st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=6), max_size=120),
        st.lists(st.text("ab/0é😀ﬀ", max_size=8), max_size=250),
        st.lists(st.integers(0, 10**6).map("{:06d}".format), max_size=300),
    ),
    size=st.integers(1, 7),
    order=st.sampled_from([by_utf8, by_utf16]),
)
def test_any_keys_are_listed_as_one_page_after_the_other_would_list_them(
    keys: list[str], size: int, order: Callable[[str], bytes]
) -> None:
    pages = Pages(keys, size, order)
    assert pages.listed() == pages.keys
    assert len(pages.asked) <= pages.plainly * 9 / 8 + 10


def test_later_pages_are_fetched_while_an_earlier_one_is_awaited() -> None:
    class Slow(Pages):
        """Answers for one page when many others were asked for."""

        def page(self, asked: Mapping[str, str]) -> tuple[Sequence[ObjectInfo], str]:
            if asked.get("continuation-token") == "p/00049":
                with self.changed:
                    assert self.changed.wait_for(lambda: len(self.asked) >= 50, PATIENCE_S)
            return super().page(asked)

    pages = Slow([f"{number:05d}" for number in range(3000)])
    assert pages.listed() == pages.keys
    assert pages.most <= 16


def test_keys_that_stay_come_once_while_others_come_and_go() -> None:
    staying = [f"{number:05d}" for number in range(0, 6000, 2)]

    class Changing(Pages):
        def page(self, asked: Mapping[str, str]) -> tuple[Sequence[ObjectInfo], str]:
            with self.changed:
                round_ = len(self.asked)
                others = {f"{self.prefix}{n:05d}" for n in range(1, 6000, 2) if (n // 2 + round_ * 31) % 5 == 0}
                self.keys = sorted({self.prefix + key for key in staying} | others)
            return super().page(asked)

    pages = Changing(staying)
    found = pages.listed()
    assert found == sorted(set(found))
    assert [key for key in found if int(key[2:]) % 2 == 0] == [f"p/{key}" for key in staying]


def test_only_what_is_read_is_asked_for() -> None:
    pages = Pages([f"{number:05d}" for number in range(3000)])
    listing = list_pages(pages, pages.prefix)
    assert not pages.asked
    assert len(list(islice(listing, 30))) == 30
    assert len(pages.asked) == 3


def test_a_reader_who_keeps_others_waiting_is_not_far_behind() -> None:
    pages = Pages([f"{number:05d}" for number in range(3000)])
    for number, _ in enumerate(list_pages(pages, pages.prefix), 1):
        with pages.changed:
            assert pages.changed.wait_for(lambda: not pages.in_flight, PATIENCE_S)
        assert len(pages.asked) <= number / 10 * 9 / 8 + 10 + 2 * 64 + 16


def test_a_listing_that_is_closed_asks_for_nothing_more() -> None:
    pages = Pages([f"{number:05d}" for number in range(3000)])
    listing = list_pages(pages, pages.prefix)
    list(islice(listing, 500))
    assert isinstance(listing, Iterator)
    listing.close()  # type: ignore[attr-defined]
    with pages.changed:
        assert pages.changed.wait_for(lambda: not pages.in_flight, PATIENCE_S)
    asked = len(pages.asked)
    assert asked < pages.plainly
    assert sum(one.name.startswith("llmdo-listing") for one in threading.enumerate()) <= 64
    assert len(pages.asked) == asked


@pytest.mark.parametrize("broken", [0, 1, 3, 4, 150, 299])
def test_what_an_operation_raises_comes_after_the_keys_before_it(broken: int) -> None:
    class Broken(Pages):
        def page(self, asked: Mapping[str, str]) -> tuple[Sequence[ObjectInfo], str]:
            found, token = super().page(asked)
            if found[-1].key >= self.keys[broken * 10]:
                raise StorageUnavailable("R2 is away")
            return found, token

    pages, found = Broken([f"{number:05d}" for number in range(3000)]), []
    with pytest.raises(StorageUnavailable, match="R2 is away"):
        for info in list_pages(pages, pages.prefix):
            found.append(info.key)
    assert found == pages.keys[: len(found)]
    assert len(found) <= broken * 10


def test_an_empty_page_that_goes_on_ends_nothing() -> None:
    class Holes(Pages):
        """Every other page is empty, as after many deletions."""

        def page(self, asked: Mapping[str, str]) -> tuple[Sequence[ObjectInfo], str]:
            token = asked.get("continuation-token", "")
            if token and not token.startswith("now:"):
                return [], "now:" + token
            return super().page({**asked, "continuation-token": token.removeprefix("now:")} if token else asked)

    pages = Holes([f"{number:05d}" for number in range(1000)])
    assert pages.listed() == pages.keys


@pytest.mark.parametrize(
    ("first", "last", "pages", "ahead"),
    [
        ("p/0000", "p/0009", 8, "p/0081"),
        ("p/0085", "p/0104", 8, "p/0256"),  # a page over a carry
        ("p/9980", "p/9989", 8, None),
        ("p/é01", "p/é01", 8, "p/é01"),
    ],
)
def test_a_key_ahead_goes_on_as_the_page_does(first: str, last: str, pages: int, ahead: str | None) -> None:
    numbers = range(int("".join(filter(str.isdigit, first))), int("".join(filter(str.isdigit, last))) + 1)
    width = sum(map(str.isdigit, first))
    stem = first[:-width]
    assert key_ahead([f"{stem}{number:0{width}d}" for number in numbers], "p/", pages) == ahead


def test_the_pages_of_r2_are_listed_so(store: R2Store) -> None:
    keys = [f"wide/{name}{number:04d}" for name in ("a b/", "é/", "+&<") for number in range(120)]
    for key in keys:
        store.put(key, b"")
    asked: list[Mapping[str, str]] = []

    def fetch(more: Mapping[str, str]) -> tuple[Sequence[ObjectInfo], str]:
        asked.append(more)
        return store._page("wide/", {**more, "max-keys": "5"})

    assert list(list_pages(fetch, "wide/")) == list(store.list("wide/"))
    assert [info.key for info in store.list("wide/")] == sorted(keys)
    assert any("start-after" in more for more in asked)
