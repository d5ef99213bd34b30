"""What waits to be pushed to a store: parcels of events that belong together, and batches of parcels."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from llmdo.storage.errors import StorageError
from llmdo.storage.livestore.frames import ENVELOPE_BYTES, MOST_BYTES, MOST_EVENT_BYTES, MOST_EVENTS, NewEvent

# What a frame has besides its events. Bytes.
_FRAME_BYTES = 20_000


class UnfitEvent(StorageError):
    """An event that no store can hold, whatever its backend."""


Make = Callable[[], Sequence[NewEvent]]


@dataclass(eq=False, slots=True)
class Parcel:
    """Events that go into the log together, or not at all.

    Attributes:
        make: says what is to be pushed, and is asked before each try; nothing if it is no longer wanted.
        pushed: gets whether the events are in the log, or an error.
        refused: whether the backend has refused it together with others; from then on it is pushed alone.
    """

    make: Make
    pushed: asyncio.Future[bool]
    refused: bool = False

    def settle(self, outcome: bool | Exception) -> None:
        """Sets the outcome, unless nobody waits for it any more."""
        if self.pushed.done():
            return
        if isinstance(outcome, Exception):
            self.pushed.set_exception(outcome)
        else:
            self.pushed.set_result(outcome)


@dataclass(slots=True)
class PushBatch:
    """Parcels that are pushed in one frame."""

    parcels: list[Parcel] = field(default_factory=list)
    events: list[NewEvent] = field(default_factory=list)
    size: int = _FRAME_BYTES

    def takes(self, events: Sequence[NewEvent], size: int) -> bool:
        """Whether there is room for more."""
        return len(self.events) + len(events) <= MOST_EVENTS and self.size + size <= MOST_BYTES


def next_batch(waiting: deque[Parcel]) -> PushBatch:
    """Takes as many parcels as fit, in order; those that are no longer wanted, or can never be pushed, are settled."""
    batch = PushBatch()
    while waiting:
        parcel = waiting[0]
        events, size, problem = _made(parcel)
        if not events or problem:
            waiting.popleft().settle(problem or False)
            continue
        if batch.parcels and (parcel.refused or batch.parcels[0].refused or not batch.takes(events, size)):
            break
        waiting.popleft()
        batch.parcels.append(parcel)
        batch.events += events
        batch.size += size
    return batch


def _made(parcel: Parcel) -> tuple[Sequence[NewEvent], int, Exception | None]:
    if parcel.pushed.done():
        return (), 0, None
    try:
        events = parcel.make()
    except Exception as error:  # noqa: BLE001  it is raised where somebody waits; other parcels are pushed
        return (), 0, error
    try:
        sizes = [event.size for event in events]
    except ValueError as error:  # NaN, or half of a surrogate pair
        return (), 0, UnfitEvent(f"an event cannot be written as JSON: {error}")
    if sizes and max(sizes) > MOST_EVENT_BYTES + ENVELOPE_BYTES:
        return (), 0, UnfitEvent(f"an event of {max(sizes):,} bytes: a store takes at most {MOST_EVENT_BYTES:,}")
    if len(events) > MOST_EVENTS or sum(sizes) > MOST_BYTES - _FRAME_BYTES:
        return (), 0, UnfitEvent(f"{len(events)} events of {sum(sizes):,} bytes are too many for one push")
    return events, sum(sizes), None
