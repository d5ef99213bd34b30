"""The S3 client for R2: its settings, its retries, and what R2's errors mean.

Limits and errors: developers.cloudflare.com/r2/platform/limits and /r2/api/error-codes.
"""

from __future__ import annotations

import logging
import os
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import boto3
from botocore import handlers
from botocore.config import Config
from botocore.configprovider import BOTOCORE_DEFAUT_SESSION_VARIABLES
from botocore.exceptions import BotoCoreError, ClientError, ParamValidationError
from botocore.parsers import ResponseParserError
from botocore.session import Session

from llmdo.settings.environment import MissingSettings, R2Access
from llmdo.settings.network import CA_REMEDY, ca_file, is_untrusted, network_problems, proxy_for
from llmdo.storage.errors import (
    AccessDenied,
    BucketNotFound,
    InvalidLocation,
    ObjectChanged,
    ObjectNotFound,
    StorageError,
    StorageUnavailable,
)

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

ATTEMPTS = 8  # waits about 3 s in all for 5xx and network errors, 35 s for 429 (one write a second to a key)

# More than all threads that may be in a call at once: with chats 64 for conversations, 32 for events, 16 that read the
# log, 32 of a ledger in R2, and some of Beam's; with files 16 a step. Connections are opened as they are needed.
CONNECTIONS = 256

# At DEBUG these write key ids and signatures.
_TELLTALE_LOGGERS = ("botocore.auth", "botocore.endpoint", "botocore.hooks")

_KEYS = "check R2_ACCESS_KEY_ID and R2_SECRET_ACCESS_KEY, and that this token may read and write in the bucket"
_NO_OBJECT = "there is no such object; it was deleted, or the key is wrong (keys are literal, never URL-encoded)"
_CLOCK = "this machine's clock is wrong; set it"
_BAD_KEY = "R2 does not take this key; use 1 to 1,024 bytes of UTF-8"
FOREIGN = "the reply is not R2's, but empty or a web page; check R2_ENDPOINT_URL and any firewall or proxy"
_NOT_R2 = "NotR2"  # a code of our own
_LATER = "R2 kept failing after every retry; run again later"

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
    _NOT_R2: (StorageUnavailable, FOREIGN),
}
# Every successful reply to these has an ETag; a listing ends with its closing tag.
_WITH_ETAG = ("GetObject", "HeadObject", "PutObject", "UploadPart")
_LISTING_ENDS = b"</ListBucketResult>"
_DELETION = b"<DeleteResult"

# The user's settings for AWS (profiles, files, AWS_ENDPOINT_URL, AWS_USE_FIPS_ENDPOINT …) do not apply to R2.
_NOT_AWS = {
    name: (None, None, default, convert) for name, (_, _, default, convert) in BOTOCORE_DEFAUT_SESSION_VARIABLES.items()
}
_NOT_AWS |= dict.fromkeys(("config_file", "credentials_file"), (None, None, os.devnull, None))

_clients: dict[tuple[int, R2Access], S3Client] = {}
_clients_lock = threading.Lock()


def s3_client(access: R2Access) -> S3Client:
    """This process's client for an endpoint and keys. Thread-safe; a forked child gets its own sockets.

    Raises InvalidLocation for an endpoint that is not a URL, and MissingSettings for one that cannot be reached so.
    """
    key = (os.getpid(), access)
    with _clients_lock:
        if key not in _clients:
            if problems := network_problems(access.endpoint):
                raise MissingSettings(problems)
            _clients[key] = _new_client(access)
        return _clients[key]


def _new_client(access: R2Access) -> S3Client:
    for name in _TELLTALE_LOGGERS:
        logging.getLogger(name).setLevel(logging.INFO)
    config = Config(
        region_name="auto",
        signature_version="s3v4",
        s3={"addressing_style": "path"},
        # boto3's default since 1.36, when_supported, sends aws-chunked bodies: R2 answers them with 401 or 501.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
        max_pool_connections=CONNECTIONS,
        proxies=_proxies(access.endpoint),
        connect_timeout=10,
        read_timeout=60,
    )
    try:
        client = boto3.session.Session(botocore_session=Session(session_vars=_NOT_AWS)).client(
            "s3",
            endpoint_url=access.endpoint,
            aws_access_key_id=access.key_id,
            aws_secret_access_key=access.secret,
            config=config,
            verify=ca_file() or True,
        )
    except (ValueError, BotoCoreError) as error:
        raise InvalidLocation(f"R2_ENDPOINT_URL={access.endpoint} is not usable ({error}); set https://HOST") from error
    # R2 never sends "100 Continue", for which each PUT would wait a second.
    client.meta.events.unregister("before-call.s3", handlers.add_expect_header)
    client.meta.events.register_last("needs-retry.s3", _retry_client_disconnect)  # type: ignore[arg-type]  # see there
    for name in _WITH_ETAG:
        client.meta.events.register(f"before-parse.s3.{name}", _check_etag)
    client.meta.events.register("before-parse.s3.ListObjectsV2", _check_listing)
    client.meta.events.register("before-parse.s3.DeleteObjects", _check_deletion)
    return client


def _proxies(endpoint: str) -> dict[str, str]:
    """Proxies by scheme. Not None, with which botocore would look for one itself."""
    proxy = proxy_for(endpoint)
    return dict.fromkeys(("http", "https"), proxy) if proxy else {}


def _check_etag(response_dict: dict[str, Any], customized_response_dict: dict[str, Any], **_: object) -> None:
    if response_dict["status_code"] < 300 and "etag" not in response_dict["headers"]:
        body = response_dict["body"]
        if not isinstance(body, bytes):  # a stream, which holds a connection
            body.close()
        _refuse(response_dict, customized_response_dict)


def _check_listing(response_dict: dict[str, Any], customized_response_dict: dict[str, Any], **_: object) -> None:
    """An empty reply would be taken for an empty bucket; botocore itself refuses what is not XML."""
    if response_dict["status_code"] < 300 and not response_dict["body"].rstrip().endswith(_LISTING_ENDS):
        _refuse(response_dict, customized_response_dict)


def _check_deletion(response_dict: dict[str, Any], customized_response_dict: dict[str, Any], **_: object) -> None:
    """An empty reply would be taken for the removal of all that was named."""
    if response_dict["status_code"] < 300 and _DELETION not in response_dict["body"]:
        _refuse(response_dict, customized_response_dict)


def _refuse(response: dict[str, Any], parsed: dict[str, Any]) -> None:
    """Turns a success that did not come from R2 into a 500, so that botocore tries again."""
    response["status_code"], response["body"] = 500, b""
    parsed["Error"] = {"Code": _NOT_R2, "Message": "a success without what R2 sends"}


def _retry_client_disconnect(response: Any, attempts: int, **_: object) -> float | None:
    """Seconds until the next try if R2 lost the request on its way (10054, a 400), a code that botocore does not know.

    botocore takes the first handler's answer to needs-retry that is not None, although the stubs allow only None.
    """
    code = response[1].get("Error", {}).get("Code") if response else None
    if code != "ClientDisconnect" or attempts >= ATTEMPTS:
        return None
    return random.uniform(0.0, 0.05 * 2.0**attempts)  # noqa: S311  jitter, not a secret


def is_page(reply: Any) -> bool:
    """Whether a reply is HTML, from a firewall, a proxy or a wrong endpoint; botocore takes that for an empty one."""
    return "html" in reply["ResponseMetadata"].get("HTTPHeaders", {}).get("content-type", "")


@contextmanager
def r2_errors(where: str) -> Iterator[None]:
    """Turns botocore's errors into StorageErrors that name ``where``. A 412 becomes ObjectChanged."""
    try:
        yield
    except ClientError as error:
        if is_page(error.response):
            raise StorageUnavailable(f"{where}: {FOREIGN}") from error
        code = str(error.response.get("Error", {}).get("Code", ""))
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        text = str(error.response.get("Error", {}).get("Message", ""))[:200]
        transient = status == 429 or status >= 500
        unknown = (StorageUnavailable, _LATER) if transient else (StorageError, "R2 refused this request")
        kind, remedy = _ERRORS.get(code) or _ERRORS.get(str(status)) or unknown
        raise kind(f"{where}: {remedy} ({status} {code}: {text})") from error
    except ParamValidationError as error:
        raise InvalidLocation(f"{where}: R2 cannot be asked for this; {error}") from error
    except ResponseParserError as error:
        raise StorageUnavailable(f"{where}: {FOREIGN}") from error
    except BotoCoreError as error:
        remedy = CA_REMEDY if is_untrusted(str(error)) else "check the network and R2_ENDPOINT_URL"
        raise StorageUnavailable(f"{where}: R2 cannot be reached; {remedy} ({error})") from error
