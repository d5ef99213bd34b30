"""Which calls may be billed although they failed, and nobody tells what they used."""

from __future__ import annotations

from llmdo.backends.errors import (
    BadReply,
    CallTimeout,
    ConnectionFailed,
    ContentFiltered,
    ModelError,
    Overloaded,
    Retryable,
    StreamError,
)
from llmdo.backends.limits.retry import is_throttled

# The request was sent, and either no reply came or not the whole of it, or a model worked on it in vain.
_LOST = (CallTimeout, ConnectionFailed, StreamError)
# Statuses of Overloaded with which a call is turned away before a model works on it.
_TURNED_AWAY = frozenset({409, 429, 498, 503, 529})


def maybe_billed(error: ModelError) -> bool:
    """Whether a call that ended so may be billed beyond what ``error.usage`` tells.

    It may after a timeout (408, 504 and 524 too), a lost or unreadable reply, a broken stream, a failure inside the
    service (500, 502). Not where the service could not be reached, or refused the call: other 4xx, 503, no capacity.
    """
    if error.lost is not None:
        return error.lost
    if error.usage is not None:
        return False
    if isinstance(error, Overloaded):
        return error.status not in _TURNED_AWAY and not is_throttled(error)
    if isinstance(error, BadReply | ContentFiltered):
        return error.status is None or error.status < 300 or error.status >= 500
    # Retryable itself: a model's answer that the service could not use, or an item that a batch has lost.
    return isinstance(error, _LOST) or type(error) is Retryable
