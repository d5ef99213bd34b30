"""Which failed calls may be billed without a report of what they used."""

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

# The request was sent, but no reply came, or only a part of it.
_LOST = (CallTimeout, ConnectionFailed, StreamError)
# Statuses of Overloaded that reject a call before a model works on it.
_TURNED_AWAY = frozenset({409, 429, 498, 503, 529})


def maybe_billed(error: ModelError) -> bool:
    """Whether a call that ended with this error may be billed beyond ``error.usage``.

    It may after a timeout (also 408, 504 and 524), a lost or unreadable reply, a broken stream, a failure inside the
    service (500, 502). Not if the service could not be reached, or refused the call: other 4xx, 503, no capacity.
    """
    if error.lost is not None:
        return error.lost
    if error.usage is not None:
        return False
    if isinstance(error, Overloaded):
        return error.status not in _TURNED_AWAY and not is_throttled(error)
    if isinstance(error, BadReply | ContentFiltered):
        return error.status is None or error.status < 300 or error.status >= 500
    # Retryable itself: the service could not use a model's answer, or a batch lost an item.
    return isinstance(error, _LOST) or type(error) is Retryable
