"""Options of any run that calls models, over files or in chats."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from llmdo.backends.engine.settings import CallSettings
from llmdo.backends.limits.breaker import PATIENCE_S
from llmdo.backends.limits.rates import Rates
from llmdo.backends.limits.retry import CALL_TIMEOUT_S
from llmdo.backends.money.money import Limits
from llmdo.pipelines.option_types import Calls, Gateway, Header, ModelName
from llmdo.pipelines.shown import ADVANCED, BUDGET, LEDGER, MODEL, RATE
from llmdo.settings.environment import default_gateway, r2_access, state_folder
from llmdo.storage.ledger.ledger import SQLITE_SCHEME
from llmdo.storage.objects.store import Location
from llmdo.transforms.answers.ledger_settings import LedgerSettings
from llmdo.transforms.run import Run

ChosenModel = Annotated[ModelName, MODEL("PROVIDER/MODEL.")]
CallsInFlight = Annotated[Calls, RATE("Calls in flight at most: N, fewer while the service refuses; or fixed:N.")]
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
    runner: str
    processes: int = 1
    continuous: bool = False
    model: ChosenModel
    max_cost: Annotated[
        float | None,
        Field(gt=0, allow_inf_nan=False),
        BUDGET("US dollars at most; the run stops before it could exceed them."),
    ] = None
    max_tokens_total: Annotated[
        int | None, Field(ge=1), BUDGET("Tokens of all calls at most, in and out; likewise.")
    ] = None
    concurrency: CallsInFlight
    rpm: Annotated[
        float | None,
        Field(gt=0),
        RATE(
            "Requests a minute at most, to each model. By default what the provider publishes: at "
            "Cloudflare's public API that of the model or its task (text generation: 300, frontier models 20); at "
            "other addresses none."
        ),
    ] = None
    tpm: Annotated[float | None, Field(gt=0), RATE("Tokens a minute at most, in and out; no limit by default.")] = None
    patience: Annotated[
        float | None,
        Field(gt=0, allow_inf_nan=False),
        RATE(
            "Seconds for which a service may answer nothing, while calls pause, before the run stops and "
            "leaves the lines open; default 600, no limit for stream."
        ),
    ] = None
    call_timeout: Annotated[
        float,
        Field(gt=0, allow_inf_nan=False),
        RATE("Seconds that one try of a call may take; after two tries that took longer the line becomes an error."),
    ] = CALL_TIMEOUT_S
    ledger: Annotated[
        str | None,
        LEDGER("Where answers are kept as they arrive: sqlite:///PATH, r2://BUCKET/PREFIX/, a folder, or none."),
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
        return Limits(self.max_cost, self.max_tokens_total)

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
