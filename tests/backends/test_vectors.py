"""Vectors as services write them: read, or refused for the text that they belong to, and for no other; and how they are
written and kept.
"""

import base64
import json
import pickle
import struct
import tracemalloc

import numpy as np
import pytest

from llmdo.backends.errors import BadReply
from llmdo.backends.openai.shapes import read_vectors
from llmdo.backends.openai.vectors import Vector, kept_json, kept_vectors, read_vector, read_vectors_json, with_vectors
from llmdo.backends.openai.written_vectors import shortest_json, vector_json
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


DIGITS = (b"[0.10000000149011612,-0.0,1E-2,7,0.123456789012345678901]", b"[3e-05,2.50,-1,0,1]")


@pytest.mark.parametrize(
    "reply",
    [
        b'{"data": [{"index": 1, "embedding": %s}, {"index": 0, "embedding": %s}]}' % (DIGITS[1], DIGITS[0]),
        b'{"shape": [2, 5], "data": [%s, %s], "pooling": "[mean]"}' % DIGITS,
        b' : a comment "\n{"id": "]][[1,2", "data": [{"embedding": %s}, {"tags": [0, 7], "embedding": %s}]}' % DIGITS,
        b'{"data": [\r\n%s,\n%s]}' % tuple(digits.replace(b",", b" ,\r\n\t") for digits in DIGITS),
    ],
)
def test_a_vector_keeps_the_digits_of_the_service_without_spaces_and_line_breaks(reply):
    vectors = read_vectors(read_vectors_json(reply, pytest.fail), "e", 2)
    assert tuple(map(vector_json, vectors)) == DIGITS
    assert vectors == tuple(tuple(map(float, json.loads(digits))) for digits in DIGITS)


@pytest.mark.parametrize(
    "reply",
    [
        rb'{"data": [{"text": "\"[0.5,x,0.25]", "embedding": [0.5,0.1,0.25]}]}',
        b'{"data": [{"text": "[0.5,x,0.25]", "embedding": [0.5,0.1,0.25]}]}',
        b'{"data": [{"text": ["[0.5,x,0.25]", 1], "embedding": [0.5,0.1,0.25]}]}',
        b'{"others": [[0.5,NaN,0.25]], "data": [{"embedding": [0.5,0.1,0.25]}]}',
        '{"data": [{"embedding": [0.5,0.1,0.25]}]}'.encode("utf-16"),
    ],
)
def test_nothing_else_in_a_reply_is_taken_for_a_vectors_digits(reply):
    (vector,) = read_vectors(read_vectors_json(reply, pytest.fail), "e", 1)
    assert vector_json(vector) == b"[0.5,0.1,0.25]"


LONG = b"1" * 308


@pytest.mark.parametrize(
    "digits",
    [
        b"[%s]" % b",".join([b"1E2"] * 500),
        b"[%s]" % b",".join([b"-1.5e-07"] * 500),
        b"[1e-999,2e+300,0.5e0]",
        b"[%s,%s.5]" % (b"0.25," * 200 + b"1", LONG),
        b"[0.%s,%s]" % (LONG * 3, b"0.5," * 200 + b"7"),
    ],
)
def test_numbers_of_any_form_keep_their_digits(digits):
    assert Vector(digits) == tuple(map(float, json.loads(digits)))
    body = read_vectors_json(b'{"data": [%s]}' % digits, pytest.fail)
    assert [vector_json(vector) for vector in body["data"]] == [digits]


@pytest.mark.parametrize(
    "array",
    [
        b"[1e999,0.5]",
        b"[0.5,-1E+999]",
        b"[%s11.5,0.5]" % LONG,
        b"[%s11,%s]" % (LONG, b"0.5," * 300 + b"1"),
        b"[0.5,null]",
    ],
)
def test_numbers_beyond_a_floats_range_are_found_in_any_form(array):
    body = read_vectors_json(b'{"data": [[0.5, 0.25], %s]}' % array, pytest.fail)
    assert read_vectors(body, "e", 2) == ((0.5, 0.25), ())


@pytest.mark.parametrize("array", [b"[]", b"[   ]", b"[true]", b"[false]", b"[{}]", b"[0.5, {}]"])
def test_what_is_not_an_array_of_numbers_is_read_as_ever(array):
    body = read_vectors_json(b'{"tags": %s, "tags": %s, "data": [[1, 2]]}' % (array, array), pytest.fail)
    assert body == {"tags": json.loads(array), "data": [Vector(b"[1,2]")]}


@pytest.mark.parametrize("array", [b"[1 2]", b"[01]", b"[.5]", b"[1,]", b"[,1]", b"[-]", b"[1.]", b"[1e-]", b"[1, 2"])
def test_what_is_not_json_is_not_taken_for_digits(array):
    with pytest.raises(ValueError, match=r"Expecting|Extra"):
        read_vectors_json(b'{"data": [[0.5, 0.25], %s]}' % array, pytest.fail)


def test_no_number_is_made_of_a_vectors_digits():
    row = json.dumps(np.random.default_rng(17).normal(size=1024).tolist()).encode()
    reply = b'{"data": [%s]}' % b",".join([b'{"embedding": %s}' % row] * 64)
    tracemalloc.start()
    try:
        body = read_vectors_json(reply, pytest.fail)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1.5 * len(reply)
    assert [vector.text for vector in read_vectors(body, "e", 64)] == [row.replace(b" ", b"")] * 64


@pytest.mark.parametrize("part", [b"1,", b"1E1,", b"[],", b"[1],", b'{"":1},'])
def test_a_reply_that_would_stop_the_loop_is_refused(part):
    reply = b'{"data": [%s1]}' % (part * (9_000_000 // len(part)))
    with pytest.raises(BadReply, match="too many parts"):
        read_vectors_json(reply, pytest.fail)


def test_very_many_vectors_are_read():
    body = read_vectors_json(b'{"data": [%s[0.5]]}' % (b"[0.50]," * 20_000), pytest.fail)
    assert read_vectors(body, "e", 20_001) == ((0.5,),) * 20_001


def test_an_error_shows_what_came_instead_of_vectors():
    body = read_vectors_json(b'{"data": [[0.50, 1]], "model": "e"}', pytest.fail)
    with pytest.raises(BadReply, match=r'1 vectors for 2 texts \(\{"data":\[\[0.5,1.0\]\],"model":"e"\}\)'):
        read_vectors(body, "e", 2)


def test_packed_vectors_are_written_with_the_fewest_digits_that_are_the_same_floats():
    chance = np.random.default_rng(17)
    for numbers in (
        np.frombuffer(chance.bytes(80_000), "<f4"),
        chance.normal(size=20_000) * 10.0 ** chance.integers(-13, 8, 20_000),
        np.round(chance.normal(size=20_000), 3),
        np.array([0.0, -0.0, 1.0, 0.1, 16777216.0, 0.3333333, 9.999999e-5, 999999.9, 1e-45, 3.4028235e38]),
    ):
        floats = numbers[np.isfinite(numbers)].astype("<f4")
        written = json.loads(shortest_json(floats.tobytes()))
        assert [len(repr(number)) for number in written] == [len(repr(float(str(number)))) for number in floats]
        assert np.array(written).astype("<f4").tobytes() == floats.tobytes()


@pytest.mark.parametrize("vector", [Vector(b"[0.1,2]"), Vector(packed=struct.pack("<2f", 0.5, 2)), (0.1, 2.0), ()])
def test_a_vector_comes_back_from_the_ledger_and_from_a_pickle_as_it_was(vector):
    entry = b'{"vectors": [%s]}' % kept_json(vector)
    (again,) = kept_vectors(with_vectors(entry, json.loads)["vectors"])
    for copy in (again, pickle.loads(pickle.dumps(vector))):
        assert (copy, len(copy), list(copy)) == (vector, len(vector), list(vector))
        assert vector_json(copy) == vector_json(vector)


@pytest.mark.parametrize("entry", [b"null", b"{}", b'["AAAA"]', b'["no base64!"]', b'[["0.5"]]', b"[7]", b"[null]"])
def test_what_is_not_a_vector_in_an_entry_is_not_read_as_one(entry):
    with pytest.raises(ValueError, match="vector"):
        kept_vectors(with_vectors(entry, json.loads))


def test_as_base64_a_vector_has_its_32_bit_floats():
    packed = struct.pack("<2f", 0.1, -2.0)
    for vector in (Vector(b"[0.1,-2]"), Vector(packed=packed), (0.1, -2.0)):
        assert base64.b64decode(json.loads(vector_json(vector, "base64"))) == packed
    assert vector_json((), "base64") == b"null"
