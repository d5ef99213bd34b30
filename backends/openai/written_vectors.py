"""Vectors as rows have them: as JSON numbers, or as 32-bit floats in base64."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import orjson
from pydantic_core import to_json

from llmdo.backends.openai.vectors import Vector, base64_json
from llmdo.backends.responses import VectorFormat


def vector_json(vector: Sequence[float], form: VectorFormat = "float") -> bytes:
    """A vector as JSON; null for one that cannot be used.

    Numbers have the digits that the service wrote; those of floats that it packed are as few as can be.
    """
    if not vector:
        return b"null"
    packed = vector.packed if isinstance(vector, Vector) else b""
    if form == "base64":
        return base64_json(packed or packed_numbers(vector))
    if packed:
        return shortest_json(packed)
    return vector.text if isinstance(vector, Vector) else to_json(vector, inf_nan_mode="null")


def packed_numbers(vector: Sequence[float]) -> bytes:
    """Numbers as 32-bit floats, the least significant byte first."""
    numbers = orjson.loads(vector.text) if isinstance(vector, Vector) else vector
    with np.errstate(over="ignore"):  # what is beyond a 32-bit float's range is infinity there
        return np.array(numbers, "<f4").tobytes()


def shortest_json(packed: bytes) -> bytes:
    """32-bit floats as a JSON array of the shortest numbers that are read as the same 32-bit floats again."""
    return orjson.dumps(np.frombuffer(packed, "<f4"), option=orjson.OPT_SERIALIZE_NUMPY)
