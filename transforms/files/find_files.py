"""Finds the files to answer: messages of a queue, a listing, and what earlier runs left in work."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import apache_beam as beam
from apache_beam.pvalue import PCollection
from pydantic_core import to_json

from llmdo.settings.environment import cloudflare_account
from llmdo.storage.errors import AccessDenied, BucketNotFound, InvalidLocation, ObjectNotFound, StorageError
from llmdo.storage.objects.opening import open_store
from llmdo.storage.objects.store import R2_SCHEME
from llmdo.storage.output.jobs import record_name
from llmdo.storage.queues.client import Pacer, QueueClient, QueueMessage
from llmdo.storage.queues.notifications import ObjectCreated, is_input, parse_notification
from llmdo.transforms.acks import VISIBILITY_TIMEOUT, acks_of
from llmdo.transforms.elements import FileVersion, Notice
from llmdo.transforms.files.listing import list_inputs, root_of
from llmdo.transforms.files.source import Listing, Notifications, Source
from llmdo.transforms.formats import SUFFIXES, is_wanted_name
from llmdo.transforms.members import join
from llmdo.transforms.outages import QUEUE_PATIENCE_S, STORE_PATIENCE_S, Outage, pause, persistently
from llmdo.transforms.run import Run

_log = logging.getLogger(__name__)

# A queue that returns nothing this many times in a row is taken for empty.
_EMPTY_PULLS = 2


@dataclass(eq=False)  # not frozen: Beam writes hints and labels into its transforms
class FindFiles(beam.PTransform):
    """Emits a Notice for each file to answer, beginning with those that an earlier run left unfinished.

    Reads a queue until it is empty, or lists once. Messages that are not about a created object, or about one that is
    not wanted, are counted and acked; those that cannot be decoded go to ``OUTPUT/_dead/`` first.

    Args:
        source: the queue, or what is listed.
        run: what its run shares, which the steps given by ``llmdo.run_graph`` have already.
        retried: the runner begins by itself again what failed, and that is an attempt of its own.
        together: emits the files of messages that were pulled together as a tuple, so that all of them are opened, and
            their messages acked, before slow calls can hold the pipeline up; leases end after five minutes.
    """

    source: Source
    run: Run
    retried: bool = False
    together: bool = False

    def expand(self, root: beam.Pipeline) -> PCollection[Notice | tuple[Notice, ...]]:
        """Nothing → Notice, or several."""
        return root | "Start" >> beam.Impulse() | "Look" >> beam.ParDo(_Look(self))


class _Look(beam.DoFn):
    def __init__(self, step: FindFiles) -> None:
        self.source = step.source
        self.run = step.run
        self.retried = step.retried
        self.together = step.together

    def setup(self) -> None:
        join(self.run)

    def process(self, _: bytes) -> Iterator[Notice | tuple[Notice, ...]]:
        attempt = self.run.state.next_attempt() if self.retried else ""
        for notices in self._look():
            found = tuple(replace(notice, attempt=attempt) for notice in notices)
            if self.together and len(found) > 1:
                yield found
            else:
                yield from found

    def _look(self) -> Iterator[Sequence[Notice]]:
        state = self.run.state
        for notice in persistently(state, lambda: left_in_work(self.run, self.source), _name):
            yield [notice]
        if isinstance(self.source, Listing):
            listing = self.source
            for notice in persistently(state, lambda: list_inputs(listing, self.run.output), _name):
                if state.stopping:
                    return
                yield [notice]
        else:
            yield from pull_notifications(self.source, self.run)
            if self.run.remote:  # nobody waits for the acks once this process has done its work
                acks_of(state, self.source.queue_id).flush()


def _name(notice: Notice) -> str:
    return notice.file.id


def left_in_work(run: Run, source: Source) -> Iterator[Notice]:
    """The files that the output's job records name: some run started them, and none has finished them.

    Not those that this process works on, nor those in the dead letters. Where the output is a bucket, others than this
    machine's user may have written a record: one that names a file of a machine's disk counts only for a run whose own
    inputs are there.
    """
    places = source.inputs if isinstance(source, Listing) else ()
    disks = {str(root_of(place)) for place in places if not place.startswith(R2_SCHEME)}
    known = {record_name(file.store_url, file.key, file.etag) for file in run.state.in_work()}
    for record in run.jobs.sweep(known):
        if isinstance(record, ValueError):
            run.state.report_undone("job record", str(record))
            _log.warning("%s", record)
        elif not record.dead:
            file = FileVersion(record.store_url, record.key, record.etag, record.size, format=record.format)
            if not run.output.bucket or file.bucket or file.store_url in disks:
                yield Notice(file, None, record.notification)
            else:
                run.state.report_undone(
                    file.id, f"it is not among this run's files: name {file.store_url} as an input to resume it"
                )


def pull_notifications(source: Notifications, run: Run) -> Iterator[Sequence[Notice]]:
    """What is pulled together, until the queue is empty; where it or R2 fails for too long, the rest is for a next run.

    Raises StorageError where the queue or the bucket cannot be used.
    """
    puller, empty = Puller(source, run), 0
    while empty < _EMPTY_PULLS and not run.state.stopping:
        notices, messages, wait = puller.pull()
        if notices:
            yield notices
        empty = empty + 1 if messages == 0 else 0
        if puller.out_of_patience:
            run.state.report_undone(f"queue {source.queue_id}", f"what it still holds: {puller.problem}")
            break
        if empty < _EMPTY_PULLS:
            pause(run.state, wait)
    puller.close()


class Puller:
    """Pulls messages from the queue, one call after another, and returns how long to wait before the next one.

    Messages for which R2 must be asked are kept while it fails, and nothing more is pulled: given back, they would use
    up the deliveries that a queue makes. ``problem`` is the last fault of the queue or of R2.
    """

    def __init__(self, source: Notifications, run: Run) -> None:
        self._source = source
        self._run = run
        self._client = QueueClient(cloudflare_account(), source.queue_id)
        self._acks = acks_of(run.state, source.queue_id)
        self._pacer = Pacer(source.poll_seconds)
        self._queue_outage = Outage(run.state, f"queue {source.queue_id}")
        self._store_outage = Outage(run.state, "R2")
        self._held: list[QueueMessage] = []
        self.problem: StorageError | None = None

    @property
    def out_of_patience(self) -> bool:
        """Whether the queue or R2 has failed for longer than a run with an end waits."""
        return self._queue_outage.lasted_s > QUEUE_PATIENCE_S or self._store_outage.lasted_s > STORE_PATIENCE_S

    def pull(self) -> tuple[list[Notice], int | None, float]:
        """The files that one batch of messages announces, the messages' number (None: no answer), and the wait in
        seconds. Raises StorageError where the queue or the bucket cannot be used.
        """
        messages = self._held
        if not messages:
            try:
                pulled = self._client.pull(visibility_timeout_s=VISIBILITY_TIMEOUT)
            except StorageError as error:
                self.problem = error
                return [], None, self._queue_outage.wait_after(error)
            self._queue_outage.over()
            self._run.state.backlog = pulled.backlog
            messages = sorted(pulled.messages, key=needs_store)  # so that a failure of R2 delays no other message
        notices, wait = self._understand(messages)
        return notices, len(messages), self._pacer.wait(len(messages)) if wait is None else wait

    def _understand(self, messages: list[QueueMessage]) -> tuple[list[Notice], float | None]:
        """What some messages announce; the others are held for the returned wait."""
        notices, passed_over = [], []
        wait, self._held = None, []
        for at, message in enumerate(messages):
            try:
                notice = understand(message, self._source, self._run)
            except StorageError as error:
                self.problem = error
                wait, self._held = self._store_outage.wait_after(error), messages[at:]
                break
            if notice is None:
                passed_over.append(message.lease_id)
            else:
                notices.append(notice)
        else:
            self._store_outage.over()
        self._acks.add(passed_over)
        return notices, wait

    def close(self) -> None:
        """Closes the connection."""
        self._client.close()


def understand(message: QueueMessage, source: Notifications, run: Run) -> Notice | None:
    """The file that a message announces; None if it announces none that is wanted, or has become a dead letter.

    Raises StorageError.
    """
    if not message.decodable:
        _bury(message, run, "the body cannot be decoded")
        run.state.add(messages_undecodable=1)
        return None
    event = parse_notification(message.body)
    if event is None or not _is_wanted(event, source, run):
        run.state.add(messages_passed_over=1)
        return None
    try:
        file = replace(version_of(event), format=source.format)
    except ObjectNotFound:  # deleted since, and its event names no version that could be read
        run.state.add(messages_passed_over=1)
        return None
    except (AccessDenied, BucketNotFound, InvalidLocation) as error:
        _bury(message, run, str(error))  # raises the same error where this run's own keys are wrong
        run.state.add(messages_undecodable=1)
        return None
    return Notice(file, message.lease_id, dict(event.body))


def _is_wanted(event: ObjectCreated, source: Notifications, run: Run) -> bool:
    folder = source.prefix.rpartition("/")[0]
    named = is_wanted_name(event.key.removeprefix(folder), source.format)
    return named and is_input(event, source.prefix, SUFFIXES, run.output)


def needs_store(message: QueueMessage) -> bool:
    """Whether handling it needs R2: to look the object up, or to write a dead letter."""
    if not message.decodable:
        return True
    event = parse_notification(message.body)
    return event is not None and (event.etag is None or event.size is None)


def version_of(event: ObjectCreated) -> FileVersion:
    """The version that an event announces, or the current one if it names none. Raises ObjectNotFound."""
    store_url = R2_SCHEME + event.bucket
    if event.etag is not None and event.size is not None:
        return FileVersion(store_url, event.key, event.etag, event.size)
    info = open_store(store_url).stat(event.key)
    return FileVersion(store_url, event.key, info.etag, info.size)


def _bury(message: QueueMessage, run: Run, reason: str) -> None:
    letter: dict[str, Any] = {
        "reason": reason,
        "message": {"id": message.id, "attempts": message.attempts, "content_type": message.content_type},
        "body": message.raw,
    }
    body = to_json(letter)
    name = hashlib.sha256(body).hexdigest()
    run.store.put(f"{run.output.key}_dead/{name}.json", body)
