"""Vectors as services write them: read, or refused for the text that they belong to, and for no other."""

import base64
import json
import struct

import pytest

from llmdo.backends.errors import BadReply
from llmdo.backends.openai.shapes import read_vector, read_vectors
from llmdo.backends.usage import Usage

NAN, INFINITY = float("nan"), float("inf")


def listed(*rows):
    return {"data": list(rows), "usage": {"prompt_tokens": 6, "total_tokens": 6}}


def read(*rows, count):
    return read_vectors(listed(*rows), "e", count)


def packed(*numbers):
    return base64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode()


@pytest.mark.parametrize(
    ("numbers", "vector"),
    [
        ([1, 2], (1.0, 2.0)),
        ([0.5, -0.0, 1e-45], (0.5, -0.0, 1e-45)),
        (packed(0.5, -2.0), (0.5, -2.0)),
        ([NAN, 0.5], ()),
        ([INFINITY], ()),
        ([0.5, None], ()),
        ([10**400], ()),
        (packed(NAN, 1.0), ()),
        ([], None),
        ([[0.5]], None),
        (["0.5"], None),
        ("no base64!", None),
        ("AAAA", None),
        (None, None),
        (7, None),
    ],
)
def test_numbers_become_a_vector_or_none_that_can_be_used_or_none_at_all(numbers, vector):
    assert read_vector(numbers) == vector


@pytest.mark.parametrize("index", [(1, 0), ("1", "0"), (1.0, 0.0)])
def test_an_index_may_be_written_in_any_way(index):
    rows = [{"index": place, "embedding": [value]} for place, value in zip(index, (1, 0), strict=True)]
    assert read(*rows, count=2) == ((0.0,), (1.0,))


def test_without_an_index_the_order_counts():
    assert read({"embedding": [1]}, {"embedding": [2]}, count=2) == ((1.0,), (2.0,))


def test_only_the_text_whose_vector_holds_nan_is_without_one():
    assert read({"embedding": [1]}, {"embedding": [NAN]}, {"embedding": [3]}, count=3) == ((1.0,), (), (3.0,))
    assert read([1], [NAN], [3], count=3) == ((1.0,), (), (3.0,))


def test_a_text_alone_with_such_a_vector_is_a_bad_reply_that_is_paid():
    with pytest.raises(BadReply, match="NaN or infinity") as caught:
        read({"embedding": [NAN, NAN]}, count=1)
    assert caught.value.usage == Usage(6)
    with pytest.raises(BadReply, match="NaN or infinity"):
        read([NAN], count=1)


def test_what_python_writes_for_nan_is_read_so():
    assert read_vector(json.loads("[NaN, Infinity]")) == ()
