"""Pushes responses into a store's event log: at most one for each message, whoever answers it."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

from llmdo.storage.chat.records import RESPONSE, ChatMessage, cleaned
from llmdo.storage.errors import StorageError
from llmdo.storage.livestore.frames import MOST_EVENT_BYTES, NewEvent
from llmdo.storage.livestore.pushes import Make, UnfitEvent
from llmdo.transforms.chat.events import started
from llmdo.transforms.chat.replies import AnsweredElsewhere, ResponseEventFields
from llmdo.transforms.livestore.claims import CLAIM_S, RENEW_S, TAKES_OVER, MessageClaim
from llmdo.transforms.livestore.connections import StoreLinks, StoreSettings, links_of, run_of_client
from llmdo.transforms.run import Run

# How often it is checked whether another instance has answered, and how long a push may take once the run stops. s.
_LOOK_S, _LAST_PUSH_S = 0.25, 5.0
# Between two tries of what the backend refuses, doubling; and between two warnings of the same refusal. Seconds.
_FIRST_WAIT_S, _LONGEST_WAIT_S, _WARN_AGAIN_S = 0.5, 60.0, 300.0
# What names other rows of the app's tables must stay as it is.
_IDS = frozenset(("id", "conversationId", "userMessageId", "responseToMessageId", TAKES_OVER))

_log = logging.getLogger(__name__)


def store_replies(settings: StoreSettings, run: Run, store: str) -> StoreReplies:
    """An OpenReplies for stores."""
    return StoreReplies(links_of(settings, run), store, run.state.is_alive, announced=settings.started)


class StoreReplies:
    """A ReplySink for one store; used on one event loop.

    Args:
        is_alive: whether a run with the same log of chats is alive; may raise StorageError.
        announced: whether messages are claimed with ``v1.LLMResponseStarted``, which also shows that they are in work.
    """

    most_bytes = MOST_EVENT_BYTES

    def __init__(
        self, links: StoreLinks, store: str, is_alive: Callable[[str], bool], *, announced: bool = True
    ) -> None:
        self._links, self._store = links, store
        self._claims, self._client = links.claims[store], links.clients[store]
        self._is_alive, self._announced = is_alive, announced
        self._stopped = asyncio.Event()
        self._stop: asyncio.Task[Any] | None = None
        self._warned, self._warned_at = "", 0.0

    @asynccontextmanager
    async def answering(self, message: ChatMessage) -> AsyncIterator[None]:
        """Has the message as long as the context lasts; waits for whoever has it now."""
        if not self._announced:
            await self._persistently(lambda: ())  # until the log is read to its end
            if self._claims.answered(message.conversation, message.id):
                raise AnsweredElsewhere
            yield
            return
        await self._claim(message)
        renewing = asyncio.create_task(self._renew(message))
        try:
            yield
        finally:
            renewing.cancel()

    async def push(self, events: Sequence[ResponseEventFields]) -> bool:
        """Pushes an answer, unless the log has one for its message; returns whether it has one now.

        If another instance took the message over in the meantime, that one's answer is waited for.
        """
        answer: Mapping[str, Any] = next((event["args"] for event in events if event["name"] == RESPONSE), {})
        message_id, response_id = answer.get("responseToMessageId") or "", answer.get("id") or ""
        conversation = answer.get("conversationId") or ""
        dead: MessageClaim | None = None

        def known() -> bool:
            return self._claims.answered(conversation, message_id) or self._claims.has_response(response_id)

        def wanted() -> Sequence[NewEvent]:
            holder = self._claims.holder(message_id) if self._announced else None
            if known() or (holder is not None and holder.client != self._client and holder != dead):
                return ()
            return [_new(event) for event in events]

        try:
            while not known():
                if self._announced:
                    dead = await self._until_free(conversation, message_id)
                if await self._persistently(wanted):
                    return True
        except AnsweredElsewhere:
            pass
        except UnfitEvent as error:
            _log.warning("the answer to %s cannot be pushed: %s", message_id, error)
        return known()

    def stop(self) -> None:
        """Gives pushes that wait for a backend which is away a few more seconds."""
        self._stopped.set()

    async def _claim(self, message: ChatMessage) -> None:
        """Returns once this run has the message. Raises AnsweredElsewhere, also when the run stops before."""
        dead: MessageClaim | None = None

        def wanted() -> Sequence[NewEvent]:
            holder = self._claims.holder(message.id)
            if self._claims.answered(message.conversation, message.id) or holder != dead:
                return ()
            return [_claim_event(message, dead)]

        while not self._stopped.is_set():
            dead = await self._until_free(message.conversation, message.id)
            if dead is not None and dead.client == self._client:
                return
            await self._persistently(wanted)
        raise AnsweredElsewhere

    async def _until_free(self, conversation: str, message_id: str) -> MessageClaim | None:
        """Waits while another instance has a message. Returns the claim that there is, ours or a dead one, or None.

        Raises AnsweredElsewhere if it has an answer, or if the run stops while another one has it.
        """
        while not self._claims.answered(conversation, message_id):
            holder = self._claims.holder(message_id)
            if holder is None or holder.client == self._client or await self._is_dead(holder):
                return holder
            await self._pause(_LOOK_S)
            if self._stopped.is_set():
                break
        raise AnsweredElsewhere

    async def _is_dead(self, claim: MessageClaim) -> bool:
        """Whether whoever has a message will not answer it any more."""
        if self._claims.age(claim.at) > CLAIM_S:
            return True
        run = run_of_client(claim.client, self._links.log_ids[self._store])
        if not run:
            return False
        try:
            return not await asyncio.to_thread(self._is_alive, run)
        except StorageError as error:
            _log.debug("%s", error)
            return False

    async def _renew(self, message: ChatMessage) -> None:
        def wanted() -> Sequence[NewEvent]:
            holder = self._claims.holder(message.id)
            return [_claim_event(message, None)] if holder is not None and holder.client == self._client else ()

        while True:
            await asyncio.sleep(RENEW_S)
            with suppress(StorageError, AnsweredElsewhere):
                await self._pushed(wanted)

    async def _persistently(self, make: Make) -> bool:
        """As ``_pushed``, again and again while the backend refuses the events. Raises UnfitEvent."""
        wait = _FIRST_WAIT_S
        while True:
            try:
                return await self._pushed(make)
            except UnfitEvent:
                raise
            except StorageError as error:
                self._warn(error)
            await self._pause(wait)
            if self._stopped.is_set():
                raise AnsweredElsewhere
            wait = min(2 * wait, _LONGEST_WAIT_S)

    async def _pushed(self, make: Make) -> bool:
        """As ``LiveStores.push``. Raises StorageError, and AnsweredElsewhere if the run stops before it is done."""
        push = asyncio.wrap_future(self._links.stores.push(self._store, make))
        if self._stop is None:  # one for all pushes: a task for each would cost as much as the push
            self._stop = asyncio.create_task(self._stopped.wait())
        try:
            both: set[asyncio.Future[Any]] = {push, self._stop}
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if not push.done():
                await asyncio.wait({push}, timeout=_LAST_PUSH_S)
            if not push.done() or push.cancelled():
                raise AnsweredElsewhere
            return push.result()
        finally:
            push.cancel()

    def _warn(self, error: StorageError) -> None:
        now, text = time.monotonic(), str(error)
        if text != self._warned or now - self._warned_at > _WARN_AGAIN_S:
            self._warned, self._warned_at = text, now
            _log.warning("%s; trying again until it is accepted", text)

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stopped.wait(), seconds)


def _claim_event(message: ChatMessage, dead: MessageClaim | None) -> NewEvent:
    event = started(message, time.time())
    if dead is not None:
        event["args"][TAKES_OVER] = dead.client
    return _new(event)


def _new(event: ResponseEventFields) -> NewEvent:
    """An event as every client's schema accepts it: without null, and its texts without what cuts or breaks them."""
    args = {
        name: value if name in _IDS else _plain(value) for name, value in event["args"].items() if value is not None
    }
    return NewEvent(event["name"], args)


def _plain(value: Any) -> Any:
    """SQLite ends a text at NUL, UTF-8 cannot hold half of a surrogate pair, and JSON no NaN."""
    if isinstance(value, str):
        return cleaned(value).replace("\x00", "\N{REPLACEMENT CHARACTER}")
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {_plain(name): _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value
