"""One backend for each provider, connected when first needed, and the call that fits each kind of request."""

from __future__ import annotations

import threading
from collections.abc import Callable

from backends.errors import Unauthorized
from backends.ir import ChatRequest, EmbedRequest, Request, Response
from backends.protocol import Backend
from storage.environment import MissingSettings


class Connections:
    """The backends of an engine. Getting one is safe from any thread; calls are made on the engine's loop."""

    def __init__(self, connect: Callable[[str], Backend]) -> None:
        self._connect = connect
        self._backends: dict[str, Backend] = {}
        self._lock = threading.Lock()

    def get(self, provider: str) -> Backend:
        """The provider's backend. Raises ModelNotFound, and Unauthorized where the environment lacks its settings."""
        with self._lock:
            if provider not in self._backends:
                try:
                    self._backends[provider] = self._connect(provider)
                except MissingSettings as error:
                    raise Unauthorized(str(error), provider=provider) from error
            return self._backends[provider]

    async def answer(self, provider: str, request: Request) -> Response:
        """Makes the call. Raises what the backend raises."""
        backend = self.get(provider)
        if isinstance(request, ChatRequest):
            return await backend.execute(request)
        if isinstance(request, EmbedRequest):
            return await backend.embed(request)
        return await backend.run(request)

    async def aclose(self) -> None:
        """Closes all backends."""
        for backend in self._backends.values():
            await backend.aclose()
