"""AWS Signature Version 4 as R2 checks it: in the Authorization header, or in the query of a presigned URL.

The specification is docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html; S3 signs the
path as it is. The order of the checks and their wording are R2's, as workers-sdk's S3 emulator records them.

It is deliberately independent of botocore's signer, so that it would notice a mistake there.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from urllib.parse import parse_qsl, quote

from llmdo.local.settings import Credentials
from llmdo.local.wire import HttpCall, S3Refused

ALGORITHM = "AWS4-HMAC-SHA256"
MAX_SKEW_S = 900.0
MAX_EXPIRES_S = 604_800
_UNSIGNED = "UNSIGNED-PAYLOAD"


def is_signed_body(call: HttpCall) -> bool:
    """Whether the Authorization header signs the body as it is, not in chunks."""
    return "Authorization" in call.headers and len(call.headers.get("x-amz-content-sha256", "")) == 64


def check_signature(call: HttpCall, own: Credentials) -> None:
    """Checks the sender of an S3 request, and its body's hash. Raises S3Refused."""
    query = dict(parse_qsl(call.query, keep_blank_values=True))
    authorization = call.headers.get("Authorization")
    if authorization is None:
        if "X-Amz-Credential" not in query:
            raise _invalid("Authorization")
        _check_presigned(call, query, own)
        return
    payload_hash = call.headers.get("x-amz-content-sha256")
    if payload_hash is None:
        raise S3Refused(400, "InvalidRequest", "Missing x-amz-content-sha256")
    fields = _fields(authorization)
    at = call.headers.get("x-amz-date") or call.headers.get("date") or ""
    signed_at = _seconds(at)
    if signed_at is None:
        raise _invalid(f"Date provided in 'x-amz-date' header ({at}) didn't parse successfully")
    if abs(time.time() - signed_at) > MAX_SKEW_S:
        message = "The difference between the request time and the server's time is too large."
        raise S3Refused(403, "RequestTimeTooSkewed", message)
    _check_signature(call, own, fields, at, payload_hash)
    if len(payload_hash) == 64 and hashlib.sha256(call.body).hexdigest() != payload_hash:
        message = "The provided 'x-amz-content-sha256' header does not match what was computed."
        raise S3Refused(400, "XAmzContentSHA256Mismatch", message)


def _check_presigned(call: HttpCall, query: Mapping[str, str], own: Credentials) -> None:
    names = ("X-Amz-Algorithm", "X-Amz-Signature", "X-Amz-Date", "X-Amz-SignedHeaders", "X-Amz-Expires")
    missing = [name for name in names if name not in query]
    if missing:
        raise _invalid(f"Required search parameter {',  '.join(missing)} missing")
    signed_at, expires = _seconds(query["X-Amz-Date"]), query["X-Amz-Expires"]
    if signed_at is None or not expires.isdecimal() or int(expires) > MAX_EXPIRES_S:
        raise _invalid("X-Amz-Date or X-Amz-Expires is not valid")
    if time.time() > signed_at + int(expires):
        raise S3Refused(403, "ExpiredRequest", "Request has expired")
    fields = {name: query[f"X-Amz-{name}"] for name in ("Credential", "SignedHeaders", "Signature")}
    _check_signature(call, own, fields, query["X-Amz-Date"], _UNSIGNED)


def _check_signature(call: HttpCall, own: Credentials, fields: Mapping[str, str], at: str, payload: str) -> None:
    parts = fields["Credential"].split("/")
    if len(parts) < 5 or parts[-2:] != ["s3", "aws4_request"] or not at.startswith(parts[-4]):
        raise _invalid("Credential should be KEY/DATE/REGION/s3/aws4_request, with the date of the request")
    signed = fields["SignedHeaders"].lower().split(";")
    if "/".join(parts[:-4]) != own.token_id or "host" not in signed:
        raise S3Refused(401, "Unauthorized", "Unauthorized")
    canonical = _canonical_request(call, signed, payload)
    to_sign = f"{ALGORITHM}\n{at}\n{'/'.join(parts[-4:])}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    key = _signing_key(own.secret, *parts[-4:-1])
    if not hmac.compare_digest(hmac.new(key, to_sign.encode(), "sha256").hexdigest(), fields["Signature"]):
        message = (
            "The request signature we calculated does not match the signature you provided."
            " Check your secret access key and signing method."
        )
        shown = {"StringToSign": to_sign, "CanonicalRequest": canonical, "SignatureProvided": fields["Signature"]}
        raise S3Refused(403, "SignatureDoesNotMatch", message, **shown)


def _canonical_request(call: HttpCall, signed: list[str], payload: str) -> str:
    pairs = sorted(
        (quote(name, safe="-_.~"), quote(value, safe="-_.~"))
        for name, value in parse_qsl(call.query, keep_blank_values=True)
        if name != "X-Amz-Signature"
    )
    query = "&".join(f"{name}={value}" for name, value in pairs)
    headers = "".join(f"{name}:{' '.join(call.headers.get(name, '').split())}\n" for name in signed)
    return f"{call.method}\n{call.path}\n{query}\n{headers}\n{';'.join(signed)}\n{payload}"


@lru_cache(maxsize=16)
def _signing_key(secret: str, date: str, region: str, service: str) -> bytes:
    key = f"AWS4{secret}".encode()
    for part in (date, region, service, "aws4_request"):
        key = hmac.new(key, part.encode(), "sha256").digest()
    return key


def _fields(authorization: str) -> dict[str, str]:
    scheme, _, rest = authorization.partition(" ")
    fields = dict(part.strip().partition("=")[::2] for part in rest.split(","))
    if scheme != ALGORITHM or not {"Credential", "SignedHeaders", "Signature"} <= fields.keys():
        raise S3Refused(400, "InvalidRequest", f"Please use {ALGORITHM}")
    return fields


@lru_cache(maxsize=16)  # calls of one second have one date, and parsing it takes 10 to 30 µs
def _seconds(at: str) -> float | None:
    try:
        return datetime.strptime(at, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()
    except ValueError:
        return None


def _invalid(message: str) -> S3Refused:
    return S3Refused(400, "InvalidArgument", message)
