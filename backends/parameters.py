"""Parameters by OpenAI's names, and what a provider makes of them: nothing is left out without a word."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from llmdo.backends.errors import InvalidRequest, short
from llmdo.backends.requests import ChatRequest, RawRequest, Request

# Fields of a request that a backend fills in itself: no parameters.
OURS = frozenset({"model", "messages", "stream", "stream_options"})
TOKEN_LIMITS = ("max_tokens", "max_completion_tokens")  # two names of one thing
# What a model's own input may call it besides: OpenAI's Responses API, and Workers AI's summaries.
_OWN_LIMITS = (*TOKEN_LIMITS, "max_output_tokens", "max_length")
# Of a chat that sets no limit; the Workers AI backend sends it, since the API's default of 256 cuts answers off without
# a word. Three pages, which end within the 120 to 240 s that the service gives a call.
DEFAULT_MAX_TOKENS = 2048

# Inputs of native Workers AI models, which no other service knows.
WORKERS_AI_ONLY = frozenset({"lora", "raw", "image", "pooling", "truncate_inputs", "instruction"})


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a service takes the parameters of a chat.

    Attributes:
        known: all that it takes; None: whatever is not in ``unknown``.
        unknown: what it does not take, or takes without doing anything.
        renamed: OpenAI's name → its own.
        bounds: least and greatest value; what lies outside is moved to the bound.
        several: whether ``n`` answers can be asked for.
    """

    known: frozenset[str] | None = None
    unknown: frozenset[str] = frozenset()
    renamed: Mapping[str, str] = field(default_factory=dict)
    bounds: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    several: bool = False


def translate(parameters: Mapping[str, Any], dialect: Dialect, model: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The parameters as the service takes them, and a sentence for each that is left out or changed.

    The limit of tokens is not among them: see ``checked_token_limit``. Values that ask for nothing (null, false, an
    empty list) are left out silently.
    """
    body: dict[str, Any] = {}
    warnings: list[str] = []
    for name, value in parameters.items():
        if name in TOKEN_LIMITS or value is None:
            continue
        if name in OURS:
            if not _asks_nothing(value):
                warnings.append(f"{name} was left out: it is no parameter of a request")
            continue
        taken = name not in dialect.unknown and (dialect.known is None or name in dialect.known)
        if name == "n":
            if dialect.several and value != 1:
                body["n"] = _limit(value) or value
            elif value != 1:
                warnings.append("n was left out: a request has one answer")
        elif not taken:
            if not _asks_nothing(value):
                warnings.append(f"{name} was left out: {model} cannot use it")
        else:
            kept = _within(value, dialect.bounds.get(name))
            if kept != value:
                warnings.append(f"{name} was changed from {value} to {kept}: {model} takes no other")
            body[dialect.renamed.get(name, name)] = kept
    limits = {name: limit for name in TOKEN_LIMITS if (limit := _limit(parameters.get(name))) is not None}
    if len(set(limits.values())) > 1 and (limit := checked_token_limit(parameters, "")):
        other = next(name for name, value in limits.items() if value != limit)
        warnings.append(f"{other} was left out: the answer has at most {limit} tokens by the other limit")
    return body, tuple(warnings)


def token_limit(parameters: Mapping[str, Any]) -> int | None:
    """The limit of tokens that a chat sets for its answer, by its old name or its new one; None without one.

    Of two that differ, the lower. -1 sets none, as servers have it. What is not a whole number of at least 1 sets none
    either: no call is made with it, see ``checked_token_limit``.
    """
    return min((limit for name in TOKEN_LIMITS if (limit := _limit(parameters.get(name)))), default=None)


def checked_token_limit(parameters: Mapping[str, Any], provider: str) -> int | None:
    """The same for a call. Raises InvalidRequest where a limit is neither a whole number of at least 1 nor -1."""
    for name in TOKEN_LIMITS:
        limit = parameters.get(name)
        if limit is not None and not is_unlimited(limit) and _limit(limit) is None:
            raise InvalidRequest(
                f"{name} is {short(limit)}: write a whole number of at least 1, or leave it out",
                provider=provider or None,
            )
    return token_limit(parameters)


def answer_limit(request: Request) -> int | None:
    """The most tokens that the answer of any request may have by the limits in it; None where it sets none.

    A model's own input is passed on as it is, and the model may read any of its limits: the highest counts.
    """
    if isinstance(request, ChatRequest):
        each = token_limit(request.parameters)
        return None if each is None else each * answers_wanted(request)
    if isinstance(request, RawRequest) and request.path != "embeddings":
        limits = [limit for name in _OWN_LIMITS if (limit := _limit(request.input.get(name)))]
        return max(limits) * answers_wanted(request) if limits else None
    return 0  # vectors are not tokens


def answers_wanted(request: Request) -> int:
    """How many answers one call asks for, each as long as its limit: by ``n``, and prompts of /v1/completions."""
    if isinstance(request, ChatRequest):
        return _limit(request.parameters.get("n")) or 1
    if not isinstance(request, RawRequest) or request.path != "completions":
        return 1
    prompts = request.input.get("prompt")
    # An array of numbers is the tokens of one prompt.
    several = len(prompts) if isinstance(prompts, list) and prompts and not isinstance(prompts[0], int) else 1
    return several * max((n for name in ("n", "best_of") if (n := _limit(request.input.get(name)))), default=1)


def bounded(parameters: Mapping[str, Any]) -> tuple[str, ...]:
    """A sentence for a limit of -1, where a call without a limit gets DEFAULT_MAX_TOKENS."""
    asked = next((name for name in TOKEN_LIMITS if is_unlimited(parameters.get(name))), None)
    if asked is None or token_limit(parameters) is not None:
        return ()
    return (f"{asked} -1 was left out: the answer has at most {DEFAULT_MAX_TOKENS} tokens unless {asked} says more",)


def is_unlimited(value: object) -> bool:
    """Whether a limit is -1, by which llama.cpp, LM Studio and their clients say that there is none."""
    return isinstance(value, int | float) and value == -1


def _limit(value: object) -> int | None:
    """A whole number of at least 1, also where somebody's tool has made it a float such as 100.0."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 1 else None


def _asks_nothing(value: Any) -> bool:
    return value is False or value in ([], {}, "")


def _within(value: Any, bounds: tuple[float, float] | None) -> Any:
    if bounds is None or not isinstance(value, int | float):
        return value
    return min(max(value, bounds[0]), bounds[1])
