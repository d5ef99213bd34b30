"""The ledger of many machines: one object an answer, in R2 or in a local folder.

An object's first line is a JSON header with format, key and checksum; the value follows, byte for byte.
A million lines cost $0.36 for lookups (a GET each, class B) and $4.50 for keeping (a PUT each, class A), after the free
10 million and 1 million a month (developers.cloudflare.com/r2/pricing).
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import Any, TypeVar

from pydantic_core import from_json

from llmdo.storage.errors import AlreadyExists, LedgerError, ObjectChanged, ObjectNotFound, StorageError
from llmdo.storage.ledger.ledger import DamageLog, Pruned, check_key, checksum
from llmdo.storage.objects.store import ObjectInfo, ObjectStore

LEDGER_THREADS = 32  # concurrent requests; the R2 client has more connections
_FORMAT = 1
_PRUNE_OBJECTS = 1000  # at a time: the whole listing may be too long for memory
MARKER = "_ledger.json"  # marks the prefix as a ledger, and has its format
_NAME = re.compile(r"(?P<first>[0-9a-f]{2})/(?P=first)[0-9a-f]{62}\.json")

_T = TypeVar("_T")


class _Unreadable(Exception):
    def __init__(self, problem: str, etag: str) -> None:
        super().__init__(problem)
        self.problem, self.etag = problem, etag


class ObjectLedger:
    """A Ledger in a store, below a prefix that is empty or ends in '/'. See open_ledger for errors.

    In a local folder a value outlives kill -9; after a power cut its name may be missing.
    """

    def __init__(self, store: ObjectStore, prefix: str) -> None:
        self._damage = DamageLog()
        self._store = store
        self._prefix = prefix
        with _store_errors():
            _check_format(store, prefix, make=True)
        self._pool = ThreadPoolExecutor(LEDGER_THREADS, thread_name_prefix="llmdo-ledger")
        self._running: set[Future[Any]] = set()
        self._damaged: dict[str, str] = {}

    async def get(self, key: str) -> bytes | None:
        """See Ledger; one GET."""
        name = self._name(key)
        try:
            value = await self._in_thread(lambda: self._read(key, name))
        except _Unreadable as error:
            self._damaged[key] = error.etag
            self._damage.warn(f"{self._store.url}/{name}", error.problem)
            return None
        return value

    async def put(self, key: str, value: bytes, patience_s: float = 0.0) -> None:  # noqa: ARG002  each has its own PUT
        """See Ledger; one PUT, durable when R2 has answered."""
        name, damaged = self._name(key), self._damaged.get(key)
        await self._in_thread(lambda: self._write(key, name, value, damaged))
        self._damaged.pop(key, None)

    async def aclose(self) -> None:
        """See Ledger."""
        self._pool.shutdown(wait=False)
        await asyncio.gather(*map(asyncio.wrap_future, tuple(self._running)), return_exceptions=True)

    def _name(self, key: str) -> str:
        return f"{self._prefix}{check_key(key)[:2]}/{key}.json"

    async def _in_thread(self, work: Callable[[], _T]) -> _T:
        try:
            running = self._pool.submit(work)
        except RuntimeError as error:  # also while the process ends
            raise LedgerError(f"{self._store.url}/{self._prefix}: this ledger is closed; open it again") from error
        self._running.add(running)
        running.add_done_callback(self._running.discard)
        with _store_errors():
            return await asyncio.wrap_future(running)

    def _read(self, key: str, name: str) -> bytes | None:
        try:
            body, etag = self._store.read(name)
        except ObjectNotFound:
            return None
        line, _, value = body.partition(b"\n")
        header = _header(line)
        if header.get("format", _FORMAT) != _FORMAT:
            raise _Unreadable("the entry has a format of another version", etag)
        if header.get("key") != key or header.get("crc32") != checksum(key, value):
            raise _Unreadable("the value is not the one that was kept", etag)
        return value

    def _write(self, key: str, name: str, value: bytes, damaged: str | None) -> None:
        header = {"format": _FORMAT, "key": key, "crc32": checksum(key, value)}
        body = json.dumps(header).encode() + b"\n" + value
        try:
            if damaged is None:
                self._store.put_if_absent(name, body)
            else:
                self._store.put_if_match(name, body, damaged)
        except AlreadyExists:
            # The first value stays (it may be this one, after a lost reply) unless it cannot be read.
            try:
                if self._read(key, name) is None:
                    self._write(key, name, value, None)
            except _Unreadable as unreadable:
                self._write(key, name, value, unreadable.etag)
        except ObjectChanged:
            # Another process has repaired or removed it.
            self._write(key, name, value, None)


def prune_objects(store: ObjectStore, prefix: str, before: float) -> Pruned:
    """See opening.prune_ledger; ``before`` in Unix seconds, by the store's clock. Deletions are free in R2."""

    def remove(info: ObjectInfo) -> int:
        store.delete(info.key)
        return info.size

    entries = size = 0
    with _store_errors(), ThreadPoolExecutor(LEDGER_THREADS) as pool:
        _check_format(store, prefix, make=False)
        old = (
            info
            for info in store.list(prefix)
            if _NAME.fullmatch(info.key, len(prefix)) and info.modified.timestamp() <= before
        )
        while some := list(islice(old, _PRUNE_OBJECTS)):
            entries, size = entries + len(some), size + sum(pool.map(remove, some))
    return Pruned(entries, size)


def _check_format(store: ObjectStore, prefix: str, *, make: bool) -> None:
    """Reads the marker of a ledger, or makes one. Raises LedgerError and the store's errors."""
    name = prefix + MARKER
    while True:
        try:
            body, _ = store.read(name)
        except ObjectNotFound:
            if not make:
                raise LedgerError(f"{store.url}/{prefix}: there is no ledger to prune; check the URL") from None
            try:
                store.put_if_absent(name, json.dumps({"format": _FORMAT}).encode())
            except AlreadyExists:
                continue  # another process was quicker
            return
        found = _header(body).get("format")
        if found != _FORMAT:
            raise LedgerError(
                f"{store.url}/{name}: has format {found}, this program reads {_FORMAT}; use the llmdo that wrote it, "
                "or name another ledger"
            )
        return


def _header(line: bytes) -> dict[str, object]:
    try:
        found = from_json(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


@contextmanager
def _store_errors() -> Iterator[None]:
    try:
        yield
    except LedgerError:
        raise
    except StorageError as error:
        raise LedgerError(f"the ledger cannot be used: {error}") from error
