"""Which names of pictures, sounds and files a run may read: an exact bucket, folder or web address, and what is below.

Names are taken literally. What a store, a file system or a web server could read in two ways (``..``, encoded slashes,
a user before the host …) leads nowhere.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import SplitResult, unquote, urlsplit

from llmdo.storage.errors import InvalidLocation
from llmdo.storage.objects.store import R2_SCHEME, locate

_WEB = ("http", "https")
_PORTS = {"http": 80, "https": 443}
_BUCKET = re.compile(r"[a-z0-9][a-z0-9-]{1,61}[a-z0-9]")
_ODD = re.compile(r"[\x00-\x20\x7f\\]")
_HIDDEN = re.compile(r"%(?:2f|5c|2e|00)", re.IGNORECASE)  # an encoded slash, backslash, dot or NUL


@dataclass(frozen=True, slots=True)
class MediaPlace:
    """A place that a run may read media from.

    Attributes:
        store: ``r2://BUCKET``, the absolute path of a folder, or the origin ``https://HOST:PORT``.
        prefix: of keys there, or of paths; "" for all. It ends with a slash, or is one whole key.
    """

    store: str
    prefix: str = ""

    @property
    def url(self) -> str:
        """As ``media_place`` reads it."""
        between = "/" if self.store.startswith(R2_SCHEME) and self.prefix else ""
        return f"{self.store}{between}{self.prefix}"

    def holds(self, store: str, key: str) -> bool:
        """Whether an object is in it."""
        folder = self.prefix if self.prefix.endswith("/") else f"{self.prefix}/"
        return store == self.store and (not self.prefix or key == self.prefix or key.startswith(folder))


@dataclass(frozen=True, slots=True)
class MediaAddress:
    """What a name leads to; ``key`` of a web address is its path."""

    store: str
    key: str

    @property
    def is_web(self) -> bool:
        """Whether it is a URL."""
        return self.store.startswith(tuple(f"{scheme}://" for scheme in _WEB))


@lru_cache(maxsize=256)
def media_place(text: str) -> MediaPlace:
    """The place that a user names: ``r2://BUCKET[/PREFIX]``, ``https://HOST[:PORT][/PREFIX]`` or a folder.

    Raises InvalidLocation.
    """
    if is_r2(text):
        where = locate(text)
        if not _BUCKET.fullmatch(where.bucket) or not _is_plain(where.key or "all"):
            raise InvalidLocation(f"{text}: write r2://BUCKET/PREFIX/, the prefix without '.' or '..' in it")
        return MediaPlace(where.store_url, where.key)
    if text.partition("://")[0].lower() in _WEB:
        address = _web_address(text)
        if address is None:
            raise InvalidLocation(
                f"{text.partition('?')[0]}: write https://HOST/PREFIX/, without a user, a query, or '..'"
            )
        return MediaPlace(address.store, address.key if address.key.strip("/") else "")
    path = text.removeprefix("file://")
    where = locate(path)
    return MediaPlace(os.path.normpath(where.store_url))


def own_place(bucket: str) -> MediaPlace:
    """A whole bucket."""
    return MediaPlace(R2_SCHEME + bucket)


def bucket_of(name: str) -> str | None:
    """The bucket that an ``r2://`` name is about, if it can be one's name."""
    bucket = name[len(R2_SCHEME) :].partition("/")[0] if is_r2(name) else ""
    return bucket if _BUCKET.fullmatch(bucket) else None


def is_r2(name: str) -> bool:
    """Whether a name is meant as an object in R2."""
    return name.startswith(R2_SCHEME)


def is_file_url(name: str) -> bool:
    """Whether a name is meant as a file of this machine."""
    return name[:5].lower() == "file:"


def r2_address(name: str) -> MediaAddress | None:
    """The object that ``r2://BUCKET/KEY`` names; keys are literal. None where it names none."""
    bucket, _, key = name[len(R2_SCHEME) :].partition("/")
    if not is_r2(name) or not _BUCKET.fullmatch(bucket) or not _is_plain(key):
        return None
    return MediaAddress(R2_SCHEME + bucket, key)


def web_address(name: str) -> MediaAddress | None:
    """The origin and the path of a URL, which may have a query; None where it is not one that can be read one way."""
    return _web_address(name, query=True) if name.partition("://")[0].lower() in _WEB else None


def file_address(name: str, folder: str) -> MediaAddress | None:
    """A file below a folder, from its absolute path or its ``file://`` URL; None where it is not below.

    This looks at names alone; links are followed, and looked at, when the file is read.
    """
    path = name
    if is_file_url(name):
        parts = urlsplit(name)
        if parts.netloc not in ("", "localhost") or parts.query or parts.fragment:
            return None
        path = unquote(parts.path)
    root = folder.rstrip("/") + "/"
    key = path.removeprefix(root)
    if key == path or not _is_plain(key) or "" in key.split("/"):
        return None
    return MediaAddress(folder, key)


def _is_plain(key: str) -> bool:
    """Whether a key is there, and no part of it could be read as a folder above."""
    return bool(key) and "\0" not in key and not {".", ".."} & set(key.split("/"))


def _web_address(name: str, *, query: bool = False) -> MediaAddress | None:
    try:
        parts = urlsplit(name)
        port = parts.port or _PORTS[parts.scheme]
    except (ValueError, KeyError):
        return None
    if not _is_usable(name, parts) or (parts.query and not query):
        return None
    host = f"[{parts.hostname}]" if ":" in str(parts.hostname) else str(parts.hostname)
    usual = port == _PORTS[parts.scheme]
    return MediaAddress(f"{parts.scheme}://{host}" if usual else f"{parts.scheme}://{host}:{port}", parts.path or "/")


def _is_usable(name: str, parts: SplitResult) -> bool:
    """Whether every reader of a URL sees the same host and path in it."""
    if not parts.hostname or "@" in parts.netloc or parts.fragment or _ODD.search(name) or not name.isascii():
        return False
    path = parts.path
    return not _HIDDEN.search(unquote(path)) and not _HIDDEN.search(path) and _is_plain(path or "/")
