"""The conversations of a process, side by side: each has a task on one event loop while it has messages."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Container, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import uvloop

from llmdo.storage.chat.log import ChatLog
from llmdo.transforms.chat.answers import Answers
from llmdo.transforms.chat.conversation import ChatContext, ConversationWorker, Done
from llmdo.transforms.chat.elements import Answered, Incoming, Settings
from llmdo.transforms.chat.replies import Replies

THREADS = 64  # for calls to the log and the queue, which block
GOODBYE_S = 10.0  # how long close() waits for calls that are under way


class Conversations:
    """See the module. ``log`` is this object's alone: by it conversations are taken, and let go.

    A message that is submitted twice is answered once, and all are told. ``stop`` begins no further turn; calls under
    way end, and are logged and pushed once; all other messages are left to their marks in the log. ``answers`` and
    ``replies`` are used on the loop of this object only.
    """

    def __init__(self, log: ChatLog, answers: Answers, replies: Replies | None, settings: Settings) -> None:
        self._workers: dict[str, ConversationWorker] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._replies = replies
        self._over = False
        self._gate = threading.Lock()  # guards _over: nothing is called on a loop that has ended
        self._runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        self._loop = self._runner.get_loop()
        self._loop.set_default_executor(ThreadPoolExecutor(THREADS, thread_name_prefix="llmdo-chat"))
        self._context = ChatContext(log, answers, replies, settings, asyncio.Event(), self._end, self._spawn)
        self._thread = threading.Thread(target=self._live, name="llmdo-conversations", daemon=True)
        self._thread.start()
        with _registering:
            _running.append(self)

    def submit(self, incoming: Incoming, done: Done) -> None:
        """Takes a message in; ``done`` is called on the loop's thread, and must be quick. From any thread."""
        if not self._call(lambda: self._take_in(incoming, done)):
            message = incoming.message
            done(Answered(message.conversation, message.id, "left"))

    def stop(self) -> None:
        """Begins no further turn; can be called again. From any thread."""
        self._call(self._stop)

    def close(self, timeout_s: float = GOODBYE_S) -> None:
        """Stops, and waits so long for what is under way; what is left then ends with its engine."""
        self.stop()
        self._thread.join(timeout_s)
        with _registering, suppress(ValueError):
            _running.remove(self)

    @property
    def open(self) -> int:
        """Conversations that have messages in work."""
        return sum(worker.open > 0 for worker in list(self._workers.values()))

    def __contains__(self, name: object) -> bool:
        """Whether the message with this ``mark_name`` was submitted, and is not done. From any thread."""
        return name in self._context.names

    def _call(self, work: Callable[[], None]) -> bool:
        with self._gate:
            if not self._over:
                self._loop.call_soon_threadsafe(work)
            return not self._over

    # The loop's thread.

    def _live(self) -> None:
        try:
            with self._runner:
                self._runner.run(self._main())
        finally:
            with self._gate:
                self._over = True

    async def _main(self) -> None:
        await self._context.stopped.wait()
        while self._tasks:
            await asyncio.wait(self._tasks)
        with self._gate:
            self._over = True
        await asyncio.sleep(0)  # what was submitted until then is taken in, and left

    def _take_in(self, incoming: Incoming, done: Done) -> None:
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
        del self._workers[worker.id]  # nothing is awaited since it has found itself empty

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


# A module global, as the engines are. What was not closed is here.
_running: list[Conversations] = []
_registering = threading.Lock()


class _InWork:
    def __contains__(self, name: object) -> bool:
        return any(name in conversations for conversations in list(_running))


def in_work() -> Container[str]:
    """The ``mark_name``s of the messages that this process was given, and has not done with."""
    return _InWork()


def open_conversations() -> int:
    """Conversations of this process that have messages in work."""
    return sum(conversations.open for conversations in list(_running))


def close_conversations() -> None:
    """Ends all conversations of this process: calls under way get some seconds, all else stays open in the log."""
    for conversations in list(_running):
        conversations.close()
