"""The table of providers, and how one is connected."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from llmdo.backends.backend import Backend
from llmdo.backends.errors import ModelNotFound
from llmdo.backends.limits.rates import NO_RATES, Rates
from llmdo.backends.limits.retry import CALL_TIMEOUT_S
from llmdo.settings.environment import (
    ANTHROPIC_API,
    MissingSettings,
    anthropic_access,
    anthropic_base_url,
    braintrust_access,
    cloudflare_account,
    is_openai_itself,
    openai_access,
    openai_base_url,
)


@dataclass(frozen=True, slots=True)
class Provider:
    """A row of the table of providers.

    Attributes:
        module: has ``open_backend() -> Backend``, which reads the environment; imported when first needed.
        access: reads what the provider needs of the environment, and raises MissingSettings; None: it needs nothing.
        takes: what ``open_backend`` may be given, of the arguments of ``connect``.
        rates: module with ``published_rates(model) -> Rates``; None: the provider publishes none.
        models: module with ``takes_own_input(model)`` and ``chats(model)``; None: any model chats, and none takes an
            input of its own.
        routes: whether bodies of OpenAI's other routes (completions, embeddings, responses) are passed on.
        usual: the model that is called where none is named, if the environment has what the provider needs; None: its
            models depend on the server.
        owners: whether the ids of the service's models may begin with an owner that has the provider's name, as
            ``openai/gpt-oss-20b`` does on a server with OpenAI's API; None: they never do.
        others: whether a name is that of another provider's model, to which this one passes calls on.
        lacks: whether a name is known not to be that of one of its models.
        messages: whether requests of Anthropic's Messages API are passed on.
        prices: where prices of its models are published, as ``published_price`` takes it: publisher and address; None:
            nowhere.
    """

    module: str
    access: Callable[[], object] | None = None
    takes: frozenset[str] = frozenset()
    rates: str | None = None
    models: str | None = None
    routes: bool = True
    usual: Callable[[], str | None] = lambda: None
    owners: Callable[[], bool] | None = None
    others: Callable[[str], bool] = lambda _: False
    lacks: Callable[[str], bool] = lambda _: False
    messages: bool = False
    prices: Callable[[], tuple[str | None, str]] | None = None


# How names of models begin that batch lines of Anthropic and Gemini have, and OpenAI's lines do not.
_OF_OTHERS = ("claude-", "gemini-")

# How names of models begin to which Cloudflare passes calls on.
_PASSED_ON = ("anthropic/", "deepseek/", "google/", "google-ai-studio/", "grok/", "openai/", "xai/")

PROVIDERS = {
    "workers-ai": Provider(
        "llmdo.backends.workers_ai.backend",
        cloudflare_account,
        frozenset({"gateway", "timeout_s"}),
        rates="llmdo.backends.workers_ai.rates",
        models="llmdo.backends.workers_ai.models",
        routes=False,
        usual=lambda: "@cf/meta/llama-3.3-70b-instruct-fp8-fast",
        others=lambda model: "/" in model and not model.startswith("@"),
        lacks=lambda model: not model.startswith(("@", *_PASSED_ON)),
        prices=lambda: ("cloudflare", ""),
    ),
    "openai": Provider(
        "llmdo.backends.openai_batches.backend",
        openai_access,
        frozenset({"headers", "timeout_s"}),
        usual=lambda: "gpt-4o-mini" if is_openai_itself() else None,
        owners=lambda: not is_openai_itself(),
        lacks=lambda model: is_openai_itself() and model.startswith(_OF_OTHERS),
        prices=lambda: (None, openai_base_url()),
    ),
    "braintrust": Provider(
        "llmdo.backends.openai.braintrust",
        braintrust_access,
        frozenset({"timeout_s"}),
        usual=lambda: "gpt-4o-mini",
        prices=lambda: (None, ""),  # it passes the models of all providers on, at their prices
    ),
    "anthropic": Provider(
        "llmdo.backends.anthropic.batches",
        anthropic_access,
        frozenset({"timeout_s"}),
        routes=False,
        usual=lambda: "claude-haiku-4-5",
        lacks=lambda model: anthropic_base_url() == ANTHROPIC_API and not model.startswith("claude"),
        messages=True,
        prices=lambda: ("anthropic", ""),
    ),
    "local": Provider("llmdo.backends.llama_cpp.backend", routes=False),
}


def split_model(name: str) -> tuple[str, str]:
    """Splits ``provider/model``; a bare ``@cf/…`` or ``@hf/…`` is Workers AI. Raises ModelNotFound.

    >>> split_model("@cf/baai/bge-m3")
    ('workers-ai', '@cf/baai/bge-m3')
    """
    if name.startswith("@"):
        return "workers-ai", name
    provider, slash, model = name.partition("/")
    if provider in PROVIDERS and slash and model:
        return provider, model
    known = ", ".join(f"{p}/…" for p in PROVIDERS)
    raise ModelNotFound(
        f"{name!r} names no provider that is known here: write one of {known} or @cf/…", code="provider"
    )


def usual_model() -> str | None:
    """``provider/model`` of the first provider whose settings are in the environment; None if there is none."""
    for name, row in PROVIDERS.items():
        model = row.usual()
        if model is None or row.access is None:
            continue
        try:
            row.access()
        except MissingSettings:
            continue
        return f"{name}/{model}"
    return None


def access_of(model: str) -> Callable[[], object] | None:
    """What reads the settings that a model's provider needs: see Provider; None also for an unknown name."""
    try:
        provider, _ = split_model(model)
    except ModelNotFound:
        return None
    return PROVIDERS[provider].access


def has_own_inputs(provider: str) -> bool:
    """Whether models of a provider may take an input of their own."""
    row = PROVIDERS.get(provider)
    return row is not None and row.models is not None


def takes_own_input(provider: str, model: str) -> bool:
    """Whether a line for a model is its own input, also where it has a field called prompt or text."""
    return has_own_inputs(provider) and bool(_models(provider).takes_own_input(model))


def chats(provider: str, model: str) -> bool:
    """Whether a model is known to take a conversation, and nothing else."""
    return not has_own_inputs(provider) or bool(_models(provider).chats(model))


def passes_routes_on(provider: str, model: str = "") -> bool:
    """Whether a provider takes the bodies of OpenAI's other routes; with a ``model``, of /v1/responses for that one."""
    row = PROVIDERS.get(provider)
    return row is None or row.routes or row.others(model)


def is_passed_on(provider: str, model: str) -> bool:
    """Whether a model is another provider's, which need not be in this one's list: see Provider."""
    row = PROVIDERS.get(provider)
    return row is not None and row.others(model)


def passes_messages_on(provider: str) -> bool:
    """Whether a provider takes requests of Anthropic's Messages API."""
    row = PROVIDERS.get(provider)
    return row is not None and row.messages


def ids_have_owners(provider: str) -> bool:
    """Whether ``provider/…`` may be a service's own id of a model instead of this project's name for it."""
    row = PROVIDERS.get(provider)
    return row is not None and row.owners is not None and row.owners()


def lacks_model(provider: str, model: str) -> bool:
    """Whether a provider is known not to have a model of this name, without a call."""
    row = PROVIDERS.get(provider)
    return row is not None and row.lacks(model)


def prices_at(provider: str) -> tuple[str | None, str] | None:
    """Where prices of a provider's models are published: see Provider."""
    row = PROVIDERS.get(provider)
    return row.prices() if row is not None and row.prices is not None else None


def _models(provider: str) -> Any:
    return importlib.import_module(PROVIDERS[provider].models or "")


def published_rates(provider: str, model: str) -> Rates:
    """The rates that a model's provider publishes; no limit if it publishes none, or is unknown."""
    row = PROVIDERS.get(provider)
    if row is None or row.rates is None:
        return NO_RATES
    return cast(Rates, importlib.import_module(row.rates).published_rates(model))


def unusual(headers: Sequence[str], timeout_s: float) -> dict[str, Any]:
    """Those arguments of ``connect`` that are not its defaults."""
    how: dict[str, Any] = {"headers": tuple(headers)} if headers else {}
    return how | ({"timeout_s": timeout_s} if timeout_s != CALL_TIMEOUT_S else {})


def connect(
    provider: str, gateway: str | None = None, headers: Sequence[str] = (), timeout_s: float = CALL_TIMEOUT_S
) -> Backend:
    """A new backend, to be awaited: the same calls as those of ``llmdo.Model``.

    Args:
        provider: its name, or a model's full name, of which only the provider counts.
        gateway: id or URL of the AI Gateway that Workers AI is called by; None: what the environment names.
        headers: ``NAME=VARIABLE``, sent to OPENAI_BASE_URL with the variable's value.
        timeout_s: seconds that a service may be silent.

    Raises ModelNotFound for a name that no provider has, and MissingSettings where the environment lacks something.
    """
    if provider not in PROVIDERS:
        provider, _ = split_model(provider)
    row = PROVIDERS[provider]
    open_backend = importlib.import_module(row.module).open_backend
    given = ({"gateway": gateway} if gateway else {}) | unusual(headers, timeout_s)
    return cast(Backend, open_backend(**{name: value for name, value in given.items() if name in row.takes}))
