"""What a provider offers: one protocol for all, and one for those with an asynchronous batch API."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, cast, runtime_checkable

from llmdo.backends.errors import call_known
from llmdo.backends.requests import BatchPlace, ChatRequest, EmbedRequest, RawRequest, Request
from llmdo.backends.responses import (
    BatchState,
    ChatResponse,
    EmbedResponse,
    ModelInfo,
    RawResponse,
    Response,
    StreamChunk,
)


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
class InProcessBackend(Protocol):
    """A backend whose models run in this process, ``slots`` calls at a time: a call's time starts with its slot."""

    slots: int


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """What a provider takes as one batch of a model.

    Attributes:
        items, size: requests, and bytes of them all, at most.
        window_s: within how many seconds the provider promises the answers; 0: it promises nothing.
        finds: whether ``find_batch`` works.
    """

    items: int
    size: int
    window_s: float
    finds: bool


@runtime_checkable
class BatchBackend(Protocol):
    """What else a provider offers whose requests can be handed over and answered later.

    A LineError of submit_batch means that the model, or this input, is not for batches. A Retryable error of
    poll_batch, or of its results, means to poll again, and a LineError that the batch is unknown.
    """

    def takes_batches(self, model: str) -> bool:
        """Whether submit_batch works for this model."""

    def batch_limits(self, model: str) -> BatchLimits:
        """What one batch of this model may be."""

    async def batch_share(self, request: Request) -> float:
        """The part of the largest batch that a request takes. Raises LineError where it cannot be sent at all."""

    async def submit_batch(self, model: str, requests: Sequence[Request], nonce: str) -> str:
        """Hands requests of one model over to be answered later, and cheaper; returns what names the batch.

        ``nonce``: 26 letters and digits that the batch can be found by: in its metadata, its file's name, or each
        request's custom id.
        """

    async def poll_batch(
        self, model: str, batch: str, requests: Sequence[Request], places: Sequence[BatchPlace]
    ) -> BatchState:
        """Looks whether a batch is done; ``requests`` are those that were handed over, or a part, with their places.

        Without any it is looked at for what it has cost: the results are all that it has, whatever they answer.
        """

    async def find_batch(self, model: str, nonce: str, count: int, since: float) -> str | None:
        """The batch of ``count`` requests that was submitted with a nonce, at ``since`` (Unix time) or later.

        None: by the provider's list it is not there, or not yet. Raises BatchUnclear where that cannot be told.
        """

    async def cancel_batch(self, model: str, batch: str) -> None:
        """Asks for no more answers; poll_batch fetches those that were made. Raises LineError where it cannot be."""


@runtime_checkable
class BackgroundBackend(BatchBackend, Protocol):
    """A provider that also answers single requests in the background, within a window: "2h" or "8h".

    What ``begin`` names is polled and cancelled as a batch of this one request.
    """

    def background_problem(self, request: Request) -> str:
        """Why such a request is not answered in the background; "" if it may be."""

    async def begin(self, request: Request, window: str) -> str | Response:
        """Asks for an answer within a window; returns what names it (see llmdo.backends.lanes.windows).

        Or the answer itself, of a service that does not know the background, and answers at once. Raises LineError
        also where the model has no such window.
        """


_Method = TypeVar("_Method", bound=Callable[..., Coroutine[Any, Any, Any]])


def naming_provider(method: _Method) -> _Method:
    """A backend's method, whose errors name its provider."""

    @functools.wraps(method)
    async def named(self: Any, *args: Any, **kwargs: Any) -> Any:
        with call_known(provider=self.name):
            return await method(self, *args, **kwargs)

    return cast(_Method, named)
