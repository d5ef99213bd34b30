"""An object store in memory, for tests that need many small objects, odd chunks, or trouble in the middle of a read."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from llmdo.storage.errors import AlreadyExists, ObjectChanged, ObjectNotFound
from llmdo.storage.objects.store import ObjectInfo
from llmdo.transforms.elements import FileVersion


@dataclass
class MemoryStore:
    """Keeps the ObjectStore protocol; streams chunks of ``chunk`` bytes.

    Attributes:
        on_chunk: called with (key, offset) before each chunk; it may overwrite or delete the object, or raise.
        asked: (key, start, stop) of each stream that was begun, in order.
    """

    url: str = "r2://memory"
    keeps_metadata: bool = True
    chunk: int = 1 << 20
    on_chunk: Callable[[str, int], None] = lambda key, offset: None
    asked: list[tuple[str, int, int | None]] = field(default_factory=list)
    _objects: dict[str, tuple[bytes, Mapping[str, str]]] = field(default_factory=dict)

    def add(self, key: str, body: bytes) -> FileVersion:
        """Puts an object and names its version as the steps do."""
        return FileVersion(self.url, key, self.put(key, body), len(body))

    def now(self) -> float:
        return time.time()

    def stat(self, key: str) -> ObjectInfo:
        body, metadata = self._get(key)
        return ObjectInfo(key, _etag(body), len(body), datetime(2026, 1, 1, tzinfo=UTC), metadata)

    def read(self, key: str) -> tuple[bytes, str]:
        body, _ = self._get(key)
        return body, _etag(body)

    def stream(self, key: str, etag: str, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        self.asked.append((key, start, stop))
        at = start
        while True:
            self.on_chunk(key, at)
            body, now = self.read(key)
            if now != etag:
                raise ObjectChanged(f"{self.url}/{key} was overwritten")
            chunk = body[at : min(at + self.chunk, len(body) if stop is None else stop)]
            if not chunk:
                return
            yield chunk
            at += len(chunk)

    def put(self, key: str, body: bytes, metadata: Mapping[str, str] | None = None) -> str:
        self._objects[key] = (body, metadata or {})
        return _etag(body)

    def put_if_absent(self, key: str, body: bytes) -> str:
        if key in self._objects:
            raise AlreadyExists(f"{self.url}/{key} is there already")
        return self.put(key, body)

    def put_if_match(self, key: str, body: bytes, etag: str) -> str:
        if key not in self._objects or self.read(key)[1] != etag:
            raise ObjectChanged(f"{self.url}/{key} is another version")
        return self.put(key, body)

    def delete(self, key: str) -> None:
        self._objects.pop(key, None)

    def delete_many(self, keys: Sequence[str]) -> None:
        for key in keys:
            self.delete(key)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        return (self.stat(key) for key in sorted(self._objects) if key.startswith(prefix))

    def list_near(self, prefixes: Sequence[str]) -> Sequence[Sequence[ObjectInfo] | None]:
        return [[*self.list(prefix)] for prefix in prefixes]

    def versions(self, prefix: str) -> Iterator[tuple[str, str]]:
        return ((info.key, info.etag) for info in self.list(prefix))

    def _get(self, key: str) -> tuple[bytes, Mapping[str, str]]:
        if key not in self._objects:
            raise ObjectNotFound(f"{self.url}/{key} does not exist")
        return self._objects[key]


def _etag(body: bytes) -> str:
    return hashlib.md5(body, usedforsecurity=False).hexdigest()
