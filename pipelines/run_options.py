"""Options of any run that calls models, over files or in chats."""

from __future__ import annotations

import hashlib
import os
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from llmdo.backends.engine.settings import CallSettings
from llmdo.backends.lanes.choice import Mode
from llmdo.backends.lanes.ready_time import ReadyTime
from llmdo.backends.limits.breaker import PATIENCE_S
from llmdo.backends.limits.rates import Rates
from llmdo.backends.limits.retry import CALL_TIMEOUT_S
from llmdo.backends.money.lanes import WINDOWS
from llmdo.backends.money.limits import Limits, Naming
from llmdo.backends.money.money import Budget
from llmdo.backends.money.own_prices import OwnPrices, own_prices
from llmdo.backends.money.prices import Prices
from llmdo.backends.providers import access_of, usual_model
from llmdo.pipelines.option_types import Budgeted, Calls, Gateway, Header, ModelName, PriceFile
from llmdo.pipelines.shown import ADVANCED, MODEL, MONEY, PACE, RESUME
from llmdo.settings.environment import MissingSettings, default_gateway, r2_access, state_folder
from llmdo.storage.ledger.ledger import NO_LEDGER, SQLITE_SCHEME
from llmdo.storage.objects.store import Location
from llmdo.transforms.answers.ledger_settings import LedgerSettings
from llmdo.transforms.run import Run

BY_ENVIRONMENT = "by the keys in the environment"
ChosenModel = Annotated[ModelName, MODEL("PROVIDER/MODEL.", short="-m", default=BY_ENVIRONMENT)]
SystemPrompt = Annotated[str, MODEL("A system prompt where there is none: a text, or @FILE.", file="text")]
CallsInFlight = Annotated[
    Calls, PACE("Calls in flight at most: N, fewer while the service refuses; or fixed:N.", short="-c")
]


CallMode = Annotated[
    Mode,
    PACE(
        "sync: one call a request; batch: the provider's asynchronous batch API, if it has one; auto: "
        "batch where it pays."
    ),
]
CallLane = Annotated[
    Literal["flex", "2h", "8h"] | None,
    MONEY(
        "flex: calls at half price where the model has it (OpenAI), slower, and sometimes refused; a call that was "
        "refused 8 times is made at list price. 2h, 8h: answers in the background within so long, 30 % and 40 % below "
        "list price (OpenAI). By default what the line's service_tier says."
    ),
]
Detach = Annotated[
    bool,
    PACE("End when all lines are handed over in batches, with exit code 4; a later run fetches their answers."),
]
ReadyIn = Annotated[
    ReadyTime | None,
    PACE(
        "When answers are wanted: 06:00, 8h or 2026-12-01T06:00Z. Batches first, where they are cheaper; what would be "
        "late is called in time, at list price.",
        unquoted=True,
    ),
]
Deadline = Annotated[
    float,
    Field(gt=0, allow_inf_nan=False),
    PACE("Seconds for which one request may be refused, or wait in a batch, before it is given up."),
]
# What answers without any account.
_UNNAMED = "local/smollm2-135m-instruct"
PollSeconds = Annotated[float, Field(ge=0.25), ADVANCED("Seconds between pulls of the queue.")]

MaxTokens = Annotated[int | None, Field(ge=1), MODEL("Tokens of an answer at most.")]
Temperature = Annotated[float | None, Field(ge=0, le=5), MODEL("0 to 5.")]
GatewayName = Annotated[
    Gateway | None, ADVANCED("AI Gateway for Workers AI, its id or its URL; default LLMDO_GATEWAY.")
]
Headers = Annotated[
    tuple[Header, ...],
    ADVANCED(
        "NAME=VARIABLE: a header for OPENAI_BASE_URL with the value of an environment variable; may be repeated.",
        near_secret=True,
    ),
]


def later_option(mode: Mode, lane: str | None, ready_by: bool) -> str:
    """The option by which answers come later than calls end, such as "--mode batch"; "" for none.

    Raises ValueError for two that exclude each other.
    """
    batches = "--ready-by" if ready_by else f"--mode {mode}" if mode != "sync" else ""
    window = f"--lane {lane}" if lane in WINDOWS else ""
    if batches and window:
        raise ValueError(f"{batches} hands lines over in batches, and {window} one by one: leave one of them out")
    return batches or window


def without(later: str) -> str:
    """What to do in the place of an option that later_option has named."""
    return "use --mode sync" if later.startswith("--mode") else "leave it out"


def check_batches(later: str, runner: str, ledger: str | None, detach: bool, ready_by: bool, *, ends: bool) -> None:
    """Raises ValueError for answers that could not be fetched; ``later``: see later_option.

    ``ends``: whether the run ends by itself.
    """
    if detach and not ends:
        raise ValueError("--detach ends a run, and stream has no end: use run or schedule")
    if detach and ready_by:
        raise ValueError("--ready-by waits for batches, and --detach does not: leave one of them out")
    if later and runner not in ("direct", "prism"):
        raise ValueError(
            f"{later}: one process is enough for this lane, and --runner {runner} has several: use --runner direct or "
            f"prism, or {without(later).removeprefix('use ')}"
        )
    if later not in ("", "--mode auto") and ledger == NO_LEDGER:
        raise ValueError(
            f"{later}: without a ledger nobody would know what was handed over: leave --ledger out, or name one"
        )


def with_model(given: dict[str, Any]) -> list[Callable[[], object] | None]:
    """Fills in ``model`` by the environment; returns what reads the settings that it needs, or says what to name."""
    if not given.get("model"):
        given["model"] = usual_model()
    if given["model"]:
        return [access_of(str(given["model"]))]
    given["model"] = _UNNAMED
    return [_no_model]


def _no_model() -> None:
    if os.environ.get("OPENAI_BASE_URL"):
        raise MissingSettings(
            ["name a model of OPENAI_BASE_URL with --model openai/NAME: `llmdo models openai` lists what it has"]
        )
    raise MissingSettings(
        [
            "name a model: --model openai/gpt-4o-mini and export OPENAI_API_KEY; --model openai/NAME and export "
            "OPENAI_BASE_URL, such as http://localhost:11434/v1 for Ollama; or, without any account, "
            f"--model {_UNNAMED}, which runs in this process"
        ]
    )


class RunOptions(BaseModel):
    """Options of a run. Sizes in bytes, times in seconds.

    Every option is declared here or in a subclass, once: the command line is made from the fields that a Panel marks.

    Attributes:
        runner: a name in ``llmdo.runners.running.attempt.RUNNERS``.
        processes: how many processes of this machine make the calls.
        continuous: the run continues until it is stopped, or until ``max_restarts`` failures in a row without progress.
        ENDLESS_PATIENCE_S: the default of ``patience`` for such a run.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    ENDLESS_PATIENCE_S: ClassVar[float]

    output: str | None
    queue: str | None
    runner: str
    processes: int = 1
    continuous: bool = False
    model: ChosenModel
    max_cost: Annotated[
        float | None,
        Field(gt=0, allow_inf_nan=False),
        MONEY("US dollars at most; the run stops before it could exceed them."),
    ] = None
    price_file: Annotated[
        PriceFile | None,
        MONEY(
            'File with prices, in US dollars for a million tokens: {"openai/my-model": {"input": 0.2, "output": 0.8}}.',
            file="json",
            unquoted=True,
        ),
    ] = None
    max_tokens_total: Annotated[
        int | None, Field(ge=1), MONEY("Tokens of all calls at most, in and out; likewise.")
    ] = None
    budget: Annotated[
        Budgeted | None,
        MONEY(
            "What all runs of this output may cost together: '5 USD/day', also /hour, /week, /month (in UTC), or "
            "without a period; or tokens: '2M tokens/day'."
        ),
    ] = None
    concurrency: CallsInFlight
    rpm: Annotated[
        float | None,
        Field(gt=0),
        PACE(
            "Requests a minute at most, to each model. By default what the provider publishes: at "
            "Cloudflare's public API that of the model or its task (text generation: 300, frontier models 20); at "
            "other addresses none."
        ),
    ] = None
    tpm: Annotated[float | None, Field(gt=0), PACE("Tokens a minute at most, in and out; no limit by default.")] = None
    patience: Annotated[
        float | None,
        Field(gt=0, allow_inf_nan=False),
        PACE(
            "Seconds for which a service may answer nothing, while calls pause, before the run stops and "
            "leaves the lines open; default 600, no limit for stream."
        ),
    ] = None
    call_timeout: Annotated[
        float,
        Field(gt=0, allow_inf_nan=False),
        PACE("Seconds that one try of a call may take; after two tries that took longer the line becomes an error."),
    ] = CALL_TIMEOUT_S
    ledger: Annotated[
        str | None,
        RESUME("Where answers are kept as they arrive: sqlite:///PATH, r2://BUCKET/PREFIX/, a folder, or none."),
    ] = None
    header: Headers = ()
    poll_seconds: PollSeconds
    prism_location: Annotated[str | None, ADVANCED("Path of the Prism binary.")] = None
    allow_open_ports: Annotated[
        bool, ADVANCED("Accept a runner that other machines can reach: whoever does can run any program on this one.")
    ] = False
    drain_seconds: Annotated[
        float, Field(ge=0), ADVANCED("Seconds that calls in flight may still take after Ctrl-C or SIGTERM.")
    ] = 60.0
    max_restarts: Annotated[
        int,
        Field(ge=0),
        ADVANCED(
            "Failures in a row without progress before it gives up; while R2 is not answering, failures do not count."
        ),
    ] = 5

    @property
    @abstractmethod
    def output_location(self) -> Location:
        """Where the output goes, or the log; its key ends in '/' or is empty."""

    @property
    @abstractmethod
    def command(self) -> str:
        """What the run is called where it is shown."""

    @property
    def apart(self) -> bool:
        """Whether the steps run in other processes than this one."""
        return False

    def run(self, run_id: str) -> Run:
        """A run by these options, as its steps know it."""
        return Run(run_id, self.output_location, self.configuration, remote=self.apart)

    @property
    def models(self) -> tuple[str, ...]:
        """Every model that the options name."""
        return (self.model,)

    @property
    def limits(self) -> Limits:
        """What the run may spend."""
        waits = self.command == "stream"  # others end, or report an error to who is waiting
        budget = self.budget and replace(self.budget, waits=waits)
        return Limits(self.max_cost, self.max_tokens_total, budget, naming=Naming(command=True))

    @property
    def own_prices(self) -> OwnPrices:
        """What the user says that models cost."""
        return own_prices(self.price_file) if self.price_file else ()

    def new_budget(self) -> Budget:
        """The budget of a command, of which nothing is spent."""
        return Budget(self.limits, Prices(own=self.own_prices))

    @property
    def rates(self) -> Rates:
        """How many calls and tokens a minute the user allows."""
        return Rates(self.rpm, self.tpm)

    @property
    def patience_s(self) -> float:
        """``patience``, with its default."""
        return self.patience or (self.ENDLESS_PATIENCE_S if self.continuous else PATIENCE_S)

    @property
    @abstractmethod
    def kept(self) -> LedgerSettings:
        """Which ledger keeps answers, and which of its answers may be reused."""

    @property
    def calls(self) -> CallSettings:
        """How calls are made; through this environment's gateway also on workers whose own environment names none."""
        return CallSettings(
            self.concurrency.calls,
            fixed=self.concurrency.fixed,
            rates=self.rates,
            kept=self.kept,
            limits=self.limits,
            prices=self.own_prices,
            gateway=default_gateway(),
            headers=self.header,
            call_timeout_s=self.call_timeout,
            patience_s=self.patience_s,
        )

    @property
    def ledger_url(self) -> str:
        """``ledger``; by default a database in a local output, else one in the user's state folder."""
        return self.ledger or default_ledger(self.output_location)

    @property
    def decisive(self) -> Mapping[str, Any]:
        """What affects answers, for the output's configuration."""
        return {}

    @property
    def configuration(self) -> str:
        """The fingerprint of what affects answers; "" where answers of any model and prompt may be mixed."""
        return ""


def default_ledger(output: Location) -> str:
    """``sqlite:///PATH``: below a local output, else in $XDG_STATE_HOME/llmdo, one for each output in R2."""
    if not output.bucket:
        return f"{SQLITE_SCHEME}{output.store_url}/_ledger.sqlite"
    # Buckets of two accounts may share their names.
    place = f"{r2_access().endpoint} {output.store_url}/{output.key}"
    name = hashlib.sha256(place.encode()).hexdigest()[:16]
    return f"{SQLITE_SCHEME}{state_folder() / f'ledger-{name}.sqlite'}"
