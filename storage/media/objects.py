"""Looks at and reads objects that lines name: in R2, in folders and at web addresses, within a bound of bytes."""

from __future__ import annotations

import os
from pathlib import Path

from llmdo.storage.errors import ObjectNotFound, TooManyBytes
from llmdo.storage.media.web import WebObjects
from llmdo.storage.objects.local import LocalStore
from llmdo.storage.objects.opening import open_store
from llmdo.storage.objects.store import R2_SCHEME, ObjectStore
from llmdo.storage.objects.versions import current_version


class MediaObjects:
    """Objects by store and key, or by URL with an empty store. Thread-safe; opened where it is used.

    Methods raise StorageErrors: TooManyBytes for an object of more than ``limit`` bytes.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._web = WebObjects()

    def look(self, store: str, key: str) -> tuple[str, int]:
        """The version that is there, and its size."""
        if not store:
            return self._web.look(key, self._limit)
        _, where, name = _opened(store, key)
        if where.startswith(R2_SCHEME):
            info = open_store(where).stat(name)
        else:
            self._check(store, key, open_store(where).stat(name).size)  # before a large file is hashed
            info = current_version(where, name)
        self._check(store, key, info.size)
        return info.etag, info.size

    def read(self, store: str, key: str, version: str) -> bytes:
        """Exactly this version. Raises ObjectChanged."""
        if not store:
            return self._web.read(key, version, self._limit)
        opened, where, name = _opened(store, key)
        if not where.startswith(R2_SCHEME):
            opened.stat(name)  # to open a pipe would be to wait for somebody who writes into it
        body = bytearray()
        for chunk in opened.stream(name, version):
            body += chunk
            self._check(store, key, len(body))
        return bytes(body)

    def _check(self, store: str, key: str, size: int) -> None:
        if size > self._limit:
            raise TooManyBytes(f"{store}/{key}: {size:,} bytes or more")


def _opened(store: str, key: str) -> tuple[ObjectStore, str, str]:
    """The store, its URL and the key. Of a file that a link leads to, those of the file. Raises ObjectNotFound."""
    if store.startswith(R2_SCHEME):
        return open_store(store), store, key
    root, path = os.path.realpath(store), os.path.realpath(f"{store}/{key}")
    if not path.startswith(root.rstrip("/") + "/"):
        raise ObjectNotFound(f"{store}/{key}: a link leads out of the folder; put the file itself there")
    name = path[len(root.rstrip("/")) + 1 :]
    return LocalStore(Path(root)), root, name
