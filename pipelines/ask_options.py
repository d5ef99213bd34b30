"""Options of a single question to a model, which needs no run."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from llmdo.backends.limits.retry import CALL_TIMEOUT_S
from llmdo.pipelines.run_options import (
    ChosenModel,
    GatewayName,
    Headers,
    MaxTokens,
    SystemPrompt,
    Temperature,
    with_model,
)
from llmdo.pipelines.shown import ADVANCED
from llmdo.pipelines.usage import checked


class AskOptions(BaseModel):
    """Which model to ask, and how. Times in seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: ChosenModel
    system: SystemPrompt = ""
    max_tokens: MaxTokens = None
    temperature: Temperature = None
    gateway: GatewayName = None
    header: Headers = ()
    call_timeout: Annotated[
        float, Field(ge=1, allow_inf_nan=False), ADVANCED("Seconds that the model may be silent.")
    ] = CALL_TIMEOUT_S

    @property
    def parameters(self) -> dict[str, Any]:
        """The request parameters that are set, by OpenAI's names."""
        given = {"max_tokens": self.max_tokens, "temperature": self.temperature}
        return {name: value for name, value in given.items() if value is not None}


def check_ask_options(**given: Any) -> AskOptions:
    """Validates options and the environment that they need. Raises UsageError with everything that is wrong."""
    return checked(AskOptions, given, with_model(given))
