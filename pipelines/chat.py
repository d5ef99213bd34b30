"""Chat events in; every user message answered, in the log and by response events."""

from __future__ import annotations

from functools import partial

import apache_beam as beam
from apache_beam.pvalue import PCollection

from llmdo.pipelines.chat_options import ChatOptions
from llmdo.transforms.chat.converse import Converse, OpenReplies, queue_replies
from llmdo.transforms.chat.elements import Answered
from llmdo.transforms.chat.read_events import PollEvents, ReadEvents
from llmdo.transforms.livestore.connections import StoreSettings
from llmdo.transforms.livestore.poll_stores import PollStores
from llmdo.transforms.livestore.store_replies import store_replies
from llmdo.transforms.run import Run


def build(root: beam.Pipeline, options: ChatOptions, run_id: str) -> PCollection[Answered]:
    """Events in, responses out, by way of the log.

    ``options.queue`` and ``options.reply_queue`` are ids, not names. Emits what became of each message.
    """
    run = options.run(run_id)
    return (
        root
        | "Log events" >> log_events(options, run)
        | "One conversation does not wait for another" >> beam.Reshuffle()
        | "Answer in turn" >> answer_in_turn(options, run)
        # Prism 2.77 keeps a whole core busy while a stage waits whose output no other stage reads.
        | "Let go of answers" >> beam.Reshuffle()
        | "Tell what became of each" >> beam.Map(_same)
    )


def _same(answered: Answered) -> Answered:
    return answered


def log_events(options: ChatOptions, run: Run) -> ReadEvents | PollEvents | PollStores:
    """Reads the events of some files, or those of a queue or of stores until the run stops."""
    if options.livestore is not None:
        return PollStores(_store_settings(options), run)
    if options.queue is None:
        return ReadEvents(options.events, run, options.since)
    return PollEvents(options.queue, run, options.since, options.poll_seconds)


def answer_in_turn(options: ChatOptions, run: Run) -> Converse:
    """Answers as the options say. Only a run that ends by itself may stop early: it can be started again."""
    return Converse(
        options.defaults,
        options.calls,
        run,
        replies=_replies(options),
        logs=options.logs,
        since=None if options.logs else options.since,  # of stores it is remembered: see StoreLinks
        deltas=options.deltas,
        stops=not options.continuous,
    )


def _replies(options: ChatOptions) -> OpenReplies | None:
    if options.livestore is not None:
        return partial(store_replies, _store_settings(options))
    return None if options.reply_queue is None else partial(queue_replies, options.reply_queue)


def _store_settings(options: ChatOptions) -> StoreSettings:
    return StoreSettings(options.livestore or "", options.logs, options.started, options.since)
