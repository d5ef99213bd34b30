"""What R2's refusals mean, and what to do about each.

Limits and errors: developers.cloudflare.com/r2/platform/limits and /r2/api/error-codes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from urllib3.exceptions import HTTPError

from llmdo.settings.network import CA_REMEDY, is_untrusted
from llmdo.settings.secrets import without_secrets
from llmdo.storage.errors import (
    AccessDenied,
    BucketNotFound,
    InvalidLocation,
    ObjectChanged,
    ObjectNotFound,
    StorageError,
    StorageUnavailable,
)

_KEYS = "check R2_ACCESS_KEY_ID and R2_SECRET_ACCESS_KEY, and that this token may read and write in the bucket"
_NO_OBJECT = "the object does not exist; it was deleted, or the key is wrong (keys are literal, never URL-encoded)"
_CLOCK = "this machine's clock is wrong; set it"
_BAD_KEY = "R2 does not take this key; use 1 to 1,024 bytes of UTF-8"
_FOREIGN = "the reply is not R2's, but empty or a web page; check R2_ENDPOINT_URL and any firewall or proxy"
_LATER = "R2 kept failing after every retry; run again later"
_SHOWN = 200  # characters of a message
NOT_R2, TORN = "NotR2", "Torn"  # codes of our own: a success without what R2 sends, or with a part of it

# By R2's error code, or by the status of a reply without a body (to HEAD): what it is, and what to do.
_ERRORS: dict[str, tuple[type[StorageError], str]] = {
    "NoSuchBucket": (BucketNotFound, "there is no such bucket at this endpoint; create it, or correct the URL"),
    "NoSuchKey": (ObjectNotFound, _NO_OBJECT),
    "404": (ObjectNotFound, _NO_OBJECT),
    "PreconditionFailed": (ObjectChanged, "another version is there by now; read it again"),
    "412": (ObjectChanged, "another version is there by now; read it again"),
    "Unauthorized": (AccessDenied, _KEYS),
    "InvalidAccessKeyId": (AccessDenied, _KEYS),
    "AccessDenied": (AccessDenied, _KEYS),
    "401": (AccessDenied, _KEYS),
    "403": (AccessDenied, _KEYS),
    "SignatureDoesNotMatch": (AccessDenied, "R2_SECRET_ACCESS_KEY is not R2_ACCESS_KEY_ID's; copy both again"),
    "ExpiredRequest": (AccessDenied, _CLOCK),
    "RequestTimeTooSkewed": (AccessDenied, _CLOCK),
    "NotEntitled": (AccessDenied, "R2 is not enabled for this account; enable it in the dashboard"),
    "ObjectLockedByBucketPolicy": (AccessDenied, "a bucket lock forbids it; write below another prefix"),
    "InvalidObjectName": (InvalidLocation, _BAD_KEY),
    "KeyTooLongError": (InvalidLocation, _BAD_KEY),
    "InvalidBucketName": (InvalidLocation, "this is not a valid bucket name; write r2://BUCKET/PREFIX"),
    "TooManyRequests": (StorageUnavailable, "R2 takes one write a second to a key; write it from one process only"),
    "ClientDisconnect": (StorageUnavailable, _LATER),
    "MetadataTooLarge": (StorageError, "R2 takes 8,192 bytes of metadata; shorten it"),
    "EntityTooLarge": (StorageError, "R2 takes 5 GiB in one piece; write it in parts"),
    NOT_R2: (StorageUnavailable, _FOREIGN),
    TORN: (StorageUnavailable, _LATER),
}


class R2Refused(Exception):
    """R2, or something in its place, did not do what it was asked for.

    Attributes:
        status: HTTP status; 500 for a success that is not R2's.
        code: R2's error code, else the status, or one of this module.
        page: whether the reply was HTML, from a firewall, a proxy or a wrong endpoint.
    """

    def __init__(self, status: int, code: str, message: str, *, page: bool = False) -> None:
        if len(message) > _SHOWN:  # secrets first: half of one would not be found any more
            message = without_secrets(message)[:_SHOWN]
        super().__init__(f"{status}: {message}" if code == str(status) else f"{status} {code}: {message}")
        self.status = status
        self.code = code
        self.page = page


class Unaskable(Exception):
    """No request can name this bucket or key, or carry this metadata."""


class Unreachable(Exception):
    """No reply came, whatever was tried."""


@contextmanager
def r2_errors(where: str) -> Iterator[None]:
    """Turns a call's errors into StorageErrors that name ``where``. A 412 becomes ObjectChanged."""
    try:
        yield
    except R2Refused as refused:
        if refused.page:
            raise StorageUnavailable(f"{where}: {_FOREIGN}") from refused
        transient = refused.status == 429 or refused.status >= 500
        unknown = (StorageUnavailable, _LATER) if transient else (StorageError, "R2 refused this request")
        kind, remedy = _ERRORS.get(refused.code) or _ERRORS.get(str(refused.status)) or unknown
        raise kind(f"{where}: {remedy} ({refused})") from refused
    except Unaskable as error:
        raise InvalidLocation(f"{where}: R2 cannot be asked for this; {error}") from error
    except (Unreachable, HTTPError) as error:
        remedy = CA_REMEDY if is_untrusted(str(error)) else "check the network and R2_ENDPOINT_URL"
        raise StorageUnavailable(f"{where}: R2 cannot be reached; {remedy} ({error})") from error
