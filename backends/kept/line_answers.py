"""Which entry of the ledger holds a line's answer, over all versions of its file.

A line is known by its file's place and by what it asks, so a file that has grown or was edited pays for its new lines
only. Equal lines of one version have an answer each: the first one to ask has the entry without an offset, the others
entries with theirs. A later version's line may take the former once, and a note in the ledger says which one did.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field

from llmdo.backends.errors import StopRun
from llmdo.backends.requests import LineId

OWNER = "line"  # beside a response's fields: [version, start] of the line that paid

_Owner = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Keys:
    """``first``: without the offset; ``own``: with it; ``by_id``: of earlier versions of llmdo.

    The last two are rarely needed, and made when they are: a key costs 5 µs, and more where the prompt is long.
    """

    first: str
    own: Callable[[], str]
    by_id: Callable[[], str]


@dataclass(slots=True)
class _Turn:
    """Whose turn it is among equal lines that look for their entries."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    waiting: int = 0


class LineAnswers:
    """Finds entries; used from one event loop. A line that is to pay holds its first key until ``release``."""

    def __init__(
        self, get: Callable[[str], Awaitable[bytes | None]], put: Callable[[str, bytes, float], Awaitable[None]]
    ) -> None:
        self._get = get
        self._put = put
        self._held: dict[str, _Owner] = {}
        self._looking: dict[str, _Turn] = {}

    async def find(self, line: LineId, keys: Keys) -> tuple[str, bytes | None]:
        """The key of a line's answer, and what is there: None where it is still to be paid for. Raises StopRun."""
        turn = self._looking.setdefault(keys.first, _Turn())
        turn.waiting += 1
        try:
            async with turn.lock:  # equal lines one after the other, or a second one would not see what the first takes
                return await self._find(line, keys)
        finally:
            turn.waiting -= 1
            if not turn.waiting:
                del self._looking[keys.first]

    async def _find(self, line: LineId, keys: Keys) -> tuple[str, bytes | None]:
        ours = (line.version, line.start)
        if self._held.get(keys.first, ours) != ours:
            return await self._with_offset(line, keys)
        value = await self._get(keys.first)
        if value is None:
            older = await self._older(line, keys)
            if older is not None:
                return older
            self._held[keys.first] = ours
            return keys.first, None
        payer = _owner(value)
        if payer == ours:
            return keys.first, value
        # Of another version, it may be that of an equal line, and this line may have one of its own from then.
        key, found = await self._with_offset(line, keys) if payer is None or payer[1] != line.start else ("", None)
        if found is None and payer is not None and payer[0] != line.version and await self._take(line, keys):
            return keys.first, value
        return (key, found) if key else await self._with_offset(line, keys)

    def release(self, line: LineId, keys: Keys) -> None:
        """The answer is kept, or there is none."""
        if self._held.get(keys.first) == (line.version, line.start):
            del self._held[keys.first]

    async def _with_offset(self, line: LineId, keys: Keys) -> tuple[str, bytes | None]:
        key = keys.own()
        value = await self._get(key)
        older = await self._older(line, keys) if value is None else None
        return older or (key, value)

    async def _older(self, line: LineId, keys: Keys) -> tuple[str, bytes] | None:
        """What an earlier version of llmdo may have kept."""
        if not line.resumed:
            return None
        key = keys.by_id()
        value = await self._get(key)
        return None if value is None else (key, value)

    async def _take(self, line: LineId, keys: Keys) -> bool:
        """Whether this line is the one of its version that has the answer of another version's line."""
        note = hashlib.sha256(f"taken {keys.first} {line.version}".encode()).hexdigest()
        taken = await self._get(note)
        if taken is None:
            try:
                await self._put(note, json.dumps(line.start).encode(), 0.0)
            except Exception as error:
                raise StopRun(f"the ledger cannot keep whose an answer is: {error}") from error
            return True
        return taken == json.dumps(line.start).encode()


def _owner(value: bytes) -> _Owner | None:
    with suppress(ValueError, TypeError, KeyError):
        version, start = json.loads(value)[OWNER]
        return str(version), int(start)
    return None
