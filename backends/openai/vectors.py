"""Vectors as services write them: passed on as they came, and read as numbers only where somebody looks at them.

Reading and writing 1,024 numbers takes ten times as long as all else that is done for a short text.
"""

from __future__ import annotations

import binascii
import json
import secrets
from collections.abc import Iterable, Iterator, Sequence
from importlib import import_module
from math import isfinite
from struct import unpack
from typing import Any, overload

from pydantic_core import from_json

# Stands for a vector in JSON that is written before its vectors are filled in.
PLACE = f"vector {secrets.token_hex(16)}"
_QUOTED_PLACE = f'"{PLACE}"'.encode()


class Vector(Sequence[float]):
    """The numbers of one text's vector; equal to a tuple of the same numbers.

    Attributes:
        text: a JSON array, digit by digit as it was written, or b"".
        packed: instead of ``text``: 32-bit floats, the least significant byte first.
    """

    __slots__ = ("_numbers", "packed", "text")

    def __init__(self, text: bytes = b"", packed: bytes = b"") -> None:
        self.text = text
        self.packed = packed
        self._numbers: tuple[float, ...] | None = None

    @property
    def numbers(self) -> tuple[float, ...]:
        """All of them."""
        if self._numbers is None:
            if self.text:
                self._numbers = tuple(map(float, from_json(self.text)))
            else:
                self._numbers = unpack(f"<{len(self.packed) // 4}f", self.packed)
        return self._numbers

    @overload
    def __getitem__(self, index: int) -> float: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[float, ...]: ...

    def __getitem__(self, index: int | slice) -> float | tuple[float, ...]:
        return self.numbers[index]

    def __len__(self) -> int:
        return len(self.packed) // 4 if self.packed else self.text.count(b",") + 1

    def __bool__(self) -> bool:
        return True

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Vector | tuple):
            return NotImplemented
        return bool(other) and self.numbers == tuple(other)

    def __hash__(self) -> int:
        return hash(self.numbers)

    def __repr__(self) -> str:
        return repr(self.numbers)

    def __reduce__(self) -> tuple[type[Vector], tuple[bytes, bytes]]:
        return Vector, (self.text, self.packed)


def filled_in(text: bytes, vectors: Iterable[bytes]) -> bytes:
    """JSON in which each PLACE is replaced by the JSON of a vector, in their order."""
    first, *others = text.split(_QUOTED_PLACE)
    pieces = [first]
    for vector, piece in zip(vectors, others, strict=True):
        pieces += (vector, piece)
    return b"".join(pieces)


def read_vector(numbers: Any, arrays: Iterator[bytes] | None = None) -> Sequence[float] | None:
    """A list of numbers, or base64 of 32-bit floats; () where one of the numbers is NaN or beyond a float's range, and
    None for what is not a vector.

    ``arrays``: see number_arrays; the list's text is among them, after those of earlier lists.
    """
    if isinstance(numbers, str):
        return _unpacked(numbers)
    if not isinstance(numbers, list) or not numbers:
        return None
    try:
        if isfinite(sum(numbers)):  # 8 times as fast as to look at each
            text = _text_of(numbers, arrays or iter(()))
            return Vector(text) if text else tuple(map(float, numbers))
    except (TypeError, OverflowError):
        pass
    if not all(isinstance(x, int | float | None) for x in numbers):
        return None
    try:
        vector = tuple(map(float, numbers))
    except (TypeError, OverflowError):  # null is what reading has made of NaN
        return ()
    return vector if all(map(isfinite, vector)) else ()


def _unpacked(text: str) -> Sequence[float] | None:
    try:
        packed = binascii.a2b_base64(text, strict_mode=True)
    except ValueError:
        return None
    if not packed or len(packed) % 4:
        return None
    numpy = import_module("numpy")  # not before there are vectors: commands that make no call are quicker without it
    return Vector(packed=packed) if numpy.isfinite(numpy.frombuffer(packed, "<f4")).all() else ()


def number_arrays(text: bytes) -> Iterator[bytes]:
    """The innermost arrays without any text in them, as they stand in valid JSON, in their order.

    Nothing is found in JSON with backslashes, whose texts would have to be read, or with NaN or infinity.
    """
    # A letter is looked for 20 times as fast as a word.
    if b"\\" in text or (b"N" in text and b"NaN" in text) or (b"I" in text and b"Infinity" in text):
        return
    place, quotes = 0, 0
    while (stop := text.find(b"]", place)) >= 0:
        start = text.rfind(b"[", place, stop)
        if start < 0:
            quotes += text.count(b'"', place, stop)
        else:
            quotes += text.count(b'"', place, start)
            if text.find(b'"', start, stop) >= 0:  # counting takes 10 times as long
                quotes += text.count(b'"', start, stop)
            elif not quotes % 2:  # else it is a part of a text
                yield text[start : stop + 1]
        place = stop + 1


def _text_of(numbers: Sequence[float], arrays: Iterator[bytes]) -> bytes | None:
    for text in arrays:
        first, _, _ = text[1:-1].partition(b",") if len(text) < 64 else text[1:64].partition(b",")
        last = text[text.rfind(b",") + 1 : -1] if len(numbers) > 1 else text[1:-1]
        if text.count(b",") + 1 == len(numbers) and _is(first, numbers[0]) and _is(last, numbers[-1]):
            # Spaces cost bytes, and a line break would end a row.
            spaced = any(space in text for space in (b" ", b"\n", b"\r", b"\t"))
            return text.translate(None, b" \n\r\t") if spaced else text
    return None


def _is(digits: bytes, number: float) -> bool:
    try:
        return float(digits) == number
    except ValueError:
        return False


def kept_vectors(vectors: object, text: bytes) -> tuple[Sequence[float], ...]:
    """Vectors as ``kept_json`` wrote them, or earlier versions of llmdo, from the JSON of an entry and its text.

    Raises ValueError for anything else.
    """
    if not isinstance(vectors, list):
        raise ValueError("not a list of vectors")
    arrays = number_arrays(text)
    return tuple(_kept(vector, arrays) for vector in vectors)


def _kept(numbers: object, arrays: Iterator[bytes]) -> Sequence[float]:
    if numbers == []:
        return ()
    vector = read_vector(numbers, arrays)
    if vector == () and isinstance(numbers, list) and None not in numbers:
        return tuple(map(float, numbers))  # earlier versions kept NaN
    if not vector:
        raise ValueError("not a vector")
    return vector


def kept_json(vector: Sequence[float]) -> bytes:
    """A vector as JSON from which kept_vectors makes the same one, whatever numbers it holds."""
    if not isinstance(vector, Vector):
        return json.dumps(vector).encode()
    return vector.text or base64_json(vector.packed)


def base64_json(packed: bytes) -> bytes:
    """Packed floats as JSON: base64 between quotation marks."""
    return b'"%s"' % binascii.b2a_base64(packed, newline=False)
