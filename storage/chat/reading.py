"""Reads the log of chats: single records, and whole conversations, of which it caches the last ones."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from llmdo.storage.chat.records import ChatMessage, Conversation, DamagedLog, LoggedAnswer, safe
from llmdo.storage.errors import ObjectNotFound
from llmdo.storage.field_problems import first_problem
from llmdo.storage.objects.store import ObjectStore

# Bytes of JSON of the conversations in a cache; as Python objects they take several times as much.
CACHE_BYTES = 16 << 20
_WRITTEN = 1_000  # most conversations whose writes since the last look are remembered
_AT_ONCE = 16  # concurrent reads of small objects
_KINDS: Mapping[str, type[ChatMessage | LoggedAnswer]] = {"messages": ChatMessage, "answers": LoggedAnswer}

M = TypeVar("M", bound=BaseModel)
T = TypeVar("T")
R = TypeVar("R")
_readers = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="llmdo-log")


def read_record(store: ObjectStore, key: str, kind: type[M]) -> M | None:
    """One record, or None if it does not exist. Raises DamagedLog and StorageError."""
    try:
        return understood(store, key, store.read(key)[0], kind)
    except ObjectNotFound:
        return None


def understood(store: ObjectStore, key: str, body: bytes, kind: type[M]) -> M:
    """The record that an object holds. Raises DamagedLog."""
    try:
        # Not pydantic's reader, which refuses half a surrogate pair.
        return kind.model_validate(json.loads(body))
    except ValueError as error:
        wrong = first_problem(error) if isinstance(error, ValidationError) else error
        raise DamagedLog(
            f"{store.url}/{key} is not a {kind.__name__} that this version can read ({wrong}): move it away"
        ) from None


def side_by_side(work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """The result of ``work`` for each item, in the items' order; calls run concurrently."""
    items = list(items)
    return _readers.map(work, items) if len(items) > 1 else map(work, items)


@dataclass(frozen=True, slots=True)
class Version:
    """A record as it was read or written, and the size of its object in bytes."""

    etag: str
    record: ChatMessage | LoggedAnswer
    size: int


@dataclass(frozen=True, slots=True)
class _Look:
    """A conversation as it was read: the version of each key, and the size of all in bytes."""

    versions: Mapping[str, Version]
    conversation: Conversation
    size: int


class ConversationCache:
    """The conversations that were looked at last, in any log of the process. Thread-safe.

    It holds at most ``most_bytes`` of objects, but always the conversation that was looked at last.
    """

    def __init__(self, most_bytes: int = CACHE_BYTES) -> None:
        self._most_bytes = most_bytes
        self._looks: OrderedDict[tuple[ConversationReader, str], _Look] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def find(self, reader: ConversationReader, folder: str) -> _Look | None:
        """What is known of a conversation."""
        with self._lock:
            return self._looks.get((reader, folder))

    def keep(self, reader: ConversationReader, folder: str, look: _Look) -> None:
        """Takes a newer look in, and drops the oldest ones."""
        with self._lock:
            replaced = self._looks.pop((reader, folder), None)
            self._looks[reader, folder] = look
            self._bytes += look.size - (replaced.size if replaced else 0)
            while self._bytes > self._most_bytes and len(self._looks) > 1:
                self._bytes -= self._looks.popitem(last=False)[1].size


_cache = ConversationCache()  # a run may have the logs of a hundred stores


class ConversationReader:
    """The conversations of one log (a prefix with '/' at its end, or empty). Thread-safe.

    A look costs one listing, and a read of each object that is new since the last look and was not passed to ``wrote``:
    records are written once. One that was replaced nevertheless is read again in R2, but in a folder, where noticing it
    would cost a stat of each file, only when it has left the ``cache``.
    """

    def __init__(self, store: ObjectStore, prefix: str, cache: ConversationCache = _cache) -> None:
        self._store = store
        self._prefix = prefix
        self._cache = cache
        # By folder: what was written there since the last look.
        self._written: OrderedDict[str, dict[str, Version]] = OrderedDict()
        self._lock = threading.Lock()

    def look(self, conversation: str) -> Conversation:
        """All messages and answers of a conversation, as they are now. Raises DamagedLog and StorageError."""
        folder = f"{self._prefix}{safe(conversation)}/"
        before = self._cache.find(self, folder)
        with self._lock:
            written = self._written.pop(folder, {})
        known = {**(before.versions if before else {}), **written}
        listed = [
            (key, etag)
            for key, etag in self._store.versions(folder)
            if key.removeprefix(folder).partition("/")[0] in _KINDS
        ]
        new = [key for key, etag in listed if key not in known or (etag and known[key].etag != etag)]
        if before and not new and not written and len(listed) == len(known):
            look = before
        else:
            read = dict(zip(new, side_by_side(lambda key: self._read(folder, key), new), strict=True))
            found = {key: read[key] if key in read else known[key] for key, _ in listed}
            versions = {key: version for key, version in found.items() if version is not None}
            whole = _whole(version.record for version in versions.values())
            look = _Look(versions, whole, sum(version.size for version in versions.values()))
        self._cache.keep(self, folder, look)
        return look.conversation

    def wrote(self, conversation: str, key: str, version: Version) -> None:
        """Remembers an object that was written, so that the next look need not read it."""
        folder = f"{self._prefix}{safe(conversation)}/"
        with self._lock:
            self._written.setdefault(folder, {})[key] = version
            self._written.move_to_end(folder)
            if len(self._written) > _WRITTEN:  # there may never be another look
                self._written.popitem(last=False)

    def _read(self, folder: str, key: str) -> Version | None:
        """The current version; None if it was removed since it was listed."""
        try:
            body, etag = self._store.read(key)
        except ObjectNotFound:
            return None
        kind = _KINDS[key.removeprefix(folder).partition("/")[0]]
        return Version(etag, understood(self._store, key, body, kind), len(body))


def _whole(records: Iterable[ChatMessage | LoggedAnswer]) -> Conversation:
    messages: list[ChatMessage] = []
    answers: dict[str, LoggedAnswer] = {}
    for record in records:
        if isinstance(record, ChatMessage):
            messages.append(record)
        else:
            answers[record.message_id] = record
    return Conversation(tuple(sorted(messages, key=lambda one: one.order)), answers)
