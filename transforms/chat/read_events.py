"""Reads the events of chats and emits the messages to answer; each event is logged before its message is emitted."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import apache_beam as beam
from apache_beam.pvalue import PCollection

from llmdo.settings.environment import cloudflare_account
from llmdo.storage.chat.log import ChatLog, open_log
from llmdo.storage.chat.records import ChatMessage
from llmdo.storage.errors import StorageError
from llmdo.storage.objects.opening import open_store
from llmdo.storage.queues.client import Pacer, QueueClient, QueueMessage
from llmdo.transforms.acks import VISIBILITY_TIMEOUT, acks_of
from llmdo.transforms.chat.conversations import InWork
from llmdo.transforms.chat.elements import WaitingMessage
from llmdo.transforms.chat.intake import EventIntake
from llmdo.transforms.elements import Blank, FileVersion, Line, TooLong
from llmdo.transforms.files.listing import list_inputs
from llmdo.transforms.files.poll_files import LookAgain, Sweep
from llmdo.transforms.files.source import Listing
from llmdo.transforms.lines.cutting import DECOMPRESSORS, cut
from llmdo.transforms.outages import Outage
from llmdo.transforms.run import Run
from llmdo.transforms.unreadable import CorruptData

_PORTION = 500  # events of a file that are logged concurrently; a response finds the messages of its own portion
_MAX_EVENT_BYTES = 1 << 20
_NO_END = 1 << 62


@dataclass(eq=False)  # not frozen: Beam writes hints and labels into its transforms
class ReadEvents(beam.PTransform):
    """Logs all events of some files, one a line, then emits each user's message that needs an answer.

    ``files``: as for a Listing. ``since``: messages sent earlier are logged, but not answered; Unix time in seconds.
    Messages that earlier runs left unanswered in the log are emitted too.
    """

    files: tuple[str, ...]
    run: Run
    since: float | None = None

    def expand(self, root: beam.Pipeline) -> PCollection[WaitingMessage]:
        """Nothing → WaitingMessage."""
        return (
            root
            | "Start" >> beam.Impulse()
            | "Log, then look" >> beam.ParDo(_Read(self.files, self.run, self.since)).with_output_types(WaitingMessage)
        )


@dataclass(eq=False)  # not frozen, as above
class PollEvents(beam.PTransform):
    """Logs the events of a queue, and emits the messages of users, until the run stops.

    An event is acked once it is logged, whether it is a message or not; what is not an event goes to the log's dead
    letters. At the start and every few minutes, messages that other runs left open are emitted too.
    """

    queue_id: str
    run: Run
    since: float | None = None
    poll_seconds: float = 0.25

    def expand(self, root: beam.Pipeline) -> PCollection[WaitingMessage]:
        """Nothing → WaitingMessage, without end."""
        begin = partial(_QueuedEvents, self.queue_id, self.run, self.since, self.poll_seconds)
        return (
            root
            | "Start" >> beam.Impulse()
            | "Ask again and again" >> beam.ParDo(LookAgain(self.run, begin)).with_output_types(WaitingMessage)
        )


class _Read(beam.DoFn):
    def __init__(self, files: tuple[str, ...], run: Run, since: float | None) -> None:
        self._files = files
        self._run = run
        self._since = since

    def process(self, _: bytes) -> Iterator[WaitingMessage]:
        log = open_log(self._run.output)
        intake = EventIntake(log, self._run, self._since)
        for file in list_inputs(Listing(self._files, "jsonl"), None):
            events = read_lines(file.file, log, self._run)
            while not self._run.state.stopping and (some := list(islice(events, _PORTION))):
                for taken in intake.take(some):
                    if taken.error is not None:
                        raise taken.error
        if not self._run.state.stopping:
            yield from accepted(log.open_messages())


def accepted(messages: Iterator[ChatMessage]) -> Iterator[WaitingMessage]:
    """Messages that are marked as open in the log."""
    return (WaitingMessage(message, accepted=True) for message in messages)


def read_lines(file: FileVersion, log: ChatLog, run: Run) -> Iterator[bytes]:
    """The lines of a file of events; too long ones become dead letters. Raises StorageError, also for a torn file."""
    chunks = open_store(file.store_url).stream(file.key, file.etag)
    if file.compression:
        chunks = DECOMPRESSORS[file.compression](chunks)
    try:
        for tiles in cut(file, chunks, 0, _NO_END, _MAX_EVENT_BYTES):
            for tile in tiles:
                match tile:
                    case Line():
                        yield tile.data
                    case TooLong():
                        run.state.add(messages_undecodable=1)
                        place = {"file": f"{file.store_url}/{file.key}", "offset": tile.start}
                        log.bury(place, f"an event has at most {_MAX_EVENT_BYTES:,} bytes")
                    case Blank():
                        pass
    except CorruptData as error:
        raise StorageError(f"{file.store_url}/{file.key} {error}: replace it") from None


class _QueuedEvents:
    """A Looking for the messages of a queue, and for those that were left open."""

    def __init__(self, queue_id: str, run: Run, since: float | None, poll_seconds: float) -> None:
        self._run = run
        self._log = open_log(run.output)
        self._intake = EventIntake(self._log, run, since)
        self._client = QueueClient(cloudflare_account(), queue_id)
        self._pacer = Pacer(poll_seconds)
        self._sweep = Sweep(run, lambda: accepted(self._log.open_messages(known=InWork(run.state))))
        self._acks = acks_of(run.state, queue_id)
        self._queue_outage, self._log_outage = Outage(run.state, f"queue {queue_id}"), Outage(run.state, "the log")
        self._held: list[QueueMessage] = []  # those that could not be logged so far

    def look(self) -> tuple[Sequence[WaitingMessage], float]:
        began = time.monotonic()
        swept, more = self._sweep.portion()
        messages, wait = (self._held, 0.0) if self._held else self._pull()
        taken = self._intake.take(_body(message) for message in messages)
        self._acks.add(m.lease_id for m, one in zip(messages, taken, strict=True) if one.error is None)
        # No more are pulled meanwhile: messages that are given back use up the queue's number of deliveries.
        self._held = [m for m, one in zip(messages, taken, strict=True) if one.error is not None]
        errors = [one.error for one in taken if one.error is not None]
        if errors:
            wait = self._log_outage.wait_after(errors[0])
        else:
            self._log_outage.over()
        wait = 0.0 if more else max(0.0, wait - (time.monotonic() - began))  # between starts of pulls
        return [*swept, *(one.incoming for one in taken if one.incoming is not None)], wait

    def close(self) -> None:
        self._acks.flush()
        self._client.close()

    def _pull(self) -> tuple[list[QueueMessage], float]:
        try:
            pulled = self._client.pull(visibility_timeout_s=VISIBILITY_TIMEOUT)
        except StorageError as error:
            return [], self._queue_outage.wait_after(error)
        self._queue_outage.over()
        self._run.state.backlog = pulled.backlog
        return list(pulled.messages), self._pacer.wait(len(pulled.messages))


def _body(message: QueueMessage) -> Any:
    return message.body if message.decodable else message.raw
