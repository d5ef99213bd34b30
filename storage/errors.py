"""Errors of objects and queues. Each message names the thing and the remedy.

StorageError
├── ObjectNotFound      no such key (404)
├── ObjectChanged       the key holds another version than the one asked for (412)
├── AlreadyExists       a put-if-absent found an object there (412)
├── BucketNotFound      no such bucket: create it, or correct the URL
├── AccessDenied        wrong or missing credentials (401, 403): stop the run
├── StorageUnavailable  still fails after all retries (429, 5xx, network): try again later
├── InvalidLocation     not a usable r2:// URL or path
├── TooManyBytes        the object is larger than what is to be read
├── LedgerError         the ledger of paid answers cannot be read or written: stop the run
└── QueueError          the Queues API refused; has status and code
    ├── QueueNotFound
    └── QueueUnauthorized   stop the run
"""

from __future__ import annotations

from llmdo.settings.secrets import without_secrets


class StorageError(Exception):
    """Base of all storage errors; its ``message`` names the thing and the remedy, and no secret.

    Picklable, because Beam moves errors between processes.
    """

    def __init__(self, message: str, *details: object) -> None:
        super().__init__(without_secrets(message), *details)


class ObjectNotFound(StorageError):
    """No object at this key."""


class ObjectChanged(StorageError):
    """The key holds another version than the one asked for."""


class AlreadyExists(StorageError):
    """A put-if-absent found an object at its key."""


class BucketNotFound(StorageError):
    """No such bucket."""


class AccessDenied(StorageError):
    """The credentials are wrong, or do not allow this."""


class StorageUnavailable(StorageError):
    """The service kept failing after every retry."""


class InvalidLocation(StorageError):
    """Not a usable r2:// URL or path."""


class TooManyBytes(StorageError):
    """The object is larger than what is to be read."""


class LedgerError(StorageError):
    """The ledger of paid answers cannot be opened, read or written; to continue would be to pay again."""


class QueueError(StorageError):
    """The Queues API refused a call.

    Attributes:
        status: HTTP status, 0 if there was no reply.
        code: Cloudflare's error code, or None.
        retry_after: seconds to wait that the service asked for, or None.
    """

    def __init__(
        self, message: str, status: int = 0, code: int | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message, status, code, retry_after)
        self.status = status
        self.code = code
        self.retry_after = retry_after

    def __str__(self) -> str:
        return str(self.args[0])


class QueueNotFound(QueueError):
    """No queue of this id or name."""


class QueueUnauthorized(QueueError):
    """The token may not use this queue."""


def is_passing(error: StorageError) -> bool:
    """Whether the same call may succeed later: no reply, an unreadable one, 408, 429 or 5xx."""
    if isinstance(error, QueueNotFound | QueueUnauthorized):
        return False
    if isinstance(error, QueueError):
        return error.status in {0, 200, 408, 429} or error.status >= 500
    return isinstance(error, StorageUnavailable)
