"""The most tokens that a call may use, estimated before it is made."""

from __future__ import annotations

from llmdo.backends.limits.sizes import (
    CHARACTERS_A_TOKEN,
    DEFAULT_MAX_TOKENS,
    answer_limit,
    answers_wanted,
    longest_input,
)
from llmdo.backends.requests import ChatRequest, RawRequest, Request
from llmdo.backends.responses import Response
from llmdo.backends.usage import Usage

LONGEST_RESULT = 256  # of a model's own input without a limit: Workers AI's default
# Tokens. Most of a short request's are the template's, from which nothing is learnt about its text.
_LONG_ENOUGH = 100


class Estimates:
    """Upper bounds, raised for each model by what it used: a byte counts as a quarter of a token, up to a whole one."""

    __slots__ = ("_input", "_output")

    def __init__(self) -> None:
        self._input: dict[str, float] = {}
        self._output: dict[str, int] = {}

    def most(self, request: Request) -> Usage:
        """The most input and output tokens that a call may use."""
        text, around = longest_input(request)
        bytes_a_token = self._input.get(request.model, CHARACTERS_A_TOKEN)
        given = around - int(-text // bytes_a_token)
        output = answer_limit(request)
        if output is None:
            by_default = LONGEST_RESULT if isinstance(request, RawRequest) and not request.path else DEFAULT_MAX_TOKENS
            output = max(by_default * answers_wanted(request), self._output.get(request.model, 0))
        if _asks_twice(request):  # the second time the first answer is part of the input
            return Usage(2 * (given + output), 2 * output)
        return Usage(given, output)

    def learn(self, request: Request, response: Response) -> None:
        """Raises the bounds by what a call used."""
        used, model = response.usage, request.model
        if _asks_twice(request):
            return
        self._output[model] = max(used.output_tokens, self._output.get(model, 0))
        text, around = longest_input(request)
        if used.input_tokens > around + _LONG_ENOUGH:
            found = text / (used.input_tokens - around)
            self._input[model] = max(1.0, min(found, self._input.get(model, CHARACTERS_A_TOKEN)))


def _asks_twice(request: Request) -> bool:
    """Whether a backend may itself ask a second time: in JSON mode, after an answer that does not fit."""
    return isinstance(request, ChatRequest) and bool(request.parameters.get("response_format"))
