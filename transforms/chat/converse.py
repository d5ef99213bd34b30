"""Answers messages: Beam's bundles hand them to the conversations of the process, and fetch the results."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any

import apache_beam as beam
from apache_beam.pvalue import PCollection
from apache_beam.utils.windowed_value import WindowedValue

from llmdo.backends.engine.registry import get_engine
from llmdo.backends.engine.settings import CallSettings, never
from llmdo.backends.providers import split_model
from llmdo.settings.environment import cloudflare_account
from llmdo.storage.chat.log import open_log
from llmdo.storage.chat.records import LoggedAnswer
from llmdo.storage.objects.store import Location
from llmdo.storage.queues.client import QueueClient
from llmdo.transforms.answers.leases import keep_lease
from llmdo.transforms.chat.answers import Answers
from llmdo.transforms.chat.conversations import ChatLoop, Conversations
from llmdo.transforms.chat.elements import Answered, ChatDefaults, ConversationSettings, WaitingMessage
from llmdo.transforms.chat.lasting_engine import LastingEngine
from llmdo.transforms.chat.replies import Replies, ReplySink
from llmdo.transforms.run import Run
from llmdo.transforms.run_state import RunState

MOST_OPEN = 10_000  # messages of all conversations; with more, a bundle waits
OpenReplies = Callable[[Run, str], ReplySink]
_LOOK_AGAIN = 0.05  # how often a waiting bundle checks for a newer one, and for the end of the run. Seconds.


@dataclass(eq=False)  # not frozen: Beam writes hints and labels into its transforms
class Converse(beam.PTransform):
    """Answers each message once, in the order of its conversation's log; different conversations run concurrently.

    The messages are in the log, and marked there as open. The answer is logged, then pushed to ``replies``, then the
    mark is removed: whatever ends the run in between, a later run continues from there. A message that cannot be
    answered gets an error event. Only a run that is stopped leaves messages open.

    Only the newest bundle waits for answers, and it waits for those of all bundles: Prism runs few bundles at a time,
    and a slow model must not hold up new messages.

    Args:
        defaults: model, system prompt and parameters.
        calls: how calls are made; as in Infer.
        run: its output is the log.
        replies: opens what answers are pushed to, for a run and a store; None pushes nothing. It is pickled.
        logs: where the logs of stores are, by id; without any, all messages are in the run's output.
        since: messages created earlier are not answered; Unix time in seconds.
        deltas: also pushes the text while it is generated, to a queue.
        stops: see Answers; without it, calls are resumed some time after such an error (see LastingEngine).
    """

    defaults: ChatDefaults
    calls: CallSettings
    run: Run
    replies: OpenReplies | None = None
    logs: Mapping[str, Location] = field(default_factory=dict)
    since: float | None = None
    deltas: bool = False
    stops: bool = False

    def expand(self, messages: PCollection[WaitingMessage]) -> PCollection[Answered]:
        """WaitingMessage → Answered."""
        return messages | "Answer messages" >> beam.ParDo(_Converse(self)).with_output_types(Answered)


class ConversationDesk:
    """Takes messages from all bundles of a run in a process, and hands out their results. Thread-safe.

    ``conversations_in``: the conversations of a store.
    """

    def __init__(self, conversations_in: Callable[[str], Conversations], state: RunState) -> None:
        self._conversations_in = conversations_in
        self._state = state
        self._finished: SimpleQueue[WindowedValue] = SimpleQueue()
        self._lock = threading.Lock()
        self._open = self._newest = 0

    def hand_in(self, incoming: WaitingMessage, context: WindowedValue) -> None:
        """Takes a message; ``context`` holds its window and timestamp, which its result gets too."""
        conversations = self._conversations_in(incoming.store)
        with self._lock:
            self._open += 1
        conversations.submit(incoming, lambda answered: self._finished.put(context.with_value(answered)))

    def fetch(self) -> Iterator[WindowedValue]:
        """Yields the results so far, of any bundle; waits only while too many messages are open."""
        yield from self._some(wait=False)
        while self._open >= MOST_OPEN:
            yield from self._some(wait=True)

    def fetch_all(self) -> Iterator[WindowedValue]:
        """Yields the results of all open messages, of any bundle, until a newer bundle does so."""
        with self._lock:
            self._newest += 1
            ours = self._newest
        while self._open and ours == self._newest:
            yield from self._some(wait=True)

    def _some(self, *, wait: bool) -> Iterator[WindowedValue]:
        if self._state.stopping:
            for conversations in self._state.find(Conversations):
                conversations.stop()
        while True:
            try:
                result = self._finished.get(wait, _LOOK_AGAIN)
            except Empty:
                return
            wait = False
            with self._lock:
                self._open -= 1
            yield result


class _Converse(beam.DoFn):
    def __init__(self, step: Converse) -> None:
        self._step = replace(step)  # Beam does not pickle a transform that belongs to a pipeline

    def setup(self) -> None:
        self._desk = _desk(self._step)

    def process(
        self, incoming: WaitingMessage, timestamp: Any = beam.DoFn.TimestampParam, window: Any = beam.DoFn.WindowParam
    ) -> Iterator[Any]:
        self._desk.hand_in(incoming, WindowedValue(None, timestamp, (window,)))
        yield from self._desk.fetch()

    def finish_bundle(self) -> Iterator[WindowedValue]:
        yield from self._desk.fetch_all()


def _desk(step: Converse) -> ConversationDesk:
    """The run's desk in this process, which all threads and all DoFn instances share."""
    state = step.run.state

    def conversations_in(store: str) -> Conversations:
        return state.shared(Conversations, lambda: conversations_of(step, store), store)

    if not step.logs:
        conversations_in("")  # what is missing is to be said before the first message
    return state.shared(ConversationDesk, lambda: ConversationDesk(conversations_in, state))


def _lasts() -> bool:
    """In a service a refused message gets an error event, even if it is the first message of all."""
    return True


def queue_replies(queue_id: str, _: Run, __: str) -> ReplySink:
    """An OpenReplies for a queue."""
    return Replies(QueueClient(cloudflare_account(), queue_id).push_many)


def conversations_of(step: Converse, store: str = "") -> Conversations:
    """Makes the conversations of a step in a store. Raises ModelNotFound, StorageError, MissingSettings."""
    run, state = step.run, step.run.state
    budget = state.budget_within(step.calls.limits, step.calls.prices)
    keep_lease(run, budget)
    budget.prices.ask(split_model(step.defaults.model)[0])  # starts reading prices before they are needed
    replies = None if step.replies is None else step.replies(run, store)
    calls = replace(
        step.calls,
        first_window=step.calls.window,  # a window grows only when calls end, so slow ones would hold up others
        answered_before=never if step.stops else _lasts,
        gate=state.asleep,
        budget=budget,
        run_id=run.run_id,
    )
    answers = Answers(
        step.defaults,
        state.shared(LastingEngine, lambda: LastingEngine(partial(get_engine, calls), calls.window)),
        replies=replies,
        deltas=replies.tell if step.deltas and isinstance(replies, Replies) else None,
        stops=step.stops,
        stopping=lambda: state.stopping,
        store=store,
        prices=budget.prices,
    )
    settings = ConversationSettings(
        run_id=run.run_id,
        is_alive=state.is_alive,
        since=step.since,
        counted=partial(_count, run),
        over=state.stop,
    )
    log = open_log(step.logs.get(store, run.output))
    return Conversations(log, answers, replies, settings, state.shared(ChatLoop, ChatLoop))


def _count(run: Run, answer: LoggedAnswer) -> None:
    usage: Mapping[str, Any] = answer.usage or {}
    run.state.add(
        answered=int(not answer.failed),
        failed=int(answer.failed),
        input_tokens=int(usage.get("inputTokens", 0)),
        output_tokens=int(usage.get("outputTokens", 0)),
    )
