"""``llmdo chat``: checks what can be checked before the first call, answers messages, and reports how it ended."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.text import Text

from llmdo.backends.errors import ModelError
from llmdo.backends.money.prices import list_of
from llmdo.backends.providers import split_model
from llmdo.pipelines import chat as pipeline
from llmdo.pipelines.chat_options import ChatOptions
from llmdo.pipelines.usage import UsageError
from llmdo.runners.exit_codes import EXIT_ANSWERED, EXIT_FAILED, EXIT_SOME_ERRORS
from llmdo.runners.prism.binary import find_prism
from llmdo.runners.running.attempt import Watch, attempt
from llmdo.runners.running.checks import check_consumers, check_folder, check_ledger, check_prices, id_of_queue
from llmdo.runners.running.steering import Steering
from llmdo.runners.running.stop import Stop
from llmdo.runners.running.stream import again_and_again
from llmdo.runners.showing.progress import Figures, calls_and_cost
from llmdo.runners.showing.report import show_limits, show_spent
from llmdo.runners.showing.summary import Summary
from llmdo.runners.showing.words import counted
from llmdo.storage.chat.log import ChatLog
from llmdo.storage.chat.reading import read_record
from llmdo.storage.chat.records import ChatMessage, LoggedAnswer
from llmdo.storage.errors import StorageError
from llmdo.storage.objects.opening import open_store
from llmdo.storage.objects.store import Location, locate_folder
from llmdo.transforms.chat.conversations import close_conversations, open_conversations
from llmdo.transforms.files.listing import list_inputs
from llmdo.transforms.files.source import Listing
from llmdo.transforms.livestore.connections import close_links
from llmdo.transforms.run_state import Counts, RunState

_log = logging.getLogger(__name__)

RESPONSES = "events.jsonl"  # below --output
_FAILURES_SHOWN = 5


@dataclass(frozen=True, slots=True)
class ChatSummary:
    """How it ended.

    Attributes:
        run: what happened in this run; of files it has none.
        waiting: messages that have no answer yet, or whose answer is not pushed; None if the log does not show it.
        responses: where the responses of all messages in the log are; "" for a run without an end.
        failed: the answers in the log that say that there is none.
    """

    run: Summary
    waiting: int | None = None
    responses: str = ""
    failed: tuple[LoggedAnswer, ...] = ()

    @property
    def exit_code(self) -> int:
        """0 all answered, or drained on request; 3 some got an error event; 1 failed, stopped, or not all answered."""
        if self.run.continuous:
            return self.run.exit_code
        if self.run.problem or self.waiting:
            return EXIT_FAILED
        return EXIT_SOME_ERRORS if self.run.counts.failed else EXIT_ANSWERED

    def as_json(self) -> dict[str, Any]:
        """For ``--json``; times in ISO 8601."""
        counts = self.run.counts
        return {
            **self.run.calls_json(),
            "exit_code": self.exit_code,
            "restarts": self.run.restarts,
            "answered": counts.answered,
            "failed": counts.failed,
            "waiting": self.waiting,
            "responses": self.responses or None,
            "events": {"others": counts.messages_passed_over, "dead_letters": counts.messages_undecodable},
        }


def chat(options: ChatOptions, watch: Watch) -> ChatSummary:
    """Answers the messages of files, or those of a queue or of stores until SIGTERM or Ctrl-C.

    ``watch`` shows it meanwhile. A pipeline that reads without end and fails is restarted, as in ``stream``. Raises
    what ``prepare_chat`` raises, and PrismError where there is no Prism.
    """
    if options.runner == "prism":
        find_prism(options.prism_location, allow_open=options.allow_open_ports)
    stop, budget = Stop(options.drain_seconds), options.new_budget()
    options = prepare_chat(options)
    check_prices(options, budget.prices)

    steering = Steering(options, stop)

    def once() -> Summary:
        return attempt(options, watch, stop, pipeline.build, budget, _close, steering)

    with stop.on_signals():
        if options.continuous:
            ended = again_and_again(once, stop, options.max_restarts, _progress)
            open_there = [_open_in(where) for where in options.logs.values() or [options.output_location]]
            return ChatSummary(ended, None if None in open_there else sum(filter(None, open_there)))
        summary = once()
        while summary.asleep and _progress(summary.counts) and not stop.asked:
            _log.warning("%s; resuming", summary.problem)
            summary = once()
    return _finished(options, summary)


def prepare_chat(options: ChatOptions) -> ChatOptions:
    """Checks all that is needed; puts in the ids of queues, and the model's context if its provider lists it.

    Raises UsageError for what the user must correct, StorageError for a service that refuses.
    """
    found: dict[str, Any] = {}
    if options.queue is not None and options.reply_queue is not None:
        found = {"queue": id_of_queue(options.queue), "reply_queue": id_of_queue(options.reply_queue)}
        if found["queue"] == found["reply_queue"]:
            raise UsageError([f"--reply-queue {options.reply_queue} is --queue: its messages would come back"])
        check_consumers(options.queue, found["queue"])
    where = options.output_location
    if where.bucket:
        next(open_store(where.store_url).list(where.key + "_runs/"), None)
    for place in options.events:
        if next(list_inputs(Listing((place,), "jsonl"), None), None) is None:
            raise UsageError([f"--events {place}: there is no such file, or none that ends in .jsonl"])
    check_folder(where, "--log" if options.continuous else "--output", private=options.continuous)
    check_ledger(options.kept)
    if options.context_tokens is None:
        found["context_tokens"] = context_tokens(options.model)
    return options.model_copy(update=found)


def context_tokens(model: str) -> int | None:
    """Tokens that the model's context holds, if its provider lists them."""
    provider, _ = split_model(model)
    try:
        listed = list_of(provider).models
    except (ModelError, TimeoutError) as error:
        _log.debug("no list of models: %s", error)  # a conversation that does not fit is shortened anyway
        return None
    return next((one.context_tokens for one in listed if one.name == model), None)


def logged_answers(where: Location) -> Iterator[LoggedAnswer]:
    """All answers of a log, by conversation, then in the order of their messages. Raises StorageError."""
    log = ChatLog(open_store(where.store_url), where.key)
    for name in sorted(_conversations(where)):
        conversation = log.conversation(name)
        for message in conversation.messages:
            if message.id in conversation.answers:
                yield conversation.answers[message.id]


def _conversations(where: Location) -> Iterator[str]:
    """Their ids, read from one message of each: a folder may be named by a hash."""
    store, seen = open_store(where.store_url), ""
    for info in store.list(where.key):
        folder, _, rest = info.key.removeprefix(where.key).partition("/")
        if folder != seen and rest.startswith("messages/") and not folder.startswith("_"):
            seen = folder
            message = read_record(store, info.key, ChatMessage)
            if message is not None:
                yield message.conversation


def chat_line(now: Figures, state: RunState) -> str:
    """The figures at this moment, in one line."""
    parts = [
        f"{counted(open_conversations(state), 'conversation')} open",
        f"{counted(now.lines, 'message')}, {now.lines_per_s:,.1f}/s",
        *calls_and_cost(now),
        counted(now.failed, "error"),
        "" if now.waiting is None else f"{now.waiting:,} waiting",
    ]
    return " · ".join(filter(None, parts))


def show_chat(summary: ChatSummary, console: Console) -> None:
    """What became of the messages, what it cost, and what is left to do."""
    counts = summary.run.counts
    console.print(f"{counts.answered:,} messages answered, {counts.failed:,} with an error.", highlight=False)
    if summary.failed:
        console.print(
            f"In the log {len(summary.failed):,} messages have an error instead of an answer:", highlight=False
        )
    for answer in summary.failed[:_FAILURES_SHOWN]:
        console.print(Text(f"  {answer.conversation} / {answer.message_id}: {answer.error}"))
    if len(summary.failed) > _FAILURES_SHOWN:
        console.print("  …")
    if counts.messages_undecodable:
        console.print(f"{counts.messages_undecodable:,} events could not be understood (kept in _dead/).")
    show_spent(summary.run, console)
    show_limits(summary.run, console)
    if summary.run.restarts:
        console.print(f"The pipeline was restarted {summary.run.restarts:,} times.")
    if summary.waiting:
        what = "message still waits" if summary.waiting == 1 else "messages still wait"
        console.print(f"{summary.waiting:,} {what}: run the same command again.", highlight=False)
    if summary.responses:
        console.print(Text(f"Responses: {summary.responses}"), soft_wrap=True)


def _close(state: RunState) -> None:
    close_conversations(state)
    close_links(state)


def _open_in(where: Location) -> int | None:
    """Number of messages that are open in a log; None if it cannot be read, which must not fail a run."""
    try:
        return ChatLog(open_store(where.store_url), where.key).count_open()
    except StorageError as error:
        _log.debug("%s", error)
        return None


def _progress(counts: Counts) -> bool:
    return counts.answered + counts.failed > 0


def _finished(options: ChatOptions, summary: Summary) -> ChatSummary:
    """Writes the responses that are in the log, also those of earlier runs."""
    where = options.output_location
    lines, failed = [], []
    for answer in logged_answers(where):
        lines += [json.dumps(event) + "\n" for event in answer.events]
        if answer.failed:
            failed.append(answer)
    place = locate_folder(options.output or "")
    store = open_store(place.store_url)
    store.put(place.key + RESPONSES, "".join(lines).encode())
    log, since = ChatLog(open_store(where.store_url), where.key), options.since
    waiting = sum(1 for message in log.open_messages() if since is None or message.created >= since)
    return ChatSummary(summary, waiting, f"{place.store_url}/{place.key}{RESPONSES}", tuple(failed))
