"""The ends of calls, on their way from the engine's thread to a bundle's. No Beam."""

from __future__ import annotations

import threading
from collections import deque
from typing import Generic, TypeVar

_T = TypeVar("_T")


class ResultQueue(Generic[_T]):
    """A queue with one reader, who is woken for several at a time: to wake a thread for each costs a call's CPU."""

    def __init__(self) -> None:
        self._items: deque[_T] = deque()
        self._wanted = 0
        self._changed = threading.Condition(threading.Lock())

    def put(self, item: _T) -> None:
        """Does not wait."""
        with self._changed:
            self._items.append(item)
            if self._wanted and len(self._items) >= self._wanted:
                self._wanted = 0
                self._changed.notify()

    def take(self, wanted: int = 0, timeout_s: float = 0.0) -> list[_T]:
        """All that is there, as soon as it is ``wanted`` or more, or the time is over."""
        if not wanted and not self._items:
            return []
        with self._changed:
            if len(self._items) < wanted:
                self._wanted = wanted
                self._changed.wait(timeout_s)
                self._wanted = 0
            items = list(self._items)
            self._items.clear()
        return items
