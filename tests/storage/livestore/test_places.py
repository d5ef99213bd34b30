"""Where a store is, as it is called and as it is shown."""

from __future__ import annotations

import pytest

from llmdo.storage.errors import InvalidLocation
from llmdo.storage.livestore.places import StorePlace, check_sync_url, web_url_of

TOKEN = {"authToken": "insecure-token-change-me"}


def test_an_address_holds_the_payload_encoded_twice():
    assert StorePlace("https://sync.example.com", "s2", TOKEN).address == (
        "wss://sync.example.com/?storeId=s2"
        "&payload=%257B%2522authToken%2522%253A%2522insecure-token-change-me%2522%257D&transport=ws"
    )
    assert StorePlace("ws://localhost:8787/sync", "a/b&c").address == (
        "ws://localhost:8787/sync?storeId=a%2Fb%26c&transport=ws"
    )


@pytest.mark.parametrize(
    "url",
    ["", "sync.example.com", "r2://bucket/x", "wss://", "ws://[::1", "ws://host:99999", "ws://host:0", "ws://:80"],
)
def test_what_is_no_address_is_said(url):
    with pytest.raises(InvalidLocation, match="write wss://HOST or ws://localhost:PORT"):
        check_sync_url(url)


@pytest.mark.parametrize(
    "url", ["wss://me:hush@sync.example.com", "wss://hush@host", "ws://host/?token=hush", "ws://h/#hush"]
)
def test_a_secret_in_an_address_is_refused_unquoted(url):
    with pytest.raises(InvalidLocation, match="LIVESTORE_PAYLOAD") as problem:
        StorePlace(url, "s").address  # noqa: B018
    assert "hush" not in str(problem.value)


def test_proxies_are_chosen_by_the_address_as_of_a_page():
    assert web_url_of("wss://host/sync") == "https://host/sync"
    assert StorePlace("ws://host:1", "s").web_url == "http://host:1"


def test_what_a_backend_says_is_shown_without_the_payload_also_where_it_is_cut():
    place = StorePlace("ws://x", "s", {"deep": [{"authToken": "not to be shown: 100 %"}], "n": 1234567890, "on": True})
    assert place.shown("you sent not to be shown: 100 %, on: true") == "you sent <LIVESTORE_PAYLOAD>, on: true"
    assert place.shown("pin 1234567890") == "pin <LIVESTORE_PAYLOAD>"
    for before in range(270, 300):
        assert "not to" not in place.shown("x" * before + "not to be shown: 100 %")
    assert repr(place) == "StorePlace('ws://x', 's')"
