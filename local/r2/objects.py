"""R2's S3 API: moto's S3 behind R2's authentication, wording and refusals, with an event for every change.

moto is called directly, without its own server and without its mock of boto3. It works in memory, so every change is
also written to a file, from which a restarted server reads its objects. What R2 does differently from S3 is added here
(developers.cloudflare.com/r2/api/s3/api and …/r2/api/error-codes).
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
import threading
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC
from html import unescape
from itertools import takewhile
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, unquote

from moto.core.request import Request
from moto.s3.exceptions import MissingBucket
from moto.s3.models import FakeBucket, S3Backend
from moto.s3.responses import S3Response

from llmdo.local.queues.notifications import ObjectEvent
from llmdo.local.r2.object_file import ObjectFile, Stored
from llmdo.local.r2.plain import SMALL, Plain
from llmdo.local.r2.signatures import check_signature
from llmdo.local.service_errors import S3_ERRORS
from llmdo.local.settings import Credentials
from llmdo.local.wire import HttpCall, HttpReply, S3Refused, s3_failure

_ACCOUNT = "000000000000"  # an account for moto; never shown
_MAX_KEY_BYTES = 1024  # developers.cloudflare.com/r2/platform/limits
_MAX_METADATA_BYTES = 8192
# R2's own messages, by error code.
_MESSAGES = dict(S3_ERRORS.values())
# Headers that moto adds but R2 does not, or that the server itself sends.
_DROPPED_HEADERS = frozenset(
    "server date connection transfer-encoding x-amzn-requestid x-amz-version-id x-amz-content-sha256"
    " x-amz-sdk-checksum-algorithm".split()
)
# What R2 does not have: sub-resources and headers that get 501.
_NOT_IMPLEMENTED = frozenset(
    "accelerate acl analytics attributes inventory legal-hold logging metrics notification object-lock"
    " ownershipControls policy policyStatus publicAccessBlock replication requestPayment restore retention select"
    " tagging torrent versioning versions website".split()
)
_REFUSED_HEADERS = ("x-amz-tagging", "x-amz-expected-bucket-owner", "x-amz-object-lock-mode", "x-amz-request-payer")


_Answered = tuple[HttpReply, list[ObjectEvent]]


class _Backend(S3Backend):
    """One server's buckets. moto's own are shared by the whole process and all accounts.

    ``names`` are the keys of each bucket in their order: moto would look at all of them for each listing.
    """

    names: defaultdict[str, list[str]]

    def list_objects(self, bucket: FakeBucket, prefix: str | None, *rest: Any, **more: Any) -> Any:
        names = self.names[bucket.name]
        below = takewhile(lambda name: name.startswith(prefix or ""), names[bisect_left(names, prefix or "") :])
        within: Any = SimpleNamespace(keys={name: bucket.keys[name] for name in below})
        return super().list_objects(within, prefix, *rest, **more)

    def keep_name(self, bucket: str, key: str, *, there: bool) -> None:
        """A key came, or stays, or went."""
        names = self.names[bucket]
        at = bisect_left(names, key)
        if there != (names[at : at + 1] == [key]):
            names[at : at + (not there)] = [key] if there else []

    def get_bucket(self, bucket_name: str) -> FakeBucket:
        if bucket_name not in self.buckets:
            raise MissingBucket(bucket=bucket_name)
        return self.buckets[bucket_name]


class _Response(S3Response):
    """moto's S3 on buckets of its own, and with the bucket always in the path."""

    own: _Backend

    @property
    def backend(self) -> _Backend:
        return self.own

    @staticmethod
    def subdomain_based_buckets(_request: object) -> bool:
        return False


class Objects:
    """Answers S3 calls. A bucket is made by the first write to it; reading one that has none is NoSuchBucket.

    ``publish`` is called on the event loop with each event, before the reply goes out. All calls run one after another,
    so that conditional writes are atomic: plain small ones on the event loop, unless a call is under way, the others in
    a thread of their own, so that nothing else waits for them.
    """

    def __init__(self, path: Path, own: Credentials, publish: Callable[[ObjectEvent], None]) -> None:
        self._credentials = own
        self._publish = publish
        self._backend = _Backend("us-east-1", _ACCOUNT)
        self._backend.names = defaultdict(list)
        self._plain = Plain(self._backend, self._backend.names)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="r2")
        self._lock = threading.Lock()  # one call at a time, in that thread or on the event loop
        self._file = ObjectFile(path)
        for name in self._file.buckets():
            self.make_bucket(name)
        for stored in self._file.objects():
            key = self._backend.put_object(stored.bucket, stored.key, stored.body, etag=stored.etag)
            key.set_metadata(dict(stored.headers))
            self._backend.keep_name(stored.bucket, stored.key, there=True)
            key.last_modified = stored.modified.replace(tzinfo=None)

    def close(self) -> None:
        """Stops the thread and closes the file."""
        self._thread.shutdown()
        self._file.close()

    def make_bucket(self, name: str) -> None:
        """Creates a bucket unless it exists. Raises S3Refused."""
        if not re.fullmatch(r"[a-z0-9][a-z0-9-]{1,61}[a-z0-9]", name):
            raise S3Refused(400, "InvalidBucketName", "The specified bucket name is not valid.")
        if name not in self._backend.buckets:
            # type: ignore's reason: moto makes them in the same way, its base class only looks abstract.
            bucket = FakeBucket(name=name, account_id=_ACCOUNT, region_name="us-east-1")  # type: ignore[abstract]
            self._backend.buckets[name] = bucket
            self._file.add_bucket(name)

    async def answer(self, call: HttpCall) -> HttpReply:
        """One call to the S3 API, with its credentials checked."""
        try:
            answered = self._at_once(call)
            if answered is None:
                answered = await asyncio.get_running_loop().run_in_executor(self._thread, self._answer, call)
        except S3Refused as refused:
            return refused.reply
        reply, events = answered
        for event in events:
            self._publish(event)
        return reply

    def _at_once(self, call: HttpCall) -> _Answered | None:
        """The answer to a plain call, or None if it is not plain, or another call is under way."""
        if len(call.body) > SMALL or not self._lock.acquire(blocking=False):
            return None
        try:
            return self._plainly(call, *self._checked(call))
        finally:
            self._lock.release()

    def _answer(self, call: HttpCall) -> _Answered:
        with self._lock:
            bucket, key = self._checked(call)
            return self._plainly(call, bucket, key) or self._by_moto(call, bucket, key)

    def _checked(self, call: HttpCall) -> tuple[str, str]:
        """Bucket and key. Raises S3Refused."""
        check_signature(call, self._credentials)
        _check_request(call)
        bucket, _, key = call.path[1:].partition("/")
        return unquote(bucket), unquote(key)

    def _plainly(self, call: HttpCall, bucket: str, key: str) -> _Answered | None:
        replied = self._plain.answer(call, bucket, key)
        return self._answered(call, bucket, key, _from_moto(call, *replied)) if replied else None

    def _by_moto(self, call: HttpCall, bucket: str, key: str) -> _Answered:
        if bucket and not key and call.method == "PUT" and not call.query:
            return self._create_bucket(bucket), []
        if key and call.method in ("PUT", "POST"):
            self.make_bucket(bucket)
            self._check_parts(call, bucket)
        doomed = self._existing(bucket, _named_keys(call, key)) if _deletes(call, key) else []
        reply = self._range(call, bucket, key) or _from_moto(call, *self._moto(call))
        if reply.status >= 300:
            return reply, []
        if call.method == "DELETE" and not key:
            self._file.remove_bucket(bucket)
        return self._answered(call, bucket, key, reply, doomed)

    def _answered(
        self, call: HttpCall, bucket: str, key: str, reply: HttpReply, doomed: Sequence[str] = ()
    ) -> _Answered:
        """The reply to a call that succeeded, with the events of what it changed, which the file has as well."""
        left = self._existing(bucket, doomed)
        events = [ObjectEvent("DeleteObject", bucket, name) for name in doomed if name not in left]
        events += self._created(call, bucket, key)
        for event in events:
            self._remember(event)
        return reply, events

    def _remember(self, event: ObjectEvent) -> None:
        self._backend.keep_name(event.bucket, event.key, there=event.etag is not None)
        if event.etag is None:
            self._file.remove(event.bucket, event.key)
            return
        made = self._backend.buckets[event.bucket].keys[event.key]
        modified = made.last_modified.replace(tzinfo=UTC)
        self._file.save(Stored(event.bucket, event.key, event.etag, modified, dict(made.metadata), made.value))

    def _create_bucket(self, bucket: str) -> HttpReply:
        if bucket in self._backend.buckets:
            message = "Your previous request to create the named bucket succeeded and you already own it."
            raise S3Refused(409, "BucketAlreadyOwnedByYou", message)
        self.make_bucket(bucket)
        return HttpReply(200, headers={"Location": f"/{bucket}"})

    def _moto(self, call: HttpCall) -> tuple[int, dict[str, Any], bytes]:
        headers = {name: value for name, value in call.headers.items() if name.lower() != "expect"}
        headers["content-length"] = str(len(call.body))
        url = f"http://{call.headers.get('host', 'localhost')}{call.path}" + (f"?{call.query}" if call.query else "")
        request = Request.from_primitives(call.method, url, headers, call.body)
        response = _Response()
        response.own = self._backend
        below_bucket = call.path[1:].partition("/")[2]
        respond = response.key_response if below_bucket else response.bucket_response
        status, out, body = respond(request, url, dict(request.headers))
        return status, out, body.encode() if isinstance(body, str) else body

    def _range(self, call: HttpCall, bucket: str, key: str) -> HttpReply | None:
        """A range of an object, for which moto would copy the whole object. None: leave it to moto."""
        if call.method != "GET" or not key or "Range" not in call.headers:
            return None
        status, headers, _ = self._moto(replace(call, method="HEAD"))
        span = re.match(r"bytes (\d+)-(\d+)/", str(headers.get("content-range", "")))
        if status != 206 or span is None:
            return None
        start, last = int(span[1]), int(span[2])
        buffer = self._backend.buckets[bucket].keys[key]._value_buffer  # moto has no other access to a part
        buffer.seek(start)
        return _from_moto(call, status, headers, buffer.read(last + 1 - start))

    def _created(self, call: HttpCall, bucket: str, key: str) -> Iterator[ObjectEvent]:
        query = parse_qs(call.query, keep_blank_values=True)
        copied = call.headers.get("x-amz-copy-source")
        if not key or call.method not in ("PUT", "POST") or "uploads" in query or "partNumber" in query:
            return
        made = self._backend.buckets[bucket].keys[key]
        size, etag = made.contentsize, made.etag.strip('"')
        if call.method == "POST":
            yield ObjectEvent("CompleteMultipartUpload", bucket, key, size, etag)
        elif copied:
            source_bucket, _, source_key = unquote(copied.partition("?")[0]).lstrip("/").partition("/")
            yield ObjectEvent("CopyObject", bucket, key, size, etag, (source_bucket, source_key))
        else:
            yield ObjectEvent("PutObject", bucket, key, size, etag)

    def _existing(self, bucket: str, keys: Sequence[str]) -> list[str]:
        held = self._backend.buckets.get(bucket)
        return [key for key in keys if held and key in held.keys]

    def _check_parts(self, call: HttpCall, bucket: str) -> None:
        """Unlike S3, R2 requires all parts but the last to be of one size."""
        upload = parse_qs(call.query).get("uploadId", [""])[0]
        if call.method != "POST" or upload not in self._backend.buckets[bucket].multiparts:
            return
        parts = self._backend.buckets[bucket].multiparts[upload].parts
        numbers = [int(number) for number in re.findall(rb"<PartNumber>(\d+)</PartNumber>", call.body)]
        sizes = [parts[number].contentsize for number in numbers if number in parts]
        if len(set(sizes[:-1])) > 1 or (len(sizes) > 1 and sizes[-1] > sizes[0]):
            raise S3Refused(400, "InvalidPart", "All non-trailing parts must have the same size.")


def _check_request(call: HttpCall) -> None:
    query = parse_qs(call.query, keep_blank_values=True)
    missing = sorted(query.keys() & _NOT_IMPLEMENTED) if call.method != "HEAD" else []
    missing += [name for name in _REFUSED_HEADERS if name in call.headers]
    if missing:
        raise S3Refused(501, "NotImplemented", f"{missing[0]} not implemented")
    key = unquote(call.path[1:].partition("/")[2])
    if len(key.encode()) > _MAX_KEY_BYTES:
        raise S3Refused(400, "KeyTooLongError", f"Your key is longer than {_MAX_KEY_BYTES} bytes.")
    metadata = sum(len(n) - 11 + len(v) for n, v in call.headers.items() if n.lower().startswith("x-amz-meta-"))
    if metadata > _MAX_METADATA_BYTES:
        raise S3Refused(400, "MetadataTooLarge", "Your metadata headers exceed the maximum allowed metadata size.")
    digest = call.headers.get("Content-MD5")
    if digest and base64.b64encode(hashlib.md5(call.body, usedforsecurity=False).digest()).decode() != digest:
        raise S3Refused(400, "BadDigest", "The Content-MD5 you specified did not match what we received.")


def _from_moto(call: HttpCall, status: int, headers: dict[str, Any], body: bytes) -> HttpReply:
    if status == 404 and call.method == "PUT" and "If-Match" in call.headers:
        # On R2 a missing object fails the condition; on S3 it is not found.
        return s3_failure(412, "PreconditionFailed", _MESSAGES["PreconditionFailed"])
    if status >= 400 and body:
        code = re.search(rb"<Code>(.*?)</Code>", body)
        message = re.search(rb"<Message>(.*?)</Message>", body, re.DOTALL)
        if code and message:
            name = code[1].decode()
            return s3_failure(status, name, _MESSAGES.get(name, unescape(message[1].decode())))
    kept = {name: str(value) for name, value in headers.items() if name.lower() not in _DROPPED_HEADERS}
    return HttpReply(status, body, kept)


def _deletes(call: HttpCall, key: str) -> bool:
    if key:
        return call.method == "DELETE" and "uploadId=" not in call.query
    return call.method == "POST" and "delete" in parse_qs(call.query, keep_blank_values=True)


def _named_keys(call: HttpCall, key: str) -> list[str]:
    named = re.findall(r"<Key>(.*?)</Key>", call.body.decode(errors="replace"), re.DOTALL)
    return [key] if key else [unescape(name) for name in named]
