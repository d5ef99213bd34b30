"""Hands finished calls from the engine's thread to the bundle that submitted them. No Beam."""

from __future__ import annotations

import threading
from collections import deque
from typing import Generic, TypeVar

_T = TypeVar("_T")


class ResultQueue(Generic[_T]):
    """A queue whose one reader is woken for several items at a time: waking a thread costs as much CPU as a call."""

    def __init__(self) -> None:
        self._items: deque[_T] = deque()
        self._wanted = 0
        self._changed = threading.Condition(threading.Lock())

    def put(self, item: _T) -> None:
        """Adds an item without waiting."""
        with self._changed:
            self._items.append(item)
            if self._wanted and len(self._items) >= self._wanted:
                self._wanted = 0
                self._changed.notify()

    def take(self, wanted: int = 0, timeout_s: float = 0.0) -> list[_T]:
        """Returns all items, as soon as there are ``wanted`` or the time is over."""
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
