"""AWS Signature Version 4 in the Authorization header, as R2's S3 API takes it.

The specification is docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html. The tests compare it with
botocore's signer; ``llmdo.local.r2.signatures`` checks signatures independently.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Mapping
from urllib.parse import quote

_ALGORITHM = "AWS4-HMAC-SHA256"
_SCOPE = "auto/s3/aws4_request"


def encode_query(parameters: Mapping[str, str]) -> str:
    """The query of a request as it is signed and sent."""
    pairs = sorted([(quote(name, safe=""), quote(value, safe="")) for name, value in parameters.items()])
    return "&".join([f"{name}={value}" for name, value in pairs])


class Signer:
    """Signs requests to one host with one key. Thread-safe.

    Args:
        key_id: the access key's id.
        secret: the access key's secret.
        host: value of the Host header, with a port that is not the scheme's own.
    """

    def __init__(self, key_id: str, secret: str, host: str) -> None:
        self._key_id = key_id
        self._secret = secret
        self._host = host
        self._key = ("", b"")  # of a day, and what it signs with on that day

    def headers(self, method: str, path: str, query: str, given: Mapping[str, str], body: bytes) -> dict[str, str]:
        """The headers to send: ``given``, and those that sign it all.

        ``path`` is percent-encoded, ``query`` by ``encode_query``. ``given`` has names in lower case.
        """
        at = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(time.time()))
        digest = hashlib.sha256(body).hexdigest()
        headers = {**given, "x-amz-content-sha256": digest, "x-amz-date": at}
        signed = sorted([("host", self._host), *headers.items()])
        lines = "".join([f"{name}:{' '.join(value.split())}\n" for name, value in signed])
        names = ";".join([name for name, _ in signed])
        request = f"{method}\n{path}\n{query}\n{lines}\n{names}\n{digest}"
        scope = f"{at[:8]}/{_SCOPE}"
        to_sign = f"{_ALGORITHM}\n{at}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
        signature = hmac.digest(self._key_of(at[:8]), to_sign.encode(), "sha256").hex()
        credential = f"{_ALGORITHM} Credential={self._key_id}/{scope}, SignedHeaders={names}, Signature={signature}"
        return {"authorization": credential, **headers}

    def _key_of(self, day: str) -> bytes:
        known, key = self._key
        if known != day:
            key = f"AWS4{self._secret}".encode()
            for part in (day, *_SCOPE.split("/")):
                key = hmac.digest(key, part.encode(), "sha256")
            self._key = day, key
        return key
