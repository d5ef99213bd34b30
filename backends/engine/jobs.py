"""What the engine works on: a request and who gets its result; how an array of texts comes apart into one each."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from llmdo.backends.errors import LineError, ModelError, ModelUnusable, unusable_vector
from llmdo.backends.limits.arrays import Halved, one_each
from llmdo.backends.limits.calls import Started
from llmdo.backends.limits.retry import is_throttled
from llmdo.backends.requests import EmbedRequest, Request
from llmdo.backends.responses import EmbedResponse, Response

_numbers = itertools.count(1)


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
        rescues: see ``Rescue.planned``.
    """

    calls: int
    in_flight: int
    batched: int
    retries: int
    retried: Mapping[str, int]
    window: int
    throttled_s: float
    rescues: Mapping[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(slots=True)
class Done:
    """How a job ended: exactly one of ``response`` and ``error`` is set.

    Attributes:
        attempts: calls made for it; 0 when the run was stopped before its first.
        latency_s: seconds that the last call took, or the way by a batch.
        spent_s: seconds since the first call began, with the waits between tries; 0 where none was made by itself.
        ended_at: when, in Unix time; whoever waits for it may learn of it later.
    """

    response: Response | None
    error: ModelError | None
    attempts: int
    latency_s: float
    spent_s: float = 0.0
    ended_at: float = field(default_factory=time.time, compare=False)


@dataclass(slots=True)
class Reservation:
    """One job's slot in the engine's intake, released after its last delivery.

    Attributes:
        open: deliveries that are outstanding.
        size: characters of the request, see Room.
        lent: other jobs may use the slot already, although deliveries are outstanding.
    """

    open: int
    size: int = 0
    lent: bool = False


@dataclass(slots=True, eq=False)
class Job:
    """A request, and the function that gets the index of a text (else 0) and its Done.

    Attributes:
        apart: one delivery for each text of an EmbedRequest, instead of one for all.
        first: index of the request's first text in the array that was submitted.
        earlier: calls made for the arrays that this request is a part of; ``tries``: calls made for itself.
        refusals: tries that ended so; ``failures``: the calls that did, with those that an outage ended.
        postponed: its last try was ended by an outage: others come first, since it may be to blame itself.
        number: its own, in this process.
        began: time of its first call; ``call``: the one that runs, or ran last.
        halved: the array that was refused and that it is a half of.
        at_list: why it is called at list price although a window was asked for; "" if it is not.
    """

    provider: str
    request: Request
    deliver: Callable[[int, Done], None]
    reservation: Reservation
    apart: bool = False
    first: int = 0
    earlier: int = 0
    tries: int = 0
    refusals: int = 0
    failures: list[Started] = field(default_factory=list)
    postponed: bool = False
    number: int = field(default_factory=lambda: next(_numbers))
    began: float | None = None
    call: Started | None = None
    halved: Halved | None = None
    at_list: str = ""

    @property
    def again(self) -> bool:
        """Whether it, or the array that it is a part of, was tried before."""
        return self.tries > 0 or self.earlier > 0

    def count(self, error: ModelError) -> int:
        """Counts a try that ended with this error; returns how many ended like it, without those that are excused."""
        if is_throttled(error):
            self.refusals += 1
            return self.refusals
        self.failures.append(self.call or Started(self.request, 0, 0.0, 0.0))
        return sum(not call.excused for call in self.failures)

    @property
    def suspect(self) -> bool:
        """Whether a call of it failed while the service answered others."""
        return any(call.own for call in self.failures)

    @property
    def deliveries(self) -> int:
        """How many results the job owes."""
        return len(self.request.texts) if self.apart and isinstance(self.request, EmbedRequest) else 1


def can_split(job: Job, error: ModelError) -> bool:
    """Whether one text of the job may be to blame for an error, and the others may do without it."""
    about_text = isinstance(error, LineError) and not isinstance(error, ModelUnusable)
    return about_text and job.deliveries > 1


def halves(job: Job) -> tuple[Job, Job]:
    """The two halves of an array, each a job that has not been tried yet."""
    left, right = _cut(job, (0, len(_texts(job)) // 2, len(_texts(job))))
    left.halved = right.halved = Halved(len(_texts(job)))
    return left, right


def parts(job: Job, most: int) -> list[Job]:
    """An array in parts of ``most`` texts, each a job that has not been tried yet."""
    return _cut(job, [*range(0, len(_texts(job)), most), len(_texts(job))])


def texts_of(job: Job) -> tuple[str, ...]:
    """Texts of its last call: those that the ledger did not have."""
    request = job.call.request if job.call else job.request
    return request.texts if isinstance(request, EmbedRequest) else ()


def _texts(job: Job) -> tuple[str, ...]:
    assert isinstance(job.request, EmbedRequest)  # noqa: S101 - can_split() says so
    return job.request.texts


def _cut(job: Job, places: Sequence[int]) -> list[Job]:
    request = job.request
    assert isinstance(request, EmbedRequest)  # noqa: S101 - as _texts
    return [
        Job(
            job.provider,
            replace(request, texts=request.texts[start:stop], line_ids=request.line_ids[start:stop]),
            *(job.deliver, job.reservation, job.apart),
            first=job.first + start,
            earlier=job.earlier + job.tries,
        )
        for start, stop in pairwise(places)
    ]


def each_of(
    job: Job, response: Response | None, error: ModelError | None
) -> Sequence[tuple[Response | None, ModelError | None]]:
    """What each delivery of a job gets: all, or of texts apart each one's part; an unusable vector is an error."""
    if not (job.apart and isinstance(response, EmbedResponse) and isinstance(job.request, EmbedRequest)):
        return [(response, error)] * job.deliveries
    return [
        (part, None) if all(part.vectors) else (None, unusable_vector(part.model, part.usage))
        for part in one_each(response, job.request.texts)
    ]
