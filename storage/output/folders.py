"""What is in the folders of files in an output."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass, field

from llmdo.storage.objects.store import ObjectInfo, ObjectStore
from llmdo.storage.output.manifests import MANIFEST_NAME, counts_as_output

# After an operation that showed less than half of the folders it was for, this many are listed by themselves.
_APART = 64


@dataclass(frozen=True, slots=True)
class FolderListing:
    """What is directly in a file's folder: objects with a shard's name, and whether there is a manifest."""

    shards: tuple[ObjectInfo, ...]
    manifest: bool


def list_folder(store: ObjectStore, folder: str) -> FolderListing:
    """One listing. Below the folder may be another file's, whose key is this file's key and more."""
    return _directly_in(folder, store.list(folder))


class FolderListings:
    """Lists folders of a store, those that are asked for at the same time with one operation. Thread-safe.

    There is one such operation at a time; folders that are asked for meanwhile wait for the next one. So each listing
    begins after it was asked for, and shows all that was written before.
    """

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._waiting: list[_Asked] = []
        self._busy = False
        self._apart = 0

    def of(self, folder: str) -> FolderListing:
        """As ``list_folder``. Raises StorageError, for all folders of an operation that fails."""
        asked = _Asked(folder)
        with self._lock:
            apart, self._apart = self._apart > 0, max(self._apart - 1, 0)
            if not apart:
                self._waiting.append(asked)
                asked.leads, self._busy = not self._busy, True
        if apart:
            return list_folder(self._store, folder)
        if not asked.leads:
            asked.ready.wait()
        if asked.leads:
            self._list_waiting()
        if asked.error is not None:
            raise asked.error
        return list_folder(self._store, folder) if asked.found is None else asked.found

    def _list_waiting(self) -> None:
        """Lists all that wait, and lets the first of those that come meanwhile list the next ones."""
        with self._lock:
            group, self._waiting = self._waiting, []
        try:
            shown = self._store.list_near([asked.folder for asked in group])
            for asked, infos in zip(group, shown, strict=True):
                asked.found = None if infos is None else _directly_in(asked.folder, infos)
        except BaseException as error:  # noqa: BLE001  each of them raises it
            for asked in group:
                asked.error = error
        with self._lock:
            if sum(asked.found is not None for asked in group) * 2 < len(group):
                self._apart = _APART
            self._busy = bool(self._waiting)
            if self._busy:
                self._waiting[0].leads = True
                self._waiting[0].ready.set()
        for asked in group:
            asked.ready.set()


@dataclass(slots=True)
class _Asked:
    folder: str
    leads: bool = False
    ready: threading.Event = field(default_factory=threading.Event)
    found: FolderListing | None = None
    error: BaseException | None = None


def _directly_in(folder: str, infos: Iterable[ObjectInfo]) -> FolderListing:
    shards, manifest = [], False
    for info in infos:
        name = info.key.removeprefix(folder)
        if name == MANIFEST_NAME:
            manifest = True
        elif "/" not in name and counts_as_output(name):
            shards.append(info)
    return FolderListing(tuple(shards), manifest)
