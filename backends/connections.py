"""One backend for each provider, connected when first needed, and the call that fits each kind of request."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

from llmdo.backends.backend import Backend, InProcessBackend
from llmdo.backends.errors import BadReply, LineError, ModelError, ProviderUnusable, StopRun, Unauthorized
from llmdo.backends.money.lanes import asked_lane, billed_lane, with_tier
from llmdo.backends.requests import ChatRequest, EmbedRequest, Request
from llmdo.backends.responses import EmbedResponse, Response
from llmdo.backends.streams import heard
from llmdo.settings.environment import MissingSettings

# Refusals of a flex call, after which it is made at list price: with their pauses they take some seconds.
FLEX_REFUSALS = 8


class Connections:
    """The backends of an engine. Getting one is safe from any thread; calls are made on the engine's loop.

    ``own``: the providers of the run itself; None: all. At any other provider, what would stop the run is an error of
    the line, and that provider is not called again: a line must not end a run that can do without it.
    ``flex``: every call that names no ``service_tier`` asks for this one.
    """

    def __init__(
        self, connect: Callable[[str], Backend], own: frozenset[str] | None = None, *, flex: bool = False
    ) -> None:
        self._connect = connect
        self._own = own
        self._flex = flex
        self._inflexible: set[tuple[str, str]] = set()  # provider and model
        self._closed: dict[str, StopRun] = {}
        self._backends: dict[str, Backend] = {}
        self._lock = threading.Lock()
        self._turns: dict[str, asyncio.Semaphore | None] = {}

    def get(self, provider: str) -> Backend:
        """The provider's backend. Raises ModelNotFound, and Unauthorized where the environment lacks its settings."""
        with self._lock:
            if provider not in self._backends:
                try:
                    self._backends[provider] = self._connect(provider)
                except MissingSettings as error:
                    raise Unauthorized(str(error), provider=provider) from error
            return self._backends[provider]

    async def answer(self, provider: str, request: Request, timeout_s: float, refusals: int = 0) -> Response:
        """Makes the call, which may take ``timeout_s`` s. Raises what the backend raises, TimeoutError, and
        ProviderUnusable in place of a StopRun of another provider than the run's, unless it may be about the line.

        A flex call that was refused FLEX_REFUSALS times, or of a model that has no flex, is made at list price, with a
        warning. ``refusals``: how often it was refused so far.
        """
        if provider in self._closed:
            raise _unusable(provider, request.model, self._closed[provider])
        try:
            return await self._in_lane(provider, request, timeout_s, refusals)
        except StopRun as error:
            final = error if error.about == "unclear" else self.final(provider, request.model, error)
            if final is error:
                raise
            raise final from error

    def final(self, provider: str, model: str, error: ModelError) -> ModelError:
        """What to raise for an error that every call meets: the lines' own at a provider that is not the run's."""
        if not isinstance(error, StopRun) or self._own is None or provider in self._own:
            return error
        self._closed[provider] = error
        return _unusable(provider, model, error)

    async def _in_lane(self, provider: str, request: Request, timeout_s: float, refusals: int) -> Response:
        if self._flex:
            request = with_tier(request, "flex")
        if asked_lane(request) != "flex":
            return await self._call(provider, request, timeout_s)
        why = f"flex was refused {refusals} times" if refusals >= FLEX_REFUSALS else ""
        if not why and (provider, request.model) not in self._inflexible:
            try:
                return await self._call(provider, request, timeout_s)
            except LineError as error:
                if "service_tier" not in error.message:
                    raise
                self._inflexible.add((provider, request.model))
        at_list = with_tier(request, "default", whatever=True)
        answer = await self._call(provider, at_list, timeout_s)
        answer.warnings = (*answer.warnings, f"asked at list price: {why or f'{request.model} has no flex'}")
        return answer

    async def _call(self, provider: str, request: Request, timeout_s: float) -> Response:
        backend = self._backends.get(provider) or self.get(provider)
        if provider not in self._turns:
            slots = backend.slots if isinstance(backend, InProcessBackend) else None
            self._turns[provider] = None if slots is None else asyncio.Semaphore(slots)
        turn = self._turns[provider]
        if turn is None:
            return await _ask(backend, request, timeout_s)
        async with turn:
            return await _ask(backend, request, timeout_s)

    async def aclose(self) -> None:
        """Closes all backends."""
        for backend in self._backends.values():
            await backend.aclose()


async def _ask(backend: Backend, request: Request, timeout_s: float) -> Response:
    response = await _answer(backend, request, timeout_s)
    response.lane = response.lane or billed_lane(response)
    return response


async def _answer(backend: Backend, request: Request, timeout_s: float) -> Response:
    async with asyncio.timeout(timeout_s):
        if isinstance(request, ChatRequest):
            return await (backend.execute(request) if request.listen is None else heard(backend, request))
        if isinstance(request, EmbedRequest):
            return _complete(await backend.embed(request), request)
        return await backend.run(request)


def _unusable(provider: str, model: str, error: StopRun) -> ProviderUnusable:
    said = f"{provider}/{model}: {error.message}"
    return ProviderUnusable(said, status=error.status, code=error.code, provider=provider, until=error.until)


def _complete(response: EmbedResponse, request: EmbedRequest) -> EmbedResponse:
    """The response, if each text has its vector: a line must not get its neighbour's. Raises BadReply."""
    vectors, texts = len(response.vectors), len(request.texts)
    if vectors != texts:
        said = f"{request.model} sent {vectors} vectors for {texts} texts: name another embedding model"
        raise BadReply(said, usage=response.usage)
    return response
