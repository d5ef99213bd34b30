"""What a user reads if a message gets no answer, and the word that applications know it by.

The words are those of github.com/sociotechnica-org/lifebuild: ``llmMetadata.source`` in its services.
"""

from __future__ import annotations

from dataclasses import dataclass

from llmdo.backends.errors import (
    AccountBlocked,
    BudgetSpent,
    ContentFiltered,
    ContextOverflow,
    InvalidRequest,
    LimitReached,
    ModelError,
    ModelUnusable,
    Overloaded,
    QuotaExhausted,
    RateLimited,
    Retryable,
    ServiceAway,
    Unauthorized,
)
from llmdo.storage.errors import StorageError


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a message gets no answer: a word for applications (``metadata.source``), and a sentence for its author."""

    word: str
    sentence: str


OVERFLOW = Reason(
    "queue-overflow-error",
    "Too many of your messages are waiting in this conversation. Please wait for their answers, then send this one "
    "again.",
)
EMPTY_MESSAGE = Reason("input-validation-error", "Your message is empty. Please write what you would like to know.")
EMPTY_ANSWER = Reason("error", "The assistant gave an empty answer. Please ask again, or in other words.")
ONLY_TOOLS = Reason("tool-error", "The assistant asked for a tool that it does not have. Please ask in other words.")
_SET_UP = Reason("session-init-error", "The assistant is not set up correctly. Please tell those who run this service.")
_ALLOWANCE = Reason("resource-limit-exceeded", "The assistant has used up its allowance. Please try again later.")
_BUSY = Reason("resource-limit-exceeded", "The assistant is very busy. Please send your message again in some minutes.")
_AWAY = Reason("error", "The assistant could not be reached. Please send your message again in some minutes.")

# By the class of the error; the first match wins.
REASONS: tuple[tuple[type[Exception], Reason], ...] = (
    (
        ContextOverflow,
        Reason(
            "input-validation-error",
            "This is too long for the assistant. Please write a shorter message, or begin a new conversation.",
        ),
    ),
    (
        InvalidRequest,
        Reason("input-validation-error", "The assistant cannot work with this message. Please write it differently."),
    ),
    (ContentFiltered, Reason("error", "The assistant may not answer this. Please ask for something else.")),
    (ServiceAway, _AWAY),
    (LimitReached, _ALLOWANCE),
    (ModelUnusable, _SET_UP),
    (Unauthorized, _SET_UP),
    (AccountBlocked, _SET_UP),
    (QuotaExhausted, _ALLOWANCE),
    (BudgetSpent, _ALLOWANCE),
    (RateLimited, _BUSY),
    (Overloaded, _BUSY),
    (Retryable, _AWAY),
    (ModelError, Reason("error", "The assistant could not answer. Please send your message again.")),
    (
        StorageError,
        Reason("context-load-error", "The conversation so far could not be read. Please send your message again."),
    ),
    (
        Exception,
        Reason("queue-processing-error", "Something went wrong with your message. Please send it again."),
    ),
)


def reason_of(error: Exception) -> Reason:
    """The reason to give for an error that prevented an answer."""
    if isinstance(error, ServiceAway) and error.status:  # reachable, but failing
        return _BUSY
    return next(reason for kind, reason in REASONS if isinstance(error, kind))
