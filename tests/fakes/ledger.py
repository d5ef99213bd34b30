"""A ledger in memory, and records of batches."""

from __future__ import annotations

import asyncio

from llmdo.backends.lanes.records import BatchRecord


class MemoryLedger:
    """Keeps the first value of each key.

    Attributes:
        kept: what was put.
        get_error, put_error: raised by each get and put while they are set.
        patience_s: that of each put, in seconds.
        takes_s: how long a put takes.
    """

    def __init__(self, takes_s: float = 0.0) -> None:
        self.kept: dict[str, bytes] = {}
        self.get_error: Exception | None = None
        self.put_error: Exception | None = None
        self.patience_s: list[float] = []
        self.takes_s = takes_s
        self.closed = False

    async def get(self, key: str) -> bytes | None:
        await asyncio.sleep(0)
        if self.get_error:
            raise self.get_error
        return self.kept.get(key)

    async def put(self, key: str, value: bytes, patience_s: float) -> None:
        self.patience_s.append(patience_s)
        await asyncio.sleep(self.takes_s)
        if self.put_error:
            raise self.put_error
        self.kept.setdefault(key, value)

    async def aclose(self) -> None:
        self.closed = True


class MemoryRecords:
    """Records of batches; ``crash`` is called before and after each write."""

    place, ledger = "memory:///_batches/", "memory"

    def __init__(self, crash=lambda: None) -> None:
        self.kept: dict[str, BatchRecord] = {}
        self.crash = crash

    def keep(self, record: BatchRecord) -> None:
        self.crash()
        self.kept[record.nonce] = record
        self.crash()

    def find(self, nonce: str) -> BatchRecord | None:
        return self.kept.get(nonce)

    def all(self) -> list[BatchRecord]:
        return [*self.kept.values()]
