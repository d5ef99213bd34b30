"""A base URL as users write it: with a query, a user, a slash at its end, or a route that belongs to a call."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass, field

from yarl import URL

from llmdo.backends.errors import StopRun

# What the documents of some services give as their URL; a call adds it by itself.
_ROUTE = re.compile(r"/(?:chat/completions|completions|embeddings|responses)/*\Z")


@dataclass(frozen=True, slots=True)
class BaseUrl:
    """A base URL, taken apart.

    Attributes:
        root: scheme, host and path, in ASCII, without a slash at its end; it holds no secret.
        query: as it is sent with every call, encoded: ``api-version=preview``; it may hold a key.
        authorization: the header that the URL's user and password make, or "".
    """

    root: str
    query: str = field(default="", repr=False)
    authorization: str = field(default="", repr=False)

    def at(self, path: str) -> URL:
        """The URL of a route below it."""
        query = f"?{self.query}" if self.query else ""
        return URL(f"{self.root}/{path}{query}", encoded=True)


def base_url(provider: str, text: str) -> BaseUrl:
    """Takes a base URL apart. Raises StopRun, which quotes neither user nor query, where it cannot be called at all."""
    try:
        url = URL(text.strip())
        if url.scheme in ("http", "https") and url.host:
            plain = url.with_user(None).with_query(None).with_fragment(None)
            root = _ROUTE.sub("", str(plain).rstrip("/")).rstrip("/")
            user = f"{url.user or ''}:{url.password or ''}".encode() if url.user or url.password else b""
            basic = f"Basic {base64.b64encode(user).decode()}" if user else ""
            return BaseUrl(root, url.raw_query_string, basic)
    except ValueError:
        pass
    shown = re.sub(r"(?<=//).*@|^[^/]*@", "", text.partition("?")[0])
    raise StopRun(f"{shown!r} is not an http:// or https:// URL: correct the base URL", provider=provider)


def shown_url(url: URL) -> str:
    """A URL as an error may show it, without user and query."""
    return str(url.with_user(None).with_query(None).with_fragment(None))


def without_route(url: str) -> str:
    """A call's URL as somebody would write its base URL."""
    return _ROUTE.sub("", url)
