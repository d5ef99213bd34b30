"""Which models take batches, or answer in the background."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import cast

from llmdo.backends.backend import Backend, BackgroundBackend, BatchBackend
from llmdo.backends.errors import ModelError
from llmdo.backends.lanes.windows import PROMISED_S
from llmdo.backends.listing import list_models
from llmdo.backends.requests import EmbedRequest, Request
from llmdo.settings.environment import MissingSettings

_LIST_S = 30.0  # a list of models that takes longer is given up
_TAKES_NONE = "it takes no batches, and its requests are called one by one"

_log = logging.getLogger(__name__)


class Takers:
    """Used on the engine's loop.

    Args:
        get: the backend of a provider. May raise ModelError.
        wanted: "batch", or a window: a warning says where that cannot be; anything else: nobody expects it.
    """

    def __init__(self, get: Callable[[str], Backend], wanted: str) -> None:
        self._get = get
        self._wanted = wanted
        self._takes: dict[tuple[str, str], asyncio.Task[bool]] = {}
        self._refused: set[tuple[str, str]] = set()
        self._warned: set[str] = set()

    def backend(self, provider: str, request: Request) -> BatchBackend | None:
        """The backend, if such requests may be, or may have been, in batches."""
        model = request.model
        if isinstance(request, EmbedRequest):
            many = "texts to embed are not handed over in batches: many of them share a call"
            self._warn_once(provider, model, self._at_list("texts to embed") if self._window else many)
            return None
        try:
            backend = self._get(provider)
        except ModelError:
            return None  # the call will say so
        if self._window and not isinstance(backend, BackgroundBackend):
            self._warn_once(provider, model, self._at_list("its requests"))
        if isinstance(backend, BatchBackend):
            return backend
        self._warn_once(provider, model, _TAKES_NONE)
        return None

    async def takes_batches(self, backend: BatchBackend, provider: str, model: str) -> bool:
        """Whether a model takes batches, as far as is known by now."""
        asked = self._takes.get((provider, model))
        if asked is None:
            asked = self._takes[provider, model] = asyncio.ensure_future(_is_listed(backend, provider, model))
        takes = asked.result() if asked.done() else await asyncio.shield(asked)
        if not takes:
            self._warn_once(provider, model, _TAKES_NONE)
        return takes and not self.has_refused(provider, model)

    def refuse(self, provider: str, model: str) -> None:
        """A provider takes no batch of a model after all, or answers it in no window."""
        self._refused.add((provider, model))

    def has_refused(self, provider: str, model: str) -> bool:
        """See ``refuse``."""
        return (provider, model) in self._refused

    @property
    def _window(self) -> bool:
        return self._wanted in PROMISED_S

    def _at_list(self, what: str) -> str:
        return f"--lane {self._wanted}: {what} are not answered in the background, and are called at list price"

    def _warn_once(self, provider: str, model: str, what: str) -> None:
        name = f"{provider}/{model}"
        if (self._window or self._wanted == "batch") and name not in self._warned:
            self._warned.add(name)
            _log.warning("%s: %s", name, what)


async def _is_listed(backend: BatchBackend, provider: str, model: str) -> bool:
    """Whether the list of models, or without it the backend, reports that a model takes batches."""
    try:
        async with asyncio.timeout(_LIST_S):
            listed = (await list_models(cast(Backend, backend))).models
    except (ModelError, MissingSettings, TimeoutError):
        listed = ()
    info = next((info for info in listed if info.name == f"{provider}/{model}"), None)
    if info and any("batch" in one.capabilities for one in listed):  # else the list does not tell
        return "batch" in info.capabilities
    return backend.takes_batches(model)
