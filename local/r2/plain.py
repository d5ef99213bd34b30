"""The calls that a run makes for each file, answered without moto's way through a request, which takes 0.8 ms of CPU.

They are plain writes, reads and listings. What has anything else in it is left to moto, and ``tests/local/r2`` compares
both ways.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from hashlib import md5
from itertools import takewhile
from typing import Any
from urllib.parse import parse_qs, quote
from xml.sax.saxutils import escape

from moto.s3.models import FakeKey, S3Backend

from llmdo.local.r2.signatures import is_signed_body
from llmdo.local.service_errors import S3_ERRORS
from llmdo.local.wire import XML, HttpCall, S3Refused

SMALL = 1 << 16  # bytes that are written or read while all other calls wait
_PAGE = 1000
_COMMON = frozenset(
    "accept accept-encoding amz-sdk-invocation-id amz-sdk-request authorization connection content-length date host"
    " user-agent x-amz-content-sha256 x-amz-date".split()
)
_OF_WRITE = frozenset({"content-type", "if-none-match"})
_OF_READ = frozenset({"if-match", "range"})
_OF_LISTING = frozenset({"list-type", "prefix", "encoding-type", "start-after", "max-keys", "continuation-token"})
_METADATA = re.compile(r"x-amz-meta-[a-z0-9\-_.]+")
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")

_Reply = tuple[int, dict[str, Any], bytes]


class Plain:
    """Answers plain calls as moto would, from its objects.

    Args:
        backend: moto's objects.
        names: the keys of each bucket, in their order.
    """

    def __init__(self, backend: S3Backend, names: dict[str, list[str]]) -> None:
        self._backend = backend
        self._names = names

    def answer(self, call: HttpCall, bucket: str, key: str) -> _Reply | None:
        """Status, headers and body; None leaves the call to moto. Raises S3Refused."""
        if bucket not in self._backend.buckets or not is_signed_body(call):
            return None
        given = {name.lower() for name in call.headers} - _COMMON
        if call.method == "PUT" and key and not call.query and len(call.body) <= SMALL:
            return self._write(call, bucket, key, given)
        if call.method == "GET" and key and not call.query and given <= _OF_READ:
            return self._read(call, bucket, key)
        if call.method == "GET" and not key and not given:
            return self._list(call, bucket)
        return None

    def _write(self, call: HttpCall, bucket: str, key: str, given: set[str]) -> _Reply | None:
        kept = given - {"if-none-match"}
        if not all(name in _OF_WRITE or _METADATA.fullmatch(name) for name in kept):
            return None
        condition = call.headers.get("if-none-match")
        if condition is not None and (condition != "*" or key in self._backend.buckets[bucket].keys):
            return None
        made: FakeKey = self._backend.put_object(bucket, key, call.body, storage="STANDARD", disable_notification=True)
        made.set_metadata({name: call.headers[name] for name in kept})
        return 200, {"ETag": made.etag, "last-modified": made.last_modified_RFC1123}, b""

    def _read(self, call: HttpCall, bucket: str, key: str) -> _Reply | None:
        held = self._backend.buckets[bucket].keys
        if key not in held:
            raise S3Refused(404, *S3_ERRORS[10007])
        found: FakeKey = held[key]
        if found.size > SMALL or call.headers.get("if-match", found.etag) != found.etag:
            return None
        headers = {**found.response_dict, **found.metadata, "Accept-Ranges": "bytes"}
        if "range" not in call.headers:
            return 200, headers, found.value
        span = _RANGE.fullmatch(call.headers["range"])
        if span is None:
            return None
        start, last = int(span[1]), min(int(span[2] or found.size), found.size - 1)
        if not start <= last:
            return None
        headers |= {"content-length": str(last + 1 - start), "content-range": f"bytes {start}-{last}/{found.size}"}
        return 206, headers, found.value[start : last + 1]

    def _list(self, call: HttpCall, bucket: str) -> _Reply | None:
        query = parse_qs(call.query, keep_blank_values=True)
        if not query.keys() <= _OF_LISTING or query.get("list-type") != ["2"]:
            return None
        prefix, encoding = query.get("prefix", [""])[0], query.get("encoding-type", [""])[0]
        after, most = query.get("start-after", [""])[0], query.get("max-keys", [str(_PAGE)])[0]
        if not (most.isascii() and most.isdigit() and 0 < int(most) <= _PAGE):
            return None
        tokens = self._backend._pagination_tokens  # moto's own, so that it can go on where this has begun
        token = query.get("continuation-token", [""])[0]
        if "continuation-token" in query and token not in tokens:
            return None
        names, keys = self._names[bucket], self._backend.buckets[bucket].keys
        at = max(bisect_left(names, prefix), bisect_right(names, tokens[token] if token else after))
        below = [*takewhile(lambda name: name.startswith(prefix), names[at : at + int(most) + 1])]
        found: list[FakeKey] = [keys[name] for name in below[: int(most)]]
        following = ""
        if len(below) > len(found):
            following = md5(found[-1].name.encode(), usedforsecurity=False).hexdigest()
            tokens[following] = found[-1].name
        contents = "".join(
            f"<Contents><Key>{escape(key.safe_name(encoding))}</Key><LastModified>{key.last_modified_ISO8601}"
            f"</LastModified><ETag>{key.etag}</ETag><Size>{key.size}</Size>"
            f"<StorageClass>{key.storage_class}</StorageClass></Contents>"
            for key in found
        )
        shown = quote(prefix) if encoding == "url" else prefix
        body = (
            '<?xml version="1.0" encoding="utf-8"?>\n'
            '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<IsTruncated>{'true' if following else 'false'}</IsTruncated>"
            f"{contents}<Name>{bucket}</Name><Prefix>{escape(shown)}</Prefix><MaxKeys>{int(most)}</MaxKeys>"
            + (f"<EncodingType>{encoding}</EncodingType>" if encoding else "")
            + f"<KeyCount>{len(found)}</KeyCount>"
            + (f"<NextContinuationToken>{following}</NextContinuationToken>" if following else "")
            + (f"<StartAfter>{escape(after)}</StartAfter>" if after and not token else "")
            + "</ListBucketResult>"
        )
        return 200, {"Content-Type": XML}, body.encode()
