"""Which version of an input is there: R2's etag, or a hash of a local file's content.

A local file's size and time are hints: two files may share them, and a copy or a ``touch`` changes them. Outputs of
earlier versions of llmdo name local versions by them, ``<size>-<mtime in ns>``; such etags are still understood.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from llmdo.storage.errors import ObjectNotFound
from llmdo.storage.objects.local import LocalStore, is_by_time
from llmdo.storage.objects.opening import open_store
from llmdo.storage.objects.store import R2_SCHEME, ObjectInfo


def current_version(store_url: str, key: str, like: str = "") -> ObjectInfo:
    """What is there now; its etag names the version, in the same way as ``like``, another etag of this key.

    Raises ObjectNotFound and other StorageErrors.
    """
    info = open_store(store_url).stat(key)
    if store_url.startswith(R2_SCHEME) or is_by_time(like):
        return info
    return replace(info, etag=LocalStore(Path(store_url)).content_etag(key))


def etag_by_time(store_url: str, key: str, etag: str) -> str | None:
    """The etag that an earlier output would have for the local file that is there; None in R2, or where none is."""
    if store_url.startswith(R2_SCHEME) or is_by_time(etag):
        return None
    try:
        return open_store(store_url).stat(key).etag
    except ObjectNotFound:
        return None
