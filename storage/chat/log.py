"""The log of chats in R2 or a local folder: messages, their answers, and what is left to do.

    PREFIX<conversation>/messages/<message>.json   ChatMessage
          <conversation>/answers/<message>.json    LoggedAnswer
          <conversation>/_owner.json               who works on the conversation
          _open/<conversation>/<message>.json      the message has no answer yet, or one that is not pushed
          _traces/<conversation>/<message>.json    Trace
          _events/…  _dead/…                       events that are not messages; and what is not an event

Order of writes: message → mark → ack; answer → push → mark removed. If a marked message has an answer, it is pushed
again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import uuid
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import suppress
from itertools import islice
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import to_json

from llmdo.settings.environment import R2Access, r2_access
from llmdo.storage.chat.reading import ConversationReader, Version, read_record, side_by_side, understood
from llmdo.storage.chat.records import ChatMessage, Conversation, DamagedLog, Found, LoggedAnswer, Trace, safe
from llmdo.storage.errors import AlreadyExists, ObjectChanged, ObjectNotFound
from llmdo.storage.objects.opening import open_store
from llmdo.storage.objects.store import Location, ObjectStore

OPEN, TRACES, EVENTS, DEAD = "_open/", "_traces/", "_events/", "_dead/"
# What ``add`` found: a new message, a known one that waits for its answer, or nothing to do.
Added = Literal["new", "open", "done"]

_SWEPT_AT_ONCE = 256  # marked messages that are read before the first one is yielded
_STAGES = 100  # most stages of a trace, however often a message comes

_log = logging.getLogger(__name__)


class _Owner(BaseModel):
    model_config = ConfigDict(frozen=True)

    version: Literal[1] = 1
    run_id: str
    nonce: str


class ChatLog:
    """The log below a prefix (with '/' at its end, or empty). Thread-safe; every method may raise StorageError.

    A record that cannot be read raises DamagedLog. A process takes all its conversations with one ChatLog, which is
    their owner: two processes of one run do not work on the same conversation.
    """

    def __init__(self, store: ObjectStore, prefix: str) -> None:
        self._store = store
        self._prefix = prefix
        self._nonce = uuid.uuid4().hex
        self._conversations = ConversationReader(store, prefix)

    def add(self, message: ChatMessage, wanted: bool = True) -> Added:
        """Logs a message, and marks it as open if it is a user's and its answer is ``wanted``.

        Of two messages with one id the first stays. A known message without an answer is marked again: the process
        that logged it may have died before it set the mark.
        """
        key, known = self._record_key(message.conversation, "messages", message.id), False
        try:
            body = message.model_dump_json().encode()
            etag = self._store.put_if_absent(key, body)
            self._conversations.wrote(message.conversation, key, Version(etag, message, len(body)))
        except AlreadyExists:
            known = True
            # A PUT that was retried after a lost reply finds its own object, and a log that is read again the same.
            if read_record(self._store, key, ChatMessage) != message:
                self.note(message, "duplicate", message.arrived)
        if message.role != "user" or not wanted:
            return "done"
        if known and self._answer(message) is not None:
            return "done"
        mark = to_json({"conversation": message.conversation, "id": message.id})
        with suppress(AlreadyExists):
            self._store.put_if_absent(self._mark_key(message.conversation, message.id), mark)
        return "open" if known else "new"

    def open_messages(self, known: Container[str] = ()) -> Iterator[ChatMessage]:
        """The marked messages; those whose ``mark_name`` is ``known`` are not read.

        One that cannot be read is skipped, with a warning.
        """
        folder = self._prefix + OPEN
        names = (key.removeprefix(folder).removesuffix(".json") for key, _ in self._store.versions(folder))
        wanted = (name for name in names if name not in known and name.count("/") == 1)
        while some := list(islice(wanted, _SWEPT_AT_ONCE)):
            keys = [self._prefix + name.replace("/", "/messages/") + ".json" for name in some]
            for name, message in zip(some, side_by_side(self._open_message, keys), strict=True):
                if isinstance(message, ChatMessage):
                    yield message
                elif message is None:
                    _log.warning("%s%s is gone from the log: there is nothing to answer", self._prefix, name)
                    self._store.delete(f"{folder}{name}.json")
                else:
                    _log.warning("%s", message)

    def count_open(self) -> int:
        """How many messages are marked: one listing."""
        return sum(1 for _ in self._store.versions(self._prefix + OPEN))

    def conversation(self, conversation: str) -> Conversation:
        """All messages and answers of a conversation: one listing, and a read for each new object."""
        return self._conversations.look(conversation)

    def take(self, conversation: str, run_id: str, is_alive: Callable[[str], bool]) -> bool:
        """Whether the conversation is this ChatLog's now: it was free, or its owner's run is dead.

        R2 takes one write a second to a key: keep a conversation for longer than that.
        """
        key, ours = self._owner_key(conversation), _Owner(run_id=run_id, nonce=self._nonce)
        body = ours.model_dump_json().encode()
        while True:
            with suppress(AlreadyExists):
                self._store.put_if_absent(key, body)
                return True
            try:
                found, etag = self._store.read(key)
                owner = _owner(found)
                if owner is not None and owner.nonce == self._nonce:
                    if owner == ours:
                        return True
                elif owner is not None and is_alive(owner.run_id):
                    return False
                self._store.put_if_match(key, body, etag)
            except (ObjectChanged, ObjectNotFound):
                continue
            return True

    def release(self, conversation: str) -> None:
        """Lets go of a conversation, unless it has another owner by now."""
        key = self._owner_key(conversation)
        with suppress(ObjectNotFound):
            owner = _owner(self._store.read(key)[0])
            if owner is not None and owner.nonce == self._nonce:
                self._store.delete(key)

    def answer(self, answer: LoggedAnswer) -> LoggedAnswer:
        """Logs the answer of a message; returns the first one, which counts."""
        key = self._record_key(answer.conversation, "answers", answer.message_id)
        # Not pydantic's writer, which refuses what a model's metadata may hold: lone surrogates, NaN.
        body = json.dumps(answer.model_dump(mode="python")).encode()
        while True:
            try:
                etag = self._store.put_if_absent(key, body)
            except AlreadyExists:
                first = read_record(self._store, key, LoggedAnswer)
                if first is None:  # removed a moment ago
                    continue
                return first
            self._conversations.wrote(answer.conversation, key, Version(etag, answer, len(body)))
            return answer

    def adopt(self, response: LoggedAnswer, created: float, *, final: bool = False) -> None:
        """Logs a response event that came in: one of our own that comes back, or another service's.

        It becomes its message's answer, unless there is one. ``final``: the message needs no other, so that one which
        was not pushed so far stays unpushed. Without ``message_id`` it answers the last unanswered
        message before ``created`` (Unix time in seconds), or becomes a message itself.
        """
        if not response.message_id:
            conversation = self.conversation(response.conversation)
            known = {one.id for one in conversation.messages}
            known.update(answer.response_id for answer in conversation.answers.values())
            if response.response_id in known:
                return
            asked = [one for one in conversation.unanswered if one.created <= created]
            if not asked:
                self.add(_as_message(response, created))
                return
            response = response.model_copy(update={"message_id": asked[-1].id})
        if self.answer(response).response_id == response.response_id or final:
            self._store.delete(self._mark_key(response.conversation, response.message_id))

    def close(self, message: ChatMessage, now: float) -> None:
        """Removes the mark of a message whose answer was pushed at ``now``, Unix time in seconds."""
        self.note(message, "pushed", now)
        self._store.delete(self._mark_key(message.conversation, message.id))

    def note(self, message: ChatMessage, stage: str, now: float) -> None:
        """Adds a stage to the message's trace, ``now`` in Unix time in seconds."""
        key = self._trace_key(message)
        trace = Trace(stages=((stage, now),))
        while True:
            with suppress(AlreadyExists):
                self._store.put_if_absent(key, trace.model_dump_json().encode())
                return
            with suppress(ObjectChanged, ObjectNotFound):
                found, etag = self._store.read(key)
                stages = (*understood(self._store, key, found, Trace).stages, (stage, now))
                if len(stages) > _STAGES:
                    stages = (*stages[: _STAGES // 2], *stages[-_STAGES // 2 :])
                self._store.put_if_match(key, Trace(stages=stages).model_dump_json().encode(), etag)
                return

    def keep(self, event: Mapping[str, Any]) -> None:
        """Keeps an event that is not a message, as it came, and once, however often it comes."""
        self._put_once(EVENTS, to_json(event))

    def bury(self, body: object, reason: str) -> None:
        """Puts what is not an event among the dead letters."""
        text = body.decode("utf-8", "backslashreplace") if isinstance(body, bytes) else body
        self._put_once(DEAD, json.dumps({"reason": reason, "body": text}, default=repr).encode())

    def find(self, message_id: str, conversation: str | None = None) -> list[Found]:
        """Everything known about the messages with this id, in the named conversation or in all.

        Without a conversation it lists the whole log.
        """
        if conversation is not None:
            keys = [self._record_key(conversation, "messages", message_id)]
        else:
            tail = ["messages", f"{safe(message_id)}.json"]
            keys = [key for key, _ in self._store.versions(self._prefix) if self._parts(key)[1:] == tail]
        messages = [message for key in keys if (message := read_record(self._store, key, ChatMessage)) is not None]
        return [self._found(message) for message in messages]

    def _found(self, message: ChatMessage) -> Found:
        try:
            self._store.stat(self._mark_key(message.conversation, message.id))
            is_open = True
        except ObjectNotFound:
            is_open = False
        trace = read_record(self._store, self._trace_key(message), Trace)
        return Found(message, self._answer(message), is_open, trace or Trace())

    def _open_message(self, key: str) -> ChatMessage | DamagedLog | None:
        try:
            return read_record(self._store, key, ChatMessage)
        except DamagedLog as error:
            return error

    def _answer(self, message: ChatMessage) -> LoggedAnswer | None:
        key = self._record_key(message.conversation, "answers", message.id)
        return read_record(self._store, key, LoggedAnswer)

    def _put_once(self, folder: str, body: bytes) -> None:
        with suppress(AlreadyExists):
            self._store.put_if_absent(f"{self._prefix}{folder}{hashlib.sha256(body).hexdigest()[:32]}.json", body)

    def _record_key(self, conversation: str, kind: str, message_id: str) -> str:
        return f"{self._prefix}{safe(conversation)}/{kind}/{safe(message_id)}.json"

    def _mark_key(self, conversation: str, message_id: str) -> str:
        return f"{self._prefix}{OPEN}{safe(conversation)}/{safe(message_id)}.json"

    def _trace_key(self, message: ChatMessage) -> str:
        return f"{self._prefix}{TRACES}{mark_name(message)}.json"

    def _owner_key(self, conversation: str) -> str:
        return f"{self._prefix}{safe(conversation)}/_owner.json"

    def _parts(self, key: str) -> list[str]:
        """The parts of a key; none of one in the log's own folders."""
        parts = key.removeprefix(self._prefix).split("/")
        return [] if parts[0].startswith("_") else parts


_logs: dict[tuple[Location, R2Access | None], ChatLog] = {}
_opening = threading.Lock()


def open_log(place: Location) -> ChatLog:
    """The process's log at a place; its steps share one, so none reads what another wrote. Raises MissingSettings."""
    key = place, r2_access() if place.bucket else None
    with _opening:
        if key not in _logs:
            _logs[key] = ChatLog(open_store(place.store_url, private=True), place.key)
        return _logs[key]


def mark_name(message: ChatMessage) -> str:
    """Identifies a message among those that are marked as open."""
    return f"{safe(message.conversation)}/{safe(message.id)}"


def _owner(body: bytes) -> _Owner | None:
    try:
        return _Owner.model_validate_json(body)
    except ValidationError:
        return None


def _as_message(response: LoggedAnswer, created: float) -> ChatMessage:
    return ChatMessage(
        event=response.events[0],
        id=response.response_id,
        conversation=response.conversation,
        text=response.text or "",
        role="assistant",
        created=created,
        arrived=created,
    )
