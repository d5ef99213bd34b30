"""A fair sample of things that come one by one, however many they are."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Lowest(Generic[T]):
    """Keeps the ``most`` things whose names have the lowest hashes: each is as likely, and each time the same."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._heap: list[tuple[int, int, T]] = []
        self._offered = 0

    def offer(self, name: str, make: Callable[[], T]) -> None:
        """Makes the thing only if it is kept for now."""
        self._offered += 1
        rank = -int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")
        if len(self._heap) < self._most:
            heapq.heappush(self._heap, (rank, self._offered, make()))
        elif self._heap and rank > self._heap[0][0]:
            heapq.heapreplace(self._heap, (rank, self._offered, make()))

    def chosen(self) -> list[T]:
        """What is kept, by hash."""
        return [thing for *_, thing in sorted(self._heap, key=lambda one: (-one[0], one[1]))]
