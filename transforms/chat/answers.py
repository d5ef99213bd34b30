"""Makes the answer to one message: calls the model, and turns its reply or error, and partial text, into events."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from llmdo.backends.engine.jobs import Done
from llmdo.backends.errors import BadReply, ContextOverflow, EngineClosed, ModelError, ModelUnusable, StopRun
from llmdo.backends.limits.sizes import DEFAULT_MAX_TOKENS, token_limit
from llmdo.backends.money.estimates import Estimates
from llmdo.backends.money.prices import Prices
from llmdo.backends.providers import split_model
from llmdo.backends.requests import ChatRequest
from llmdo.backends.responses import ChatResponse, StreamChunk
from llmdo.storage.chat.records import ChatMessage, LoggedAnswer
from llmdo.transforms.chat.elements import ChatDefaults
from llmdo.transforms.chat.events import completed, delta, failed, metadata, received
from llmdo.transforms.chat.failures import EMPTY_ANSWER, EMPTY_MESSAGE, ONLY_TOOLS, Reason, reason_of
from llmdo.transforms.chat.history import History, history
from llmdo.transforms.chat.lasting_engine import LastingEngine
from llmdo.transforms.chat.replies import AnsweredElsewhere, ReplySink, ResponseEventFields, fits
from llmdo.transforms.run_state import RunAsleep

DELTAS_EVERY_S = 0.25  # the text that arrives in this time is sent as one event
# A conversation that did not fit the model is shortened to this fraction, and sent once more.
_SHORTER = 0.75

Earlier = Sequence[tuple[ChatMessage, str | None]]
_log = logging.getLogger(__name__)


class NotNow(Exception):
    """The run is over: the message stays unanswered, and a later run answers it. ``error`` says why."""

    def __init__(self, error: ModelError) -> None:
        super().__init__(error.message)
        self.error = error


class Answers:
    """Makes answers; used on one event loop.

    Args:
        defaults: model, system prompt and parameters.
        engine: calls the model.
        replies: where answers will be pushed to; None if they are only logged.
        deltas: gets the text while it is generated, as events that may be lost; None if nobody reads it.
        stops: an error that every other call would meet too ends the run and leaves the message open; otherwise the
            message gets an error event.
        stopping: whether a StopRun only means that the run is being stopped.
        store: whose messages are answered; "" where there is only one.
        prices: what calls cost; None if nobody asks.

    Raises ModelNotFound if the model's name has no provider.
    """

    def __init__(
        self,
        defaults: ChatDefaults,
        engine: LastingEngine,
        *,
        replies: ReplySink | None = None,
        deltas: Callable[[ResponseEventFields], None] | None = None,
        stops: bool = False,
        stopping: Callable[[], bool] = lambda: False,
        store: str = "",
        prices: Prices | None = None,
    ) -> None:
        self._provider, self._model = split_model(defaults.model)
        self._defaults = defaults
        self._engine = engine
        self._replies = replies
        self._deltas = deltas
        self._stops = stops
        self._stopping = stopping
        self._store = (store,) if store else ()
        self._prices = prices
        self._estimates = Estimates()
        self._max_tokens = token_limit(defaults.parameters) or DEFAULT_MAX_TOKENS

    async def make(self, message: ChatMessage, earlier: Earlier, trace: Mapping[str, float]) -> LoggedAnswer:
        """The answer to a message, or an error event for one; ``trace`` holds the times of its stages so far.

        Raises NotNow and AnsweredElsewhere, and nothing else.
        """
        made = _Made(message, dict(trace))
        try:
            if not message.text.strip():
                return self._failed(made, EMPTY_MESSAGE)
            async with nullcontext() if self._replies is None else self._replies.answering(message):
                return await self._answer(made, earlier)
        except (NotNow, AnsweredElsewhere):
            raise
        except EngineClosed as error:
            raise NotNow(error) from error
        except Exception as surprise:  # noqa: BLE001 - a message's surprise must not end the others
            _log.exception("%s/%s: unexpected error", message.conversation, message.id)
            return self._failed(made, reason_of(surprise), surprise)

    def refuse(
        self, message: ChatMessage, trace: Mapping[str, float], reason: Reason, error: Exception | None = None
    ) -> LoggedAnswer:
        """The error event for a message that is not sent to the model."""
        return self._failed(_Made(message, dict(trace)), reason, error)

    async def _answer(self, made: _Made, earlier: Earlier) -> LoggedAnswer:
        context = self._defaults.context_tokens
        past, request, done = await self._call(made, earlier, context)
        if isinstance(done.error, ContextOverflow):
            used = self._estimates.most(request)
            context = int(_SHORTER * (context or used.input_tokens + self._max_tokens))
            past, request, done = await self._call(made, earlier, context)
        made.trace["answered"] = time.time()
        made.history = past.ids
        if done.error is not None:
            return self._failure(made, done.error)
        response = done.response
        if not isinstance(response, ChatResponse):
            raise TypeError(f"{self._model} answered a conversation with a {type(response).__name__}")
        self._estimates.learn(request, response)
        return self._answered(made, response, past, done.latency_s if done.attempts else 0.0)

    async def _call(self, made: _Made, earlier: Earlier, context: int | None) -> tuple[History, ChatRequest, Done]:
        message = made.message
        past = history(
            self._defaults.system,
            earlier,
            message,
            model=self._model,
            context_tokens=context,
            max_tokens=self._max_tokens,
            estimates=self._estimates,
        )
        # Message ids are unique within a conversation only, and its id within a store.
        request_id = "/".join((*self._store, message.conversation, message.id))
        async with self._listening(message) as listen:
            request = ChatRequest(self._model, past.messages, self._defaults.parameters, request_id, listen)
            asked = time.time()
            done = await self._engine.call(self._provider, request)
        self._note(made, done, asked)
        return past, request, done

    @asynccontextmanager
    async def _listening(self, message: ChatMessage) -> AsyncIterator[Callable[[StreamChunk], None] | None]:
        """Yields a listener for the chunks of a call, and sends the text as it arrives."""
        tell, pieces = self._deltas, _Pieces()
        if tell is None:
            yield None
            return

        def tell_new() -> None:
            new = pieces.new()
            if new is not None:
                attempt, number, text = new
                tell(delta(message, number, text, attempt))

        async def tell_repeatedly() -> None:
            while True:
                await asyncio.sleep(DELTAS_EVERY_S)
                tell_new()

        telling = asyncio.create_task(tell_repeatedly())
        try:
            yield pieces.hear
        finally:
            telling.cancel()
        tell_new()

    def _note(self, made: _Made, done: Done, asked: float) -> None:
        """Notes when calls really began: one may have waited a long time for its turn, or was never made."""
        made.attempts += done.attempts
        if done.attempts:
            began = done.ended_at - done.spent_s  # the engine's clock counts whole ms
            made.trace.setdefault("called", max(asked, began))
        elif done.response is not None:
            made.trace["recalled"] = done.ended_at
        stopped_between_tries = isinstance(done.error, StopRun) and not done.latency_s
        if made.attempts > 1 and not stopped_between_tries:
            made.trace["retried"] = max(asked, done.ended_at - done.latency_s)

    def _failure(self, made: _Made, error: ModelError) -> LoggedAnswer:
        ends_the_run = isinstance(error, StopRun | ModelUnusable) and self._stops
        if ends_the_run or isinstance(error, EngineClosed | RunAsleep):
            raise NotNow(error)
        if isinstance(error, StopRun) and self._stopping():
            raise NotNow(error)
        return self._failed(made, reason_of(error), error)

    def _answered(self, made: _Made, response: ChatResponse, past: History, latency_s: float) -> LoggedAnswer:
        if not (response.text and response.text.strip()):
            return self._failed(made, ONLY_TOOLS if response.tool_calls else EMPTY_ANSWER, None, response)
        cost = self._cost_usd(response)
        details = metadata(self._provider, response, made.attempts, latency_s, past.warnings, cost)
        event = received(made.message, response.text, response.model, time.time(), details)
        if self._replies is not None and not fits(event, self._replies.most_bytes):
            most = f"{self._replies.most_bytes:,} bytes"
            problem = f"{self._model}: the answer is over the {most} that an event may have: lower --max-tokens"
            return self._failed(made, EMPTY_ANSWER, BadReply(problem), response)
        return self._logged(made, event, usage=details["usage"])

    def _cost_usd(self, response: ChatResponse) -> float | None:
        """None also while the prices are being read: an answer does not wait for them."""
        prices = self._prices
        known = prices is not None and prices.ask(self._provider).done()
        return prices.cost(self._provider, self._model, response) if prices and known else None

    def _failed(
        self, made: _Made, reason: Reason, error: Exception | None = None, response: ChatResponse | None = None
    ) -> LoggedAnswer:
        now = time.time()
        made.trace.setdefault("answered", now)
        event = failed(made.message, reason, now, error, made.attempts)
        usage = None
        if response is not None:
            usage = metadata(self._provider, response, made.attempts, 0.0)["usage"]
        return self._logged(made, event, failed=True, error=str(error or reason.sentence), usage=usage)

    def _logged(
        self,
        made: _Made,
        event: dict[str, Any],
        *,
        usage: dict[str, Any] | None,
        failed: bool = False,
        error: str = "",
    ) -> LoggedAnswer:
        message = made.message
        return LoggedAnswer(
            conversation=message.conversation,
            message_id=message.id,
            events=(event, completed(message, time.time(), made.attempts, not failed)),
            history=made.history,
            trace=made.trace,
            failed=failed,
            error=error,
            usage=usage,
            attempts=made.attempts,
        )


@dataclass(slots=True)
class _Made:
    """An answer that is being made."""

    message: ChatMessage
    trace: dict[str, float]
    attempts: int = 0
    history: tuple[str, ...] = ()


class _Pieces:
    """Text that arrived since it was last fetched; written on one thread and read on another."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._attempt = self._number = 0
        self._texts: list[str] = []

    def hear(self, chunk: StreamChunk) -> None:
        """Takes a chunk; a ``start`` discards the text so far."""
        with self._lock:
            if chunk.kind == "start":
                self._attempt += 1
                self._number = 0
                self._texts.clear()
            elif chunk.kind == "content":
                self._texts.append(chunk.text)

    def new(self) -> tuple[int, int, str] | None:
        """Attempt, number and text; None if nothing has arrived."""
        with self._lock:
            if not self._texts:
                return None
            found = self._attempt, self._number, "".join(self._texts)
            self._texts.clear()
            self._number += 1
            return found
