"""Which names lead into a place, and that nothing else does, however it is written."""

from __future__ import annotations

import os.path
from urllib.parse import quote

import pytest
import yarl
from hypothesis import given
from hypothesis import strategies as st

from llmdo.storage.errors import InvalidLocation
from llmdo.storage.media.places import MediaPlace, file_address, media_place, r2_address, web_address


def leads_in(name: str, place: MediaPlace) -> bool:
    address = r2_address(name) or web_address(name)
    if place.store.startswith("/"):
        address = file_address(name, place.store)
    return address is not None and place.holds(address.store, address.key)


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("r2://bucket", "r2://bucket/a.png"),
        ("r2://bucket/", "r2://bucket/a/b c/ü.png"),
        ("r2://bucket/a", "r2://bucket/a"),
        ("r2://bucket/a", "r2://bucket/a/b.png"),
        ("r2://bucket/a/", "r2://bucket/a//b.png"),
        ("r2://bucket/a/", "r2://bucket/a/..b/c...png"),
        ("r2://bucket/a/", "r2://bucket/a/%2e%2e/b.png"),  # keys are literal
        ("r2://bucket//", "r2://bucket//b.png"),
        ("https://example.com", "https://example.com/a.png"),
        ("https://example.com/a/", "https://example.com/a/b.png?sign=1"),
        ("https://example.com:443/a", "https://EXAMPLE.com/a/b%20c.png"),
        ("http://127.0.0.1:8000/", "http://127.0.0.1:8000/x"),
        ("https://[::1]:8000/", "https://[::1]:8000/x"),
        ("/data/photos", "/data/photos/a/b.png"),
        ("/data/photos/", "file:///data/photos/a%20b.png"),
        ("file:///data/photos", "file://localhost/data/photos/a.png"),
    ],
)
def test_a_name_in_a_place_leads_there(place, name):
    assert leads_in(name, media_place(place))


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("r2://bucket/a/", "r2://bucket/b.png"),
        ("r2://bucket/a", "r2://bucket/ab.png"),
        ("r2://bucket/a/", "r2://bucket/a/../b.png"),
        ("r2://bucket/a/", "r2://bucket/a/./b.png"),
        ("r2://bucket/a/", "r2://bucket/../bucket/a/b.png"),
        ("r2://bucket//", "r2://bucket/b.png"),
        ("r2://bucket", "r2://bucket2/b.png"),
        ("r2://bucket", "r2://bucket"),
        ("r2://bucket", "r2://bucket/"),
        ("r2://bucket", "r2:///bucket/a.png"),
        ("r2://bucket", "r2://x@bucket/a.png"),
        ("r2://bucket", "r2://bucket/a\0b"),
        ("r2://bucket", "r2://bucket/a/.."),
        ("r2://bucket", "https://bucket/a.png"),
        ("https://example.com/a/", "https://example.com/b.png"),
        ("https://example.com/a", "https://example.com/ab"),
        ("https://example.com/a/", "https://example.com/a/../b.png"),
        ("https://example.com/a/", "https://example.com/a/%2e%2e/b.png"),
        ("https://example.com/a/", "https://example.com/a/%252e%252e/b.png"),
        ("https://example.com/a/", "https://example.com/a/..%2fb.png"),
        ("https://example.com/a/", "https://example.com/a/..%5cb.png"),
        ("https://example.com/a/", "https://example.com/a/..\\b.png"),
        ("https://example.com/a/", "https://example.com/a\t/../b.png"),
        ("https://example.com", "http://example.com/a.png"),
        ("https://example.com", "https://example.com:8443/a.png"),
        ("https://example.com", "https://example.com./a.png"),
        ("https://example.com", "https://example.com@127.0.0.1/a.png"),
        ("https://example.com", "https://user:pass@example.com/a.png"),
        ("https://example.com", "https://127.0.0.1#@example.com/a.png"),
        ("https://example.com", "https://127.0.0.1\\@example.com/a.png"),
        ("https://example.com", "https://example.com.evil.test/a.png"),
        ("https://example.com", "https://evil.test/https://example.com/a.png"),
        ("https://example.com", "//example.com/a.png"),
        ("https://example.com", "https:/example.com/a.png"),
        ("https://example.com", " https://example.com/a.png"),
        ("https://example.com", "https://ｅxample.com/a.png"),
        ("https://example.com", "https://example.com:99999/a.png"),
        ("http://127.0.0.1/", "http://2130706433/a.png"),
        ("http://127.0.0.1/", "http://127.1/a.png"),
        ("http://127.0.0.1/", "http://0x7f.0.0.1/a.png"),
        ("/data/photos", "/data/photos"),
        ("/data/photos", "/data/photos/"),
        ("/data/photos", "/data/photos2/a.png"),
        ("/data/photos", "/data/photos/../a.png"),
        ("/data/photos", "/data/photos//etc/passwd"),
        ("/data/photos", "/etc/passwd"),
        ("/data/photos", "data/photos/a.png"),
        ("/data/photos", "file:///data/photos/%2e%2e/a.png"),
        ("/data/photos", "file:///data/photos/a%00.png"),
        ("/data/photos", "file://host/data/photos/a.png"),
        ("/data/photos", "file:data/photos/a.png"),
    ],
)
def test_no_other_name_leads_into_a_place(place, name):
    assert not leads_in(name, media_place(place))


@pytest.mark.parametrize(
    "place",
    [
        "r2://",
        "r2://ab",
        "r2://BUCKET/",
        "r2://bucket/../other/",
        "https://",
        "https://user:pass@example.com/",
        "https://example.com/a?sign=1",
        "https://example.com/a/../",
        "s3://bucket/",
    ],
)
def test_a_place_that_cannot_be_one_is_refused_with_what_to_write(place):
    with pytest.raises(InvalidLocation, match=r"write|use"):
        media_place(place)


@pytest.mark.parametrize("place", ["r2://bucket", "r2://bucket/a/", "r2://bucket//", "https://h.test/a", "/data/x"])
def test_a_place_is_read_back_from_its_text(place):
    assert media_place(media_place(place).url) == media_place(place)


_PIECES = st.lists(
    st.sampled_from(["a", "b", "..", ".", "", "%2e%2e", "%2f", "..%2f", "\\", " ", "ü", "a\0"]), max_size=6
)


@given(_PIECES)
def test_a_key_is_in_a_prefix_exactly_if_it_begins_with_it_and_cannot_climb(pieces):
    key = "/".join(pieces)
    allowed = leads_in(f"r2://bucket/{key}", media_place("r2://bucket/a/"))
    assert allowed == (key.startswith("a/") and not {".", ".."} & set(pieces) and "\0" not in key)


@given(_PIECES)
def test_a_path_in_a_folder_never_leaves_it(pieces):
    for name in (f"/data/a/{'/'.join(pieces)}", f"file:///data/a/{quote('/'.join(pieces))}"):
        address = file_address(name, "/data/a")
        if address is not None:
            assert os.path.normpath(f"/data/a/{address.key}") == f"/data/a/{address.key}"


@given(_PIECES)
def test_a_url_that_climbs_is_in_no_place(pieces):
    name = f"https://h.test/a/{'/'.join(pieces)}"
    if leads_in(name, media_place("https://h.test/a/")):
        assert yarl.URL(name).path.startswith("/a/")
        assert ".." not in yarl.URL(name).path.split("/")
