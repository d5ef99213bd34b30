"""What a provider offers, and the table of providers."""

from __future__ import annotations

import importlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast, runtime_checkable

from llmdo.backends.errors import ModelNotFound
from llmdo.backends.ir import (
    BatchPlace,
    BatchState,
    ChatRequest,
    ChatResponse,
    EmbedRequest,
    EmbedResponse,
    ModelInfo,
    RawRequest,
    RawResponse,
    Request,
    StreamChunk,
)
from llmdo.backends.limits.retry import CALL_TIMEOUT_S
from llmdo.settings.environment import braintrust_access, cloudflare_account, openai_access


class Backend(Protocol):
    """One provider. Every coroutine runs on the same event loop; every call may raise ModelError."""

    name: str

    async def execute(self, request: ChatRequest) -> ChatResponse:
        """Answers a conversation."""

    def execute_stream(self, request: ChatRequest) -> AsyncIterator[StreamChunk]:
        """Answers a conversation piece by piece; see StreamChunk for how it ends."""

    async def embed(self, request: EmbedRequest) -> EmbedResponse:
        """Embeds at most ``max_texts`` texts."""

    async def run(self, request: RawRequest) -> RawResponse:
        """Passes a model's own input on. Raises InvalidRequest where the provider has no such thing."""

    def check(self, request: Request) -> None:
        """Raises the ModelError with which a call would end before anything is sent."""

    async def list_models(self) -> list[ModelInfo]:
        """All models of the provider."""

    def max_texts(self, model: str) -> int:
        """How many texts one embedding call of this model takes; 1 where it takes no array."""

    async def health(self) -> None:
        """One cheap call that proves address and credentials. Raises what a real one would."""

    async def aclose(self) -> None:
        """Closes connections; the backend is not used after."""


@runtime_checkable
class BatchBackend(Protocol):
    """What a provider offers besides where requests can be handed over and answered later.

    Of submit_batch a LineError says that the model, or this input, is not for batches. Of poll_batch a Retryable error
    says to poll again, and a LineError that nobody knows this batch.
    """

    def takes_batches(self, model: str) -> bool:
        """Whether submit_batch works for this model."""

    async def batch_share(self, request: Request) -> float:
        """The part of the largest batch that a request takes. Raises LineError where it cannot be sent at all."""

    async def submit_batch(self, model: str, requests: Sequence[Request]) -> str:
        """Hands requests of one model over to be answered later, and cheaper; returns what names the batch."""

    async def poll_batch(
        self, model: str, batch: str, requests: Sequence[Request], places: Sequence[BatchPlace] = ()
    ) -> BatchState:
        """Looks whether a batch is done; ``requests`` are those that were handed over, or a part with its places."""


@dataclass(frozen=True, slots=True)
class Provider:
    """A row of the table of providers.

    Attributes:
        module: has ``open_backend() -> Backend``, which reads the environment; imported when first needed.
        access: reads what the provider needs of the environment, and raises MissingSettings; None: it needs nothing.
        takes: what ``open_backend`` may be given, of the arguments of ``connect``.
    """

    module: str
    access: Callable[[], object] | None = None
    takes: frozenset[str] = frozenset()


PROVIDERS = {
    "workers-ai": Provider(
        "llmdo.backends.workers_ai.backend", cloudflare_account, frozenset({"gateway", "timeout_s"})
    ),
    "openai": Provider("llmdo.backends.openai.backend", openai_access, frozenset({"headers", "timeout_s"})),
    "braintrust": Provider("llmdo.backends.openai.braintrust", braintrust_access, frozenset({"timeout_s"})),
    "local": Provider("llmdo.backends.llama_cpp.backend"),
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


def access_of(model: str) -> Callable[[], object] | None:
    """What reads the settings that a model's provider needs: see Provider; None also for a name that nobody has."""
    try:
        provider, _ = split_model(model)
    except ModelNotFound:
        return None
    return PROVIDERS[provider].access


def unusual(headers: Sequence[str], timeout_s: float) -> dict[str, Any]:
    """Those arguments of ``connect`` that are not its defaults."""
    how: dict[str, Any] = {"headers": tuple(headers)} if headers else {}
    return how | ({"timeout_s": timeout_s} if timeout_s != CALL_TIMEOUT_S else {})


def connect(
    provider: str, gateway: str | None = None, headers: Sequence[str] = (), timeout_s: float = CALL_TIMEOUT_S
) -> Backend:
    """A new backend of a provider, or of the provider of a model's full name. Raises ModelNotFound, MissingSettings.

    ``gateway``: id or URL of the AI Gateway that Workers AI is called by; None: what the environment names.
    ``headers``: ``NAME=VARIABLE``, for OPENAI_BASE_URL alone. ``timeout_s``: how long a service may be silent.
    """
    if provider not in PROVIDERS:
        provider, _ = split_model(provider)
    row = PROVIDERS[provider]
    open_backend = importlib.import_module(row.module).open_backend
    given = ({"gateway": gateway} if gateway else {}) | unusual(headers, timeout_s)
    return cast(Backend, open_backend(**{name: value for name, value in given.items() if name in row.takes}))
