"""What an engine has done so far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EngineStats:
    """What an engine has done so far.

    Attributes:
        calls: calls started, including retries and the parts of split arrays.
        in_flight: calls running now.
        batched: requests that wait in batches, or to be handed over in one; they are not in flight.
        retries: calls that repeated a failed one.
        retried: the same by the class of the error, counted when the call failed.
        window: calls that may be in flight at this moment.
        throttled_s: seconds in which a call was ready and held back by the limits of its model.
    """

    calls: int
    in_flight: int
    batched: int
    retries: int
    retried: Mapping[str, int]
    window: int
    throttled_s: float
