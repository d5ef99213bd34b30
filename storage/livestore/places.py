"""Where a store is: its sync backend, its id, and what the backend asks of its clients."""

from __future__ import annotations

import json
from dataclasses import dataclass
from urllib.parse import SplitResult, quote, urlsplit, urlunsplit

from llmdo.settings.secrets import struck_out, values_in
from llmdo.storage.errors import InvalidLocation

_SCHEMES = {"http": "ws", "https": "wss", "ws": "ws", "wss": "wss"}
_LONGEST_SHOWN = 300


def check_sync_url(url: str) -> None:
    """Raises InvalidLocation, which quotes nothing of it, for what is not an address of a sync backend."""
    _backend(url)


@dataclass(frozen=True, slots=True)
class StorePlace:
    """Where a store is.

    Attributes:
        url: of the sync backend, ``ws(s)://…`` or ``http(s)://…``.
        payload: what its ``validatePayload`` asks for, a secret; None if it asks for nothing.
    """

    url: str
    store: str
    payload: object = None

    def __repr__(self) -> str:
        return f"StorePlace({self.url!r}, {self.store!r})"

    @property
    def address(self) -> str:
        """Of its WebSocket. It holds the payload, so it is a secret. Raises InvalidLocation."""
        parts = _backend(self.url)
        query = f"storeId={quote(self.store, safe='')}"
        if self.payload is not None:  # encoded twice: the backend's router decodes it once, and its handler again
            text = json.dumps(self.payload, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
            query += "&payload=" + quote(quote(text, safe="!~*'()"), safe="")
        return urlunsplit((_SCHEMES[parts.scheme], parts.netloc, parts.path or "/", f"{query}&transport=ws", ""))

    @property
    def web_url(self) -> str:
        """The backend's, as ``http(s)://…``, by which proxies are chosen."""
        return web_url_of(self.url)

    def shown(self, text: str) -> str:
        """What a backend says, without the payload: it may repeat what it was sent."""
        for value in values_in(self.payload):
            text = struck_out(text, value, "LIVESTORE_PAYLOAD")
        return text if len(text) <= _LONGEST_SHOWN else text[:_LONGEST_SHOWN] + "…"


def web_url_of(url: str) -> str:
    """A sync backend's URL as ``http(s)://…``. Raises InvalidLocation."""
    parts = _backend(url)
    return urlunsplit((_SCHEMES[parts.scheme].replace("ws", "http"), parts.netloc, parts.path, "", ""))


def _backend(url: str) -> SplitResult:
    remedy = "write wss://HOST or ws://localhost:PORT"
    try:
        parts = urlsplit(url)
        usable = parts.scheme in _SCHEMES and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise InvalidLocation(f"--livestore (or LIVESTORE_SYNC_URL) is not an address of a sync backend: {remedy}")
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise InvalidLocation(
            f"--livestore (or LIVESTORE_SYNC_URL) has a user or a query in it: {remedy}, and put what the backend asks "
            "of its clients into LIVESTORE_PAYLOAD"
        )
    return parts
