"""The elements and settings of the step that answers messages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from llmdo.storage.chat.records import ChatMessage, LoggedAnswer

# Per conversation, without the message being answered and those accepted before.
MOST_WAITING = 100
LOOK_AGAIN_S = 1.0  # how often a conversation claimed by another run is checked
KEEP_CLAIM_S = 2.0  # a conversation stays claimed this long after its last answer: R2 takes one write a second to a key

# "answered" or "failed": its answer is in the log, written by this process or found there. "elsewhere": another run
# answered it, and delivers the answer. "left": unanswered; its mark stays in the log for a later run.
MessageOutcome = Literal["answered", "failed", "elsewhere", "left"]


@dataclass(frozen=True, slots=True)
class ChatDefaults:
    """How every message is answered.

    Attributes:
        model: ``provider/model``.
        parameters: by OpenAI's names: temperature, max_tokens …
        context_tokens: size of the model's context, input and answer together; None if unknown.
    """

    model: str
    system: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    context_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class WaitingMessage:
    """A message to answer.

    Attributes:
        accepted: the log already had it, so it is not refused even if many others wait.
        store: whose log it is in; "" where there is only one log.
    """

    message: ChatMessage
    accepted: bool = False
    store: str = ""


@dataclass(frozen=True, slots=True)
class Answered:
    """A message that is finished, with its outcome."""

    conversation: str
    message_id: str
    outcome: MessageOutcome


@dataclass(frozen=True, slots=True)
class ConversationSettings:
    """Settings of all conversations of a run.

    Attributes:
        is_alive: whether the run of this id is alive, so that its conversations belong to it. May raise StorageError.
        since: messages created earlier are not answered. Unix time in seconds.
        counted: receives each answer that this process made.
        over: receives the error that ends the run: the log is unusable, or no further call may be made.
    """

    run_id: str
    is_alive: Callable[[str], bool] = lambda run_id: False  # noqa: ARG005
    since: float | None = None
    counted: Callable[[LoggedAnswer], None] = lambda answer: None  # noqa: ARG005
    over: Callable[[BaseException], None] = lambda error: None  # noqa: ARG005
    look_again_s: float = LOOK_AGAIN_S
    linger_s: float = KEEP_CLAIM_S

    def leaves_alone(self, message: ChatMessage) -> bool:
        """Whether a message is too old to be answered."""
        return self.since is not None and message.created < self.since
