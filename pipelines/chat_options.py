"""Options for answering chats, checked before any work: everything that is wrong is reported at once."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from llmdo.backends.engine.settings import SAME_MESSAGE
from llmdo.backends.providers import access_of
from llmdo.pipelines.option_types import Calls, Concurrency, check_header_models
from llmdo.pipelines.run_options import ChosenModel, PollSeconds, RunOptions
from llmdo.pipelines.shown import BUDGET, INPUT, MODEL, OUTPUT, RATE
from llmdo.pipelines.usage import UsageError, checked
from llmdo.settings.environment import cloudflare_account, default_store, r2_access
from llmdo.storage.chat.records import safe
from llmdo.storage.errors import InvalidLocation
from llmdo.storage.objects.store import R2_SCHEME, Location, locate_folder
from llmdo.transforms.answers.ledger_settings import LedgerSettings
from llmdo.transforms.chat.elements import ChatDefaults
from llmdo.transforms.chat.events import seconds

DEFAULT_CHAT_MODEL = "braintrust/gpt-4o"
SYSTEM_PROMPT = Path(__file__).with_name("system_prompt.md")


def _time(value: object) -> object:
    """ISO 8601, or milliseconds since 1970 in digits."""
    if isinstance(value, str) and re.fullmatch(r"\d+", value):
        return seconds(int(value))
    return seconds(value)


class ChatOptions(RunOptions):
    """How chats are answered: the events of some files, or those of a queue until the run is stopped.

    ``events`` need ``output``, which gets the log and the responses; ``queue`` needs ``reply_queue`` and ``log``.

    Attributes:
        store: STORE_ID, which names the log below ``log`` or ``output``; None: the log is directly there.
        since: as Unix time.
        runner: direct for files, prism for a queue, unless it is set.
    """

    ENDLESS_PATIENCE_S = 60.0  # a person is waiting for the answer

    events: Annotated[tuple[str, ...], INPUT("Event logs, JSON lines: files, folders, patterns, r2:// prefixes.")] = ()
    queue: Annotated[str | None, INPUT("Queue of events, id or name.")] = None
    since: Annotated[
        Annotated[float, BeforeValidator(_time)] | None,
        INPUT("Messages sent before are logged, not answered: ISO 8601, or ms since 1970.", as_text=True),
    ] = None
    output: Annotated[str | None, OUTPUT("Where log and responses of --events go: a folder, r2://…")] = None
    reply_queue: Annotated[str | None, OUTPUT("Queue that responses go to, id or name.")] = None
    log: Annotated[str | None, OUTPUT("Log of messages and answers (with --queue): r2://BUCKET/PREFIX/.")] = None
    store: str | None = None
    deltas: Annotated[bool, OUTPUT("Push the text while it is generated, too.")] = False
    model: ChosenModel = DEFAULT_CHAT_MODEL
    system: Annotated[str, MODEL("File with the system prompt; default pipelines/system_prompt.md.", file="text")] = (
        Field(default_factory=lambda: SYSTEM_PROMPT.read_text(encoding="utf-8"))
    )
    temperature: Annotated[float, Field(ge=0, le=5), MODEL("0 to 5.")] = 0.7
    max_tokens: Annotated[int, Field(ge=1), MODEL("Tokens of an answer at most.")] = 1000
    context_tokens: Annotated[
        int | None,
        Field(ge=1),
        MODEL(
            "Tokens that the model's context holds, input and answer together; by default what its provider publishes."
        ),
    ] = None
    max_cost: Annotated[
        float | None,
        Field(gt=0, allow_inf_nan=False),
        BUDGET(
            "US dollars at most. Before they could be exceeded, --events stops and leaves its messages "
            "open; with --queue messages get an error event instead of an answer, without a call."
        ),
    ] = None
    concurrency: Annotated[Calls, RATE("Answers being made at most: N, or fixed:N.")] = Concurrency(256)
    patience: Annotated[
        float | None,
        Field(gt=0, allow_inf_nan=False),
        RATE(
            "Seconds for which the model may answer nothing, while calls pause, before messages get an "
            "error event (default 60), or with --events the run stops (default 600)."
        ),
    ] = None
    poll_seconds: PollSeconds = 0.25
    runner: Literal["direct", "prism"]

    @model_validator(mode="before")
    @classmethod
    def _derived(cls, given: dict[str, Any]) -> dict[str, Any]:
        runner = given.get("runner") or ("prism" if given.get("queue") else "direct")
        return {**given, "runner": runner, "continuous": bool(given.get("queue"))}

    @model_validator(mode="after")
    def _places(self) -> ChatOptions:
        if bool(self.events) == (self.queue is not None):
            said = "both given" if self.events else "none given"
            raise ValueError(f"name the events with exactly one of --events and --queue ({said})")
        if self.events and not (self.output and self.log is None and self.reply_queue is None and not self.deltas):
            raise ValueError("--events needs --output, and excludes --log, --reply-queue and --deltas")
        if self.queue is not None and not (self.reply_queue and self.log and self.output is None):
            raise ValueError("--queue needs --reply-queue and --log, and excludes --output")
        if self.queue is not None and self.queue == self.reply_queue:
            raise ValueError("--reply-queue must differ from --queue, or its messages would come back")
        if self.queue is not None and self.runner == "direct":
            raise ValueError("a queue is read on --runner prism: direct emits nothing until its source has ended")
        check_header_models(self.header, self.models)
        try:
            locate_folder(self._home)
        except InvalidLocation as error:
            raise ValueError(str(error)) from None
        return self

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
    def kept(self) -> LedgerSettings:
        """See RunOptions. A message keeps its answer, whatever is asked under its id later."""
        return LedgerSettings(self.ledger_url, SAME_MESSAGE)

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
