"""Listings of many pages, as of S3: stretches of the keys are listed side by side, and what they find comes in order.

A page cannot be asked for by its number, so where a later stretch begins is guessed from the keys of a page, as if the
next ones were numbered as they are. A stretch ends at the key where the next one begins, whatever is there: a bad guess
costs an operation, and neither loses nor repeats a key.
"""

from __future__ import annotations

import string
import threading
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from posixpath import commonprefix
from typing import Generic, Protocol, TypeVar

# Pages that are listed one after the other before anything is guessed: most listings are shorter.
_ALONE = 3
# Operations in flight, and pages that wait to be read.
_MOST_AT_ONCE, _PAGES_AHEAD = 16, 64
# How long a stretch is meant to be, in pages, when it is guessed at again, and after a guess that found nothing.
_STRETCH, _TOO_LONG, _SOON = 8, 12, 2
# How many pages may be listed in vain, at first and for each that is not.
_SPARE, _SPARE_OF_EACH = 4.0, 1 / 8
# Keys of a page that are looked at, and how many characters of them after those that they share.
_LOOKED_AT, _DIGITS = 100, 40
# A place has had all its digits where what is before it has had more values than these: the first and the last of them
# need not be whole.
_ALL_SEEN = 2
# Those before it have one order, whether keys are compared by their UTF-8, their UTF-16 or their code points.
_FIRST_SURROGATE = "\ud800"
# Digits and letters that go together: all of the first one whose characters include those that were seen.
_FAMILIES = ((string.digits,), ("abcdef", string.ascii_lowercase), ("ABCDEF", string.ascii_uppercase))


class _Keyed(Protocol):
    @property
    def key(self) -> str:
        """What a listing is ordered by."""


_Item = TypeVar("_Item", bound=_Keyed)
# Lists the page that these parameters ask for: its objects, and the token of the page after it, or "".
PageSource = Callable[[Mapping[str, str]], tuple[Sequence[_Item], str]]


def list_pages(fetch: PageSource[_Item], prefix: str) -> Iterator[_Item]:
    """All objects below a prefix in the order of their keys.

    Pages are fetched side by side from the fourth on, up to some 100 ahead of what is read. There are at most an eighth
    and ten more operations than if they were fetched one after the other.
    """
    asked: Mapping[str, str] = {}
    for _ in range(_ALONE):
        page, token = fetch(asked)
        yield from page
        if not token:
            return
        asked = {"continuation-token": token}
    stretches = _Stretches(fetch, prefix, _Stretch(asked, upto=None, page=page))
    try:
        yield from stretches.objects()
    finally:
        stretches.close()


@dataclass(eq=False, slots=True)
class _Stretch(Generic[_Item]):
    """Keys after what was asked for, to ``upto`` (None: to the end), which are listed page by page.

    Attributes:
        asked: the parameters of its next page, or None if there is none.
        page: the last page, or nothing before the first one.
        found: pages that were not read yet.
        left: pages that it is believed to have before it is guessed at again.
        planned: how many pages the guess was to be.
    """

    asked: Mapping[str, str] | None
    upto: str | None
    page: Sequence[_Item] = ()
    found: deque[Sequence[_Item]] = field(default_factory=deque)
    left: int = 0
    listed: int = 0
    planned: int = 0
    busy: bool = False
    error: BaseException | None = None


class _Stretches(Generic[_Item]):
    """All that is left of a listing. One thread reads."""

    def __init__(self, fetch: PageSource[_Item], prefix: str, first: _Stretch[_Item]) -> None:
        self._fetch, self._prefix = fetch, prefix
        self._ordered = deque([first])
        self._changed = threading.Condition()
        self._threads = ThreadPoolExecutor(_MOST_AT_ONCE, thread_name_prefix="llmdo-listing")
        self._in_flight = 0
        self._scale = 1.0  # what guesses were wrong by
        self._useful, self._in_vain = float(_ALONE), 0.0  # pages
        self._closed = False
        self._leap(first)

    def close(self) -> None:
        """Asks for nothing more; what is in flight ends by itself."""
        with self._changed:
            self._closed = True
        self._threads.shutdown(wait=False, cancel_futures=True)

    def objects(self) -> Iterator[_Item]:
        """All of them, in order. Raises what an operation raised, after the objects before it."""
        while (page := self._next_page()) is not None:
            yield from page

    def _next_page(self) -> Sequence[_Item] | None:
        with self._changed:
            while self._ordered:
                self._start()
                first = self._ordered[0]
                if first.found:
                    return first.found.popleft()
                if first.error is not None:
                    raise first.error
                if first.asked is None:
                    self._ordered.popleft()
                    continue
                self._changed.wait()
        return None

    def _start(self) -> None:
        """Asks for pages, those that are read first before the others."""
        ahead = 0
        for number, one in enumerate(self._ordered):
            ahead += len(one.found) + one.busy
            if self._in_flight >= _MOST_AT_ONCE or (number and ahead >= _PAGES_AHEAD):
                return
            if not one.busy and one.asked is not None and one.error is None:
                one.busy = True
                self._in_flight += 1
                self._threads.submit(self._list, one, one.asked)

    def _list(self, one: _Stretch[_Item], asked: Mapping[str, str]) -> None:
        found: tuple[Sequence[_Item], str] | None = None
        try:
            found = self._fetch(asked)
        except BaseException as raised:  # noqa: BLE001  whoever reads raises it
            one.error = raised
        with self._changed:
            one.busy = False
            self._in_flight -= 1
            try:
                if found is not None:
                    self._take(one, *found)
                if not self._closed:
                    self._start()
            except Exception as raised:  # noqa: BLE001
                self._ordered[0].error = raised
            self._changed.notify_all()

    def _take(self, one: _Stretch[_Item], page: Sequence[_Item], token: str) -> None:
        kept = page
        if one.upto is not None and page and page[-1].key >= one.upto:
            kept, token = [info for info in page if info.key <= one.upto], ""
        one.asked = {"continuation-token": token} if token else None
        one.page, one.listed, one.left = page, one.listed + 1, one.left - 1
        useful = len(kept) / len(page) if page else 0.0
        self._useful, self._in_vain = self._useful + useful, self._in_vain + 1.0 - useful
        if kept:
            one.found.append(kept)
        elif not one.planned:  # there is nothing where it was guessed to begin
            self._scale /= 2.0
            at = self._ordered.index(one)
            self._ordered[max(at - 1, 0)].left = _SOON
        if token:
            if one.left <= 0:
                self._leap(one)
        elif one.planned and one.listed <= one.planned // 2:
            self._scale *= 2.0

    def _leap(self, one: _Stretch[_Item]) -> None:
        """Lets another stretch begin some pages further on, if that is likely to pay."""
        if one.planned and one.listed > one.planned:
            self._scale /= 1.5
        one.left = _SOON
        working = sum(other.asked is not None for other in self._ordered)
        spare = _SPARE + self._useful * _SPARE_OF_EACH - self._in_vain - working / 2
        if spare < 0 or not one.page:
            return
        keys = [info.key for info in one.page]
        beginning = key_ahead(keys, self._prefix, _STRETCH * self._scale)
        if beginning is None or beginning <= keys[-1] or (one.upto is not None and beginning >= one.upto):
            return
        self._ordered.insert(self._ordered.index(one) + 1, _Stretch({"start-after": beginning}, one.upto))
        one.upto, one.left, one.listed, one.planned = beginning, _TOO_LONG, 0, _STRETCH


def key_ahead(keys: Sequence[str], prefix: str, pages: float) -> str | None:
    """A key, not an existing one, that lies this number of pages behind a page, if its keys go on alike.

    They are taken for numbers, each character for a digit among those that are seen at its place. None if there is no
    such key below the prefix.
    """
    first, last = keys[0], keys[-1]
    same = len(commonprefix([first, last]))
    some = [*keys[:: max(len(keys) // _LOOKED_AT, 1)], last]
    seen = [{key[place] for key in some if len(key) > place} for place in range(min(len(last), same + _DIGITS))]
    varied = {char for chars in islice(seen, same, same + 4) if len(chars) > 1 for char in chars}
    digits = [sorted(chars) for chars in seen]
    for place in range(len(prefix), len(seen)):
        if place > same and len({key[:place] for key in some}) > _ALL_SEEN:
            break
        digits[place] = _completed(seen[place], varied)

    def number(key: str) -> int:
        value = 0
        for place, chars in enumerate(digits):
            value = value * len(chars) + (bisect_left(chars, key[place]) if place < len(key) else 0)
        return value

    value = number(last) + int((number(last) - number(first)) * pages)
    text = []
    for chars in reversed(digits):
        value, digit = divmod(value, len(chars))
        text.append(chars[digit])
    ahead = "".join(reversed(text))
    usable = next((place for place, char in enumerate(ahead) if char >= _FIRST_SURROGATE), len(ahead))
    return None if value else ahead[:usable]


def _completed(seen: set[str], varied: set[str]) -> list[str]:
    """The digits of a place that has not had all of them yet: letters and digits like those that were seen."""
    if not all(map(str.isascii, seen)):
        return list(map(chr, range(ord(min(seen)), ord(_FIRST_SURROGATE)))) or sorted(seen)
    if not all(map(str.isalnum, seen)):
        return sorted(seen)
    alike = seen | {char for char in varied if char.isascii() and char.isalnum()}
    for families in _FAMILIES:
        there = alike.intersection(families[-1])
        if there:
            alike |= next(family for family in map(set, families) if there <= family)
    return sorted(alike)
