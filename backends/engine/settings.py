"""What decides how the calls of a process are made, as one value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from llmdo.backends.errors import StopRun
from llmdo.backends.lanes.choice import Mode
from llmdo.backends.lanes.ready_by import ReadyBy
from llmdo.backends.lanes.records import BatchRecords
from llmdo.backends.limits.breaker import PATIENCE_S
from llmdo.backends.limits.concurrency_limit import START
from llmdo.backends.limits.rates import NO_RATES, Rates
from llmdo.backends.limits.retry import CALL_TIMEOUT_S, THREE_TRIES, Retry
from llmdo.backends.media.loader import MediaSource
from llmdo.backends.money.limits import NO_LIMITS, Limits
from llmdo.backends.money.money import Budget
from llmdo.backends.money.own_prices import OwnPrices

if TYPE_CHECKING:
    from llmdo.backends.engine.recall import Recall

# Whose answer may be taken: that of the same line of the same file version, or of any equal request.
Reuse = Literal["same-line", "same-request"]
# In chats: that of the same request id, whatever was asked under it. A message's answer stays its answer although more
# of the conversation before it is known by now.
SAME_MESSAGE: Literal["same-message"] = "same-message"


class KeptAnswers(Protocol):
    """Names the ledger that answers are kept in; equal where it is the same one, used the same way."""

    def open(self) -> Recall | None:
        """Opens it; None where nothing is kept. Raises what the ledger raises."""

    def __hash__(self) -> int:
        """Goes with equality."""


def always_open() -> None:
    """Lets all calls start."""


def never() -> bool:
    """Knows of no earlier answers."""
    return False


@dataclass(frozen=True, slots=True)
class CallSettings:
    """Everything that decides how a call is made. Only callers with equal settings share an engine: see get_engine.

    The options of a run make it once, and it travels with the steps. What only the process that calls can know, a step
    adds there by ``replace``: ``own``, ``gate``, ``budget``, ``answered_before``.

    Attributes:
        window: calls in flight at most.
        first_window: where the window of each model begins; ``window`` where one slow call must not hold others up.
        fixed: refusals lower neither window nor pace.
        retry: tries of one request, and the seconds that it may take.
        rates: requests and tokens a minute; where None, what the provider publishes for the model.
        workers: processes that share the rates; each uses an equal part.
        mode: whether requests are handed over in batches.
        detached: requests that were handed over are left to a later run.
        ready_by: until when answers are wanted; what batches would bring too late is called.
        batches: where the output's batches have their records; None: nowhere.
        lane: how calls are made that name no ``service_tier``: "flex", in a window "2h" or "8h", or "" at list price.
        own: the providers whose refusals may stop the engine; None: all.
        kept: the ledger of paid answers, if there is one.
        gate: asked before calls are started; an error stops the engine.
        limits, prices: what the caller may spend, and what it says that models cost; by these it makes ``budget``.
        budget: what is counted, and may be spent; another Budget is another one's money, whatever its limits.
        gateway: id or URL of the AI Gateway through which Workers AI is called; None: the environment's.
        headers: ``NAME=VARIABLE``: sent with every call to OPENAI_BASE_URL, with the variable's value.
        call_timeout_s: seconds that one try may take.
        patience_s: how long a service may answer nothing before its calls are given up.
        answered_before: whether earlier runs had answers, so that few refusals are those of their lines.
        run_id: whose calls they are; other runs of the process have engines of their own.
        media: where lines may name pictures, sounds and files; None: such names are sent as they are.
    """

    window: int = 64
    first_window: int = START
    fixed: bool = False
    retry: Retry = THREE_TRIES
    rates: Rates = NO_RATES
    workers: int = 1
    mode: Mode = "sync"
    detached: bool = False
    ready_by: ReadyBy | None = None
    batches: BatchRecords | None = None
    lane: str = ""
    own: frozenset[str] | None = None
    kept: KeptAnswers | None = None
    gate: Callable[[], StopRun | None] = always_open
    limits: Limits = NO_LIMITS
    prices: OwnPrices = ()
    budget: Budget | None = None
    gateway: str | None = None
    headers: tuple[str, ...] = ()
    call_timeout_s: float = CALL_TIMEOUT_S
    patience_s: float = PATIENCE_S
    answered_before: Callable[[], bool] = never
    run_id: str = ""
    media: MediaSource | None = None
