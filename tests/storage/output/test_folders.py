"""Folders of an output that are listed together."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest

from llmdo.storage.errors import StorageUnavailable
from llmdo.storage.objects.store import ObjectInfo
from llmdo.storage.output.folders import FolderListings, list_folder
from tests.memory_store import MemoryStore


@dataclass
class Slow(MemoryStore):
    """Its operations wait until they may begin or end, and it shows only what is in ``shows``."""

    begun: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    may_end: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    groups: list[list[str]] = field(default_factory=list)
    alone: list[str] = field(default_factory=list)
    hides: tuple[str, ...] = ()
    fails: bool = False

    def list_near(self, prefixes: Sequence[str]) -> Sequence[Sequence[ObjectInfo] | None]:
        self.groups.append([*prefixes])
        shown = [None if prefix in self.hides else [*super(Slow, self).list(prefix)] for prefix in prefixes]
        self.begun.release()
        self.may_end.acquire()
        if self.fails:
            raise StorageUnavailable("R2 does not answer")
        return shown

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        self.alone.append(prefix)
        return super().list(prefix)


def shard(number: int) -> str:
    return f"shard-{number:012d}-0123456789abcdef.jsonl"


def waiting(listings: FolderListings, number: int) -> None:
    """Returns when as many wait for the next operation."""
    while len(listings._waiting) < number:
        threading.Event().wait(0.001)


def test_folders_that_are_asked_for_during_an_operation_share_the_next_one_which_shows_what_was_written_before() -> (
    None
):
    store = Slow()
    listings = FolderListings(store)
    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(listings.of, "a/")
        store.begun.acquire()
        store.put(f"a/{shard(1)}", b"")  # after the operation has begun
        store.put(f"b/{shard(2)}", b"")
        store.put("b/_manifest.json", b"")
        store.put(f"b/c/{shard(3)}", b"")  # another file's
        later = [pool.submit(listings.of, folder) for folder in ("b/", "a/", "c/")]
        waiting(listings, 3)
        for _ in range(2):
            store.may_end.release()
        found = [future.result(timeout=60) for future in later]
        assert first.result(timeout=60).shards == ()
    assert found == [list_folder(store, folder) for folder in ("b/", "a/", "c/")]
    assert [len(listing.shards) for listing in found] == [1, 1, 0]
    assert [listing.manifest for listing in found] == [True, False, False]
    assert store.groups[0] == ["a/"]
    assert sorted(store.groups[1]) == ["a/", "b/", "c/"]
    assert len(store.groups) == 2


def test_an_operation_that_fails_fails_for_all_that_share_it_and_the_next_one_is_made() -> None:
    store = Slow(fails=True)
    listings = FolderListings(store)
    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(listings.of, "a/")
        store.begun.acquire()
        later = [pool.submit(listings.of, folder) for folder in ("b/", "c/")]
        waiting(listings, 2)
        for _ in range(2):
            store.may_end.release()
        for future in (first, *later):
            with pytest.raises(StorageUnavailable):
                future.result(timeout=60)
        store.fails = False
        store.may_end.release()
        assert listings.of("a/") == list_folder(store, "a/")


def test_what_an_operation_does_not_show_is_listed_by_itself_and_folders_far_apart_soon_are_at_once() -> None:
    store = Slow(hides=("b/", "c/"))
    for folder in "abc":
        store.put(f"{folder}/{shard(1)}", b"")
    listings = FolderListings(store)
    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(listings.of, "x/")
        store.begun.acquire()
        later = {folder: pool.submit(listings.of, folder) for folder in ("a/", "b/", "c/")}
        waiting(listings, 3)
        for _ in range(2):
            store.may_end.release()
        first.result(timeout=60)
        assert all(len(future.result(timeout=60).shards) == 1 for future in later.values())
    assert sorted(store.alone) == ["b/", "c/"]
    for number in range(64):  # one after the other: the operation has shown one folder of three
        listings.of(f"{number}/")
    assert len(store.groups) == 2
    store.may_end.release()
    listings.of("a/")
    assert len(store.groups) == 3


def test_many_threads_get_the_listing_of_their_own_folder() -> None:
    store = Slow()
    for _ in range(2_000):
        store.may_end.release()
    for number in range(0, 400, 3):
        store.put(f"{number:03d}/{shard(number)}", b"")
    listings = FolderListings(store)
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda number: listings.of(f"{number:03d}/"), range(400)))
    assert [[info.key for info in listing.shards] for listing in found] == [
        [f"{number:03d}/{shard(number)}"] * (number % 3 == 0) for number in range(400)
    ]
    assert sorted(folder for group in store.groups for folder in group) == [f"{number:03d}/" for number in range(400)]
