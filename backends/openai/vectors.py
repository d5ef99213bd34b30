"""Vectors as services write them: passed on as they came, and read as numbers only where somebody looks at them.

Reading and writing 1,024 numbers takes ten times as long as all else that is done for a short text. To check their
digits takes half as long as to read them, and there is nothing to be freed afterwards.
"""

from __future__ import annotations

import binascii
import json
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import import_module
from itertools import islice
from math import isfinite
from struct import unpack
from typing import Any, overload

from pydantic_core import SchemaValidator, core_schema, from_json

from llmdo.backends.http.reply_json import check_work, read_json, without_preamble

# Stands for a vector in JSON that is written before its vectors are filled in.
PLACE = f"vector {secrets.token_hex(16)}"
_QUOTED_PLACE = f'"{PLACE}"'.encode()
# A reply of fewer bytes and arrays cannot stop the loop for more than some 0.2 s.
_QUICK_BYTES, _MOST_ARRAYS = 8 << 20, 10_000
# In a number with a whole part of 309 digits or more there are this many bytes without a comma, and 8 bytes are looked
# at together. Shorter numbers without an exponent are in a float's range.
_SPAN, _WORD = 128, 8
_FEW = 64  # one exponent in this many bytes is looked at: more of them are read as quickly
_SPACES = (b"\n", b"\r", b"\t")
# Reads JSON, and makes nothing of the field in it.
_check = SchemaValidator(core_schema.typed_dict_schema({})).validate_json


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


def read_vector(numbers: Any) -> Sequence[float] | None:
    """A Vector, a list of numbers, or base64 of 32-bit floats; () where one of the numbers is NaN or beyond a float's
    range, and None for what is not a vector.
    """
    if isinstance(numbers, Vector | str):
        return _unpacked(numbers) if isinstance(numbers, str) else numbers
    if not isinstance(numbers, list) or not numbers:
        return None
    try:
        if isfinite(sum(numbers)):  # 8 times as fast as to look at each
            return tuple(map(float, numbers))
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


def read_vectors_json(content: bytes, warn: Callable[[str], None]) -> Any:
    """As read_json, with a Vector for each array of numbers, digit by digit as the service wrote it."""
    text = without_preamble(content)
    if len(text) > _QUICK_BYTES or text.count(b"]") > _MOST_ARRAYS:
        check_work(text)
    return with_vectors(text, lambda rest: read_json(rest, warn))


def with_vectors(text: bytes, read: Callable[[bytes], Any]) -> Any:
    """What ``read`` makes of JSON, with a Vector for each array of numbers.

    Arrays stay lists if a number is NaN or beyond a float's range, if there are texts with backslashes, and after very
    many arrays. Raises what ``read`` raises.
    """
    vectors: list[Vector] = []
    pieces: list[bytes] = []
    place = 0
    for start, stop in islice(_number_arrays(text), _MOST_ARRAYS):
        digits = _digits(text[start:stop])
        if digits:
            pieces += (text[place:start], b'"%s%d"' % (PLACE.encode(), len(vectors)))
            vectors.append(Vector(digits))
            place = stop
    return _filled(read(b"".join((*pieces, text[place:]))), vectors) if vectors else read(text)


def _number_arrays(text: bytes) -> Iterator[tuple[int, int]]:
    """Where the innermost arrays without any text in them are in valid JSON, in their order."""
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
                yield start, stop + 1
        place = stop + 1


def _digits(array: bytes) -> bytes:
    """The array without spaces and line breaks; b"" if it is not one of numbers in a float's range."""
    # true, false and null have one of these.
    if b"u" in array or b"f" in array or b"{" in array:
        return b""
    try:
        if _shrink(array) and _are_short(array):
            _check(b'{"":%s}' % array)
        elif not isfinite(sum(from_json(array))):
            return b""
    except (ValueError, OverflowError):
        return b""
    # Spaces cost bytes, and a line break would end a row. One byte is replaced in half the time of a translation.
    array = array.replace(b" ", b"") if b" " in array else array
    array = array.translate(None, b"\n\r\t") if any(space in array for space in _SPACES) else array
    return b"" if array == b"[]" else array


def _shrink(array: bytes) -> bool:
    """Whether exponents are few, and all negative."""
    place, left = -1, len(array) // _FEW + 1
    while (place := array.find(b"e", place + 1)) >= 0:
        if not left or array[place + 1 : place + 2] != b"-":
            return False
        left -= 1
    return b"E" not in array


def _are_short(array: bytes) -> bool:
    if len(array) < 2 * _SPAN:
        return True
    numpy = import_module("numpy")  # not before there are vectors: commands that make no call are quicker without it
    commas = numpy.frombuffer(array, "u1", len(array) // _SPAN * _SPAN) == ord(",")
    spans = commas.view(f"u{_WORD}").reshape(-1, _SPAN // _WORD)
    return bool(numpy.bitwise_or.reduce(spans, axis=1).all())


def _filled(value: Any, vectors: Sequence[Vector]) -> Any:
    if isinstance(value, str):
        return vectors[int(value.removeprefix(PLACE))] if value.startswith(PLACE) else value
    if isinstance(value, list):
        return [_filled(one, vectors) for one in value]
    return {name: _filled(one, vectors) for name, one in value.items()} if isinstance(value, dict) else value


def kept_vectors(vectors: object) -> tuple[Sequence[float], ...]:
    """Vectors as ``kept_json`` wrote them, or earlier versions of llmdo, from an entry that with_vectors has read.

    Raises ValueError for anything else.
    """
    if not isinstance(vectors, list):
        raise ValueError("not a list of vectors")
    return tuple(map(_kept, vectors))


def _kept(numbers: object) -> Sequence[float]:
    if numbers == []:
        return ()
    vector = read_vector(numbers)
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
