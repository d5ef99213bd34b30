"""What a user may set for answering chats, checked before any work: all that is wrong is said at once."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from llmdo.backends.limits.breaker import PATIENCE_S
from llmdo.backends.limits.rates import Rates
from llmdo.backends.limits.retry import CALL_TIMEOUT_S
from llmdo.backends.money.money import Limits
from llmdo.backends.providers import access_of
from llmdo.pipelines.option_types import Calls, Concurrency, Header, ModelName, check_header_models
from llmdo.pipelines.options import UsageError, checked, default_ledger
from llmdo.settings.environment import cloudflare_account, default_store, r2_access
from llmdo.storage.chat.records import safe
from llmdo.storage.errors import InvalidLocation
from llmdo.storage.objects.store import R2_SCHEME, Location, locate_folder
from llmdo.transforms.chat.elements import ChatDefaults
from llmdo.transforms.chat.events import seconds

DEFAULT_CHAT_MODEL = "braintrust/gpt-4o"
QUEUE_PATIENCE_S = 60.0  # somebody waits for the answer
SYSTEM_PROMPT = Path(__file__).with_name("system_prompt.md")


def _time(value: object) -> object:
    """ISO 8601, or milliseconds since 1970 in digits."""
    if isinstance(value, str) and re.fullmatch(r"\d+", value):
        return seconds(int(value))
    return seconds(value)


class ChatOptions(BaseModel):
    """How chats are answered: the events of some files, or for ever those of a queue. Times in seconds.

    Attributes:
        events: files, folders, glob patterns or r2:// prefixes of event logs; they go with ``output``, which gets the
            log and the responses.
        queue, reply_queue: where events come from, and where responses go: ids or names; they go with ``log``.
        log: r2://bucket/prefix/ or a local folder: what was said and answered.
        store: STORE_ID, which names the log below ``log`` or ``output``; None: it is right there.
        since: messages that were sent before are logged, not answered; as Unix time.
        deltas: the text is pushed as it is generated, too.
        runner: None is direct for files, prism for a queue.
        context_tokens: what the model's context holds, input and answer together; None: nobody tells.
        concurrency: conversations in which an answer is being made, at most, as ``N`` or ``fixed:N``: see Concurrency.
        patience: how long the model may answer nothing before messages get an error for an answer (default 60 s), or
            with ``events`` the run stops (default 600 s).
        others: as in JsonlOptions.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    events: tuple[str, ...] = ()
    output: str | None = None
    queue: str | None = None
    reply_queue: str | None = None
    log: str | None = None
    store: str | None = None
    since: Annotated[float, BeforeValidator(_time)] | None = None
    deltas: bool = False
    model: ModelName = DEFAULT_CHAT_MODEL
    system: str = Field(default_factory=lambda: SYSTEM_PROMPT.read_text(encoding="utf-8"))
    temperature: float = Field(default=0.7, ge=0, le=5)
    max_tokens: int = Field(default=1000, ge=1)
    context_tokens: int | None = Field(default=None, ge=1)
    concurrency: Calls = Concurrency(256)
    rpm: float | None = Field(default=None, gt=0)
    tpm: float | None = Field(default=None, gt=0)
    max_cost: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    max_tokens_total: int | None = Field(default=None, ge=1)
    header: tuple[Header, ...] = ()
    call_timeout: float = Field(default=CALL_TIMEOUT_S, gt=0, allow_inf_nan=False)
    patience: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    poll_seconds: float = Field(default=0.25, ge=0.25)
    ledger: str | None = None
    runner: Literal["direct", "prism"]
    prism_location: str | None = None
    allow_open_ports: bool = False
    drain_seconds: float = Field(default=60.0, ge=0)
    max_restarts: int = Field(default=5, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _derived(cls, given: dict[str, Any]) -> dict[str, Any]:
        runner = given.get("runner") or ("prism" if given.get("queue") else "direct")
        return {**given, "runner": runner}

    @model_validator(mode="after")
    def _places(self) -> ChatOptions:
        if bool(self.events) == (self.queue is not None):
            said = "both given" if self.events else "none given"
            raise ValueError(f"say where the events are by one of --events and --queue ({said})")
        if self.events and not (self.output and self.log is None and self.reply_queue is None and not self.deltas):
            raise ValueError("--events goes with --output, and with none of --log, --reply-queue, --deltas")
        if self.queue is not None and not (self.reply_queue and self.log and self.output is None):
            raise ValueError("--queue goes with --reply-queue and --log, and not with --output")
        if self.queue is not None and self.queue == self.reply_queue:
            raise ValueError("--reply-queue must be another queue than --queue: its messages would come back here")
        if self.queue is not None and self.runner == "direct":
            raise ValueError("a queue is read on --runner prism: direct gives nothing before its source has ended")
        check_header_models(self.header, self.models)
        try:
            locate_folder(self._home)
        except InvalidLocation as error:
            raise ValueError(str(error)) from None
        return self

    @property
    def apart(self) -> bool:
        """Whether the steps run in other processes than this one: they never do."""
        return False

    @property
    def continuous(self) -> bool:
        """Whether it goes on until it is stopped."""
        return self.queue is not None

    @property
    def output_location(self) -> Location:
        """Where the log is; its key ends in '/' or is empty."""
        return log_of(self._home, self.store)

    @property
    def defaults(self) -> ChatDefaults:
        """Model, system prompt and parameters of the calls."""
        parameters = {"temperature": self.temperature, "max_tokens": self.max_tokens}
        return ChatDefaults(self.model, self.system, parameters, self.context_tokens)

    @property
    def models(self) -> tuple[str, ...]:
        """The model that is asked."""
        return (self.model,)

    @property
    def limits(self) -> Limits:
        """What the run may spend."""
        return Limits(self.max_cost, self.max_tokens_total)

    @property
    def patience_s(self) -> float:
        """``patience``, with its default."""
        return self.patience or (QUEUE_PATIENCE_S if self.continuous else PATIENCE_S)

    @property
    def rates(self) -> Rates:
        """How many calls and tokens a minute the user allows."""
        return Rates(self.rpm, self.tpm)

    @property
    def ledger_url(self) -> str:
        """The ledger: ``ledger``, or by default as for an output of files."""
        return self.ledger or default_ledger(self.output_location)

    @property
    def configuration(self) -> str:
        """None: a log may have answers of any model and prompt."""
        return ""

    @property
    def decisive(self) -> Mapping[str, Any]:
        """Nothing, likewise."""
        return {}

    @property
    def _home(self) -> str:
        return (self.log if self.queue is not None else self.output) or ""


def log_of(place: str, store: str | None) -> Location:
    """Where the log of a store is, below ``--log`` or ``--output``. Raises UsageError."""
    try:
        return locate_folder(f"{place.rstrip('/')}/{safe(store)}/" if store else place)
    except InvalidLocation as error:
        raise UsageError([str(error)]) from None


def check_chat_options(**given: Any) -> ChatOptions:
    """Validates options and the environment that they need; STORE_ID names the store.

    Raises UsageError with everything that is wrong.
    """
    given = {"store": default_store(), **given}
    reads: list[Callable[[], object]] = []
    places = (*given.get("events", ()), *(given.get(name) or "" for name in ("output", "log", "ledger")))
    if any(str(place).startswith(R2_SCHEME) for place in places):
        reads.append(r2_access)
    if given.get("queue"):
        reads.append(cloudflare_account)
    return checked(ChatOptions, given, [*reads, access_of(str(given.get("model") or DEFAULT_CHAT_MODEL))])
