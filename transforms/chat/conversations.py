"""Runs the conversations of a process concurrently: each has a task on one event loop while it has messages."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import uvloop

from llmdo.storage.chat.log import ChatLog
from llmdo.transforms.chat.answers import Answers
from llmdo.transforms.chat.conversation import ChatContext, ConversationWorker, OnAnswered
from llmdo.transforms.chat.elements import Answered, ConversationSettings, WaitingMessage
from llmdo.transforms.chat.lasting_engine import LastingEngine
from llmdo.transforms.chat.replies import ReplySink
from llmdo.transforms.run_state import RunState

BLOCKING_THREADS = 64  # for calls to the log and the queue
CLOSE_S = 10.0  # how long close() waits for calls in flight


class ChatLoop:
    """An event loop on a thread of its own, and threads for calls that block. The stores of a run share one: each would
    need as many threads by itself. It ends after ``close``, once all that was begun on it has ended.
    """

    def __init__(self) -> None:
        self._runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        self.loop = self._runner.get_loop()
        self.loop.set_default_executor(ThreadPoolExecutor(BLOCKING_THREADS, thread_name_prefix="llmdo-chat"))
        self._lives: set[asyncio.Task[None]] = set()
        self._closing = asyncio.Event()
        self._thread = threading.Thread(target=self._live, name="llmdo-conversations", daemon=True)
        self._thread.start()

    def begin(self, life: Coroutine[Any, Any, None]) -> None:
        """Runs a coroutine, before whose end the loop does not end. From any thread."""
        self.loop.call_soon_threadsafe(lambda: self._lives.add(self.loop.create_task(life)))

    def close(self, timeout_s: float = CLOSE_S) -> None:
        """Lets it end, and waits up to ``timeout_s`` s."""
        with suppress(RuntimeError):  # it has ended
            self.loop.call_soon_threadsafe(self._closing.set)
        self._thread.join(timeout_s)

    def _live(self) -> None:
        with self._runner:
            self._runner.run(self._main())

    async def _main(self) -> None:
        await self._closing.wait()
        await asyncio.gather(*self._lives, return_exceptions=True)


class Conversations:
    """The conversations of one run in one store. A message that is submitted twice is answered once, and both callbacks
    are called.

    After ``stop`` no further turn starts; calls in flight end, and their answers are logged and pushed once; all other
    messages keep their marks in the log.

    Args:
        log: not shared with other objects, since conversations are claimed and released through it.
        answers: used only on the loop, as are ``replies``.
        replies: where answers are pushed to; None if they are only logged.
        settings: apply to all conversations.
        chats: the loop, which may have other stores' conversations too.
    """

    def __init__(
        self,
        log: ChatLog,
        answers: Answers,
        replies: ReplySink | None,
        settings: ConversationSettings,
        chats: ChatLoop,
    ) -> None:
        self._workers: dict[str, ConversationWorker] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._replies = replies
        self._over = False
        self._gate = threading.Lock()  # guards _over: nothing may be called on a closed loop
        self._ended = threading.Event()
        self._loop = chats.loop
        self._context = ChatContext(log, answers, replies, settings, asyncio.Event(), self._end, self._spawn)
        chats.begin(self._main())

    def submit(self, incoming: WaitingMessage, done: OnAnswered) -> None:
        """Takes a message; ``done`` is called on the loop's thread, and must be quick. From any thread."""
        if not self._call(lambda: self._take_in(incoming, done)):
            message = incoming.message
            done(Answered(message.conversation, message.id, "left"))

    def stop(self) -> None:
        """Lets no further turn start; may be called again. From any thread."""
        self._call(self._stop)

    def close(self, timeout_s: float = CLOSE_S) -> None:
        """Stops, and waits up to ``timeout_s`` for calls in flight; what is left then ends with its engine."""
        self.stop()
        self._ended.wait(timeout_s)

    @property
    def open(self) -> int:
        """Conversations that have messages in work."""
        return sum(worker.open > 0 for worker in list(self._workers.values()))

    @property
    def messages(self) -> int:
        """Messages in work."""
        return len(self._context.names)

    def __contains__(self, name: object) -> bool:
        """Whether the message with this ``mark_name`` was submitted and is not finished. From any thread."""
        return name in self._context.names

    def _call(self, work: Callable[[], None]) -> bool:
        with self._gate:
            if not self._over:
                self._loop.call_soon_threadsafe(work)
            return not self._over

    # The loop's thread.

    async def _main(self) -> None:
        await self._context.stopped.wait()
        while self._tasks:
            await asyncio.wait(self._tasks)
        with self._gate:
            self._over = True
        await asyncio.sleep(0)  # what was submitted before that is taken in, and left open
        self._ended.set()

    def _take_in(self, incoming: WaitingMessage, done: OnAnswered) -> None:
        conversation = incoming.message.conversation
        worker = self._workers.get(conversation)
        if worker is None:
            worker = ConversationWorker(conversation, self._context)
            worker.take_in(incoming, done)
            if worker.open:
                self._workers[worker.id] = worker
                self._spawn(self._run(worker))
        else:
            worker.take_in(incoming, done)

    async def _run(self, worker: ConversationWorker) -> None:
        await worker.run()
        del self._workers[worker.id]  # nothing was awaited since it found itself empty

    def _stop(self) -> None:
        self._context.stopped.set()
        if self._replies is not None:
            self._replies.stop()
        for worker in self._workers.values():
            worker.wake()

    def _end(self, error: BaseException) -> None:
        if not self._context.stopped.is_set():
            self._stop()
            self._context.settings.over(error)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class InWork:
    """The ``mark_name``s of a store's messages that this process took for a run and has not finished."""

    def __init__(self, state: RunState, store: str = "") -> None:
        self._state = state
        self._store = store

    def __contains__(self, name: object) -> bool:
        conversations = self._state.find(Conversations, self._store)
        return any(name in one for one in conversations)


def open_conversations(state: RunState) -> int:
    """A run's conversations in this process that have messages in work."""
    return sum(conversations.open for conversations in state.find(Conversations))


def messages_in_work(state: RunState) -> int:
    """A run's messages in this process that were submitted and are not finished, in all stores."""
    return sum(conversations.messages for conversations in state.find(Conversations))


def close_conversations(state: RunState) -> None:
    """Ends a run's conversations in this process: calls in flight get CLOSE_S; the rest stays open in the log."""
    end, found = time.monotonic() + CLOSE_S, list(state.take(Conversations).values())
    for conversations in found:
        conversations.stop()
    for conversations in found:
        conversations.close(max(0.0, end - time.monotonic()))
    for chats in state.take(ChatLoop).values():
        chats.close(max(0.0, end - time.monotonic()))
    state.take(LastingEngine)  # it was used on that loop
