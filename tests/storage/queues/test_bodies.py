import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmdo.storage.queues.bodies import decode_body

EVENT = {"action": "PutObject", "bucket": "b", "object": {"key": "ü k", "size": 1}}


def b64(value):
    data = value if isinstance(value, bytes) else value.encode()
    return base64.b64encode(data).decode()


TEXT = json.dumps(EVENT)


@pytest.mark.parametrize(
    ("raw", "content_type", "body"),
    [
        (b64(TEXT), "json", EVENT),  # as documented
        (TEXT, "json", EVENT),  # as the documentation's sample does it
        (EVENT, "json", EVENT),  # decoded on the way
        (b64(json.dumps(TEXT)), "json", EVENT),  # encoded twice
        (json.dumps(TEXT), "json", EVENT),
        (b64(b64(TEXT)), "bytes", EVENT),
        (b64(TEXT), "bytes", EVENT),
        (TEXT, "text", EVENT),
        (b64(TEXT), "text", EVENT),
        (b64(TEXT), "something-new", EVENT),
        (b64("[1]"), "json", [1]),
        (b64("5"), "json", 5),
        (b64("null"), "json", None),
        (b64('"hello"'), "json", "hello"),
        (b64('"5"'), "json", "5"),
        ("hello", "text", "hello"),
        ("5", "text", "5"),
        ("", "text", ""),
        (b64(b"\x00\xff"), "bytes", b"\x00\xff"),
        (7, "json", 7),
    ],
)
def test_a_body_is_read_as_its_type_says_or_as_senders_do_it(raw, content_type, body):
    decoded = decode_body(raw, content_type)
    assert decoded.body == body
    assert type(decoded.body) is type(body)
    assert decoded.decodable


@pytest.mark.parametrize(
    ("raw", "content_type"),
    [
        ("hello", "json"),
        ("", "json"),
        (b64("{broken"), "json"),
        (b64(b"\x00\xff"), "json"),
        ("///", "bytes"),
        (b64(TEXT), "v8"),
        (None, "json"),
    ],
)
def test_what_cannot_be_read_stays_as_it_came(raw, content_type):
    assert decode_body(raw, content_type) == (raw, False)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
objects = st.dictionaries(st.text(max_size=5), json_values, max_size=4)


@given(objects, st.sampled_from(["json", "bytes", "text", "unknown"]), st.booleans())
def test_an_object_is_found_however_it_was_sent(value, content_type, plain):
    text = json.dumps(value)
    assert decode_body(text if plain else b64(text), content_type) == (value, True)


@given(json_values, st.sampled_from(["json", "bytes", "text", "v8", ""]))
def test_no_body_raises(raw, content_type):
    decoded = decode_body(raw, content_type)
    assert decoded.decodable or decoded.body is raw
