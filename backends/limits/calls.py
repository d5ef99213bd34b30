"""A call that was started, as the limits of its model know it."""

from __future__ import annotations

from dataclasses import dataclass

from llmdo.backends.requests import Request


@dataclass(slots=True, eq=False)
class Started:
    """A call that was started.

    Attributes:
        index: its number in the model's pace; ``tokens``: what was reserved of the tokens a minute.
        others: calls of the model that were in flight when it started.
        job: number of the job that it is a try of.
        excused: it failed because the service was away, and does not count as a try.
        suspect: its job has failed before while others were answered: the service is not to blame for its failure.
        own: it failed while the service answered others.
    """

    request: Request
    index: int
    at: float
    tokens: float
    others: int = 0
    job: int | None = None
    excused: bool = False
    suspect: bool = False
    own: bool = False
