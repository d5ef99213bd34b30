"""What a run would find in its ledger, looked up without a call, and without a change to the ledger."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from llmdo.backends.engine.recall import Ledger, Recall
from llmdo.backends.requests import Request
from llmdo.backends.responses import Response
from llmdo.backends.usage import Usage
from llmdo.storage.ledger.opening import is_ledger, open_ledger
from llmdo.transforms.answers.ledger_settings import LedgerSettings


class _NotKept(Exception):
    pass


class _Unchanged:
    """A ledger that is read; what a run would write is kept here. See Ledger."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._written: dict[str, bytes] = {}

    async def get(self, key: str) -> bytes | None:
        return self._written.get(key) or await self._ledger.get(key)

    async def put(self, key: str, value: bytes, patience_s: float = 0.0) -> None:  # noqa: ARG002  as Ledger has it
        self._written[key] = value

    async def aclose(self) -> None:
        await self._ledger.aclose()


class LedgerLook:
    """Looks answers up, as the engine does before a call. Raises LedgerError where the ledger cannot be opened."""

    def __init__(self, kept: LedgerSettings) -> None:
        self._loop = asyncio.Runner()
        self._recall: Recall | None = None
        if is_ledger(kept.ledger) and (ledger := open_ledger(kept.ledger)):
            self._recall = Recall(_Unchanged(ledger), kept.reuse)

    def usages(self, asked: Sequence[tuple[str, Request]]) -> list[Usage | None]:
        """What the kept answer of each request of a provider has used; None where a call would be made."""
        return self._loop.run(self._usages(asked)) if self._recall else [None] * len(asked)

    async def _usages(self, asked: Sequence[tuple[str, Request]]) -> list[Usage | None]:
        return list(await asyncio.gather(*(self._usage(provider, request) for provider, request in asked)))

    async def _usage(self, provider: str, request: Request) -> Usage | None:
        async def call(_: Request) -> Response:
            raise _NotKept

        assert self._recall is not None  # noqa: S101  asked only then
        try:
            return (await self._recall.answer(provider, request, call)).usage
        except _NotKept:
            return None

    def close(self) -> None:
        """Closes the ledger."""
        if self._recall:
            self._loop.run(self._recall.aclose())
        self._loop.close()
