"""What goes into the step that answers messages besides the messages themselves, and what comes out of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from llmdo.storage.chat.records import ChatMessage, LoggedAnswer

# In one conversation, besides the message that is being answered; of those that were accepted before, any number.
MOST_WAITING = 100
LOOK_AGAIN_S = 1.0  # a conversation that another run works on is looked at this often
LINGER_S = 2.0  # a conversation is kept so long after its last answer: R2 takes one write a second to a key

# "answered" or "failed": its answer is in the log, written by this process or found there. "elsewhere": another run has
# answered it, and delivers the answer. "left": it has no answer yet, and its mark in the log stays for a later run.
Outcome = Literal["answered", "failed", "elsewhere", "left"]


@dataclass(frozen=True, slots=True)
class ChatDefaults:
    """How every message is answered.

    Attributes:
        model: ``provider/model``.
        parameters: by OpenAI's names: temperature, max_tokens …
        context_tokens: what the model's context holds, input and answer together; None where nobody tells.
    """

    model: str
    system: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    context_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Incoming:
    """A message that waits for its answer. ``accepted``: the log had it before, and it waits however many others do."""

    message: ChatMessage
    accepted: bool = False


@dataclass(frozen=True, slots=True)
class Answered:
    """What became of a message. ``pushed``: its response events are in the reply queue, or there is no such queue."""

    conversation: str
    message_id: str
    outcome: Outcome
    pushed: bool = False


@dataclass(frozen=True, slots=True)
class Settings:
    """What all conversations of a process keep to.

    Attributes:
        is_alive: whether the run of this id lives, so that its conversations are its own. May raise StorageError.
        since: messages that were created before are left alone. Unix time in seconds.
        counted: gets each answer that this process has made.
        over: gets the error that ends the run: the log cannot be used, or no call may be made any more.
    """

    run_id: str
    is_alive: Callable[[str], bool] = lambda run_id: False  # noqa: ARG005
    since: float | None = None
    counted: Callable[[LoggedAnswer], None] = lambda answer: None  # noqa: ARG005
    over: Callable[[BaseException], None] = lambda error: None  # noqa: ARG005
    look_again_s: float = LOOK_AGAIN_S
    linger_s: float = LINGER_S

    def leaves_alone(self, message: ChatMessage) -> bool:
        """Whether a message is too old to be answered."""
        return self.since is not None and message.created < self.since
