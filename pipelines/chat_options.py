"""Options for answering chats, checked before any work: everything that is wrong is reported at once."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from llmdo.backends.engine.settings import SAME_MESSAGE
from llmdo.backends.limits.concurrency_limit import Concurrency
from llmdo.backends.providers import access_of
from llmdo.pipelines.option_types import Calls, ModelName, check_header_models
from llmdo.pipelines.run_options import PollSeconds, RunOptions
from llmdo.pipelines.shown import INPUT, MODEL, MONEY, OUTPUT, PACE
from llmdo.pipelines.usage import UsageError, checked
from llmdo.settings.environment import (
    MissingSettings,
    cloudflare_account,
    default_store,
    default_stores,
    default_sync_url,
    livestore_payload,
    r2_access,
)
from llmdo.settings.network import network_problems
from llmdo.storage.chat.records import safe
from llmdo.storage.errors import InvalidLocation
from llmdo.storage.livestore.places import check_sync_url, web_url_of
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


def _stores(value: object) -> object:
    """Ids, also several in one text with commas between them."""
    names = [value] if isinstance(value, str) else value
    if isinstance(names, list | tuple) and all(isinstance(name, str) for name in names):
        return tuple(dict.fromkeys(one.strip() for name in names for one in name.split(",") if one.strip()))
    return value


class ChatOptions(RunOptions):
    """How chats are answered: the events of some files; or those of a queue, or of event stores, until it is stopped.

    ``events`` need ``output``, which gets the log and the responses; ``queue`` needs ``reply_queue`` and ``log``;
    ``livestore`` needs ``stores`` and ``log``.

    Attributes:
        stores: with ``livestore`` the stores; else one at most, which names the log below ``log`` or ``output``.
        since: as Unix time.
        runner: direct for files, prism for a queue or stores, unless it is set.
    """

    ENDLESS_PATIENCE_S = 60.0  # a person is waiting for the answer

    events: Annotated[tuple[str, ...], INPUT("Event logs, JSON lines: files, folders, patterns, r2:// prefixes.")] = ()
    queue: Annotated[str | None, INPUT("Queue of events, id or name.")] = None
    livestore: Annotated[
        str | None,
        INPUT(
            "LiveStore's sync backend, wss://HOST: the events of its stores in, responses back into them; "
            "default LIVESTORE_SYNC_URL."
        ),
    ] = None
    stores: Annotated[
        Annotated[tuple[str, ...], BeforeValidator(_stores)],
        INPUT("Event stores, ID[,ID…] (with --livestore); default STORE_IDS or STORE_ID.", name="--store"),
    ] = ()
    since: Annotated[
        Annotated[float, BeforeValidator(_time)] | None,
        INPUT(
            "Messages sent before are logged, not answered: ISO 8601, or ms since 1970. By default all are answered; "
            "with --livestore those sent since the first start.",
            as_text=True,
        ),
    ] = None
    output: Annotated[str | None, OUTPUT("Where log and responses of --events go: a folder, r2://…")] = None
    reply_queue: Annotated[str | None, OUTPUT("Queue that responses go to, id or name.")] = None
    log: Annotated[
        str | None,
        OUTPUT("Log of messages and answers (with --queue or --livestore): r2://BUCKET/PREFIX/, or a folder."),
    ] = None
    deltas: Annotated[bool, OUTPUT("Push the text while it is generated, too (with --queue).")] = False
    started: Annotated[
        bool,
        OUTPUT(
            "Push v1.LLMResponseStarted before a call: the page shows that a message is in work, and of several "
            "instances one answers it (with --livestore).",
            name="--started/--no-started",
        ),
    ] = True
    model: Annotated[ModelName, MODEL("PROVIDER/MODEL.", short="-m")] = DEFAULT_CHAT_MODEL
    system: Annotated[
        str, MODEL("The system prompt: a text, or @FILE; default pipelines/system_prompt.md.", file="text")
    ] = Field(default_factory=lambda: SYSTEM_PROMPT.read_text(encoding="utf-8"))
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
        MONEY(
            "US dollars at most. Before they could be exceeded, --events stops and leaves its messages "
            "open; with --queue messages get an error event instead of an answer, without a call."
        ),
    ] = None
    concurrency: Annotated[Calls, PACE("Answers being made at most: N, or fixed:N.", short="-c")] = Concurrency(256)
    patience: Annotated[
        float | None,
        Field(gt=0, allow_inf_nan=False),
        PACE(
            "Seconds for which the model may answer nothing, while calls pause, before messages get an "
            "error event (default 60), or with --events the run stops (default 600)."
        ),
    ] = None
    poll_seconds: PollSeconds = 0.25
    runner: Literal["direct", "prism"]

    @model_validator(mode="before")
    @classmethod
    def _derived(cls, given: dict[str, Any]) -> dict[str, Any]:
        endless = bool(given.get("queue") or given.get("livestore"))
        return {**given, "runner": given.get("runner") or ("prism" if endless else "direct"), "continuous": endless}

    @model_validator(mode="after")
    def _places(self) -> ChatOptions:
        given = [bool(self.events), self.queue is not None, self.livestore is not None].count(True)
        if given != 1:
            said = f"{given} given" if given else "none given"
            raise ValueError(f"name the events with exactly one of --events, --queue and --livestore ({said})")
        if self.events and not (self.output and self.log is None and self.reply_queue is None and not self.deltas):
            raise ValueError("--events needs --output, and excludes --log, --reply-queue and --deltas")
        if self.queue is not None and not (self.reply_queue and self.log and self.output is None):
            raise ValueError("--queue needs --reply-queue and --log, and excludes --output")
        if self.queue is not None and self.queue == self.reply_queue:
            raise ValueError("--reply-queue must differ from --queue, or its messages would come back")
        if self.livestore is not None:
            self._check_stores()
        elif len(self.stores) > 1:
            raise ValueError("several stores are answered with --livestore: name one, or none")
        elif not self.started:
            raise ValueError("--no-started is for --livestore, where other instances see it: leave it out")
        if self.continuous and self.runner == "direct":
            raise ValueError(
                "a queue or a store is read on --runner prism: direct emits nothing until its source has ended"
            )
        check_header_models(self.header, self.models)
        try:
            locate_folder(self._home)
            if self.livestore is not None:
                check_sync_url(self.livestore)
        except InvalidLocation as error:
            raise ValueError(str(error)) from None
        return self

    def _check_stores(self) -> None:
        if not (self.stores and self.log and self.output is None and self.reply_queue is None):
            raise ValueError(
                "--livestore needs --store (or STORE_IDS) and --log, and excludes --output and --reply-queue"
            )
        if self.deltas:
            raise ValueError(
                "--deltas is not possible with --livestore: each event makes the store's clients rebase what they have "
                "not sent, and LiveStore 0.4.0 loses some of it; leave --deltas out"
            )

    @property
    def command(self) -> str:
        """See RunOptions."""
        return "chat"

    @property
    def output_location(self) -> Location:
        """Where the log is, or those of several stores; its key ends in '/' or is empty."""
        return log_of(self._home, None if self.livestore is not None or not self.stores else self.stores[0])

    @property
    def logs(self) -> dict[str, Location]:
        """Where the log of each store is; with ``livestore`` only."""
        return {} if self.livestore is None else {store: log_of(self._home, store) for store in self.stores}

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
        return (self.log if self.continuous else self.output) or ""


def log_of(place: str, store: str | None) -> Location:
    """Where the log of a store is, below ``--log`` or ``--output``. Raises UsageError."""
    try:
        return locate_folder(f"{place.rstrip('/')}/{safe(store)}/" if store else place)
    except InvalidLocation as error:
        raise UsageError([str(error)]) from None


def check_chat_options(**given: Any) -> ChatOptions:
    """Validates options and the environment that they need.

    STORE_ID or STORE_IDS name the stores, LIVESTORE_SYNC_URL their backend where no other events are named. Raises
    UsageError with everything that is wrong.
    """
    if not any(given.get(name) for name in ("events", "queue", "output", "reply_queue")):
        given["livestore"] = given.get("livestore") or default_sync_url()
    if not given.get("stores"):
        one = default_store()
        given["stores"] = default_stores() if given.get("livestore") else (one,) if one else ()
    reads: list[Callable[[], object]] = []
    places = (*given.get("events", ()), *(given.get(name) or "" for name in ("output", "log", "ledger")))
    if any(str(place).startswith(R2_SCHEME) for place in places):
        reads.append(r2_access)
    if given.get("queue"):
        reads.append(cloudflare_account)
    if given.get("livestore"):
        reads += [livestore_payload, partial(_check_way, str(given["livestore"]))]
    return checked(ChatOptions, given, [*reads, access_of(str(given.get("model") or DEFAULT_CHAT_MODEL))])


def log_to_explain(place: str, store: str | None) -> Location:
    """The log of a store, by default of STORE_ID, or of the only one of STORE_IDS. Raises UsageError."""
    names = [store or default_store() or ""]
    names = names if any(names) else list(default_stores())
    if len(names) > 1:
        raise UsageError([f"STORE_IDS names several stores: say with --store which one, such as --store {names[0]}"])
    return log_of(place, next(iter(names), None))


def _check_way(url: str) -> None:
    """Raises MissingSettings for proxies and certificates that cannot be used."""
    with suppress(InvalidLocation):  # which is said of the option
        if problems := network_problems(web_url_of(url)):
            raise MissingSettings(problems)
