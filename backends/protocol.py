"""What a provider offers, and the table of providers."""

from __future__ import annotations

import importlib
from collections.abc import AsyncIterator
from typing import Protocol, cast

from backends.errors import ModelNotFound
from backends.ir import (
    ChatRequest,
    ChatResponse,
    EmbedRequest,
    EmbedResponse,
    ModelInfo,
    RawRequest,
    RawResponse,
    StreamChunk,
)


class Backend(Protocol):
    """One provider. Every coroutine runs on the same event loop; every call may raise ModelError."""

    name: str

    async def execute(self, request: ChatRequest) -> ChatResponse:
        """Answers a conversation."""

    def execute_stream(self, request: ChatRequest) -> AsyncIterator[StreamChunk]:
        """Answers a conversation piece by piece."""

    async def embed(self, request: EmbedRequest) -> EmbedResponse:
        """Embeds at most ``max_texts`` texts."""

    async def run(self, request: RawRequest) -> RawResponse:
        """Passes a model's own input on. Raises InvalidRequest where the provider has no such thing."""

    async def list_models(self) -> list[ModelInfo]:
        """All models of the provider."""

    def max_texts(self, model: str) -> int:
        """How many texts one embedding call of this model takes; 1 where it takes no array."""

    async def aclose(self) -> None:
        """Closes connections; the backend is not used after."""


# provider → module with open_backend() -> Backend, which reads the environment and may raise MissingSettings.
PROVIDERS = {
    "workers-ai": "backends.workers_ai",
    "local": "backends.llama_cpp",
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


def connect(provider: str) -> Backend:
    """A new backend of a provider, or of the provider of a model's full name. Raises ModelNotFound, MissingSettings."""
    if provider not in PROVIDERS:
        provider, _ = split_model(provider)
    return cast(Backend, importlib.import_module(PROVIDERS[provider]).open_backend())
