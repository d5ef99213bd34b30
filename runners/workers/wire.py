"""What the process of a run and its workers on this machine send each other, over a socket that only two hold.

Messages are pickled: whoever could write to the socket could run any program here, and nobody else can. It has neither
a path nor a port; a worker inherits its end by its number.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

from llmdo.backends.limits.shares import Demand, Share
from llmdo.backends.limits.throttle import ModelLimits
from llmdo.backends.money.grants import FromPurse, ToPurse
from llmdo.backends.responses import Price
from llmdo.pipelines.options import JsonlOptions
from llmdo.storage.runs.members import MemberReport
from llmdo.transforms.elements import Written
from llmdo.transforms.lines.stretches import Stretch


@dataclass(frozen=True, slots=True)
class Begin:
    """The first message to a worker: the run, what an equal part of its limits is, and the worker's share at first."""

    run_id: str
    options: JsonlOptions
    share: Share


@dataclass(frozen=True, slots=True)
class Alive:
    """The run lives. ``beat_at``: its last heartbeat, see ``Presence.beat_at``.

    ``answered``: whether lines of its files have answers, from whichever process or run.
    """

    beat_at: float
    answered: bool


@dataclass(frozen=True, slots=True)
class NoMore:
    """All stretches are done: the worker ends."""


@dataclass(frozen=True, slots=True)
class Leave:
    """The run stops early, for this reason: calls in flight may end, what is answered is written, the worker ends."""

    reason: str


@dataclass(frozen=True, slots=True)
class Begun:
    """The worker begins to read the stretch with this number: it has room for another one."""

    number: int


@dataclass(frozen=True, slots=True)
class WorkerReport:
    """What a worker has done so far, its calls at this moment, what holds them back, what it has to do, and what the
    models cost that it asked.
    """

    member: MemberReport
    calls: int
    batched: int
    limits: tuple[ModelLimits, ...]
    demand: Demand | None = None
    prices: Mapping[str, Price] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LogLine:
    """A line for the run's log."""

    logger: str
    level: int
    text: str


@dataclass(frozen=True, slots=True)
class WorkerEnded:
    """The last message of a worker. ``problem``: why its pipeline failed, beginning with the error's class; or ""."""

    problem: str = ""


ToWorker = Begin | Stretch | Alive | Share | FromPurse | NoMore | Leave
FromWorker = Begun | Written | WorkerReport | ToPurse | LogLine | WorkerEnded


class Channel:
    """One end. Messages are sent from any thread, in their order, and received in one.

    Args:
        descriptor: of the socket, which this end owns.
    """

    def __init__(self, descriptor: int) -> None:
        self._connection = Connection(descriptor)
        self._outbox: queue.SimpleQueue[object] = queue.SimpleQueue()
        self._sender = threading.Thread(target=self._send_on, name="llmdo-send", daemon=True)
        self._sender.start()

    def send(self, message: object) -> None:
        """Sends it as soon as the other side takes it; does not wait. It is lost if the other side is gone."""
        self._outbox.put(message)

    def send_and_wait(self, message: object) -> None:
        """Sends it and returns once it is on its way: it arrives even if this process dies the next moment."""
        sent = threading.Event()
        self._outbox.put(message)
        self._outbox.put(sent)
        while not sent.wait(1.0) and self._sender.is_alive():
            continue

    def receive(self) -> Any:
        """Waits for a message. Raises EOFError where there will be none: the other side is gone, or sent rubbish."""
        try:
            return self._connection.recv()
        except EOFError:
            raise
        except Exception as error:
            raise EOFError(f"what came is not a message: {error}") from error

    def flush(self) -> None:
        """Waits until everything is sent, and sends no more."""
        self._outbox.put(None)
        self._sender.join()

    def close(self) -> None:
        """Gives up the socket, once the other side is gone."""
        self.flush()
        self._connection.close()

    def _send_on(self) -> None:
        gone = False
        while (message := self._outbox.get()) is not None:
            if isinstance(message, threading.Event):
                message.set()
            elif not gone:
                try:
                    self._connection.send(message)
                except OSError:
                    gone = True
