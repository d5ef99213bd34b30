"""What a user reads where a message gets no answer, and the word that pages know it by.

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
class Source:
    """Why a message gets no answer: a word for pages (``metadata.source``), and a sentence for who wrote it."""

    word: str
    sentence: str


OVERFLOW = Source(
    "queue-overflow-error",
    "Too many of your messages are waiting in this conversation. Please wait for their answers, then send this one "
    "again.",
)
EMPTY_MESSAGE = Source("input-validation-error", "Your message is empty. Please write what you would like to know.")
EMPTY_ANSWER = Source("error", "The assistant gave an empty answer. Please ask again, or in other words.")
ONLY_TOOLS = Source("tool-error", "The assistant asked for a tool that it does not have. Please ask in other words.")
_SET_UP = Source("session-init-error", "The assistant is not set up correctly. Please tell those who run this service.")
_ALLOWANCE = Source("resource-limit-exceeded", "The assistant has used up its allowance. Please try again later.")
_BUSY = Source("resource-limit-exceeded", "The assistant is very busy. Please send your message again in some minutes.")
_AWAY = Source("error", "The assistant could not be reached. Please send your message again in some minutes.")

# By the class of the error, the first row that fits.
SOURCES: tuple[tuple[type[Exception], Source], ...] = (
    (
        ContextOverflow,
        Source(
            "input-validation-error",
            "This is too long for the assistant. Please write a shorter message, or begin a new conversation.",
        ),
    ),
    (
        InvalidRequest,
        Source("input-validation-error", "The assistant cannot work with this message. Please write it differently."),
    ),
    (ContentFiltered, Source("error", "The assistant may not answer this. Please ask for something else.")),
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
    (ModelError, Source("error", "The assistant could not answer. Please send your message again.")),
    (
        StorageError,
        Source("context-load-error", "The conversation so far could not be read. Please send your message again."),
    ),
    (
        Exception,
        Source("queue-processing-error", "Something went wrong with your message. Please send it again."),
    ),
)


def source_of(error: Exception) -> Source:
    """The source for an error that kept a message from its answer."""
    if isinstance(error, ServiceAway) and error.status:  # it can be reached, and fails
        return _BUSY
    return next(source for kind, source in SOURCES if isinstance(error, kind))
