"""What the ledger knows of requests that were handed over, so that none is paid for twice.

    reserve: a pointer from each request to a nonce   →   submit with the nonce   →   attach: the batch of the nonce

Each arrow is passed only when what stands before it is durable. What a pointer names may have been submitted without a
trace of it here, and the provider's list tells. A nonce that was not submitted, or whose batch brought nothing, is
*returned*: its requests are free again, and their next pointers are of the next generation. Entries are written once.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from pydantic import TypeAdapter

# Part of every key. Raise it when what was kept so far cannot be read any more.
BATCH_FORMAT = 1
_AT_ONCE = 1000  # entries that are put or read at a time
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Pointer:
    """Where a request stands in a submission: see BatchPlace.

    Attributes:
        number, reference, count: its place there.
        at: when it was reserved, in Unix time.
        nonce: of the submission; "" where ``batch`` is set.
        batch: the name of an answer in the background; in entries of earlier versions that of a batch.
    """

    number: int
    reference: str
    count: int
    at: float
    nonce: str = ""
    batch: str = ""


_POINTER = TypeAdapter(Pointer)


class Submissions:
    """Reads and writes these entries; used on one event loop. All methods raise what ``get`` and ``put`` raise.

    Args:
        get: reads an entry.
        put: keeps an entry durably, unless there is one; the first one stays.

    Attributes:
        found: called for each pointer that holds.
    """

    def __init__(
        self, get: Callable[[str], Awaitable[bytes | None]], put: Callable[[str, bytes], Awaitable[None]]
    ) -> None:
        self.found: Callable[[], None] = lambda: None
        self._get = get
        self._put = put
        self._settled: dict[str, str] = {}  # nonces with their batches, or "" where they were returned
        self._asking: dict[str, asyncio.Task[str | None]] = {}

    async def find(self, key: str) -> tuple[int, Pointer | None]:
        """The pointer of a request that holds, with its generation; or the next generation, and None.

        ``key``: that of its answer.
        """
        generation = 0
        while (value := await self._get(_pointer_key(key, generation))) is not None:
            try:
                pointer = _POINTER.validate_json(value)
            except ValueError:
                _log.warning("the ledger holds a batch that this version cannot read: its request is made again")
                return generation + 1, None
            if pointer.batch or await self.batch_of(pointer.nonce) != "":
                self.found()
                return generation, pointer
            generation += 1
        return generation, None

    async def batch_of(self, nonce: str) -> str | None:
        """The batch that was submitted with a nonce; "" where it was returned, None where nobody knows yet."""
        if (known := self._settled.get(nonce)) is not None:
            return known
        asking = self._asking.get(nonce)
        if asking is None:  # a batch's requests come together
            asking = self._asking[nonce] = asyncio.ensure_future(self._ask(nonce))
            asking.add_done_callback(lambda _: self._asking.pop(nonce, None))
        return await asyncio.shield(asking)

    async def reserve(self, nonce: str, records: str, pointers: Mapping[tuple[str, int], Pointer]) -> bool:
        """Keeps pointers by the request's key and generation; returns whether all hold.

        If one does not, another run was faster, and the caller must return the nonce. ``records``: where the submission
        has its record as soon as it may be made, see ``reserved``.
        """
        await self._put(_key("reserved", nonce), json.dumps({"records": records}).encode())
        values = {_pointer_key(*place): _POINTER.dump_json(pointer) for place, pointer in pointers.items()}
        for keys in _chunks(list(values)):
            await asyncio.gather(*(self._put(key, values[key]) for key in keys))
        kept = [await asyncio.gather(*map(self._get, keys)) for keys in _chunks(list(values))]
        return [value for part in kept for value in part] == list(values.values())

    async def keep(self, key: str, generation: int, pointer: Pointer) -> bool:
        """Keeps where the answer of a request will be; returns whether that holds, or another run was faster."""
        place, value = _pointer_key(key, generation), _POINTER.dump_json(pointer)
        await self._put(place, value)
        return await self._get(place) == value

    async def reserved(self, nonce: str) -> str | None:
        """Where the record of a submission is, "" if it has none; None where the ledger knows no such nonce."""
        value = await self._get(_key("reserved", nonce))
        return None if value is None else str(json.loads(value)["records"])

    async def attach(self, nonce: str, batch: str) -> str:
        """Keeps the batch of a nonce; returns what holds: "" if somebody has returned it before."""
        await self._put(_key("attached", nonce), json.dumps({"batch": batch}).encode())
        return await self.batch_of(nonce) or ""

    async def give_back(self, nonce: str) -> str:
        """Returns a nonce that was not submitted; what holds is its batch if somebody has attached one before."""
        return await self.attach(nonce, "")

    async def give_up(self, nonce: str) -> None:
        """Returns a nonce whose batch brought nothing for any of its requests."""
        await self._put(_key("returned", nonce), b"{}")
        self._settled[nonce] = ""

    async def mark(self, provider: str, model: str) -> None:
        """Notes that requests of a model are handed over, so that others need not be looked for."""
        await self._put(_model_key(provider, model), b"{}")

    async def any_of(self, provider: str, model: str) -> bool:
        """Whether any run with this ledger has handed requests of a model over."""
        return await self._get(_model_key(provider, model)) is not None

    async def _ask(self, nonce: str) -> str | None:
        value = await self._get(_key("attached", nonce))
        if value is None:
            return None
        batch = str(json.loads(value)["batch"])
        if batch and await self._get(_key("returned", nonce)) is not None:
            batch = ""
        self._settled[nonce] = batch
        return batch


def _pointer_key(key: str, generation: int) -> str:
    """Of the first generation it is the one by which earlier versions kept the names of batches."""
    asked = f"batch {BATCH_FORMAT} {key}"
    return _sha256(f"{asked} {generation}" if generation else asked)


def _key(what: str, nonce: str) -> str:
    return _sha256(f"{what} {BATCH_FORMAT} {nonce}")


def _model_key(provider: str, model: str) -> str:
    return _sha256(f"batches {BATCH_FORMAT} {provider}/{model}")


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _chunks(keys: Sequence[str]) -> Iterator[Sequence[str]]:
    left = iter(keys)
    while some := list(islice(left, _AT_ONCE)):
        yield some
