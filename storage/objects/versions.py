"""Names the version of an input: R2's etag, or a hash of a local file's content.

A local file's size and time do not name a version: two files may share them, and a copy or a ``touch`` changes them.
Earlier versions of llmdo used them, as ``<size>-<mtime in ns>``; such etags in an output are still understood.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from llmdo.storage.errors import ObjectNotFound
from llmdo.storage.objects.local import LocalStore, is_by_time
from llmdo.storage.objects.opening import open_store
from llmdo.storage.objects.store import R2_SCHEME, ObjectInfo


def current_version(store_url: str, key: str, like: str = "") -> ObjectInfo:
    """The object as it is now, with an etag of the same kind as ``like``, another etag of this key.

    Raises ObjectNotFound and other StorageErrors.
    """
    info = open_store(store_url).stat(key)
    if store_url.startswith(R2_SCHEME) or is_by_time(like):
        return info
    return replace(info, etag=LocalStore(Path(store_url)).content_etag(key))


def etag_by_time(store_url: str, key: str, etag: str) -> str | None:
    """The etag that an earlier output would have for this local file; None in R2, or if there is no file."""
    if store_url.startswith(R2_SCHEME) or is_by_time(etag):
        return None
    try:
        return open_store(store_url).stat(key).etag
    except ObjectNotFound:
        return None
