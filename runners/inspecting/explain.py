"""``llmdo chat explain``: what happened to a message, stage by stage, or why it has no answer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from pydantic_core import from_json
from rich.console import Console
from rich.table import Table
from rich.text import Text

from llmdo.pipelines.usage import UsageError
from llmdo.runners.exit_codes import EXIT_ANSWERED, EXIT_FAILED, EXIT_SOME_ERRORS
from llmdo.runners.showing.limits import iso_time
from llmdo.storage.chat.log import DEAD, ChatLog
from llmdo.storage.chat.records import Found
from llmdo.storage.objects.opening import open_store
from llmdo.storage.objects.store import Location
from llmdo.storage.runs.runs import DEAD_SECONDS, FOLDER, SUMMARY
from llmdo.transforms.chat.replies import PUSH_PATIENCE_S
from llmdo.transforms.files.poll_files import SWEEP_SECONDS

# Stage → what it means; in the order in which they usually come.
STAGES = {
    "sent": "by the sender's clock",
    "received": "logged",
    "duplicate": "came again, and was skipped",
    "queued": "waits for its turn in the conversation",
    "begun": "its turn has come",
    "called": "the model was asked",
    "retried": "the last try began",
    "recalled": "an answer that was paid for before, from the ledger",
    "answered": "the answer is in the log",
    "adopted": "another service answered it, by that one's clock",
    "pushed": "the answer is in the reply queue or the store, or is not wanted there",
}


# Stages by other machines' clocks.
_ELSEWHERE = ("sent", "adopted")
_LATE = (
    f" It is not pushed yet: its run tries for {PUSH_PATIENCE_S / 60:g} minutes (to a store for as long as it runs); "
    f"then the sweeps of the log do, every {SWEEP_SECONDS / 60:g} minutes, and any later run."
)


@dataclass(frozen=True, slots=True)
class Explained:
    """What became of one message.

    Attributes:
        stages: name and Unix time in seconds, by time.
        verdict: how it stands, in a sentence.
        exit_code: 0 answered, 3 answered with an error, 1 no answer, or none yet.
    """

    message_id: str
    conversation: str
    verdict: str
    exit_code: int
    stages: tuple[tuple[str, float], ...] = ()
    details: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """For ``--json``; times in ISO 8601."""
        return {
            "message_id": self.message_id,
            "conversation": self.conversation,
            "verdict": self.verdict,
            "stages": [{"stage": name, "at": iso_time(at, "milliseconds")} for name, at in self.stages],
            **self.details,
        }


def explain(where: Location, message_id: str, conversation: str | None = None) -> list[Explained]:
    """Every message of the log with this id, or one entry that says that there is none.

    Raises UsageError where there is no log, and StorageError.
    """
    store = open_store(where.store_url)
    log = ChatLog(store, where.key)
    found = log.find(message_id, conversation)
    if found:
        return [_explained(one, log, where) for one in found]
    if next(store.list(where.key), None) is None:
        raise UsageError([f"--log: there is no log at {store.url}/{where.key}: check it, --store and STORE_ID"])
    reasons = list(_dead_letters(where, message_id))
    others = [one.message.conversation for one in log.find(message_id)] if conversation else []
    if others:
        verdict = f"it is not in conversation {conversation}, but in {' and '.join(others)}: check --conversation"
    elif reasons:
        verdict = f"it was received, but could not be understood: {'; '.join(reasons)}"
    else:
        verdict = "no message with this id was received: check the id, --log and --store, and that the event was sent"
    return [Explained(message_id, conversation or "", verdict, EXIT_FAILED)]


def exit_code(found: list[Explained]) -> int:
    """1 if any has no answer, else 3 if any has an error instead, else 0."""
    codes = {one.exit_code for one in found}
    return next((code for code in (EXIT_FAILED, EXIT_SOME_ERRORS) if code in codes), EXIT_ANSWERED)


def show_explained(found: list[Explained], console: Console) -> None:
    """For people: a table of stages for each message, then how it stands."""
    for one in found:
        if one.stages:
            table = Table("at (UTC)", "after", "stage", "", box=None, pad_edge=False)
            table.columns[1].justify = "right"
            first = next(at for name, at in one.stages if name == "received")
            for name, at in one.stages:
                after = "" if name in _ELSEWHERE else f"{at - first:.3f} s"
                table.add_row(iso_time(at, "milliseconds"), after, name, STAGES.get(name, ""))
            console.print(Text(f"{one.conversation} / {one.message_id}", style="bold"))
            console.print(table)
        console.print(Text(one.verdict), soft_wrap=True)


def _explained(found: Found, log: ChatLog, where: Location) -> Explained:
    message, answer = found.message, found.answer
    stages = [("sent", message.created), ("received", message.arrived)]
    details: dict[str, Any] = {"role": message.role}
    if answer is not None:
        # Of an answer that came as an event, only its time is known, by its service's clock.
        adopted = answer.trace.keys() == {"answered"}
        stages += [("adopted" if adopted else name, at) for name, at in answer.trace.items() if name != "received"]
        details |= {
            "response_id": answer.response_id,
            "model": answer.response.get("modelId"),
            "error": answer.error or None,
            "attempts": answer.attempts,
            "usage": answer.usage,
            "history": list(answer.history),
        }
    stages += found.trace.stages
    # Other clocks may be wrong: what was sent comes first in any case, and what was received before all else.
    ordered = (stages[0], *sorted(stages[1:], key=lambda stage: max(stage[1], message.arrived)))
    verdict, code = _verdict(found, log, where)
    return Explained(message.id, message.conversation, verdict, code, ordered, details)


def _verdict(found: Found, log: ChatLog, where: Location) -> tuple[str, int]:
    message, answer = found.message, found.answer
    if answer is None:
        if message.role != "user":
            return f"It is a message of role {message.role}: only those of users are answered.", EXIT_FAILED
        if not found.open:
            return (
                "It was logged, but is not to be answered: it is older than the --since of the run that received it. "
                "Send it again to a run without; a store is read again by a run with an earlier --since.",
                EXIT_FAILED,
            )
        before = [one for one in log.conversation(message.conversation).unanswered if one.order < message.order]
        many = (
            "1 message of its conversation is"
            if len(before) == 1
            else f"{len(before):,} messages of its conversation are"
        )
        turn = f"{many} before it. " if before else ""
        return f"It has no answer yet. {turn}{_at_work(where)}", EXIT_FAILED
    asked = {0: "was not asked", 1: "was asked once"}.get(answer.attempts, f"was asked {answer.attempts:,} times")
    late = _LATE if found.open else ""
    if answer.failed:
        why = (answer.error or str(answer.response.get("message", ""))).rstrip(".")
        return f"It got an error event instead of an answer, the model {asked}: {why}.{late}", EXIT_SOME_ERRORS
    model = answer.response.get("modelId", "somebody")
    told = f"; the model {asked}" if answer.attempts else ""
    return f"It was answered by {model}{told}.{late}", EXIT_ANSWERED


def _at_work(where: Location) -> str:
    """Whether a run is there that could answer."""
    folder, now = where.key + FOLDER, datetime.now(UTC)
    beats = [
        info
        for info in open_store(where.store_url).list(folder)
        if not SUMMARY.fullmatch(info.key.removeprefix(folder))
    ]
    alive = [info for info in beats if (now - info.modified).total_seconds() < DEAD_SECONDS]
    if not alive:
        return "No run is working on this log: start llmdo chat, which resumes what is open."
    names = ", ".join(info.key.rpartition("/")[2].removesuffix(".json") for info in alive[:3])
    return f"Heard of on this log in the last 3 minutes: {names}."


def _dead_letters(where: Location, message_id: str) -> Iterator[str]:
    """The reasons of the dead letters that contain this id."""
    store = open_store(where.store_url)
    for info in store.list(where.key + DEAD):
        body = store.read(info.key)[0]
        if message_id.encode() in body:
            yield f"{from_json(body)['reason']} ({store.url}/{info.key})"
