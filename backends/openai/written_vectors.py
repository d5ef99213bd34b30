"""Vectors as rows have them: as JSON numbers, or as 32-bit floats in base64."""

from __future__ import annotations

from collections.abc import Sequence
from math import floor, log10

import numpy as np
from pydantic_core import to_json

from llmdo.backends.openai.vectors import Vector, base64_json
from llmdo.backends.responses import VectorFormat

# By the exponent of a 32-bit float, the power of ten that makes it a whole number of 9 or 10 digits, as far as a double
# holds that power exactly.
_SCALES = np.array([10.0 ** min(max(9 - floor(log10(2) * (exponent - 126)), 0), 22) for exponent in range(256)])


def vector_json(vector: Sequence[float], form: VectorFormat = "float") -> bytes:
    """A vector as JSON; null for one that cannot be used.

    Numbers have the digits that the service wrote; those of floats that it packed are as few as can be.
    """
    if not vector:
        return b"null"
    packed = vector.packed if isinstance(vector, Vector) else b""
    if form == "base64":
        return base64_json(packed or _pack(vector))
    if packed:
        return shortest_json(packed)
    return vector.text if isinstance(vector, Vector) else to_json(vector, inf_nan_mode="null")


def _pack(vector: Sequence[float]) -> bytes:
    with np.errstate(over="ignore"):  # what is beyond a 32-bit float's range is infinity there
        return np.array(tuple(vector), "<f4").tobytes()


def shortest_json(packed: bytes) -> bytes:
    """32-bit floats as a JSON array of short numbers, each of which is read as the same 32-bit float again.

    Between 1e-14 and 1e9 they are as short as can be. NumPy itself takes five times as long, one by one.
    """
    exact = np.frombuffer(packed, "<f4")
    scales = _SCALES[(np.frombuffer(packed, "<u4") >> 23) & 255]
    # A whole number of 9 digits, divided by a power of ten, is as near to the decimal as a double can be.
    wholes = np.rint(exact * scales)
    found = wholes / scales
    for fewer in (10.0, 100.0, 1000.0, 10_000.0):
        shorter = np.rint(wholes / fewer)
        shorter *= fewer
        shorter /= scales
        same = shorter.astype("<f4") == exact
        if not same.any():
            break  # nor will any with fewer digits
        np.copyto(found, shorter, where=same)
    wrong = found.astype("<f4") != exact
    if wrong.any():  # very small ones
        for place in np.flatnonzero(wrong):
            found[place] = float(str(exact[place]))
    return to_json(found.tolist())
