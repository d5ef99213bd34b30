"""A model for programs without asyncio: the backends' calls as plain ones, on a loop in a thread of their own."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, TypeVar

from llmdo.backends.backend import Backend
from llmdo.backends.errors import InvalidRequest, LineError
from llmdo.backends.limits.arrays import ArrayLimits, as_tuples, joined
from llmdo.backends.limits.retry import CALL_TIMEOUT_S
from llmdo.backends.listing import list_models
from llmdo.backends.parameters import OURS
from llmdo.backends.providers import PROVIDERS, split_model, unusual
from llmdo.backends.providers import connect as open_backend
from llmdo.backends.requests import ChatRequest, EmbedRequest, Message, RawRequest
from llmdo.backends.responses import ChatResponse, EmbedResponse, Models, RawResponse, StreamChunk

T = TypeVar("T")


def connect(
    name: str, gateway: str | None = None, headers: Sequence[str] = (), timeout_s: float = CALL_TIMEOUT_S
) -> Model:
    """A model by its full name, ``workers-ai/@cf/…``, or a provider by its name alone; close it after use.

    Args:
        name: PROVIDER/MODEL, a bare ``@cf/…``, or a provider's name.
        gateway: id or URL of the AI Gateway that Workers AI is called by; None: what the environment names.
        headers: ``NAME=VARIABLE``, sent to OPENAI_BASE_URL with the variable's value.
        timeout_s: seconds that a service may be silent.

    Raises ModelNotFound for a name that no provider has, and MissingSettings where the environment lacks something.
    """
    provider, model = (name, "") if name in PROVIDERS else split_model(name)
    return Model(open_backend(provider, gateway, **unusual(headers, timeout_s)), model)


class Model:
    """One model of a provider, called without asyncio; safe from any thread. Every call may raise ModelError.

    Nothing is tried again: see ``ModelError`` for what to do. For ``await`` use ``llmdo.connect_async``.

    Attributes:
        backend: what makes the calls, on an event loop of its own.
        model: the provider's own name; "" where requests name theirs.
    """

    def __init__(self, backend: Backend, model: str = "") -> None:
        self.backend = backend
        self.model = model
        self._arrays = ArrayLimits()
        self._loop = asyncio.new_event_loop()
        thread = threading.Thread(target=self._loop.run_forever, name="llmdo-model", daemon=True)
        thread.start()
        # Also at the end of the process: aiohttp warns of connections that are left open.
        self._finish = weakref.finalize(self, _close, backend, self._loop, thread)

    def __repr__(self) -> str:
        return f"<Model {self.name}>"

    @property
    def name(self) -> str:
        """``provider/model``, as ``connect`` takes it; the provider alone where no model was named."""
        return f"{self.backend.name}/{self.model}" if self.model else self.backend.name

    def execute(self, request: ChatRequest | str, **parameters: Any) -> ChatResponse:
        """Answers a conversation, or a prompt; ``parameters``, by OpenAI's names, override those of ``request``."""
        return self._call(self.backend.execute(self._chat(request, parameters)))

    def execute_stream(self, request: ChatRequest | str, **parameters: Any) -> Iterator[StreamChunk]:
        """Answers ``request`` piece by piece, ``parameters`` as in ``execute``; see StreamChunk for how it ends."""
        chunks = aiter(self.backend.execute_stream(self._chat(request, parameters)))
        try:
            while (chunk := self._call(_next(chunks))) is not None:
                yield chunk
        finally:
            close = getattr(chunks, "aclose", None)
            if close is not None and self._finish.alive:
                self._call(close())

    def embed(self, texts: EmbedRequest | Sequence[str] | str, **parameters: Any) -> EmbedResponse:
        """Embeds any number of ``texts``: one vector a text, in their order, by as many calls as the model needs.

        An EmbedRequest must fit into one call; ``parameters`` override its own.
        """
        if isinstance(texts, EmbedRequest):
            asked = replace(texts, parameters={**texts.parameters, **parameters})
            return as_tuples(self._call(self.backend.embed(asked)))
        texts = (texts,) if isinstance(texts, str) else tuple(texts)
        return as_tuples(self._call(self._embed(self._named(), texts, parameters)))

    def run(self, raw: RawRequest | Mapping[str, Any]) -> RawResponse:
        """Passes ``raw`` on, a model's own input."""
        request = raw if isinstance(raw, RawRequest) else RawRequest(self._named(), raw)
        return self._call(self.backend.run(request))

    def list_models(self) -> Models:
        """The provider's models; a list that is less than an hour old is reused: see ``llmdo.backends.listing``."""
        return self._call(list_models(self.backend))

    def health(self) -> None:
        """One cheap call that proves address and credentials. Raises what a real one would."""
        self._call(self.backend.health())

    def close(self) -> None:
        """Ends the connections and the thread; a second time does nothing."""
        self._finish()

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _chat(self, request: ChatRequest | str, parameters: Mapping[str, Any]) -> ChatRequest:
        wrong = sorted(OURS & parameters.keys())
        if wrong:
            raise InvalidRequest(
                f"{wrong[0]} is not a parameter: call execute_stream for a stream, and pass a ChatRequest with another "
                "model or with messages",
                provider=self.backend.name,
            )
        if isinstance(request, str):
            request = ChatRequest(self._named(), (Message("user", request),))
        return replace(request, parameters={**request.parameters, **parameters})

    def _named(self) -> str:
        if not self.model:
            text = f"no model is named: connect to {self.backend.name}/MODEL, or pass a request with one"
            raise InvalidRequest(text, provider=self.backend.name)
        return self.model

    async def _embed(self, model: str, texts: tuple[str, ...], parameters: Mapping[str, Any]) -> EmbedResponse:
        provider, parts, start = self.backend.name, list[EmbedResponse](), 0
        while start < len(texts):
            usual = self.backend.max_texts(model)
            some = texts[start : start + min(usual, self._arrays.most(provider, model) or usual)]
            try:
                parts.append(await self.backend.embed(EmbedRequest(model, some, dict(parameters))))
            except LineError as error:
                if not self._arrays.refused(provider, model, some, error.message):
                    raise
            else:
                start += len(some)
        if not parts:
            raise InvalidRequest(f"{model}: there are no texts to embed", provider=self.backend.name)
        return joined(parts)

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        if not self._finish.alive:
            work.close()
            raise RuntimeError("the model is closed: connect again")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:  # Ctrl-C ends the call, too
            future.cancel()
            raise


async def _next(chunks: Any) -> StreamChunk | None:
    return await anext(chunks, None)


def _close(backend: Backend, loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
    closing = asyncio.run_coroutine_threadsafe(backend.aclose(), loop)
    closing.add_done_callback(lambda _: loop.call_soon_threadsafe(loop.stop))
    if threading.current_thread() is thread:  # collected there, with no one waiting
        return
    closing.result()
    thread.join()
    loop.close()
