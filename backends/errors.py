"""What can go wrong with a model. The class says what the caller must do.

ModelError                    what to do
├── Retryable                 try again, after retry_after or a back-off; itself: JSON mode not met (5024)
│   ├── Overloaded            out of capacity (3040), 5xx
│   ├── RateLimited           requests a minute (3021), 429: lower the rate
│   ├── CallTimeout           no reply in time (3007, 3046, 408)
│   ├── ConnectionFailed      DNS, refused, reset
│   └── StreamError           a stream cut off before its end mark
├── StaysOpen                 no answer yet, and no further call: leave the line to a later run; the others continue
│   ├── WaitsInBatch          it was handed over, and its batch is not done
│   └── BatchUnclear          nobody can tell whether its batch was submitted
├── StopRun                   no further call can succeed: stop, keep what there is, resume later
│   ├── Unauthorized          wrong token or account (401, 403, 10000, 7003)
│   ├── BudgetSpent           --max-cost or --max-tokens-total is reached
│   ├── EngineClosed          the engine was closed before the call ended
│   ├── QuotaExhausted        the day's allocation is used (3036, 4006); ``until`` says when it comes back
│   ├── WrongService          what answers at the base URL is not the API: a page, garbage, 405, 501
│   └── AccountBlocked        3023, and a challenge by Cloudflare's bot protection
└── LineError                 this line gets no answer; the others continue
    ├── InvalidRequest        the input does not fit the model (400, 3003, 5004, 5006 …)
    ├── ModelUnusable         nor does any other line that names this model
    │   ├── ModelNotFound     no such model (5007, 3042), or not allowed to this account (5018, 5035)
    │   ├── LicenceNotAccepted  5016
    │   ├── PlanRequired      the model needs a paid plan
    │   ├── PriceUnknown      --max-cost cannot be kept for a model whose price is unknown
    │   ├── ServiceAway       the service has answered nothing for ``--patience`` seconds
    │   ├── LimitReached      it asks to wait for longer than ``--deadline``; ``until`` says until when
    │   ├── ModelRetired      the model was switched off; the message names its successor where there is one
    │   └── ProviderUnusable  settings, token or quota of a provider that only lines name, and not the run
    ├── RequestRefused        401 to 404 or 451 for this line, while other lines are answered
    ├── ContextOverflow       input and max_tokens do not fit the context window (5021, 3006)
    ├── ContentFiltered       3030 and finish reason content_filter
    └── BadReply              a reply that no documented shape explains
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from llmdo.backends.usage import Usage
from llmdo.settings.secrets import without_secrets

LONGEST = 1200  # characters of an error's sentence
_EXCERPT = 80


def short(value: object) -> str:
    """A value as it stands in an error's sentence: as Python writes it, and cut off where it is long."""
    text = repr(value[:_EXCERPT] if isinstance(value, str) else value)
    cut = len(text) > _EXCERPT or (isinstance(value, str) and len(value) > _EXCERPT)
    return f"{text[: _EXCERPT - 3]}..." if cut else text


# What a refusal is about; "account" includes the key and the model: everything that all lines share.
About = Literal["line", "account", "unclear"]


class ModelError(Exception):
    """Base of the tree; picklable.

    Attributes:
        message: one sentence that names the thing and the remedy.
        status: HTTP status, or None when there was no reply.
        code: the provider's own error code, or None.
        retry_after: seconds the provider asked to wait, or None.
        request_id: the provider's id of the call, or None.
        provider: the provider's name, as in ``workers-ai``.
        until: Unix time in seconds at which calls can succeed again, or None; set wherever ``retry_after`` is.
        usage: what was used, and is paid for although there is no answer; None if unknown.
        lost: whether a call may be billed whose usage is unknown; None: it follows from the kind of error, see
            ``billing.maybe_billed``.
        lane: what ``usage`` is billed as, see ChatResponse.
        about: "line" where only this request is refused, "account" where every call with this key and model is,
            "unclear" where the reply does not say (a bare 401, 402, 403, 404 or 451): then an error that would end the
            run does so only if other lines meet it too. By default the class decides.
    """

    _about: ClassVar[About] = "unclear"

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        code: int | str | None = None,
        retry_after: float | None = None,
        request_id: str | None = None,
        provider: str | None = None,
        until: float | None = None,
        usage: Usage | None = None,
        lost: bool | None = None,
        about: About | None = None,
    ) -> None:
        # A service's words may quote the request with its headers, and may be very long.
        message = without_secrets(message)
        self.message = message if len(message) <= LONGEST else f"{message[:LONGEST]}…"
        super().__init__(self.message)
        self.status = status
        self.code = code
        self.retry_after = retry_after
        self.request_id = request_id
        self.provider = provider
        self.until = until
        self.usage = usage
        self.lost = lost
        self.about = about or self._about
        self.lane = ""

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.message, {k: v for k, v in vars(self).items() if k != "message"})


def _rebuild(cls: type[ModelError], message: str, fields: dict[str, Any]) -> ModelError:
    lane = fields.pop("lane", "")
    error = cls(message, **fields)
    error.lane = lane
    return error


class Retryable(ModelError):
    """Try again, after ``retry_after`` or a back-off."""


class Overloaded(Retryable):
    """The service is out of capacity, or failed with 5xx."""


class RateLimited(Retryable):
    """Too many requests in this minute."""


class CallTimeout(Retryable):
    """No reply in time."""


class ConnectionFailed(Retryable):
    """The connection could not be made, or broke."""


class StreamError(Retryable):
    """A stream ended without its end mark: what came is not a whole answer."""


class StaysOpen(ModelError):
    """This line has no answer yet, and must not be called again: a later run goes on with it; the others continue."""

    _about: ClassVar[About] = "line"


class WaitsInBatch(StaysOpen):
    """The request was handed over, and a later run fetches its answer."""


class BatchUnclear(StaysOpen):
    """Whether a batch was submitted cannot be told: to submit its requests again might pay for them twice."""


class StopRun(ModelError):
    """No further call can succeed; the run stops cleanly and a later one resumes."""

    _about: ClassVar[About] = "account"


class Unauthorized(StopRun):
    """Wrong token, or wrong account."""


class BudgetSpent(StopRun):
    """The next call could pass what the run may cost."""


class EngineClosed(StopRun):
    """The engine was closed before the call ended, or before the call: the run is over, and a later one resumes."""


class QuotaExhausted(StopRun):
    """The day's allocation is used."""


class AccountBlocked(StopRun):
    """The provider has blocked the account, or this machine's address."""


class WrongService(StopRun):
    """What answers at the base URL is not the API."""


class LineError(ModelError):
    """This line gets no answer, however often it is tried; the other lines continue."""

    _about: ClassVar[About] = "line"


class InvalidRequest(LineError):
    """The input does not fit the model."""


class ModelUnusable(LineError):
    """No request to this model can be answered."""

    _about = "account"


class ModelNotFound(ModelUnusable):
    """No such model, or none that this account may use."""


class LicenceNotAccepted(ModelUnusable):
    """The model's licence must be accepted first."""


class PlanRequired(ModelUnusable):
    """The model is not in this account's plan."""


class PriceUnknown(ModelUnusable):
    """The model's price is unknown, so ``--max-cost`` cannot be kept."""


class ModelRetired(ModelUnusable):
    """The model was switched off."""


class ServiceAway(ModelUnusable):
    """The service has answered nothing for too long; a later run resumes."""


class LimitReached(ModelUnusable):
    """The service asks to wait for longer than a request may take; see ``until``."""


class ProviderUnusable(ModelUnusable):
    """A provider that only lines name lacks its settings, or refuses all calls; the run's own providers continue."""


class RequestRefused(LineError):
    """The service refuses this request by a status that can mean the account, and answers others."""


class ContextOverflow(LineError):
    """Input and max_tokens do not fit the model's context window."""


class ContentFiltered(LineError):
    """The provider's filter withheld the answer."""


class BadReply(LineError):
    """The reply has no shape that is documented."""


def unusable_vector(model: str, usage: Usage) -> BadReply:
    """The error of a text whose vector holds NaN or infinity."""
    text = f"{model} sent a vector with numbers that are none (NaN or infinity): change the text, or name another model"
    return BadReply(text, usage=usage)


def _unknown() -> None:
    """Nothing is known of what a call used."""


@dataclass(slots=True)  # not by contextlib.contextmanager, whose generator costs 2 µs each time
class _KnownCall:
    provider: str | None
    request_id: str | None
    usage: Callable[[], Usage | None]

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, ModelError):
            error.provider = error.provider or self.provider
            error.request_id = error.request_id or self.request_id
            error.usage = self.usage() if error.usage is None else error.usage


def call_known(
    *, provider: str | None = None, request_id: str | None = None, usage: Callable[[], Usage | None] = _unknown
) -> AbstractContextManager[None]:
    """Adds what is known of a call to a ModelError that leaves the block, where the error does not have it."""
    return _KnownCall(provider, request_id, usage)
